//! The Hadamard transform of a vector, which spreads outliers over all dimensions. It must not know what is stored.

/// Replaces `x` by its orthonormal Walsh-Hadamard transform in natural order: the matrix is block-diagonal, its blocks as
/// large as the largest power of two that divides the length. It is symmetric, so it is its own inverse, and leaves
/// every dot product of two transformed vectors as it was.
///
/// Butterflies `(a + b, a - b)` of f32 in strides 1, 2, 4, .. below the block, then one product with `1 / sqrt(block)`
/// rounded to f32.
#[inline(always)]
pub fn hadamard(x: &mut [f32]) {
    if x.is_empty() {
        return;
    }
    let block = 1usize << x.len().trailing_zeros();
    let mut stride = 1;
    if block >= 8 {
        for eight in x.as_chunks_mut::<8>().0 {
            *eight = first_three(*eight);
        }
        stride = 8;
    }
    while stride < block {
        for pair in x.chunks_exact_mut(2 * stride) {
            let (low, high) = pair.split_at_mut(stride);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        stride *= 2;
    }
    let factor = (1.0 / (block as f64).sqrt()) as f32;
    x.iter_mut().for_each(|v| *v *= factor);
}

/// Strides 1, 2 and 4: unrolled, since loops of one or two steps keep a compiler from using whole registers.
#[inline(always)]
fn first_three(x: [f32; 8]) -> [f32; 8] {
    let step = |x: [f32; 8], stride: usize| -> [f32; 8] {
        std::array::from_fn(|i| if i & stride == 0 { x[i] + x[i | stride] } else { x[i & !stride] - x[i] })
    };
    step(step(step(x, 1), 2), 4)
}
