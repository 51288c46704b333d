//! Borrowing what the verbs of hyper-connections and of compressed attention need.

use hob_compute::check::compressed::{self as check, AttendBufs, CompressBufs};
use hob_compute::{AttendEntries, Compress, HyperExpand, HyperMix, Result, Select};

use super::{Buffer, Cpu};
use crate::verb::{compressed, hyper};

pub(super) fn hyper_mix(cpu: &mut Cpu, args: &HyperMix) -> Result<()> {
    const VERB: &str = "hyper_mix";
    let vector = |w| cpu.weights.get(VERB, w)?.vector(VERB);
    let (base, scale) = (vector(args.base)?, vector(args.scale)?);
    let shapes = [cpu.shape(VERB, args.x)?, cpu.shape(VERB, args.logits)?, cpu.shape(VERB, args.out)?];
    let weights = args.weights.map(|w| cpu.shape(VERB, w)).transpose()?;
    let dim = check::hyper_mix(args, shapes, weights, [base.len(), scale.len()])?;
    let &HyperMix { rows, streams, eps, iterations, .. } = args;
    let run = |x: &Buffer, logits: &Buffer, weights: Option<&mut Buffer>, out: &mut Buffer| {
        let rule = hyper::Rule { logits: logits.rows(rows), base, scale, streams, eps, iterations };
        let weights = weights.map(|w| w.rows_mut(rows));
        hyper::mix(&cpu.pool, cpu.isa, rule, x.rows(rows), weights, (out.rows_mut(rows), dim));
    };
    match args.weights {
        Some(weights) => {
            let handles = [args.x, args.logits, weights, args.out];
            let [x, logits, both, out] = cpu.buffers.get_disjoint_mut(VERB, handles)?;
            run(x, logits, Some(both), out);
            cpu.touch(VERB, weights)?;
        }
        None => {
            let [x, logits, out] = cpu.buffers.get_disjoint_mut(VERB, [args.x, args.logits, args.out])?;
            run(x, logits, None, out);
        }
    }
    cpu.touch(VERB, args.out)
}

pub(super) fn hyper_expand(cpu: &mut Cpu, args: &HyperExpand) -> Result<()> {
    const VERB: &str = "hyper_expand";
    let weights = args.weights.map(|w| cpu.shape(VERB, w)).transpose()?;
    let dim = check::hyper_expand(args, cpu.shape(VERB, args.y)?, cpu.shape(VERB, args.x)?, weights)?;
    let (rows, pool, isa) = (args.rows, &cpu.pool, cpu.isa);
    match args.weights {
        Some(weights) => {
            let [y, weights, x] = cpu.buffers.get_disjoint_mut(VERB, [args.y, weights, args.x])?;
            let weights = Some(weights.rows(rows));
            hyper::expand(pool, isa, (y.rows(rows), dim), args.streams, weights, x.rows_mut(rows));
        }
        None => {
            let [y, x] = cpu.buffers.get_disjoint_mut(VERB, [args.y, args.x])?;
            hyper::expand(pool, isa, (y.rows(rows), dim), args.streams, None, x.rows_mut(rows));
        }
    }
    cpu.touch(VERB, args.x)
}

pub(super) fn compress(cpu: &mut Cpu, args: &Compress) -> Result<()> {
    const VERB: &str = "compress";
    let vector = |w| cpu.weights.get(VERB, w)?.vector(VERB);
    let (bias, norm) = (vector(args.bias)?, vector(args.norm)?);
    let bufs = CompressBufs {
        kv: cpu.shape(VERB, args.kv)?,
        gate: cpu.shape(VERB, args.gate)?,
        freqs: cpu.shape(VERB, args.rotation.freqs)?,
        recent: cpu.shape(VERB, args.recent)?,
        entries: cpu.shape(VERB, args.entries)?,
    };
    let fits = check::compress(args, &bufs, [bias.len(), norm.len()])?;
    let handles = [args.kv, args.gate, args.rotation.freqs, args.recent, args.entries];
    let [kv, gate, freqs, recent, entries] = cpu.buffers.get_disjoint_mut(VERB, handles)?;
    let job = compressed::Compress {
        shape: args.shape,
        kv: &kv.data,
        gate: &gate.data,
        bias,
        norm,
        eps: args.eps,
        rotation: (freqs.rows(1), args.rotation.pairs, args.rotation.magnitude),
        recent: &recent.data,
        ring: fits.ring,
        capacity: fits.capacity,
        seqs: args.seqs,
    };
    compressed::compress(&cpu.pool, cpu.isa, &job, &mut entries.data);
    let width = args.shape.width();
    for (which, rows) in [&kv.data, &gate.data].into_iter().enumerate() {
        compressed::keep(args.seqs, (rows, width), (&mut recent.data, fits.ring), (which, 2));
    }
    cpu.touch(VERB, args.recent)?;
    cpu.touch(VERB, args.entries)
}

