//! A mixture of experts beside a dense block (Gemma 4): both read the stream, each under norms of its own.

use hob_compute::{Activation, Combine, Map};

use super::ends::{Norm, Stream};
use super::moe::{Moe, MoeNames};
use super::step::Step;
use crate::needs::{BufId, Name, Needs, Rows};
use crate::{Config, Result};

/// How an architecture spells the tensors of such a mixture.
#[derive(Copy, Clone)]
pub(crate) struct BesideNames {
    /// The norm of the dense block's output.
    pub dense: Name,
    /// What the router's normed input is multiplied by, in full within the layer.
    pub router: Name,
    /// The norms around the experts.
    pub pre: Name,
    pub post: Name,
    pub experts: MoeNames,
}

/// One layer's: `dense' = norm(dense) + post(sum of experts of pre(x))`, chosen by `Wr (norm(x) * r) / sqrt(dim)`.
pub(crate) struct Beside {
    dense: Norm,
    router: Norm,
    pre: Norm,
    post: Norm,
    moe: Moe,
    /// What the router's logits are multiplied by.
    factor: f32,
    /// `[rows, dim]`
    mixed: BufId,
}

impl Beside {
    /// Declares layer `i`'s weights and buffers, if it is a mixture.
    pub fn new(
        config: &Config,
        i: usize,
        (names, activation): (BesideNames, Activation),
        needs: &mut Needs,
    ) -> Option<Self> {
        let experts = config.layers[i].experts.as_ref()?;
        let router = needs.vector(needs.naming.in_full(i, names.router), config.dim);
        let mut norm = |name| Norm::of_layer(config, i, name, needs);
        let (dense, pre, post) = (norm(names.dense), norm(names.pre), norm(names.post));
        Some(Beside {
            dense,
            router: Norm::new(router, 1, config.rms_eps),
            pre,
            post,
            moe: Moe::new(config.dim, i, experts, (names.experts, activation), needs),
            factor: 1.0 / (config.dim as f32).sqrt(),
            mixed: needs.scratch("mixed experts", Rows::Chunk, config.dim),
        })
    }

    /// Norms the dense block's output and adds the experts' for the stream `x`. `normed` is overwritten.
    pub fn run(&self, step: &mut Step, Stream { x, normed }: Stream, dense: BufId) -> Result<()> {
        self.dense.run(step, dense, dense)?;
        self.router.run(step, x, normed)?;
        self.moe.choose(step, normed, self.factor)?;
        self.pre.run(step, x, normed)?;
        self.moe.mix(step, normed, self.mixed, Combine::Store)?;
        self.post.run(step, self.mixed, self.mixed)?;
        let (rows, a, b) = (step.rows(), step.buf(dense), step.buf(self.mixed));
        Ok(step.dev.map(&Map::Add { a, b, out: a, rows })?)
    }
}
