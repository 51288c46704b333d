//! Compressed attention, row by row: the order of every operation is fixed here.

use super::{Reference, rows};
use crate::check::compressed::{self as check, AttendBufs, CompressBufs, RoomFor};
use crate::math::{self, dot16, sum16};
use crate::{AttendEntries, Compress, CompressShape, Result, RopePairs, Select, SlotRows, WeightKind};

/// Where the row of a position is: in the batch, or in row `position % ring` of the slot's ring.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Batch(usize),
    Ring(usize),
}

/// Where the row of `position` is for a sequence whose rows are running.
#[inline(always)]
pub fn place(seq: &SlotRows, position: usize, ring: usize) -> Place {
    match position.checked_sub(seq.position) {
        Some(behind) => Place::Batch(seq.row + behind),
        None => Place::Ring(position % ring),
    }
}

/// Blocks that the rows of a sequence complete.
pub fn completed(seq: &SlotRows, ratio: usize) -> std::ops::Range<usize> {
    seq.position / ratio..(seq.position + seq.rows) / ratio
}

/// The last rows of a sequence that a ring keeps: `(row of the batch, row of the ring)`.
pub fn kept(seq: &SlotRows, ring: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
    let (row, position) = (seq.row, seq.position);
    (seq.rows.saturating_sub(ring)..seq.rows).map(move |i| (row + i, (position + i) % ring))
}

/// What place `s` of the span of block `block` is made of: its position, where its channels start within a row, and its
/// place in a block. None before the first position.
#[inline(always)]
pub fn part(shape: &CompressShape, block: usize, s: usize) -> Option<(usize, usize, usize)> {
    let CompressShape { ratio, overlapped, dim } = *shape;
    if !overlapped {
        return Some((block * ratio + s, 0, s));
    }
    match s < ratio {
        true => Some(((block.checked_sub(1)?) * ratio + s, 0, s)),
        false => Some((block * ratio + s - ratio, dim, s - ratio)),
    }
}

/// Pools the rows of a block: `at(s)` gives kv, gate and bias of place `s`, `dim` channels each. Per channel the gate's
/// largest, then exponentials, their sum and the weighted sum in ascending places by fma, then one division. `work` is
/// `3 * dim` floats; `exps` replaces every value by its [`math::exp`].
#[inline(always)]
pub fn pool<'k>(
    span: usize,
    at: &impl Fn(usize) -> Option<[&'k [f32]; 3]>,
    exps: impl Fn(&mut [f32]),
    work: &mut [f32],
    out: &mut [f32],
) {
    let dim = out.len();
    let (most, rest) = work.split_at_mut(dim);
    let (sum, e) = rest.split_at_mut(dim);
    most.fill(f32::NEG_INFINITY);
    sum.fill(0.0);
    out.fill(0.0);
    for [_, gate, bias] in (0..span).filter_map(at) {
        most.iter_mut().zip(gate.iter().zip(bias)).for_each(|(m, (g, b))| *m = m.max(g + b));
    }
    for [kv, gate, bias] in (0..span).filter_map(at) {
        e.iter_mut().zip(gate.iter().zip(bias)).for_each(|(e, (g, b))| *e = g + b);
        e.iter_mut().zip(&*most).for_each(|(e, m)| *e -= m);
        exps(e);
        sum.iter_mut().zip(&*e).for_each(|(s, e)| *s += e);
        out.iter_mut().zip(e.iter().zip(kv)).for_each(|(o, (e, v))| *o = e.mul_add(*v, *o));
    }
    out.iter_mut().zip(&*sum).for_each(|(o, s)| *o /= s);
}

/// Norms an entry and rotates its last dimensions by `position`. `work` is as long as the entry.
pub fn finish_entry(
    entry: &mut [f32],
    (norm, eps): (&[f32], f32),
    (freqs, pairs, magnitude): (&[f32], RopePairs, f32),
    position: usize,
    work: &mut [f32],
) {
    work.copy_from_slice(entry);
    rows::norm_group(work, norm, eps, entry);
    let tail = entry.len() - 2 * freqs.len();
    let (cos, sin) = work.split_at_mut(entry.len() / 2);
    for (i, &f) in freqs.iter().enumerate() {
        (cos[i], sin[i]) = rows::rope_angle(position as u32, f, magnitude);
    }
    rows::rotate_head(&mut entry[tail..], &cos[..freqs.len()], &sin[..freqs.len()], pairs);
}

/// The score of one entry: `scale * sum over h of weights[h] * max(0, q[h] . entry)`, heads ascending by fma.
#[inline(always)]
pub fn score(q: &[f32], weights: &[f32], entry: &[f32], scale: f32) -> f32 {
    let heads = q.chunks_exact(entry.len()).zip(weights);
    scale * heads.fold(0f32, |sum, (q, w)| w.mul_add(dot16(q, entry).max(0.0), sum))
}

