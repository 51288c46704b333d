//! Golden checks: does a model file give the logits a reference implementation recorded for it?
//!
//! A fixture is a folder with `golden.json` and one or more forms of the same weights: `model.safetensors` with its
//! `config.json`, and any `*.gguf`. It must not know architectures; one rule holds for all fixtures:
//!
//! - every recorded logit within [`TOLERANCE`];
//! - the most likely token equal at every position where the reference prefers it by more than [`MARGIN`]. Where the
//!   reference recorded no logits its margin is unknown; there a difference counts as a miss if our own logits put the
//!   two tokens further apart than two tolerances, which correct logits cannot, and is not judged otherwise;
//! - the greedy continuation equal, each step on the reference's own tokens, and the logits after it within tolerance.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hob_compute::{Compute, Pick, Picked, Token};
use hob_files::ModelFile;
use hob_model::{Batch, Layout, Model, Row, SeqId};
use serde::{Deserialize, Serialize};

/// Largest difference of a logit from its reference.
pub const TOLERANCE: f32 = 1e-3;
/// Lead of the reference's best token over its second from which on ours must be the same.
pub const MARGIN: f32 = 0.01;
/// Rows of a prefill step, small enough that long fixtures take several.
const CHUNK_ROWS: usize = 64;

/// The result of all fixtures.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub models: Vec<ModelReport>,
}

/// One fixture folder.
#[derive(Clone, Debug, Serialize)]
pub struct ModelReport {
    pub dir: PathBuf,
    /// The file forms of the model that were found, each with its figures or why there are none.
    pub variants: Vec<Variant>,
    /// Why nothing could be checked.
    pub failure: Option<String>,
}

/// One file form of a fixture.
#[derive(Clone, Debug, Serialize)]
pub struct Variant {
    /// File name within the folder.
    pub file: String,
    pub figures: Option<Figures>,
    /// Why it could not be run.
    pub failure: Option<String>,
}

/// How close a model came to its reference.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Figures {
    /// Largest |logit - reference|; infinite if one is not a number.
    pub largest_difference: f32,
    /// Where that was, for example `long position 63, token 5`.
    pub largest_at: String,
    /// Positions whose most likely token had to agree, and those where it did.
    pub argmax_checked: usize,
    pub argmax_agreed: usize,
    /// Positions too close to call.
    pub argmax_undecided: usize,
    /// Tokens of the greedy continuation, and those that agreed.
    pub greedy_length: usize,
    pub greedy_agreed: usize,
}

impl Figures {
    pub fn passed(&self) -> bool {
        self.largest_difference <= TOLERANCE
            && self.argmax_agreed == self.argmax_checked
            && self.greedy_agreed == self.greedy_length
    }
}

impl Variant {
    pub fn passed(&self) -> bool {
        self.figures.as_ref().is_some_and(Figures::passed)
    }
}

impl ModelReport {
    /// At least one form was found and all passed.
    pub fn passed(&self) -> bool {
        self.failure.is_none() && !self.variants.is_empty() && self.variants.iter().all(Variant::passed)
    }
}

impl Report {
    /// At least one fixture was given and all passed.
    pub fn passed(&self) -> bool {
        !self.models.is_empty() && self.models.iter().all(ModelReport::passed)
    }
}

/// Checks every fixture folder on `dev`, which must compute exactly (`DeviceInfo::exact`). Never fails: what goes wrong
/// with a folder stands in its report.
pub fn run(dirs: &[PathBuf], dev: &mut dyn Compute) -> Report {
    let models = dirs.iter().map(|dir| match check_dir(dir, dev) {
        Ok(variants) => ModelReport { dir: dir.clone(), variants, failure: None },
        Err(failure) => ModelReport { dir: dir.clone(), variants: Vec::new(), failure: Some(failure) },
    });
    Report { models: models.collect() }
}

/// `golden.json`, as far as it is used.
#[derive(Deserialize)]
struct Golden {
    short: Part,
    long: Part,
    after_greedy: AfterGreedy,
}

#[derive(Deserialize)]
struct Part {
    input_ids: Vec<u32>,
    /// Logits by position, `[vocab]` each.
    logits: BTreeMap<usize, Vec<f32>>,
    /// Most likely token of every position.
    argmax_all: Vec<u32>,
    /// Greedy continuation of `input_ids`.
    #[serde(default)]
    greedy: Vec<u32>,
}

#[derive(Deserialize)]
struct AfterGreedy {
    /// Position of the last greedy token.
    position: usize,
    logits: Vec<f32>,
}

