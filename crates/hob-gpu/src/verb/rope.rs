//! Rotation, and the piece that gives every kernel its sines. It must not know who rotates.

use hob_compute::{Result, Rope, RopePairs, check};

use crate::Gpu;
use crate::stream::{Access, Call, KernelKey, Source};
use crate::template::Template;

/// The piece `rope_angle`: `rope_angle(position: u32, freq: f32) -> vec2<f32>`, cosine and sine within 1e-7 of the exact
/// ones at every position; it needs no table and nothing of the host.
pub(crate) const ROPE_ANGLE: &str = include_str!("../wgsl/rope_angle.wgsl");
const ROPE: &str = include_str!("../wgsl/rope.wgsl");
const VERB: &str = "rope";
const LANES: usize = 128;

impl Gpu {
    pub(crate) fn run_rope(&mut self, args: &Rope) -> Result<()> {
        let (x, freqs) = (self.shape(VERB, args.x)?, self.shape(VERB, args.freqs)?);
        check::rope(args, x, freqs)?;
        let interleaved = args.pairs == RopePairs::Interleaved;
        let key = KernelKey { name: "rope", params: [interleaved.into(), 0, 0, 0, 0, 0, 0, 0] };
        let kernel = self.stream.kernel(key, || source(interleaved))?;
        let bindings = [
            self.acts.get(VERB, args.x)?.rows,
            self.acts.get(VERB, args.freqs)?.rows,
            self.stream.argument_buffer(),
        ];
        let rows = args.positions.len();
        let pairs = rows * args.heads * freqs.width;
        let positions = self.stream.arguments(args.positions)?;
        self.acts.get_mut(VERB, args.x)?.written();
        let sizes = [rows, args.heads, args.head_dim, freqs.width].map(|n| n as u32);
        let [rows, heads, head_dim, half] = sizes;
        self.stream.dispatch(&Call {
            kernel,
            bindings: &bindings,
            immediates: &[rows, heads, head_dim, half, positions, args.magnitude.to_bits()],
            groups: [(pairs.div_ceil(LANES) as u32).min(65_535), 1, 1],
            verb: VERB,
            bytes: 16 * pairs as u64,
        })
    }
}

fn source(interleaved: bool) -> Source {
    let wgsl = Template::new().flag("INTERLEAVED", interleaved).piece("rope_angle", ROPE_ANGLE).render(ROPE);
    Source { wgsl, bindings: vec![Access::Write, Access::Read, Access::Read] }
}
