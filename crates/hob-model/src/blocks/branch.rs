//! A branch of the residual stream, `x += scale * post(f(pre(x)))`: where the norms of a sublayer stand.

use hob_compute::{Combine, Map};

use super::ends::{Norm, Stream};
use super::step::Step;
use crate::needs::{BufId, Name, Needs, Rows};
use crate::{Config, Result};

/// The norms around a sublayer; a pre-norm decoder has only the first, a sandwich both.
#[derive(Copy, Clone)]
pub(crate) struct BranchNorms {
    pub pre: Option<Name>,
    pub post: Option<Name>,
}

impl BranchNorms {
    pub const fn pre(name: Name) -> Self {
        BranchNorms { pre: Some(name), post: None }
    }

    pub const fn post(name: Name) -> Self {
        BranchNorms { pre: None, post: Some(name) }
    }

    pub const fn both(pre: Name, post: Name) -> Self {
        BranchNorms { pre: Some(pre), post: Some(post) }
    }
}

/// What stands around one sublayer.
pub(crate) struct Branch {
    pre: Option<Norm>,
    post: Option<Norm>,
    scale: f32,
    /// `[rows, dim]`: the sublayer's output, where it cannot be added to the stream at once.
    out: Option<BufId>,
}

impl Branch {
    /// Declares the norms of layer `i`.
    pub fn new(config: &Config, i: usize, norms: BranchNorms, needs: &mut Needs) -> Self {
        let scale = config.residual_scale;
        let pre = norms.pre.map(|name| Norm::of_layer(config, i, name, needs));
        let post = norms.post.map(|name| Norm::of_layer(config, i, name, needs));
        let aside = pre.is_none() || post.is_some() || scale != 1.0;
        let out = aside.then(|| needs.scratch("branch", Rows::Chunk, config.dim));
        Branch { pre, post, scale, out }
    }

    /// Runs `sublayer(step, input, out, combine)`, which reads `input` and stores into or adds to `out`.
    pub fn run(
        &self,
        step: &mut Step,
        Stream { x, normed }: Stream,
        sublayer: impl FnOnce(&mut Step, BufId, BufId, Combine) -> Result<()>,
    ) -> Result<()> {
        let input = match &self.pre {
            Some(norm) => {
                norm.run(step, x, normed)?;
                normed
            }
            None => x,
        };
        let Some(out) = self.out else { return sublayer(step, input, x, Combine::Add) };
        sublayer(step, input, out, Combine::Store)?;
        if let Some(norm) = &self.post {
            norm.run(step, out, out)?;
        }
        let (rows, x, out) = (step.rows(), step.buf(x), step.buf(out));
        if self.scale != 1.0 {
            step.dev.map(&Map::Scale { a: out, factor: self.scale, out, rows })?;
        }
        Ok(step.dev.map(&Map::Add { a: x, b: out, out: x, rows })?)
    }
}
