//! The numerics law at the level of a model: one prompt, one set of bits, however it is cut, batched or threaded.

mod common;

use common::*;
use hob_compute::reference::Reference;
use hob_quant::Format;
use hob_testkit::tiny::TinySpec;

/// Formats of the default path and one that is decoded to f32.
const FORMATS: [Format; 7] =
    [Format::Q4_1, Format::Q8_0, Format::Q4_0, Format::F16, Format::BF16, Format::F32, Format::Q5_0];

/// Past the first page of 256 positions.
const PROMPT: usize = 270;

/// Sizes that are no multiple of a kernel's tile.
fn odd_llama() -> TinySpec {
    TinySpec { dim: 96, heads: 6, kv_heads: 2, head_dim: 16, ffn: 160, vocab: 333, ..TinySpec::llama() }
}

#[test]
fn chunks_and_threads_do_not_change_a_bit() {
    for format in FORMATS {
        let tiny = gguf(&odd_llama(), format);
        let prompt = tokens(1, PROMPT, tiny.vocab);
        let whole = logits(&tiny, cpu(1, false), &prompt, PROMPT);
        for (threads, chunk) in [(1, 1), (1, 7), (2, 64), (2, PROMPT), (3, 1), (3, 7), (3, PROMPT)] {
            let cut = logits(&tiny, cpu(threads, false), &prompt, chunk);
            assert_same_bits(
                &cut,
                &whole,
                tiny.vocab,
                &format!("{format}, {threads} threads, chunks of {chunk}"),
            );
        }
    }
}

#[test]
fn company_does_not_change_a_bit() {
    for format in FORMATS {
        let tiny = gguf(&odd_llama(), format);
        let prompts = [tokens(2, PROMPT, tiny.vocab), tokens(3, PROMPT, tiny.vocab)];
        let alone: Vec<_> = prompts.iter().map(|p| logits(&tiny, cpu(2, false), p, PROMPT)).collect();
        let mut bench = Bench::new(&tiny, cpu(2, false), &layout(PROMPT, 2, 64));
        let ids = [0, 1].map(|_| bench.model.new_sequence().expect("a free sequence"));
        let mut together = [Vec::new(), Vec::new()];
        let mut done = [0, 0];
        // Uneven shares, the order of the two changing, down to single rows in a decode-like batch.
        for shares in [[40, 7], [1, 1], [3, 60], [64, 0], [20, 40]].iter().cycle() {
            let parts = [0, 1].map(|s| done[s]..PROMPT.min(done[s] + shares[s]));
            let order = if done[0] % 2 == 0 { [0, 1] } else { [1, 0] };
            order.iter().for_each(|&s| bench.add(ids[s], &prompts[s][parts[s].clone()]));
            if bench.batch.rows.is_empty() {
                break;
            }
            let rows = bench.step().expect("a step");
            let first = parts[order[0]].len() * tiny.vocab;
            together[order[0]].extend_from_slice(&rows[..first]);
            together[order[1]].extend_from_slice(&rows[first..]);
            done = [0, 1].map(|s| parts[s].end);
        }
        for (s, alone) in alone.iter().enumerate() {
            assert_same_bits(&together[s], alone, tiny.vocab, &format!("{format}, sequence {s}"));
        }
    }
}

#[test]
fn the_cpu_gives_the_bits_of_the_oracle() {
    for (spec, format) in [
        (TinySpec::qwen2(), Format::Q4_1),
        (odd_llama(), Format::Q4_0),
        (odd_llama(), Format::Q8_0),
        (TinySpec::qwen2(), Format::BF16),
    ] {
        let tiny = gguf(&spec, format);
        let prompt = tokens(4, 40, tiny.vocab);
        let oracle = logits(&tiny, Reference::new(false), &prompt, 40);
        let ours = logits(&tiny, cpu(2, false), &prompt, 9);
        assert_same_bits(&ours, &oracle, tiny.vocab, &format!("{format}"));
    }
}

#[test]
fn int8_activations_stay_close_to_exact_ones() {
    for format in [Format::Q4_0, Format::Q4_1, Format::Q8_0] {
        let tiny = gguf(&TinySpec::llama(), format);
        let prompt = tokens(5, 100, tiny.vocab);
        let exact = logits(&tiny, cpu(2, true), &prompt, 100);
        let int8 = logits(&tiny, cpu(2, false), &prompt, 100);
        let error = nmse(&int8, &exact);
        println!("{format}: NMSE {error:.1e}");
        assert!(error > 0.0, "{format}: the int8 path must be in use");
        assert!(error < 5e-4, "{format}: NMSE {error:.1e}");
    }
}

#[test]
fn gguf_and_safetensors_of_one_model_agree() {
    let biased = TinySpec { bias: true, ..odd_llama() };
    for spec in [TinySpec::llama(), biased, TinySpec::qwen2()] {
        let prompt = tokens(6, 80, spec.vocab);
        let a = logits(&gguf(&spec, Format::F32), cpu(2, true), &prompt, 80);
        let b = logits(&folder(&spec, |_| ()), cpu(2, true), &prompt, 80);
        // The interleaved q and k of llama are summed in another order of dimensions.
        let difference = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(difference < 2e-4, "{:?}: {difference}", spec.arch);
        assert!(a.iter().any(|v| v.abs() > 0.5), "logits of a size that could differ");
    }
}

#[test]
fn truncating_and_continuing_equals_a_fresh_run() {
    let tiny = gguf(&TinySpec::llama(), Format::Q4_1);
    let (head, tail) = (tokens(7, 260, tiny.vocab), tokens(8, 30, tiny.vocab));
    let wrong_turn = tokens(9, 100, tiny.vocab);
    for keep in [3, 256, 260] {
        let mut bench = Bench::new(&tiny, cpu(2, false), &layout(512, 1, 64));
        let id = bench.model.new_sequence().expect("a free sequence");
        bench.feed(id, &head, 64);
        bench.feed(id, &wrong_turn, 64);
        bench.model.truncate(id, keep).expect("a shorter sequence");
        assert_eq!(bench.model.seq_len(id).expect("a sequence"), keep);
        let continued = bench.feed(id, &tail, 64);
        let fresh: Vec<u32> = head[..keep].iter().chain(&tail).copied().collect();
        let fresh = logits(&tiny, cpu(2, false), &fresh, 64);
        assert_same_bits(&continued, &fresh[keep * tiny.vocab..], tiny.vocab, &format!("kept {keep}"));
    }
}

#[test]
fn a_sequence_that_inherits_freed_pages_computes_as_on_fresh_ones() {
    let tiny = gguf(&TinySpec::llama(), Format::F32);
    let prompt = tokens(10, 300, tiny.vocab);
    let mut bench = Bench::new(&tiny, cpu(2, true), &layout(512, 2, 64));
    let first = bench.model.new_sequence().expect("a free sequence");
    let other = bench.model.new_sequence().expect("a free sequence");
    bench.feed(other, &tokens(11, 300, tiny.vocab), 50);
    let expected = bench.feed(first, &prompt, 64);
    bench.model.free_sequence(other).expect("it lives");
    bench.model.free_sequence(first).expect("it lives");
    let again = bench.model.new_sequence().expect("a free sequence");
    assert_same_bits(&bench.feed(again, &prompt, 64), &expected, tiny.vocab, "after reuse");
}