fn check_dir(dir: &Path, dev: &mut dyn Compute) -> Result<Vec<Variant>, String> {
    if !dev.info().exact {
        return Err("golden checks need a device in exact mode, this one rounds activations".into());
    }
    let path = dir.join("golden.json");
    let text = std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let golden: Golden = serde_json::from_slice(&text).map_err(|e| format!("{}: {e}", path.display()))?;
    golden.check().map_err(|e| format!("{}: {e}", path.display()))?;
    let forms = forms(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    if forms.is_empty() {
        return Err(format!("{}: expected model.safetensors or a .gguf file, found neither", dir.display()));
    }
    let variant = |(file, path): (String, PathBuf)| match check_file(&path, &golden, dev) {
        Ok(figures) => Variant { file, figures: Some(figures), failure: None },
        Err(failure) => Variant { file, figures: None, failure: Some(failure) },
    };
    Ok(forms.into_iter().map(variant).collect())
}

/// The forms of a model in a folder: what to call each, and what to open.
fn forms(dir: &Path) -> std::io::Result<Vec<(String, PathBuf)>> {
    let mut forms = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|n| n.to_str()).map(str::to_string) else { continue };
        if name.ends_with(".gguf") {
            forms.push((name, path));
        } else if name == "model.safetensors" || name == "model.safetensors.index.json" {
            forms.push((name, dir.to_path_buf()));
        }
    }
    forms.sort();
    Ok(forms)
}

impl Golden {
    fn check(&self) -> Result<(), String> {
        for (name, part) in [("short", &self.short), ("long", &self.long)] {
            let rows = part.input_ids.len();
            if rows == 0 || part.argmax_all.len() != rows {
                let found = part.argmax_all.len();
                return Err(format!(
                    "{name}: expected input_ids and as many argmax_all, found {rows} and {found}"
                ));
            }
            if let Some(position) = part.logits.keys().find(|&&p| p >= rows) {
                return Err(format!("{name}: expected logits at positions below {rows}, found {position}"));
            }
        }
        let last = (self.short.input_ids.len() + self.short.greedy.len()).saturating_sub(1);
        if self.after_greedy.position != last {
            let found = self.after_greedy.position;
            return Err(format!(
                "after_greedy: expected the position of the last greedy token, {last}, found {found}"
            ));
        }
        Ok(())
    }

    fn ctx_tokens(&self) -> usize {
        self.long.input_ids.len().max(self.after_greedy.position + 1)
    }
}

fn check_file(path: &Path, golden: &Golden, dev: &mut dyn Compute) -> Result<Figures, String> {
    let file = ModelFile::open(path).map_err(|e| e.to_string())?;
    let layout =
        Layout { chunk_rows: CHUNK_ROWS, logit_rows: CHUNK_ROWS, ..Layout::new(golden.ctx_tokens()) };
    let mut model = Model::load(Arc::new(file), dev, &layout, &mut |_, _| ()).map_err(|e| e.to_string())?;
    let figures = Check::new(&mut model, dev).run(golden);
    let unloaded = model.unload(dev).map_err(|e| e.to_string());
    figures.and_then(|figures| unloaded.map(|()| figures))
}

/// One model under examination.
struct Check<'a> {
    model: &'a mut Model,
    dev: &'a mut dyn Compute,
    vocab: usize,
    batch: Batch,
    figures: Figures,
}

impl<'a> Check<'a> {
    fn new(model: &'a mut Model, dev: &'a mut dyn Compute) -> Self {
        let vocab = model.info().config.vocab;
        Check { model, dev, vocab, batch: Batch::default(), figures: Figures::default() }
    }

    fn run(mut self, golden: &Golden) -> Result<Figures, String> {
        let id = self.model.new_sequence().map_err(|e| e.to_string())?;
        self.part("long", &golden.long, id)?;
        self.model.truncate(id, 0).map_err(|e| e.to_string())?;
        self.part("short", &golden.short, id)?;
        self.greedy(golden, id)?;
        Ok(self.figures)
    }

    /// Feeds tokens from the sequence's end on; gives their logits, `[tokens, vocab]`.
    fn feed(&mut self, id: SeqId, tokens: &[u32]) -> Result<Vec<f32>, String> {
        let mut all = Vec::with_capacity(tokens.len() * self.vocab);
        let mut position = self.model.seq_len(id).map_err(|e| e.to_string())? as u32;
        for chunk in tokens.chunks(CHUNK_ROWS) {
            self.batch.rows.clear();
            for &token in chunk {
                self.batch.rows.push(Row {
                    sequence: id,
                    position,
                    token: Token::Host(token),
                    logits: true,
                    draft: false,
                });
                position += 1;
            }
            let rows = self.model.step(self.dev, &self.batch).map_err(|e| e.to_string())?;
            let start = all.len();
            all.resize(start + rows * self.vocab, 0.0);
            let logits = self.model.logits();
            self.dev.download(logits, 0, &mut all[start..]).map_err(|e| e.to_string())?;
        }
        Ok(all)
    }

