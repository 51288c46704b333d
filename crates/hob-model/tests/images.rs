//! Images of positions and of recurrent state: what leaves a model comes back to another one bit for bit, or not at all.

mod common;

use std::ops::Range;

use common::*;
use hob_compute::Compute;
use hob_compute::reference::Reference;
use hob_model::{Image, KvLayout, KvPair, Layout, Model, ModelError, ModelInfo, SeqId};
use hob_quant::{Format, KvFormat};
use hob_testkit::tiny::TinySpec;

/// Ranges of positions as a writer would export them, and how many of each are taken again. Of the third only a part is:
/// a later piece hangs on its middle.
const PIECES: [(Range<usize>, usize); 4] = [(0..100, 100), (100..256, 156), (256..300, 20), (276..300, 24)];
const PROMPT: usize = 300;

/// What a sequence left behind: an image per piece, and its recurrent state.
struct Stored {
    images: Vec<Vec<u8>>,
    state: Vec<u8>,
}

/// Feeds `prompt`, exporting positions while they are new.
fn store(bench: &mut Bench, id: SeqId, prompt: &[u32]) -> Stored {
    let mut images = Vec::new();
    for (range, _) in PIECES {
        let held = bench.model.seq_len(id).expect("a sequence");
        bench.feed(id, &prompt[held..range.end], 64);
        let image = bench.model.export(bench.dev.as_mut(), id, range.clone()).expect("held");
        assert_eq!(image.len(), bench.model.image_bytes(range));
        images.push(image);
    }
    let state = bench.model.snapshot(bench.dev.as_mut(), id).expect("a state");
    assert_eq!(state.len(), bench.model.info().snapshot_bytes(PROMPT));
    Stored { images, state }
}

fn load(bench: &mut Bench, id: SeqId, prompt: &[u32], stored: &Stored) {
    let (model, dev) = (&mut bench.model, bench.dev.as_mut());
    for ((range, take), bytes) in PIECES.into_iter().zip(&stored.images) {
        model.import(dev, id, &Image { tokens: prompt, range, take, bytes }).expect("an image");
    }
    model.restore(dev, id, prompt.len(), &stored.state).expect("a state");
}

#[test]
fn a_fresh_model_continues_from_images_bit_for_bit() {
    for name in goldens() {
        let tiny = golden(&name, true);
        let (prompt, tail) = (tokens(1, PROMPT, tiny.vocab), tokens(2, 8, tiny.vocab));
        let plain = (0..3).map(|kind| (kind, KvLayout::default()));
        for (kind, kv) in plain.chain(packed_layouts().map(|kv| (2, kv))) {
            let layout = |sequences| Layout { kv: kv.clone(), ..layout(320, sequences, 64) };
            let mut bench = Bench::of(&tiny, device(kind), &layout(1));
            let id = bench.open();
            let stored = store(&mut bench, id, &prompt);
            let expected = bench.feed(id, &tail, 3);
            let mut fresh = Bench::of(&tiny, device(kind), &layout(2));
            assert_eq!(fresh.model.identity(), bench.model.identity(), "{name}");
            // Not the slot it came from.
            fresh.open();
            let id = fresh.open();
            load(&mut fresh, id, &prompt, &stored);
            let again = fresh.model.export(fresh.dev.as_mut(), id, PIECES[3].0.clone()).expect("held");
            assert!(again == stored.images[3], "{name}: an image of what was imported");
            let continued = fresh.feed(id, &tail, 3);
            assert_same_bits(&continued, &expected, tiny.vocab, &format!("{name}, device {kind}, {kv:?}"));
        }
    }
}

