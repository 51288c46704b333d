//! The checks of `short_conv`, `delta_net`, `ssm_scan` and `catch_up`.

use super::{Shape, need, need_rows, need_width};
use crate::{
    Buf, CatchUp, ConvForm, DeltaNet, DeltaShape, Memory, Recurrence, Result, ShortConv, SlotRows, SsmScan,
    SsmShape,
};

/// Shapes of a [`Memory`].
#[derive(Copy, Clone, Debug)]
pub struct MemoryShape {
    pub state: Shape,
    pub records: Option<Shape>,
}

impl MemoryShape {
    /// Asks a device.
    ///
    /// # Errors
    /// What `shape` says.
    pub fn of(memory: &Memory, shape: impl Fn(Buf) -> Result<Shape>) -> Result<MemoryShape> {
        let records = memory.records.map(&shape).transpose()?;
        Ok(MemoryShape { state: shape(memory.state)?, records })
    }

    /// Rows that a call can hold.
    pub fn held(&self, recurrence: &Recurrence) -> usize {
        self.records.map_or(0, |records| records.width / recurrence.record().max(1))
    }
}

/// Gives the number of taps. `taps` and `bias` are the lengths of the weight vectors.
///
/// # Errors
/// Widths that do not meet, rows outside the batch or out of order, a slot that the state does not have.
pub fn short_conv(
    args: &ShortConv,
    x: Shape,
    (taps, bias): (usize, Option<usize>),
    memory: MemoryShape,
    out: Shape,
) -> Result<usize> {
    const VERB: &str = "short_conv";
    let dim = out.width;
    let count = taps / dim;
    need(
        taps.is_multiple_of(dim) && count >= 2,
        VERB,
        || format!("at least 2 taps for each of {dim} channels"),
        || format!("{taps} in total"),
    )?;
    let parts = if args.form == ConvForm::Gated { 3 } else { 1 };
    need_width(VERB, "an input", dim.saturating_mul(parts), x)?;
    if let Some(width) = bias {
        need_width(VERB, "a bias", dim, Shape { rows: 1, width })?;
    }
    different(VERB, [args.x, args.out].into_iter().chain(args.memory.bufs()))?;
    let recurrence = Recurrence::Conv { channels: dim, taps: count };
    remembering(VERB, (args.seqs, x.rows.min(out.rows)), &recurrence, memory)?;
    Ok(count)
}

/// Shapes of the buffers of a `delta_net`.
#[derive(Copy, Clone, Debug)]
pub struct DeltaBufs {
    pub qkv: Shape,
    pub z: Shape,
    pub beta: Shape,
    pub decay: Shape,
    pub memory: MemoryShape,
    pub out: Shape,
}

/// Gives how many decays a head has. `vectors` are the lengths of rate, bias and norm.
///
/// # Errors
/// As [`short_conv`], and heads that [`delta_shape`] refuses.
pub fn delta_net(args: &DeltaNet, bufs: &DeltaBufs, vectors: [usize; 3]) -> Result<usize> {
    const VERB: &str = "delta_net";
    let shape = &args.shape;
    delta_shape(shape)?;
    // Of a head, or of each channel of its keys.
    let decays = if bufs.decay.width == shape.value_heads * shape.key_dim { shape.key_dim } else { 1 };
    need_width(VERB, "q, k and v", shape.channels(), bufs.qkv)?;
    for (what, width, found) in [
        ("a gate", shape.width(), bufs.z),
        ("beta", shape.value_heads, bufs.beta),
        ("decay", shape.value_heads * decays, bufs.decay),
        ("an output", shape.width(), bufs.out),
    ] {
        need_width(VERB, what, width, found)?;
    }
    let [rate, bias, norm] = vectors.map(|width| Shape { rows: 1, width });
    need_width(VERB, "a rate", shape.value_heads, rate)?;
    need_width(VERB, "a bias", shape.value_heads * decays, bias)?;
    need_width(VERB, "a norm", shape.value_dim, norm)?;
    let inputs = [args.qkv, args.z, args.beta, args.decay, args.out];
    different(VERB, inputs.into_iter().chain(args.memory.bufs()))?;
    let rows = args.seqs.iter().map(|s| s.row.saturating_add(s.rows)).max().unwrap_or(0);
    for found in [bufs.z, bufs.beta, bufs.decay] {
        need_rows(VERB, "an input", rows, found)?;
    }
    let recorded = args.seqs.iter().find(|s| s.holds() || s.accepted > 0);
    need(
        decays == 1 || recorded.is_none(),
        VERB,
        || "rows that are final where every channel fades by itself: records have one decay of a head".into(),
        || format!("held rows at position {}", recorded.map_or(0, |s| s.position)),
    )?;
    let rows = bufs.qkv.rows.min(bufs.out.rows);
    remembering(VERB, (args.seqs, rows), &Recurrence::Delta(*shape), bufs.memory)?;
    Ok(decays)
}

