//! Perplexity: how surprised a model is by a text, as llama.cpp's `perplexity` computes it. It must not know how logits
//! come to be.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use hob_compute::Compute;
use hob_files::ModelFile;
use hob_text::Tokenizer;
use serde::Serialize;

use crate::eval::{EvalConfig, EvalError, LogSum, Scorer, Watch, Windows, by_rows, mean_and_error, title};

/// The result.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    pub model: String,
    pub text_tokens: usize,
    pub ctx: usize,
    pub stride: Option<usize>,
    /// Windows scored, and windows there were: fewer are scored after an interrupt.
    pub chunks: usize,
    pub chunks_planned: usize,
    pub scored_tokens: usize,
    /// exp of the mean negative log-probability, and its standard error.
    pub ppl: f64,
    pub ppl_error: f64,
    /// Mean negative log-probability, in nats per token.
    pub nll: f64,
    pub nll_error: f64,
    /// Perplexity after each window.
    pub running: Vec<f64>,
    pub seconds: f64,
    /// Tokens fed in a second of computing.
    pub tokens_per_s: f64,
}

/// Scores `text`. The model is loaded on `dev` and unloaded again.
///
/// # Errors
/// A text shorter than one window, what file, tokenizer, model or device say; [`EvalError::Stopped`] before the first
/// window is done (later, the report says how far it came).
pub fn run(
    config: &EvalConfig,
    file: &Arc<ModelFile>,
    text: &str,
    dev: &mut dyn Compute,
    watch: &mut dyn Watch,
) -> Result<Report, EvalError> {
    let windows = Windows::new(config, text, &Tokenizer::from_model(file)?)?;
    let mut scorer = Scorer::load(file, dev, (config.ctx, config.threads), watch)?;
    let result = score(config, &windows, &mut scorer, dev, watch);
    scorer.unload(dev)?;
    let (sums, seconds) = result?;
    let (nll, nll_error) = mean_and_error(sums.nll, sums.squares, sums.scored);
    let ppl = nll.exp();
    let chunks = sums.running.len();
    Ok(Report {
        model: title(file),
        text_tokens: windows.text_tokens(),
        ctx: config.ctx,
        stride: config.stride,
        chunks,
        chunks_planned: windows.count(),
        scored_tokens: sums.scored,
        ppl,
        ppl_error: ppl * nll_error,
        nll,
        nll_error,
        running: sums.running,
        seconds,
        tokens_per_s: (chunks * (config.ctx - 1)) as f64 / seconds.max(1e-9),
    })
}

#[derive(Default)]
struct Sums {
    nll: f64,
    squares: f64,
    scored: usize,
    running: Vec<f64>,
}

fn score(
    config: &EvalConfig,
    windows: &Windows,
    scorer: &mut Scorer,
    dev: &mut dyn Compute,
    watch: &mut dyn Watch,
) -> Result<(Sums, f64), EvalError> {
    let vocab = scorer.vocab();
    let mut sums = Sums::default();
    let start = Instant::now();
    for i in 0..windows.count() {
        if watch.stop() {
            break;
        }
        scorer.window(dev, windows, i, &mut |position, logits| {
            let nll = by_rows(config.threads, logits.len() / vocab, |r| {
                let row = &logits[r * vocab..][..vocab];
                // A token beyond the model's rows has no probability.
                let target = row.get(windows.target(i, position + r) as usize).copied();
                -LogSum::of(row).log_p(target.unwrap_or(f32::NEG_INFINITY))
            });
            sums.nll += nll.iter().sum::<f64>();
            sums.squares += nll.iter().map(|v| v * v).sum::<f64>();
            sums.scored += nll.len();
            Ok(())
        })?;
        let ppl = (sums.nll / sums.scored as f64).exp();
        sums.running.push(ppl);
        watch.window(i + 1, windows.count(), &format!("perplexity {ppl:.4}"));
    }
    if sums.scored == 0 { Err(EvalError::Stopped) } else { Ok((sums, start.elapsed().as_secs_f64())) }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: perplexity {:.4} +/- {:.4}", self.model, self.ppl, self.ppl_error)?;
        let of = if self.chunks < self.chunks_planned {
            format!(" of {} (interrupted)", self.chunks_planned)
        } else {
            String::new()
        };
        let step = self.stride.map_or(String::new(), |s| format!(" every {s}"));
        writeln!(
            f,
            "{} windows{of} of {} tokens{step}, {} tokens scored of a text of {}; {:.1} tok/s",
            self.chunks, self.ctx, self.scored_tokens, self.text_tokens, self.tokens_per_s
        )
    }
}
