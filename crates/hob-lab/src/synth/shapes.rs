//! The catalogue of model shapes that can be synthesised. Sizes only, from the models' published `config.json`; it must
//! not know tensors, formats or bytes.

/// Sizes of one decoder. A new shape starts from [`Shape::DENSE`] by struct update.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    pub name: &'static str,
    /// `general.architecture` of its GGUF.
    pub arch: &'static str,
    pub dim: usize,
    pub layers: usize,
    /// Width of the dense feed-forward hidden layer.
    pub ffn: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub vocab: usize,
    /// Whether the head is the embedding table.
    pub tied: bool,
    pub ctx_train: usize,
    pub rope_base: f32,
    /// How far rotary frequencies are stretched: by wavelength in Llama 3 files, all alike in Gemma; 1 is not at all.
    pub rope_factor: f32,
    pub rms_eps: f32,
    /// Positions that windowed layers see; 0 where there are none.
    pub window: usize,
    /// Which layers attend; the others convolve (lfm2) or keep a delta state (qwen35moe).
    pub attention: Attention,
    pub experts: Option<Experts>,
    pub delta: Option<Delta>,
    /// Where every layer is one sublayer of several kinds.
    pub ssm: Option<Ssm>,
    pub kinds: Option<Kinds>,
    pub latent: Option<Latent>,
}

/// Layers with attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Attention {
    Every,
    /// The last of each so many.
    Nth(usize),
    At(&'static [usize]),
}

/// A mixture of experts in place of the feed-forward block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Experts {
    pub count: usize,
    pub top_k: usize,
    pub ffn: usize,
    /// Width of the expert that every token passes; 0 is none.
    pub shared_ffn: usize,
    /// Layers before the first mixture, which have a block of their own instead.
    pub dense: usize,
}

/// What is different between layers of Gemma 4, of which the last of each so many sees all positions. Heads of the shape
/// are those of layers that see all; its KV heads are those of layers that slide.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Kinds {
    pub pattern: usize,
    /// Of layers that slide.
    pub head_dim: usize,
    /// Of layers that see all.
    pub kv_heads: usize,
    /// Whether layers that see all take V from K's projection.
    pub keys_are_values: bool,
    /// Layers with K and V of their own; those behind them share.
    pub own: usize,
    /// Times the width of the feed-forward block in layers that share.
    pub wider: usize,
    /// What each layer is told of the token; 0 is nothing.
    pub input: usize,
}

/// Attention to a latent (DeepSeek-V2), in dimensions; heads of the shape do not count then but for their number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Latent {
    /// Of what queries are made from; 0 where that is the stream.
    pub q_rank: usize,
    pub rank: usize,
    /// Of a head's query and key that are not rotated.
    pub nope: usize,
    pub rotary: usize,
    /// Of a head's value.
    pub value: usize,
}

impl Kinds {
    /// Whether layer `i` sees only a window.
    pub fn slides(&self, i: usize) -> bool {
        !(i + 1).is_multiple_of(self.pattern)
    }
}

/// A gated delta net (Yang et al. 2024) in place of attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Delta {
    pub key_heads: usize,
    pub value_heads: usize,
    /// Of keys and values.
    pub head_dim: usize,
    /// Columns of the convolution.
    pub conv: usize,
    /// Dimensions of an attention head that rotate.
    pub rotary: usize,
}

/// Selective state spaces (Mamba-2) among layers of other kinds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ssm {
    pub heads: usize,
    pub head_dim: usize,
    pub state_dim: usize,
    pub groups: usize,
    /// Columns of the convolution.
    pub conv: usize,
    /// A letter for each layer, as NVIDIA's configs have them: M, *, - and E; none is M.
    pub pattern: &'static str,
}

impl Ssm {
    /// What layer `i` is.
    pub fn kind(&self, i: usize) -> char {
        self.pattern.chars().nth(i).unwrap_or('M')
    }
}