#[test]
fn imported_pages_are_sealed_and_shared_like_computed_ones() {
    for name in ["qwen3", "gemma3", "lfm2"] {
        let tiny = golden(name, true);
        let (prompt, tail) = (tokens(3, PROMPT, tiny.vocab), tokens(4, 8, tiny.vocab));
        let mut bench = Bench::of(&tiny, device(2), &cached(320, 1, 1024));
        let id = bench.open();
        let stored = store(&mut bench, id, &prompt);
        let expected = bench.feed(id, &tail, 8);
        bench.model.truncate(id, 0).expect("always possible");
        load(&mut bench, id, &prompt, &stored);
        bench.keep(id, &prompt);
        bench.model.truncate(id, 0).expect("always possible");
        assert_eq!(bench.resume(id, &prompt, PROMPT), PROMPT, "{name}");
        assert_same_bits(&bench.feed(id, &tail, 8), &expected, tiny.vocab, name);
    }
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let tiny = gguf(&TinySpec::llama(), Format::Q8_0);
    let (prompt, tail) = (tokens(5, PROMPT, tiny.vocab), tokens(6, 8, tiny.vocab));
    let mut bench = Bench::of(&tiny, device(2), &layout(310, 1, 64));
    let id = bench.open();
    let stored = store(&mut bench, id, &prompt);
    let expected = bench.feed(id, &tail, 8);
    let refused = |bench: &mut Bench, range: Range<usize>| {
        let error = bench.model.export(bench.dev.as_mut(), id, range).expect_err("not held");
        assert!(matches!(error, ModelError::Image { .. }), "{error}");
        error.to_string()
    };
    assert!(refused(&mut bench, 300..309).contains("308"));
    #[allow(clippy::reversed_empty_ranges, reason = "that such a range is refused is what is tested")]
    refused(&mut bench, 20..10);
    bench.model.truncate(id, 100).expect("KV goes back anywhere");
    let good = &stored.images[1];
    let longer: Vec<u8> = good.iter().copied().chain([0]).collect();
    let image = |range: Range<usize>, take, bytes| Image { tokens: &prompt, range, take, bytes };
    let wrong = [
        ("a byte too few", image(100..256, 156, &good[1..])),
        ("a byte too many", image(100..256, 156, &longer)),
        ("no bytes", image(100..256, 156, &[])),
        ("of fewer positions", image(100..255, 155, good)),
        ("not where the sequence ends", image(99..255, 156, good)),
        ("behind a gap", image(101..256, 155, good)),
        ("across pages", image(100..257, 157, good)),
        ("nothing", image(100..100, 0, &[])),
        ("nothing of it", image(100..256, 0, good)),
        ("more than it has", image(100..256, 157, good)),
        ("unknown tokens", Image { tokens: &prompt[..200], ..image(100..256, 156, good) }),
    ];
    for (what, image) in wrong {
        let error = bench.model.import(bench.dev.as_mut(), id, &image).expect_err(what);
        assert!(matches!(error, ModelError::Image { .. }), "{what}: {error}");
        assert_eq!(bench.model.seq_len(id).expect("a sequence"), 100, "{what}");
    }
    for ((range, take), bytes) in PIECES.into_iter().zip(&stored.images).skip(1) {
        bench.model.import(bench.dev.as_mut(), id, &image(range, take, bytes)).expect("an image");
    }
    assert_same_bits(&bench.feed(id, &tail, 8), &expected, tiny.vocab, "after all refusals");
    let error = bench.model.import(bench.dev.as_mut(), id, &image(308..312, 4, &stored.images[1][..0]));
    assert!(error.is_err());
}

#[test]
fn positions_that_left_a_window_are_not_exported() {
    let tiny = golden("gemma3", true);
    let prompt = tokens(7, 600, tiny.vocab);
    let mut bench = Bench::of(&tiny, device(1), &layout(640, 1, 64));
    let id = bench.open();
    bench.feed(id, &prompt, 64);
    let error = bench.model.export(bench.dev.as_mut(), id, 200..600).expect_err("released").to_string();
    assert!(error.contains("window") && error.contains("200"), "{error}");
    bench.model.export(bench.dev.as_mut(), id, 590..600).expect("still seen");
}

#[test]
fn a_recurrent_model_waits_for_its_state() {
    let tiny = golden("lfm2", true);
    let (prompt, tail) = (tokens(8, PROMPT, tiny.vocab), tokens(9, 8, tiny.vocab));
    let mut bench = Bench::of(&tiny, device(2), &cached(320, 1, 512));
    let id = bench.open();
    let stored = store(&mut bench, id, &prompt);
    let expected = bench.feed(id, &tail, 8);
    bench.model.truncate(id, 0).expect("always possible");
    for ((range, take), bytes) in PIECES.into_iter().zip(&stored.images) {
        let image = Image { tokens: &prompt, range, take, bytes };
        bench.model.import(bench.dev.as_mut(), id, &image).expect("an image");
    }
    bench.add(id, &tail);
    let error = bench.step().expect_err("the state of another length").to_string();
    assert!(error.contains("300") && error.contains("restore"), "{error}");
    assert!(bench.model.snapshot(bench.dev.as_mut(), id).is_err());
    // Nor is a state kept that is not there.
    bench.keep(id, &prompt);
    assert_eq!(bench.model.memory().snapshots, 0);
    let (dev, model) = (bench.dev.as_mut(), &mut bench.model);
    for (len, bytes) in [(299, &stored.state[..]), (300, &stored.state[1..]), (300, &[])] {
        let error = model.restore(dev, id, len, bytes).expect_err("another length");
        assert!(matches!(error, ModelError::Image { .. }), "{error}");
    }
    model.restore(dev, id, PROMPT, &stored.state).expect("a state");
    assert_same_bits(&bench.feed(id, &tail, 8), &expected, tiny.vocab, "restored");
}

