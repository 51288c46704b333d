fn activate(x: f32) -> f32 {
    //#if GELU
    let u = x * fma(x * x, 0.044715, 1.0);
    return x / (1.0 + exp(min(-1.5957692 * u, 87.0)));
    //#else
    return x / (1.0 + exp(min(-x, 87.0)));
    //#endif
}
