//! What perplexity and divergence share: a text cut into windows, and a model that gives the logits of a window's later
//! part. Windows follow llama.cpp's `perplexity` tool, so that figures compare directly: each is fed to an empty
//! sequence, its first token replaced by the begin-of-sequence token where the model wants one, and only positions with
//! enough tokens before them are scored. It must not know which figure is computed.

mod scorer;

use std::ops::Range;

use hob_files::{FileError, ModelFile};
use hob_model::ModelError;
use hob_text::{Special, TextError, Tokenizer};

pub(crate) use scorer::{LogSum, by_rows};
pub use scorer::{Rows, Scorer, layout};

#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    #[error("{field}: expected {expected}, found {found}")]
    Config { field: &'static str, expected: String, found: String },
    #[error(
        "the text has {found} tokens, but one window takes {needed}; give a longer text, or a smaller --ctx"
    )]
    TooShort { found: usize, needed: usize },
    #[error(
        "the two models do not share a tokenizer: {difference}; only models of one vocabulary can be compared"
    )]
    Tokenizers { difference: String },
    #[error(
        "{model} gave a logit that is not a number (window {window}); the file is damaged, or a kernel is"
    )]
    NotANumber { model: String, window: usize },
    #[error("stopped before the first window was done")]
    Stopped,
    #[error("keeping the first model's logits: {0}")]
    Spill(std::io::Error),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Text(#[from] TextError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Compute(#[from] hob_compute::ComputeError),
}

/// How a text is walked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvalConfig {
    /// Tokens of a window.
    pub ctx: usize,
    /// Most windows; `None` is the whole text.
    pub chunks: Option<usize>,
    /// Tokens from one window to the next, of which each window scores as many, its last. `None`: windows side by side,
    /// of which the second half is scored.
    pub stride: Option<usize>,
    pub threads: usize,
}

impl EvalConfig {
    /// llama.cpp's default window.
    pub const CTX: usize = 512;
    /// Smallest window that scores a token.
    pub const LEAST_CTX: usize = 4;

    fn check(&self) -> Result<(), EvalError> {
        let wrong = |field, expected, found: usize| {
            Err(EvalError::Config { field, expected, found: found.to_string() })
        };
        if self.ctx < Self::LEAST_CTX {
            return wrong("--ctx", format!("at least {} tokens", Self::LEAST_CTX), self.ctx);
        }
        match (self.stride, self.chunks) {
            (Some(stride), _) if !(1..self.ctx).contains(&stride) => {
                wrong("--stride", format!("1 to {} tokens, less than a window", self.ctx - 1), stride)
            }
            (_, Some(0)) => wrong("--chunks", "at least 1".into(), 0),
            _ => Ok(()),
        }
    }
}

/// A text's tokens, cut.
#[derive(Clone, Debug)]
pub struct Windows {
    tokens: Vec<u32>,
    bos: Option<u32>,
    ctx: usize,
    step: usize,
    /// First position whose logits are scored: against the token after it.
    first: usize,
    count: usize,
}

impl Windows {
    /// Encodes `text` as plain text, without its last newline, as llama.cpp reads files.
    ///
    /// # Errors
    /// A config that scores nothing; a text shorter than one window.
    pub fn new(config: &EvalConfig, text: &str, tokenizer: &Tokenizer) -> Result<Self, EvalError> {
        config.check()?;
        let bos = tokenizer.bos().filter(|_| tokenizer.add_bos());
        let mut tokens: Vec<u32> = bos.into_iter().collect();
        tokens.extend(tokenizer.encode(text.strip_suffix('\n').unwrap_or(text), Special::Plain)?);
        Self::cut(config, tokens, bos)
    }

    /// Cuts tokens; `bos` replaces the first token of each window.
    ///
    /// # Errors
    /// As [`Windows::new`].
    pub fn cut(config: &EvalConfig, tokens: Vec<u32>, bos: Option<u32>) -> Result<Self, EvalError> {
        config.check()?;
        let (ctx, found) = (config.ctx, tokens.len());
        if found < ctx {
            return Err(EvalError::TooShort { found, needed: ctx });
        }
        let (step, first, all) = match config.stride {
            None => (ctx, ctx / 2, found / ctx),
            Some(stride) => (stride, ctx - stride - 1, (found - ctx) / stride + 1),
        };
        Ok(Self { tokens, bos, ctx, step, first, count: config.chunks.map_or(all, |most| most.min(all)) })
    }

    /// The same windows, of which only the last `positions` are scored: those that see the most context.
    pub fn last(self, positions: usize) -> Self {
        Self { first: self.first.max(self.ctx.saturating_sub(1 + positions.max(1))), ..self }
    }

    /// Number of windows.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Tokens of the whole text.
    pub fn text_tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Tokens of a window.
    pub fn ctx(&self) -> usize {
        self.ctx
    }

    /// Positions of a window whose logits are scored; position `p` is scored against the token at `p + 1`.
    pub fn scored(&self) -> Range<usize> {
        self.first..self.ctx - 1
    }

    /// The tokens to feed of window `i`: all but the last, which is only scored.
    pub fn input(&self, i: usize) -> Vec<u32> {
        let start = i * self.step;
        let mut input = self.tokens[start..start + self.ctx - 1].to_vec();
        input[0] = self.bos.unwrap_or(input[0]);
        input
    }

