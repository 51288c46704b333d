// Only for a test: cooperative matrices of a subgroup of 32 spelled out. A lane has half a row of C, the row of A, and looks B
// up. It stands in for the line that enables such matrices.
fn get_c(lane: u32, at: u32, stride: u32) -> mat2x4<f32> {
    let i = at + lane / 2u * stride + lane % 2u * 2u;
    return mat2x4<f32>(scores[i], scores[i + 1u]);
}

fn put_c(lane: u32, c: mat2x4<f32>, at: u32, stride: u32) {
    let i = at + lane / 2u * stride + lane % 2u * 2u;
    scores[i] = c[0];
    scores[i + 1u] = c[1];
}

// Four halves of A's row in every part, as f32.
fn get_a(lane: u32, at: u32, stride: u32) -> mat4x4<f32> {
    let i = at + lane / 2u * stride;
    return mat4x4<f32>(
        vec4<f32>(stage[i]), vec4<f32>(stage[i + 1u]), vec4<f32>(stage[i + 2u]), vec4<f32>(stage[i + 3u]));
}

// `b`: where it starts, and the fours from one row to the next.
fn multiply_add(lane: u32, a: mat4x4<f32>, b: vec2<u32>, c: mat2x4<f32>) -> mat2x4<f32> {
    var sum = c;
    var row = a;
    // A count that no compiler knows: unrolled, these loops would take it minutes.
    let count = 4u + (sizes.tables >> 31u);
    for (var k = 0u; k < count; k++) {
        for (var j = 0u; j < count; j++) {
            let at = b.x + (4u * k + j) * b.y + lane % 2u * 2u;
            let x = row[k][j];
            sum[0] += x * vec4<f32>(stage[at]);
            sum[1] += x * vec4<f32>(stage[at + 1u]);
        }
    }
    return sum;
}
