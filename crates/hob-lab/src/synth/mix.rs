//! Which tensor gets which type: one type for all matrices, or the mixes that llama.cpp's quantizer makes
//! (`llama-quant.cpp`, without an importance matrix). It must not know what a type's bytes look like.

use hob_quant::Format;

use super::SynthError;
use super::fill::formats;
use super::shapes::Shape;
use super::tensors::{Role, Slot};

/// A rule from tensors to types. Norms, biases, convolutions and routers are F32 under every rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mix {
    /// Every matrix.
    Plain(Format),
    /// One of llama.cpp's mixes of k-quants.
    Preset(Preset),
    /// Experts of this type, the other matrices Q4_K, the head Q6_K: how a mixture is squeezed into memory.
    Experts(Format),
}

/// llama.cpp's mixes, by their `LLAMA_FTYPE_MOSTLY_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types)] // the names are the field's
pub enum Preset {
    Q3_K_S,
    Q3_K_M,
    Q3_K_L,
    Q4_K_S,
    Q4_K_M,
    Q5_K_S,
    Q5_K_M,
}

/// Names of everything that is not a plain type.
const NAMED: &[(&str, Mix)] = &[
    ("q3_k_s", Mix::Preset(Preset::Q3_K_S)),
    ("q3_k_m", Mix::Preset(Preset::Q3_K_M)),
    ("q3_k_l", Mix::Preset(Preset::Q3_K_L)),
    ("q4_k_s", Mix::Preset(Preset::Q4_K_S)),
    ("q4_k_m", Mix::Preset(Preset::Q4_K_M)),
    ("q5_k_s", Mix::Preset(Preset::Q5_K_S)),
    ("q5_k_m", Mix::Preset(Preset::Q5_K_M)),
    ("moe_q2_k", Mix::Experts(Format::Q2K)),
    ("moe_q3_k", Mix::Experts(Format::Q3K)),
    ("moe_q4_k", Mix::Experts(Format::Q4K)),
    ("moe_q4_0", Mix::Experts(Format::Q4_0)),
    ("moe_iq3_xxs", Mix::Experts(Format::IQ3XXS)),
    ("moe_mxfp4", Mix::Experts(Format::MXFP4)),
];

/// Names of the mixes.
pub fn mixes() -> impl Iterator<Item = &'static str> {
    NAMED.iter().map(|&(name, _)| name)
}

/// A type that can be synthesised.
pub(super) fn format_of(name: &str) -> Result<Format, SynthError> {
    Format::from_name(name)
        .filter(|f| formats().any(|known| known == *f))
        .ok_or_else(|| SynthError::format(name))
}

impl Mix {
    /// # Errors
    /// A name that is neither a mix nor a type, with those there are.
    pub fn parse(name: &str) -> Result<Self, SynthError> {
        let named = NAMED.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        named.map_or_else(|| format_of(name).map(Mix::Plain), |&(_, mix)| Ok(mix))
    }

    /// As [`Mix::parse`] reads it.
    pub fn name(self) -> String {
        let named = NAMED.iter().find(|&&(_, mix)| mix == self).map(|&(name, _)| name.to_string());
        match self {
            Mix::Plain(format) | Mix::Experts(format) => named.unwrap_or_else(|| format.to_string()),
            Mix::Preset(_) => named.unwrap_or_default(),
        }
        .to_ascii_lowercase()
    }
}

impl Mix {
    /// `general.file_type`: llama.cpp's `LLAMA_FTYPE`, which names the file in its tables. A plain k-quant goes by the
    /// smallest mix of that type.
    pub(crate) fn file_type(self) -> Option<u32> {
        let format = match self {
            Mix::Plain(format) | Mix::Experts(format) => format,
            Mix::Preset(Preset::Q3_K_M) => return Some(12),
            Mix::Preset(Preset::Q3_K_L) => return Some(13),
            Mix::Preset(Preset::Q4_K_M) => return Some(15),
            Mix::Preset(Preset::Q5_K_M) => return Some(17),
            Mix::Preset(small) => small.base(),
        };
        Some(match format {
            Format::F32 => 0,
            Format::F16 => 1,
            Format::Q4_0 => 2,
            Format::Q4_1 => 3,
            Format::Q8_0 => 7,
            Format::Q5_0 => 8,
            Format::Q5_1 => 9,
            Format::Q3K => 11,
            Format::Q4K => 14,
            Format::Q5K => 16,
            Format::Q6K => 18,
            Format::IQ2XXS => 19,
            Format::IQ2XS => 20,
            Format::Q2K => 21,
            Format::IQ3XXS => 23,
            Format::IQ1S => 24,
            Format::IQ4NL => 25,
            Format::IQ3S => 26,
            Format::IQ2S => 28,
            Format::IQ4XS => 30,
            Format::IQ1M => 31,
            Format::BF16 => 32,
            Format::TQ1_0 => 36,
            Format::TQ2_0 => 37,
            Format::MXFP4 => 38,
            _ => return None,
        })
    }
}