    /// The token that follows position `p` of window `i`.
    pub fn target(&self, i: usize, p: usize) -> u32 {
        self.tokens[i * self.step + p + 1]
    }
}

/// Who wants to see how far it is, and may stop it.
pub trait Watch {
    /// Bytes of a model's weights that are loaded.
    fn loading(&mut self, _model: &str, _done: u64, _total: u64) {}
    /// Windows done, with the figure so far.
    fn window(&mut self, _done: usize, _total: usize, _running: &str) {}
    /// Asked between windows.
    fn stop(&self) -> bool {
        false
    }
}

/// Watches nothing.
impl Watch for () {}

/// Refuses two models whose token ids do not mean the same texts.
///
/// # Errors
/// [`EvalError::Tokenizers`], naming the first difference.
pub fn same_tokenizer(a: &Tokenizer, b: &Tokenizer) -> Result<(), EvalError> {
    let differ = |difference| Err(EvalError::Tokenizers { difference });
    if a.vocab_size() != b.vocab_size() {
        return differ(format!("{} and {} tokens", a.vocab_size(), b.vocab_size()));
    }
    let ids = 0..u32::try_from(a.vocab_size()).unwrap_or(u32::MAX);
    if let Some(id) = ids.into_iter().find(|&id| a.token_text(id) != b.token_text(id)) {
        let text = |t: &Tokenizer| t.token_text(id).unwrap_or("").escape_debug().to_string();
        return differ(format!("token {id} is \"{}\" in one and \"{}\" in the other", text(a), text(b)));
    }
    let start = |t: &Tokenizer| t.bos().filter(|_| t.add_bos());
    if start(a) != start(b) {
        return differ("one begins with a begin-of-sequence token that the other does not".to_string());
    }
    Ok(())
}

/// The name a report gives to a model file.
pub(crate) fn title(file: &ModelFile) -> String {
    let path = file.path();
    path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

/// Mean and standard error of a sum and a sum of squares.
pub(crate) fn mean_and_error(sum: f64, squares: f64, count: usize) -> (f64, f64) {
    let n = count as f64;
    let mean = sum / n;
    let variance = (squares / n - mean * mean).max(0.0);
    (mean, if count > 1 { (variance / (n - 1.0)).sqrt() } else { 0.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> EvalConfig {
        EvalConfig { ctx: 8, chunks: None, stride: None, threads: 1 }
    }

    #[test]
    fn windows_are_llama_cpps() {
        let windows = Windows::cut(&config(), (10..30).collect(), Some(1)).expect("two windows");
        assert_eq!(windows.count(), 2);
        assert_eq!(windows.input(0), [1, 11, 12, 13, 14, 15, 16]);
        assert_eq!(windows.input(1), [1, 19, 20, 21, 22, 23, 24]);
        // n_ctx - 1 - n_ctx / 2 of them.
        assert_eq!(windows.scored(), 4..7);
        assert_eq!((windows.target(1, 4), windows.target(1, 6)), (23, 25));
        let plain = Windows::cut(&config(), (10..30).collect(), None).expect("two windows");
        assert_eq!(plain.input(1)[0], 18);
        let one = Windows::cut(&EvalConfig { chunks: Some(1), ..config() }, (0..30).collect(), None);
        assert_eq!(one.expect("one").count(), 1);
    }

    #[test]
    fn the_last_positions_of_a_window_end_where_it_ends() {
        let windows = Windows::cut(&config(), (10..30).collect(), None).expect("two windows");
        assert_eq!(windows.clone().last(2).scored(), 5..7);
        assert_eq!(windows.clone().last(0).scored(), 6..7);
        assert_eq!(windows.clone().last(100).scored(), windows.scored());
    }

    #[test]
    fn strides_score_each_token_once() {
        let config = EvalConfig { stride: Some(3), ..config() };
        let windows = Windows::cut(&config, (0..20).collect(), None).expect("windows");
        assert_eq!(windows.count(), 5);
        let scored: Vec<u32> = (0..5)
            .flat_map(|i| windows.scored().map(move |p| (i, p)))
            .map(|(i, p)| windows.target(i, p))
            .collect();
        assert_eq!(scored, (5..20).collect::<Vec<u32>>());
    }

    #[test]
    fn what_scores_nothing_is_refused() {
        let error =
            |c: EvalConfig, n| Windows::cut(&c, (0..n).collect(), None).expect_err("refused").to_string();
        assert!(error(config(), 7).contains("7 tokens"));
        assert!(error(EvalConfig { ctx: 3, ..config() }, 20).contains("--ctx"));
        assert!(error(EvalConfig { stride: Some(8), ..config() }, 20).contains("--stride"));
        assert!(error(EvalConfig { chunks: Some(0), ..config() }, 20).contains("--chunks"));
    }

    #[test]
    fn errors_of_the_mean() {
        let (mean, error) = mean_and_error(6.0, 14.0, 3);
        assert_eq!(mean, 2.0);
        assert!((error - (2.0f64 / 3.0 / 2.0).sqrt()).abs() < 1e-12);
        assert_eq!(mean_and_error(2.0, 4.0, 1), (2.0, 0.0));
    }
}
