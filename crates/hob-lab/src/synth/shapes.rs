//! The catalogue of model shapes that can be synthesised. Sizes only, from the models' published `config.json`; it must
//! not know formats or bytes.

/// Sizes of one dense decoder.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    pub name: &'static str,
    /// Architecture the shape is run as; see [`Shape::note`].
    pub arch: &'static str,
    pub dim: usize,
    pub layers: usize,
    pub ffn: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub vocab: usize,
    /// Whether the head is the embedding table.
    pub tied: bool,
    pub ctx_train: usize,
    pub rope_base: f32,
    pub rms_eps: f32,
}

impl Shape {
    /// What differs from the published model, for people who read a benchmark; empty when nothing does.
    pub fn note(&self) -> &'static str {
        if self.name.starts_with("qwen3-") {
            "run as llama with this head_dim: the same matrices, without the per-head norms of Q and K"
        } else {
            ""
        }
    }
}

/// One family's common sizes, to be completed by struct update.
const QWEN3: Shape = Shape {
    name: "",
    arch: "llama",
    dim: 0,
    layers: 28,
    ffn: 0,
    heads: 16,
    kv_heads: 8,
    head_dim: 128,
    vocab: 151_936,
    tied: true,
    ctx_train: 40_960,
    rope_base: 1e6,
    rms_eps: 1e-6,
};
const LLAMA3: Shape =
    Shape { kv_heads: 8, vocab: 128_256, ctx_train: 131_072, rope_base: 5e5, rms_eps: 1e-5, ..QWEN3 };
const SMOLLM2: Shape =
    Shape { head_dim: 64, vocab: 49_152, ctx_train: 8_192, rope_base: 1e5, rms_eps: 1e-5, ..QWEN3 };
const QWEN25: Shape = Shape { arch: "qwen2", ctx_train: 32_768, kv_heads: 2, ..QWEN3 };

/// Every shape, smallest first within a family.
pub const SHAPES: &[Shape] = &[
    Shape { name: "qwen3-0.6b", dim: 1024, ffn: 3072, ..QWEN3 },
    Shape { name: "qwen3-1.7b", dim: 2048, ffn: 6144, ..QWEN3 },
    Shape { name: "qwen3-4b", dim: 2560, layers: 36, ffn: 9728, heads: 32, ..QWEN3 },
    Shape { name: "qwen3-8b", dim: 4096, layers: 36, ffn: 12_288, heads: 32, tied: false, ..QWEN3 },
    Shape { name: "llama3.2-1b", dim: 2048, layers: 16, ffn: 8192, heads: 32, head_dim: 64, ..LLAMA3 },
    Shape { name: "llama3.2-3b", dim: 3072, layers: 28, ffn: 8192, heads: 24, ..LLAMA3 },
    Shape {
        name: "llama3-8b",
        dim: 4096,
        layers: 32,
        ffn: 14_336,
        heads: 32,
        tied: false,
        ctx_train: 8_192,
        ..LLAMA3
    },
    Shape {
        name: "llama3-70b",
        dim: 8192,
        layers: 80,
        ffn: 28_672,
        heads: 64,
        tied: false,
        ctx_train: 8_192,
        ..LLAMA3
    },
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
    Shape { name: "qwen2.5-0.5b", dim: 896, layers: 24, ffn: 4864, heads: 14, head_dim: 64, ..QWEN25 },
    Shape { name: "qwen2.5-1.5b", dim: 1536, layers: 28, ffn: 8960, heads: 12, ..QWEN25 },
    Shape {
        name: "qwen2.5-7b",
        dim: 3584,
        layers: 28,
        ffn: 18_944,
        heads: 28,
        kv_heads: 4,
        vocab: 152_064,
        tied: false,
        ..QWEN25
    },
];

/// The shape of this name, ignoring ASCII case.
pub fn find(name: &str) -> Option<&'static Shape> {
    SHAPES.iter().find(|s| s.name.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameter_counts_are_the_published_ones() {
        // Millions, as the models' cards say; norms and biases, which are left out here, are under a thousandth.
        for (name, millions) in [
            ("qwen3-0.6b", 596.05),
            ("qwen3-1.7b", 1720.57),
            ("qwen3-4b", 4022.47),
            ("qwen3-8b", 8190.74),
            ("llama3.2-1b", 1235.81),
            ("llama3.2-3b", 3212.75),
            ("llama3-8b", 8030.26),
            ("llama3-70b", 70_553.7),
            ("smollm2-135m", 134.52),
            ("smollm2-360m", 361.82),
            ("smollm2-1.7b", 1711.38),
            ("qwen2.5-0.5b", 494.03),
            ("qwen2.5-1.5b", 1543.71),
            ("qwen2.5-7b", 7615.62),
        ] {
            let s = find(name).expect(name);
            let attention = 2 * s.dim * s.heads * s.head_dim + 2 * s.dim * s.kv_heads * s.head_dim;
            let layer = attention + 3 * s.dim * s.ffn;
            let tables = s.vocab * s.dim * if s.tied { 1 } else { 2 };
            let found = (s.layers * layer + tables) as f64 / 1e6;
            assert!((found / millions - 1.0).abs() < 1e-3, "{name}: {found}");
        }
        assert_eq!(SHAPES.len(), 14);
    }
}
