//! What happens to the products of a unit of rows before they are stored.

use hob_compute::{Activation, math};

use crate::isa::Isa;

/// A unit of computed products: `rows` activation rows by `height` outputs, row stride `stride`.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    pub y: &'a [f32],
    pub rows: usize,
    pub height: usize,
    pub stride: usize,
}

/// Where a unit's outputs go: column `col` of a `[rows, width]` buffer.
#[derive(Clone, Copy)]
pub(super) struct Target {
    pub out: *mut f32,
    pub width: usize,
    pub col: usize,
}

/// Stores or adds one unit. Order: `out = y + bias`, or `out = out + (y + bias)`.
///
/// # Safety
/// `target` must be valid for `rows` rows of `width` floats, and no other thread may touch the columns
/// `col..col + height`.
pub(super) unsafe fn store(block: Block, bias: Option<&[f32]>, add: bool, target: Target) {
    for r in 0..block.rows {
        let y = &block.y[r * block.stride..][..block.height];
        // SAFETY: the caller vouches for the range.
        let out = unsafe {
            std::slice::from_raw_parts_mut(target.out.add(r * target.width + target.col), block.height)
        };
        match (bias, add) {
            (None, false) => out.copy_from_slice(y),
            (None, true) => out.iter_mut().zip(y).for_each(|(o, y)| *o += y),
            (Some(b), false) => out.iter_mut().zip(y.iter().zip(b)).for_each(|(o, (y, b))| *o = y + b),
            (Some(b), true) => out.iter_mut().zip(y.iter().zip(b)).for_each(|(o, (y, b))| *o += y + b),
        }
    }
}

/// Stores `activation(y)`.
///
/// # Safety
/// As [`store`].
pub(super) unsafe fn activated(block: Block, activation: Activation, target: Target) {
    for r in 0..block.rows {
        let y = &block.y[r * block.stride..][..block.height];
        // SAFETY: the caller vouches for the range.
        let out = unsafe {
            std::slice::from_raw_parts_mut(target.out.add(r * target.width + target.col), block.height)
        };
        match activation {
            Activation::ReluSquared => {
                out.iter_mut().zip(y).for_each(|(o, &y)| *o = math::relu_squared(y));
            }
            _ => out.iter_mut().zip(y).for_each(|(o, &y)| *o = activation.alone(y)),
        }
    }
}

/// Stores `activation(gate + bias) * (up + bias)`.
///
/// # Safety
/// As [`store`].
pub(super) unsafe fn gated(
    isa: Isa,
    blocks: [Block; 2],
    biases: [Option<&[f32]>; 2],
    activation: Activation,
    target: Target,
) {
    let [gate, up] = blocks;
    let plus = |y: f32, bias: Option<&[f32]>, i: usize| bias.map_or(y, |b| y + b[i]);
    for r in 0..gate.rows {
        let g = &gate.y[r * gate.stride..][..gate.height];
        let u = &up.y[r * up.stride..][..gate.height];
        // SAFETY: the caller vouches for the range.
        let out = unsafe {
            std::slice::from_raw_parts_mut(target.out.add(r * target.width + target.col), gate.height)
        };
        #[cfg(target_arch = "x86_64")]
        if isa >= Isa::Avx2 && gate.height.is_multiple_of(8) && biases == [None, None] {
            // SAFETY: the ISA class was detected, and the three slices have one length, a multiple of 8.
            unsafe { super::avx2::gate(activation, g, u, out) };
            continue;
        }
        let _ = isa;
        for (i, o) in out.iter_mut().enumerate() {
            let (g, u) = (plus(g[i], biases[0], i), plus(u[i], biases[1], i));
            *o = activation.gated(g, u);
        }
    }
}
