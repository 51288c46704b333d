//! Borrowing what `short_conv`, `delta_net` and `ssm_scan` need.

use hob_compute::check::recurrent::{self as check, DeltaBufs, SsmBufs};
use hob_compute::{DeltaNet, Result, ShortConv, SsmScan};

use super::Cpu;
use crate::verb::{delta, short_conv, ssm};

pub(super) fn short_conv(cpu: &mut Cpu, args: &ShortConv) -> Result<()> {
    const VERB: &str = "short_conv";
    let tensor = cpu.weights.get(VERB, args.taps)?;
    let taps = tensor.vector(VERB)?;
    let bias = args.bias.map(|w| cpu.weights.get(VERB, w)?.vector(VERB)).transpose()?;
    let (x, state) = (cpu.shape(VERB, args.x)?, cpu.shape(VERB, args.state)?);
    let count =
        check::short_conv(args, x, (taps.len(), bias.map(<[f32]>::len)), state, cpu.shape(VERB, args.out)?)?;
    let mut turned = tensor.turned.borrow_mut();
    if turned.0 != count {
        *turned = (count, short_conv::turned(taps, count));
    }
    let [x, state, out] = cpu.buffers.get_disjoint_mut(VERB, [args.x, args.state, args.out])?;
    let job = short_conv::Job {
        form: args.form,
        x: &x.data,
        taps: &turned.1,
        count,
        bias,
        state: &mut state.data,
        seqs: args.seqs,
        out: &mut out.data,
    };
    short_conv::short_conv(&cpu.pool, cpu.isa, job);
    drop(turned);
    cpu.touch(VERB, args.state)?;
    cpu.touch(VERB, args.out)
}

pub(super) fn delta_net(cpu: &mut Cpu, args: &DeltaNet) -> Result<()> {
    const VERB: &str = "delta_net";
    let vector = |w| cpu.weights.get(VERB, w)?.vector(VERB);
    let (rate, bias, norm) = (vector(args.rate)?, vector(args.bias)?, vector(args.norm)?);
    let bufs = DeltaBufs {
        qkv: cpu.shape(VERB, args.qkv)?,
        z: cpu.shape(VERB, args.z)?,
        beta: cpu.shape(VERB, args.beta)?,
        decay: cpu.shape(VERB, args.decay)?,
        state: cpu.shape(VERB, args.state)?,
        out: cpu.shape(VERB, args.out)?,
    };
    check::delta_net(args, &bufs, [rate.len(), bias.len(), norm.len()])?;
    let handles = [args.qkv, args.z, args.beta, args.decay, args.state, args.out];
    let [qkv, z, beta, decay, state, out] = cpu.buffers.get_disjoint_mut(VERB, handles)?;
    let job = delta::Job {
        shape: args.shape,
        qkv: &qkv.data,
        z: &z.data,
        beta: &beta.data,
        decay: &decay.data,
        rate,
        bias,
        norm,
        eps: args.eps,
        state: &mut state.data,
        seqs: args.seqs,
        out: &mut out.data,
    };
    delta::delta_net(&cpu.pool, cpu.isa, job);
    cpu.touch(VERB, args.state)?;
    cpu.touch(VERB, args.out)
}

pub(super) fn ssm_scan(cpu: &mut Cpu, args: &SsmScan) -> Result<()> {
    const VERB: &str = "ssm_scan";
    let vector = |w| cpu.weights.get(VERB, w)?.vector(VERB);
    let (rate, bias) = (vector(args.rate)?, vector(args.bias)?);
    let (skip, norm) = (vector(args.skip)?, vector(args.norm)?);
    let bufs = SsmBufs {
        xbc: cpu.shape(VERB, args.xbc)?,
        z: cpu.shape(VERB, args.z)?,
        dt: cpu.shape(VERB, args.dt)?,
        state: cpu.shape(VERB, args.state)?,
        out: cpu.shape(VERB, args.out)?,
    };
    check::ssm_scan(args, &bufs, [rate, bias, skip, norm].map(<[f32]>::len))?;
    let handles = [args.xbc, args.z, args.dt, args.state, args.out];
    let [xbc, z, dt, state, out] = cpu.buffers.get_disjoint_mut(VERB, handles)?;
    let job = ssm::Job {
        shape: args.shape,
        xbc: &xbc.data,
        z: &z.data,
        dt: &dt.data,
        rate,
        bias,
        skip,
        norm,
        eps: args.eps,
        limit: args.limit,
        state: &mut state.data,
        seqs: args.seqs,
        out: &mut out.data,
    };
    ssm::ssm_scan(&cpu.pool, cpu.isa, job);
    cpu.touch(VERB, args.state)?;
    cpu.touch(VERB, args.out)
}
