//! Prefixes in memory: what is resumed is what was computed, what is shared is never written, and what is dropped is what
//! is worth least.

mod common;

use std::time::Instant;

use common::*;
use hob_compute::{Pick, Picked, Token};
use hob_model::{Image, KvLayout, KvPair, Layout, ModelError, Row};
use hob_quant::{Format, KvFormat};
use hob_testkit::tiny::TinySpec;

/// Heads of 32, so that packed formats fit.
fn llama() -> Tiny {
    gguf(&TinySpec { head_dim: 32, ..TinySpec::llama() }, Format::Q8_0)
}

#[test]
fn a_resumed_prefix_gives_the_bits_of_an_uninterrupted_run() {
    let tiny = llama();
    let prompt = tokens(1, 600, tiny.vocab);
    let plain = (0..3).map(|kind| (kind, KvLayout::default()));
    let packed = packed_layouts().map(|kv| (2, kv));
    for (kind, kv) in plain.chain(packed) {
        let layout =
            |sequences, cached_tokens| Layout { kv: kv.clone(), ..cached(640, sequences, cached_tokens) };
        let whole = {
            let mut bench = Bench::of(&tiny, device(kind), &layout(1, 0));
            let id = bench.open();
            bench.feed(id, &prompt, 64)
        };
        let mut bench = Bench::of(&tiny, device(kind), &layout(2, 2048));
        let first = bench.open();
        bench.turn(first, &prompt, 64);
        bench.model.free_sequence(first).expect("it lives");
        for split in [1, 100, 255, 256, 257, 400, 511, 512, 513, 599] {
            let id = bench.open();
            assert_eq!(bench.resume(id, &prompt, split), split, "KV of any length can be shared");
            let rest = bench.feed(id, &prompt[split..], 61);
            assert_continues(
                &rest,
                &whole,
                split,
                tiny.vocab,
                &format!("device {kind}, {kv:?}, split {split}"),
            );
            bench.model.free_sequence(id).expect("it lives");
        }
    }
}

#[test]
fn a_sequence_goes_back_with_what_it_holds_although_nothing_was_sealed() {
    let tiny = llama();
    let (old, new) = (tokens(2, 300, tiny.vocab), tokens(3, 300, tiny.vocab));
    let mut bench = Bench::of(&tiny, device(1), &cached(640, 1, 0));
    let id = bench.open();
    bench.feed(id, &old, 64);
    let edited: Vec<u32> = old[..270].iter().chain(&new).copied().collect();
    assert_eq!(bench.resume(id, &edited, 500), 270);
    let rest = bench.feed(id, &edited[270..], 64);
    assert_continues(&rest, &logits(&tiny, cpu(2, true), &edited, 64), 270, tiny.vocab, "edited");
    assert_eq!(bench.resume(id, &new, 10), 0, "another text has nothing in common");
}

#[test]
fn a_fork_inside_a_page_does_not_change_the_other_sequence() {
    let tiny = llama();
    let (trunk, a, b, c) = (
        tokens(4, 300, tiny.vocab),
        tokens(5, 250, tiny.vocab),
        tokens(6, 250, tiny.vocab),
        tokens(7, 9, tiny.vocab),
    );
    let with =
        |tail: &[u32], keep: usize| -> Vec<u32> { trunk[..keep].iter().chain(tail).copied().collect() };
    let (to_a, to_b, to_c) = (with(&a, 300), with(&b, 300), with(&c, 280));
    let [whole_a, whole_b, whole_c] = [&to_a, &to_b, &to_c].map(|t| logits(&tiny, cpu(2, false), t, 64));
    let mut bench = Bench::of(&tiny, device(2), &cached(640, 3, 0));
    let [first, second, third] = [0, 1, 2].map(|_| bench.open());
    bench.turn(first, &trunk, 64);
    // At the very end of the first, which then writes on behind it; and before it.
    assert_eq!(bench.resume(second, &to_b, usize::MAX), 300);
    assert_eq!(bench.resume(third, &to_c, usize::MAX), 280);
    let mut rows = [Vec::new(), Vec::new(), Vec::new()];
    for at in (0..250).step_by(50) {
        rows[0].extend(bench.feed(first, &a[at..at + 50], 50));
        rows[1].extend(bench.feed(second, &b[at..at + 50], 50));
    }
    rows[2].extend(bench.feed(third, &c, 9));
    assert_continues(&rows[0], &whole_a, 300, tiny.vocab, "the one that was forked");
    assert_continues(&rows[1], &whole_b, 300, tiny.vocab, "forked at the end");
    assert_continues(&rows[2], &whole_c, 280, tiny.vocab, "forked inside");
}

