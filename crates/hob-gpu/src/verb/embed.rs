//! Gathers rows of the embedding table, of tokens that the host knows and of those that the last pick chose. It must not
//! know how they were chosen.

use hob_compute::check::Shape;
use hob_compute::{ComputeError, Embed, Result, Token, WeightKind, check};

use crate::Gpu;
use crate::format;
use crate::stream::{Access, Call, KernelKey, Source};
use crate::template::Template;

const EMBED: &str = include_str!("../wgsl/embed.wgsl");
const VERB: &str = "embed";
const LANES: u32 = 64;
/// Marks a row of the last pick among tokens.
const CHOSEN: u32 = 1 << 31;
/// Most workgroups along one side of a grid.
const GRID: u32 = 65_535;

impl Gpu {
    pub(crate) fn run_embed(&mut self, args: &Embed) -> Result<()> {
        let table = self.weight(VERB, args.table, WeightKind::Table)?;
        let (shape, on_device) = (table.shape(), table.format);
        check::embed(args, shape, self.shape(VERB, args.out)?)?;
        let (tokens, single) = self.tokens(args.tokens, shape)?;
        let vectors = shape.width.is_multiple_of(4);
        let key =
            KernelKey { name: "embed", params: [on_device.ggml_id(), vectors.into(), 0, 0, 0, 0, 0, 0] };
        let kernel = self.stream.kernel(key, || Source {
            wgsl: Template::new()
                .flag("VECTORS", vectors)
                .value("TYPE", if vectors { "vec4<f32>" } else { "f32" })
                .piece("unpack", format::unpack(&[(on_device, "t")]))
                .render(EMBED),
            bindings: vec![Access::Write, Access::Read, Access::Read, Access::Read],
        })?;
        let (results, last) = self.picks.last(&mut self.stream)?;
        let out = self.acts.get(VERB, args.out)?.rows;
        self.acts.get_mut(VERB, args.out)?.written();
        let (blocks, count) = (shape.width.div_ceil(32), args.tokens.len());
        for part in &self.weights.get(VERB, args.table)?.parts {
            let sizes =
                [shape.width, blocks, tokens, last.chosen(), last.stride(), part.first_row, part.rows, count];
            let [width, blocks, tokens, results_at, stride, first_row, rows, count] = sizes.map(|n| n as u32);
            let scale = args.scale.to_bits();
            self.stream.dispatch(&Call {
                kernel,
                bindings: &[out, part.buffer, self.stream.argument_buffer(), results],
                immediates: &[
                    width, blocks, tokens, scale, results_at, stride, first_row, rows, count, single,
                ],
                groups: [blocks.div_ceil(LANES), count.min(GRID), count.div_ceil(GRID)],
                verb: VERB,
                bytes: (8 * width * count).into(),
            })?;
        }
        Ok(())
    }

    /// Puts several tokens where the kernel finds them; gives where, and the word of a single one.
    fn tokens(&mut self, tokens: &[Token], table: Shape) -> Result<(usize, u32)> {
        let picked = self.picks.last_rows();
        self.words.clear();
        for &token in tokens {
            self.words.push(match token {
                Token::Host(id) => check::token(id, table)? as u32,
                Token::Device(row) if (row as usize) < picked => CHOSEN | row,
                Token::Device(row) => {
                    let expected = format!("a device slot below {picked}");
                    return Err(ComputeError::shape(VERB, expected, format!("slot {row}")));
                }
            });
        }
        match self.words[..] {
            [single] => Ok((0, single)),
            _ => Ok((self.stream.arguments(&self.words)? as usize, 0)),
        }
    }
}
