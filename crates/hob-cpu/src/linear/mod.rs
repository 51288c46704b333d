//! Matrix products: packed weights, the int8 form of activations, decode and prefill kernels.
//!
//! Owns the layouts weights have in memory and the numerics of `linear`. It must not know models or buffers' handles.
//!
//! Two families. *Int8*: quantised weights, most of them interleaved over 16 rows ([`shape`]), times activations quantised
//! per 32 ([`hob_compute::act`]). *Float*: everything else, times f32 activations in 16 virtual lanes ([`hob_compute::math`]).

pub mod act;
mod combine;
mod drive;
pub mod experts;
mod float;
pub mod heads;
mod layout;
mod pack;
mod portable;
mod shape;
#[cfg(target_arch = "x86_64")]
mod tile;
mod tuning;
#[cfg(target_arch = "x86_64")]
mod vnni;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

pub use act::ActCache;
pub use layout::Matrix;
pub use tuning::{Tuning, set_tuning, tuning};

use hob_compute::{Combine, ComputeError};

use crate::arena::Arena;
use crate::isa::Isa;
use crate::pool::Pool;

/// What loading a matrix needs.
pub struct LoadCtx<'a> {
    pub isa: Isa,
    /// Keep activations in f32: quantised weights are then decoded, not multiplied as integers.
    pub exact: bool,
    pub pool: &'a Pool,
    pub arena: &'a Arena,
}

/// One product of a job.
pub struct ProductJob<'a> {
    pub matrix: &'a Matrix,
    /// `[out_width]`
    pub bias: Option<&'a [f32]>,
    /// `[rows, out_width]`
    pub out: &'a mut [f32],
}

/// One `linear` verb.
pub struct Job<'a, 'p> {
    /// `[rows, x_stride]`, the first row being the first input row.
    pub x: &'a [f32],
    /// Floats from one input row to the next; the input width is the matrices' `cols`.
    pub x_stride: usize,
    pub rows: usize,
    /// The derived form of these rows, kept while the buffer is unchanged.
    pub cache: &'a mut ActCache,
    /// Where in the buffer `x` begins, so that the cache can tell different windows apart.
    pub first_row: usize,
    pub products: &'a mut [ProductJob<'p>],
    pub combine: Combine,
}

/// Most products one job can have.
pub const MAX_PRODUCTS: usize = 8;

/// Runs a job on all threads of the pool.
///
/// # Errors
/// [`ComputeError::Shape`] when widths, lengths or the number of products do not fit each other.
pub fn run(pool: &Pool, isa: Isa, job: Job) -> Result<(), ComputeError> {
    check(&job)?;
    if job.rows == 0 {
        return Ok(());
    }
    drive::run(pool, isa, job);
    Ok(())
}

fn check(job: &Job) -> Result<(), ComputeError> {
    let shape =
        |expected: String, found: String| Err(ComputeError::Shape { verb: "linear", expected, found });
    let Some(first) = job.products.first() else {
        return shape("at least one product".into(), "none".into());
    };
    if job.products.len() > MAX_PRODUCTS {
        return shape(format!("at most {MAX_PRODUCTS} products"), job.products.len().to_string());
    }
    let cols = first.matrix.cols();
    for p in job.products.iter() {
        if p.matrix.cols() != cols {
            return shape(format!("input width {cols}"), p.matrix.cols().to_string());
        }
        let out = p.matrix.rows() * job.rows;
        if p.out.len() < out {
            return shape(format!("{out} output floats"), p.out.len().to_string());
        }
        if p.bias.is_some_and(|b| b.len() != p.matrix.rows()) {
            return shape(format!("bias of {}", p.matrix.rows()), "another length".into());
        }
    }
    if matches!(job.combine, Combine::Gated(_))
        && (job.products.len() != 2 || first.matrix.rows() != job.products[1].matrix.rows())
    {
        return shape(
            "two products of one height (gate, up)".into(),
            format!("{} products", job.products.len()),
        );
    }
    let needed = if job.rows == 0 { 0 } else { (job.rows - 1) * job.x_stride + cols };
    if job.x_stride < cols || job.x.len() < needed {
        return shape(format!("{needed} input floats in rows of {cols}"), job.x.len().to_string());
    }
    Ok(())
}
