//! The tensors of a model by name, shape and role, for each family of architectures, under the names of llama.cpp's
//! `llama-arch.cpp`. Written apart from hob-model's own list so that a file can be made for an architecture that hob
//! cannot run yet; tests compare the two. It must not know formats or bytes.

use super::shapes::{Delta, Experts, Shape};

/// What a tensor is for, as far as its type and its values depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Embedding,
    Head,
    /// A matrix that is quantized.
    Matrix,
    /// The matrices of all experts, `[experts, rows, cols]`.
    Experts,
    /// Chooses experts; stays F32.
    Router,
    /// A short convolution over positions, `[channels, columns]`; stays F32.
    Conv,
    Norm,
    /// Norms of every head of Q or K.
    QkNorm,
    Bias,
    /// Decay rates of a delta net, negative.
    Decay,
    /// Divisors of rotary frequencies.
    Divisors,
}

/// One tensor to be made.
#[derive(Clone, Debug, PartialEq)]
pub struct Slot {
    pub name: String,
    /// Outermost first.
    pub shape: Vec<usize>,
    pub role: Role,
    /// The layer it belongs to.
    pub layer: Option<usize>,
}

/// All tensors of `shape` as architecture `arch` has them, in file order.
pub fn table(shape: &Shape, arch: &str) -> Vec<Slot> {
    let mut list = Table { slots: Vec::new(), layer: None };
    list.add("token_embd.weight", &[shape.vocab, shape.dim], Role::Embedding);
    if arch == "llama" && shape.rope_factor != 1.0 {
        list.add("rope_freqs.weight", &[shape.head_dim / 2], Role::Divisors);
    }
    for i in 0..shape.layers {
        list.layer = Some(i);
        list.norm("attn_norm", shape.dim);
        match (shape.attends(i), shape.delta) {
            (true, _) => list.attention(shape, arch),
            (false, Some(delta)) => list.delta(shape.dim, delta),
            (false, None) => list.short_conv(shape.dim),
        }
        let pre_ffn = if shape.delta.is_some() { "post_attention_norm" } else { "ffn_norm" };
        list.norm(pre_ffn, shape.dim);
        match shape.experts {
            Some(experts) => list.experts(shape.dim, experts),
            None => list.feed_forward(shape.dim, shape.ffn),
        }
        if arch == "gemma3" {
            list.norm("post_attention_norm", shape.dim);
            list.norm("post_ffw_norm", shape.dim);
        }
    }
    list.layer = None;
    list.norm(if arch == "lfm2" { "token_embd_norm" } else { "output_norm" }, shape.dim);
    if !shape.tied {
        list.add("output.weight", &[shape.vocab, shape.dim], Role::Head);
    }
    list.slots
}

struct Table {
    slots: Vec<Slot>,
    layer: Option<usize>,
}

impl Table {
    fn add(&mut self, name: &str, shape: &[usize], role: Role) {
        let name = self.layer.map_or_else(|| name.to_string(), |i| format!("blk.{i}.{name}"));
        self.slots.push(Slot { name, shape: shape.to_vec(), role, layer: self.layer });
    }

    fn matrix(&mut self, name: &str, rows: usize, cols: usize) {
        self.add(&format!("{name}.weight"), &[rows, cols], Role::Matrix);
    }

    fn norm(&mut self, name: &str, width: usize) {
        self.add(&format!("{name}.weight"), &[width], Role::Norm);
    }

    fn attention(&mut self, shape: &Shape, arch: &str) {
        let (wide, narrow) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        // qwen3.5's query rows come with as many rows of an output gate.
        let query = if arch == "qwen35moe" { 2 * wide } else { wide };
        for (name, rows) in [("attn_q", query), ("attn_k", narrow), ("attn_v", narrow)] {
            self.matrix(name, rows, shape.dim);
            if arch == "qwen2" {
                self.add(&format!("{name}.bias"), &[rows], Role::Bias);
            }
        }
        self.matrix("attn_output", shape.dim, wide);
        if matches!(arch, "qwen3" | "qwen3moe" | "qwen35moe" | "gemma3" | "lfm2") {
            for name in ["attn_q_norm", "attn_k_norm"] {
                self.add(&format!("{name}.weight"), &[shape.head_dim], Role::QkNorm);
            }
        }
    }

