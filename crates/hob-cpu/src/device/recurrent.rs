//! Borrowing what `short_conv`, `delta_net`, `ssm_scan` and `catch_up` need.

use hob_compute::check::recurrent::{self as check, DeltaBufs, MemoryShape, SsmBufs};
use hob_compute::{CatchUp, DeltaNet, Recurrence, Result, ShortConv, SsmScan};

use super::Cpu;
use crate::verb::products::{self, States};
use crate::verb::{delta, short_conv, ssm};

pub(super) fn short_conv(cpu: &mut Cpu, args: &ShortConv) -> Result<()> {
    const VERB: &str = "short_conv";
    let tensor = cpu.weights.get(VERB, args.taps)?;
    let taps = tensor.vector(VERB)?;
    let bias = args.bias.map(|w| cpu.weights.get(VERB, w)?.vector(VERB)).transpose()?;
    let memory = MemoryShape::of(&args.memory, |buf| cpu.shape(VERB, buf))?;
    let (x, out) = (cpu.shape(VERB, args.x)?, cpu.shape(VERB, args.out)?);
    let count = check::short_conv(args, x, (taps.len(), bias.map(<[f32]>::len)), memory, out)?;
    let held = memory.held(&Recurrence::Conv { channels: out.width, taps: count });
    let mut turned = tensor.turned.borrow_mut();
    if turned.0 != count {
        *turned = (count, short_conv::turned(taps, count));
    }
    let (state, bufs) = (args.memory.state, &mut cpu.buffers);
    let ([x, out, state], records) = match args.memory.records {
        Some(records) => {
            let [x, out, state, records] = bufs.get_disjoint_mut(VERB, [args.x, args.out, state, records])?;
            ([x, out, state], &mut records.data[..])
        }
        None => (bufs.get_disjoint_mut(VERB, [args.x, args.out, state])?, &mut [][..]),
    };
    let job = short_conv::Job {
        form: args.form,
        x: &x.data,
        taps: &turned.1,
        count,
        bias,
        memory: short_conv::Columns { state: &mut state.data, records, held },
        seqs: args.seqs,
        out: &mut out.data,
    };
    short_conv::short_conv(&cpu.pool, cpu.isa, job);
    drop(turned);
    cpu.touch(VERB, args.memory.state)?;
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
        memory: MemoryShape::of(&args.memory, |buf| cpu.shape(VERB, buf))?,
        out: cpu.shape(VERB, args.out)?,
    };
    check::delta_net(args, &bufs, [rate.len(), bias.len(), norm.len()])?;
    let held = bufs.memory.held(&Recurrence::Delta(args.shape));
    let &DeltaNet { qkv, z, beta, decay, out, memory, .. } = args;
    let buffers = &mut cpu.buffers;
    let ([qkv, z, beta, decay, out, state], records) = match memory.records {
        Some(records) => {
            let all = [qkv, z, beta, decay, out, memory.state, records];
            let [qkv, z, beta, decay, out, state, records] = buffers.get_disjoint_mut(VERB, all)?;
            ([qkv, z, beta, decay, out, state], &mut records.data[..])
        }
        None => (buffers.get_disjoint_mut(VERB, [qkv, z, beta, decay, out, memory.state])?, &mut [][..]),
    };
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
        memory: States { state: &mut state.data, records, held },
        seqs: args.seqs,
        out: &mut out.data,
    };
    delta::delta_net(&cpu.pool, cpu.isa, job);
    cpu.touch(VERB, args.memory.state)?;
    cpu.touch(VERB, args.out)
}

pub(super) fn catch_up(cpu: &mut Cpu, args: &CatchUp) -> Result<()> {
    const VERB: &str = "catch_up";
    let memory = MemoryShape::of(&args.memory, |buf| cpu.shape(VERB, buf))?;
    check::catch_up(args, memory)?;
    let held = memory.held(&args.recurrence);
    // Nothing was held where there are no records.
    let Some(records) = args.memory.records else { return Ok(()) };
    let [state, records] = cpu.buffers.get_disjoint_mut(VERB, [args.memory.state, records])?;
    let (state, records) = (&mut state.data[..], &mut records.data[..]);
    match args.recurrence {
        Recurrence::Conv { channels, taps } => {
            short_conv::catch_up((channels, taps), short_conv::Columns { state, records, held }, args.seqs);
        }
        Recurrence::Ssm(shape) => {
            let states = States { state, records, held };
            products::catch_up(&cpu.pool, cpu.isa, &shape.products(), states, args.seqs);
        }
        Recurrence::Delta(shape) => {
            let states = States { state, records, held };
            products::catch_up(&cpu.pool, cpu.isa, &shape.products(), states, args.seqs);
        }
    }
    cpu.touch(VERB, args.memory.state)
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
        memory: MemoryShape::of(&args.memory, |buf| cpu.shape(VERB, buf))?,
        out: cpu.shape(VERB, args.out)?,
    };
    check::ssm_scan(args, &bufs, [rate, bias, skip, norm].map(<[f32]>::len))?;
    let held = bufs.memory.held(&Recurrence::Ssm(args.shape));
    let &SsmScan { xbc, z, dt, out, memory, .. } = args;
    let buffers = &mut cpu.buffers;
    let ([xbc, z, dt, out, state], records) = match memory.records {
        Some(records) => {
            let all = [xbc, z, dt, out, memory.state, records];
            let [xbc, z, dt, out, state, records] = buffers.get_disjoint_mut(VERB, all)?;
            ([xbc, z, dt, out, state], &mut records.data[..])
        }
        None => (buffers.get_disjoint_mut(VERB, [xbc, z, dt, out, memory.state])?, &mut [][..]),
    };
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
        memory: States { state: &mut state.data, records, held },
        seqs: args.seqs,
        out: &mut out.data,
    };
    ssm::ssm_scan(&cpu.pool, cpu.isa, job);
    cpu.touch(VERB, args.memory.state)?;
    cpu.touch(VERB, args.out)
}
