//! Hyper-connections: streams into one row, and a row over all streams. It must not know what stands between the two.

use hob_compute::check::compressed as check;
use hob_compute::{HyperExpand, HyperMix, Result, WeightKind};

use crate::Gpu;
use crate::stream::{Access, Call, KernelKey, Source};
use crate::template::Template;

const MIX: &str = include_str!("../wgsl/hyper_mix.wgsl");
const EXPAND: &str = include_str!("../wgsl/hyper_expand.wgsl");
const LANES: usize = 256;

impl Gpu {
    pub(crate) fn run_hyper_mix(&mut self, args: &HyperMix) -> Result<()> {
        const VERB: &str = "hyper_mix";
        let vector = |w| self.weight(VERB, w, WeightKind::Vector);
        let (base, scale) = (vector(args.base)?, vector(args.scale)?);
        let vectors = [base.spec.cols, scale.spec.cols];
        let (base, scale) = (base.parts[0].buffer, scale.parts[0].buffer);
        let shapes = [self.shape(VERB, args.x)?, self.shape(VERB, args.logits)?, self.shape(VERB, args.out)?];
        let weights = args.weights.map(|w| self.shape(VERB, w)).transpose()?;
        let dim = check::hyper_mix(args, shapes, weights, vectors)?;
        let (streams, wide) = (args.streams, weights.is_some());
        let params = [streams as u32, wide.into(), 0, 0, 0, 0, 0, 0];
        let kernel = self.stream.kernel(KernelKey { name: "hyper mix", params }, || {
            let first = 1 + usize::from(wide);
            let wgsl = Template::new()
                .flag("WEIGHTS", wide)
                .value("STREAMS", streams)
                .value("SQUARE", streams * streams)
                .value("WIDE", if wide { streams * (2 + streams) } else { streams })
                .value("X", first)
                .value("LOGITS", first + 1)
                .value("BASE", first + 2)
                .value("SCALE", first + 3)
                .render(MIX);
            let mut bindings = vec![Access::Write; first];
            bindings.extend([Access::Read; 4]);
            Source { wgsl, bindings }
        })?;
        let mut bindings = Vec::with_capacity(6);
        for buf in [Some(args.out), args.weights].into_iter().flatten() {
            let act = self.acts.get_mut(VERB, buf)?;
            act.written();
            bindings.push(act.rows);
        }
        bindings.extend([self.acts.get(VERB, args.x)?.rows, self.acts.get(VERB, args.logits)?.rows]);
        bindings.extend([base, scale]);
        self.stream.dispatch(&Call {
            kernel,
            bindings: &bindings,
            immediates: &[dim as u32, args.eps.to_bits(), args.iterations as u32],
            groups: [args.rows as u32, 1, 1],
            verb: VERB,
            bytes: (4 * args.rows * (1 + streams) * dim) as u64,
        })
    }

    pub(crate) fn run_hyper_expand(&mut self, args: &HyperExpand) -> Result<()> {
        const VERB: &str = "hyper_expand";
        let weights = args.weights.map(|w| self.shape(VERB, w)).transpose()?;
        let dim = check::hyper_expand(args, self.shape(VERB, args.y)?, self.shape(VERB, args.x)?, weights)?;
        let (streams, wide) = (args.streams, weights.is_some());
        let params = [streams as u32, wide.into(), 0, 0, 0, 0, 0, 0];
        let kernel = self.stream.kernel(KernelKey { name: "hyper expand", params }, || Source {
            wgsl: Template::new()
                .flag("WEIGHTS", wide)
                .value("STREAMS", streams)
                .value("N", streams)
                .render(EXPAND),
            bindings: [Access::Write, Access::Read, Access::Read][..2 + usize::from(wide)].to_vec(),
        })?;
        let act = self.acts.get_mut(VERB, args.x)?;
        act.written();
        let mut bindings = vec![act.rows, self.acts.get(VERB, args.y)?.rows];
        if let Some(weights) = args.weights {
            bindings.push(self.acts.get(VERB, weights)?.rows);
        }
        let count = args.rows * dim;
        self.stream.dispatch(&Call {
            kernel,
            bindings: &bindings,
            immediates: &[count as u32, dim as u32],
            groups: [(count.div_ceil(LANES) as u32).min(65_535), 1, 1],
            verb: VERB,
            bytes: (4 * count * (1 + 2 * streams)) as u64,
        })
    }
}