#[test]
fn an_identity_changes_with_whatever_changes_bits() {
    let load = |tiny: &Tiny, mut dev: Box<dyn Compute>, layout: &Layout| {
        let model = Model::load(tiny.file.clone(), dev.as_mut(), layout, &mut |_, _| ()).expect("a model");
        model.identity()
    };
    // Heads of 32, so that groups of 32 fit.
    let tiny = golden("qwen3", true);
    let plain = load(&tiny, device(2), &Layout::new(64));
    assert_eq!(load(&tiny, device(2), &cached(640, 3, 1024)), plain, "sizes change no bit");
    let q8 = KvPair::both(KvFormat::Q8);
    let packed = Layout { kv: KvLayout::uniform(q8), ..Layout::new(64) };
    let last = Layout {
        kv: KvLayout(vec![KvPair::default(), KvPair::default(), KvPair::default(), q8]),
        ..packed.clone()
    };
    let others = [
        load(&golden("llama3", true), device(2), &Layout::new(64)),
        load(&golden("qwen3", false), device(2), &Layout::new(64)),
        load(&tiny, device(1), &Layout::new(64)),
        load(&tiny, device(0), &Layout::new(64)),
        load(&tiny, Box::new(Reference::new(false)), &Layout::new(64)),
    ];
    for (at, other) in others.iter().enumerate() {
        assert_ne!(*other, plain, "{at}");
        assert!(!others[..at].contains(other), "{at}");
    }
    let info = ModelInfo::read(&tiny.file).expect("a model");
    let formats = |layout: &Layout| (0..4).map(|i| info.kv_pair(&layout.kv, i)).collect::<Vec<_>>();
    assert_ne!(formats(&packed), formats(&last));
    // On an exact device formats change no bit of K and V, but images of other formats are other caches all the same.
    let [exact, all, one] = [Layout::new(64), packed, last].map(|layout| load(&tiny, device(1), &layout));
    assert!(exact != all && all != one && exact != one);
    // LongRoPE's frequencies go by the reserved context.
    let phi3 = golden("phi3", false);
    let [short, same, long] = [20, 32, 33].map(|ctx| load(&phi3, device(2), &Layout::new(ctx)));
    assert_eq!(short, same);
    assert_ne!(short, long);
}

#[test]
fn a_new_layout_needs_no_file_and_no_live_sequence() {
    for name in ["phi3", "gemma3", "lfm2"] {
        let tiny = golden(name, false);
        let prompt = tokens(10, 100, tiny.vocab);
        let mut bench = Bench::of(&tiny, device(2), &cached(32, 1, 0));
        let id = bench.open();
        let before = bench.feed(id, &prompt[..32], 32);
        let wanted = cached(600, 2, 512);
        let error = bench.model.relayout(bench.dev.as_mut(), &wanted).expect_err("a sequence lives");
        assert!(matches!(error, ModelError::Layout { .. }), "{error}");
        bench.model.free_sequence(id).expect("it lives");
        let zero = Layout { ctx_tokens: 0, ..wanted.clone() };
        bench.model.relayout(bench.dev.as_mut(), &zero).expect_err("no context");
        bench.model.relayout(bench.dev.as_mut(), &wanted).expect("room");
        assert_eq!(bench.model.layout(), &wanted);
        let bill = bench.model.info().footprint(&wanted);
        let held = bench.dev.held_bytes();
        assert_eq!(held.pages, bill.kv, "{name}");
        let snapshots = bill.lines.iter().find(|l| l.name.contains("snapshots")).map_or(0, |l| l.bytes);
        assert_eq!(held.buffers, bill.scratch + bill.state - snapshots, "{name}");
        // Nobody's old handle is anybody's new one.
        let ids = [bench.open(), bench.open()];
        assert!(!ids.contains(&id));
        assert!(bench.model.seq_len(id).is_err());
        let mut fresh = Bench::of(&tiny, device(2), &wanted);
        assert_eq!(fresh.model.identity(), bench.model.identity(), "{name}");
        let other = fresh.open();
        let (a, b) = (bench.feed(ids[1], &prompt, 64), fresh.feed(other, &prompt, 64));
        assert_same_bits(&a, &b, tiny.vocab, name);
        // And back.
        for id in ids {
            bench.model.free_sequence(id).expect("it lives");
        }
        bench.model.relayout(bench.dev.as_mut(), &cached(32, 1, 0)).expect("room");
        let id = bench.open();
        assert_same_bits(&bench.feed(id, &prompt[..32], 32), &before, tiny.vocab, name);
    }
}

#[test]
fn a_layout_that_the_device_refuses_leaves_the_model_as_it_was() {
    let tiny = gguf(&TinySpec::llama(), Format::Q8_0);
    let prompt = tokens(11, 40, tiny.vocab);
    let mut bench = Bench::of(&tiny, device(2), &cached(64, 1, 0));
    let held = bench.dev.held_bytes();
    // 4096 sequences of 4 billion tokens.
    let vast = Layout { sequences: 4096, ..Layout::new(u32::MAX as usize) };
    bench.model.relayout(bench.dev.as_mut(), &vast).expect_err("more than any memory");
    assert_eq!(bench.dev.held_bytes(), held);
    let id = bench.open();
    let fresh = logits(&tiny, cpu(2, false), &prompt, 64);
    assert_same_bits(&bench.feed(id, &prompt, 64), &fresh, tiny.vocab, "as before");
}
