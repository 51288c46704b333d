//! From one GGUF file to a smaller one: which tensor gets which type, and the work itself, tensor by tensor. Owns the
//! choice and the figures; it must not know how a type is encoded, nor how a model computes.

mod budget;
mod measure;
mod roles;
mod write;

use std::path::PathBuf;

use hob_files::gguf_write::Writer;
use hob_files::{FileError, FileKind, ModelFile, TensorInfo, Value};
use hob_quant::{Format, QuantError};
use serde::Serialize;

use crate::synth::{Mix, Shape, Slot, SynthError, head_type, mix_types};
use measure::Measured;
pub use write::Report;

/// What is wanted of the file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// All matrices of one type, but the head of at least 6 bits.
    Uniform(Format),
    /// A fixed rule from tensors to types.
    Mix(Mix),
    /// At most so many bits a weight, all tensors together, spent where they buy most.
    Bits(f64),
    /// A file of at most so many bytes, spent the same way.
    Bytes(u64),
    /// F16 with the types' own roundings undone by noise of up to half a step, drawn from this seed: a reference by which
    /// types can be judged where no unquantized file is at hand. It has no grid that a type could hit by chance.
    Dither(u64),
}

#[derive(Debug, thiserror::Error)]
pub enum QuantizeError {
    #[error(
        "{} is a folder of safetensors: hob quantizes GGUF files only, because it cannot yet write the keys and the vocabulary of a GGUF from one; convert it to an F16 or BF16 GGUF first (llama.cpp: convert_hf_to_gguf.py)",
        path.display()
    )]
    Safetensors { path: PathBuf },
    #[error("'{name}' is no type that hob can encode; there are {}", encodable())]
    Format { name: String },
    #[error("recipe '{name}': hob cannot encode {format}; it can encode {}", encodable())]
    Recipe { name: String, format: Format },
    #[error(
        "{wanted} cannot be reached: the least is {least}{}",
        if *narrow == 0 { String::new() } else {
            format!(" ({narrow} matrices have rows that are no multiple of 256 weights, which rules the smaller types out)")
        }
    )]
    TooSmall { wanted: String, least: String, narrow: usize },
    #[error("{wanted}: expected more than 0 and at most 32 bits a weight")]
    Bits { wanted: f64 },
    #[error("no tensor of {} is a matrix that can be quantized", path.display())]
    NothingToDo { path: PathBuf },
    #[error(
        "tensor {tensor} is stored as {format}, whose levels are not evenly spaced: noise cannot undo its roundings"
    )]
    Uneven { tensor: String, format: Format },
    #[error("{} is the model itself; choose another name for the output", path.display())]
    Itself { path: PathBuf },
    #[error("tensor {tensor}, row {row}: {source}")]
    Weights { tensor: String, row: u64, source: QuantError },
    #[error("stopped; nothing was left behind")]
    Cancelled,
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Rule(#[from] SynthError),
}

/// Types that a search can encode.
pub fn formats() -> impl Iterator<Item = Format> {
    Format::ALL.iter().copied().filter(|f| f.can_quantize())
}

fn encodable() -> String {
    formats().map(|f| f.name().to_ascii_lowercase()).collect::<Vec<_>>().join(", ")
}

/// A type by its name.
///
/// # Errors
/// [`QuantizeError::Format`], with those there are.
pub fn format_of(name: &str) -> Result<Format, QuantizeError> {
    let found = Format::from_name(name).filter(|f| f.can_quantize());
    found.ok_or_else(|| QuantizeError::Format { name: name.to_string() })
}

/// How the work is done.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The type of the head, or of the embedding that serves as one; by rule if `None`.
    pub head: Option<Format>,
    /// Threads to encode with, at least 1.
    pub threads: usize,
}

/// One tensor's way.
#[derive(Clone, Debug)]
struct Step {
    tensor: TensorInfo,
    to: Format,
    /// A narrower type was wanted, but its blocks do not divide the rows.
    fell_back: bool,
}

/// A model file and the types that its tensors will have.
#[derive(Debug)]
pub struct Job<'f> {
    file: &'f ModelFile,
    steps: Vec<Step>,
    /// Seed of the noise, if this makes a reference.
    dither: Option<u64>,
    threads: usize,
    writer: Writer,
}

/// What is said before the work starts.
#[derive(Clone, Debug, Serialize)]
pub struct Outline {
    pub file_bytes: u64,
    pub bits_per_weight: f64,
    /// Tensors that lose a second time: encoded from a type that is quantized already.
    pub requantized: usize,
    /// Matrices whose rows did not fit the wanted type.
    pub fell_back: usize,
}

