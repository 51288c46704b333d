// Two values as f16, clamped so that no finite value becomes infinite; what is not finite stays so.
fn finite_half(v: vec2<f32>) -> u32 {
    let special = (bitcast<vec2<u32>>(v) & vec2<u32>(0x7fffffffu)) >= vec2<u32>(0x7f800000u);
    return pack2x16float(select(clamp(v, vec2<f32>(-65504.0), vec2<f32>(65504.0)), v, special));
}
