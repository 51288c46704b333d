//! Choosing experts. It must not know what experts compute.

use hob_compute::check::mixture as check;
use hob_compute::{ComputeError, Gating, GroupScore, Result, Route, Routing, Weight, WeightKind};

use crate::Gpu;
use crate::stream::{Access, Call, KernelKey, Source};
use crate::template::Template;

const ROUTE: &str = include_str!("../wgsl/route.wgsl");
/// The piece `order`: numbers as ordered integers.
pub(crate) const ORDER: &str = include_str!("../wgsl/order.wgsl");
const VERB: &str = "route";
/// Experts and selected experts of a row, together: probabilities and ranks stay in workgroup memory, 8 bytes for each.
const MOST_EXPERTS: usize = 3072;

impl Gpu {
    pub(crate) fn run_route(&mut self, args: &Route) -> Result<()> {
        let vector = |w: Option<Weight>| w.map(|w| self.weight(VERB, w, WeightKind::Vector)).transpose();
        let vectors = [vector(args.bias)?, vector(args.scales)?];
        let cols = vectors.map(|v| v.map(|v| v.spec.cols));
        let [bias, scales] = vectors.map(|v| v.map(|v| v.parts[0].buffer));
        let (logits, out) = (self.shape(VERB, args.logits)?, self.shape(VERB, args.out)?);
        let chosen = args.chosen.map(|c| self.shape(VERB, c)).transpose()?;
        check::route(args, logits, cols, chosen, out)?;
        let experts = logits.width;
        let rule = args.rule;
        if experts + rule.top_k > MOST_EXPERTS {
            let expected = format!("at most {MOST_EXPERTS} experts on a GPU, selected ones counted twice");
            return Err(ComputeError::shape(VERB, expected, experts + rule.top_k));
        }
        let groups = rule.groups.map_or([0; 3], |g| [g.count, g.top, 1 + g.score as usize]);
        let [count, top, score] = groups.map(|n| n as u32);
        let flags = [bias.is_some(), rule.normalize.is_some(), scales.is_some(), chosen.is_some()];
        let flags = flags.iter().rev().fold(0, |bits, &flag| 2 * bits + u32::from(flag));
        let sizes = [experts as u32, rule.top_k as u32];
        let params = [sizes[0], sizes[1], rule.gating as u32, count, top, score, flags, 0];
        let key = KernelKey { name: "route", params };
        let kernel = self
            .stream
            .kernel(key, || source(experts, &rule, [bias.is_some(), scales.is_some(), chosen.is_some()]))?;
        let mut bindings = vec![self.acts.get(VERB, args.out)?.rows, self.acts.get(VERB, args.logits)?.rows];
        bindings.extend(bias);
        bindings.extend(scales);
        if let Some(chosen) = args.chosen {
            bindings.push(self.acts.get(VERB, chosen)?.rows);
        }
        self.acts.get_mut(VERB, args.out)?.written();
        self.stream.dispatch(&Call {
            kernel,
            bindings: &bindings,
            immediates: &[rule.normalize.unwrap_or(0.0).to_bits(), rule.scale.to_bits()],
            groups: [args.rows as u32, 1, 1],
            verb: VERB,
            bytes: (4 * args.rows * (experts + 2 * rule.top_k)) as u64,
        })
    }
}

fn source(experts: usize, rule: &Routing, [bias, scales, chosen]: [bool; 3]) -> Source {
    let (groups, kept) = rule.groups.map_or((1, 1), |g| (g.count, g.top));
    let wgsl = Template::new()
        .flag("SOFTMAX", rule.gating == Gating::Softmax)
        .flag("SIGMOID", rule.gating == Gating::Sigmoid)
        .flag("SELECTED", rule.gating == Gating::SoftmaxSelected)
        .flag("SOFTPLUS", rule.gating == Gating::SqrtSoftplus)
        .flag("BIAS", bias)
        .flag("SCALES", scales)
        .flag("CHOSEN", chosen)
        .value("CHOSEN_AT", 2 + usize::from(bias) + usize::from(scales))
        .value("SCALES_AT", 2 + usize::from(bias))
        .flag("NORMALIZE", rule.normalize.is_some())
        .flag("GROUPED", rule.groups.is_some())
        .flag("BEST_TWO", rule.groups.is_some_and(|g| g.score == GroupScore::BestTwo))
        .value("EXPERTS", experts)
        .value("TOP", rule.top_k)
        .value("GROUPS", groups)
        .value("KEPT_GROUPS", kept)
        .value("LANES", experts.next_power_of_two().clamp(32, 256))
        .piece("order", ORDER)
        .render(ROUTE);
    let mut bindings = vec![Access::Write, Access::Read];
    bindings.extend([bias, scales, chosen].into_iter().filter(|&there| there).map(|_| Access::Read));
    Source { wgsl, bindings }
}
