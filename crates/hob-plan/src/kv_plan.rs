//! The KV formats of a plan: what was asked for, measured or assumed, and which layers get what. Owns the wording; the rule
//! itself is in `kv.rs`, and what a layer can have is `hob_model::ModelInfo`'s to say.

use hob_model::{KvLayout, KvPair};
use hob_quant::KvFormat;
use serde::Serialize;

use crate::kv::{KvRule, LayerChoice};
use crate::plan::{Notes, Sizes, Subject};
use crate::units::{show_bytes, show_count};
use crate::wish::{KvWish, show_pair};

/// Models below this are hurt by 4 bits far more than larger ones.
const SMALL_PARAMETERS: u64 = 1_000_000_000;
/// What `auto` takes while nothing was measured: within reach of f16 on every model tried, at half the bytes.
const ASSUMED: KvPair = KvPair { k: KvFormat::Q8, v: KvFormat::Q8 };

/// Where a choice of formats comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum KvBasis {
    /// `--kv` named it.
    Asked,
    /// The noise of this very model was measured.
    Measured,
    /// `auto`, and nothing was measured yet.
    Assumed,
}

/// Layers that keep K and V alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KvGroup {
    /// As `--kv` spells it.
    pub kv: String,
    /// Such as `0-3, 5`.
    pub layers: String,
    pub count: usize,
}

/// How K and V will be kept.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KvPlan {
    /// As typed: `auto`, `q8`, `q8/q4`.
    pub wish: String,
    pub basis: KvBasis,
    /// In order of their first layer.
    pub groups: Vec<KvGroup>,
    /// Bytes that one token adds.
    pub bytes_per_token: u64,
    /// Why, in sentences.
    pub why: Vec<String>,
    /// The figures behind a measured choice.
    pub measured: Option<KvMeasured>,
}

/// What a measured choice rests on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KvMeasured {
    /// Tokens of the prompt it was measured with.
    pub tokens: usize,
    pub thresholds: KvRule,
    pub layers: Vec<LayerChoice>,
}

impl KvPlan {
    /// Decides, and gives the layout to load with.
    pub(crate) fn choose(model: &Subject<'_>, wish: KvWish, notes: &mut Notes) -> (Self, KvLayout) {
        let mut measured = None;
        let (basis, layout, why) = match (wish, model.noise) {
            (KvWish::Pair(pair), _) => {
                warn_of(pair, model, notes);
                (KvBasis::Asked, KvLayout::uniform(pair), vec!["asked for".to_string()])
            }
            (KvWish::Auto, Some(noise)) => {
                let rule = KvRule::default();
                let choice = rule.choose(noise);
                measured = Some(KvMeasured { tokens: noise.tokens, thresholds: rule, layers: choice.layers });
                (KvBasis::Measured, choice.layout, choice.reasons)
            }
            (KvWish::Auto, None) => {
                let why = format!(
                    "not measured yet; assuming {} (hob lab kv MODEL, or the first run, measures)",
                    show_pair(ASSUMED)
                );
                (KvBasis::Assumed, KvLayout::uniform(ASSUMED), vec![why])
            }
        };
        let groups = groups(model.sizes, &layout);
        let bytes_per_token = model.sizes.kv_bytes_per_token(&layout);
        let plan = Self { wish: wish.to_string(), basis, groups, bytes_per_token, why, measured };
        (plan, layout)
    }

    /// `q8`, or `q4 in 24 layers, q8 in 6`.
    pub fn label(&self) -> String {
        match self.groups.as_slice() {
            [] => "none".to_string(),
            [all] => all.kv.clone(),
            groups => {
                let parts = groups.iter().enumerate().map(|(i, g)| match (i, g.count) {
                    (0, 1) => format!("{} in 1 layer", g.kv),
                    (0, n) => format!("{} in {n} layers", g.kv),
                    (_, n) => format!("{} in {n}", g.kv),
                });
                parts.collect::<Vec<_>>().join(", ")
            }
        }
    }