impl<'f> Job<'f> {
    /// Chooses a type for every tensor; with a budget this measures the types on samples of all matrices. `progress` gets
    /// tensors measured and in total.
    ///
    /// # Errors
    /// No GGUF, nothing to quantize, a goal out of reach, weights that are no numbers, what reading says.
    pub fn new(
        file: &'f ModelFile,
        goal: Goal,
        options: Options,
        watch: &mut Watch<'_>,
    ) -> Result<Self, QuantizeError> {
        if file.kind() != FileKind::Gguf {
            return Err(QuantizeError::Safetensors { path: file.path().to_path_buf() });
        }
        let slots = roles::slots(file);
        if !slots.iter().any(|s| roles::is_quantized(s.role)) {
            return Err(QuantizeError::NothingToDo { path: file.path().to_path_buf() });
        }
        let dither = if let Goal::Dither(seed) = goal { Some(seed) } else { None };
        let steps = match goal {
            Goal::Uniform(format) => by_rule(file, &slots, Mix::Plain(format), options.head),
            Goal::Mix(mix) => by_rule(file, &slots, mix, options.head),
            Goal::Dither(_) => dithered(file)?,
            Goal::Bits(_) | Goal::Bytes(_) => by_budget(file, &slots, goal, options, watch)?,
        };
        if let (Goal::Mix(mix), Some(bad)) =
            (goal, steps.iter().find(|s| s.changes() && !s.to.can_quantize()))
        {
            return Err(QuantizeError::Recipe { name: mix.name(), format: bad.to });
        }
        let file_type = match goal {
            Goal::Mix(mix) => mix.file_type(),
            _ => most_of(&steps).and_then(|format| Mix::Plain(format).file_type()),
        };
        let writer = header(file, &steps, file_type)?;
        Ok(Self { file, steps, dither, threads: options.threads.max(1), writer })
    }

    /// What the file will be.
    ///
    /// # Errors
    /// A header that GGUF cannot hold.
    pub fn outline(&self) -> Result<Outline, QuantizeError> {
        let (bytes, weights) = totals(&self.steps);
        let requantized =
            self.steps.iter().filter(|s| s.changes() && s.tensor.format.block_len() > 1).count();
        Ok(Outline {
            file_bytes: self.file_bytes()?,
            bits_per_weight: bytes as f64 * 8.0 / weights as f64,
            requantized: if self.dither.is_some() { 0 } else { requantized },
            fell_back: self.steps.iter().filter(|s| s.fell_back).count(),
        })
    }

    fn file_bytes(&self) -> Result<u64, QuantizeError> {
        let data: u64 = self.steps.iter().map(|s| s.bytes().next_multiple_of(alignment(self.file))).sum();
        Ok(header_bytes(&self.writer)? + data)
    }
}

/// Who looks on: a bar, and whether to stop.
pub struct Watch<'w> {
    /// What is done and in total: tensors while measuring, bytes read while writing.
    pub progress: &'w mut dyn FnMut(u64, u64),
    pub cancel: &'w std::sync::atomic::AtomicBool,
}

impl Step {
    fn changes(&self) -> bool {
        self.to != self.tensor.format
    }

    fn weights(&self) -> u64 {
        self.tensor.shape.iter().product::<usize>() as u64
    }

    fn cols(&self) -> usize {
        self.tensor.shape.last().copied().unwrap_or(1)
    }

    /// Bytes in the new file.
    fn bytes(&self) -> u64 {
        bytes_as(&self.tensor, self.to)
    }
}

/// Bytes of a tensor as `format`, whose blocks divide its rows.
fn bytes_as(tensor: &TensorInfo, format: Format) -> u64 {
    let weights = tensor.shape.iter().product::<usize>();
    (weights / format.block_len() * format.block_bytes()) as u64
}

fn totals(steps: &[Step]) -> (u64, u64) {
    steps.iter().fold((0, 0), |(bytes, weights), s| (bytes + s.bytes(), weights + s.weights()))
}

/// Types by a rule that knows names only.
fn by_rule(file: &ModelFile, slots: &[Slot], mix: Mix, head: Option<Format>) -> Vec<Step> {
    let shape = Shape {
        arch: if file.metadata().str("general.architecture").ok().flatten() == Some("llama") {
            "llama"
        } else {
            ""
        },
        layers: roles::layers(slots),
        tied: roles::is_tied(file),
        ..Shape::DENSE
    };
    let types = mix_types(slots, &shape, mix, None);
    // The same with rows of whole superblocks: what is different fell back.
    let whole = |s: &Slot| Slot { shape: s.shape.iter().map(|_| 256).collect(), ..s.clone() };
    let wished = mix_types(&slots.iter().map(whole).collect::<Vec<_>>(), &shape, mix, None);
    let chosen = slots.iter().zip(file.tensors()).zip(types.into_iter().zip(wished));
    chosen
        .map(|((slot, tensor), (to, wish))| {
            if !roles::is_quantized(slot.role) {
                return Step { tensor: tensor.clone(), to: tensor.format, fell_back: false };
            }
            let (to, fell_back) = match (roles::is_head(slot.role, shape.tied), head, mix) {
                (true, Some(head), _) => roles::fitting(head, slot),
                (true, None, Mix::Plain(_)) => (wider(to, head_type(slot)), false),
                _ => (to, to != wish),
            };
            Step { tensor: tensor.clone(), to, fell_back }
        })
        .collect()
}

fn wider(a: Format, b: Format) -> Format {
    if b.bits_per_weight() > a.bits_per_weight() { b } else { a }
}

