//! What a bench found, for people and as JSON. It must not measure.

use std::fmt;

use hob_model::{KvLayout, Layout};
use hob_plan::GpuPlan;
pub use hob_plan::Quantiles;
use hob_plan::units::{show_bytes, show_figures};
use serde::Serialize;

use super::Subject;

/// What a sample does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Test {
    /// A prompt of `tokens`, logits of the last one.
    Prefill { tokens: usize },
    /// `tokens` steps of one token, each with a greedy pick.
    Decode { tokens: usize },
    /// `steps` steps of `rows` tokens of one sequence, each with a greedy pick: what checking drafts costs.
    Check { rows: usize, steps: usize },
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prefill { tokens } => f.pad(&format!("pp{tokens}")),
            Self::Decode { tokens } => f.pad(&format!("tg{tokens}")),
            Self::Check { rows, .. } => f.pad(&format!("rows{rows}")),
        }
    }
}

/// Where the K and V below the depth come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Kv {
    /// Positions computed from tokens.
    pub prefilled: usize,
    /// Positions filled with random rows, because computing them would have taken too long.
    pub synthetic: usize,
}

impl fmt::Display for Kv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.prefilled, self.synthetic) {
            (0, 0) => f.write_str("empty"),
            (_, 0) => f.write_str("prefilled"),
            (0, _) => f.write_str("synthetic"),
            (real, made_up) => write!(f, "{real} prefilled, {made_up} synthetic"),
        }
    }
}

/// The machine around a sample.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Limit {
    /// Read bandwidth just before and just after, on as many threads.
    pub before_gb_per_s: f64,
    pub after_gb_per_s: f64,
    /// One-way time of a cache line between two threads.
    pub ping_pong_nanos: Option<f64>,
}

impl Limit {
    pub fn gb_per_s(&self) -> f64 {
        (self.before_gb_per_s + self.after_gb_per_s) / 2.0
    }
}

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Sample {
    pub tokens_per_s: f64,
    /// Decode and checks: bytes that had to be read per second, 10^9. Prefill: `None`.
    pub gb_per_s: Option<f64>,
    /// 10^9 multiply-adds per second.
    pub gmacs_per_s: f64,
    /// Dispatches of a GPU in one step; `None` without one, and for prefill.
    pub dispatches_per_step: Option<f64>,
    pub limit: Limit,
}

impl Sample {
    /// Share of the read bandwidth of the same second, in percent.
    pub fn percent(&self) -> Option<f64> {
        let limit = self.limit.gb_per_s();
        self.gb_per_s.filter(|_| limit > 0.0).map(|gb| gb / limit * 100.0)
    }
}

/// All samples of one test.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    pub threads: usize,
    /// How K and V are kept, as `--kv` spells it.
    pub kv_format: String,
    /// Bytes that one position adds to the cache.
    pub kv_bytes_per_token: u64,
    pub test: Test,
    pub depth: usize,
    pub kv: Kv,
    pub tokens_per_s: Quantiles,
    pub gb_per_s: Option<Quantiles>,
    pub percent_of_limit: Option<Quantiles>,
    pub gmacs_per_s: Quantiles,
    /// Dispatches of a step, and layers that they serve.
    pub dispatches_per_step: Option<f64>,
    pub gpu_layers: Option<usize>,
    /// Decode where a GPU has a part: what the bandwidths probed in this run foretell.
    pub expected_tokens_per_s: Option<f64>,
    pub samples: Vec<Sample>,
}

impl Row {
    pub fn new(threads: usize, test: Test, depth: usize, kv: Kv, samples: Vec<Sample>) -> Self {
        let all = |f: &dyn Fn(&Sample) -> Option<f64>| samples.iter().filter_map(f).collect::<Vec<f64>>();
        let none = Quantiles { p10: 0.0, p50: 0.0, p90: 0.0 };
        Self {
            threads,
            kv_format: String::new(),
            kv_bytes_per_token: 0,
            test,
            depth,
            kv,
            tokens_per_s: quantiles(&all(&|s| Some(s.tokens_per_s))).unwrap_or(none),
            gb_per_s: quantiles(&all(&|s| s.gb_per_s)),
            percent_of_limit: quantiles(&all(&Sample::percent)),
            gmacs_per_s: quantiles(&all(&|s| Some(s.gmacs_per_s))).unwrap_or(none),
            dispatches_per_step: quantiles(&all(&|s| s.dispatches_per_step)).map(|q| q.p50),
            gpu_layers: None,
            expected_tokens_per_s: None,
            samples,
        }
    }

    /// The same, with the KV format that was measured and the bytes it takes per position.
    pub fn with_format(self, (name, kv_bytes_per_token): (&str, u64)) -> Self {
        Self { kv_format: name.to_string(), kv_bytes_per_token, ..self }
    }
}

/// 10th, 50th and 90th percentile by linear interpolation between samples; `None` for none.
fn quantiles(values: &[f64]) -> Option<Quantiles> {
    let mut v = values.to_vec();
    v.sort_by(f64::total_cmp);
    let last = v.len().checked_sub(1)?;
    let at = |share: f64| {
        let place = last as f64 * share;
        let (low, high) = (v[place.floor() as usize], v[place.ceil() as usize]);
        low + (high - low) * place.fract()
    };
    Some(Quantiles { p10: at(0.1), p50: at(0.5), p90: at(0.9) })
}

