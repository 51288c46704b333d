// hob_compute::math::tanh for $T$: WGSL leaves the precision of its own to the driver.
fn tanh_of(value: $T$) -> $T$ {
    let x = select(select(value, $T$(-$HIGH$), value < $T$(-$HIGH$)), $T$($HIGH$), value > $T$($HIGH$));
    let z = x * x;
    var p = fma($T$($P0$), z, $T$($P1$));
    p = fma(p, z, $T$($P2$));
    p = fma(p, z, $T$($P3$));
    p = fma(p, z, $T$($P4$));
    var q = fma($T$($Q0$), z, $T$($Q1$));
    q = fma(q, z, $T$($Q2$));
    q = fma(q, z, $T$($Q3$));
    q = fma(q, z, $T$($Q4$));
    return x * p / q;
}
