//! KV formats of one model side by side on a text: how far each strays from f16, and what each costs in bytes. The weights
//! are loaded once. Scored are the last positions of long windows, whose attention reads mostly packed rows. It must not
//! know how formats are stored, nor which one to recommend: that is `hob_plan::KvRule`'s.

mod report;

use std::sync::Arc;
use std::time::Instant;

use hob_compute::Compute;
use hob_engine::calibration_tokens;
use hob_files::ModelFile;
use hob_model::{KvLayout, Model, ModelInfo, noise};
use hob_plan::{KvChoice, KvNoise, KvRule, KvWish};
use hob_text::Tokenizer;

use crate::eval::{EvalConfig, EvalError, Scorer, Watch, Windows, by_rows, title};
use crate::kl;
pub use report::{Report, Row};

/// What to compare, on which part of a text.
#[derive(Clone, Debug, PartialEq)]
pub struct KvConfig {
    pub eval: EvalConfig,
    /// Positions scored of each window, its last.
    pub scored: usize,
    pub formats: Vec<KvWish>,
    /// What `auto` goes by.
    pub rule: KvRule,
}

impl KvConfig {
    /// Bytes of logits of the f16 run that are kept beside the model.
    pub fn kept_bytes(&self, vocab: usize) -> u64 {
        self.scored.min(self.eval.ctx) as u64 * vocab as u64 * 4
    }
}

/// Compares every format of `config` with f16 on `text`. On an exact device K and V are floats that went through each
/// format's codec, against floats that did not: what the formats cost when nothing else rounds. Elsewhere the smallest
/// change also moves the rounding of int8 activations, which puts a floor under every divergence; bf16 shows it. `known`
/// is what an earlier run measured of this very model; else it is measured now. The model is loaded on `dev` and unloaded again.
///
/// # Errors
/// A text shorter than one window, no formats; what file, tokenizer, model or device say; [`EvalError::Stopped`] before
/// the first window is done (later, the report says how far it came).
pub fn run(
    config: &KvConfig,
    file: &Arc<ModelFile>,
    text: &str,
    known: Option<KvNoise>,
    dev: &mut dyn Compute,
    watch: &mut dyn Watch,
) -> Result<Report, EvalError> {
    if config.formats.is_empty() {
        let (expected, found) = ("at least one format, such as q8 or auto".into(), "none".into());
        return Err(EvalError::Config { field: "--kv", expected, found });
    }
    let tokenizer = Tokenizer::from_model(file)?;
    let windows = Windows::new(&config.eval, text, &tokenizer)?.last(config.scored);
    let start = Instant::now();
    let mut scorer = Scorer::load(file, dev, (config.eval.ctx, config.eval.threads), watch)?;
    let result = compare(config, &mut scorer, &windows, dev, watch, |scorer, dev| match known {
        Some(noise) => Ok(noise),
        None => measured(file, &tokenizer, scorer.model_mut(), dev),
    });
    scorer.unload(dev)?;
    let mut report = result?;
    report.model = title(file);
    report.seconds = start.elapsed().as_secs_f64();
    Ok(report)
}

/// The noise of a model that is loaded in f16, measured on the calibration prompt.
pub(crate) fn measured(
    file: &ModelFile,
    tokenizer: &Tokenizer,
    model: &mut Model,
    dev: &mut dyn Compute,
) -> Result<KvNoise, EvalError> {
    let most = model.info().config.ctx_train.min(model.layout().chunk_rows);
    let tokens = calibration_tokens(tokenizer, most)?;
    let start = Instant::now();
    let layers = noise::measure(model, dev, &tokens)?;
    let seconds = start.elapsed().as_secs_f64();
    Ok(KvNoise::new(file.model_id(), model.info(), tokens.len(), seconds, layers))
}

