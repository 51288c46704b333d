//! Looks at queries, keys and values on their way to attention. It must not change what is computed.

use hob_compute::{AppendKv, Attend, Buf, Compute, Result};

use super::LayerNoise;
use super::figures::{Seen, figures};
use super::hooked::{Hook, rows};

/// The figures of layers as they attend, for one sequence in one step.
pub(super) struct Observer {
    /// Indices of the layers with K and V, in the order in which they run.
    layers: Vec<usize>,
    /// K and V of the layer at hand, and their rows.
    kept: Option<(Buf, Buf, usize)>,
    pub found: Vec<LayerNoise>,
}

impl Observer {
    pub fn new(layers: Vec<usize>) -> Self {
        Observer { layers, kept: None, found: Vec::new() }
    }
}

impl Hook for Observer {
    fn append_kv(&mut self, dev: &mut dyn Compute, args: &AppendKv) -> Result<()> {
        // Both buffers stay as they are until the layer attends.
        self.kept = args.seqs.first().map(|seq| (args.k, args.v, seq.rows));
        dev.append_kv(args)
    }

    fn attend(&mut self, dev: &mut dyn Compute, args: &Attend) -> Result<()> {
        if let (Some((k, v, count)), Some(&layer)) = (self.kept.take(), self.layers.get(self.found.len())) {
            let &Attend { heads, kv_heads, head_dim, scale, window, softcap, .. } = args;
            let k = rows(dev, k, count, kv_heads * head_dim)?;
            let v = rows(dev, v, count, kv_heads * head_dim)?;
            let q = rows(dev, args.q, count, heads * head_dim)?;
            let seen =
                Seen { q: &q, k: &k, v: &v, rows: count, heads, kv_heads, head_dim, scale, softcap, window };
            self.found.push(figures(layer, &seen));
        }
        dev.attend(args)
    }
}
