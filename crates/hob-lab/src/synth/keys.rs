//! The metadata of a synthesised model: what llama.cpp's converter writes for each architecture. It must not know
//! tensors' bytes.

use hob_files::gguf_write::Writer;

use super::shapes::{Attention, Shape};

/// Sets the keys of `shape` as architecture `arch`, without a vocabulary.
pub(super) fn write(writer: &mut Writer, shape: &Shape, arch: &str, name: &str) {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    writer
        .set("general.architecture", arch)
        .set("general.type", "model")
        .set("general.name", name)
        .set("general.quantization_version", 2u32);
    for (key, value) in [
        ("block_count", shape.layers),
        ("context_length", shape.ctx_train),
        ("embedding_length", shape.dim),
        ("feed_forward_length", shape.ffn),
        ("attention.head_count", shape.heads),
        ("attention.key_length", shape.head_dim),
        ("attention.value_length", shape.head_dim),
        ("rope.dimension_count", shape.delta.map_or(shape.head_dim, |d| d.rotary)),
        ("vocab_size", shape.vocab),
    ] {
        // A model of experts only has no such layer.
        if value > 0 {
            writer.set(&format!("{arch}.{key}"), count(value));
        }
    }
    writer
        .set(&format!("{arch}.attention.layer_norm_rms_epsilon"), shape.rms_eps)
        .set(&format!("{arch}.rope.freq_base"), shape.rope_base);
    kv_heads(writer, shape, arch);
    if shape.window > 0 {
        writer
            .set(&format!("{arch}.attention.sliding_window"), count(shape.window))
            .set(&format!("{arch}.rope.freq_base_swa"), 1e4f32);
        if shape.rope_factor != 1.0 {
            writer
                .set(&format!("{arch}.rope.scaling.type"), "linear")
                .set(&format!("{arch}.rope.scaling.factor"), shape.rope_factor);
        }
    }
    if let Some(experts) = shape.experts {
        writer
            .set(&format!("{arch}.expert_count"), count(experts.count))
            .set(&format!("{arch}.expert_used_count"), count(experts.top_k))
            .set(&format!("{arch}.expert_feed_forward_length"), count(experts.ffn));
        if experts.shared_ffn > 0 {
            writer.set(&format!("{arch}.expert_shared_feed_forward_length"), count(experts.shared_ffn));
        }
    }
    if let Some(delta) = shape.delta {
        let pairs = delta.rotary / 2;
        // Positions of text are the same in all three streams, whatever the sections.
        let third = (pairs / 3) as i32;
        let sections = vec![pairs as i32 - 2 * third, third, third, 0];
        writer.set(&format!("{arch}.rope.dimension_sections"), sections);
        for (key, value) in [
            ("ssm.conv_kernel", delta.conv),
            ("ssm.state_size", delta.head_dim),
            ("ssm.group_count", delta.key_heads),
            ("ssm.time_step_rank", delta.value_heads),
            ("ssm.inner_size", delta.value_heads * delta.head_dim),
        ] {
            writer.set(&format!("{arch}.{key}"), count(value));
        }
    }
}

/// One number, or one per layer with 0 where a short convolution stands in for attention; and the rule by which delta
/// nets do.
fn kv_heads(writer: &mut Writer, shape: &Shape, arch: &str) {
    let key = format!("{arch}.attention.head_count_kv");
    match shape.attention {
        Attention::At(_) => {
            let per_layer =
                (0..shape.layers).map(|i| if shape.attends(i) { shape.kv_heads as i32 } else { 0 });
            writer
                .set(&key, per_layer.collect::<Vec<i32>>())
                .set(&format!("{arch}.shortconv.l_cache"), super::SHORT_CONV as u32);
        }
        Attention::Nth(n) => {
            writer.set(&key, shape.kv_heads as u32).set(&format!("{arch}.full_attention_interval"), n as u32);
        }
        Attention::Every => {
            writer.set(&key, shape.kv_heads as u32);
        }
    }
}

/// The rules by which text is split before merging, of those that hob and llama.cpp both know.
pub(super) fn pre_tokenizer(arch: &str) -> &'static str {
    match arch {
        "llama" | "smollm3" | "lfm2" => "llama-bpe",
        "gemma3" => "gpt-2",
        _ => "qwen2",
    }
}