pub(super) fn select(cpu: &mut Cpu, args: &Select) -> Result<()> {
    const VERB: &str = "select";
    let handles = [args.q, args.weights, args.entries, args.out];
    let [q, weights, entries, out] = handles.map(|b| cpu.shape(VERB, b));
    let (q, weights, entries, out) = (q?, weights?, entries?, out?);
    let top_k = check::select(args, [q, weights, entries, out])?;
    let dim = entries.width;
    let [q, weights, entries, out] = cpu.buffers.get_disjoint_mut(VERB, handles)?;
    let job = compressed::Select {
        q: &q.data,
        weights: &weights.data,
        heads: args.heads,
        dim,
        scale: args.scale,
        entries: &entries.data,
        capacity: args.capacity,
        ratio: args.ratio,
        seqs: args.seqs,
        top_k,
    };
    compressed::select(&cpu.pool, cpu.isa, &job, &mut cpu.scores, &mut out.data);
    cpu.touch(VERB, args.out)
}

pub(super) fn attend_entries(cpu: &mut Cpu, args: &AttendEntries) -> Result<()> {
    const VERB: &str = "attend_entries";
    let sinks = cpu.weights.get(VERB, args.sinks)?.vector(VERB)?;
    let (far, chosen) = (args.entries.map(|e| e.entries), args.entries.and_then(|e| e.chosen));
    let shape_of = |b: Option<_>| b.map(|b| cpu.shape(VERB, b)).transpose();
    let bufs = AttendBufs {
        q: cpu.shape(VERB, args.q)?,
        kv: cpu.shape(VERB, args.kv)?,
        recent: cpu.shape(VERB, args.recent)?,
        entries: shape_of(far)?,
        chosen: shape_of(chosen)?,
        out: cpu.shape(VERB, args.out)?,
    };
    let fits = check::attend_entries(args, &bufs, sinks.len())?;
    let run = |all: [&mut Buffer; 4], far: Option<&Buffer>, chosen: Option<&Buffer>| {
        let [q, kv, recent, out] = all;
        let entries = args.entries.zip(far).map(|(e, far)| compressed::Entries {
            entries: &far.data,
            capacity: fits.capacity,
            ratio: e.ratio,
            chosen: chosen.map(|c| (&c.data[..], c.shape.width)),
        });
        let job = compressed::Attend {
            q: &q.data,
            kv: &kv.data,
            heads: args.heads,
            dim: args.head_dim,
            scale: args.scale,
            window: args.window,
            sinks,
            recent: &recent.data,
            ring: fits.ring,
            entries,
            seqs: args.seqs,
        };
        compressed::attend(&cpu.pool, cpu.isa, &job, &mut out.data);
        compressed::keep(args.seqs, (&kv.data, args.head_dim), (&mut recent.data, fits.ring), (0, 1));
    };
    let own = [args.q, args.kv, args.recent, args.out];
    let [a, b, c, d] = own;
    match (far, chosen) {
        (Some(far), Some(chosen)) => {
            let [a, b, c, d, far, chosen] = cpu.buffers.get_disjoint_mut(VERB, [a, b, c, d, far, chosen])?;
            run([a, b, c, d], Some(far), Some(chosen));
        }
        (Some(far), None) => {
            let [a, b, c, d, far] = cpu.buffers.get_disjoint_mut(VERB, [a, b, c, d, far])?;
            run([a, b, c, d], Some(far), None);
        }
        (None, _) => run(cpu.buffers.get_disjoint_mut(VERB, own)?, None, None),
    }
    cpu.touch(VERB, args.recent)?;
    cpu.touch(VERB, args.out)
}
