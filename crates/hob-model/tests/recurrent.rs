//! Models whose layers keep a state instead of positions, delta rules and state spaces: any batches give the same text, state
//! comes back bit by bit, and memory is what was said.

mod common;

use common::*;
use hob_compute::Compute;
use hob_compute::reference::Reference;
use hob_model::{Model, ModelInfo};
use hob_quant::Format;

/// Models, how far other cuts of a prompt may be from each other over the largest logit (rounding only), and bytes of state
/// per sequence.
const ALL: [(&str, f32, u64); 6] = [
    // Three layers: a state of 16 x 16 for each of 4 heads, and 3 rows of 128 before the convolution.
    ("qwen3_5", 3e-5, 3 * DELTA),
    ("qwen3_5_moe", 3e-5, 3 * DELTA),
    ("qwen3_next", 3e-5, 3 * DELTA),
    // Layers with a state of 32 x 16 for each of 8 heads, and 3 rows of 256 before the convolution.
    ("mamba2", 1e-5, 4 * SPACE),
    ("nemotron_h", 1e-5, 3 * SPACE),
    ("nemotron_h_moe", 1e-5, 3 * SPACE),
];
const DELTA: u64 = 4 * (4 * 16 * 16 + 3 * 128);
const SPACE: u64 = 4 * (8 * 32 * 16 + 3 * 256);

/// Largest difference, over the largest logit.
fn apart(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let most = b.iter().fold(0f32, |m, x| m.max(x.abs()));
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max) / most
}

fn best(row: &[f32]) -> usize {
    (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).expect("a vocabulary")
}

/// Within `most` of the largest logit, and the same token wherever it leads.
fn assert_near(found: &[f32], expected: &[f32], (vocab, most): (usize, f32), what: &str) {
    let apart = apart(found, expected);
    assert!(apart < most, "{what}: {apart}");
    for (at, (f, e)) in found.chunks(vocab).zip(expected.chunks(vocab)).enumerate() {
        let (first, mine) = (best(e), best(f));
        assert!(first == mine || e[first] - e[mine] < 1e-4, "{what}: token at {at}");
    }
}

#[test]
fn any_batches_give_the_same_text_and_cuts_at_chunks_the_same_bits() {
    for (name, most, _) in ALL {
        let tiny = golden(name, true);
        let prompt = tokens(1, 200, tiny.vocab);
        let whole = logits(&tiny, cpu(1, true), &prompt, 200);
        for (threads, chunk) in [(2, 1), (1, 7), (2, 64), (3, 128), (2, 200)] {
            let cut = logits(&tiny, cpu(threads, true), &prompt, chunk);
            let what = format!("{name}, {threads} threads, chunks of {chunk}");
            match chunk {
                1 | 7 => assert_near(&cut, &whole, (tiny.vocab, most), &what),
                _ => assert_same_bits(&cut, &whole, tiny.vocab, &what),
            }
        }
    }
}

#[test]
fn company_does_not_change_a_bit() {
    const LENGTHS: [usize; 3] = [90, 5, 70];
    for (name, ..) in ALL {
        let tiny = golden(name, false);
        let prompts: Vec<_> = (0..3).map(|s| tokens(2 + s as u64, LENGTHS[s], tiny.vocab)).collect();
        let shares = [[64, 1, 2], [1, 1, 62], [20, 0, 1], [1, 3, 1], [4, 0, 4]];
        // Alone in the same pieces: which form computes a piece depends on nothing else.
        let run = |only: Option<usize>| {
            let mut bench = Bench::new(&tiny, cpu(2, false), &layout(96, 3, 128));
            let ids = [0, 1, 2].map(|_| bench.open());
            let mut out = vec![Vec::new(); 3];
            let mut done = [0; 3];
            for (turn, shares) in shares.iter().enumerate() {
                let order = if turn % 2 == 0 { [2, 0, 1] } else { [1, 0, 2] };
                let parts = [0, 1, 2].map(|s| done[s]..LENGTHS[s].min(done[s] + shares[s]));
                let takes = |s: &usize| !parts[*s].is_empty() && only.is_none_or(|only| only == *s);
                let order: Vec<usize> = order.into_iter().filter(takes).collect();
                order.iter().for_each(|&s| bench.add(ids[s], &prompts[s][parts[s].clone()]));
                if !order.is_empty() {
                    let rows = bench.step().expect("a step");
                    let mut rest = rows.as_slice();
                    for &s in &order {
                        let (mine, others) = rest.split_at(parts[s].len() * tiny.vocab);
                        out[s].extend_from_slice(mine);
                        rest = others;
                    }
                }
                done = [0, 1, 2].map(|s| parts[s].end);
            }
            out
        };
        let together = run(None);
        for (s, together) in together.iter().enumerate() {
            assert_same_bits(together, &run(Some(s))[s], tiny.vocab, &format!("{name}, sequence {s}"));
        }
    }
}

