//! Rows of a slot that stand apart in a file: the experts of a layer, stacked in one tensor, gate and up fused, or a tensor
//! each; rows of a matrix between those of others.
//!
//! A slot lists the forms it may have; the first that the source has is read, as one run of rows. It must not know what
//! experts compute.

mod sources;

use std::sync::{Arc, Mutex};

use hob_compute::ByteSource;
use hob_quant::Format;

use crate::{ModelError, Naming, Result, Slot, TensorSource};
use sources::{Blocks, Chain, Columns, Link};

/// Rows of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Name of the tensor.
    pub name: String,
    /// Shape of the whole tensor, outermost dimension first.
    pub shape: Vec<usize>,
    /// First row; all dimensions but the last count as rows.
    pub first: usize,
    pub rows: usize,
    pub stored: Stored,
}

/// How the rows of a part lie in the file.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Stored {
    /// One behind the other.
    Rows,
    /// MXFP4, every `step`-th row: codes in the tensor `NAME_blocks`, `[.., cols / 32, 16]`, scales in `NAME_scales`,
    /// `[.., cols / 32]`; both of type U8. The part's shape is that of the weights.
    Blocks { step: usize },
    /// As every `step`-th column of as many rows as the slot has columns, from row `row` and column `first` on.
    Columns { row: usize, step: usize },
}

/// What rows that stand apart add to a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stacked {
    /// Of experts: how many of them one token reads.
    pub used: usize,
    /// Each form covers the slot's rows, in order.
    pub forms: Vec<Vec<Part>>,
}

/// How files spell one of the matrices of a layer's experts, within the layer.
#[derive(Copy, Clone, Debug)]
pub(crate) struct ExpertNames {
    /// Stacked in a GGUF.
    pub gguf: &'static str,
    /// One expert in safetensors, `{}` being its number.
    pub hf_each: &'static str,
    /// Stacked in safetensors, possibly with others.
    pub hf_stacked: &'static str,
    /// Gate and up as one in a GGUF; for the two of them only.
    pub gguf_fused: Option<&'static str>,
    /// Whether `hf_stacked` is as gpt-oss has it: MXFP4 in two tensors, or rows and columns swapped; gate and up take
    /// turns. There are no tensors of one expert then.
    pub hf_turns: bool,
}

/// Which of the fused matrices of every expert a slot is.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Half {
    pub index: usize,
    pub of: usize,
}

/// The forms of `count` experts of `[rows, cols]` in layer `i`; the first is the one a synthesizer writes.
pub(crate) fn forms(
    naming: Naming,
    i: usize,
    names: ExpertNames,
    half: Half,
    [count, rows, cols]: [usize; 3],
) -> Vec<Vec<Part>> {
    let whole = |name: String| vec![Part::rows(name, vec![count, rows, cols], 0, count * rows)];
    let halves = |name: String| -> Vec<Part> {
        let shape = vec![count, half.of * rows, cols];
        let first = |e: usize| (e * half.of + half.index) * rows;
        (0..count).map(|e| Part::rows(name.clone(), shape.clone(), first(e), rows)).collect()
    };
    match naming {
        Naming::Gguf => {
            let stacked = whole(format!("blk.{i}.{}.weight", names.gguf));
            let fused = names.gguf_fused.map(|name| halves(format!("blk.{i}.{name}.weight")));
            std::iter::once(stacked).chain(fused).collect()
        }
        Naming::HuggingFace => {
            let name =
                |e: usize| format!("model.layers.{i}.{}.weight", names.hf_each.replace("{}", &e.to_string()));
            let one = |e| Part::rows(name(e), vec![rows, cols], 0, rows);
            let stacked = format!("model.layers.{i}.{}", names.hf_stacked);
            if names.hf_turns {
                return turns(&stacked, half, [count, rows, cols]);
            }
            let stacked = if half.of == 1 { whole(stacked) } else { halves(stacked) };
            vec![(0..count).map(one).collect(), stacked]
        }
    }
}

