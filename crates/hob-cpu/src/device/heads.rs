//! Borrowing what products and joins head by head need.

use hob_compute::check;
use hob_compute::{Buf, ComputeError, Heads, Result};

use super::{Cpu, Loaded};
use crate::linear::heads;
use crate::verb::map;

pub(super) fn heads(cpu: &mut Cpu, args: &Heads) -> Result<()> {
    const VERB: &str = "heads";
    let tensor = cpu.weights.get(VERB, args.weight)?;
    let (x, out) = (cpu.shape(VERB, args.x)?, cpu.shape(VERB, args.out)?);
    check::heads(args, x, &tensor.spec, out)?;
    let Loaded::Experts(matrices) = &tensor.loaded else {
        return Err(ComputeError::shape(VERB, "a weight loaded for heads", &tensor.spec.name));
    };
    let [x, out] = cpu.buffers.get_disjoint_mut(VERB, [args.x, args.out])?;
    let job = heads::Job { x: x.rows(args.rows), rows: args.rows, matrices, out: out.rows_mut(args.rows) };
    heads::run(&cpu.pool, cpu.isa, job, &mut cpu.heads);
    cpu.touch(VERB, args.out)
}

pub(super) fn join(cpu: &mut Cpu, bufs: [Buf; 3], groups: usize, rows: usize) -> Result<()> {
    let [a, b, out] = bufs;
    let of = |buf| Ok((buf, cpu.shape("map", buf)?));
    check::join(rows, [of(a)?, of(b)?, of(out)?], groups)?;
    if a == b {
        let [part, to] = cpu.buffers.get_disjoint_mut("map", [a, out])?;
        map::join(&cpu.pool, [part.rows(rows), part.rows(rows)], rows * groups, to.rows_mut(rows));
    } else {
        let [a, b, to] = cpu.buffers.get_disjoint_mut("map", [a, b, out])?;
        map::join(&cpu.pool, [a.rows(rows), b.rows(rows)], rows * groups, to.rows_mut(rows));
    }
    cpu.touch("map", out)
}
