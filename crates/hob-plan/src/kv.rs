//! Which bits K and V of each layer get: the measured noise of a model ([`KvNoise`], kept under `HOB_HOME/kv/`) and the
//! rule that turns it into a layout ([`KvRule`]). It must not know how the noise is measured, nor any architecture.

use std::path::{Path, PathBuf};

use hob_model::noise::{FormatNoise, LayerNoise};
use hob_model::{KvLayout, KvPair, ModelInfo};
use hob_quant::KvFormat;
use serde::{Deserialize, Serialize};

use crate::PlanError;

/// Folder under `HOB_HOME`.
pub const KV_FOLDER: &str = "kv";
/// Largest file of noise read: far above what 4096 layers write.
const MOST_BYTES: u64 = 64 << 20;

/// What every way of storing K and V would do to a model, layer by layer, as measured on a short prompt.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct KvNoise {
    /// [`KvNoise::VERSION`] of the program that measured.
    pub version: u32,
    /// `ModelFile::model_id`: config and weights.
    pub model_id: String,
    /// Weights of the model.
    pub parameters: u64,
    /// Layers of the model, with or without K and V.
    pub model_layers: usize,
    /// Tokens of the prompt.
    pub tokens: usize,
    pub seconds: f64,
    /// Layers with K and V, ascending.
    pub layers: Vec<LayerNoise>,
}

impl KvNoise {
    /// Counts changes of the measurement: older files are measured again.
    pub const VERSION: u32 = 1;

    /// The noise of the model `model_id`: `layers`, measured in `seconds` on a prompt of `tokens`.
    pub fn new(
        model_id: String,
        info: &ModelInfo,
        tokens: usize,
        seconds: f64,
        layers: Vec<LayerNoise>,
    ) -> Self {
        let (parameters, model_layers) = (info.parameters(), info.config.layers.len());
        Self { version: Self::VERSION, model_id, parameters, model_layers, tokens, seconds, layers }
    }

    /// Where the noise of a model is kept.
    pub fn path(home: &Path, model_id: &str) -> PathBuf {
        home.join(KV_FOLDER).join(format!("{model_id}.json"))
    }

    /// The noise of the model `model_id`, if it was measured by this version of the measurement. A damaged file is none.
    pub fn load(home: &Path, model_id: &str) -> Option<Self> {
        let bytes = hob_files::store::read_checked(&Self::path(home, model_id), MOST_BYTES).ok()??;
        let noise: Self = serde_json::from_slice(&bytes).ok()?;
        (noise.version == Self::VERSION && noise.model_id == model_id).then_some(noise)
    }

    /// Keeps it under `home`.
    ///
    /// # Errors
    /// [`PlanError::KvNoise`] when the folder cannot be written.
    pub fn save(&self, home: &Path) -> Result<(), PlanError> {
        let path = Self::path(home, &self.model_id);
        let failed = |problem: String| PlanError::KvNoise { path: path.clone(), problem };
        let bytes = serde_json::to_vec(self).map_err(|e| failed(e.to_string()))?;
        std::fs::create_dir_all(home.join(KV_FOLDER)).map_err(|e| failed(e.to_string()))?;
        hob_files::store::write_checked(&path, &bytes).map_err(|e| failed(e.to_string()))
    }
}

/// The largest noise that each number of bits may cause, layer by layer, and the divergence that 4 bits may cost in all.
///
/// The bounds on logit noise: 0.3 nats cost attention's weights a KL divergence of 0.02, 0.1 one of 0.002 (measured; noise
/// squared / 4). What reaches the model's own logits is rather the error of attention's output: [`KvRule::KL_PER_OUTPUT`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct KvRule {
    /// Largest predicted logit noise of a layer whose K gets 4 bits, in nats.
    pub k4: f32,
    /// The same for 8 bits; beyond it K stays f16.
    pub k8: f32,
    /// Largest relative error of attention's output of a layer whose V gets 4 bits.
    pub v4: f32,
    /// The same for 8 bits; beyond it V stays f16.
    pub v8: f32,
    /// Mean KL divergence from f16 that all 4-bit sides together may be expected to cost: they are given to the sides that
    /// save most bytes for it.
    pub budget: f32,
    /// Models with fewer weights get at least 8 bits.
    pub least_parameters: u64,
}

