//! What every kind of state must do on any device: be saved and taken up again, and go back behind drafts.
//! Included by the tests of every device; a device is given back so that what it compiled serves again.

use std::ops::Range;

use hob_compute::Compute;
use hob_model::{Image, Layout, ModelInfo, SeqId};

use crate::common::*;

/// Rows that a sequence may hold.
pub const HELD: usize = 16;

/// A fixture and the vocabulary it has.
pub fn fixture(name: &str) -> Tiny {
    let tiny = golden(name, true);
    let vocab = ModelInfo::read(&tiny.file).expect("a model").config.vocab;
    Tiny { vocab, ..tiny }
}

pub fn held(ctx_tokens: usize, sequences: usize, chunk_rows: usize) -> Layout {
    Layout { held_rows: HELD, ..layout(ctx_tokens, sequences, chunk_rows) }
}

/// Puts exported positions and a snapshot into a sequence that holds nothing.
fn restore(bench: &mut Bench, id: SeqId, text: &[u32], pieces: &[(Range<usize>, Vec<u8>)], state: &[u8]) {
    let (model, dev) = (&mut bench.model, bench.dev.as_mut());
    let mut len = 0;
    for (range, bytes) in pieces {
        let (range, take) = (range.clone(), range.len());
        len = range.end;
        model.import(dev, id, &Image { tokens: text, range, take, bytes }).expect("an image");
    }
    model.restore(dev, id, len, state).expect("a state");
}

/// Snapshot, continue, go back to the snapshot, continue again; then the same in another slot of a fresh model.
pub fn comes_back(name: &str, tiny: &Tiny, dev: Box<dyn Compute>) -> Box<dyn Compute> {
    let text = tokens(1, 300, tiny.vocab);
    let mut bench = Bench::of(tiny, dev, &held(320, 1, 64));
    let id = bench.open();
    let mut saved = Vec::new();
    for (start, end) in [(0, 128), (128, 256), (256, 279)] {
        bench.feed(id, &text[start..end], 64);
        let range = if start < 256 { 0..end } else { 256..end };
        // Of windows pages are exported while they are there.
        saved.retain(|(known, _): &(Range<usize>, Vec<u8>)| known.start != range.start);
        let image = bench.model.export(bench.dev.as_mut(), id, range.clone()).expect("held");
        saved.push((range, image));
    }
    let state = bench.model.snapshot(bench.dev.as_mut(), id).expect("a state");
    let expected = bench.feed(id, &text[279..], 4);
    bench.model.truncate(id, 0).expect("always possible");
    restore(&mut bench, id, &text, &saved, &state);
    let again = bench.model.snapshot(bench.dev.as_mut(), id).expect("a state");
    assert!(again == state, "{name}: a snapshot of what was restored");
    assert_same_bits(&bench.feed(id, &text[279..], 4), &expected, tiny.vocab, name);
    let mut fresh = Bench::of(tiny, bench.close(), &held(320, 2, 64));
    fresh.open();
    let id = fresh.open();
    restore(&mut fresh, id, &text, &saved, &state);
    assert_same_bits(&fresh.feed(id, &text[279..], 4), &expected, tiny.vocab, &format!("{name}, afresh"));
    fresh.close()
}

/// Adds `tokens` to the batch as drafts.
pub fn draft(bench: &mut Bench, id: SeqId, tokens: &[u32]) {
    let first = bench.batch.rows.len();
    bench.add(id, tokens);
    bench.batch.rows[first..].iter_mut().for_each(|row| row.draft = true);
}

/// Drafts of 1 to 8 tokens, at first all wrong, then from none to all right, one round behind the other from `start` on; a
/// snapshot in the middle. Every logit of a token that stays must be that of a run without drafts, token by token; where
/// `alike`, of one with other drafts: the number of rows picks a GPU's kernels, and those round each in its way.
pub fn goes_back(name: &str, tiny: &Tiny, bench: &mut Bench, (start, alike): (usize, bool)) {
    let vocab = tiny.vocab;
    let [text, wrong, other] = [3, 4, 5].map(|seed| tokens(seed, 400, vocab));
    let (id, plain) = (bench.open(), bench.open());
    bench.feed(id, &text[..start], 64);
    bench.feed(plain, &text[..start], 64);
    let mut at = start;
    for round in 0..16 {
        let drafts = 1 + round % 8;
        let right = if round < 8 { 0 } else { (round * 5 % 9).min(drafts) };
        // The sampled token, then drafts, of which the first `right` are what follows.
        let run = |bench: &mut Bench, id, wrong: &[u32]| {
            let row = |i| if i <= right { text[at + i] } else { wrong[at + i] };
            draft(bench, id, &(0..=drafts).map(row).collect::<Vec<u32>>());
            let mut logits = bench.step().expect("a step");
            bench.model.truncate(id, at + 1 + right).expect("drafts go back");
            logits.truncate((right + 1) * vocab);
            logits
        };
        let logits = run(bench, id, &wrong);
        let expected = match alike {
            true => run(bench, plain, &other),
            false => bench.feed(plain, &text[at..=at + right], 1),
        };
        let what = format!("{name}, round {round}: {right} of {drafts} drafts from {at}");
        assert_same_bits(&logits, &expected, vocab, &what);
        at += right + 1;
        // Rings keep what was taken back where nobody looks: see `an_end_that_is_kept_behind_drafts_is_the_accepted_one`.
        if round == 9 && bench.model.info().rolls_back().is_none() {
            let (model, dev) = (&mut bench.model, bench.dev.as_mut());
            let [a, b] = [id, plain].map(|id| model.snapshot(dev, id).expect("a state"));
            assert!(a == b, "{what}: the state behind it");
        }
    }
    // Text that is final, also in a chunk.
    for rows in [1, 30] {
        let [a, b] = [id, plain].map(|id| bench.feed(id, &text[at..at + rows], rows));
        assert_same_bits(&a, &b, vocab, &format!("{name}, {rows} rows behind the drafts"));
        at += rows;
    }
    [id, plain].into_iter().for_each(|id| bench.model.free_sequence(id).expect("it lives"));
}
