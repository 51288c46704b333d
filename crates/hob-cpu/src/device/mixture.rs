//! Borrowing what `route` and `experts` need, and loading stacked experts as one matrix each.

use std::sync::Arc;

use hob_compute::check::mixture as check;
use hob_compute::reference::mixture::RouteVectors;
use hob_compute::{ByteSource, ComputeError, Experts, Result, Route, Weight, WeightKind, WeightSpec};

use super::{Buffer, Cpu, Loaded, Tensor};
use crate::linear::{LoadCtx, Matrix, experts};
use crate::verb::route;

/// What the verbs of this file keep between calls.
#[derive(Default)]
pub(super) struct Scratch {
    experts: experts::Scratch,
}

/// The bytes of one expert.
struct Window<'a> {
    source: &'a dyn ByteSource,
    start: u64,
    len: u64,
}

impl ByteSource for Window<'_> {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.source.read_at(self.start + offset, buf)
    }
}

/// Each expert's rows packed like a matrix of its own, one behind the other in the arena.
pub(super) fn load(
    spec: &WeightSpec,
    count: usize,
    source: &Arc<dyn ByteSource>,
    ctx: &LoadCtx,
) -> Result<Vec<Matrix>> {
    let len = source.len() / count as u64;
    let one = WeightSpec { kind: WeightKind::Matrix, rows: spec.rows / count, ..spec.clone() };
    let window = |e: usize| Window { source: source.as_ref(), start: e as u64 * len, len };
    (0..count).map(|e| Matrix::load(&one, &window(e), ctx)).collect()
}

fn matrices(tensor: &Tensor) -> Result<&[Matrix]> {
    match &tensor.loaded {
        Loaded::Experts(matrices) => Ok(matrices),
        _ => Err(check::expert_weight(&tensor.spec).err().unwrap_or_else(|| {
            ComputeError::shape("experts", "a weight loaded as experts", &tensor.spec.name)
        })),
    }
}

pub(super) fn route(cpu: &mut Cpu, args: &Route) -> Result<()> {
    let vector = |w: Option<Weight>| w.map(|w| cpu.weights.get("route", w)?.vector("route")).transpose();
    let (bias, scales) = (vector(args.bias)?, vector(args.scales)?);
    let (logits, out) = (cpu.shape("route", args.logits)?, cpu.shape("route", args.out)?);
    let lengths = [bias, scales].map(|v| v.map(<[f32]>::len));
    let chosen = args.chosen.map(|c| cpu.shape("route", c)).transpose()?;
    check::route(args, logits, lengths, chosen, out)?;
    let width = logits.width;
    let run = |from: &Buffer, chosen: Option<&Buffer>, to: &mut Buffer| {
        let vectors = RouteVectors { chosen: chosen.map(|c| c.rows(args.rows)), bias, scales };
        let logits = (from.rows(args.rows), width);
        route::route(&cpu.pool, cpu.isa, &args.rule, logits, vectors, to.rows_mut(args.rows));
    };
    match args.chosen {
        Some(chosen) => {
            let handles = [args.logits, chosen, args.out];
            let [from, chosen, to] = cpu.buffers.get_disjoint_mut("route", handles)?;
            run(from, Some(chosen), to);
        }
        None => {
            let [from, to] = cpu.buffers.get_disjoint_mut("route", [args.logits, args.out])?;
            run(from, None, to);
        }
    }
    cpu.touch("route", args.out)
}

pub(super) fn experts(cpu: &mut Cpu, args: &Experts) -> Result<()> {
    const VERB: &str = "experts";
    let weight = |w: Weight| cpu.weights.get(VERB, w);
    let (gate, up, down) = (args.gate.map(weight).transpose()?, weight(args.up)?, weight(args.down)?);
    let shapes = check::expert_weights(gate.map(|gate| &gate.spec), [&up.spec, &down.spec])?;
    let bufs = check::ExpertBufs {
        x: cpu.shape(VERB, args.x)?,
        routes: cpu.shape(VERB, args.routes)?,
        hidden: cpu.shape(VERB, args.hidden)?,
        out: cpu.shape(VERB, args.out)?,
    };
    check::experts(args, &shapes, &bufs)?;
    let biases = match args.biases {
        Some(given) => {
            let [a, b, c] = given.map(|w| weight(w)?.vector(VERB));
            let biases = [a?, b?, c?];
            check::expert_biases(&shapes, biases.map(<[f32]>::len))?;
            biases.map(Some)
        }
        None => [None; 3],
    };
    let handles = [args.x, args.routes, args.hidden, args.out];
    let [x, routes, hidden, out] = cpu.buffers.get_disjoint_mut(VERB, handles)?;
    let job = experts::Job {
        x: x.rows(args.rows),
        rows: args.rows,
        routes: routes.rows(args.rows),
        top_k: args.top_k,
        gate: gate.map_or(Ok(&[][..]), matrices)?,
        up: matrices(up)?,
        down: matrices(down)?,
        biases,
        activation: args.activation,
        add: args.add,
        hidden: hidden.rows_mut(args.rows * args.top_k),
        out: out.rows_mut(args.rows),
    };
    experts::run(&cpu.pool, cpu.isa, job, &mut cpu.mixture.experts)?;
    cpu.touch(VERB, args.hidden)?;
    cpu.touch(VERB, args.out)
}
