//! Divergence of one model from another on a text: how much of what A knows does B still say? Figures and their errors
//! are those of llama.cpp's `perplexity --kl-divergence`, computed from full rows of logits in f64. Both models lie in
//! memory together, or A's logits wait in a temporary file until B has taken A's place: the figures are the same. It
//! must not know how logits come to be.

mod spill;
mod stats;

use std::sync::Arc;
use std::time::Instant;

use hob_compute::Compute;
use hob_files::ModelFile;
use hob_text::Tokenizer;

use crate::eval::{EvalConfig, EvalError, Scorer, Watch, Windows, by_rows, same_tokenizer, title};
use spill::Spill;
pub use stats::{DECIDED, Estimate, Report, Token};

/// Where the two models are while they are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Both in memory.
    Together,
    /// One after the other.
    Apart,
}

/// The reference, and the model that is judged by it.
pub struct Pair {
    pub a: Arc<ModelFile>,
    pub b: Arc<ModelFile>,
}

impl Pair {
    /// The windows of `text`, once both are known to read it the same way.
    ///
    /// # Errors
    /// [`EvalError::Tokenizers`]; as [`Windows::new`].
    fn windows(&self, config: &EvalConfig, text: &str) -> Result<Windows, EvalError> {
        let tokenizer = Tokenizer::from_model(&self.a)?;
        same_tokenizer(&tokenizer, &Tokenizer::from_model(&self.b)?)?;
        Windows::new(config, text, &tokenizer)
    }
}

/// KL(A||B) of every scored token of `text`. Models are loaded on `dev` and unloaded again.
///
/// # Errors
/// Different tokenizers or rows of logits, a text shorter than one window, what files, models, device or disk say;
/// [`EvalError::Stopped`] before a window is compared (later, the report says how far it came).
pub fn run(
    config: &EvalConfig,
    pair: &Pair,
    text: &str,
    placement: Placement,
    dev: &mut dyn Compute,
    watch: &mut dyn Watch,
) -> Result<Report, EvalError> {
    let windows = pair.windows(config, text)?;
    let start = Instant::now();
    let mut work = Work { config, windows: &windows, tokens: Vec::new(), chunks: 0 };
    match placement {
        Placement::Together => work.together(pair, dev, watch)?,
        Placement::Apart => work.apart(pair, dev, watch)?,
    }
    if work.tokens.is_empty() {
        return Err(EvalError::Stopped);
    }
    let mut report = Report::of(&work.tokens);
    (report.a, report.b) = (title(&pair.a), title(&pair.b));
    (report.ctx, report.stride) = (config.ctx, config.stride);
    (report.chunks, report.chunks_planned) = (work.chunks, windows.count());
    report.seconds = start.elapsed().as_secs_f64();
    Ok(report)
}

struct Work<'a> {
    config: &'a EvalConfig,
    windows: &'a Windows,
    tokens: Vec<Token>,
    chunks: usize,
}

