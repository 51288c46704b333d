//! The experts of a layer in a file: stacked in one tensor, gate and up fused, or a tensor each.
//!
//! A slot lists the forms it may have; the first that the source has is read, as one run of rows. It must not know what
//! experts compute.

use std::sync::Arc;

use hob_compute::ByteSource;
use hob_files::TensorInfo;
use hob_quant::Format;

use crate::{ModelError, Naming, Result, Slot, TensorSource};

/// Consecutive rows of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Name of the tensor.
    pub name: String,
    /// Shape of the whole tensor, outermost dimension first.
    pub shape: Vec<usize>,
    /// First row; all dimensions but the last count as rows.
    pub first: usize,
    pub rows: usize,
}

/// What a slot of stacked experts adds to a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stacked {
    /// Experts that one token reads.
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
    let whole =
        |name: String| vec![Part { name, shape: vec![count, rows, cols], first: 0, rows: count * rows }];
    let halves = |name: String| -> Vec<Part> {
        let shape = vec![count, half.of * rows, cols];
        let first = |e: usize| (e * half.of + half.index) * rows;
        (0..count).map(|e| Part { name: name.clone(), shape: shape.clone(), first: first(e), rows }).collect()
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
            let one = |e| Part { name: name(e), shape: vec![rows, cols], first: 0, rows };
            let stacked = format!("model.layers.{i}.{}", names.hf_stacked);
            let stacked = if half.of == 1 { whole(stacked) } else { halves(stacked) };
            vec![(0..count).map(one).collect(), stacked]
        }
    }
}

/// The form that `source` has: the first whose first tensor is there; failing that, the first of all.
pub(crate) fn form<'s>(stacked: &'s Stacked, source: &dyn TensorSource) -> &'s [Part] {
    let there = |form: &&Vec<Part>| form.first().is_some_and(|p| source.tensor(&p.name).is_some());
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
        let found = one(part)?;
        let expected: Format = *first.get_or_insert(found);
        if found != expected {
            let (name, expected) = (part.name.clone(), format!("{expected}, as the experts before it"));
            return Err(ModelError::TensorFormat { name, expected, found: found.to_string() });
        }
    }
    let nothing =
        || ModelError::layout("experts in at least one form", format!("none ({:?})", source.naming()));
    first.ok_or_else(nothing)
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
    let mut links = Vec::new();
    let mut end = 0;
    let mut last: Option<(&TensorInfo, Arc<dyn ByteSource>)> = None;
    for part in form(stacked, source) {
        let Some(tensor) = source.tensor(&part.name) else {
            let (name, arch) = (part.name.clone(), "mixture".to_string());
            return Err(ModelError::MissingTensor { name, rows: part.rows, cols: slot.cols, arch });
        };
        let bytes = match &last {
            Some((of, bytes)) if of.name == tensor.name => bytes.clone(),
            _ => source.open(tensor),
        };
        last = Some((tensor, bytes.clone()));
        end += part.rows as u64 * row;
        links.push(Link { bytes, start: part.first as u64 * row, end });
    }
    Ok(match links.as_slice() {
        [Link { bytes, start: 0, end }] if bytes.len() == *end => bytes.clone(),
        _ => Arc::new(Chain(links)),
    })
}

/// A run of bytes somewhere.
struct Link {
    bytes: Arc<dyn ByteSource>,
    /// Where the run starts in `bytes`.
    start: u64,
    /// Where it ends in the chain.
    end: u64,
}

/// Runs of bytes, one after the other.
struct Chain(Vec<Link>);

impl ByteSource for Chain {
    fn len(&self) -> u64 {
        self.0.last().map_or(0, |l| l.end)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        let mut at = offset;
        let mut rest = buf;
        let first = self.0.partition_point(|l| l.end <= offset);
        let mut begin = if first == 0 { 0 } else { self.0[first - 1].end };
        for link in &self.0[first..] {
            if rest.is_empty() {
                return Ok(());
            }
            let take = usize::try_from(link.end - at).unwrap_or(usize::MAX).min(rest.len());
            let (here, later) = rest.split_at_mut(take);
            link.bytes.read_at(link.start + (at - begin), here)?;
            (at, begin, rest) = (at + take as u64, link.end, later);
        }
        if rest.is_empty() { Ok(()) } else { Err(std::io::ErrorKind::UnexpectedEof.into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bytes(Vec<u8>);

    impl ByteSource for Bytes {
        fn len(&self) -> u64 {
            self.0.len() as u64
        }
        fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
            let at = offset as usize;
            buf.copy_from_slice(self.0.get(at..at + buf.len()).ok_or(std::io::ErrorKind::UnexpectedEof)?);
            Ok(())
        }
    }

    #[test]
    fn a_chain_reads_across_its_links() {
        let bytes: Arc<dyn ByteSource> = Arc::new(Bytes((0..100).collect()));
        let link = |start, end| Link { bytes: bytes.clone(), start, end };
        // 10..13, 50..50 (nothing), 0..4, 90..95
        let chain = Chain(vec![link(10, 3), link(50, 3), link(0, 7), link(90, 12)]);
        let all = [10, 11, 12, 0, 1, 2, 3, 90, 91, 92, 93, 94];
        assert_eq!(chain.len(), 12);
        for from in 0..=12 {
            for to in from..=12 {
                let mut out = vec![0; to - from];
                chain.read_at(from as u64, &mut out).expect("inside");
                assert_eq!(out, all[from..to]);
            }
        }
        assert!(chain.read_at(5, &mut [0; 8]).is_err());
        assert!(chain.read_at(13, &mut [0; 1]).is_err());
    }

    #[test]
    fn halves_of_a_fused_tensor_alternate() {
        let names = ExpertNames {
            gguf: "ffn_up_exps",
            hf_each: "mlp.experts.{}.up_proj",
            hf_stacked: "mlp.experts.gate_up_proj",
            gguf_fused: Some("ffn_gate_up_exps"),
        };
        let forms = forms(Naming::HuggingFace, 3, names, Half { index: 1, of: 2 }, [2, 5, 7]);
        assert_eq!(forms[0][1].name, "model.layers.3.mlp.experts.1.up_proj.weight");
        let firsts: Vec<usize> = forms[1].iter().map(|p| p.first).collect();
        assert_eq!((firsts, &forms[1][0].shape), (vec![5, 15], &vec![2, 10, 7]));
    }
}
