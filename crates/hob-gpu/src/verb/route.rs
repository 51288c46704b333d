//! Choosing experts. It must not know what experts compute.

use hob_compute::check::mixture as check;
use hob_compute::{ComputeError, Gating, GroupScore, Result, Route, Routing, Weight, WeightKind};

use crate::Gpu;
use crate::stream::{Access, BufferId, Call, KernelKey, Source};
use crate::template::Template;

const ROUTE: &str = include_str!("../wgsl/route.wgsl");
/// The piece `order`: numbers as ordered integers.
pub(crate) const ORDER: &str = include_str!("../wgsl/order.wgsl");
const VERB: &str = "route";
/// Experts and selected experts of a row, together: probabilities and ranks stay in workgroup memory, 8 bytes for each.
const MOST_EXPERTS: usize = 3072;

/// What a kernel that routes is specialised by.
#[derive(Copy, Clone)]
pub(crate) struct Router {
    experts: usize,
    rule: Routing,
    bias: bool,
    scales: bool,
    /// Whether the experts of every row are given.
    chosen: bool,
}

/// The router of a routing, and the buffers of its bias and scales.
///
/// # Errors
/// A stale handle, or what the rule refuses.
pub(crate) fn router(gpu: &Gpu, args: &Route) -> Result<(Router, [Option<BufferId>; 2])> {
    let vector = |w: Option<Weight>| w.map(|w| gpu.weight(VERB, w, WeightKind::Vector)).transpose();
    let vectors = [vector(args.bias)?, vector(args.scales)?];
    let cols = vectors.map(|v| v.map(|v| v.spec.cols));
    let (logits, out) = (gpu.shape(VERB, args.logits)?, gpu.shape(VERB, args.out)?);
    let chosen = args.chosen.map(|c| gpu.shape(VERB, c)).transpose()?;
    check::route(args, logits, cols, chosen, out)?;
    let (experts, rule) = (logits.width, args.rule);
    if experts + rule.top_k > MOST_EXPERTS {
        let expected = format!("at most {MOST_EXPERTS} experts on a GPU, selected ones counted twice");
        return Err(ComputeError::shape(VERB, expected, experts + rule.top_k));
    }
    let [bias, scales, chosen] = [args.bias.is_some(), args.scales.is_some(), chosen.is_some()];
    let router = Router { experts, rule, bias, scales, chosen };
    Ok((router, vectors.map(|v| v.map(|v| v.parts[0].buffer))))
}

impl Router {
    /// Whether there are a bias and scales.
    pub fn vectors(&self) -> [bool; 2] {
        [self.bias, self.scales]
    }

    fn flags(&self) -> u32 {
        let flags = [self.bias, self.rule.normalize.is_some(), self.scales, self.chosen];
        flags.iter().rev().fold(0, |flags, &flag| 2 * flags + u32::from(flag))
    }

    /// A number that no other router of so many experts has, who selects so many: not 0.
    pub fn code(&self) -> u32 {
        let groups = self.rule.groups.map_or([0; 3], |g| [g.count, g.top, 1 + g.score as usize]);
        let parts = [(8, groups[0] as u32), (8, groups[1] as u32), (2, groups[2] as u32), (4, self.flags())];
        let code = parts.iter().fold(self.rule.gating as u32, |code, (bits, part)| code << bits | part);
        (self.experts as u32) << 16 ^ code.rotate_left(3) | 1 << 31
    }

    /// The piece `route_row`, and what it needs beside the piece `lanes`. Of the workgroup's lanes, `together` neighbours
    /// are always in one subgroup.
    pub fn template(&self, template: Template, lanes: usize, together: usize) -> Template {
        let rule = &self.rule;
        let (groups, kept) = rule.groups.map_or((1, 1), |g| (g.count, g.top));
        let best_two = rule.groups.is_some_and(|g| g.score == GroupScore::BestTwo);
        // Only weights want probabilities: logits have the order of their softmax.
        let late = self.chosen || (rule.gating == Gating::Softmax && !self.bias && !best_two);
        let split = (lanes / self.experts.next_power_of_two()).clamp(1, together.min(8));
        template
            .flag("LATE", late)
            .flag("SPLITS", split > 1)
            .value("SPLIT", split)
            .flag("SOFTMAX", rule.gating == Gating::Softmax)
            .flag("SIGMOID", rule.gating == Gating::Sigmoid)
            .flag("SELECTED", rule.gating == Gating::SoftmaxSelected)
            .flag("SOFTPLUS", rule.gating == Gating::SqrtSoftplus)
            .flag("BIAS", self.bias)
            .flag("SCALES", self.scales)
            .flag("CHOSEN", self.chosen)
            .flag("NORMALIZE", rule.normalize.is_some())
            .flag("GROUPED", rule.groups.is_some())
            .flag("BEST_TWO", best_two)
            .value("EXPERTS", self.experts)
            .value("TOP", rule.top_k)
            .value("GROUPS", groups)
            .value("KEPT_GROUPS", kept)
            .piece("order", ORDER)
            .piece("route_row", include_str!("../wgsl/route_row.wgsl"))
    }
}

impl Gpu {
    /// A routing that is checked, and waits for the experts behind it where it can.
    pub(crate) fn route_or_hold(&mut self, args: &Route) -> Result<()> {
        let (router, _) = router(self, args)?;
        if self.hold_route(args, router.experts) { Ok(()) } else { self.run_route(args) }
    }

    pub(crate) fn run_route(&mut self, args: &Route) -> Result<()> {
        let (router, [bias, scales]) = router(self, args)?;
        let Routing { top_k, normalize, scale, .. } = args.rule;
        let experts = router.experts;
        let params = [experts as u32, top_k as u32, router.code(), router.rule.gating as u32, 0, 0, 0, 0];
        let subgroups = self.stream.context.tier().subgroups;
        let key = KernelKey { name: "route", params };
        let kernel = self.stream.kernel(key, || source(&router, subgroups))?;
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
            immediates: &[normalize.unwrap_or(0.0).to_bits(), scale.to_bits()],
            groups: [args.rows as u32, 1, 1],
            verb: VERB,
            bytes: (4 * args.rows * (experts + 2 * top_k)) as u64,
        })
    }
}

fn source(router: &Router, subgroups: bool) -> Source {
    let lanes = router.experts.next_power_of_two().clamp(32, 256);
    let template = Template::new()
        .flag("SUBGROUPS", subgroups)
        .value("SCALES_AT", 2 + usize::from(router.bias))
        .value("CHOSEN_AT", 2 + usize::from(router.bias) + usize::from(router.scales))
        .value("LANES", lanes)
        .piece("lanes", include_str!("../wgsl/lanes.wgsl"));
    let mut bindings = vec![Access::Write, Access::Read];
    let read = router.vectors().into_iter().chain([router.chosen]);
    bindings.extend(read.filter(|&there| there).map(|_| Access::Read));
    Source { wgsl: router.template(template, lanes, 1).render(ROUTE), bindings }
}
