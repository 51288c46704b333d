//! Tiny llama and qwen2 models with seeded random weights, written as GGUF or as a Hugging Face folder. Both files of a
//! spec are the same model: same weights, same vocabulary, same end tokens. It must not know how models are loaded, nor
//! any quantized format: the caller passes an encoder.

mod gguf;
mod hf;
pub mod vocab;

pub use gguf::f32_encode;

use crate::rng::Rng;

/// A type id and the bytes of a matrix in that format; see [`TinySpec::gguf_bytes`].
pub type Encoded = (u32, Vec<u8>);

/// Packs a matrix: `(gguf name, rows, cols, weights)` to [`Encoded`].
pub type Encode<'a> = dyn Fn(&str, usize, usize, &[f32]) -> Encoded + 'a;

/// The architectures that can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arch {
    Llama,
    Qwen2,
}

impl Arch {
    /// The name in `general.architecture` and `model_type`.
    pub fn name(self) -> &'static str {
        match self {
            Arch::Llama => "llama",
            Arch::Qwen2 => "qwen2",
        }
    }
}

/// The shape of a tiny model. All fields may be changed before writing.
#[derive(Debug, Clone, PartialEq)]
pub struct TinySpec {
    pub arch: Arch,
    pub layers: usize,
    /// Width of the residual stream.
    pub dim: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Inner width of the gated feed-forward.
    pub ffn: usize,
    /// At least [`vocab::MIN_SIZE`].
    pub vocab: usize,
    /// The context length stated in the file, in tokens.
    pub ctx: usize,
    /// Whether the embedding doubles as the output head.
    pub tied: bool,
    /// Whether queries, keys and values have a bias (for llama the attention output too, as its `attention_bias` says).
    pub bias: bool,
    pub rms_eps: f32,
    pub rope_base: f32,
    pub seed: u64,
}

/// One tensor of a tiny model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TinyTensor {
    /// Name in GGUF, e.g. `blk.0.attn_q.weight`.
    pub gguf_name: String,
    /// Name in safetensors, e.g. `model.layers.0.self_attn.q_proj.weight`.
    pub hf_name: String,
    /// Output features; 1 for vectors.
    pub rows: usize,
    /// Input features, or the length of a vector.
    pub cols: usize,
    /// A norm weight or a bias: one dimension, always stored as F32.
    pub vector: bool,
    kind: Kind,
    /// Where the rows are rotary pairs, of how many heads.
    rotary_heads: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Matrix,
    Norm,
    Bias,
}

impl TinySpec {
    /// Two layers of width 64 with grouped heads and a tied head: the shape of the default model in small.
    pub fn llama() -> Self {
        Self {
            arch: Arch::Llama,
            layers: 2,
            dim: 64,
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
            ffn: 96,
            vocab: 320,
            ctx: 512,
            tied: true,
            bias: false,
            rms_eps: 1e-5,
            rope_base: 10_000.0,
            seed: 1,
        }
    }

    /// As [`TinySpec::llama`], with a separate head and biases.
    pub fn qwen2() -> Self {
        Self { arch: Arch::Qwen2, tied: false, bias: true, rms_eps: 1e-6, rope_base: 1e6, ..Self::llama() }
    }

    /// Every tensor in file order.
    pub fn tensors(&self) -> Vec<TinyTensor> {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut list = vec![matrix("token_embd", "model.embed_tokens", self.vocab, self.dim)];
        for layer in 0..self.layers {
            let mut add = |tensor: TinyTensor| {
                list.push(TinyTensor {
                    gguf_name: format!("blk.{layer}.{}", tensor.gguf_name),
                    hf_name: format!("model.layers.{layer}.{}", tensor.hf_name),
                    ..tensor
                });
            };
            add(vector("attn_norm.weight", "input_layernorm.weight", self.dim, Kind::Norm));
            for (gguf, hf, rows, rotary_heads) in [
                ("attn_q", "self_attn.q_proj", q, Some(self.heads)),
                ("attn_k", "self_attn.k_proj", kv, Some(self.kv_heads)),
                ("attn_v", "self_attn.v_proj", kv, None),
            ] {
                add(TinyTensor { rotary_heads, ..matrix(gguf, hf, rows, self.dim) });
                if self.bias {
                    let bias = vector(&format!("{gguf}.bias"), &format!("{hf}.bias"), rows, Kind::Bias);
                    add(TinyTensor { rotary_heads, ..bias });
                }
            }
            add(matrix("attn_output", "self_attn.o_proj", self.dim, q));
            if self.bias && self.arch == Arch::Llama {
                add(vector("attn_output.bias", "self_attn.o_proj.bias", self.dim, Kind::Bias));
            }
            add(vector("ffn_norm.weight", "post_attention_layernorm.weight", self.dim, Kind::Norm));
            add(matrix("ffn_gate", "mlp.gate_proj", self.ffn, self.dim));
            add(matrix("ffn_up", "mlp.up_proj", self.ffn, self.dim));
            add(matrix("ffn_down", "mlp.down_proj", self.dim, self.ffn));
        }
        list.push(vector("output_norm.weight", "model.norm.weight", self.dim, Kind::Norm));
        if !self.tied {
            list.push(matrix("output", "lm_head", self.vocab, self.dim));
        }
        list
    }

