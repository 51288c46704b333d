// Sums of rows `row0 + 4 (t / 16)..` and four columns from `col0 + 4 (t % 16)` on, of weight $W$.
fn sums_$W$(row0: u32, col0: u32, t: u32) -> array<vec4<f32>, 4> {
    var s0 = vec4(0.0);
    var s1 = vec4(0.0);
    var s2 = vec4(0.0);
    var s3 = vec4(0.0);
    let r = 4u * (t / 16u);
    let c = t % 16u;
    for (var first = 0u; first < sizes.blocks; first += 2u) {
        let b = (t / 64u) % 2u;
        let i = t % 64u;
        if (t < 128u) {
            let row = sizes.row_$W$ + min(col0 + i, sizes.cols - 1u);
            let block = min(first + b, sizes.blocks - 1u);
            let codes = codes_$W$(row, sizes.blocks, block);
            let scales = scales_$W$(row, sizes.blocks, block);
            tile_w[128u * b + slot(i)] = codes.lo;
            tile_w[128u * b + 64u + slot(i)] = codes.hi;
            scales_w[64u * b + slot(i)] = vec4(scales.s, scales.m - f32(OFFSET_$W$) * scales.s);
        } else {
            put_x(i, b, sizes.first_row + min(row0 + i, sizes.rows - 1u), first + b);
        }
        workgroupBarrier();
        for (var b = 0u; b < 2u; b++) {
            s0 += four(r, c, b);
            s1 += four(r + 1u, c, b);
            s2 += four(r + 2u, c, b);
            s3 += four(r + 3u, c, b);
        }
        workgroupBarrier();
    }
    return array(s0, s1, s2, s3);
}