/// # Errors
/// As the verb whose state it is, and for rows.
pub fn catch_up(args: &CatchUp, memory: MemoryShape) -> Result<()> {
    const VERB: &str = "catch_up";
    match &args.recurrence {
        Recurrence::Delta(shape) => delta_shape(shape)?,
        Recurrence::Ssm(shape) => ssm_shape(shape)?,
        Recurrence::Conv { channels, taps } => need(
            *channels >= 1 && *taps >= 2,
            VERB,
            || "channels, and at least 2 taps".into(),
            || format!("{channels} and {taps}"),
        )?,
    }
    different(VERB, args.memory.bufs())?;
    let rows = args.seqs.iter().map(|s| s.rows).sum::<usize>();
    need(rows == 0, VERB, || "sequences without rows".into(), || format!("{rows} rows"))?;
    remembering(VERB, (args.seqs, usize::MAX), &args.recurrence, memory)
}

/// # Errors
/// Head dimensions that kernels do not have, or value heads that key heads do not divide.
pub fn delta_shape(shape: &DeltaShape) -> Result<()> {
    const VERB: &str = "delta_net";
    let &DeltaShape { key_heads, value_heads, key_dim, value_dim, .. } = shape;
    need(
        key_heads >= 1 && value_heads >= 1 && value_heads.is_multiple_of(key_heads),
        VERB,
        || format!("value heads in whole groups of {key_heads} key heads"),
        || value_heads.to_string(),
    )?;
    for dim in [key_dim, value_dim] {
        need(
            (1..=DeltaShape::MAX_DIM).contains(&dim) && dim.is_multiple_of(DeltaShape::LANES),
            VERB,
            || {
                format!(
                    "head dimensions in multiples of {}, at most {}",
                    DeltaShape::LANES,
                    DeltaShape::MAX_DIM
                )
            },
            || dim.to_string(),
        )?;
    }
    Ok(())
}

/// Shapes of the buffers of an `ssm_scan`.
#[derive(Copy, Clone, Debug)]
pub struct SsmBufs {
    pub xbc: Shape,
    pub z: Shape,
    pub dt: Shape,
    pub memory: MemoryShape,
    pub out: Shape,
}

/// `vectors` are the lengths of rate, bias, skip and norm.
///
/// # Errors
/// As [`short_conv`], heads that [`ssm_shape`] refuses, and limits of steps that are none.
pub fn ssm_scan(args: &SsmScan, bufs: &SsmBufs, vectors: [usize; 4]) -> Result<()> {
    const VERB: &str = "ssm_scan";
    let shape = &args.shape;
    ssm_shape(shape)?;
    ssm_limit(args.limit)?;
    need_width(VERB, "x, B and C", shape.channels(), bufs.xbc)?;
    need_width(VERB, "a gate", shape.width(), bufs.z)?;
    need_width(VERB, "dt", shape.heads, bufs.dt)?;
    need_width(VERB, "an output", shape.width(), bufs.out)?;
    let [rate, bias, skip, norm] = vectors.map(|width| Shape { rows: 1, width });
    for (what, found) in [("a rate", rate), ("a bias", bias), ("a skip", skip)] {
        need_width(VERB, what, shape.heads, found)?;
    }
    need_width(VERB, "a norm", shape.width(), norm)?;
    let inputs = [args.xbc, args.z, args.dt, args.out];
    different(VERB, inputs.into_iter().chain(args.memory.bufs()))?;
    let rows = args.seqs.iter().map(|s| s.row.saturating_add(s.rows)).max().unwrap_or(0);
    for found in [bufs.z, bufs.dt] {
        need_rows(VERB, "an input", rows, found)?;
    }
    let rows = bufs.xbc.rows.min(bufs.out.rows);
    remembering(VERB, (args.seqs, rows), &Recurrence::Ssm(*shape), bufs.memory)
}