/// The formats of every layer that a wish stands for, as `choice` says of `auto`.
pub(crate) fn layout(wish: KvWish, choice: &KvChoice) -> KvLayout {
    match wish {
        KvWish::Auto => choice.layout.clone(),
        KvWish::Pair(pair) => KvLayout::uniform(pair),
    }
}

/// A format of the comparison.
struct Candidate {
    name: String,
    layout: KvLayout,
    tokens: Vec<kl::Token>,
}

fn compare(
    config: &KvConfig,
    scorer: &mut Scorer,
    windows: &Windows,
    dev: &mut dyn Compute,
    watch: &mut dyn Watch,
    noise: impl FnOnce(&mut Scorer, &mut dyn Compute) -> Result<KvNoise, EvalError>,
) -> Result<Report, EvalError> {
    let noise = noise(scorer, dev)?;
    let choice = config.rule.choose(&noise);
    let candidate =
        |w: &KvWish| Candidate { name: w.to_string(), layout: layout(*w, &choice), tokens: Vec::new() };
    let mut candidates: Vec<Candidate> = config.formats.iter().map(candidate).collect();
    let mut kept = Vec::new();
    let mut done = 0;
    'windows: for i in 0..windows.count() {
        scorer.relayout(dev, &KvLayout::default())?;
        kept.clear();
        scorer.window(dev, windows, i, &mut |_, logits| {
            kept.extend_from_slice(logits);
            Ok(())
        })?;
        let mut round = Vec::with_capacity(candidates.len());
        for candidate in &candidates {
            if watch.stop() {
                break 'windows;
            }
            scorer.relayout(dev, &candidate.layout)?;
            round.push(against(config.eval.threads, &kept, scorer, (windows, i), dev)?);
        }
        candidates.iter_mut().zip(round).for_each(|(c, tokens)| c.tokens.extend(tokens));
        done += 1;
        watch.window(done, windows.count(), &running(&candidates));
    }
    if done == 0 {
        return Err(EvalError::Stopped);
    }
    let info = scorer.model().info();
    Ok(Report {
        ctx: config.eval.ctx,
        chunks: done,
        chunks_planned: windows.count(),
        rows: rows(info, &candidates),
        f16_bytes_per_token: info.kv_bytes_per_token(&KvLayout::default()),
        rule: config.rule,
        noise,
        choice,
        ..Report::default()
    })
}

/// Window `i` with the scorer's present format, against the rows that f16 gave.
fn against(
    threads: usize,
    f16: &[f32],
    scorer: &mut Scorer,
    (windows, i): (&Windows, usize),
    dev: &mut dyn Compute,
) -> Result<Vec<kl::Token>, EvalError> {
    let (vocab, first) = (scorer.vocab(), windows.scored().start);
    let mut tokens = Vec::with_capacity(windows.scored().len());
    scorer.window(dev, windows, i, &mut |position, logits| {
        let a = &f16[(position - first) * vocab..][..logits.len()];
        tokens.extend(by_rows(threads, logits.len() / vocab, |r| {
            let row = r * vocab..(r + 1) * vocab;
            kl::Token::of(&a[row.clone()], &logits[row], windows.target(i, position + r))
        }));
        Ok(())
    })?;
    Ok(tokens)
}

fn rows(info: &ModelInfo, candidates: &[Candidate]) -> Vec<Row> {
    let row = |c: &Candidate| Row {
        kv: c.name.clone(),
        bytes_per_token: info.kv_bytes_per_token(&c.layout),
        divergence: kl::Report::of(&c.tokens),
    };
    candidates.iter().map(row).collect()
}

/// `q8 0.0004, q4 0.031`
fn running(candidates: &[Candidate]) -> String {
    let mean = |c: &Candidate| c.tokens.iter().map(|t| t.kl).sum::<f64>() / c.tokens.len().max(1) as f64;
    let parts: Vec<String> = candidates.iter().map(|c| format!("{} {:.4}", c.name, mean(c))).collect();
    format!("mean KL {}", parts.join(", "))
}
