// Below, exp is 0; a larger magnitude would overflow on the way.
fn sigmoid(x: f32) -> f32 {
    return 1.0 / (1.0 + exp(clamp(-x, -87.0, 87.0)));
}

fn softplus(x: f32) -> f32 {
    let e = exp(max(-abs(x), -87.0));
    // ln(1 + e), also where e is lost beside 1.
    let rest = select(log(1.0 + e), e * (1.0 - 0.5 * e), e < 1e-3);
    return max(x, 0.0) + rest;
}

const UNIT_EPS = 1e-6;