impl Shape {
    /// A dense llama without sizes.
    pub const DENSE: Shape = Shape {
        name: "",
        arch: "llama",
        dim: 0,
        layers: 0,
        ffn: 0,
        heads: 0,
        kv_heads: 0,
        head_dim: 128,
        vocab: 0,
        tied: true,
        ctx_train: 40_960,
        rope_base: 1e6,
        rope_factor: 1.0,
        rms_eps: 1e-6,
        window: 0,
        attention: Attention::Every,
        experts: None,
        delta: None,
        ssm: None,
        kinds: None,
        latent: None,
    };

    /// Heads of layer `i`: KV heads and their dimensions.
    pub fn kv_of(&self, i: usize) -> (usize, usize) {
        match self.kinds {
            Some(kinds) if kinds.slides(i) => (self.kv_heads, kinds.head_dim),
            Some(kinds) => (kinds.kv_heads, self.head_dim),
            None => (self.kv_heads, self.head_dim),
        }
    }

    /// Whether layer `i` remembers K and V of its own.
    pub fn owns_kv(&self, i: usize) -> bool {
        self.kinds.is_none_or(|kinds| i < kinds.own)
    }

    /// Width of the feed-forward block of layer `i`.
    pub fn ffn_of(&self, i: usize) -> usize {
        match self.kinds {
            Some(kinds) if i >= kinds.own => self.ffn * kinds.wider,
            _ => self.ffn,
        }
    }

    /// Dimensions of a head that rotate.
    pub fn rotary(&self) -> usize {
        if let Some(latent) = self.latent {
            return latent.rotary;
        }
        match (self.delta, self.arch) {
            (Some(delta), _) => delta.rotary,
            (None, "glm4moe") => self.head_dim / 2,
            (None, _) => self.head_dim,
        }
    }

    /// Whether layer `i` attends.
    pub fn attends(&self, i: usize) -> bool {
        if let Some(ssm) = self.ssm {
            return ssm.kind(i) == '*';
        }
        match self.attention {
            Attention::Every => true,
            Attention::Nth(n) => (i + 1).is_multiple_of(n),
            Attention::At(layers) => layers.contains(&i),
        }
    }
}

const SMOLLM2: Shape =
    Shape { head_dim: 64, vocab: 49_152, ctx_train: 8_192, rope_base: 1e5, rms_eps: 1e-5, ..Shape::DENSE };
const LLAMA3: Shape = Shape {
    kv_heads: 8,
    vocab: 128_256,
    ctx_train: 131_072,
    rope_base: 5e5,
    rope_factor: 8.0,
    rms_eps: 1e-5,
    ..Shape::DENSE
};
const QWEN25: Shape = Shape { arch: "qwen2", kv_heads: 2, vocab: 151_936, ctx_train: 32_768, ..Shape::DENSE };
/// From 7B on: a padded vocabulary and a head of its own.
const QWEN25_LARGE: Shape = Shape { vocab: 152_064, kv_heads: 8, tied: false, ..QWEN25 };
const QWEN3: Shape =
    Shape { arch: "qwen3", layers: 28, heads: 16, kv_heads: 8, vocab: 151_936, ..Shape::DENSE };