#[test]
fn going_back_into_a_shared_page_never_writes_it() {
    let tiny = llama();
    let (trunk, other) = (tokens(8, 600, tiny.vocab), tokens(9, 200, tiny.vocab));
    let whole = logits(&tiny, cpu(2, false), &trunk, 64);
    let mut bench = Bench::of(&tiny, device(2), &cached(640, 2, 1024));
    let [first, second] = [0, 1].map(|_| bench.open());
    bench.turn(first, &trunk, 64);
    assert_eq!(bench.resume(second, &trunk, 520), 520);
    // Into a full page that both have, by truncating and by resuming another text.
    bench.model.truncate(first, 300).expect("KV goes back anywhere");
    bench.feed(first, &other, 64);
    let rest = bench.feed(second, &trunk[520..], 64);
    assert_continues(&rest, &whole, 520, tiny.vocab, "the other sequence");
    let edited: Vec<u32> = trunk[..100].iter().chain(&other).copied().collect();
    bench.turn(first, &edited, 64);
    // The end that was kept is still what it was.
    assert_eq!(bench.resume(first, &trunk, 599), 599);
    let last = bench.feed(first, &trunk[599..], 1);
    assert_continues(&last, &whole, 599, tiny.vocab, "the kept end");
}

#[test]
fn two_that_compute_the_same_keep_one_copy() {
    let tiny = llama();
    let prompt = tokens(10, 600, tiny.vocab);
    let whole = logits(&tiny, cpu(2, false), &prompt, 64);
    let mut bench = Bench::of(&tiny, device(2), &cached(640, 2, 0));
    let [first, second] = [0, 1].map(|_| bench.open());
    bench.feed(first, &prompt[..560], 64);
    bench.feed(second, &prompt[..560], 40);
    let before = bench.model.memory();
    assert_eq!((before.live_pages, before.nodes), (2 * 2 * 3, 0), "two layers of three pages each");
    bench.seal(first, &prompt);
    bench.seal(second, &prompt);
    let after = bench.model.memory();
    assert_eq!((after.live_pages, after.nodes, after.tokens), (2 * (2 + 1 + 1), 2, 512));
    assert_eq!(after.free_pages, before.free_pages + 2 * 2);
    for id in [first, second] {
        let rest = bench.feed(id, &prompt[560..], 64);
        assert_continues(&rest, &whole, 560, tiny.vocab, "on shared pages");
    }
}

#[test]
fn four_interleaved_conversations_lose_nothing_within_budget() {
    let tiny = llama();
    let texts: Vec<Vec<u32>> = (0..4)
        .map(|i| tokens(0, 90, tiny.vocab).into_iter().chain(tokens(20 + i, 500, tiny.vocab)).collect())
        .collect();
    let whole: Vec<_> = texts.iter().map(|t| logits(&tiny, cpu(2, false), t, 64)).collect();
    // One slot for all four.
    let mut bench = Bench::of(&tiny, device(2), &cached(640, 1, 4 * 640));
    let id = bench.open();
    let mut known = [0, 90, 90, 90];
    for end in [200, 260, 400, 590] {
        for (i, text) in texts.iter().enumerate() {
            let (resumed, rest) = bench.turn(id, &text[..end], 64);
            assert_eq!(resumed, known[i], "conversation {i} at its turn of {end} tokens");
            assert_continues(&rest, &whole[i], resumed, tiny.vocab, &format!("conversation {i}"));
            known[i] = end;
        }
    }
}

#[test]
fn editing_the_middle_recomputes_only_from_there() {
    let tiny = llama();
    let prompt = tokens(30, 600, tiny.vocab);
    let mut edited = prompt.clone();
    edited[333] = (edited[333] + 1) % tiny.vocab as u32;
    let whole = logits(&tiny, cpu(2, false), &edited, 64);
    let mut bench = Bench::of(&tiny, device(2), &cached(640, 1, 1024));
    let id = bench.open();
    bench.turn(id, &prompt, 64);
    let (resumed, rest) = bench.turn(id, &edited, 64);
    assert_eq!(resumed, 333);
    assert_continues(&rest, &whole, 333, tiny.vocab, "edited");
    // Neither version is lost.
    assert_eq!(bench.model.resumable(None, &prompt, 600), 600);
    assert_eq!(bench.model.resumable(None, &edited, 600), 600);
}