/// Writes the entries of the highest scores to `out`, ascending, then -1. `ids` is working memory.
pub fn choose(scores: &[f32], ids: &mut Vec<u32>, out: &mut [f32]) {
    ids.clear();
    ids.extend(0..scores.len() as u32);
    if scores.len() > out.len() {
        let key = |&id: &u32| (rows::logit(scores[id as usize]), id);
        ids.select_nth_unstable_by(out.len() - 1, |a, b| rows::pick_order(key(a), key(b)));
        ids.truncate(out.len());
        ids.sort_unstable();
    }
    out.fill(-1.0);
    out.iter_mut().zip(&*ids).for_each(|(o, &id)| *o = id as f32);
}

/// Softmax attention of some heads of a row, `[heads * dim]`, to `n` keys that are values too. Scores are dot products
/// times `scale`; the largest of them and of the sink is subtracted; exponentials are summed in 16 lanes, the sink's
/// last, and divided by; values are added in ascending keys by fma. `scores` is `heads * n` floats.
#[inline(always)]
pub fn attend_heads<'k>(
    (q, dim, scale, sinks): (&[f32], usize, f32, &[f32]),
    (n, key): (usize, &impl Fn(usize) -> &'k [f32]),
    exps: impl Fn(&mut [f32]),
    scores: &mut [f32],
    out: &mut [f32],
) {
    for j in 0..n {
        let k = key(j);
        q.chunks_exact(dim).enumerate().for_each(|(h, q)| scores[h * n + j] = dot16(q, k) * scale);
    }
    for (scores, &sink) in scores.chunks_exact_mut(n).zip(sinks) {
        let most = math::max(scores).max(sink);
        scores.iter_mut().for_each(|s| *s -= most);
        exps(scores);
        let sum = sum16(scores) + math::exp(sink - most);
        scores.iter_mut().for_each(|s| *s /= sum);
    }
    out.fill(0.0);
    for j in 0..n {
        let v = key(j);
        for (h, out) in out.chunks_exact_mut(dim).enumerate() {
            let p = scores[h * n + j];
            out.iter_mut().zip(v).for_each(|(o, v)| *o = p.mul_add(*v, *o));
        }
    }
}

/// Entries that row `i` of a sequence sees.
#[inline(always)]
pub fn seen(seq: &SlotRows, i: usize, ratio: usize) -> usize {
    (seq.position + i + 1) / ratio
}

/// Those of the selected entries that are there: [`Select`] puts -1 behind them.
pub fn chosen(row: &[f32]) -> usize {
    row.iter().take_while(|&&id| id >= 0.0).count()
}

fn exps(x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x = math::exp(*x));
}

impl Reference {
    pub(super) fn run_compress(&mut self, args: &Compress) -> Result<()> {
        const VERB: &str = "compress";
        let vector = |w| self.weight(VERB, w, WeightKind::Vector)?.row(0);
        let (bias, norm) = (vector(args.bias)?, vector(args.norm)?);
        let bufs = CompressBufs {
            kv: self.shape(VERB, args.kv)?,
            gate: self.shape(VERB, args.gate)?,
            freqs: self.shape(VERB, args.rotation.freqs)?,
            recent: self.shape(VERB, args.recent)?,
            entries: self.shape(VERB, args.entries)?,
        };
        let RoomFor { ring, capacity } = check::compress(args, &bufs, [bias.len(), norm.len()])?;
        let (shape, width) = (args.shape, args.shape.width());
        let freqs = self.buffers.get(VERB, args.rotation.freqs)?.row(0).to_vec();
        let rotation = (&freqs[..], args.rotation.pairs, args.rotation.magnitude);
        for seq in args.seqs {
            for block in completed(seq, shape.ratio) {
                let (kv, gate) = (self.buffers.get(VERB, args.kv)?, self.buffers.get(VERB, args.gate)?);
                let old = self.buffers.get(VERB, args.recent)?.row(seq.slot);
                let at = |s: usize| {
                    let (position, first, place_in_block) = part(&shape, block, s)?;
                    let bias = &bias[place_in_block * width + first..][..shape.dim];
                    let [kv, gate] = match place(seq, position, ring) {
                        Place::Batch(row) => [kv.row(row), gate.row(row)],
                        Place::Ring(row) => [0, 1].map(|which| &old[(2 * row + which) * width..][..width]),
                    };
                    Some([&kv[first..][..shape.dim], &gate[first..][..shape.dim], bias])
                };
                let (mut entry, mut work) = (vec![0f32; shape.dim], vec![0f32; 3 * shape.dim]);
                pool(shape.span(), &at, exps, &mut work, &mut entry);
                work.truncate(shape.dim);
                finish_entry(&mut entry, (&norm, args.eps), rotation, block * shape.ratio, &mut work);
                let to = self.buffers.get_mut(VERB, args.entries)?;
                to.row_mut(seq.slot * capacity + block).copy_from_slice(&entry);
            }
            for (from, to) in kept(seq, ring) {
                for (which, buf) in [args.kv, args.gate].into_iter().enumerate() {
                    let row = self.buffers.get(VERB, buf)?.row(from).to_vec();
                    let ring = self.buffers.get_mut(VERB, args.recent)?.row_mut(seq.slot);
                    ring[(2 * to + which) * width..][..width].copy_from_slice(&row);
                }
            }
        }
        Ok(())
    }