/// Types of all tensors of `slots`, in their order. `head` overrides the type of embedding and head.
pub(crate) fn types(slots: &[Slot], shape: &Shape, mix: Mix, head: Option<Format>) -> Vec<Format> {
    let is_v = |slot: &&Slot| v_like(&slot.name);
    let mut place =
        Place { shape, layers: shape.layers, v_seen: 0, v_count: slots.iter().filter(is_v).count() };
    slots
        .iter()
        .map(|slot| {
            let wanted = match slot.role {
                Role::Embedding | Role::Head if head.is_some() => return head.unwrap_or(Format::F32),
                Role::Embedding | Role::Head | Role::Matrix | Role::Experts => place.wanted(slot, mix),
                _ => return Format::F32,
            };
            place.v_seen += usize::from(v_like(&slot.name));
            // A plain type is what the user asked for, not a goal to come close to: where it does not even fit the model's
            // width, it is refused. A few other matrices may be of another type, as in every published file.
            let refused = matches!(mix, Mix::Plain(format) if !shape.dim.is_multiple_of(format.block_len()));
            if refused { wanted } else { fallback(wanted, slot) }
        })
        .collect()
}

fn v_like(name: &str) -> bool {
    name.ends_with("attn_v.weight") || name.ends_with("attn_qkv.weight")
}

/// Where a tensor stands among those of its kind.
struct Place<'a> {
    shape: &'a Shape,
    layers: usize,
    /// Value projections before this one, and in all.
    v_seen: usize,
    v_count: usize,
}

impl Place<'_> {
    fn wanted(&self, slot: &Slot, mix: Mix) -> Format {
        let preset = match mix {
            Mix::Plain(format) => return format,
            Mix::Experts(format) => {
                return match slot.role {
                    Role::Experts => format,
                    Role::Head => head_type(slot),
                    Role::Embedding if self.shape.tied => head_type(slot),
                    _ => Format::Q4K,
                };
            }
            Mix::Preset(preset) => preset,
        };
        match slot.role {
            Role::Head => return head_type(slot),
            // A tied table is quantized as the head that it is.
            Role::Embedding if self.shape.tied => return head_type(slot),
            _ => {}
        }
        let layer = slot.layer.unwrap_or(0);
        if v_like(&slot.name) {
            self.value_type(preset)
        } else if slot.name.contains("ffn_down") {
            self.down_type(preset, layer)
        } else if slot.name.ends_with("attn_output.weight") {
            match preset {
                Preset::Q3_K_M => Format::Q4K,
                Preset::Q3_K_L => Format::Q5K,
                _ => preset.base(),
            }
        } else {
            preset.base()
        }
    }

    fn value_type(&self, preset: Preset) -> Format {
        let found = match preset {
            Preset::Q3_K_M if self.v_seen < 2 => Format::Q5K,
            Preset::Q3_K_M => Format::Q4K,
            Preset::Q3_K_L => Format::Q5K,
            Preset::Q4_K_S if self.v_seen < 4 => Format::Q5K,
            Preset::Q4_K_M | Preset::Q5_K_M if more_bits(self.v_seen, self.v_count) => Format::Q6K,
            _ => preset.base(),
        };
        // 70B: eight query heads share a value head, so its matrix is cheap to keep well.
        let large = self.shape.arch == "llama" && self.layers == 80;
        if large && matches!(found, Format::Q3K | Format::Q4K) { Format::Q5K } else { found }
    }

    fn down_type(&self, preset: Preset, layer: usize) -> Format {
        match preset {
            Preset::Q3_K_M if layer < self.layers / 16 => Format::Q5K,
            Preset::Q3_K_M => Format::Q4K,
            Preset::Q3_K_L => Format::Q5K,
            Preset::Q4_K_S if layer < self.layers / 8 => Format::Q5K,
            Preset::Q4_K_M | Preset::Q5_K_M if more_bits(layer, self.layers) => Format::Q6K,
            _ => preset.base(),
        }
    }
}

impl Preset {
    fn base(self) -> Format {
        match self {
            Preset::Q3_K_S | Preset::Q3_K_M | Preset::Q3_K_L => Format::Q3K,
            Preset::Q4_K_S | Preset::Q4_K_M => Format::Q4K,
            Preset::Q5_K_S | Preset::Q5_K_M => Format::Q5K,
        }
    }
}