    fn part(&mut self, name: &str, part: &Part, id: SeqId) -> Result<(), String> {
        let all = self.feed(id, &part.input_ids)?;
        for (position, ours) in all.chunks(self.vocab).enumerate() {
            let recorded = part.logits.get(&position);
            if let Some(reference) = recorded {
                self.compare(&format!("{name} position {position}"), ours, reference)?;
            }
            self.argmax(ours, part.argmax_all[position], recorded.map(|r| lead(r)))?;
        }
        Ok(())
    }

    /// Ours against a recorded row.
    fn compare(&mut self, place: &str, ours: &[f32], reference: &[f32]) -> Result<(), String> {
        if reference.len() != ours.len() {
            return Err(format!(
                "{place}: expected {} recorded logits, found {}",
                ours.len(),
                reference.len()
            ));
        }
        for (token, (a, b)) in ours.iter().zip(reference).enumerate() {
            let difference = (a - b).abs();
            let difference = if difference.is_nan() { f32::INFINITY } else { difference };
            if difference > self.figures.largest_difference {
                self.figures.largest_difference = difference;
                self.figures.largest_at = format!("{place}, token {token}");
            }
        }
        Ok(())
    }

    /// Our best token against the reference's, whose lead over its second best is known where logits are recorded.
    fn argmax(&mut self, ours: &[f32], expected: u32, lead: Option<f32>) -> Result<(), String> {
        let best = argmax(ours);
        let Some(&theirs) = ours.get(expected as usize) else {
            return Err(format!("argmax_all: expected tokens below {}, found {expected}", self.vocab));
        };
        let agrees = best == expected as usize;
        let decided = match lead {
            Some(lead) => lead > MARGIN,
            None => {
                let gap = ours[best] - theirs;
                agrees || gap.is_nan() || gap > 2.0 * TOLERANCE
            }
        };
        self.figures.argmax_checked += usize::from(decided);
        self.figures.argmax_agreed += usize::from(decided && agrees);
        self.figures.argmax_undecided += usize::from(!decided);
        Ok(())
    }

    /// One token per step, chosen by the device, after the short prompt that was fed.
    fn greedy(&mut self, golden: &Golden, id: SeqId) -> Result<(), String> {
        let prompt = golden.short.input_ids.len();
        let mut row = (prompt - 1) % CHUNK_ROWS;
        let mut picked = Picked::default();
        for &expected in &golden.short.greedy {
            // Only row `row` of the last batch matters: the rows before it are picked along with it.
            let pick = Pick { logits: self.model.logits(), rows: row + 1, k: 1, draws: &[] };
            let results = self.dev.pick(&pick).and_then(|()| self.dev.submit());
            results.and_then(|ticket| self.dev.picked(ticket, &mut picked)).map_err(|e| e.to_string())?;
            let agrees = picked.tokens.get(row) == Some(&expected);
            self.figures.greedy_length += 1;
            self.figures.greedy_agreed += usize::from(agrees);
            let last = self.feed(id, &[expected])?;
            if self.figures.greedy_length == golden.short.greedy.len() {
                self.compare("after greedy", &last, &golden.after_greedy.logits)?;
            }
            row = 0;
        }
        Ok(())
    }
}

/// Index of the largest value, the first of equals.
fn argmax(row: &[f32]) -> usize {
    row.iter().enumerate().fold(0, |best, (i, v)| if *v > row[best] { i } else { best })
}

/// By how much the largest value exceeds the second.
fn lead(row: &[f32]) -> f32 {
    let best = argmax(row);
    let second = row.iter().enumerate().filter(|&(i, _)| i != best).map(|(_, &v)| v);
    row.get(best).copied().unwrap_or(f32::NAN) - second.fold(f32::NEG_INFINITY, f32::max)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for model in &self.models {
            let name =
                model.dir.file_name().map_or_else(|| model.dir.to_string_lossy(), |n| n.to_string_lossy());
            if let Some(failure) = &model.failure {
                writeln!(f, "FAIL {name}: {failure}")?;
            }
            for variant in &model.variants {
                let verdict = if variant.passed() { "pass" } else { "FAIL" };
                write!(f, "{verdict} {name}/{}: ", variant.file)?;
                match (&variant.figures, &variant.failure) {
                    (Some(figures), _) => writeln!(f, "{figures}")?,
                    (None, failure) => writeln!(f, "{}", failure.as_deref().unwrap_or("not run"))?,
                }
            }
        }
        let passed = self.models.iter().filter(|m| m.passed()).count();
        writeln!(f, "{passed} of {} models passed", self.models.len())
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "largest difference {:.1e}", self.largest_difference)?;
        if !self.largest_at.is_empty() {
            write!(f, " ({})", self.largest_at)?;
        }
        write!(f, ", argmax {}/{}", self.argmax_agreed, self.argmax_checked)?;
        if self.argmax_undecided > 0 {
            write!(f, " ({} too close to call)", self.argmax_undecided)?;
        }
        write!(f, ", greedy {}/{}", self.greedy_agreed, self.greedy_length)
    }
}