impl Part {
    pub(crate) fn rows(name: String, shape: Vec<usize>, first: usize, rows: usize) -> Part {
        Part { name, shape, first, rows, stored: Stored::Rows }
    }

    /// The two tensors of [`Stored::Blocks`], with their shapes.
    fn blocks(&self) -> [(String, Vec<usize>); 2] {
        let (cols, outer) = self.shape.split_last().map_or((0, &[][..]), |(cols, outer)| (cols / 32, outer));
        let scales = [outer, &[cols]].concat();
        let codes = [&scales[..], &[16]].concat();
        [(format!("{}_blocks", self.name), codes), (format!("{}_scales", self.name), scales)]
    }
}

/// The forms of gpt-oss, of which `half` takes every other row or column.
fn turns(name: &str, half: Half, [count, rows, cols]: [usize; 3]) -> Vec<Vec<Part>> {
    let (step, all) = (half.of, half.of * rows);
    let part = |shape: [usize; 3], first, stored| Part {
        name: name.to_string(),
        shape: shape.to_vec(),
        first,
        rows,
        stored,
    };
    let blocks = |e: usize| part([count, all, cols], e * all + half.index, Stored::Blocks { step });
    let columns = |e| part([count, cols, all], half.index, Stored::Columns { row: e * cols, step });
    vec![(0..count).map(blocks).collect(), (0..count).map(columns).collect()]
}

/// The form that `source` has: the first whose first tensor is there; failing that, the first of all.
pub(crate) fn form<'s>(stacked: &'s Stacked, source: &dyn TensorSource) -> &'s [Part] {
    let has = |part: &Part| match part.stored {
        Stored::Blocks { .. } => source.bytes_of(&part.blocks()[0].0).is_some(),
        Stored::Rows | Stored::Columns { .. } => source.tensor(&part.name).is_some(),
    };
    let there = |form: &&Vec<Part>| form.first().is_some_and(has);
    stacked.forms.iter().find(there).or(stacked.forms.first()).map_or(&[], Vec::as_slice)
}

/// Every tensor of the form must be there, of its shape, all of one format.
///
/// # Errors
/// [`ModelError::MissingTensor`], [`ModelError::TensorShape`] or [`ModelError::TensorFormat`], naming the tensor.
pub(crate) fn check(
    form: &[Part],
    source: &dyn TensorSource,
    mut one: impl FnMut(&Part) -> Result<Format>,
) -> Result<Format> {
    let mut first = None;
    for part in form {
        let found = match part.stored {
            Stored::Blocks { .. } => check_blocks(part, source)?,
            Stored::Rows => one(part)?,
            // Blocks lie along rows: turned, the values stand alone.
            Stored::Columns { .. } => match one(part)? {
                format if format.block_len() == 1 => format,
                _ => Format::F16,
            },
        };
        let expected: Format = *first.get_or_insert(found);
        if found != expected {
            let (name, expected) = (part.name.clone(), format!("{expected}, as the rows before it"));
            return Err(ModelError::TensorFormat { name, expected, found: found.to_string() });
        }
    }
    let nothing = || ModelError::layout("rows in at least one form", format!("none ({:?})", source.naming()));
    first.ok_or_else(nothing)
}

/// Both tensors of an MXFP4 part must be there, of their shapes.
fn check_blocks(part: &Part, source: &dyn TensorSource) -> Result<Format> {
    for (name, shape) in part.blocks() {
        let Some(found) = source.bytes_of(&name) else {
            let (rows, cols) = (part.rows, part.shape.last().copied().unwrap_or(0));
            return Err(ModelError::MissingTensor { name, rows, cols, arch: "mixture".into() });
        };
        if found.shape != shape {
            let (expected, found) = (format!("{shape:?}"), format!("{:?}", found.shape));
            return Err(ModelError::TensorShape { name, expected, found });
        }
    }
    Ok(Format::MXFP4)
}

