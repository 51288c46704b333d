//! A minimal writer of GGUF version 3 (ggml's `docs/gguf.md`) for tiny models. It must not know models beyond the spec.

use std::fs;
use std::io;
use std::path::Path;

use super::vocab::{self, TokenKind};
use super::{Arch, Encode, Encoded, TinySpec};

/// Tensor data starts and is padded to this many bytes.
const ALIGNMENT: usize = 32;

/// Type numbers of metadata values.
const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// Collects key-value pairs.
#[derive(Default)]
struct Pairs {
    count: u64,
    bytes: Vec<u8>,
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl Pairs {
    fn put(&mut self, key: &str, kind: u32, value: &[u8]) {
        self.count += 1;
        put_string(&mut self.bytes, key);
        self.bytes.extend(kind.to_le_bytes());
        self.bytes.extend(value);
    }

    fn u32(&mut self, key: &str, value: usize) {
        let value = u32::try_from(value).expect("sizes of a tiny model fit u32");
        self.put(key, U32, &value.to_le_bytes());
    }

    fn f32(&mut self, key: &str, value: f32) {
        self.put(key, F32, &value.to_le_bytes());
    }

    fn string(&mut self, key: &str, value: &str) {
        let mut bytes = Vec::new();
        put_string(&mut bytes, value);
        self.put(key, STRING, &bytes);
    }

    fn array(&mut self, key: &str, kind: u32, count: usize, items: &[u8]) {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend((count as u64).to_le_bytes());
        bytes.extend(items);
        self.put(key, ARRAY, &bytes);
    }

    fn strings<'a>(&mut self, key: &str, items: impl ExactSizeIterator<Item = &'a str>) {
        let (count, mut bytes) = (items.len(), Vec::new());
        items.for_each(|item| put_string(&mut bytes, item));
        self.array(key, STRING, count, &bytes);
    }
}

impl TinySpec {
    /// The model as the bytes of a GGUF file.
    ///
    /// `encode(gguf name, rows, cols, weights)` gives the ggml type id and the packed bytes of every matrix (return
    /// `(0, le_bytes)` for F32); norms and biases are written as F32 without asking. The names are GGUF's.
    pub fn gguf_bytes(&self, encode: &Encode) -> Vec<u8> {
        let pairs = self.pairs();
        let tensors = self.tensors();
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((tensors.len() as u64).to_le_bytes());
        out.extend(pairs.count.to_le_bytes());
        out.extend(pairs.bytes);
        let mut data = Vec::new();
        for tensor in &tensors {
            let weights = self.gguf_weights(tensor);
            let (kind, packed) = if tensor.vector {
                f32_encode(&tensor.gguf_name, 1, tensor.cols, &weights)
            } else {
                encode(&tensor.gguf_name, tensor.rows, tensor.cols, &weights)
            };
            put_string(&mut out, &tensor.gguf_name);
            // Dimensions stand innermost first.
            let dims = if tensor.vector { vec![tensor.cols] } else { vec![tensor.cols, tensor.rows] };
            out.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|&d| out.extend((d as u64).to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend((data.len() as u64).to_le_bytes());
            data.extend(packed);
            data.resize(data.len().next_multiple_of(ALIGNMENT), 0);
        }
        out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
        out.extend(data);
        out
    }

    /// Writes [`TinySpec::gguf_bytes`] to `path`.
    ///
    /// # Errors
    /// Those of writing a file.
    pub fn write_gguf(&self, path: &Path, encode: &Encode) -> io::Result<()> {
        fs::write(path, self.gguf_bytes(encode))
    }

    fn pairs(&self) -> Pairs {
        let mut pairs = Pairs::default();
        let arch = self.arch.name();
        pairs.string("general.architecture", arch);
        pairs.string("general.name", &format!("tiny {arch}"));
        pairs.u32("general.alignment", ALIGNMENT);
        for (key, value) in [
            ("block_count", self.layers),
            ("context_length", self.ctx),
            ("embedding_length", self.dim),
            ("feed_forward_length", self.ffn),
            ("attention.head_count", self.heads),
            ("attention.head_count_kv", self.kv_heads),
            ("attention.key_length", self.head_dim),
            ("attention.value_length", self.head_dim),
            ("rope.dimension_count", self.head_dim),
            ("vocab_size", self.vocab),
        ] {
            pairs.u32(&format!("{arch}.{key}"), value);
        }
        pairs.f32(&format!("{arch}.attention.layer_norm_rms_epsilon"), self.rms_eps);
        pairs.f32(&format!("{arch}.rope.freq_base"), self.rope_base);
        self.tokenizer_pairs(&mut pairs);
        pairs
    }

    fn tokenizer_pairs(&self, pairs: &mut Pairs) {
        let tokens = vocab::tokens(self.vocab);
        let merges: Vec<String> = vocab::MERGES.iter().map(|(a, b)| format!("{a} {b}")).collect();
        let kinds: Vec<u8> =
            tokens.iter().flat_map(|(_, kind): &(_, TokenKind)| (*kind as i32).to_le_bytes()).collect();
        pairs.string("tokenizer.ggml.model", "gpt2");
        pairs.string("tokenizer.ggml.pre", "gpt-2");
        pairs.strings("tokenizer.ggml.tokens", tokens.iter().map(|t| t.0.as_str()));
        pairs.array("tokenizer.ggml.token_type", I32, tokens.len(), &kinds);
        pairs.strings("tokenizer.ggml.merges", merges.iter().map(String::as_str));
        pairs.u32("tokenizer.ggml.bos_token_id", vocab::BOS as usize);
        pairs.u32("tokenizer.ggml.eos_token_id", vocab::EOS as usize);
        pairs.put("tokenizer.ggml.add_bos_token", BOOL, &[u8::from(self.arch == Arch::Llama)]);
        pairs.string("tokenizer.chat_template", vocab::CHAT_TEMPLATE);
    }
}

/// An encoder for [`TinySpec::gguf_bytes`] that keeps every matrix as F32.
pub fn f32_encode(_name: &str, _rows: usize, _cols: usize, weights: &[f32]) -> Encoded {
    (0, weights.iter().flat_map(|w| w.to_le_bytes()).collect())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::{TinySpec, f32_encode};

    /// A reader of just what these tests need.
    struct Cursor<'a>(&'a [u8], usize);

