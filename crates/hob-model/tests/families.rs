//! The numerics law for every architecture: one prompt, one set of bits, in one go, in chunks, and token by token.

mod common;

use common::*;

/// Dense fixtures; mixtures and recurrences have a test of their own.
const FAMILIES: [&str; 13] = [
    "qwen3",
    "qwen3_yarn",
    "gemma2",
    "gemma3",
    "smollm3",
    "mistral",
    "phi3",
    "olmo2",
    "olmo3",
    "granite",
    "glm4",
    "gemma4_dense",
    "gemma4_e",
];

#[test]
fn chunks_and_threads_do_not_change_a_bit() {
    for name in FAMILIES {
        for gguf in [false, true] {
            let tiny = golden(name, gguf);
            let prompt = tokens(1, 100, tiny.vocab);
            for exact in [false, true] {
                let whole = logits(&tiny, cpu(1, exact), &prompt, 100);
                for (threads, chunk) in [(1, 1), (2, 7), (2, 64)] {
                    let cut = logits(&tiny, cpu(threads, exact), &prompt, chunk);
                    let what = format!("{name}, {threads} threads, chunks of {chunk}, exact {exact}");
                    assert_same_bits(&cut, &whole, tiny.vocab, &what);
                }
            }
        }
    }
}

/// LongRoPE's divisors go by the context that the layout reserves, so that a sequence never changes them.
#[test]
fn longrope_goes_by_the_reserved_context() {
    let tiny = golden("phi3", false);
    let prompt = tokens(2, 20, tiny.vocab);
    let with = |ctx_tokens| {
        let mut bench = Bench::new(&tiny, cpu(1, true), &layout(ctx_tokens, 1, 20));
        let id = bench.model.new_sequence().expect("a free sequence");
        bench.feed(id, &prompt, 20)
    };
    let (short, long) = (with(32), with(33));
    assert_same_bits(&with(20), &short, tiny.vocab, "both within the original context of 32");
    assert_same_bits(&with(200), &long, tiny.vocab, "both beyond it");
    assert!(short != long, "the two sets differ");
}
