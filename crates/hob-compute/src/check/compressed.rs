//! The checks of hyper-connections and of compressed attention.

use super::recurrent::{different, seqs};
use super::{Shape, need, need_rows, need_width};
use crate::{AttendEntries, Compress, CompressShape, HyperExpand, HyperMix, Result, Select};

/// Gives the width of a stream. `vectors` are the lengths of base and scale.
///
/// # Errors
/// Streams, widths or rows that do not meet.
pub fn hyper_mix(
    args: &HyperMix,
    [x, logits, out]: [Shape; 3],
    weights: Option<Shape>,
    vectors: [usize; 2],
) -> Result<usize> {
    const VERB: &str = "hyper_mix";
    let n = streams(VERB, args.streams)?;
    need_width(VERB, "the streams", n.saturating_mul(out.width), x)?;
    let (width, scales) = if weights.is_some() { (n * (2 + n), 3) } else { (n, 1) };
    need_width(VERB, "logits", width, logits)?;
    let [base, scale] = vectors.map(|width| Shape { rows: 1, width });
    need_width(VERB, "a base", width, base)?;
    need_width(VERB, "scales", scales, scale)?;
    need(args.iterations >= 1, VERB, || "at least 1 iteration".into(), || "0".into())?;
    for (what, shape) in [("the streams", x), ("logits", logits), ("an output", out)] {
        need_rows(VERB, what, args.rows, shape)?;
    }
    let mut all = vec![args.x, args.logits, args.out];
    if let (Some(buf), Some(shape)) = (args.weights, weights) {
        need_width(VERB, "weights", n * (1 + n), shape)?;
        need_rows(VERB, "weights", args.rows, shape)?;
        all.push(buf);
    }
    different(VERB, all.iter().copied())?;
    Ok(out.width)
}

/// Gives the width of a stream.
///
/// # Errors
/// As [`hyper_mix`].
pub fn hyper_expand(args: &HyperExpand, y: Shape, x: Shape, weights: Option<Shape>) -> Result<usize> {
    const VERB: &str = "hyper_expand";
    let n = streams(VERB, args.streams)?;
    need_width(VERB, "the streams", n.saturating_mul(y.width), x)?;
    need_rows(VERB, "an input", args.rows, y)?;
    need_rows(VERB, "the streams", args.rows, x)?;
    let mut all = vec![args.x, args.y];
    if let (Some(buf), Some(shape)) = (args.weights, weights) {
        need_width(VERB, "weights", n * (1 + n), shape)?;
        need_rows(VERB, "weights", args.rows, shape)?;
        all.push(buf);
    }
    different(VERB, all.iter().copied())?;
    Ok(y.width)
}

fn streams(verb: &'static str, found: usize) -> Result<usize> {
    let most = HyperMix::MAX_STREAMS;
    need((1..=most).contains(&found), verb, || format!("1..={most} streams"), || found.to_string())?;
    Ok(found)
}

/// # Errors
/// A ratio or dimension of 0, or a dimension that kernels do not have.
pub fn compress_shape(shape: &CompressShape) -> Result<()> {
    const VERB: &str = "compress";
    let most = CompressShape::MAX_DIM;
    need(
        shape.ratio >= 1 && shape.ratio <= 1 << 16,
        VERB,
        || "blocks of 1..=65536 positions".into(),
        || shape.ratio.to_string(),
    )?;
    need(
        (1..=most).contains(&shape.dim),
        VERB,
        || format!("entries of 1..={most} dimensions"),
        || shape.dim.to_string(),
    )
}

/// Shapes of the buffers of a `compress`.
#[derive(Copy, Clone, Debug)]
pub struct CompressBufs {
    pub kv: Shape,
    pub gate: Shape,
    pub freqs: Shape,
    pub recent: Shape,
    pub entries: Shape,
}

/// Room of a ring and of the entries of a sequence.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct RoomFor {
    /// Positions of the ring.
    pub ring: usize,
    /// Entries of a sequence; 0 where there are none.
    pub capacity: usize,
}

/// `vectors` are the lengths of bias and norm.
///
/// # Errors
/// Widths that do not meet, no room for the rows' entries, or sequences that rows or slots do not fit.
pub fn compress(args: &Compress, bufs: &CompressBufs, vectors: [usize; 2]) -> Result<RoomFor> {
    const VERB: &str = "compress";
    let shape = &args.shape;
    compress_shape(shape)?;
    let width = shape.width();
    need_width(VERB, "kv", width, bufs.kv)?;
    need_width(VERB, "a gate", width, bufs.gate)?;
    let [bias, norm] = vectors.map(|width| Shape { rows: 1, width });
    need_width(VERB, "a bias", shape.ratio.saturating_mul(width), bias)?;
    need_width(VERB, "a norm", shape.dim, norm)?;
    need_width(VERB, "entries", shape.dim, bufs.entries)?;
    need(
        2 * bufs.freqs.width <= shape.dim,
        VERB,
        || format!("at most {} rotated dimensions", shape.dim),
        || (2 * bufs.freqs.width).to_string(),
    )?;
    different(VERB, [args.kv, args.gate, args.recent, args.entries].into_iter())?;
    let ring = ring(VERB, bufs.recent, 2 * width, shape.span())?;
    seqs(VERB, args.seqs, bufs.kv.rows.min(bufs.gate.rows), bufs.recent)?;
    let capacity = capacity(VERB, bufs.entries, bufs.recent.rows)?;
    for seq in args.seqs {
        let wanted = shape.entries(seq.position.saturating_add(seq.rows));
        room(VERB, wanted, capacity)?;
    }
    Ok(RoomFor { ring, capacity })
}