impl Default for KvRule {
    fn default() -> Self {
        Self { k4: 0.3, k8: 0.1, v4: 0.1, v8: 0.05, budget: 0.015, least_parameters: 1_000_000_000 }
    }
}

/// The rule's decision.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct KvChoice {
    /// One pair per layer of the model, for [`hob_model::Layout::kv`]; f16 where a layer has no K and V.
    #[serde(skip)]
    pub layout: KvLayout,
    /// Why, for people: the rule that decided most layers first.
    pub reasons: Vec<String>,
    /// Layers with K and V, ascending.
    pub layers: Vec<LayerChoice>,
    /// Mean KL divergence from f16 to be expected of this choice.
    pub predicted_kl: f32,
}

/// What one layer gets, with the numbers that decided.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerChoice {
    pub layer: usize,
    #[serde(serialize_with = "name")]
    pub k: KvFormat,
    #[serde(serialize_with = "name")]
    pub v: KvFormat,
    /// Predicted logit noise of K at 4 and 8 bits, in nats; `None` where vectors do not fit.
    pub sigma4: Option<f32>,
    pub sigma8: Option<f32>,
    /// Relative error of attention's output of K at 4 bits.
    pub k_output4: Option<f32>,
    /// The same of V at 4 and 8 bits.
    pub v_output4: Option<f32>,
    pub v_output8: Option<f32>,
    /// What bounds the bits from below, whatever the figures say.
    pub least: Least,
}

/// The fewest bits that a layer may get.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Least {
    /// Four: the figures decide.
    Four,
    /// Eight, because a window keeps the layer's cache small anyway.
    Window,
    /// Eight, because the model is small: it has few heads to average errors over.
    Small,
    /// Sixteen: head_dim is no whole number of groups.
    Unpackable,
}

impl KvRule {
    /// Mean KL divergence of a model's logits for the squares of relative output errors, summed over layers: measured 0.4
    /// on Gemma 3 270M, 0.12 to 0.24 on SmolLM2 135M, 0.03 to 0.07 on Qwen2.5 0.5B.
    pub const KL_PER_OUTPUT: f32 = 0.2;

    /// Bits for every layer and side. Same noise, same choice.
    pub fn choose(&self, noise: &KvNoise) -> KvChoice {
        let mut layers: Vec<LayerChoice> = noise.layers.iter().map(|l| self.wide(noise, l)).collect();
        self.spend(noise, &mut layers);
        let mut pairs = vec![KvPair::default(); noise.model_layers];
        let mut errors = 0.0;
        for (choice, layer) in layers.iter().zip(&noise.layers) {
            if let Some(pair) = pairs.get_mut(choice.layer) {
                *pair = KvPair { k: choice.k, v: choice.v };
            }
            errors += square(layer, choice.k, |f| f.k_output) + square(layer, choice.v, |f| f.v_output);
        }
        let reasons = self.reasons(noise, &layers);
        KvChoice { layout: KvLayout(pairs), reasons, layers, predicted_kl: errors * Self::KL_PER_OUTPUT }
    }

    /// 8 bits where they are quiet enough, 16 elsewhere.
    fn wide(&self, noise: &KvNoise, layer: &LayerNoise) -> LayerChoice {
        let of = |format, figure: fn(&FormatNoise) -> f32| layer.of(format).map(figure);
        let (sigma4, sigma8) = (of(KvFormat::Q4, |f| f.predicted), of(KvFormat::Q8, |f| f.predicted));
        let (v_output4, v_output8) = (of(KvFormat::Q4, |f| f.v_output), of(KvFormat::Q8, |f| f.v_output));
        let k_output4 = of(KvFormat::Q4, |f| f.k_output);
        let eight = |figure: Option<f32>, most| match figure {
            Some(f) if f <= most => KvFormat::Q8,
            _ => KvFormat::F16,
        };
        let (k, v) = (eight(sigma8, self.k8), eight(v_output8, self.v8));
        let least = self.least(noise, layer);
        LayerChoice { layer: layer.layer, k, v, sigma4, sigma8, k_output4, v_output4, v_output8, least }
    }