/// Everything that is quantized becomes F16.
fn dithered(file: &ModelFile) -> Result<Vec<Step>, QuantizeError> {
    let step = |tensor: &TensorInfo| {
        let quantized = tensor.format.block_len() > 1;
        if quantized && !measure::is_even(tensor.format) {
            return Err(QuantizeError::Uneven { tensor: tensor.name.clone(), format: tensor.format });
        }
        let to = if quantized { Format::F16 } else { tensor.format };
        Ok(Step { tensor: tensor.clone(), to, fell_back: false })
    };
    file.tensors().iter().map(step).collect()
}

fn by_budget(
    file: &ModelFile,
    slots: &[Slot],
    goal: Goal,
    options: Options,
    watch: &mut Watch<'_>,
) -> Result<Vec<Step>, QuantizeError> {
    let keep = |tensor: &TensorInfo| Step { tensor: tensor.clone(), to: tensor.format, fell_back: false };
    let mut steps: Vec<Step> = file.tensors().iter().map(keep).collect();
    let weights: u64 = steps.iter().map(Step::weights).sum();
    // What a file takes besides its tensors.
    let overhead = match goal {
        Goal::Bytes(_) => {
            header_bytes(&header(file, &steps, Some(0))?)? + steps.len() as u64 * alignment(file)
        }
        _ => 0,
    };
    let budget = match goal {
        Goal::Bits(bits) if bits > 0.0 && bits <= 32.0 => (bits * weights as f64 / 8.0) as u64,
        Goal::Bits(wanted) => return Err(QuantizeError::Bits { wanted }),
        Goal::Bytes(most) => most.saturating_sub(overhead),
        _ => 0,
    };
    let (tied, layers) = (roles::is_tied(file), roles::layers(slots));
    let pinned = |slot: &Slot| options.head.filter(|_| roles::is_head(slot.role, tied));
    let measured = measure::all(file, slots, &pinned, options.threads.max(1), watch)?;
    let kept: u64 = steps.iter().zip(&measured).filter(|(_, m)| m.is_empty()).map(|(s, _)| s.bytes()).sum();
    let losses: Vec<Vec<budget::Candidate>> = slots
        .iter()
        .zip(&measured)
        .map(|(slot, measured)| {
            let weight = roles::sensitivity(slot, tied, layers);
            measured.iter().map(|m| budget::Candidate { bytes: m.bytes, loss: weight * m.error }).collect()
        })
        .collect();
    match budget::spend(&losses, budget.saturating_sub(kept)) {
        Ok(chosen) => {
            for ((step, measured), choice) in steps.iter_mut().zip(&measured).zip(chosen) {
                if let Some(Measured { format, .. }) = measured.get(choice) {
                    step.to = *format;
                }
            }
            Ok(steps)
        }
        Err(least) => {
            let least = least + kept;
            let (wanted, least) = match goal {
                Goal::Bytes(most) => {
                    (format!("a file of {most} bytes"), format!("{} bytes", least + overhead))
                }
                _ => {
                    let bits = |bytes: u64| format!("{:.2}", bytes as f64 * 8.0 / weights as f64);
                    (format!("{} bits a weight", bits(budget)), bits(least))
                }
            };
            Err(QuantizeError::TooSmall { wanted, least, narrow: narrow(slots) })
        }
    }
}

/// Matrices that the types with superblocks do not fit.
fn narrow(slots: &[Slot]) -> usize {
    let narrow = |s: &&Slot| {
        roles::is_quantized(s.role) && s.shape.last().is_some_and(|cols| !cols.is_multiple_of(256))
    };
    slots.iter().filter(narrow).count()
}

/// The type that holds most weights.
fn most_of(steps: &[Step]) -> Option<Format> {
    let weights = |format: Format| steps.iter().filter(|s| s.to == format).map(Step::weights).sum::<u64>();
    Format::ALL.iter().copied().max_by_key(|&format| weights(format))
}

fn alignment(file: &ModelFile) -> u64 {
    file.metadata().u64("general.alignment").ok().flatten().filter(|a| *a > 0).unwrap_or(32)
}

/// The model's keys, with what no longer holds changed, and the new tensor table.
fn header(file: &ModelFile, steps: &[Step], file_type: Option<u32>) -> Result<Writer, QuantizeError> {
    let mut writer = Writer::new();
    for (key, value) in file.metadata().iter() {
        // A split model becomes one file; an importance matrix of earlier weights says nothing of these.
        if !key.starts_with("split.") && !key.starts_with("quantize.imatrix.") {
            writer.set(key, value.clone());
        }
    }
    if let Some(file_type) = file_type {
        writer.set("general.file_type", Value::U32(file_type));
    }
    writer.set("general.quantization_version", Value::U32(2));
    for step in steps {
        writer.tensor(&step.tensor.name, step.to, &step.tensor.shape)?;
    }
    Ok(writer)
}

fn header_bytes(writer: &Writer) -> Result<u64, QuantizeError> {
    let mut bytes = Vec::new();
    writer.begin(&mut bytes)?;
    Ok(bytes.len() as u64)
}
