//! Hyper-connections (Xie et al. 2026): a residual stream of several streams, mixed into one row before every sublayer and
//! spread over all of them after it.

use hob_compute::{Combine, HyperExpand, HyperMix};

use super::ends::Norm;
use super::step::{Projection, Step};
use crate::config::StreamConfig;
use crate::needs::{BufId, Group, Needs, Rows, WeightId};
use crate::{Config, Result};

/// The tensors of one connection, in full.
pub(crate) struct HyperNames {
    pub fn_: String,
    pub base: String,
    pub scale: String,
}

/// The connection around one sublayer, or before the head.
pub(crate) struct HyperConnection {
    streams: StreamConfig,
    /// Without weights, over all streams as one row.
    norm: Norm,
    project: Projection,
    base: WeightId,
    scale: WeightId,
    /// `[rows, streams * dim]`
    normed: BufId,
    /// `[rows, streams * (2 + streams)]`, or `[rows, streams]` before the head.
    logits: BufId,
    /// `[rows, streams * (1 + streams)]`; none before the head.
    weights: Option<BufId>,
}

/// Where a sublayer's output is spread from and to.
#[derive(Copy, Clone)]
pub(crate) struct Expand {
    /// `[rows, dim]`
    pub from: BufId,
    /// `[rows, streams * dim]`
    pub streams: BufId,
}

impl HyperConnection {
    /// Declares a connection; one before the `head` only mixes.
    pub fn new(
        config: &Config,
        streams: StreamConfig,
        names: HyperNames,
        head: bool,
        needs: &mut Needs,
    ) -> Self {
        let (n, width) = (streams.count, config.stream_width());
        let (logits, scales) = if head { (n, 1) } else { (n * (2 + n), 3) };
        let weight = needs.matrix(names.fn_, Group::Attention, [logits, width]);
        HyperConnection {
            streams,
            norm: Norm::new(needs.ones(width), 1, config.rms_eps),
            project: Projection { weight, bias: None },
            base: needs.vector(names.base, logits),
            scale: needs.vector(names.scale, scales),
            normed: needs.scratch("normed streams", Rows::Chunk, width),
            logits: needs.scratch("logits of streams", Rows::Chunk, logits),
            weights: (!head).then(|| needs.scratch("weights of streams", Rows::Chunk, n * (1 + n))),
        }
    }

    /// Mixes `streams` into `out`.
    pub fn mix(&self, step: &mut Step, streams: BufId, out: BufId) -> Result<()> {
        self.norm.run(step, streams, self.normed)?;
        step.linear(self.normed, [(&self.project, self.logits)], Combine::Store)?;
        let [x, logits, out] = [streams, self.logits, out].map(|b| step.buf(b));
        let (base, scale) = (step.weight(self.base), step.weight(self.scale));
        let StreamConfig { count, iterations, eps } = self.streams;
        let (rows, weights) = (step.rows(), self.weights.map(|w| step.buf(w)));
        let streams = count;
        Ok(step.dev.hyper_mix(&HyperMix {
            x,
            rows,
            streams,
            logits,
            base,
            scale,
            eps,
            iterations,
            out,
            weights,
        })?)
    }

    /// Spreads a sublayer's output by the weights of the last [`HyperConnection::mix`].
    pub fn expand(&self, step: &mut Step, Expand { from, streams }: Expand) -> Result<()> {
        let (y, x, weights) = (step.buf(from), step.buf(streams), self.weights.map(|w| step.buf(w)));
        let (rows, streams) = (step.rows(), self.streams.count);
        Ok(step.dev.hyper_expand(&HyperExpand { y, rows, streams, weights, x })?)
    }
}

impl Expand {
    /// Makes every stream a copy of the row: the beginning of a model.
    pub fn copies(self, step: &mut Step, streams: usize) -> Result<()> {
        let (y, x, rows) = (step.buf(self.from), step.buf(self.streams), step.rows());
        Ok(step.dev.hyper_expand(&HyperExpand { y, rows, streams, weights: None, x })?)
    }
}
