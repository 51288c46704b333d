//! K and V through a format's codec and back on their way into a cache of floats: what a format costs when nothing else
//! rounds. It must not know which formats are good.

use hob_compute::{AppendKv, BLOCK_POSITIONS, Buf, Compute, Result};
use hob_quant::{KvFormat, decode_kv, encode_kv, hadamard};

use super::hooked::{Hook, rows};
use crate::{KvLayout, KvPair, LayerState, ModelInfo};

/// Replaces `vectors`, `[n, head_dim]`, by what a cache of `format` gives back.
pub(super) fn stored(format: KvFormat, head_dim: usize, vectors: &mut [f32]) {
    let mut bytes = vec![0; format.vector_bytes(head_dim)];
    for vector in vectors.chunks_exact_mut(head_dim) {
        if format.is_rotated() {
            hadamard(vector);
        }
        encode_kv(format, vector, &mut bytes);
        decode_kv(format, &bytes, vector);
        if format.is_rotated() {
            hadamard(vector);
        }
    }
}

/// One layer with K and V.
#[derive(Clone, Copy)]
struct Layer {
    pair: KvPair,
    /// Width of a row of K or V.
    width: usize,
    head_dim: usize,
    /// Whether V is a part of K.
    latent: bool,
}

/// What every layer's K and V go through.
pub(super) struct Rounded {
    layers: Vec<Layer>,
    /// The layer that appends next.
    next: usize,
    /// Rows on their way, by shape; freed by [`Rounded::release`].
    bufs: Vec<(usize, usize, [Buf; 2])>,
}

impl Rounded {
    pub fn new(info: &ModelInfo, kv: &KvLayout) -> Self {
        let layer = |(i, state): (usize, &LayerState)| match *state {
            LayerState::Kv { heads, dim, latent } => {
                let (pair, width) = (info.kv_pair(kv, i), heads * dim);
                Some(Layer { pair, width, head_dim: dim, latent: latent.is_some() })
            }
            _ => None,
        };
        let layers = info.states().iter().enumerate().filter_map(layer).collect();
        Rounded { layers, next: 0, bufs: Vec::new() }
    }

    pub fn release(self, dev: &mut dyn Compute) -> Result<()> {
        self.bufs.into_iter().flat_map(|(.., bufs)| bufs).try_for_each(|buf| dev.free(buf))
    }

    fn bufs(&mut self, dev: &mut dyn Compute, count: usize, width: usize) -> Result<[Buf; 2]> {
        if let Some((.., bufs)) = self.bufs.iter().find(|b| (b.0, b.1) == (count, width)) {
            return Ok(*bufs);
        }
        let bufs = [dev.alloc(count, width)?, dev.alloc(count, width)?];
        self.bufs.push((count, width, bufs));
        Ok(bufs)
    }
}

impl Hook for Rounded {
    fn embed(&mut self) {
        self.next = 0;
    }

    fn append_kv(&mut self, dev: &mut dyn Compute, args: &AppendKv) -> Result<()> {
        let Some(&Layer { pair, width, head_dim, latent }) = self.layers.get(self.next) else {
            return dev.append_kv(args);
        };
        self.next += 1;
        let count = args.seqs.iter().map(|s| s.row + s.rows).max().unwrap_or(0);
        let bufs = self.bufs(dev, count, width)?;
        let sides = [args.k, args.v].into_iter().zip(bufs).zip([pair.k, pair.v]);
        for ((from, to), format) in sides.take(if latent { 1 } else { 2 }) {
            let mut values = rows(dev, from, count, width)?;
            for seq in args.seqs {
                // The first block stays as it is, as in a cache of packed pages.
                let exact = if format.is_packed() { BLOCK_POSITIONS.saturating_sub(seq.position) } else { 0 };
                let packed = (seq.row + exact.min(seq.rows)) * width..(seq.row + seq.rows) * width;
                stored(format, head_dim, &mut values[packed]);
            }
            dev.upload(to, 0, &values)?;
        }
        let [k, v] = bufs;
        dev.append_kv(&AppendKv { k, v: if latent { k } else { v }, seqs: args.seqs })
    }
}
