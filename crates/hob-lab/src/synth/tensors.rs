//! The tensors of a model by name, shape and role, for each family of architectures, under the names of llama.cpp's
//! `llama-arch.cpp`. Written apart from hob-model's own list so that a file can be made for an architecture that hob
//! cannot run yet; tests compare the two. It must not know formats or bytes.

use super::shapes::{Delta, Experts, Latent, Shape, Ssm};

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
    if (arch == "llama" && shape.rope_factor != 1.0) || arch == "gemma4" {
        list.add("rope_freqs.weight", &[shape.head_dim / 2], Role::Divisors);
    }
    list.inputs(shape);
    for i in 0..shape.layers {
        list.layer = Some(i);
        list.norm("attn_norm", shape.dim);
        if let Some(ssm) = shape.ssm {
            list.sublayer(shape, arch, ssm);
            continue;
        }
        match (shape.attends(i), shape.delta) {
            (true, _) if shape.latent.is_some() => list.latent(shape),
            (true, _) => list.attention(shape, arch, i),
            (false, Some(delta)) => list.delta(shape.dim, delta),
            (false, None) => list.short_conv(shape.dim),
        }
        let second = shape.delta.is_some() || matches!(arch, "glm4moe" | "gpt-oss");
        list.norm(if second { "post_attention_norm" } else { "ffn_norm" }, shape.dim);
        let experts = shape.experts.filter(|experts| i >= experts.dense);
        if experts.is_none() || arch == "gemma4" {
            list.feed_forward(shape.dim, shape.ffn_of(i));
        }
        if let Some(experts) = experts {
            // Of DeepSeek's kin those with a compressed query choose as V3 does.
            let biased = arch == "glm4moe" || shape.latent.is_some_and(|latent| latent.q_rank > 0);
            list.experts(shape.dim, experts, (arch, biased));
        }
        if matches!(arch, "gemma3" | "gemma4") {
            list.norm("post_attention_norm", shape.dim);
            list.norm("post_ffw_norm", shape.dim);
        }
        list.input_of_layer(shape);
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

    /// What layers are told of the token.
    fn inputs(&mut self, shape: &Shape) {
        let Some(width) = shape.kinds.map(|k| k.input).filter(|&width| width > 0) else { return };
        let all = shape.layers * width;
        self.add("per_layer_token_embd.weight", &[shape.vocab, all], Role::Embedding);
        self.matrix("per_layer_model_proj", all, shape.dim);
        self.norm("per_layer_proj_norm", width);
    }

    fn input_of_layer(&mut self, shape: &Shape) {
        let Some(kinds) = shape.kinds else { return };
        self.norm("layer_output_scale", 1);
        if kinds.input > 0 {
            self.matrix("inp_gate", kinds.input, shape.dim);
            self.matrix("proj", shape.dim, kinds.input);
            self.norm("post_norm", shape.dim);
        }
    }

    fn attention(&mut self, shape: &Shape, arch: &str, i: usize) {
        let (kv_heads, head_dim) = shape.kv_of(i);
        let (wide, narrow) = (shape.heads * head_dim, kv_heads * head_dim);
        let from_keys = shape.kinds.is_some_and(|k| k.keys_are_values && !k.slides(i));
        // qwen3.5's query rows come with as many rows of an output gate.
        let query = if arch == "qwen35moe" { 2 * wide } else { wide };
        let kept = |name: &&str| *name == "attn_q" || (shape.owns_kv(i) && !(from_keys && *name == "attn_v"));
        for name in ["attn_q", "attn_k", "attn_v"].iter().filter(|name| kept(name)) {
            let rows = if *name == "attn_q" { query } else { narrow };
            self.matrix(name, rows, shape.dim);
            if matches!(arch, "qwen2" | "glm4moe" | "gpt-oss") {
                self.add(&format!("{name}.bias"), &[rows], Role::Bias);
            }
        }
        self.matrix("attn_output", shape.dim, wide);
        if arch == "gpt-oss" {
            self.add("attn_output.bias", &[shape.dim], Role::Bias);
            self.add("attn_sinks.weight", &[shape.heads], Role::Bias);
        }
        if matches!(arch, "qwen3" | "qwen3moe" | "qwen35moe" | "gemma3" | "gemma4" | "lfm2") {
            for name in ["attn_q_norm", "attn_k_norm"] {
                if name == "attn_q_norm" || shape.owns_kv(i) {
                    self.add(&format!("{name}.weight"), &[head_dim], Role::QkNorm);
                }
            }
        }
    }

    fn latent(&mut self, shape: &Shape) {
        let (dim, heads) = (shape.dim, shape.heads);
        let Some(Latent { q_rank, rank, nope, rotary, value }) = shape.latent else { return };
        if q_rank > 0 {
            self.matrix("attn_q_a", q_rank, dim);
            self.norm("attn_q_a_norm", q_rank);
            self.matrix("attn_q_b", heads * (nope + rotary), q_rank);
        } else {
            self.matrix("attn_q", heads * (nope + rotary), dim);
        }
        self.matrix("attn_kv_a_mqa", rank + rotary, dim);
        self.norm("attn_kv_a_norm", rank);
        self.add("attn_k_b.weight", &[heads, rank, nope], Role::Matrix);
        self.add("attn_v_b.weight", &[heads, value, rank], Role::Matrix);
        self.matrix("attn_output", dim, heads * value);
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

    /// The only one of a layer.
    fn sublayer(&mut self, shape: &Shape, arch: &str, ssm: Ssm) {
        let (dim, i) = (shape.dim, self.layer.unwrap_or(0));
        match (ssm.kind(i), shape.experts) {
            ('*', _) => self.attention(shape, arch, i),
            ('E', Some(experts)) => {
                let Experts { count, ffn, shared_ffn, .. } = experts;
                self.add("ffn_gate_inp.weight", &[count, dim], Role::Router);
                self.add("ffn_up_exps.weight", &[count, ffn, dim], Role::Experts);
                self.add("ffn_down_exps.weight", &[count, dim, ffn], Role::Experts);
                self.add("exp_probs_b.bias", &[count], Role::Bias);
                self.matrix("ffn_up_shexp", shared_ffn, dim);
                self.matrix("ffn_down_shexp", dim, shared_ffn);
            }
            ('-' | 'E', _) => {
                self.matrix("ffn_up", shape.ffn, dim);
                self.matrix("ffn_down", dim, shape.ffn);
            }
            _ => self.state_space(dim, ssm),
        }
    }

    fn state_space(&mut self, dim: usize, ssm: Ssm) {
        let Ssm { heads, head_dim, state_dim, groups, conv, .. } = ssm;
        let width = heads * head_dim;
        let channels = width + 2 * groups * state_dim;
        self.matrix("ssm_in", width + channels + heads, dim);
        self.add("ssm_conv1d.weight", &[channels, conv], Role::Conv);
        self.add("ssm_conv1d.bias", &[channels], Role::Bias);
        self.add("ssm_dt.bias", &[heads], Role::Bias);
        self.add("ssm_a", &[heads, 1], Role::Decay);
        self.add("ssm_d", &[heads, 1], Role::Norm);
        self.add("ssm_norm.weight", &[groups, width / groups], Role::Norm);
        self.matrix("ssm_out", dim, width);
    }

    fn feed_forward(&mut self, dim: usize, ffn: usize) {
        self.matrix("ffn_gate", ffn, dim);
        self.matrix("ffn_up", ffn, dim);
        self.matrix("ffn_down", dim, ffn);
    }

    fn experts(&mut self, dim: usize, experts: Experts, (arch, biased): (&str, bool)) {
        let Experts { count, ffn, shared_ffn, .. } = experts;
        self.add("ffn_gate_inp.weight", &[count, dim], Role::Router);
        self.add("ffn_gate_exps.weight", &[count, ffn, dim], Role::Experts);
        self.add("ffn_up_exps.weight", &[count, ffn, dim], Role::Experts);
        self.add("ffn_down_exps.weight", &[count, dim, ffn], Role::Experts);
        match arch {
            "gpt-oss" => {
                self.add("ffn_gate_inp.bias", &[count], Role::Bias);
                for (name, width) in [("gate", ffn), ("up", ffn), ("down", dim)] {
                    self.add(&format!("ffn_{name}_exps.bias"), &[count, width], Role::Bias);
                }
            }
            "glm4moe" | "deepseek2" if biased => self.add("exp_probs_b.bias", &[count], Role::Bias),
            "gemma4" => {
                self.add("ffn_gate_inp.scale", &[dim], Role::Norm);
                self.add("ffn_down_exps.scale", &[count], Role::Norm);
                for name in ["post_ffw_norm_1", "pre_ffw_norm_2", "post_ffw_norm_2"] {
                    self.norm(name, dim);
                }
            }
            _ => (),
        }
        if shared_ffn > 0 {
            // GLM's and DeepSeek's shared experts have no gate of their own.
            if !matches!(arch, "glm4moe" | "deepseek2") {
                self.add("ffn_gate_inp_shexp.weight", &[dim], Role::Router);
            }
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
        assert_eq!(has("mamba2-2.7b", "blk.63.ssm_in.weight"), Some(vec![10_576, 2560]));
        assert_eq!(has("nemotron-3-nano-30b-a3b", "blk.5.attn_k.weight"), Some(vec![256, 2688]));
        assert_eq!(has("nemotron-3-nano-30b-a3b", "blk.1.ffn_gate_exps.weight"), None);
    }
}