fn ring(verb: &'static str, recent: Shape, width: usize, least: usize) -> Result<usize> {
    let ring = recent.width / width.max(1);
    need(
        recent.width.is_multiple_of(width) && ring >= least.max(1),
        verb,
        || format!("a ring of at least {least} rows of {width}"),
        || format!("width {}", recent.width),
    )?;
    Ok(ring)
}

fn capacity(verb: &'static str, entries: Shape, slots: usize) -> Result<usize> {
    need(
        entries.rows.is_multiple_of(slots),
        verb,
        || format!("entries for each of {slots} slots"),
        || format!("{} rows", entries.rows),
    )?;
    Ok(entries.rows / slots)
}

fn room(verb: &'static str, wanted: usize, capacity: usize) -> Result<()> {
    need(wanted <= capacity, verb, || format!("room for {wanted} entries"), || capacity.to_string())
}

/// Gives `top_k`. Shapes are those of q, weights, entries and the output.
///
/// # Errors
/// As [`compress`].
pub fn select(args: &Select, [q, weights, entries, out]: [Shape; 4]) -> Result<usize> {
    const VERB: &str = "select";
    need_width(VERB, "q", args.heads.saturating_mul(entries.width), q)?;
    need_width(VERB, "weights", args.heads, weights)?;
    need(args.ratio >= 1 && args.heads >= 1, VERB, || "a ratio and heads above 0".into(), || "0".into())?;
    need(
        args.capacity >= 1 && entries.rows.is_multiple_of(args.capacity),
        VERB,
        || format!("entries in runs of {}", args.capacity),
        || format!("{} rows", entries.rows),
    )?;
    different(VERB, [args.q, args.weights, args.entries, args.out].into_iter())?;
    let slots = Shape { rows: entries.rows / args.capacity, width: 1 };
    seqs(VERB, args.seqs, q.rows.min(weights.rows).min(out.rows), slots)?;
    for seq in args.seqs {
        room(VERB, seq.position.saturating_add(seq.rows) / args.ratio, args.capacity)?;
    }
    Ok(out.width)
}

/// Shapes of the buffers of an `attend_entries`.
#[derive(Copy, Clone, Debug)]
pub struct AttendBufs {
    pub q: Shape,
    pub kv: Shape,
    pub recent: Shape,
    pub entries: Option<Shape>,
    pub chosen: Option<Shape>,
    pub out: Shape,
}

/// `sinks` is the length of their vector.
///
/// # Errors
/// As [`compress`].
pub fn attend_entries(args: &AttendEntries, bufs: &AttendBufs, sinks: usize) -> Result<RoomFor> {
    const VERB: &str = "attend_entries";
    let (width, dim) = (args.heads.saturating_mul(args.head_dim), args.head_dim);
    need(
        args.heads >= 1 && (1..=CompressShape::MAX_DIM).contains(&dim) && args.window >= 1,
        VERB,
        || format!("heads of 1..={} dimensions and a window", CompressShape::MAX_DIM),
        || format!("{} heads of {dim}, a window of {}", args.heads, args.window),
    )?;
    need_width(VERB, "q", width, bufs.q)?;
    need_width(VERB, "an output", width, bufs.out)?;
    need_width(VERB, "kv", dim, bufs.kv)?;
    need_width(VERB, "sinks", args.heads, Shape { rows: 1, width: sinks })?;
    let ring = ring(VERB, bufs.recent, dim, args.window)?;
    let mut all = vec![args.q, args.kv, args.recent, args.out];
    let rows = bufs.q.rows.min(bufs.kv.rows).min(bufs.out.rows);
    let mut fits = RoomFor { ring, capacity: 0 };
    seqs(VERB, args.seqs, rows.min(bufs.chosen.map_or(rows, |c| c.rows)), bufs.recent)?;
    if let (Some(entries), Some(shape)) = (&args.entries, bufs.entries) {
        need_width(VERB, "entries", dim, shape)?;
        need(entries.ratio >= 1, VERB, || "a ratio above 0".into(), || "0".into())?;
        fits.capacity = capacity(VERB, shape, bufs.recent.rows)?;
        for seq in args.seqs {
            room(VERB, seq.position.saturating_add(seq.rows) / entries.ratio, fits.capacity)?;
        }
        all.extend([Some(entries.entries), entries.chosen].into_iter().flatten());
    }
    different(VERB, all.iter().copied())?;
    Ok(fits)
}
