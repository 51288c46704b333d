//! Rotation, with the norm before it where there is one, and the piece that gives every kernel its sines. It must not know who rotates.

use hob_compute::{HeadNorm, Norm, Result, Rope, RopePairs, WeightKind, check};

use crate::Gpu;
use crate::act::FEW_ROWS;
use crate::stream::{Access, Call, KernelKey, Source};
use crate::template::Template;

/// The piece `rope_angle`: `rope_angle(position: u32, freq: f32) -> vec2<f32>`, cosine and sine within 1e-7 of the exact
/// ones at every position; it needs no table and nothing of the host.
pub(crate) const ROPE_ANGLE: &str = include_str!("../wgsl/rope_angle.wgsl");
const ROPE: &str = include_str!("../wgsl/rope.wgsl");
const NORM_ROPE: &str = include_str!("../wgsl/norm_rope.wgsl");
const VERB: &str = "rope";
const LANES: usize = 128;
/// Lanes that keep a large device busy; more of them only compute the same angles more often.
const ENOUGH: usize = 1 << 18;

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
        let angles = rows * freqs.width;
        let shares = ENOUGH.div_ceil(angles.max(1)).min(args.heads);
        let positions = self.stream.arguments(args.positions)?;
        self.acts.get_mut(VERB, args.x)?.written();
        let sizes = [rows, args.heads, args.head_dim, freqs.width].map(|n| n as u32);
        let [rows, heads, head_dim, half] = sizes;
        self.stream.dispatch(&Call {
            kernel,
            bindings: &bindings,
            immediates: &[
                rows,
                heads,
                head_dim,
                half,
                positions,
                args.magnitude.to_bits(),
                shares as u32,
                args.first as u32,
                if args.back { -1f32 } else { 1.0 }.to_bits(),
            ],
            groups: [((angles * shares).div_ceil(LANES) as u32).min(65_535), 1, 1],
            verb: VERB,
            bytes: 16 * (angles * args.heads) as u64,
        })
    }

    /// Norms and rotates the heads of `args.x` at once: one reading and writing less. Gives false where heads are not of
    /// the kind for it, or not worth it.
    pub(crate) fn run_norm_rope(&mut self, norm: HeadNorm, args: &Rope) -> Result<bool> {
        let (x, freqs) = (self.shape(VERB, args.x)?, self.shape(VERB, args.freqs)?);
        let HeadNorm { weight, groups, eps } = norm;
        let (rows, half) = (args.positions.len(), freqs.width);
        let whole = groups == args.heads && args.head_dim == 2 * half;
        if !whole || !half.is_power_of_two() || half > LANES || rows <= FEW_ROWS {
            return Ok(false);
        }
        let loaded = self.weight(VERB, weight, WeightKind::Vector)?;
        let (cols, weights) = (loaded.spec.cols, loaded.parts[0].buffer);
        check::norm(&Norm { x: args.x, rows, groups, weight, eps, out: args.x }, x, cols, x)?;
        check::rope(args, x, freqs)?;
        let interleaved = args.pairs == RopePairs::Interleaved;
        let key = KernelKey { name: "norm rope", params: [interleaved.into(), 0, 0, 0, 0, 0, 0, 0] };
        let kernel = self.stream.kernel(key, || Source {
            wgsl: template(interleaved).render(NORM_ROPE),
            bindings: vec![Access::Write, Access::Read, Access::Read, Access::Read],
        })?;
        let frequencies = self.acts.get(VERB, args.freqs)?.rows;
        let act = self.acts.get_mut(VERB, args.x)?;
        act.written();
        let bindings = [act.rows, frequencies, self.stream.argument_buffer(), weights];
        // Heads that a workgroup takes at a time.
        let most = args.heads.div_ceil(4 * LANES / half);
        let shares = (ENOUGH / LANES).div_ceil(rows).min(most);
        let positions = self.stream.arguments(args.positions)?;
        let [rows, heads, half] = [rows, args.heads, half].map(|n| n as u32);
        let groups = rows * shares as u32;
        let across = groups.min(65_535);
        self.stream.dispatch(&Call {
            kernel,
            bindings: &bindings,
            immediates: &[
                rows,
                heads,
                half,
                positions,
                args.magnitude.to_bits(),
                shares as u32,
                eps.to_bits(),
            ],
            groups: [across, groups.div_ceil(across), 1],
            verb: VERB,
            bytes: 16 * u64::from(rows * heads * half),
        })?;
        Ok(true)
    }
}

fn template(interleaved: bool) -> Template {
    Template::new().flag("INTERLEAVED", interleaved).piece("rope_angle", ROPE_ANGLE)
}

fn source(interleaved: bool) -> Source {
    let wgsl = template(interleaved).render(ROPE);
    Source { wgsl, bindings: vec![Access::Write, Access::Read, Access::Read] }
}
