//! The metadata of a synthesised model: what llama.cpp's converter writes for each architecture. It must not know
//! tensors' bytes.

use hob_files::gguf_write::Writer;

use super::shapes::{Attention, Kinds, Shape, Ssm};

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
        ("attention.head_count", shape.heads),
        ("attention.key_length", shape.latent.map_or(shape.head_dim, |l| l.rank + l.rotary)),
        ("attention.value_length", shape.latent.map_or(shape.head_dim, |l| l.rank)),
        ("rope.dimension_count", shape.rotary()),
        ("vocab_size", shape.vocab),
    ] {
        // A model of experts only has no such layer.
        if value > 0 {
            writer.set(&format!("{arch}.{key}"), count(value));
        }
    }
    match shape.ssm {
        Some(ssm) => state_spaces(writer, shape, ssm, arch),
        None => {
            writer
                .set(&format!("{arch}.attention.layer_norm_rms_epsilon"), shape.rms_eps)
                .set(&format!("{arch}.rope.freq_base"), shape.rope_base);
            kv_heads(writer, shape, arch);
            feed_forward(writer, shape, arch);
        }
    }
    windows(writer, shape, arch);
    if let Some(latent) = shape.latent {
        for (key, value) in [
            ("attention.q_lora_rank", latent.q_rank),
            ("attention.kv_lora_rank", latent.rank),
            ("attention.key_length_mla", latent.nope + latent.rotary),
            ("attention.value_length_mla", latent.value),
        ] {
            if value > 0 {
                writer.set(&format!("{arch}.{key}"), count(value));
            }
        }
    }
    if let Some(kinds) = shape.kinds {
        layer_kinds(writer, shape, kinds, arch);
    }
    if let Some(experts) = shape.experts {
        writer
            .set(&format!("{arch}.expert_count"), count(experts.count))
            .set(&format!("{arch}.expert_used_count"), count(experts.top_k))
            .set(&format!("{arch}.expert_feed_forward_length"), count(experts.ffn));
        if matches!(arch, "glm4moe" | "deepseek2") {
            // Of DeepSeek's kin those with a compressed query choose as V3 does.
            let sigmoid = shape.latent.is_none_or(|latent| latent.q_rank > 0);
            writer
                .set(&format!("{arch}.expert_shared_count"), count(experts.shared_ffn / experts.ffn))
                .set(&format!("{arch}.leading_dense_block_count"), count(experts.dense))
                .set(&format!("{arch}.expert_gating_func"), if sigmoid { 2u32 } else { 1 })
                .set(&format!("{arch}.expert_weights_norm"), sigmoid)
                .set(&format!("{arch}.expert_weights_scale"), 1f32);
        } else if shape.ssm.is_some() {
            writer
                .set(&format!("{arch}.expert_shared_feed_forward_length"), count(experts.shared_ffn))
                .set(&format!("{arch}.expert_shared_count"), 1u32)
                .set(&format!("{arch}.expert_weights_norm"), true)
                .set(&format!("{arch}.expert_weights_scale"), 2.5f32);
        } else if experts.shared_ffn > 0 {
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

/// Layers of one sublayer: which of them attend and which have a feed-forward block shows by their sizes.
fn state_spaces(writer: &mut Writer, shape: &Shape, ssm: Ssm, arch: &str) {
    for (key, value) in [
        ("ssm.conv_kernel", ssm.conv),
        ("ssm.state_size", ssm.state_dim),
        ("ssm.group_count", ssm.groups),
        ("ssm.time_step_rank", ssm.heads),
        ("ssm.inner_size", ssm.heads * ssm.head_dim),
    ] {
        writer.set(&format!("{arch}.{key}"), u32::try_from(value).unwrap_or(u32::MAX));
    }
    if arch == "mamba2" {
        writer.set(&format!("{arch}.attention.layer_norm_rms_epsilon"), shape.rms_eps);
        return;
    }
    let per_layer =
        |of: &dyn Fn(char) -> usize| (0..shape.layers).map(|i| of(ssm.kind(i)) as i32).collect::<Vec<i32>>();
    let experts = shape.experts.map_or(0, |e| e.ffn);
    let kv_heads = per_layer(&|kind| if kind == '*' { shape.kv_heads } else { 0 });
    let ffn = per_layer(&|kind| match kind {
        'E' => experts,
        '-' => shape.ffn,
        _ => 0,
    });
    writer
        .set(&format!("{arch}.attention.layer_norm_epsilon"), shape.rms_eps)
        .set(&format!("{arch}.attention.head_count_kv"), kv_heads)
        .set(&format!("{arch}.feed_forward_length"), ffn);
}

/// One number, or one per layer.
fn feed_forward(writer: &mut Writer, shape: &Shape, arch: &str) {
    let key = format!("{arch}.feed_forward_length");
    let widths: Vec<i32> = (0..shape.layers).map(|i| shape.ffn_of(i) as i32).collect();
    match widths.iter().all(|&w| w == widths[0]) {
        // A model of experts only has no such layer.
        true if widths[0] > 0 => writer.set(&key, widths[0] as u32),
        true => writer,
        false => writer.set(&key, widths),
    };
}

/// How far sliding layers see, and how rotation is stretched where there are such layers.
fn windows(writer: &mut Writer, shape: &Shape, arch: &str) {
    if shape.window == 0 {
        return;
    }
    writer.set(&format!("{arch}.attention.sliding_window"), shape.window as u32);
    if arch == "gpt-oss" {
        writer
            .set(&format!("{arch}.rope.scaling.type"), "yarn")
            .set(&format!("{arch}.rope.scaling.factor"), shape.rope_factor)
            .set(&format!("{arch}.rope.scaling.original_context_length"), 4096u32)
            .set(&format!("{arch}.rope.scaling.yarn_beta_fast"), 32f32)
            .set(&format!("{arch}.rope.scaling.yarn_beta_slow"), 1f32);
        return;
    }
    writer.set(&format!("{arch}.rope.freq_base_swa"), 1e4f32);
    if shape.rope_factor != 1.0 {
        writer
            .set(&format!("{arch}.rope.scaling.type"), "linear")
            .set(&format!("{arch}.rope.scaling.factor"), shape.rope_factor);
    }
}

/// What is different between the layers of Gemma 4.
fn layer_kinds(writer: &mut Writer, shape: &Shape, kinds: Kinds, arch: &str) {
    let slides: Vec<bool> = (0..shape.layers).map(|i| kinds.slides(i)).collect();
    writer.set(&format!("{arch}.attention.sliding_window_pattern"), slides);
    for (key, value) in [
        ("attention.key_length_swa", kinds.head_dim),
        ("attention.value_length_swa", kinds.head_dim),
        ("rope.dimension_count_swa", kinds.head_dim),
        ("attention.shared_kv_layers", shape.layers.saturating_sub(kinds.own)),
        ("embedding_length_per_layer_input", kinds.input),
    ] {
        writer.set(&format!("{arch}.{key}"), u32::try_from(value).unwrap_or(u32::MAX));
    }
    writer.set(&format!("{arch}.final_logit_softcapping"), 30f32);
}

/// One number, or one per layer with 0 where a short convolution stands in for attention; and the rule by which delta
/// nets do.
fn kv_heads(writer: &mut Writer, shape: &Shape, arch: &str) {
    let key = format!("{arch}.attention.head_count_kv");
    match shape.attention {
        Attention::Every if shape.kinds.is_some() => {
            let per_layer = (0..shape.layers).map(|i| shape.kv_of(i).0 as i32);
            writer.set(&key, per_layer.collect::<Vec<i32>>());
        }
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
        "gemma3" | "gemma4" => "gpt-2",
        _ => "qwen2",
    }
}