    impl Cursor<'_> {
        fn take(&mut self, n: usize) -> &[u8] {
            self.1 += n;
            &self.0[self.1 - n..self.1]
        }
        fn u32(&mut self) -> u32 {
            u32::from_le_bytes(self.take(4).try_into().expect("4 bytes"))
        }
        fn u64(&mut self) -> usize {
            u64::from_le_bytes(self.take(8).try_into().expect("8 bytes")) as usize
        }
        fn string(&mut self) -> String {
            let n = self.u64();
            String::from_utf8(self.take(n).to_vec()).expect("UTF-8")
        }
        fn skip_value(&mut self, kind: u32) {
            match kind {
                4..=6 => self.1 += 4,
                7 => self.1 += 1,
                8 => drop(self.string()),
                9 => {
                    let (kind, n) = (self.u32(), self.u64());
                    (0..n).for_each(|_| self.skip_value(kind));
                }
                other => panic!("type {other}"),
            }
        }
    }

    #[test]
    fn the_header_table_and_extents_agree() {
        let spec = TinySpec::qwen2();
        let bytes = spec.gguf_bytes(&f32_encode);
        let mut at = Cursor(&bytes, 0);
        assert_eq!(at.take(4), b"GGUF");
        assert_eq!(at.u32(), 3);
        let (tensors, pairs) = (at.u64(), at.u64());
        let mut keys = Vec::new();
        for _ in 0..pairs {
            keys.push(at.string());
            let kind = at.u32();
            at.skip_value(kind);
        }
        assert!(keys.iter().any(|k| k == "qwen2.attention.head_count_kv"), "{keys:?}");
        let mut table = Vec::new();
        for _ in 0..tensors {
            let (name, dims) = (at.string(), at.u32());
            let dims: Vec<usize> = (0..dims).map(|_| at.u64()).collect();
            assert_eq!(at.u32(), 0, "F32");
            table.push((name, dims, at.u64()));
        }
        let data = at.1.next_multiple_of(32);
        assert_eq!(table.len(), spec.tensors().len());
        for (tensor, (name, dims, offset)) in spec.tensors().iter().zip(&table) {
            assert_eq!(&tensor.gguf_name, name);
            assert_eq!(dims.iter().product::<usize>(), tensor.rows * tensor.cols);
            assert_eq!(dims[0], tensor.cols, "innermost first");
            assert!(offset.is_multiple_of(32));
            let found = f32::from_le_bytes(bytes[data + offset..][..4].try_into().expect("4 bytes"));
            assert_eq!(found, spec.gguf_weights(tensor)[0], "first weight of {name}");
        }
        let last = spec.tensors().pop().expect("tensors");
        assert_eq!(bytes.len(), data + table.last().expect("tensors").2 + 4 * last.rows * last.cols);
    }

    #[test]
    fn the_encoder_is_asked_for_every_matrix_and_no_vector() {
        let spec = TinySpec::qwen2();
        let asked = RefCell::new(Vec::new());
        spec.gguf_bytes(&|name, rows, cols, weights| {
            assert_eq!(weights.len(), rows * cols);
            asked.borrow_mut().push(name.to_owned());
            (8, vec![0; rows * cols / 32 * 34])
        });
        let expected: Vec<_> =
            spec.tensors().into_iter().filter(|t| !t.vector).map(|t| t.gguf_name).collect();
        assert_eq!(asked.into_inner(), expected);
    }
}
