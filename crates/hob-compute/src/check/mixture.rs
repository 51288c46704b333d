//! The checks of `route` and `experts`.

use super::{Shape, need, need_rows, need_width};
use crate::{ComputeError, Experts, Result, Route, Routing, WeightKind, WeightSpec};

/// Largest number of experts: their ids stay exact in f32 and their tables small.
pub const MAX_EXPERTS: usize = 1 << 16;

/// `vectors` are the lengths of the bias and the scales, as far as there are any.
///
/// # Errors
/// Rows that do not match, or a rule that the experts cannot satisfy.
pub fn route(
    args: &Route,
    logits: Shape,
    vectors: [Option<usize>; 2],
    chosen: Option<Shape>,
    out: Shape,
) -> Result<()> {
    if let Some(chosen) = chosen {
        need_rows("route", "chosen ids", args.rows, chosen)?;
        need_width("route", "chosen ids", args.rule.top_k, chosen)?;
        let apart = args.chosen != Some(args.logits) && args.chosen != Some(args.out);
        need(apart, "route", || "chosen ids in a buffer of their own".into(), || "one in two roles".into())?;
    }
    need_rows("route", "logits", args.rows, logits)?;
    need_rows("route", "an output", args.rows, out)?;
    need_width("route", "an output", args.rule.top_k.saturating_mul(2), out)?;
    for (what, width) in ["a bias", "a scale per expert"].into_iter().zip(vectors) {
        if let Some(width) = width {
            need_width("route", what, logits.width, Shape { rows: 1, width })?;
        }
    }
    need(args.logits != args.out, "route", || "an output other than the logits".into(), || "both".into())?;
    rule(&args.rule, logits.width)
}

/// Whether `experts` experts can satisfy a rule.
///
/// # Errors
/// A number of experts or groups that does not fit.
pub fn rule(rule: &Routing, experts: usize) -> Result<()> {
    let most = rule.groups.map_or(experts, |g| experts.checked_div(g.count).unwrap_or(0) * g.top);
    need(
        (1..=MAX_EXPERTS).contains(&experts) && (1..=most).contains(&rule.top_k),
        "route",
        || format!("1..={most} of 1..={MAX_EXPERTS} experts per row"),
        || format!("{} of {experts}", rule.top_k),
    )?;
    let Some(groups) = rule.groups else { return Ok(()) };
    need(
        groups.count > 0 && experts.is_multiple_of(groups.count) && (1..=groups.count).contains(&groups.top),
        "route",
        || format!("groups of equal size of {experts} experts, some of which stay"),
        || format!("{} of {} groups", groups.top, groups.count),
    )
}

/// Shapes of the weights of an `experts`, each `[count * rows, cols]`.
#[derive(Copy, Clone, Debug)]
pub struct ExpertShapes {
    pub count: usize,
    pub gate: Shape,
    pub up: Shape,
    pub down: Shape,
}

/// The number of experts and the shape of one of them.
///
/// # Errors
/// A weight that was not loaded as experts.
pub fn expert_weight(spec: &WeightSpec) -> Result<(usize, Shape)> {
    match spec.kind {
        WeightKind::Experts { count } => Ok((count, Shape { rows: spec.rows / count, width: spec.cols })),
        other => Err(ComputeError::shape(
            "experts",
            "a weight loaded as experts",
            format!("'{}', a {other:?}", spec.name),
        )),
    }
}

/// Experts without a gate have the shape of `up` twice.
///
/// # Errors
/// Weights of different numbers of experts.
pub fn expert_weights(gate: Option<&WeightSpec>, [up, down]: [&WeightSpec; 2]) -> Result<ExpertShapes> {
    let [(count, gate), (other, up), (third, down)] =
        [expert_weight(gate.unwrap_or(up))?, expert_weight(up)?, expert_weight(down)?];
    need(
        count == other && count == third,
        "experts",
        || format!("{count} experts in gate, up and down"),
        || format!("{other} and {third}"),
    )?;
    Ok(ExpertShapes { count, gate, up, down })
}

/// `biases` are the lengths of the vectors for gate, up and down.
///
/// # Errors
/// A vector that is not a value for every output of every expert.
pub fn expert_biases(weights: &ExpertShapes, biases: [usize; 3]) -> Result<()> {
    let ExpertShapes { count, gate, up, down } = *weights;
    for (what, (shape, width)) in
        ["gate", "up", "down"].into_iter().zip([gate, up, down].into_iter().zip(biases))
    {
        let what = format!("a bias of {what}");
        need_width("experts", &what, count * shape.rows, Shape { rows: 1, width })?;
    }
    Ok(())
}

/// Shapes of the buffers of an `experts`.
#[derive(Copy, Clone, Debug)]
pub struct ExpertBufs {
    pub x: Shape,
    pub routes: Shape,
    pub hidden: Shape,
    pub out: Shape,
}

/// # Errors
/// Rows or widths that do not meet, biases of experts without a gate, or a buffer in two roles.
pub fn experts(args: &Experts, weights: &ExpertShapes, bufs: &ExpertBufs) -> Result<()> {
    const VERB: &str = "experts";
    let ExpertShapes { count, gate, up, down } = *weights;
    need(gate == up, VERB, || format!("gate and up of one shape, {gate:?}"), || format!("{up:?}"))?;
    need(
        down.width == gate.rows,
        VERB,
        || format!("down of {} columns, as gate has rows", gate.rows),
        || format!("{}", down.width),
    )?;
    need(
        args.gate.is_some() || args.biases.is_none(),
        VERB,
        || "no biases, since there is no gate".into(),
        || "biases".into(),
    )?;
    need(
        (1..=count).contains(&args.top_k),
        VERB,
        || format!("1..={count} experts per row"),
        || args.top_k.to_string(),
    )?;
    need_rows(VERB, "an input", args.rows, bufs.x)?;
    need_width(VERB, "an input", gate.width, bufs.x)?;
    need_rows(VERB, "routes", args.rows, bufs.routes)?;
    need_width(VERB, "routes", args.top_k.saturating_mul(2), bufs.routes)?;
    need_rows(VERB, "a hidden buffer", args.rows.saturating_mul(args.top_k), bufs.hidden)?;
    need_width(VERB, "a hidden buffer", gate.rows, bufs.hidden)?;
    need_rows(VERB, "an output", args.rows, bufs.out)?;
    need_width(VERB, "an output", down.rows, bufs.out)?;
    let all = [args.x, args.routes, args.hidden, args.out];
    let twice = (1..all.len()).any(|i| all[..i].contains(&all[i]));
    need(!twice, VERB, || "four different buffers".into(), || "one buffer in two roles".into())
}

/// The expert that a float of a route names.
///
/// # Errors
/// No whole number, or one that is too large.
pub fn expert_id(id: f32, count: usize) -> Result<usize> {
    let at = id as usize;
    need(
        at < count && at as f32 == id,
        "experts",
        || format!("routes to experts below {count}"),
        || id.to_string(),
    )?;
    Ok(at)
}
