//! A loaded model that gives the logits of one window at a time, in rows small enough that a large vocabulary does not
//! fill the memory. It must not know texts.

use std::sync::Arc;

use hob_compute::{Compute, Token};
use hob_files::ModelFile;
use hob_model::{Batch, KvLayout, Layout, Model, ModelInfo, Row, SeqId, noise};

use super::{EvalError, Watch, Windows, title};

/// Bytes of logits held at once.
const LOGIT_BYTES: usize = 64 << 20;
/// Fewest rows of logits of a step: fewer would leave the head's matrix to be read too often.
const LEAST_LOGIT_ROWS: usize = 16;

/// What evaluating windows of `ctx` tokens takes.
pub fn layout(info: &ModelInfo, ctx: usize, threads: usize) -> Layout {
    let rows = (LOGIT_BYTES / 4 / info.config.vocab).max(LEAST_LOGIT_ROWS);
    let chunk_rows = Layout::CHUNK_ROWS.min(ctx);
    Layout { chunk_rows, logit_rows: rows.min(chunk_rows), threads, ..Layout::new(ctx) }
}

/// Takes the position of a first row, and `[n, vocab]` logits from there on.
pub type Rows<'a> = dyn FnMut(usize, &[f32]) -> Result<(), EvalError> + 'a;

/// A model on a device.
pub struct Scorer {
    name: String,
    model: Model,
    batch: Batch,
    /// Formats that K and V are rounded to on a device that keeps floats whatever the layout says.
    rounded: KvLayout,
    /// Logits of one step, `[rows, vocab]`.
    logits: Vec<f32>,
}

impl Scorer {
    /// Loads `file` for windows of `ctx` tokens.
    ///
    /// # Errors
    /// What the model or device says.
    pub fn load(
        file: &Arc<ModelFile>,
        dev: &mut dyn Compute,
        (ctx, threads): (usize, usize),
        watch: &mut dyn Watch,
    ) -> Result<Self, EvalError> {
        let name = title(file);
        let info = ModelInfo::read(file)?;
        let layout = layout(&info, ctx, threads);
        let mut progress = |done, total| watch.loading(&name, done, total);
        let model = Model::load(Arc::clone(file), dev, &layout, &mut progress)?;
        let (batch, rounded) = (Batch::default(), KvLayout::default());
        Ok(Self { name, model, batch, rounded, logits: Vec::new() })
    }

    /// Keeps K and V as `kv` says from now on; an exact device keeps floats, of which each goes through its format's codec
    /// first.
    ///
    /// # Errors
    /// What the model or device say.
    pub fn relayout(&mut self, dev: &mut dyn Compute, kv: &KvLayout) -> Result<(), EvalError> {
        if dev.info().exact {
            self.rounded = kv.clone();
            return Ok(());
        }
        let layout = Layout { kv: kv.clone(), ..self.model.layout().clone() };
        Ok(self.model.relayout(dev, &layout)?)
    }

    pub fn model(&self) -> &Model {
        &self.model
    }

    pub fn model_mut(&mut self) -> &mut Model {
        &mut self.model
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Logits of a position.
    pub fn vocab(&self) -> usize {
        self.model.info().config.vocab
    }

    /// # Errors
    /// What the device says.
    pub fn unload(self, dev: &mut dyn Compute) -> Result<(), EvalError> {
        Ok(self.model.unload(dev)?)
    }

    /// Feeds window `i` to an empty sequence and hands out the logits of its scored positions, ascending.
    ///
    /// # Errors
    /// What the model, the device or `rows` say; [`EvalError::NotANumber`].
    pub fn window(
        &mut self,
        dev: &mut dyn Compute,
        windows: &Windows,
        i: usize,
        rows: &mut Rows<'_>,
    ) -> Result<(), EvalError> {
        let sequence = self.model.new_sequence()?;
        let result = self.feed(dev, windows, (sequence, i), rows);
        self.model.free_sequence(sequence)?;
        result
    }

    fn feed(
        &mut self,
        dev: &mut dyn Compute,
        windows: &Windows,
        (sequence, i): (SeqId, usize),
        rows: &mut Rows<'_>,
    ) -> Result<(), EvalError> {
        let (input, scored) = (windows.input(i), windows.scored());
        let mut position = 0;
        while position < input.len() {
            // Steps end where the scored positions begin, so that one step's rows have logits all or none.
            let logits = position >= scored.start;
            let layout = self.model.layout();
            let most = if logits { layout.logit_rows } else { layout.chunk_rows };
            let end = if logits { input.len() } else { scored.start };
            let count = most.min(end - position);
            self.batch.rows.clear();
            self.batch.rows.extend(input[position..position + count].iter().enumerate().map(
                |(j, &token)| Row {
                    sequence,
                    position: (position + j) as u32,
                    token: Token::Host(token),
                    logits,
                    draft: false,
                },
            ));
            let found = match self.rounded.0.as_slice() {
                [] => self.model.step(dev, &self.batch)?,
                _ => noise::step_rounded(&mut self.model, dev, &self.batch, &self.rounded)?,
            };
            if found > 0 {
                self.logits.resize(found * self.vocab(), 0.0);
                dev.download(self.model.logits(), 0, &mut self.logits)?;
                if self.logits.iter().any(|l| l.is_nan()) {
                    return Err(EvalError::NotANumber { model: self.name.clone(), window: i });
                }
                rows(position, &self.logits)?;
            }
            position += count;
        }
        Ok(())
    }
}

/// The logarithm of a row's sum of exponentials, in f64: `log p = logit - value`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogSum(f64);

impl LogSum {
    pub fn of(row: &[f32]) -> Self {
        let most = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let sum: f64 = row.iter().map(|&l| (f64::from(l) - most).exp()).sum();
        Self(most + sum.ln())
    }

    /// Logarithm of the probability of a token with this logit.
    pub fn log_p(self, logit: f32) -> f64 {
        f64::from(logit) - self.0
    }
}

/// `work` for each row, on `threads` threads; results in the order of rows.
pub(crate) fn by_rows<T: Send>(threads: usize, rows: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let share = rows.div_ceil(threads.max(1)).max(1);
    let work = &work;
    std::thread::scope(|scope| {
        let parts: Vec<_> = (0..rows)
            .step_by(share)
            .map(|start| scope.spawn(move || (start..rows.min(start + share)).map(work).collect::<Vec<T>>()))
            .collect();
        parts
            .into_iter()
            .flat_map(|part| part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_sum_to_one() {
        let row: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.37).sin() * 30.0 + 500.0).collect();
        let sum = LogSum::of(&row);
        let total: f64 = row.iter().map(|&l| sum.log_p(l).exp()).sum();
        assert!((total - 1.0).abs() < 1e-12, "{total}");
        let with_hole = [f32::NEG_INFINITY, 1.0, 1.0];
        assert!((LogSum::of(&with_hole).log_p(1.0) - 0.5f64.ln()).abs() < 1e-12);
        assert_eq!(LogSum::of(&with_hole).log_p(f32::NEG_INFINITY), f64::NEG_INFINITY);
    }

    #[test]
    fn rows_come_back_in_order() {
        for (threads, rows) in [(1, 5), (2, 5), (3, 7), (8, 3), (2, 0), (0, 2)] {
            assert_eq!(by_rows(threads, rows, |i| i * i), (0..rows).map(|i| i * i).collect::<Vec<_>>());
        }
    }
}
