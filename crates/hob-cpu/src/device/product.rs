//! Borrowing what one `linear` needs: one input, several weights and outputs, all at once and without allocation.

use hob_compute::check::{self, Shape};
use hob_compute::slots::Slots;
use hob_compute::{Buf, Combine, ComputeError, Linear, Product, Result, Weight, WeightKind};

use super::{Buffer, Cpu, Loaded, Tensor};
use crate::arena::HugeVec;
use crate::linear::{self, Job, MAX_PRODUCTS, Matrix, ProductJob};

/// A matrix and the bias of its product.
type Factors<'a> = (&'a Matrix, Option<&'a [f32]>);

fn factors<'a>(weights: &'a Slots<Weight, Tensor>, product: &Product) -> Result<Factors<'a>> {
    let tensor = weights.get("linear", product.weight)?;
    let Loaded::Matrix(matrix) = &tensor.loaded else {
        return Err(tensor.wrong_kind("linear", WeightKind::Matrix));
    };
    let Some(bias) = product.bias else { return Ok((matrix, None)) };
    Ok((matrix, Some(weights.get("linear", bias)?.vector("linear")?)))
}

/// Checks and runs a `linear`.
pub(super) fn run(cpu: &mut Cpu, args: &Linear) -> Result<()> {
    check(cpu, args)?;
    if matches!(args.combine, Combine::Gated(_)) {
        return gated(cpu, args);
    }
    match args.products.len() {
        1 => several::<1, 2>(cpu, args),
        2 => several::<2, 3>(cpu, args),
        3 => several::<3, 4>(cpu, args),
        4 => several::<4, 5>(cpu, args),
        5 => several::<5, 6>(cpu, args),
        6 => several::<6, 7>(cpu, args),
        7 => several::<7, 8>(cpu, args),
        MAX_PRODUCTS => several::<MAX_PRODUCTS, { MAX_PRODUCTS + 1 }>(cpu, args),
        n => Err(ComputeError::shape("linear", format!("at most {MAX_PRODUCTS} products"), n)),
    }
}

fn check(cpu: &Cpu, args: &Linear) -> Result<()> {
    let x = cpu.shape("linear", args.x)?;
    check::linear(args, x)?;
    let written = args.written().count();
    let mut first = None;
    for (i, product) in args.products.iter().enumerate() {
        let (matrix, bias) = factors(&cpu.weights, product)?;
        let weight = Shape { rows: matrix.rows(), width: matrix.cols() };
        let out = if i < written { Some(cpu.shape("linear", product.out)?) } else { None };
        check::product(args, x, weight, bias.map(<[f32]>::len), out)?;
        let gate = *first.get_or_insert(weight);
        if matches!(args.combine, Combine::Gated(_)) {
            check::gated(gate, weight)?;
        }
    }
    Ok(())
}

/// `N` products with an output each; `M = N + 1` buffers are borrowed at once.
fn several<const N: usize, const M: usize>(cpu: &mut Cpu, args: &Linear) -> Result<()> {
    let mut operands: [Factors; N] = [factors(&cpu.weights, &args.products[0])?; N];
    for (operand, product) in operands.iter_mut().zip(args.products) {
        *operand = factors(&cpu.weights, product)?;
    }
    let handles: [Buf; M] = std::array::from_fn(|i| if i == 0 { args.x } else { args.products[i - 1].out });
    {
        let mut buffers = cpu.buffers.get_disjoint_mut("linear", handles)?.into_iter();
        let Some(x) = buffers.next() else { return Ok(()) };
        let mut jobs = operands.map(|(matrix, bias)| ProductJob {
            matrix,
            bias,
            out: buffers.next().map_or(&mut [], |buffer| buffer.rows_mut(args.rows)),
        });
        linear::run(&cpu.pool, cpu.isa, job(x, args, &mut jobs))?;
    }
    for product in args.products {
        cpu.touch("linear", product.out)?;
    }
    Ok(())
}

/// Gate and up, whose only output is the gate's.
fn gated(cpu: &mut Cpu, args: &Linear) -> Result<()> {
    let (gate, up) = (&args.products[0], &args.products[1]);
    let ((matrix, bias), (up_matrix, up_bias)) = (factors(&cpu.weights, gate)?, factors(&cpu.weights, up)?);
    let unwritten = args.rows * up_matrix.rows();
    // The kernel wants a place for both; this one is address space that nobody touches.
    if cpu.unwritten.len() < unwritten {
        cpu.unwritten = HugeVec::zeroed(unwritten)?;
    }
    let [x, out] = cpu.buffers.get_disjoint_mut("linear", [args.x, gate.out])?;
    let mut jobs = [
        ProductJob { matrix, bias, out: out.rows_mut(args.rows) },
        ProductJob { matrix: up_matrix, bias: up_bias, out: &mut cpu.unwritten },
    ];
    let job = job(x, args, &mut jobs);
    linear::run(&cpu.pool, cpu.isa, job)?;
    cpu.touch("linear", gate.out)
}

fn job<'a, 'p>(x: &'a mut Buffer, args: &Linear, products: &'a mut [ProductJob<'p>]) -> Job<'a, 'p> {
    let width = x.shape.width;
    Job {
        x: &x.data[args.first_row * width..(args.first_row + args.rows) * width],
        x_stride: width,
        rows: args.rows,
        cache: &mut x.cache,
        first_row: args.first_row,
        products,
        combine: args.combine,
    }
}