#[test]
fn eviction_drops_the_ends_of_cold_chains_and_no_page_of_a_live_sequence() {
    let tiny = llama();
    let text = |seed| tokens(seed, 512, tiny.vocab);
    let (live, cold, warm) = (text(40), text(41), text(42));
    let whole = logits(&tiny, cpu(2, false), &live, 64);
    // Two sequences of two pages, and a cache of four.
    let mut bench = Bench::of(&tiny, device(2), &cached(512, 2, 1024));
    let [held, id] = [0, 1].map(|_| bench.open());
    bench.feed(held, &live[..511], 64);
    bench.keep(held, &live);
    bench.turn(id, &cold, 64);
    for _ in 0..3 {
        bench.turn(id, &warm, 64);
    }
    let left = |bench: &Bench, text: &[u32]| bench.model.resumable(None, text, 512);
    assert_eq!([left(&bench, &cold), left(&bench, &warm)], [512, 512], "all fit");
    let mut seen = Vec::new();
    for seed in 43..47 {
        bench.turn(id, &text(seed)[..256], 64);
        seen.push([left(&bench, &cold), left(&bench, &warm)]);
    }
    assert_eq!(seen, [[512, 512], [512, 512], [256, 512], [0, 512]], "ends first, the cold chain first");
    assert_eq!(left(&bench, &live), 511);
    let last = bench.feed(held, &live[511..], 1);
    assert_continues(&last, &whole, 511, tiny.vocab, "the live sequence");
    // The same calls drop the same pages.
    let again = bench.model.memory();
    assert_eq!(again.free_pages + again.live_pages + again.cached_pages, 2 * (2 * 2 + 4));
}

/// Where first pages have a shape of their own there are fewer of them: whole conversations go for a new beginning.
#[test]
fn beginnings_are_evicted_with_all_that_hangs_on_them() {
    let tiny = llama();
    let kv = KvLayout::uniform(KvPair::both(KvFormat::Q4));
    let layout = Layout { kv, ..cached(512, 1, 4096) };
    let mut bench = Bench::of(&tiny, device(2), &layout);
    let text = |seed: u64| tokens(100 + seed, 400, tiny.vocab);
    let (favorite, id) = (text(0), bench.open());
    bench.turn(id, &favorite, 64);
    for seed in 1..12 {
        bench.turn(id, &text(seed), 64);
        assert_eq!(bench.resume(id, &favorite, 399), 399, "used again and again, after {seed} others");
    }
    let left = (1..12).filter(|&seed| bench.model.resumable(None, &text(seed), 400) == 400).count();
    // One beginning for the sequence, 16 / 8 + 4 for the cache; the favorite has one of them.
    assert_eq!(left, 6);
    let gone = (1..12).filter(|&seed| bench.model.resumable(None, &text(seed), 400) == 0).count();
    assert_eq!(gone, 5, "nothing is left of the others");
    let memory = bench.model.memory();
    assert_eq!(memory.tokens, 7 * 400, "{memory:?}");
}

/// Rows whose tokens only the device knows: their pages wait until the tokens are known, and they can be taken back.
#[test]
fn tokens_may_become_known_later() {
    let tiny = llama();
    let prompt = tokens(60, 252, tiny.vocab);
    let mut bench = Bench::of(&tiny, device(1), &cached(640, 2, 1024));
    let id = bench.open();
    bench.feed(id, &prompt, 63);
    // The last row of the last chunk, then each row alone.
    let mut row = 62;
    let mut known = prompt.clone();
    for position in 252..262 {
        // The host learns one token later than the device.
        let pick = Pick { logits: bench.model.logits(), rows: row + 1, k: 1, draws: &[] };
        bench.dev.pick(&pick).expect("a pick");
        let token = Token::Device(row as u32);
        bench.batch.rows.push(Row { sequence: id, position, token, logits: true, draft: false });
        let ticket = bench.dev.submit().expect("a ticket");
        bench.step().expect("a step");
        bench.seal(id, &known);
        let full = usize::from(known.len() >= 256);
        assert_eq!(bench.model.memory().nodes, full, "{} of {} tokens known", known.len(), position + 1);
        let short = bench.model.keep(bench.dev.as_mut(), id, &known).expect_err("not all tokens are known");
        assert!(matches!(short, ModelError::Batch { .. }), "{short}");
        let mut picked = Picked::default();
        bench.dev.picked(ticket, &mut picked).expect("results");
        known.push(picked.chosen[row]);
        row = 0;
    }
    // The last row comes to nothing; the page before it is shared as it was computed.
    bench.model.truncate(id, 261).expect("KV goes back");
    bench.keep(id, &known[..261]);
    let rest = bench.feed(id, &prompt[..20], 7);
    let whole: Vec<u32> = known[..261].iter().chain(&prompt[..20]).copied().collect();
    let other = bench.open();
    assert_eq!(bench.resume(other, &whole, 280), 261);
    assert_eq!(bench.feed(other, &whole[261..], 64), rest);
    let mut fresh = Bench::of(&tiny, device(1), &cached(640, 1, 0));
    let id = fresh.open();
    assert_continues(&rest, &fresh.feed(id, &whole, 64), 261, tiny.vocab, "after a row was taken back");
}