    /// Gives 4 bits to the sides that may have them, cheapest first, until the budget is used up.
    fn spend(&self, noise: &KvNoise, layers: &mut [LayerChoice]) {
        let mut offers: Vec<(f32, f32, usize, bool)> = Vec::new();
        for (i, (choice, layer)) in layers.iter().zip(&noise.layers).enumerate() {
            if choice.least != Least::Four {
                continue;
            }
            let vector = |f: KvFormat| (layer.kv_heads * f.vector_bytes(layer.head_dim)) as f32;
            let mut offer = |is_k: bool, now: KvFormat, figure: fn(&FormatNoise) -> f32| {
                let cost = square(layer, KvFormat::Q4, figure) - square(layer, now, figure);
                let cost = cost.max(0.0) * Self::KL_PER_OUTPUT;
                offers.push((cost / (vector(now) - vector(KvFormat::Q4)), cost, i, is_k));
            };
            if choice.sigma4.is_some_and(|s| s <= self.k4) {
                offer(true, choice.k, |f| f.k_output);
            }
            if choice.v_output4.is_some_and(|e| e <= self.v4) {
                offer(false, choice.v, |f| f.v_output);
            }
        }
        offers.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut left = self.budget;
        for (_, cost, i, is_k) in offers {
            // Not a number is never within a budget.
            if cost <= left {
                left -= cost;
                *(if is_k { &mut layers[i].k } else { &mut layers[i].v }) = KvFormat::Q4;
            }
        }
    }

    /// One line per group of layers that got the same for the same reason, the largest group first.
    fn reasons(&self, noise: &KvNoise, layers: &[LayerChoice]) -> Vec<String> {
        let mut groups: Vec<(&LayerChoice, Vec<&LayerChoice>)> = Vec::new();
        for choice in layers {
            match groups.iter_mut().find(|(g, _)| (g.k, g.v, g.least) == (choice.k, choice.v, choice.least)) {
                Some((_, members)) => members.push(choice),
                None => groups.push((choice, vec![choice])),
            }
        }
        groups.sort_by_key(|(_, members)| std::cmp::Reverse(members.len()));
        groups.iter().map(|(first, members)| self.reason(noise, first, members)).collect()
    }

    fn reason(&self, noise: &KvNoise, group: &LayerChoice, members: &[&LayerChoice]) -> String {
        let count = members.len();
        let layers = format!("{count} {}", if count == 1 { "layer" } else { "layers" });
        let most = |figure: fn(&LayerChoice) -> Option<f32>| {
            members.iter().filter_map(|c| figure(c)).fold(0.0f32, f32::max)
        };
        let (k4, v4) = (most(|c| c.sigma4), most(|c| c.v_output4));
        let (k8, v8) = (most(|c| c.sigma8), most(|c| c.v_output8));
        let four = format!(
            "with q4, logit noise up to {k4:.2} ({:.2} allowed) and output errors up to {v4:.3} ({:.3}), within a KL of {} in \
             all",
            self.k4, self.v4, self.budget
        );
        let eight = format!(
            "with q8, logit noise up to {k8:.3} ({:.2} allowed) and output errors up to {v8:.4} ({:.2})",
            self.k8, self.v8
        );
        let why = match group.least {
            Least::Unpackable => "head_dim is no whole number of groups of 32".to_string(),
            Least::Window | Least::Small if group.k == KvFormat::F16 || group.v == KvFormat::F16 => {
                format!("too noisy for q8: {eight}")
            }
            Least::Window => format!("a window keeps their cache small; {eight}"),
            Least::Small => {
                let millions = noise.parameters / 1_000_000;
                let all = noise.layers.iter().map(|l| {
                    square(l, KvFormat::Q4, |f| f.k_output) + square(l, KvFormat::Q4, |f| f.v_output)
                });
                let cost = all.sum::<f32>() * Self::KL_PER_OUTPUT;
                format!(
                    "{millions} M weights are few, and q4 everywhere would cost a KL of about {cost:.2}; {eight}"
                )
            }
            Least::Four if group.k == KvFormat::F16 || group.v == KvFormat::F16 => format!("{four}; {eight}"),
            Least::Four => four,
        };
        format!("KV {}/{} in {layers}: {why}", group.k, group.v)
    }

