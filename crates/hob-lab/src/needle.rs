//! Facts hidden in a long text: does the model still find them, at which depth, with which KV format? A fact is "The secret
//! number of PLACE is N."; the prompt ends where its number must come next, so one forward pass tells whether greedy
//! decoding would give it, and by which margin in nats. It must not know how formats are stored.

mod prompt;
mod report;

use std::sync::Arc;
use std::time::Instant;

use hob_compute::{Compute, Token};
use hob_files::ModelFile;
use hob_model::{Batch, KvLayout, Layout, Model, ModelInfo, Row, SeqId};
use hob_plan::{KvChoice, KvNoise, KvRule, KvWish};
use hob_text::Tokenizer;
use serde::Serialize;

use crate::eval::{EvalError, LogSum, Watch, title};
use crate::kv;
use prompt::{Prompt, Prompts};
pub use report::{Cell, Report, Trial};

/// Most tokens of a number.
const ANSWER_TOKENS: usize = 16;
/// Shortest context that holds a fact, a question and some text around them.
pub const LEAST_CTX: usize = 256;

/// What the prompt ends with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// The beginning of the hidden sentence, to be copied on. Models of any size can do it.
    #[default]
    Copy,
    /// A question in the model's chat template, and the beginning of the answer.
    Question,
}

/// What to hide where.
#[derive(Clone, Debug, PartialEq)]
pub struct NeedleConfig {
    /// Tokens of the whole prompt, for each table column.
    pub ctxs: Vec<usize>,
    /// Percent of the text that stands before the fact.
    pub depths: Vec<f64>,
    /// Facts per cell, each with a place and number of its own.
    pub repeat: usize,
    pub seed: u64,
    pub task: Task,
    pub formats: Vec<KvWish>,
    /// What `auto` goes by.
    pub rule: KvRule,
    pub threads: usize,
}

impl NeedleConfig {
    /// # Errors
    /// A list that is empty, or a value that nothing can be hidden with.
    fn check(&self) -> Result<(), EvalError> {
        let wrong = |field, expected: &str, found: String| {
            Err(EvalError::Config { field, expected: expected.to_string(), found })
        };
        if self.ctxs.is_empty() || self.ctxs.iter().any(|&c| c < LEAST_CTX) {
            let expected = format!("contexts of at least {LEAST_CTX} tokens");
            return wrong("--ctx", &expected, format!("{:?}", self.ctxs));
        }
        if self.depths.is_empty() || self.depths.iter().any(|d| !(0.0..=100.0).contains(d)) {
            return wrong("--depths", "percents of 0 to 100", format!("{:?}", self.depths));
        }
        if self.repeat == 0 {
            return wrong("--repeat", "at least 1", "0".into());
        }
        if self.formats.is_empty() {
            return wrong("--kv", "at least one format, such as f16 or q8", "none".into());
        }
        Ok(())
    }

    fn most_ctx(&self) -> usize {
        self.ctxs.iter().copied().max().unwrap_or(0)
    }

    /// What the run takes.
    pub fn layout(&self) -> Layout {
        let ctx = self.most_ctx().max(1);
        Layout {
            chunk_rows: Layout::CHUNK_ROWS.min(ctx),
            logit_rows: ANSWER_TOKENS,
            threads: self.threads,
            ..Layout::new(ctx)
        }
    }

    /// Forward passes over a prompt in all.
    fn trials(&self) -> usize {
        self.formats.len() * self.ctxs.len() * self.depths.len() * self.repeat
    }
}

/// Hides facts in `text` and asks for them. `known` is what an earlier run measured of this very model's KV noise; else it
/// is measured now, if `auto` is asked for. The model is loaded once on `dev` and unloaded again.
///
/// # Errors
/// A config that hides nothing, a text shorter than the largest context, a question without a chat template; what file,
/// tokenizer, model or device say; [`EvalError::Stopped`] before the first answer (later, the report says how far it came).
pub fn run(
    config: &NeedleConfig,
    file: &Arc<ModelFile>,
    text: &str,
    known: Option<KvNoise>,
    dev: &mut dyn Compute,
    watch: &mut dyn Watch,
) -> Result<Report, EvalError> {
    config.check()?;
    let tokenizer = Tokenizer::from_model(file)?;
    let prompts = Prompts::new(&tokenizer, text, config.task, config.most_ctx())?;
    let start = Instant::now();
    let name = title(file);
    let info = ModelInfo::read(file)?;
    let parameters = info.parameters();
    let mut progress = |done, total| watch.loading(&name, done, total);
    let model = Model::load(Arc::clone(file), dev, &config.layout(), &mut progress)?;
    let mut search = Search { config, prompts: &prompts, model, held: Vec::new(), batch: Batch::default() };
    let result = search.layouts(file, &tokenizer, known, dev);
    let result = result.and_then(|layouts| search.all(&layouts, dev, watch));
    search.model.unload(dev)?;
    let cells = result?;
    Ok(Report {
        model: name,
        parameters,
        task: config.task,
        trials_planned: config.trials(),
        trials: cells.iter().map(|c| c.trials.len()).sum(),
        seconds: start.elapsed().as_secs_f64(),
        cells,
    })
}

struct Search<'a> {
    config: &'a NeedleConfig,
    prompts: &'a Prompts<'a>,
    model: Model,
    /// Tokens that the sequence holds: prompts that differ late share their beginning.
    held: Vec<u32>,
    batch: Batch,
}