/// # Errors
/// Dimensions that kernels do not have, or heads that groups do not divide.
pub fn ssm_shape(shape: &SsmShape) -> Result<()> {
    const VERB: &str = "ssm_scan";
    let &SsmShape { heads, head_dim, state_dim, groups } = shape;
    need(
        groups >= 1 && heads >= 1 && heads.is_multiple_of(groups),
        VERB,
        || format!("heads in {groups} whole groups"),
        || heads.to_string(),
    )?;
    let (lanes, most) = (SsmShape::LANES, SsmShape::MAX_DIM);
    for (what, dim) in [("head", head_dim), ("state", state_dim)] {
        need(
            (1..=most).contains(&dim) && dim.is_multiple_of(lanes),
            VERB,
            || format!("a {what} dimension in multiples of {lanes}, at most {most}"),
            || dim.to_string(),
        )?;
    }
    Ok(())
}

/// # Errors
/// Limits of steps between which nothing lies, or below 0, where the state would grow.
pub fn ssm_limit([least, most]: [f32; 2]) -> Result<()> {
    need(
        least.is_finite() && least >= 0.0 && most >= least,
        "ssm_scan",
        || "steps between a number of at least 0 and one that is no smaller".into(),
        || format!("{least}..={most}"),
    )
}

pub(super) fn different(verb: &'static str, all: impl Iterator<Item = Buf> + Clone) -> Result<()> {
    let twice = all.clone().enumerate().any(|(i, buf)| all.clone().take(i).any(|other| other == buf));
    need(!twice, verb, || format!("{} different buffers", all.count()), || "one buffer in two roles".into())
}

/// Sequences in ascending rows of a batch of `rows`, in slots that the memory has, no slot twice; held rows, now and
/// before, as many as there are records for.
fn remembering(
    verb: &'static str,
    (all, rows): (&[SlotRows], usize),
    recurrence: &Recurrence,
    memory: MemoryShape,
) -> Result<()> {
    need_width(verb, "a state", recurrence.state(), memory.state)?;
    let held = memory.held(recurrence);
    if let Some(records) = memory.records {
        need_width(verb, "records of whole rows", held.max(1) * recurrence.record(), records)?;
        need_rows(verb, "records", memory.state.rows, records)?;
    }
    seqs(verb, all, rows, memory.state)?;
    let most = held.min(SlotRows::MAX_HELD);
    all.iter().try_for_each(|seq| {
        need(
            seq.accepted <= most.min(seq.position),
            verb,
            || format!("at most {most} accepted rows, all before position {}", seq.position),
            || seq.accepted.to_string(),
        )?;
        need(
            !seq.holds() || seq.rows <= most,
            verb,
            || format!("at most {most} rows to hold"),
            || seq.rows.to_string(),
        )
    })
}

/// Sequences in ascending rows of a batch of `rows`, in slots that the state has, no slot twice.
pub(super) fn seqs(verb: &'static str, seqs: &[SlotRows], rows: usize, state: Shape) -> Result<()> {
    let mut next = 0usize;
    for (i, seq) in seqs.iter().enumerate() {
        let end = seq.row.saturating_add(seq.rows);
        need(
            seq.row >= next && end <= rows,
            verb,
            || format!("sequences in ascending rows without overlap, between {next} and {rows}"),
            || format!("rows {}..{end}", seq.row),
        )?;
        next = end;
        need(
            seq.slot < state.rows,
            verb,
            || format!("a slot below {}", state.rows),
            || seq.slot.to_string(),
        )?;
        let touches = |s: &SlotRows| s.rows + s.accepted > 0;
        let twice = touches(seq) && seqs[..i].iter().any(|s| touches(s) && s.slot == seq.slot);
        need(!twice, verb, || "a slot for each sequence".into(), || format!("slot {} twice", seq.slot))?;
    }
    Ok(())
}