#[test]
fn the_cpu_gives_the_bits_of_the_oracle() {
    for (name, ..) in ALL {
        for tiny in [golden(name, true), quantised(name, Format::Q8_0), quantised(name, Format::Q4_0)] {
            let prompt = tokens(4, 70, tiny.vocab);
            let oracle = logits(&tiny, Reference::new(false), &prompt, 64);
            let ours = logits(&tiny, cpu(2, false), &prompt, 64);
            assert_same_bits(&ours, &oracle, tiny.vocab, name);
        }
    }
}

#[test]
fn both_formats_are_one_model() {
    for (name, most, _) in ALL {
        let [a, b] = [false, true].map(|gguf| {
            let tiny = golden(name, gguf);
            logits(&tiny, cpu(2, true), &tokens(5, 60, tiny.vocab), 60)
        });
        // The converter rounds rates and norms once more.
        assert_near(&a, &b, (320, most), name);
    }
}

/// What was saved goes on bit by bit: in the same slot, in another, and beside one that went on meanwhile. A
/// model without attention has no positions to save.
#[test]
fn a_snapshot_continues_bit_by_bit() {
    for (name, ..) in ALL {
        let tiny = golden(name, true);
        let text = tokens(6, 150, tiny.vocab);
        let mut bench = Bench::new(&tiny, cpu(2, false), &layout(160, 2, 64));
        let first = bench.open();
        bench.feed(first, &text[..100], 64);
        let snapshot = bench.model.snapshot(bench.dev.as_mut(), first).expect("a state");
        assert_eq!(snapshot.len(), bench.model.info().snapshot_bytes(100));
        let image = bench.model.export(bench.dev.as_mut(), first, 0..100).expect("positions");
        assert_eq!(image.is_empty(), name == "mamba2");
        let expected = bench.feed(first, &text[100..], 64);
        bench.model.truncate(first, 0).expect("always possible");
        let second = bench.open();
        // The first slot holds something else by then.
        bench.feed(first, &tokens(7, 33, tiny.vocab), 64);
        for id in [second, first] {
            bench.model.truncate(id, 0).expect("always possible");
            let image = hob_model::Image { tokens: &text, range: 0..100, take: 100, bytes: &image };
            bench.model.import(bench.dev.as_mut(), id, &image).expect("an image");
            bench.model.restore(bench.dev.as_mut(), id, 100, &snapshot).expect("a state of that size");
            let found = bench.feed(id, &text[100..], 64);
            assert_same_bits(&found, &expected, tiny.vocab, name);
        }
    }
}

/// Turns of a conversation, edited and taken up again: what was kept at their ends is found and goes on.
#[test]
fn kept_ends_are_resumed_bit_by_bit() {
    for name in ["qwen3_5_moe", "mamba2", "nemotron_h_moe"] {
        let tiny = golden(name, true);
        let text = tokens(8, 300, tiny.vocab);
        let mut bench = Bench::new(&tiny, cpu(2, false), &cached(320, 2, 1024));
        let (first, second) = (bench.open(), bench.open());
        bench.turn(first, &text[..128], 64);
        bench.turn(first, &text[..192], 64);
        let (_, expected) = bench.turn(first, &text, 64);
        assert_eq!(bench.resume(second, &text, 299), 192, "{name}: the last end before the rest");
        let found = bench.feed(second, &text[192..], 64);
        assert_same_bits(&found, &expected[expected.len() - found.len()..], tiny.vocab, name);
        let edited: Vec<u32> = text[..150].iter().chain(&tokens(9, 50, tiny.vocab)).copied().collect();
        assert_eq!(bench.resume(first, &edited, 199), 128, "{name}: the end before the edit");
    }
}

#[test]
fn the_estimate_is_what_the_device_holds() {
    for (name, _, state) in ALL {
        let tiny = golden(name, true);
        for layout in [layout(64, 1, 8), layout(300, 3, 32)] {
            let bill = ModelInfo::read(&tiny.file).expect("a model").footprint(&layout);
            let mut dev = cpu(2, false);
            let model = Model::load(tiny.file.clone(), &mut dev, &layout, &mut |_, _| ()).expect("a model");
            let held = dev.held_bytes();
            assert_eq!((held.pages, held.buffers), (bill.kv, bill.scratch + bill.state), "{name}");
            assert!(held.weights <= bill.weights, "{name}");
            assert_eq!(bill.state, layout.sequences as u64 * state, "{name}");
            assert_eq!(bill.kv == 0, name == "mamba2");
            model.unload(&mut dev).expect("unloaded");
            assert_eq!(dev.held_bytes(), Default::default());
        }
    }
}