const GEMMA3: Shape = Shape {
    arch: "gemma3",
    heads: 4,
    kv_heads: 1,
    head_dim: 256,
    vocab: 262_144,
    ctx_train: 32_768,
    window: 512,
    ..Shape::DENSE
};
const GEMMA4: Shape = Shape {
    arch: "gemma4",
    heads: 8,
    kv_heads: 1,
    head_dim: 512,
    vocab: 262_144,
    ctx_train: 131_072,
    window: 512,
    ..Shape::DENSE
};
/// From 26B on.
const GEMMA4_LARGE: Shape = Shape { ctx_train: 262_144, window: 1024, ..GEMMA4 };
const KINDS: Kinds = Kinds {
    pattern: 6,
    head_dim: 256,
    kv_heads: 1,
    keys_are_values: false,
    own: usize::MAX,
    wider: 1,
    input: 0,
};
const GPT_OSS: Shape = Shape {
    arch: "gpt-oss",
    dim: 2880,
    ffn: 2880,
    heads: 64,
    kv_heads: 8,
    head_dim: 64,
    vocab: 201_088,
    tied: false,
    ctx_train: 131_072,
    rope_base: 1.5e5,
    rope_factor: 32.0,
    rms_eps: 1e-5,
    window: 128,
    ..Shape::DENSE
};
const LFM2: Shape = Shape {
    arch: "lfm2",
    layers: 16,
    kv_heads: 8,
    head_dim: 64,
    vocab: 65_536,
    ctx_train: 128_000,
    rms_eps: 1e-5,
    attention: Attention::At(&[2, 5, 8, 10, 12, 14]),
    ..Shape::DENSE
};

const MAMBA2: Shape =
    Shape { arch: "mamba2", head_dim: 0, vocab: 50_288, ctx_train: 1 << 20, rms_eps: 1e-5, ..Shape::DENSE };
const MAMBA2_HEADS: Ssm = Ssm { heads: 0, head_dim: 64, state_dim: 128, groups: 1, conv: 4, pattern: "" };