    pub(super) fn run_select(&mut self, args: &Select) -> Result<()> {
        const VERB: &str = "select";
        let [q, weights, entries, out] =
            [args.q, args.weights, args.entries, args.out].map(|b| self.shape(VERB, b));
        let top_k = check::select(args, [q?, weights?, entries?, out?])?;
        for seq in args.seqs {
            for i in 0..seq.rows {
                let (q, weights) = (self.buffers.get(VERB, args.q)?, self.buffers.get(VERB, args.weights)?);
                let (q, weights) = (q.row(seq.row + i), weights.row(seq.row + i));
                let entries = self.buffers.get(VERB, args.entries)?;
                let first = seq.slot * args.capacity;
                let of = |e: usize| score(q, weights, entries.row(first + e), args.scale);
                let scores: Vec<f32> = (0..seen(seq, i, args.ratio)).map(of).collect();
                let mut row = vec![0f32; top_k];
                choose(&scores, &mut Vec::new(), &mut row);
                self.buffers.get_mut(VERB, args.out)?.row_mut(seq.row + i).copy_from_slice(&row);
            }
        }
        Ok(())
    }

    pub(super) fn run_attend_entries(&mut self, args: &AttendEntries) -> Result<()> {
        const VERB: &str = "attend_entries";
        let sinks = self.weight(VERB, args.sinks, WeightKind::Vector)?.row(0)?;
        let shape_of = |b: Option<_>| b.map(|b| self.shape(VERB, b)).transpose();
        let bufs = AttendBufs {
            q: self.shape(VERB, args.q)?,
            kv: self.shape(VERB, args.kv)?,
            recent: self.shape(VERB, args.recent)?,
            entries: shape_of(args.entries.map(|e| e.entries))?,
            chosen: shape_of(args.entries.and_then(|e| e.chosen))?,
            out: self.shape(VERB, args.out)?,
        };
        let RoomFor { ring, capacity } = check::attend_entries(args, &bufs, sinks.len())?;
        let (dim, window) = (args.head_dim, args.window);
        for seq in args.seqs {
            for i in 0..seq.rows {
                let (q, kv) = (self.buffers.get(VERB, args.q)?, self.buffers.get(VERB, args.kv)?);
                let old = self.buffers.get(VERB, args.recent)?.row(seq.slot);
                let position = seq.position + i;
                let first = (position + 1).saturating_sub(window);
                let mut keys: Vec<&[f32]> = (first..=position)
                    .map(|p| match place(seq, p, ring) {
                        Place::Batch(row) => kv.row(row),
                        Place::Ring(row) => &old[row * dim..][..dim],
                    })
                    .collect();
                if let Some(entries) = &args.entries {
                    let held = self.buffers.get(VERB, entries.entries)?;
                    let entry = |e: usize| held.row(seq.slot * capacity + e);
                    let count = seen(seq, i, entries.ratio);
                    match entries.chosen {
                        None => keys.extend((0..count).map(entry)),
                        Some(buf) => {
                            let ids = self.buffers.get(VERB, buf)?.row(seq.row + i);
                            let ids = ids[..chosen(ids)].iter().map(|&id| id as usize);
                            keys.extend(ids.filter(|&id| id < count).map(entry));
                        }
                    }
                }
                let (mut scores, mut out) = (vec![0f32; args.heads * keys.len()], vec![0f32; bufs.out.width]);
                let given = (q.row(seq.row + i), dim, args.scale, &sinks[..]);
                attend_heads(given, (keys.len(), &|j| keys[j]), exps, &mut scores, &mut out);
                self.buffers.get_mut(VERB, args.out)?.row_mut(seq.row + i).copy_from_slice(&out);
            }
            for (from, to) in kept(seq, ring) {
                let row = self.buffers.get(VERB, args.kv)?.row(from).to_vec();
                self.buffers.get_mut(VERB, args.recent)?.row_mut(seq.slot)[to * dim..][..dim]
                    .copy_from_slice(&row);
            }
        }
        Ok(())
    }
}