/// The slot's rows as one run of bytes.
///
/// # Errors
/// [`ModelError::MissingTensor`], or rows that are no whole blocks of the format.
pub(crate) fn open(
    slot: &Slot,
    stacked: &Stacked,
    format: Format,
    source: &dyn TensorSource,
) -> Result<Arc<dyn ByteSource>> {
    let Some(row) = format.row_bytes(slot.cols).map(|b| b as u64) else {
        let problem = format!("{} columns do not make whole blocks of {format}", slot.cols);
        return Err(ModelError::Tensor { name: slot.name.clone(), problem });
    };
    let mut links: Vec<Link> = Vec::new();
    let mut end = 0;
    let mut last: Option<(&str, Arc<dyn ByteSource>)> = None;
    for part in form(stacked, source) {
        let missing = |name: &str| {
            let (name, arch) = (name.to_string(), "this architecture".to_string());
            ModelError::MissingTensor { name, rows: part.rows, cols: slot.cols, arch }
        };
        end += part.rows as u64 * row;
        if let Stored::Blocks { step } = part.stored {
            let [codes, scales] = part.blocks().map(|(name, _)| {
                source.bytes_of(&name).map(|t| source.open(&t)).ok_or_else(|| missing(&name))
            });
            let (codes, scales, blocks) = (codes?, scales?, slot.cols / 32);
            let bytes = Blocks { codes, scales, first: part.first, step, rows: part.rows, blocks };
            links.push(Link { bytes: Arc::new(bytes), start: 0, end });
            continue;
        }
        let tensor = source.tensor(&part.name).ok_or_else(|| missing(&part.name))?;
        let bytes = match &last {
            Some((name, bytes)) if *name == part.name => bytes.clone(),
            _ => source.open(tensor),
        };
        last = Some((&part.name, bytes.clone()));
        links.push(match part.stored {
            Stored::Columns { row, step } => {
                let bytes = columns(part, (row, step), slot.cols, ([tensor.format, format], bytes))?;
                Link { bytes: Arc::new(bytes), start: 0, end }
            }
            _ => Link { bytes, start: part.first as u64 * row, end },
        });
    }
    Ok(match links.as_slice() {
        [Link { bytes, start: 0, end }] if bytes.len() == *end => bytes.clone(),
        _ => Arc::new(Chain(links)),
    })
}

/// `formats` are those of the tensor and of the slot.
fn columns(
    part: &Part,
    (row, step): (usize, usize),
    cols: usize,
    (formats, bytes): ([Format; 2], Arc<dyn ByteSource>),
) -> Result<Columns> {
    let (first, rows, width) = (part.first, part.rows, step * part.rows);
    let Some(row_bytes) = formats[0].row_bytes(width) else {
        let problem = format!("{width} columns do not make whole blocks of {}", formats[0]);
        return Err(ModelError::Tensor { name: part.name.clone(), problem });
    };
    let (start, turned) = ((row * row_bytes) as u64, Mutex::new(None));
    Ok(Columns { bytes, start, formats, width, first, step, rows, cols, turned })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_of_a_fused_tensor_alternate() {
        let names = ExpertNames {
            gguf: "ffn_up_exps",
            hf_each: "mlp.experts.{}.up_proj",
            hf_stacked: "mlp.experts.gate_up_proj",
            gguf_fused: Some("ffn_gate_up_exps"),
            hf_turns: false,
        };
        let forms = forms(Naming::HuggingFace, 3, names, Half { index: 1, of: 2 }, [2, 5, 7]);
        assert_eq!(forms[0][1].name, "model.layers.3.mlp.experts.1.up_proj.weight");
        let firsts: Vec<usize> = forms[1].iter().map(|p| p.first).collect();
        assert_eq!((firsts, &forms[1][0].shape), (vec![5, 15], &vec![2, 10, 7]));
    }
}
