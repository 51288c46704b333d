//#if CAP
// See hob_compute::math::tanh, here of four.
fn tanh_of(value: vec4<f32>) -> vec4<f32> {
    let x = clamp(value, vec4<f32>(-9.0109), vec4<f32>(9.0109));
    let z = x * x;
    var p = fma(vec4<f32>(1.3335183e-8), z, vec4<f32>(2.0595076e-5));
    p = fma(p, z, vec4<f32>(3.4947384e-3));
    p = fma(p, z, vec4<f32>(1.338031e-1));
    p = fma(p, z, vec4<f32>(1.0));
    var q = fma(vec4<f32>(7.7686025e-7), z, vec4<f32>(3.2428442e-4));
    q = fma(q, z, vec4<f32>(2.587375e-2));
    q = fma(q, z, vec4<f32>(4.6713626e-1));
    q = fma(q, z, vec4<f32>(1.0));
    return x * p / q;
}
//#endif

// From products to scores, which count in powers of 2.
fn score(products: vec4<f32>) -> vec4<f32> {
    //#if CAP
    return tanh_of(products * sizes.factor) * sizes.cap;
    //#else
    return products * sizes.factor;
    //#endif
}