    /// The weights of `tensor`, `[rows, cols]` row by row, in the row order of safetensors. They depend only on the
    /// seed, the name and the shape: normal of deviation 1/sqrt(cols), norms around 1, biases around 0.
    pub fn weights(&self, tensor: &TinyTensor) -> Vec<f32> {
        let mut rng = Rng::for_label(self.seed, &tensor.gguf_name);
        let n = tensor.rows * tensor.cols;
        match tensor.kind {
            Kind::Matrix => rng.normal_vec(n, 1.0 / (tensor.cols as f32).sqrt()),
            Kind::Norm => rng.uniform_vec(n, 0.8, 1.2),
            Kind::Bias => rng.normal_vec(n, 0.1),
        }
    }

    /// The weights in the row order of GGUF: for llama, queries and keys have the two halves of each head interleaved,
    /// because there GGUF rotates neighbors where safetensors rotates halves.
    pub fn gguf_weights(&self, tensor: &TinyTensor) -> Vec<f32> {
        let weights = self.weights(tensor);
        let (Arch::Llama, Some(heads)) = (self.arch, tensor.rotary_heads) else { return weights };
        let (rows, cols) = if tensor.vector { (tensor.cols, 1) } else { (tensor.rows, tensor.cols) };
        let half = rows / heads / 2;
        let mut out = Vec::with_capacity(weights.len());
        for row in 0..rows {
            let (head, within) = (row / (2 * half), row % (2 * half));
            let source = head * 2 * half + (within % 2) * half + within / 2;
            out.extend_from_slice(&weights[source * cols..][..cols]);
        }
        out
    }
}

fn matrix(gguf: &str, hf: &str, rows: usize, cols: usize) -> TinyTensor {
    let (gguf_name, hf_name) = (format!("{gguf}.weight"), format!("{hf}.weight"));
    TinyTensor { gguf_name, hf_name, rows, cols, vector: false, kind: Kind::Matrix, rotary_heads: None }
}

fn vector(gguf: &str, hf: &str, cols: usize, kind: Kind) -> TinyTensor {
    TinyTensor {
        gguf_name: gguf.to_owned(),
        hf_name: hf.to_owned(),
        rows: 1,
        cols,
        vector: true,
        kind,
        rotary_heads: None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::TinySpec;

    #[test]
    fn tensor_lists_have_the_parts_their_spec_asks_for() {
        let llama: Vec<_> = TinySpec::llama().tensors();
        assert_eq!(llama.len(), 2 + 2 * 9, "embedding, output norm and nine per layer");
        assert!(llama.iter().all(|t| t.gguf_name != "output.weight" && !t.gguf_name.ends_with(".bias")));
        let qwen2 = TinySpec::qwen2().tensors();
        assert_eq!(qwen2.len(), 3 + 2 * 12);
        assert!(qwen2.iter().any(|t| t.hf_name == "model.layers.1.self_attn.k_proj.bias" && t.cols == 32));
        for list in [llama, qwen2] {
            let names: HashSet<_> = list.iter().flat_map(|t| [&t.gguf_name, &t.hf_name]).collect();
            assert_eq!(names.len(), 2 * list.len(), "names are distinct");
        }
    }

    #[test]
    fn weights_depend_on_seed_and_name_only() {
        let spec = TinySpec::llama();
        let tensors = spec.tensors();
        let other = TinySpec { seed: 2, ..spec.clone() };
        assert_eq!(spec.weights(&tensors[2]), TinySpec { layers: 9, ..spec.clone() }.weights(&tensors[2]));
        assert_ne!(spec.weights(&tensors[2]), other.weights(&tensors[2]));
        assert_ne!(spec.weights(&tensors[0])[..64], spec.weights(&tensors[2])[..64]);
        assert!(spec.weights(&tensors[1]).iter().all(|w| (0.8..1.2).contains(w)), "a norm");
    }

    #[test]
    fn llama_rotary_rows_are_interleaved_in_gguf_only() {
        let spec = TinySpec::llama();
        let tensors = spec.tensors();
        let q = tensors.iter().find(|t| t.gguf_name == "blk.0.attn_q.weight").expect("a query");
        let (hf, gguf) = (spec.weights(q), spec.gguf_weights(q));
        // Head 1 of width 16 starts at row 16: GGUF rows 16, 17, 18 are rows 16, 24, 17 of safetensors.
        for (to, from) in [(0, 0), (1, 8), (2, 1), (15, 15), (16, 16), (17, 24), (18, 17)] {
            assert_eq!(gguf[to * 64..][..64], hf[from * 64..][..64], "GGUF row {to}");
        }
        let biased = TinySpec { bias: true, ..spec.clone() };
        let list = biased.tensors();
        let bias = list.iter().find(|t| t.gguf_name == "blk.0.attn_k.bias").expect("a key bias");
        assert_eq!(biased.gguf_weights(bias)[17], biased.weights(bias)[24], "a bias moves with its row");
        let v = tensors.iter().find(|t| t.gguf_name == "blk.0.attn_v.weight").expect("a value");
        assert_eq!(spec.weights(v), spec.gguf_weights(v));
        let qwen2 = TinySpec::qwen2();
        assert_eq!(qwen2.weights(q), qwen2.gguf_weights(q));
    }
}