#[test]
fn what_was_not_computed_is_never_shared() {
    let tiny = llama();
    let prompt = tokens(50, 300, tiny.vocab);
    let mut bench = Bench::of(&tiny, device(1), &cached(640, 2, 1024));
    let id = bench.open();
    bench.feed(id, &prompt, 64);
    let mut wrong = prompt.clone();
    wrong[7] ^= 1;
    let refusals = [
        bench.model.seal(bench.dev.as_mut(), id, &wrong),
        bench.model.keep(bench.dev.as_mut(), id, &wrong),
        bench.model.keep(bench.dev.as_mut(), id, &prompt[..299]),
    ];
    for refusal in refusals {
        let refusal = refusal.expect_err("not its tokens");
        assert!(matches!(refusal, ModelError::Batch { .. }), "{refusal}");
    }
    assert_eq!(bench.model.memory().nodes, 0);
    // Made-up rows stay with their sequence.
    let (k, v) = (bench.dev.alloc(300, 64).expect("k"), bench.dev.alloc(300, 64).expect("v"));
    bench.model.truncate(id, 200).expect("KV goes back");
    bench.model.extend_synthetic(bench.dev.as_mut(), id, 300, &[(64, [k, v])]).expect("room");
    let claimed = tokens(51, 500, tiny.vocab);
    let claimed: Vec<u32> = prompt[..200].iter().chain(&claimed).copied().collect();
    bench.seal(id, &claimed);
    bench.keep(id, &claimed);
    assert_eq!(bench.model.memory().nodes, 0);
    assert_eq!(bench.model.resumable(Some(id), &claimed, 500), 200);
    bench.model.truncate(id, 200).expect("KV goes back");
    bench.keep(id, &claimed);
    assert_eq!(bench.model.resumable(None, &claimed, 500), 200);
}

/// Random operations on sequences that share, fork and go back, with pages as scarce as they may be: none fails, and
/// every logit is that of a fresh run.
#[test]
fn sequences_never_lack_pages_whatever_is_cached() {
    let tiny = gguf(&TinySpec { layers: 1, head_dim: 32, ..TinySpec::llama() }, Format::Q8_0);
    for (seed, cached_tokens) in [(1, 0), (2, 0), (3, 256), (4, 1024)] {
        let layout = Layout { cached_tokens, ..layout(600, 3, 200) };
        scramble(&tiny, &layout, seed, 150);
    }
    // First pages from pools of their own.
    for (seed, kv) in (5..).zip(packed_layouts()) {
        let layout = Layout { kv, cached_tokens: 512 * (seed as usize % 2), ..layout(600, 3, 200) };
        scramble(&tiny, &layout, seed, 60);
    }
}

#[test]
fn a_recurrent_model_resumes_where_it_was_kept_bit_for_bit() {
    for name in ["lfm2", "lfm2_moe"] {
        let tiny = golden(name, true);
        let prompt = tokens(60, 600, tiny.vocab);
        for kind in 0..3 {
            let whole = {
                let mut bench = Bench::of(&tiny, device(kind), &cached(640, 1, 0));
                let id = bench.open();
                bench.feed(id, &prompt, 64)
            };
            let mut bench = Bench::of(&tiny, device(kind), &cached(640, 2, 4096));
            let id = bench.open();
            let mut from = 0;
            for end in [100, 256, 300, 512, 600] {
                bench.feed(id, &prompt[from..end], 64);
                bench.keep(id, &prompt);
                from = end;
            }
            bench.model.free_sequence(id).expect("it lives");
            for (most, expected) in
                [(99, 0), (100, 100), (255, 100), (256, 256), (299, 256), (511, 300), (599, 512)]
            {
                let id = bench.open();
                assert_eq!(bench.resume(id, &prompt, most), expected, "{name}, at most {most}");
                let rest = bench.feed(id, &prompt[expected..], 50);
                let what = format!("{name}, device {kind}, from {expected}");
                assert_continues(&rest, &whole, expected, tiny.vocab, &what);
                bench.model.free_sequence(id).expect("it lives");
            }
        }
    }
}