    /// Lines for people.
    pub(crate) fn table(&self) -> String {
        let mut out = match &self.measured {
            Some(m) => format!("KV ({}, measured on {} tokens)\n", self.wish, show_count(m.tokens as u64)),
            None => "KV\n".to_string(),
        };
        for g in &self.groups {
            let what = match (self.groups.len(), g.count) {
                (1, 1) => "the layer with K and V".to_string(),
                (1, n) => format!("all {n} layers with K and V"),
                (_, 1) => format!("layer {}", g.layers),
                _ => format!("layers {}", g.layers),
            };
            out.push_str(&format!("  {:<9} {what}\n", g.kv));
        }
        out.push_str(&format!("  {} a token\n", show_bytes(self.bytes_per_token)));
        for why in &self.why {
            match self.basis {
                KvBasis::Measured => out.push_str(&format!("  {why}\n")),
                _ => out.push_str(&format!("  kv {}: {why}\n", self.wish)),
            }
        }
        out
    }
}

impl KvMeasured {
    /// The figures of every layer beside what is allowed.
    pub(crate) fn table(&self) -> String {
        let t = &self.thresholds;
        let mut out = format!(
            "KV noise by layer, measured on {} tokens (allowed: logits {} nats, output {})\n",
            show_count(self.tokens as u64),
            t.k4,
            t.v4
        );
        out.push_str("  layer  K      V        logits q4  logits q8  output q4  output q8\n");
        let figure = |f: Option<f32>| f.map_or("-".to_string(), |v| format!("{v:.4}"));
        for l in &self.layers {
            out.push_str(&format!(
                "  {:>5}  {:<6} {:<6} {:>11} {:>10} {:>10} {:>10}\n",
                l.layer,
                l.k,
                l.v,
                figure(l.sigma4),
                figure(l.sigma8),
                figure(l.v_output4),
                figure(l.v_output8)
            ));
        }
        out
    }
}

/// What the user should know about a format that was asked for.
fn warn_of(pair: KvPair, model: &Subject<'_>, notes: &mut Notes) {
    let four_bits = |f: KvFormat| matches!(f, KvFormat::Q4 | KvFormat::Asym4);
    let parameters = model.sizes.parameters();
    if (four_bits(pair.k) || four_bits(pair.v)) && parameters < SMALL_PARAMETERS {
        notes.warnings.push(format!(
            "--kv {} on a model of {} million parameters: 4 bits hurt models below 1,000 million, q8 does not (hob lab kv \
             measures it)",
            show_pair(pair),
            show_count(parameters / 1_000_000)
        ));
    }
    let layout = KvLayout::uniform(pair);
    let given = groups(model.sizes, &layout);
    let other: Vec<String> = given
        .iter()
        .filter(|g| g.kv != show_pair(pair))
        .map(|g| format!("layers {} keep {}", g.layers, g.kv))
        .collect();
    if !other.is_empty() {
        notes.reasons.push(format!(
            "{} (windowed layers are small and keep 8 bits; heads that are no multiple of 32 keep f16)",
            other.join("; ")
        ));
    }
}

/// Layers by what they get.
fn groups(sizes: &dyn Sizes, layout: &KvLayout) -> Vec<KvGroup> {
    let mut found: Vec<(KvPair, Vec<usize>)> = Vec::new();
    for layer in 0..sizes.layers() {
        let Some(pair) = sizes.kv_pair(layout, layer) else { continue };
        match found.iter_mut().find(|(p, _)| *p == pair) {
            Some((_, layers)) => layers.push(layer),
            None => found.push((pair, vec![layer])),
        }
    }
    let group = |(pair, layers): (KvPair, Vec<usize>)| KvGroup {
        kv: show_pair(pair),
        layers: ranges(&layers),
        count: layers.len(),
    };
    found.into_iter().map(group).collect()
}

/// Ascending numbers as `0-3, 5`.
fn ranges(numbers: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &n in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == n => *last = n,
            _ => runs.push((n, n)),
        }
    }
    let show = |&(a, b): &(usize, usize)| if a == b { a.to_string() } else { format!("{a}-{b}") };
    runs.iter().map(show).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_told_in_runs() {
        assert_eq!(ranges(&[0, 1, 2, 3, 5, 7, 8]), "0-3, 5, 7-8");
        assert_eq!(ranges(&[]), "");
    }
}