/// Heading of [`Row`]'s lines.
pub const HEADER: &str = "threads  KV        B/token  test      depth      tok/s: p10      p50      p90     GB/s    limit    %  ns    from";

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let q = self.tokens_per_s;
        let (a, b, c) = (show_figures(q.p10), show_figures(q.p50), show_figures(q.p90));
        let dash = || "-".to_string();
        let gb = self.gb_per_s.map_or_else(dash, |q| show_figures(q.p50));
        let percent = self.percent_of_limit.map_or_else(dash, |q| format!("{:.0}", q.p50));
        let middle = |of: &dyn Fn(&Sample) -> Option<f64>| {
            quantiles(&self.samples.iter().filter_map(of).collect::<Vec<_>>()).map(|q| q.p50)
        };
        let limit = middle(&|s| Some(s.limit.gb_per_s())).map_or_else(dash, show_figures);
        let nanos = middle(&|s| s.limit.ping_pong_nanos).map_or_else(dash, |n| format!("{n:.0}"));
        write!(
            f,
            "{:>7}  {:<8} {:>8}  {:<7} {:>7} {a:>15} {b:>8} {c:>8} {gb:>8} {limit:>8} {percent:>4} {nanos:>4}   {}",
            self.threads, self.kv_format, self.kv_bytes_per_token, self.test, self.depth, self.kv
        )?;
        if let Test::Prefill { .. } = self.test
            && self.gpu_layers.is_some()
        {
            write!(f, ", {} TFLOP/s", show_figures(self.gmacs_per_s.p50 * 2e-3))?;
        }
        if let Some(dispatches) = self.dispatches_per_step {
            write!(f, ", {} dispatches a step", show_figures(dispatches))?;
            if let Some(layers) = self.gpu_layers.filter(|&n| n > 0) {
                write!(f, " ({} a layer)", show_figures(dispatches / layers as f64))?;
            }
        }
        match self.expected_tokens_per_s {
            Some(expected) => write!(f, ", forecast {}", show_figures(expected)),
            None => Ok(()),
        }
    }
}

/// Everything a bench found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Version of hob.
    pub hob: String,
    pub model: String,
    pub description: String,
    pub isa: String,
    /// What was on a GPU.
    pub gpu: Option<GpuPlan>,
    pub parameters: u64,
    pub weights_bytes: u64,
    /// Bytes of one decode step at position 0.
    pub bytes_per_token: u64,
    pub rows: Vec<Row>,
    /// Depths that did not fit the context.
    pub left_out: Vec<usize>,
}

impl Report {
    pub fn new(subject: &Subject<'_>) -> Self {
        let info = &subject.info;
        Self {
            hob: env!("CARGO_PKG_VERSION").to_string(),
            model: subject.name.clone(),
            description: subject.description.clone(),
            isa: String::new(),
            gpu: None,
            parameters: info.parameters(),
            weights_bytes: info.footprint(&Layout::new(1)).weights,
            bytes_per_token: info.bytes_per_token(0, &KvLayout::default()),
            rows: Vec::new(),
            left_out: Vec::new(),
        }
    }

    /// One line about the model.
    pub fn title(&self) -> String {
        format!(
            "{}: {} of weights, {} read per token",
            if self.description.is_empty() { &self.model } else { &self.description },
            show_bytes(self.weights_bytes),
            show_bytes(self.bytes_per_token),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(tokens_per_s: f64, gb: Option<f64>, before: f64, after: f64) -> Sample {
        let limit = Limit { before_gb_per_s: before, after_gb_per_s: after, ping_pong_nanos: Some(50.0) };
        Sample { tokens_per_s, gb_per_s: gb, gmacs_per_s: 1.0, dispatches_per_step: None, limit }
    }

    #[test]
    fn percent_is_of_the_limit_around_the_sample() {
        assert_eq!(sample(1.0, Some(30.0), 50.0, 70.0).percent(), Some(50.0));
        assert_eq!(sample(1.0, None, 50.0, 70.0).percent(), None);
        assert_eq!(sample(1.0, Some(30.0), 0.0, 0.0).percent(), None);
    }

    #[test]
    fn quantiles_interpolate_and_ignore_order() {
        assert_eq!(quantiles(&[]), None);
        let one = quantiles(&[4.0]).expect("one");
        assert_eq!((one.p10, one.p50, one.p90), (4.0, 4.0, 4.0));
        let five = quantiles(&[5.0, 1.0, 4.0, 2.0, 3.0]).expect("five");
        assert!((five.p10 - 1.4).abs() < 1e-12 && five.p50 == 3.0 && (five.p90 - 4.6).abs() < 1e-12);
    }

    #[test]
    fn lines_stand_under_their_headings() {
        let kv = Kv { prefilled: 2048, synthetic: 0 };
        let samples = vec![sample(100.0, Some(30.0), 40.0, 40.0); 3];
        let decode = Row::new(2, Test::Decode { tokens: 64 }, 2048, kv, samples);
        let decode = decode.with_format(("q8/q4", 9360)).to_string();
        for part in ["q8/q4", "9360", "tg64", "2048", "100", "30.0", "40.0", "75", "50", "prefilled"] {
            assert!(decode.contains(part), "{part}: {decode}");
        }
        let ends = |line: &str, word: &str| line.find(word).map(|at| at + word.len());
        assert_eq!(ends(HEADER, "limit"), ends(&decode, "40.0"), "\n{HEADER}\n{decode}");
        assert_eq!(ends(HEADER, "B/token"), ends(&decode, "9360"), "\n{HEADER}\n{decode}");
        let samples = vec![sample(1000.0, None, 40.0, 40.0)];
        let prefill = Row::new(2, Test::Prefill { tokens: 512 }, 0, kv, samples).to_string();
        assert!(prefill.contains("pp512") && prefill.contains('-'), "{prefill}");
    }
}
