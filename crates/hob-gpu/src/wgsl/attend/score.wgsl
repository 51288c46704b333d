//#if CAP
//#include tanh
//#endif

// From products to scores, which count in powers of 2.
fn score(products: vec4<f32>) -> vec4<f32> {
    //#if CAP
    return tanh_of(products * sizes.factor) * sizes.cap;
    //#else
    return products * sizes.factor;
    //#endif
}