impl Work<'_> {
    fn load(
        &self,
        file: &Arc<ModelFile>,
        dev: &mut dyn Compute,
        watch: &mut dyn Watch,
    ) -> Result<Scorer, EvalError> {
        Scorer::load(file, dev, (self.config.ctx, self.config.threads), watch)
    }

    fn together(
        &mut self,
        pair: &Pair,
        dev: &mut dyn Compute,
        watch: &mut dyn Watch,
    ) -> Result<(), EvalError> {
        let mut a = self.load(&pair.a, dev, watch)?;
        let mut b = match self.load(&pair.b, dev, watch) {
            Ok(b) => b,
            Err(error) => {
                a.unload(dev)?;
                return Err(error);
            }
        };
        let result = self.side_by_side(&mut a, &mut b, dev, watch);
        a.unload(dev)?;
        b.unload(dev)?;
        result
    }

    fn side_by_side(
        &mut self,
        a: &mut Scorer,
        b: &mut Scorer,
        dev: &mut dyn Compute,
        watch: &mut dyn Watch,
    ) -> Result<(), EvalError> {
        same_rows(a.vocab(), b)?;
        let vocab = a.vocab();
        // A's rows of one window; B's are looked at as they come.
        let mut kept = Vec::with_capacity(self.windows.scored().len() * vocab);
        for i in 0..self.windows.count() {
            if watch.stop() {
                break;
            }
            kept.clear();
            a.window(dev, self.windows, i, &mut |_, logits| {
                kept.extend_from_slice(logits);
                Ok(())
            })?;
            let first = self.windows.scored().start;
            b.window(dev, self.windows, i, &mut |position, logits| {
                let rows = &kept[(position - first) * vocab..][..logits.len()];
                self.compare((i, position), vocab, rows, logits);
                Ok(())
            })?;
            self.window_done(watch);
        }
        Ok(())
    }

    fn apart(&mut self, pair: &Pair, dev: &mut dyn Compute, watch: &mut dyn Watch) -> Result<(), EvalError> {
        let mut a = self.load(&pair.a, dev, watch)?;
        let vocab = a.vocab();
        let kept = self.keep(&mut a, dev, watch);
        a.unload(dev)?;
        let mut kept = kept?;
        let mut b = self.load(&pair.b, dev, watch)?;
        let result = self.against(&mut kept, vocab, &mut b, dev, watch);
        b.unload(dev)?;
        result
    }

    /// A's logits of all windows, on disk.
    fn keep(&self, a: &mut Scorer, dev: &mut dyn Compute, watch: &mut dyn Watch) -> Result<Spill, EvalError> {
        let windows = self.windows;
        let rows = windows.count() * windows.scored().len();
        let mut spill = Spill::new(rows as u64 * a.vocab() as u64 * 4)?;
        let name = a.name().to_string();
        for i in 0..windows.count() {
            if watch.stop() {
                return Err(EvalError::Stopped);
            }
            a.window(dev, windows, i, &mut |_, logits| spill.write(logits))?;
            watch.window(i + 1, windows.count(), &format!("reading with {name}"));
        }
        spill.rewind()?;
        Ok(spill)
    }

    fn against(
        &mut self,
        kept: &mut Spill,
        vocab: usize,
        b: &mut Scorer,
        dev: &mut dyn Compute,
        watch: &mut dyn Watch,
    ) -> Result<(), EvalError> {
        same_rows(vocab, b)?;
        let mut rows = Vec::new();
        for i in 0..self.windows.count() {
            if watch.stop() {
                break;
            }
            b.window(dev, self.windows, i, &mut |position, logits| {
                rows.resize(logits.len(), 0.0);
                kept.read(&mut rows)?;
                self.compare((i, position), vocab, &rows, logits);
                Ok(())
            })?;
            self.window_done(watch);
        }
        Ok(())
    }

    /// Rows of A and B from `position` of window `i` on.
    fn compare(&mut self, (i, position): (usize, usize), vocab: usize, a: &[f32], b: &[f32]) {
        let windows = self.windows;
        self.tokens.extend(by_rows(self.config.threads, a.len() / vocab, |r| {
            let row = r * vocab..(r + 1) * vocab;
            Token::of(&a[row.clone()], &b[row], windows.target(i, position + r))
        }));
    }

    fn window_done(&mut self, watch: &mut dyn Watch) {
        self.chunks += 1;
        let mean = self.tokens.iter().map(|t| t.kl).sum::<f64>() / self.tokens.len() as f64;
        watch.window(self.chunks, self.windows.count(), &format!("mean KL {mean:.5}"));
    }
}

/// Tokens are the same, but models pad their rows of logits differently: probabilities would not compare.
fn same_rows(a: usize, b: &Scorer) -> Result<(), EvalError> {
    if a == b.vocab() {
        return Ok(());
    }
    let difference = format!("{a} logits in one and {} in the other", b.vocab());
    Err(EvalError::Tokenizers { difference })
}