    fn short_conv(&mut self, dim: usize) {
        self.add("shortconv.conv.weight", &[dim, super::SHORT_CONV], Role::Conv);
        self.matrix("shortconv.in_proj", 3 * dim, dim);
        self.matrix("shortconv.out_proj", dim, dim);
    }

    fn delta(&mut self, dim: usize, delta: Delta) {
        let values = delta.value_heads * delta.head_dim;
        let channels = 2 * delta.key_heads * delta.head_dim + values;
        self.matrix("attn_qkv", channels, dim);
        self.matrix("attn_gate", values, dim);
        self.add("ssm_conv1d.weight", &[channels, delta.conv], Role::Conv);
        self.add("ssm_dt.bias", &[delta.value_heads], Role::Bias);
        self.add("ssm_a", &[delta.value_heads], Role::Decay);
        self.matrix("ssm_alpha", delta.value_heads, dim);
        self.matrix("ssm_beta", delta.value_heads, dim);
        self.norm("ssm_norm", delta.head_dim);
        self.matrix("ssm_out", dim, values);
    }

    fn feed_forward(&mut self, dim: usize, ffn: usize) {
        self.matrix("ffn_gate", ffn, dim);
        self.matrix("ffn_up", ffn, dim);
        self.matrix("ffn_down", dim, ffn);
    }

    fn experts(&mut self, dim: usize, experts: Experts) {
        let Experts { count, ffn, shared_ffn, .. } = experts;
        self.add("ffn_gate_inp.weight", &[count, dim], Role::Router);
        self.add("ffn_gate_exps.weight", &[count, ffn, dim], Role::Experts);
        self.add("ffn_up_exps.weight", &[count, ffn, dim], Role::Experts);
        self.add("ffn_down_exps.weight", &[count, dim, ffn], Role::Experts);
        if shared_ffn > 0 {
            self.add("ffn_gate_inp_shexp.weight", &[dim], Role::Router);
            self.matrix("ffn_gate_shexp", shared_ffn, dim);
            self.matrix("ffn_up_shexp", shared_ffn, dim);
            self.matrix("ffn_down_shexp", dim, shared_ffn);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synth::shapes::find;

    fn names(name: &str) -> Vec<(String, Vec<usize>)> {
        let shape = find(name).expect(name);
        table(shape, shape.arch).into_iter().map(|s| (s.name, s.shape)).collect()
    }

    #[test]
    fn names_are_unique_and_short_enough_for_ggml() {
        for shape in crate::synth::SHAPES {
            let mut all: Vec<String> = table(shape, shape.arch).into_iter().map(|s| s.name).collect();
            let count = all.len();
            all.sort();
            all.dedup();
            assert_eq!(all.len(), count, "{}", shape.name);
            assert!(all.iter().all(|n| n.len() < 64), "{}", shape.name);
        }
    }

    #[test]
    fn families_have_what_sets_them_apart() {
        let has = |model: &str, name: &str| names(model).into_iter().find(|(n, _)| n == name).map(|(_, s)| s);
        assert_eq!(has("llama3.2-1b", "rope_freqs.weight"), Some(vec![32]));
        assert_eq!(has("qwen2.5-0.5b", "blk.0.attn_k.bias"), Some(vec![128]));
        assert_eq!(has("qwen3-1.7b", "blk.27.attn_q_norm.weight"), Some(vec![128]));
        assert_eq!(has("qwen3-30b-a3b", "blk.0.ffn_down_exps.weight"), Some(vec![128, 2048, 768]));
        assert_eq!(has("gemma3-270m", "blk.17.post_ffw_norm.weight"), Some(vec![640]));
        assert_eq!(has("lfm2-1.2b", "blk.0.shortconv.conv.weight"), Some(vec![2048, 3]));
        assert_eq!(has("lfm2-1.2b", "blk.2.attn_k_norm.weight"), Some(vec![64]));
        assert_eq!(has("lfm2-1.2b", "token_embd_norm.weight"), Some(vec![2048]));
        assert_eq!(has("qwen3.5-35b-a3b", "blk.3.attn_q.weight"), Some(vec![8192, 2048]));
        assert_eq!(has("qwen3.5-35b-a3b", "blk.0.attn_qkv.weight"), Some(vec![8192, 2048]));
        assert_eq!(has("qwen3.5-35b-a3b", "blk.0.ffn_norm.weight"), None);
        assert_eq!(has("smollm2-135m", "output.weight"), None);
    }
}
