//#if CLAMPED
fn gated(gate: f32, up: f32) -> f32 {
    let g = min(gate, f32($LIMIT$));
    let u = clamp(up, -f32($LIMIT$), f32($LIMIT$));
    //#if PLUS_ONE
    return g / (1.0 + exp(min(-f32($ALPHA$) * g, 87.0))) * (u + 1.0);
    //#else
    return g / (1.0 + exp(min(-f32($ALPHA$) * g, 87.0))) * u;
    //#endif
}

fn alone(x: f32) -> f32 {
    let g = min(x, f32($LIMIT$));
    return g / (1.0 + exp(min(-f32($ALPHA$) * g, 87.0)));
}
//#else
fn activate(x: f32) -> f32 {
    //#if RELU_SQUARED
    let r = max(x, 0.0);
    return r * r;
    //#else
    //#if GELU
    let u = x * fma(x * x, 0.044715, 1.0);
    return x / (1.0 + exp(min(-1.5957692 * u, 87.0)));
    //#else
    return x / (1.0 + exp(min(-x, 87.0)));
    //#endif
    //#endif
}

fn alone(x: f32) -> f32 {
    return activate(x);
}

fn gated(gate: f32, up: f32) -> f32 {
    return activate(gate) * up;
}
//#endif