/// Every shape, smallest first within a family.
pub const SHAPES: &[Shape] = &[
    Shape { name: "smollm2-135m", dim: 576, layers: 30, ffn: 1536, heads: 9, kv_heads: 3, ..SMOLLM2 },
    Shape { name: "smollm2-360m", dim: 960, layers: 32, ffn: 2560, heads: 15, kv_heads: 5, ..SMOLLM2 },
    Shape {
        name: "smollm2-1.7b",
        dim: 2048,
        layers: 24,
        ffn: 8192,
        heads: 32,
        kv_heads: 32,
        rope_base: 1.3e5,
        ..SMOLLM2
    },
    Shape {
        name: "smollm3-3b",
        arch: "smollm3",
        dim: 2048,
        layers: 36,
        ffn: 11_008,
        heads: 16,
        kv_heads: 4,
        vocab: 128_256,
        ctx_train: 65_536,
        rope_base: 5e6,
        ..Shape::DENSE
    },
    Shape {
        name: "llama3.2-1b",
        dim: 2048,
        layers: 16,
        ffn: 8192,
        heads: 32,
        head_dim: 64,
        rope_factor: 32.0,
        ..LLAMA3
    },
    Shape { name: "llama3.2-3b", dim: 3072, layers: 28, ffn: 8192, heads: 24, rope_factor: 32.0, ..LLAMA3 },
    Shape { name: "llama3.1-8b", dim: 4096, layers: 32, ffn: 14_336, heads: 32, tied: false, ..LLAMA3 },
    Shape { name: "llama3.1-70b", dim: 8192, layers: 80, ffn: 28_672, heads: 64, tied: false, ..LLAMA3 },
    Shape { name: "llama3.3-70b", dim: 8192, layers: 80, ffn: 28_672, heads: 64, tied: false, ..LLAMA3 },
    Shape { name: "qwen2.5-0.5b", dim: 896, layers: 24, ffn: 4864, heads: 14, head_dim: 64, ..QWEN25 },
    Shape { name: "qwen2.5-1.5b", dim: 1536, layers: 28, ffn: 8960, heads: 12, ..QWEN25 },
    Shape { name: "qwen2.5-3b", dim: 2048, layers: 36, ffn: 11_008, heads: 16, ..QWEN25 },
    Shape { name: "qwen2.5-7b", dim: 3584, layers: 28, ffn: 18_944, heads: 28, kv_heads: 4, ..QWEN25_LARGE },
    Shape { name: "qwen2.5-14b", dim: 5120, layers: 48, ffn: 13_824, heads: 40, ..QWEN25_LARGE },
    Shape { name: "qwen2.5-32b", dim: 5120, layers: 64, ffn: 27_648, heads: 40, ..QWEN25_LARGE },
    Shape { name: "qwen2.5-72b", dim: 8192, layers: 80, ffn: 29_568, heads: 64, ..QWEN25_LARGE },
    Shape { name: "qwen3-0.6b", dim: 1024, ffn: 3072, ..QWEN3 },
    Shape { name: "qwen3-1.7b", dim: 2048, ffn: 6144, ..QWEN3 },
    Shape { name: "qwen3-4b", dim: 2560, layers: 36, ffn: 9728, heads: 32, ..QWEN3 },
    Shape { name: "qwen3-8b", dim: 4096, layers: 36, ffn: 12_288, heads: 32, tied: false, ..QWEN3 },
    Shape { name: "qwen3-14b", dim: 5120, layers: 40, ffn: 17_408, heads: 40, tied: false, ..QWEN3 },
    Shape { name: "qwen3-32b", dim: 5120, layers: 64, ffn: 25_600, heads: 64, tied: false, ..QWEN3 },
    Shape {
        name: "qwen3-30b-a3b",
        arch: "qwen3moe",
        dim: 2048,
        layers: 48,
        ffn: 6144,
        heads: 32,
        kv_heads: 4,
        tied: false,
        experts: Some(Experts { count: 128, top_k: 8, ffn: 768, shared_ffn: 0, dense: 0 }),
        ..QWEN3
    },
    // Without the extra block that drafts (MTP).
    Shape {
        name: "qwen3.5-35b-a3b",
        arch: "qwen35moe",
        dim: 2048,
        layers: 40,
        heads: 16,
        kv_heads: 2,
        head_dim: 256,
        vocab: 248_320,
        tied: false,
        ctx_train: 262_144,
        rope_base: 1e7,
        attention: Attention::Nth(4),
        experts: Some(Experts { count: 256, top_k: 8, ffn: 512, shared_ffn: 512, dense: 0 }),
        delta: Some(Delta { key_heads: 16, value_heads: 32, head_dim: 128, conv: 4, rotary: 64 }),
        ..QWEN3
    },
    Shape { name: "gemma3-270m", dim: 640, layers: 18, ffn: 2048, ..GEMMA3 },
    Shape { name: "gemma3-1b", dim: 1152, layers: 26, ffn: 6912, ..GEMMA3 },
    Shape {
        name: "gemma3-4b",
        dim: 2560,
        layers: 34,
        ffn: 10_240,
        heads: 8,
        kv_heads: 4,
        vocab: 262_208,
        ctx_train: 131_072,
        rope_factor: 8.0,
        window: 1024,
        ..GEMMA3
    },
    Shape {
        name: "gemma4-e2b",
        dim: 1536,
        layers: 35,
        ffn: 6144,
        kinds: Some(Kinds { pattern: 5, own: 15, wider: 2, input: 256, ..KINDS }),
        ..GEMMA4
    },
    Shape {
        name: "gemma4-e4b",
        dim: 2560,
        layers: 42,
        ffn: 10_240,
        kv_heads: 2,
        kinds: Some(Kinds { kv_heads: 2, own: 24, input: 256, ..KINDS }),
        ..GEMMA4
    },
    Shape {
        name: "gemma4-26b-a4b",
        dim: 2816,
        layers: 30,
        ffn: 2112,
        heads: 16,
        kv_heads: 8,
        experts: Some(Experts { count: 128, top_k: 8, ffn: 704, shared_ffn: 0, dense: 0 }),
        kinds: Some(Kinds { kv_heads: 2, keys_are_values: true, ..KINDS }),
        ..GEMMA4_LARGE
    },
    Shape {
        name: "gemma4-31b",
        dim: 5376,
        layers: 60,
        ffn: 21_504,
        heads: 32,
        kv_heads: 16,
        kinds: Some(Kinds { kv_heads: 4, keys_are_values: true, ..KINDS }),
        ..GEMMA4_LARGE
    },
    Shape {
        name: "gpt-oss-20b",
        layers: 24,
        experts: Some(Experts { count: 32, top_k: 4, ffn: 2880, shared_ffn: 0, dense: 0 }),
        ..GPT_OSS
    },
    Shape {
        name: "gpt-oss-120b",
        layers: 36,
        experts: Some(Experts { count: 128, top_k: 4, ffn: 2880, shared_ffn: 0, dense: 0 }),
        ..GPT_OSS
    },
    // Without the extra block that drafts (MTP).
    Shape {
        name: "glm-4.5-air",
        arch: "glm4moe",
        dim: 4096,
        layers: 46,
        ffn: 10_944,
        heads: 96,
        kv_heads: 8,
        vocab: 151_552,
        tied: false,
        ctx_train: 131_072,
        rms_eps: 1e-5,
        experts: Some(Experts { count: 128, top_k: 8, ffn: 1408, shared_ffn: 1408, dense: 1 }),
        ..Shape::DENSE
    },
    Shape {
        name: "mamba2-130m",
        dim: 768,
        layers: 24,
        ssm: Some(Ssm { heads: 24, ..MAMBA2_HEADS }),
        ..MAMBA2
    },
    Shape {
        name: "mamba2-2.7b",
        dim: 2560,
        layers: 64,
        ssm: Some(Ssm { heads: 80, ..MAMBA2_HEADS }),
        ..MAMBA2
    },
    Shape {
        name: "nemotron-3-nano-30b-a3b",
        arch: "nemotron_h_moe",
        dim: 2688,
        layers: 52,
        heads: 32,
        kv_heads: 2,
        vocab: 131_072,
        tied: false,
        ctx_train: 262_144,
        rms_eps: 1e-5,
        experts: Some(Experts { count: 128, top_k: 6, ffn: 1856, shared_ffn: 3712, dense: 0 }),
        ssm: Some(Ssm {
            heads: 64,
            groups: 8,
            pattern: "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
            ..MAMBA2_HEADS
        }),
        ..Shape::DENSE
    },
    Shape {
        name: "deepseek-v2-lite",
        arch: "deepseek2",
        dim: 2048,
        layers: 27,
        ffn: 10_944,
        heads: 16,
        kv_heads: 1,
        vocab: 102_400,
        tied: false,
        ctx_train: 163_840,
        rope_base: 1e4,
        experts: Some(Experts { count: 64, top_k: 6, ffn: 1408, shared_ffn: 2816, dense: 1 }),
        latent: Some(Latent { q_rank: 0, rank: 512, nope: 128, rotary: 64, value: 128 }),
        ..Shape::DENSE
    },
    // Without the extra block that drafts (MTP).
    Shape {
        name: "glm-4.7-flash",
        arch: "deepseek2",
        dim: 2048,
        layers: 47,
        ffn: 10_240,
        heads: 20,
        kv_heads: 1,
        vocab: 154_880,
        tied: false,
        ctx_train: 202_752,
        rms_eps: 1e-5,
        experts: Some(Experts { count: 64, top_k: 4, ffn: 1536, shared_ffn: 1536, dense: 1 }),
        latent: Some(Latent { q_rank: 768, rank: 512, nope: 192, rotary: 64, value: 256 }),
        ..Shape::DENSE
    },
    Shape { name: "lfm2-350m", dim: 1024, ffn: 4608, heads: 16, ..LFM2 },
    Shape { name: "lfm2-700m", dim: 1536, ffn: 6912, heads: 24, ..LFM2 },
    Shape { name: "lfm2-1.2b", dim: 2048, ffn: 8192, heads: 32, ..LFM2 },
    // 8 of 30 layers attend; which ones is our guess, and changes no size.
    Shape {
        name: "lfm2-2.6b",
        dim: 2048,
        layers: 30,
        ffn: 10_752,
        heads: 32,
        attention: Attention::At(&[2, 6, 9, 13, 16, 20, 23, 27]),
        ..LFM2
    },
];