/// The first and last eighth, and every third in between.
fn more_bits(i: usize, count: usize) -> bool {
    i < count / 8 || i >= 7 * count / 8 || (i - count / 8) % 3 == 2
}

/// The type of a head under every rule that does not name one.
pub(crate) fn head_type(slot: &Slot) -> Format {
    let whole = slot.shape.last().is_some_and(|cols| cols.is_multiple_of(Format::Q6K.block_len()));
    if whole { Format::Q6K } else { Format::Q8_0 }
}

/// What is taken when rows are not whole blocks: the next larger type in blocks of 32, or F16.
pub(crate) fn fallback(wanted: Format, slot: &Slot) -> Format {
    let cols = slot.shape.last().copied().unwrap_or(0);
    let fits = |format: Format| cols.is_multiple_of(format.block_len());
    if fits(wanted) {
        return wanted;
    }
    let smaller = match wanted {
        Format::Q2K | Format::Q3K | Format::IQ4XS => Format::IQ4NL,
        Format::Q4K => Format::Q5_0,
        Format::Q5K => Format::Q5_1,
        Format::Q6K => Format::Q8_0,
        Format::IQ3XXS => Format::IQ4NL,
        other => other,
    };
    if fits(smaller) { smaller } else { Format::F16 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synth::shapes::find;
    use crate::synth::tensors::table;

    fn type_of(model: &str, mix: &str, tensor: &str) -> Format {
        let shape = find(model).expect(model);
        let slots = table(shape, shape.arch);
        let types = types(&slots, shape, Mix::parse(mix).expect(mix), None);
        let at = slots.iter().position(|s| s.name == tensor).expect(tensor);
        types[at]
    }

    #[test]
    fn presets_are_llama_cpps() {
        // Q4_K_M of a 28-layer model with whole superblocks.
        let of = |tensor: &str| type_of("qwen3-1.7b", "q4_k_m", tensor);
        assert_eq!(of("token_embd.weight"), Format::Q6K);
        assert_eq!(of("blk.0.attn_q.weight"), Format::Q4K);
        assert_eq!(of("blk.0.attn_v.weight"), Format::Q6K);
        assert_eq!(of("blk.3.attn_v.weight"), Format::Q4K);
        assert_eq!(of("blk.5.ffn_down.weight"), Format::Q6K);
        assert_eq!(of("blk.6.ffn_down.weight"), Format::Q4K);
        assert_eq!(of("blk.24.ffn_down.weight"), Format::Q6K);
        assert_eq!(of("blk.0.attn_norm.weight"), Format::F32);
        assert_eq!(type_of("qwen3-8b", "q4_k_m", "token_embd.weight"), Format::Q4K);
        assert_eq!(type_of("qwen3-8b", "q4_k_m", "output.weight"), Format::Q6K);
        assert_eq!(type_of("qwen3-8b", "q3_k_m", "blk.0.attn_output.weight"), Format::Q4K);
        assert_eq!(type_of("llama3.3-70b", "q4_k_m", "blk.20.attn_v.weight"), Format::Q5K);
    }

    #[test]
    fn rows_that_are_no_superblocks_fall_back() {
        // 896 columns: what qwen2.5-0.5b's published Q4_K_M holds.
        let of = |tensor: &str| type_of("qwen2.5-0.5b", "q4_k_m", tensor);
        assert_eq!(of("token_embd.weight"), Format::Q8_0);
        assert_eq!(of("blk.0.attn_q.weight"), Format::Q5_0);
        assert_eq!(of("blk.0.attn_v.weight"), Format::Q8_0);
        assert_eq!(of("blk.0.ffn_down.weight"), Format::Q6K);
        assert_eq!(of("blk.4.ffn_down.weight"), Format::Q4K);
    }

    #[test]
    fn mixtures_squeeze_their_experts() {
        let of = |tensor: &str| type_of("qwen3-30b-a3b", "moe_q3_k", tensor);
        assert_eq!(of("blk.0.ffn_up_exps.weight"), Format::Q3K);
        assert_eq!(of("blk.0.attn_q.weight"), Format::Q4K);
        assert_eq!(of("blk.0.ffn_gate_inp.weight"), Format::F32);
        assert_eq!(of("output.weight"), Format::Q6K);
    }

    #[test]
    fn names_round_trip() {
        for name in mixes().chain(["q4_0", "iq3_xxs", "bf16"]) {
            assert_eq!(Mix::parse(name).expect(name).name(), name);
        }
        assert!(Mix::parse("q4_9").is_err());
    }
}
