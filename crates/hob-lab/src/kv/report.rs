//! What a comparison of KV formats found, for people and as JSON. It must not measure.

use std::fmt;

use hob_plan::units::{show_bytes, show_count};
use hob_plan::{KvChoice, KvNoise, KvRule};
use hob_quant::KvFormat;
use serde::Serialize;

use crate::kl;

/// One format against f16.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Row {
    /// As `--kv` spells it.
    pub kv: String,
    pub bytes_per_token: u64,
    /// A is f16, B this format.
    pub divergence: kl::Report,
}

/// The result.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    pub model: String,
    pub ctx: usize,
    /// Windows compared, and windows there were: fewer are compared after an interrupt.
    pub chunks: usize,
    pub chunks_planned: usize,
    pub f16_bytes_per_token: u64,
    pub rows: Vec<Row>,
    /// What `auto` goes by, what it knew, and what it chose.
    pub rule: KvRule,
    pub noise: KvNoise,
    pub choice: KvChoice,
    pub seconds: f64,
}

impl Report {
    /// The measured noise of every layer, with what the rule makes of it.
    pub fn noise_table(&self) -> String {
        let mut out = format!(
            "noise by layer, measured on {} tokens in {:.1} s: standard deviation of a logit's error in nats (predicted, and \
             measured there), relative error of attention's output from V\n",
            self.noise.tokens, self.noise.seconds
        );
        out.push_str(
            "  layer  window  scale   |q|     |k|     q8: logits  there    V       q4: logits  there    V       auto\n",
        );
        for (layer, choice) in self.noise.layers.iter().zip(&self.choice.layers) {
            let window = layer.window.map_or("-".to_string(), |w| w.to_string());
            let (q, k) = (rms(&layer.q_norm), rms(&layer.k_norm));
            let side = |format| match layer.of(format) {
                Some(n) => format!("{:>10.4} {:>8.4} {:>7.4}", n.predicted, n.measured, n.v_output),
                None => format!("{:>10} {:>8} {:>7}", "-", "-", "-"),
            };
            out.push_str(&format!(
                "  {:>5}  {window:>6}  {:<6.4} {q:>6.2}  {k:>6.2}  {}  {}  {:>4}/{}\n",
                layer.layer,
                layer.scale,
                side(KvFormat::Q8),
                side(KvFormat::Q4),
                choice.k,
                choice.v
            ));
        }
        for format in hob_model::noise::MEASURED {
            if let Some((sigma, measured, kl, v)) = self.means(format) {
                let ratio = measured / sigma;
                out.push_str(&format!(
                    "  {format}: logit noise predicted {sigma:.4}, measured {measured:.4} (ratio {ratio:.2}); attention KL \
                     {kl:.5} a layer (noise squared / 4: {:.5}); V {v:.4}\n",
                    measured * measured / 4.0
                ));
            }
        }
        out
    }

    /// Root mean squares over layers: predicted and measured logit noise, mean attention KL, error from V.
    fn means(&self, format: KvFormat) -> Option<(f64, f64, f64, f64)> {
        let found: Vec<_> = self.noise.layers.iter().filter_map(|l| l.of(format)).collect();
        if found.is_empty() {
            return None;
        }
        let mean = |f: &dyn Fn(&hob_model::noise::FormatNoise) -> f32| {
            found.iter().map(|n| f64::from(f(n))).sum::<f64>() / found.len() as f64
        };
        let root = |f: &dyn Fn(&hob_model::noise::FormatNoise) -> f32| mean(&|n| f(n) * f(n)).sqrt();
        Some((
            root(&|n| n.predicted),
            root(&|n| n.measured),
            mean(&|n| n.attention_kl),
            root(&|n| n.v_output),
        ))
    }
}

fn rms(values: &[f32]) -> f32 {
    (values.iter().map(|v| v * v).sum::<f32>() / values.len().max(1) as f32).sqrt()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(first) = self.rows.first().map(|r| &r.divergence) else { return Ok(()) };
        let of = if self.chunks < self.chunks_planned {
            format!(" of {} (interrupted)", self.chunks_planned)
        } else {
            String::new()
        };
        let millions = show_count(self.noise.parameters / 1_000_000);
        let windows = if self.chunks == 1 { "window" } else { "windows" };
        let (model, chunks, ctx, scored) = (&self.model, self.chunks, self.ctx, first.scored_tokens);
        writeln!(f, "{model}: {millions} M weights")?;
        writeln!(
            f,
            "{chunks} {windows}{of} of {ctx} tokens, {scored} late positions compared; {:.0} s\n",
            self.seconds
        )?;
        writeln!(
            f,
            "  KV            a token   of f16     mean KL +/-          99 %     99.9 %   same top   perplexity   / f16"
        )?;
        let size = show_bytes(self.f16_bytes_per_token);
        let ppl = first.ppl_a.value;
        writeln!(f, "  {:<10} {size:>10}    100 % {:>67.4}", "f16", ppl)?;
        for row in &self.rows {
            let (d, size) = (&row.divergence, show_bytes(row.bytes_per_token));
            let share = row.bytes_per_token as f64 / self.f16_bytes_per_token.max(1) as f64 * 100.0;
            writeln!(
                f,
                "  {:<10} {size:>10} {share:>6.0} % {:>11.6} {:>9.6} {:>10.5} {:>10.5} {:>8.2} % {:>12.4} {:>7.4}",
                row.kv,
                d.kl_mean.value,
                d.kl_mean.error,
                d.kl_p99,
                d.kl_p999,
                d.same_top.value * 100.0,
                d.ppl_b.value,
                d.ppl_ratio.value
            )?;
        }
        writeln!(f)?;
        self.choice.reasons.iter().try_for_each(|reason| writeln!(f, "  auto: {reason}"))
    }
}