#[test]
fn an_edit_of_a_recurrent_prompt_goes_back_to_the_nearest_kept_page() {
    let tiny = golden("lfm2", true);
    let prompt = tokens(61, 600, tiny.vocab);
    let mut edited = prompt.clone();
    edited[400] ^= 1;
    let mut bench = Bench::of(&tiny, device(2), &cached(640, 1, 2048));
    let id = bench.open();
    for (from, end) in [(0, 256), (256, 512), (512, 600)] {
        bench.feed(id, &prompt[from..end], 64);
        bench.keep(id, &prompt);
    }
    let (resumed, rest) = bench.turn(id, &edited, 64);
    assert_eq!(resumed, 256);
    assert_continues(&rest, &logits(&tiny, cpu(2, false), &edited, 64), 256, tiny.vocab, "edited");
    // A live end needs no snapshot.
    assert_eq!(bench.resume(id, &edited, 600), 600);
}

#[test]
fn snapshots_stay_within_their_budget_and_the_used_ones_last() {
    let tiny = golden("lfm2", true);
    let prompt = tokens(62, 600, tiny.vocab);
    let layout = cached(640, 1, 256);
    let mut bench = Bench::of(&tiny, device(2), &layout);
    let bytes = bench.model.info().snapshot_bytes(100) as u64;
    let budget = bench.model.info().footprint(&layout).state
        - bench.model.info().footprint(&Layout { cached_tokens: 0, ..layout.clone() }).state;
    let most = (budget / bytes) as usize;
    assert!((2..30).contains(&most), "{most} snapshots");
    let id = bench.open();
    for end in (10..600).step_by(10) {
        let held = bench.model.seq_len(id).expect("a sequence");
        bench.feed(id, &prompt[held..end], 64);
        bench.keep(id, &prompt);
        // The first is come back to all the time.
        assert_eq!(bench.model.resume(bench.dev.as_mut(), id, &prompt, 10).expect("resumed"), 10);
        let back = bench.model.resume(bench.dev.as_mut(), id, &prompt, end).expect("resumed");
        assert_eq!(back, end, "the newest is there");
    }
    let memory = bench.model.memory();
    assert_eq!((memory.snapshots, memory.snapshot_bytes), (most, most as u64 * bytes));
    assert_eq!(bench.model.resumable(None, &prompt, 585), if most > 2 { 580 } else { 10 });
}

/// Prints how long it takes; asserts only that no page is copied.
#[test]
fn a_prefix_of_32768_tokens_is_shared_without_copying_a_page() {
    let tiny = gguf(&TinySpec { layers: 8, ctx: 40_000, head_dim: 32, ..TinySpec::llama() }, Format::Q8_0);
    let prompt = tokens(70, 32_768, tiny.vocab);
    let kv = KvLayout::uniform(KvPair::both(KvFormat::Q8));
    let mut bench = Bench::of(&tiny, device(2), &Layout { kv, ..cached(33_024, 2, 0) });
    let [first, second] = [0, 1].map(|_| bench.open());
    // Computing them would take minutes; what they hold does not matter here.
    for from in (0..prompt.len()).step_by(256) {
        let range = from..from + 256;
        let bytes = vec![0u8; bench.model.image_bytes(range.clone())];
        let image = Image { tokens: &prompt, range, take: 256, bytes: &bytes };
        bench.model.import(bench.dev.as_mut(), first, &image).expect("an image");
    }
    let free = bench.model.memory().free_pages;
    let micros = |start: Instant| start.elapsed().as_secs_f64() * 1e6;
    let start = Instant::now();
    bench.seal(first, &prompt);
    let sealed = micros(start);
    let start = Instant::now();
    assert_eq!(bench.model.resumable(None, &prompt, 32_768), 32_768);
    let found = micros(start);
    let start = Instant::now();
    let resumed = bench.model.resume(bench.dev.as_mut(), second, &prompt, 32_768).expect("resumed");
    let taken = micros(start);
    assert_eq!(resumed, 32_768);
    let memory = bench.model.memory();
    assert_eq!((memory.free_pages, memory.live_pages), (free, 8 * 128), "no page was taken");
    let start = Instant::now();
    for _ in 0..1000 {
        bench.seal(first, &prompt);
    }
    let idle = micros(start) / 1000.0;
    println!(
        "32,768 tokens, 8 layers: seal {sealed:.0} us, look up {found:.0} us, resume {taken:.0} us; nothing to seal {idle:.3} us"
    );
}
