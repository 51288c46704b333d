//! Attention of many rows: which rows make which tiles, and the dispatches. The text of kernels comes from `kernel`, and
//! how a tile is computed stands in `wgsl/flash_*.wgsl`; few rows are `decode`'s.
//!
//! The rows of one KV head, (token, query head) pairs with heads fastest, are cut into tiles; a workgroup takes a tile and
//! walks the blocks of 64 positions that some of its rows see (FlashAttention-2, arXiv 2307.08691).

mod kernel;
#[cfg(test)]
mod tests;

use hob_compute::reference::attention::Scoring;
use hob_compute::{Attend, ComputeError, Result, SeqRows};

use crate::pages::{Bound, Stored, Tables};
use crate::stream::{BufferId, Call, Kernel, Source};
use crate::{Gpu, Tier};
use kernel::Variant;

const VERB: &str = "attend";
/// Most tiles of a dispatch, so that its arguments stay small beside the arena.
const MOST_TILES: usize = 1 << 14;

impl Gpu {
    /// Attention of `seqs`, some of the checked `args.seqs`, whose pages lie in `bound`. Writes the f16 form of `out` too
    /// where it has the buffer, and says so where `seqs` are all there is.
    ///
    /// # Errors
    /// [`ComputeError::Device`] where the kernel is refused or heads are too large for it, or what the stream says.
    pub(crate) fn run_prefill(&mut self, args: &Attend, bound: &Bound, seqs: &[SeqRows]) -> Result<()> {
        // The same trial as for products: whether this driver's cooperative matrices are right and pay.
        let coop = bound.layout.k != Stored::F32 && self.coop_pays()?;
        let half = self.acts.get(VERB, args.out)?.half;
        let context = &self.stream.context;
        let tier = Tier { coop, ..context.tier() };
        let memory = context.device.limits().max_compute_workgroup_storage_size as usize;
        let chosen = Variant::choose(&tier, memory, args, bound.layout, half.is_some());
        let Some(variant) = chosen else {
            let device = context.facts.name.clone();
            let problem = format!(
                "attention of many rows needs heads of at most {}, found {}",
                kernel::MOST_DIM,
                args.head_dim
            );
            return Err(ComputeError::Device { device, problem });
        };
        self.run_variant(args, bound, seqs, &variant, || variant.source())
    }

    /// [`Gpu::run_prefill`] with a variant and its text.
    fn run_variant(
        &mut self,
        args: &Attend,
        bound: &Bound,
        seqs: &[SeqRows],
        variant: &Variant,
        source: impl FnOnce() -> Source,
    ) -> Result<()> {
        let kernel = self.stream.kernel_with(variant.key(), variant.bounds(), source)?;
        let Some(pages) = bound.rest.or(bound.first) else { return Ok(()) };
        let out = self.acts.get(VERB, args.out)?;
        let (rows, half) = (out.rows, out.half);
        let q = self.acts.get(VERB, args.q)?.rows;
        let mut bindings = vec![rows, q, self.stream.argument_buffer(), pages];
        bindings.extend(variant.layout.first.then_some(bound.first.unwrap_or(pages)));
        if let Some(sinks) = args.sinks {
            bindings.push(self.weights.get(VERB, sinks)?.parts[0].buffer);
        }
        bindings.extend(half.filter(|_| variant.half));
        self.dispatch_tiles(args, (kernel, variant), &bindings, seqs)?;
        let count = |seqs: &[SeqRows]| seqs.iter().map(|s| s.rows).sum::<usize>();
        if variant.half && count(seqs) == count(args.seqs) {
            let end = seqs.iter().map(|s| s.row + s.rows).max().unwrap_or(0);
            self.acts.get_mut(VERB, args.out)?.half_rows = if end == count(seqs) { end } else { 0 };
        }
        Ok(())
    }

    fn dispatch_tiles(
        &mut self,
        args: &Attend,
        (kernel, variant): (Kernel, &Variant),
        bindings: &[BufferId],
        seqs: &[SeqRows],
    ) -> Result<()> {
        let seqs: Vec<&SeqRows> = seqs.iter().filter(|s| s.rows > 0).collect();
        let tables = Tables::new(seqs.iter().copied(), |seq| seq.first_page(args.window)).words;
        let scoring = Scoring::new(args.scale, args.softcap);
        let window = args.window.map_or(0, |w| w.min(u32::MAX as usize) as u32);
        let bytes = 8 * seqs.iter().map(|s| s.rows * args.heads * args.head_dim).sum::<usize>() as u64;
        for tiles in tiles(&seqs, args.heads / args.kv_heads, variant.rows()).chunks(MOST_TILES) {
            let words: Vec<u32> = tables.iter().copied().chain(tiles.iter().flatten().copied()).collect();
            let at = self.stream.arguments(&words)?;
            self.stream.dispatch(&Call {
                kernel,
                bindings,
                immediates: &[
                    at,
                    at + tables.len() as u32,
                    window,
                    scoring.factor.to_bits(),
                    scoring.cap.unwrap_or(0.0).to_bits(),
                ],
                groups: [tiles.len() as u32, args.kv_heads as u32, 1],
                verb: VERB,
                bytes,
            })?;
        }
        Ok(())
    }
}

/// Sequence and number of every tile of `rows` rows, later ones of a sequence first: they take longest.
fn tiles(seqs: &[&SeqRows], group: usize, rows: usize) -> Vec<[u32; 2]> {
    let of = |(i, seq): (usize, &&SeqRows)| {
        let count = (seq.rows * group).div_ceil(rows) as u32;
        (0..count).rev().map(move |tile| [i as u32, tile])
    };
    seqs.iter().enumerate().flat_map(of).collect()
}
