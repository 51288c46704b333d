//! Attention: its checks, and which sequences of a batch are computed how. It must not know kernels.

mod decode;
mod latent;
mod prefill;

use hob_compute::*;

pub use decode::AttentionRule;
pub(crate) use decode::Splits;
use decode::{New, Turn};
pub(crate) use latent::Turned;

use crate::Gpu;
use crate::act::FEW_ROWS;
use crate::pages::{Bound, spec_of};
use crate::stream::BufferId;

const VERB: &str = "attend";

impl Gpu {
    pub(crate) fn run_attend(&mut self, args: &Attend) -> Result<()> {
        let Some(bound) = self.checked_attend(args)? else { return Ok(()) };
        self.acts.get_mut(VERB, args.out)?.written();
        if let Some(dims) = bound.layout.latent {
            return self.run_latent(args, &bound, dims);
        }
        // Sequences with few rows are bound by what they read, those with many by what they compute.
        let few: Vec<SeqRows> =
            args.seqs.iter().filter(|s| (1..=FEW_ROWS).contains(&s.rows)).copied().collect();
        let many: Vec<SeqRows> = args.seqs.iter().filter(|s| s.rows > FEW_ROWS).copied().collect();
        if !few.is_empty() {
            self.run_decode(args, &bound, &few, None)?;
        }
        if !many.is_empty() {
            self.run_prefill(args, &bound, &many)?;
        }
        Ok(())
    }

    pub(crate) fn run_attend_new(&mut self, args: &AttendNew) -> Result<()> {
        let attend = &args.attend;
        let Some((bound, new)) = self.fused(args)? else { return self.attend_new_in_steps(args) };
        if bound.layout.latent.is_some() || !self.one_tile(attend, &bound, &new)? {
            return self.attend_new_in_steps(args);
        }
        self.acts.get_mut(VERB, attend.out)?.written();
        self.run_decode(attend, &bound, attend.seqs, Some(&new))
    }

    /// Whether one dispatch can norm, rotate, append and attend, and what it needs: one row per sequence, norms per head.
    fn fused(&mut self, args: &AttendNew) -> Result<Option<(Bound, New)>> {
        let attend = &args.attend;
        let single = attend.seqs.iter().all(|seq| seq.rows == 1);
        let per_head = |norms: [HeadNorm; 2]| [attend.heads, attend.kv_heads] == norms.map(|n| n.groups);
        // A norm over a row of one head is one per head as well.
        if !single || !args.norms.is_none_or(per_head) {
            return Ok(None);
        }
        let rows = attend.seqs.len();
        let (k, v) = (self.shape(VERB, args.k)?, self.shape(VERB, args.v)?);
        let append = AppendKv { k: args.k, v: args.v, seqs: attend.seqs };
        check::append_kv(&append, k, v, |page| spec_of(self, VERB, page))?;
        let mut norms = None;
        if let Some(both) = args.norms {
            let mut weights = [None::<BufferId>; 2];
            for ((slot, norm), x) in weights.iter_mut().zip(both).zip([attend.q, args.k]) {
                let weight = self.weight("norm", norm.weight, WeightKind::Vector)?;
                let (cols, buffer) = (weight.spec.cols, weight.parts[0].buffer);
                let HeadNorm { weight, groups, eps } = norm;
                let shape = self.shape("norm", x)?;
                check::norm(&Norm { x, rows, groups, weight, eps, out: x }, shape, cols, shape)?;
                *slot = Some(buffer);
            }
            norms = weights[0].zip(weights[1]).map(|(q, k)| ([q, k], both.map(|n| n.eps)));
        }
        let turn = args.rotation.map(|rotation| self.turn(args, rotation)).transpose()?;
        let Some(bound) = self.checked_attend(attend)? else { return Ok(None) };
        let rows = |buf| Ok(self.acts.get(VERB, buf)?.rows);
        Ok(Some((bound, New { k: rows(args.k)?, v: rows(args.v)?, norms, turn })))
    }

    fn turn(&self, args: &AttendNew, rotation: Rotation) -> Result<Turn> {
        let (attend, freqs) = (&args.attend, self.shape("rope", rotation.freqs)?);
        let Rotation { pairs, magnitude, .. } = rotation;
        let (head_dim, positions) = (attend.head_dim, args.positions);
        for (x, heads) in [(attend.q, attend.heads), (args.k, attend.kv_heads)] {
            let rope = Rope {
                x,
                first: 0,
                back: false,
                heads,
                head_dim,
                positions,
                freqs: rotation.freqs,
                pairs,
                magnitude,
            };
            check::rope(&rope, self.shape("rope", x)?, freqs)?;
        }
        Ok(Turn {
            freqs: self.acts.get("rope", rotation.freqs)?.rows,
            pairs: freqs.width as u32,
            interleaved: pairs == RopePairs::Interleaved,
            magnitude,
        })
    }

    /// The pools of the pages, after all checks; `None` where no sequence has rows.
    fn checked_attend(&self, args: &Attend) -> Result<Option<Bound>> {
        let (q, out) = (self.shape(VERB, args.q)?, self.shape(VERB, args.out)?);
        let sinks =
            args.sinks.map(|w| Ok(self.weight(VERB, w, WeightKind::Vector)?.spec.cols)).transpose()?;
        check::attend(args, q, out, sinks, |page| spec_of(self, VERB, page))?;
        self.bound(VERB, args.seqs, |seq| seq.first_page(args.window))
    }

    /// The meaning of [`Compute::attend_new`], verb by verb.
    fn attend_new_in_steps(&mut self, args: &AttendNew) -> Result<()> {
        let (rows, q, k) = (args.positions.len(), args.attend.q, args.k);
        let (head_dim, positions) = (args.attend.head_dim, args.positions);
        for (at, (x, heads)) in [(q, args.attend.heads), (k, args.attend.kv_heads)].into_iter().enumerate() {
            let norm = args.norms.map(|norms| norms[at]);
            let rope = args.rotation.map(|Rotation { freqs, pairs, magnitude }| Rope {
                x,
                first: 0,
                back: false,
                heads,
                head_dim,
                positions,
                freqs,
                pairs,
                magnitude,
            });
            if let (Some(norm), Some(rope)) = (norm, &rope)
                && self.run_norm_rope(norm, rope)?
            {
                continue;
            }
            if let Some(HeadNorm { weight, groups, eps }) = norm {
                self.run_norm(&Norm { x, rows, groups, weight, eps, out: x })?;
            }
            if let Some(rope) = &rope {
                self.run_rope(rope)?;
            }
        }
        self.run_append_kv(&AppendKv { k, v: args.v, seqs: args.attend.seqs })?;
        self.run_attend(&args.attend)
    }
}