/// The shape of this name, ignoring ASCII case and hyphens: people write llama-3.1-8b as well as llama3.1-8b.
pub fn find(name: &str) -> Option<&'static Shape> {
    let plain = |name: &str| name.replace('-', "").to_ascii_lowercase();
    SHAPES.iter().find(|s| plain(s.name) == plain(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synth::tensors;

    #[test]
    fn parameter_counts_are_the_published_ones() {
        // Millions, as the models' cards say.
        for (name, millions) in [
            ("smollm2-135m", 134.52),
            ("smollm2-360m", 361.82),
            ("smollm2-1.7b", 1711.38),
            ("smollm3-3b", 3075.10),
            ("llama3.2-1b", 1235.81),
            ("llama3.2-3b", 3212.75),
            ("llama3.1-8b", 8030.26),
            ("llama3.1-70b", 70_553.7),
            ("llama-3.3-70B", 70_553.7),
            ("qwen2.5-0.5b", 494.03),
            ("qwen2.5-1.5b", 1543.71),
            ("qwen2.5-3b", 3085.94),
            ("qwen2.5-7b", 7615.62),
            ("qwen2.5-14b", 14_770.03),
            ("qwen2.5-32b", 32_763.88),
            ("qwen2.5-72b", 72_706.2),
            ("qwen3-0.6b", 596.05),
            ("qwen3-1.7b", 1720.57),
            ("qwen3-4b", 4022.47),
            ("qwen3-8b", 8190.74),
            ("qwen3-14b", 14_768.3),
            ("qwen3-32b", 32_762.1),
            ("qwen3-30b-a3b", 30_532.1),
            ("qwen3.5-35b-a3b", 34_660.6),
            ("gemma3-270m", 268.1),
            ("gemma3-1b", 999.89),
            ("gemma3-4b", 3880.3),
            // Text alone, with the tables of inputs: 2.3 and 4.6 billion without.
            ("gemma4-e2b", 4628.6),
            ("gemma4-e4b", 7461.2),
            ("gemma4-26b-a4b", 25_230.0),
            ("gemma4-31b", 30_697.0),
            ("gpt-oss-20b", 20_914.8),
            ("gpt-oss-120b", 116_829.2),
            ("glm-4.5-air", 106_852.0),
            ("mamba2-130m", 128.99),
            ("mamba2-2.7b", 2702.60),
            ("nemotron-3-nano-30b-a3b", 31_577.9),
            ("deepseek-v2-lite", 15_706.5),
            ("lfm2-350m", 354.48),
            ("lfm2-700m", 742.49),
            ("lfm2-1.2b", 1170.34),
            ("lfm2-2.6b", 2569.27),
        ] {
            let shape = find(name).expect(name);
            let weights = |s: &tensors::Slot| s.shape.iter().product::<usize>();
            let found = tensors::table(shape, shape.arch).iter().map(weights).sum::<usize>() as f64 / 1e6;
            assert!((found / millions - 1.0).abs() < 1e-3, "{name}: {found}");
        }
        assert_eq!(SHAPES.len(), 43);
    }

    #[test]
    fn layers_that_attend() {
        let at = |name: &str| {
            let shape = find(name).expect(name);
            (0..shape.layers).filter(|&i| shape.attends(i)).count()
        };
        assert_eq!(
            (at("qwen3-0.6b"), at("lfm2-1.2b"), at("lfm2-2.6b"), at("qwen3.5-35b-a3b")),
            (28, 6, 8, 10)
        );
        let nano = find("nemotron-3-nano-30b-a3b").and_then(|s| s.ssm).expect("state spaces");
        let count = |kind| (0..52).filter(|&i| nano.kind(i) == kind).count();
        assert_eq!(
            (at("mamba2-2.7b"), at("nemotron-3-nano-30b-a3b"), count('M'), count('E')),
            (0, 6, 23, 23)
        );
    }
}
