//! What every layer is told of the token itself (Gemma's E models): made once per step from a table of its own and the
//! embedding, added to the stream at the end of every layer.

use hob_compute::{Activation, Combine, Embed, Map};

use super::ends::{Norm, Stream};
use super::step::{Projection, Projections, Step};
use crate::arch::{Architecture, LayerState};
use crate::needs::{BufId, Group, Name, Needs, Rows, Section, WeightId};
use crate::{Config, Result};

/// How an architecture spells the tensors of its inputs of layers.
#[derive(Copy, Clone)]
pub(crate) struct InputNames {
    /// `[vocab, layers * width]`
    pub table: Name,
    /// `[layers * width, dim]`
    pub projection: Name,
    /// `[width]`
    pub norm: Name,
    /// Of a layer, `[width, dim]`.
    pub gate: Name,
    /// Of a layer, `[dim, width]`.
    pub out: Name,
    /// Of a layer, `[dim]`.
    pub post: Name,
}

/// The inputs of all layers: `(table[token] * sqrt(width) + norm(projection x / sqrt(dim))) / sqrt(2)`, `x` the embedding.
pub(crate) struct LayerInputs {
    table: WeightId,
    projection: Projection,
    norm: Norm,
    /// `[rows, layers * width]`
    projected: BufId,
    /// `[rows, layers * width]`
    inputs: BufId,
    dim: usize,
    width: usize,
}

impl LayerInputs {
    /// Declares weights and buffers for inputs of `width` values per layer.
    fn new(config: &Config, width: usize, names: InputNames, needs: &mut Needs) -> Self {
        let (layers, naming) = (config.layers.len(), needs.naming);
        let all = layers * width;
        let table = needs.table(naming.top(names.table), Group::Inputs, [config.vocab, all]);
        let weight = needs.matrix(naming.top(names.projection), Group::Inputs, [all, config.dim]);
        let norm = needs.norm(naming.top(names.norm), width);
        LayerInputs {
            table,
            projection: Projection { weight, bias: None },
            norm: Norm::new(norm, layers, config.rms_eps),
            projected: needs.scratch("projected inputs of layers", Rows::Chunk, all),
            inputs: needs.scratch(INPUTS, Rows::Chunk, all),
            dim: config.dim,
            width,
        }
    }

    /// The decoder, whose layers find their inputs made.
    pub fn before(
        decoder: Box<dyn Architecture>,
        config: &Config,
        width: usize,
        names: InputNames,
        needs: &mut Needs,
    ) -> Box<dyn Architecture> {
        needs.begin(Section::Embedding);
        let inputs = LayerInputs::new(config, width, names, needs);
        Box::new(WithInputs { decoder, inputs, x: Stream::new(config, needs).x })
    }

    /// Makes the inputs of all layers from the embedding `x`.
    fn run(&self, step: &mut Step, x: BufId) -> Result<()> {
        let (rows, projected, inputs) = (step.rows(), step.buf(self.projected), step.buf(self.inputs));
        let (table, scale) = (step.weight(self.table), (self.width as f32).sqrt());
        // First, because the table may lie on another device: what follows runs where the embedding is.
        step.dev.embed(&Embed { table, tokens: step.tokens, out: inputs, scale })?;
        step.linear(x, [(&self.projection, self.projected)], Combine::Store)?;
        let factor = 1.0 / (self.dim as f32).sqrt();
        step.dev.map(&Map::Scale { a: projected, factor, out: projected, rows })?;
        self.norm.run(step, self.projected, self.projected)?;
        step.dev.map(&Map::Add { a: inputs, b: projected, out: inputs, rows })?;
        let factor = std::f32::consts::FRAC_1_SQRT_2;
        Ok(step.dev.map(&Map::Scale { a: inputs, factor, out: inputs, rows })?)
    }
}

const INPUTS: &str = "inputs of layers";

/// A decoder, and before its first layer the inputs of all of them.
struct WithInputs {
    decoder: Box<dyn Architecture>,
    inputs: LayerInputs,
    /// The residual stream.
    x: BufId,
}

impl Architecture for WithInputs {
    fn embed(&self, step: &mut Step) -> Result<()> {
        self.decoder.embed(step)?;
        self.inputs.run(step, self.x)
    }

    fn layer(&self, i: usize, step: &mut Step) -> Result<()> {
        self.decoder.layer(i, step)
    }

    fn head(&self, step: &mut Step) -> Result<()> {
        self.decoder.head(step)
    }

    fn state_plan(&self) -> Vec<LayerState> {
        self.decoder.state_plan()
    }

    fn logits(&self) -> BufId {
        self.decoder.logits()
    }
}

/// What one layer does with its input: `x += post(out (activation(gate x) * input))`.
pub(crate) struct LayerInput {
    gate: Projection,
    out: Projection,
    post: Norm,
    activation: Activation,
    /// `[rows, width]`
    gated: BufId,
    /// `[rows, dim]`
    branch: BufId,
    /// `[rows, layers * width]`
    inputs: BufId,
    /// Where the layer's begins.
    first: usize,
}

impl LayerInput {
    /// Declares layer `i`'s weights and buffers.
    pub fn new(
        config: &Config,
        i: usize,
        width: usize,
        (names, activation): (InputNames, Activation),
        needs: &mut Needs,
    ) -> Self {
        let mut add = Projections { layer: i, group: Group::Inputs, needs };
        let gate = add.add(names.gate, width, config.dim, false);
        let out = add.add(names.out, config.dim, width, false);
        LayerInput {
            gate,
            out,
            post: Norm::of_layer(config, i, names.post, needs),
            activation,
            gated: needs.scratch("gated input", Rows::Chunk, width),
            branch: needs.scratch("branch", Rows::Chunk, config.dim),
            inputs: needs.scratch(INPUTS, Rows::Chunk, config.layers.len() * width),
            first: i * width,
        }
    }

    pub fn run(&self, step: &mut Step, x: BufId) -> Result<()> {
        step.linear(x, [(&self.gate, self.gated)], Combine::Store)?;
        let (rows, gated, inputs) = (step.rows(), step.buf(self.gated), step.buf(self.inputs));
        let &LayerInput { first, activation, .. } = self;
        step.dev.map(&Map::Gate { a: gated, b: inputs, first, activation, out: gated, rows })?;
        step.linear(self.gated, [(&self.out, self.branch)], Combine::Store)?;
        self.post.run(step, self.branch, self.branch)?;
        let (x, branch) = (step.buf(x), step.buf(self.branch));
        Ok(step.dev.map(&Map::Add { a: x, b: branch, out: x, rows })?)
    }
}