impl Search<'_> {
    /// What each format of the config stands for.
    fn layouts(
        &mut self,
        file: &ModelFile,
        tokenizer: &Tokenizer,
        known: Option<KvNoise>,
        dev: &mut dyn Compute,
    ) -> Result<Vec<(String, KvLayout)>, EvalError> {
        let formats = &self.config.formats;
        let choice = match known {
            _ if !formats.contains(&KvWish::Auto) => KvChoice::default(),
            Some(noise) => self.config.rule.choose(&noise),
            None => self.config.rule.choose(&kv::measured(file, tokenizer, &mut self.model, dev)?),
        };
        Ok(formats.iter().map(|&w| (w.to_string(), kv::layout(w, &choice))).collect())
    }

    fn all(
        &mut self,
        layouts: &[(String, KvLayout)],
        dev: &mut dyn Compute,
        watch: &mut dyn Watch,
    ) -> Result<Vec<Cell>, EvalError> {
        let mut cells = Vec::new();
        for (kv, layout) in layouts {
            let layout = Layout { kv: layout.clone(), ..self.model.layout().clone() };
            self.model.relayout(dev, &layout)?;
            let sequence = self.model.new_sequence()?;
            self.held.clear();
            let result = self.table((kv, sequence), &mut cells, dev, watch);
            self.model.free_sequence(sequence)?;
            result?;
            if watch.stop() {
                break;
            }
        }
        if cells.is_empty() { Err(EvalError::Stopped) } else { Ok(cells) }
    }

    /// Every cell of one format.
    fn table(
        &mut self,
        (kv, sequence): (&str, SeqId),
        cells: &mut Vec<Cell>,
        dev: &mut dyn Compute,
        watch: &mut dyn Watch,
    ) -> Result<(), EvalError> {
        let config = self.config;
        // From the deepest fact on, so that the text before the next one need not be read again.
        let mut depths = config.depths.clone();
        depths.sort_by(|a, b| b.total_cmp(a));
        for &ctx in &config.ctxs {
            for &depth in &depths {
                let mut cell = Cell { kv: kv.to_string(), ctx, depth, trials: Vec::new() };
                for i in 0..config.repeat {
                    if watch.stop() {
                        break;
                    }
                    let prompt = self.prompts.make((ctx, depth), config.seed.wrapping_add(i as u64))?;
                    cell.trials.push(self.ask(sequence, &prompt, dev)?);
                }
                if cell.trials.is_empty() {
                    return Ok(());
                }
                cells.push(cell);
                let done = cells.iter().map(|c| c.trials.len()).sum();
                let right = cells.iter().flat_map(|c| &c.trials).filter(|t| t.right).count();
                watch.window(done, config.trials(), &format!("{right} of {done} found"));
            }
        }
        Ok(())
    }

    /// Feeds prompt and number, and looks at what the model would have said at each token of the number.
    fn ask(&mut self, sequence: SeqId, prompt: &Prompt, dev: &mut dyn Compute) -> Result<Trial, EvalError> {
        let (asked, answer) = (prompt.tokens.len() - 1, &prompt.answer);
        // The last token of the prompt predicts the first of the answer, whose last predicts nothing needed.
        let fed: Vec<u32> = prompt.tokens.iter().chain(&answer[..answer.len() - 1]).copied().collect();
        let same = self.held.iter().zip(&fed).take_while(|(a, b)| a == b).count().min(asked);
        let from = if self.model.can_truncate(sequence, same)? { same } else { 0 };
        self.model.truncate(sequence, from)?;
        self.held.clear();
        self.held.extend(&fed);
        let mut position = from;
        let mut logits = Vec::new();
        while position < fed.len() {
            // The rows with logits make a step of their own.
            let end = if position < asked { asked } else { fed.len() };
            let count = self.model.layout().chunk_rows.min(end - position);
            let row = |(j, &token)| Row {
                sequence,
                position: (position + j) as u32,
                token: Token::Host(token),
                logits: position >= asked,
                draft: false,
            };
            self.batch.rows.clear();
            self.batch.rows.extend(fed[position..position + count].iter().enumerate().map(row));
            let found = self.model.step(dev, &self.batch)?;
            logits.resize(found * self.model.info().config.vocab, 0.0);
            dev.download(self.model.logits(), 0, &mut logits)?;
            position += count;
        }
        self.judge(prompt, &logits)
    }

    fn judge(&self, prompt: &Prompt, logits: &[f32]) -> Result<Trial, EvalError> {
        let vocab = self.model.info().config.vocab;
        let (mut log_p, mut margin, mut said) = (0.0, f64::INFINITY, Vec::new());
        for (row, &wanted) in logits.chunks_exact(vocab).zip(&prompt.answer) {
            if row.iter().any(|l| l.is_nan()) {
                let model = "the model".to_string();
                return Err(EvalError::NotANumber { model, window: 0 });
            }
            let right = row.get(wanted as usize).copied().unwrap_or(f32::NEG_INFINITY);
            let others = row.iter().enumerate().filter(|(i, _)| *i != wanted as usize);
            let (best, other) = others
                .fold((wanted, f32::NEG_INFINITY), |b, (i, &l)| if l > b.1 { (i as u32, l) } else { b });
            log_p += LogSum::of(row).log_p(right);
            margin = margin.min(f64::from(right) - f64::from(other));
            said.push(if right > other { wanted } else { best });
        }
        Ok(Trial {
            place: prompt.place.to_string(),
            number: prompt.number.clone(),
            said: self.prompts.decode(&said),
            right: margin > 0.0,
            margin,
            log_p,
            prompt_tokens: prompt.tokens.len(),
        })
    }
}
