//! What a tensor of a GGUF file is for, by its name (llama.cpp's `llama-arch.cpp`) and shape, and how much its errors
//! weigh. It must not know a tensor's bytes.

use hob_files::{ModelFile, TensorInfo};
use hob_quant::Format;

use crate::synth::{Role, Slot, fallback};

/// Parts of names whose tensors stay as they are: small, looked up rather than multiplied, or read as numbers.
const KEPT: [(&str, Role); 13] = [
    ("_norm", Role::Norm),
    ("ffn_gate_inp", Role::Router),
    ("exp_probs", Role::Router),
    ("conv1d", Role::Conv),
    ("shortconv.conv", Role::Conv),
    ("rope_", Role::Divisors),
    ("position_embd", Role::Norm),
    ("token_types", Role::Norm),
    ("per_layer_model_proj", Role::Norm),
    ("altup", Role::Norm),
    ("laurel", Role::Norm),
    ("time_mix_", Role::Norm),
    ("hc_", Role::Norm),
];

/// One slot per tensor of the file, in its order.
pub(super) fn slots(file: &ModelFile) -> Vec<Slot> {
    file.tensors().iter().map(slot).collect()
}

fn slot(tensor: &TensorInfo) -> Slot {
    let name = &tensor.name;
    let layer = name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()?.parse().ok());
    Slot { name: name.clone(), shape: tensor.shape.clone(), role: role(tensor), layer }
}

fn role(tensor: &TensorInfo) -> Role {
    let name = tensor.name.as_str();
    let matrix = tensor.shape.iter().filter(|d| **d > 1).count() >= 2 && name.ends_with(".weight");
    let integers =
        matches!(tensor.format, Format::I8 | Format::I16 | Format::I32 | Format::I64 | Format::F64);
    if !matrix || integers {
        return Role::Bias;
    }
    match KEPT.iter().find(|(part, _)| name.contains(part)) {
        Some((_, role)) => *role,
        None if name == "output.weight" => Role::Head,
        None if name.ends_with("token_embd.weight") => Role::Embedding,
        None if name.contains("_exps.") => Role::Experts,
        None => Role::Matrix,
    }
}

/// Whether a tensor of this role is encoded.
pub(super) fn is_quantized(role: Role) -> bool {
    matches!(role, Role::Embedding | Role::Head | Role::Matrix | Role::Experts)
}

/// Whether the embedding is the head, too.
pub(super) fn is_tied(file: &ModelFile) -> bool {
    file.tensor("output.weight").is_none()
}

pub(super) fn is_head(role: Role, tied: bool) -> bool {
    role == Role::Head || tied && role == Role::Embedding
}

/// A wanted type, or the next that fits the rows, and whether that was needed.
pub(super) fn fitting(wanted: Format, slot: &Slot) -> (Format, bool) {
    let found = fallback(wanted, slot);
    (found, found != wanted)
}

/// Layers, by the names of their tensors.
pub(super) fn layers(slots: &[Slot]) -> usize {
    slots.iter().filter_map(|s| s.layer).max().map_or(0, |last| last + 1)
}

/// How much a tensor's relative squared error weighs. The divergence of a model grows linearly with the relative errors
/// of its matrices, whatever their size (the linearity theorem of HIGGS, arXiv 2411.17525): small matrices are worth many
/// bits and routed experts, each of which sees few tokens, few. The factors are the divergences per relative squared
/// error that noise of 0.005 on all matrices of one kind makes in SmolLM2-135M (30 layers, tied).
pub(super) fn sensitivity(slot: &Slot, tied: bool, layers: usize) -> f64 {
    if is_head(slot.role, tied) {
        return 18.0;
    }
    if slot.role == Role::Embedding {
        return 5.0;
    }
    let has = |part: &str| slot.name.contains(part);
    let of_all_layers = match () {
        () if has("attn_v") || has("attn_qkv") || has("attn_kv") => 13.0,
        () if has("ffn_down") => 14.0,
        () if has("ffn_up") => 7.0,
        () if has("attn_q") || has("ffn_gate") => 3.5,
        () => 2.5,
    };
    // The last tenth of the layers weighs twice: nothing behind it evens its errors out.
    let last = slot.layer.is_some_and(|layer| 10 * (layer + 1) > 9 * layers);
    of_all_layers / layers.max(1) as f64 * if last { 2.0 } else { 1.0 }
}