    /// What the layer's noise has no say in.
    fn least(&self, noise: &KvNoise, layer: &LayerNoise) -> Least {
        if !KvFormat::Q8.fits(layer.head_dim) {
            Least::Unpackable
        } else if layer.window.is_some() {
            Least::Window
        } else if noise.parameters < self.least_parameters {
            Least::Small
        } else {
            Least::Four
        }
    }
}

/// Square of a figure of a format; none for formats that lose nothing worth measuring.
fn square(layer: &LayerNoise, format: KvFormat, figure: fn(&FormatNoise) -> f32) -> f32 {
    layer.of(format).map_or(0.0, |f| figure(f).powi(2))
}

fn name<S: serde::Serializer>(format: &KvFormat, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_str(format.name())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::fake_root;

    /// A layer whose q4 noise is `(k, v)`; q8 makes a twelfth of it.
    fn layer(at: usize, (k, v): (f32, f32)) -> LayerNoise {
        let format = |format, part: f32| FormatNoise {
            format,
            k_error: 0.1 * part,
            v_error: 0.1 * part,
            predicted: k * part,
            measured: k * part,
            attention_kl: (k * part).powi(2) / 4.0,
            k_output: k * part / 2.0,
            v_output: v * part,
        };
        LayerNoise {
            layer: at,
            heads: 8,
            kv_heads: 2,
            head_dim: 64,
            scale: 0.125,
            softcap: None,
            window: None,
            q_norm: vec![8.0; 2],
            k_norm: vec![8.0; 2],
            formats: vec![format(KvFormat::Q8, 1.0 / 12.0), format(KvFormat::Q4, 1.0)],
        }
    }

    fn noise(layers: Vec<LayerNoise>) -> KvNoise {
        KvNoise {
            version: KvNoise::VERSION,
            model_id: "0123abcd".into(),
            parameters: 1_700_000_000,
            model_layers: layers.iter().map(|l| l.layer + 1).max().unwrap_or(0),
            tokens: 384,
            seconds: 0.5,
            layers,
        }
    }

    fn names(choice: &KvChoice) -> Vec<String> {
        choice.layout.0.iter().map(|p| format!("{}/{}", p.k, p.v)).collect()
    }

    #[test]
    fn measured_noise_picks_the_bits_of_each_side() {
        let rule = KvRule::default();
        let (k, v) = (rule.k4, rule.v4);
        let found = rule.choose(&noise(vec![
            layer(0, (k * 0.9, v * 0.9)),
            layer(1, (k * 1.1, v * 0.9)),
            layer(2, (k * 0.9, v * 1.1)),
            layer(3, (rule.k8 * 12.5, rule.v8 * 12.5)),
        ]));
        assert_eq!(names(&found), ["q4/q4", "q8/q4", "q4/q8", "f16/f16"]);
        assert_eq!(found.layers.iter().map(|l| l.layer).collect::<Vec<_>>(), [0, 1, 2, 3]);
        assert!(
            found.reasons.len() == 4 && found.reasons.iter().all(|r| r.contains("q4")),
            "{:?}",
            found.reasons
        );
    }

    #[test]
    fn four_bits_go_where_they_cost_least_until_the_budget_is_spent() {
        let rule = KvRule { k4: 1.0, v4: 1.0, ..KvRule::default() };
        // Output errors of K are half the noise: 0.2 * 0.15^2 = 0.0045 a layer, and 0.0005 for V.
        let found = rule.choose(&noise((0..6).map(|i| layer(i, (0.3, 0.05))).collect()));
        let count =
            |side: fn(&KvPair) -> KvFormat| found.layout.0.iter().filter(|p| side(p) == KvFormat::Q4).count();
        assert_eq!((count(|p| p.k), count(|p| p.v)), (2, 6), "{:?}", names(&found));
        assert!(found.predicted_kl <= rule.budget * 1.02, "{}", found.predicted_kl);
        // Noisy layers are passed over for quiet ones behind them.
        let mut layers: Vec<LayerNoise> = (0..6).map(|i| layer(i, (0.3, 0.9))).collect();
        layers.push(layer(6, (0.01, 0.01)));
        let found = rule.choose(&noise(layers));
        assert_eq!(names(&found)[6], "q4/q4");
        assert!(found.layout.0[..6].iter().all(|p| p.v == KvFormat::F16), "{:?}", names(&found));
        let free = KvRule { budget: f32::INFINITY, ..rule };
        assert_eq!(
            names(&free.choose(&noise((0..40).map(|i| layer(i, (0.3, 0.05))).collect()))),
            ["q4/q4"; 40]
        );
    }

    #[test]
    fn windows_odd_heads_and_layers_without_kv_have_rules_of_their_own() {
        let quiet = (0.01, 0.001);
        let window = LayerNoise { window: Some(512), ..layer(1, quiet) };
        let odd = LayerNoise { head_dim: 80, formats: vec![], ..layer(4, quiet) };
        let found = KvRule::default().choose(&noise(vec![window, layer(3, quiet), odd]));
        assert_eq!(names(&found), ["f16/f16", "q8/q8", "f16/f16", "q4/q4", "f16/f16"]);
        let all = found.reasons.join("; ");
        assert!(all.contains("window") && all.contains("head_dim"), "{all}");
    }

    #[test]
    fn small_models_keep_eight_bits_and_say_why_in_numbers() {
        let quiet = noise(vec![layer(0, (0.01, 0.001)), layer(1, (0.02, 0.002))]);
        let small = KvNoise { parameters: 135_000_000, ..quiet.clone() };
        let found = KvRule::default().choose(&small);
        assert_eq!(names(&found), ["q8/q8", "q8/q8"]);
        assert!(
            found.reasons[0].contains("135 M") && found.reasons[0].contains("0.002"),
            "{}",
            found.reasons[0]
        );
        assert_eq!(names(&KvRule::default().choose(&quiet)), ["q4/q4", "q4/q4"]);
    }

    #[test]
    fn noise_that_is_not_a_number_is_never_accepted() {
        let broken = layer(0, (f32::NAN, f32::INFINITY));
        assert_eq!(names(&KvRule::default().choose(&noise(vec![broken]))), ["f16/f16"]);
        assert_eq!(KvRule::default().choose(&noise(vec![])).layout, KvLayout::default());
    }

    #[test]
    fn measurements_survive_a_restart_and_damage_is_absence() {
        let dir = fake_root("kv-noise", &[]);
        let home = dir.join("not/yet");
        let kept = noise(vec![layer(0, (0.1, 0.02))]);
        assert_eq!(KvNoise::load(&home, &kept.model_id), None);
        kept.save(&home).expect("saves");
        assert_eq!(KvNoise::load(&home, &kept.model_id), Some(kept.clone()));
        assert_eq!(KvNoise::load(&home, "another"), None);
        KvNoise { version: KvNoise::VERSION + 1, ..kept.clone() }.save(&home).expect("saves");
        assert_eq!(KvNoise::load(&home, &kept.model_id), None, "another version of the measurement");
        kept.save(&home).expect("saves");
        let path = KvNoise::path(&home, &kept.model_id);
        let whole = std::fs::read(&path).expect("there");
        for at in [0, whole.len() / 2, whole.len() - 1] {
            let mut bytes = whole.clone();
            bytes[at] ^= 4;
            std::fs::write(&path, bytes).expect("writable");
            assert_eq!(KvNoise::load(&home, &kept.model_id), None, "byte {at}");
        }
    }

    #[test]
    fn a_home_that_is_a_file_is_an_error_with_its_name() {
        let dir = fake_root("kv-file", &[("home", "x")]);
        let error = noise(vec![]).save(&dir.join("home")).expect_err("a file is no folder");
        assert!(error.to_string().contains("0123abcd.json"), "{error}");
    }
}
