//! Every kind of state, on every fixture: what a sequence remembers can be saved and taken up again, drafts can be taken
//! back, and both leave every bit as it would have been. New architectures are walked as soon as their folder is there.

mod common;
#[path = "common/remembering.rs"]
mod remembering;

use std::collections::BTreeSet;

use common::*;
use hob_model::disk::{DiskConfig, DiskStore};
use hob_model::{Image, LayerState, Layout, Model, ModelError, ModelInfo};
use hob_testkit::temp::TempDir;
use remembering::*;

/// Walks all fixtures on the CPU as it usually computes.
fn walk(mut each: impl FnMut(&str, &Tiny)) {
    goldens().iter().for_each(|name| each(name, &fixture(name)));
}

#[test]
fn the_fixtures_have_every_kind_of_state_that_the_code_names() {
    let mut kinds: BTreeSet<&str> = BTreeSet::new();
    walk(|_, tiny| {
        let info = ModelInfo::read(&tiny.file).expect("a model");
        for (state, layer) in info.states().iter().zip(&info.config.layers) {
            let kind = match state {
                LayerState::Kv { latent: Some(_), .. } => "a latent",
                LayerState::Kv { .. } if layer.window.is_some() => "K and V behind a window",
                LayerState::Kv { .. } => "K and V",
                LayerState::Shared { .. } => "an earlier layer's",
                LayerState::Compressed { index_dim: 1.., .. } => "entries of which some are chosen",
                LayerState::Compressed { ratio: Some(_), .. } => "entries",
                LayerState::Compressed { .. } => "a ring",
                LayerState::Conv { .. } => "columns",
                LayerState::Delta { .. } => "a delta rule's",
                LayerState::Ssm { .. } => "a state space's",
                LayerState::None => "nothing",
            };
            kinds.insert(kind);
        }
    });
    assert_eq!(kinds.len(), 11, "of 11 kinds fixtures have {kinds:?}");
}

#[test]
fn what_was_saved_goes_on_bit_by_bit() {
    walk(|name, tiny| drop(comes_back(name, tiny, Box::new(cpu(2, false)))));
}

#[test]
fn drafts_that_were_wrong_never_were() {
    walk(|name, tiny| {
        let mut bench = Bench::of(tiny, Box::new(cpu(2, false)), &held(400, 2, 64));
        // From nothing, and across the edges of a chunk and a page.
        for start in [0, 57, 245] {
            goes_back(name, tiny, &mut bench, (start, false));
        }
    });
}

#[test]
fn going_back_stops_where_drafts_began() {
    walk(|name, tiny| {
        let mut bench = Bench::of(tiny, Box::new(cpu(1, false)), &held(64, 1, 32));
        let info = bench.model.info();
        // Rings go back as far as they reach, recurrences as far as they were held.
        let (recurrent, rings) = (info.recurrent(), info.rolls_back().is_some());
        let stops = recurrent && !rings;
        let text = tokens(5, 60, tiny.vocab);
        let id = bench.open();
        bench.feed(id, &text[..20], 32);
        draft(&mut bench, id, &text[20..26]);
        bench.step().expect("a step");
        let can = |bench: &Bench, len| bench.model.can_truncate(id, len).expect("a sequence");
        assert_eq!(
            [0, 19, 20, 23, 26, 27].map(|len| can(&bench, len)),
            [true, !stops, true, true, true, false]
        );
        bench.model.truncate(id, 23).expect("a draft");
        // Not forth again, nor further back than they began.
        assert_eq!([19, 20, 23, 24].map(|len| can(&bench, len)), [!stops, true, true, false], "{name}");
        if stops {
            let error = bench.model.truncate(id, 19).expect_err("before the drafts");
            assert!(matches!(error, ModelError::Rollback { held: 23, wanted: 19 }), "{error}");
        }
        if recurrent {
            draft(&mut bench, id, &text[23..23 + HELD + 1]);
            let error = bench.step().expect_err("more than can go back").to_string();
            let why = if rings { "what its rings keep" } else { "held_rows" };
            assert!(error.contains(why) && error.contains("17"), "{error}");
        }
        // A state that was read is final.
        bench.model.snapshot(bench.dev.as_mut(), id).expect("a state");
        assert_eq!([20, 23].map(|len| can(&bench, len)), [!stops, true], "{name}");
    });
}

/// Kept at the end of a turn while drafts are still held; resumed by another sequence.
#[test]
fn an_end_that_is_kept_behind_drafts_is_the_accepted_one() {
    walk(|name, tiny| {
        let text = tokens(6, 120, tiny.vocab);
        let layout = Layout { cached_tokens: 1024, ..held(320, 2, 64) };
        let mut bench = Bench::of(tiny, Box::new(cpu(2, false)), &layout);
        let (id, other) = (bench.open(), bench.open());
        bench.feed(id, &text[..60], 64);
        draft(&mut bench, id, &[&text[60..63], &[1, 2, 3][..]].concat());
        bench.step().expect("a step");
        bench.model.truncate(id, 63).expect("drafts go back");
        bench.keep(id, &text);
        assert_eq!(bench.resume(other, &text, 119), 63, "{name}");
        let [a, b] = [id, other].map(|id| bench.feed(id, &text[63..], 64));
        assert_same_bits(&a, &b, tiny.vocab, name);
    });
}

/// Through the store on disk into a model of another load: the uninterrupted run's bits.
#[test]
fn a_restart_from_disk_is_the_uninterrupted_run() {
    walk(|name, tiny| {
        let dir = TempDir::new("kinds");
        let disk = DiskConfig {
            dir: dir.path().to_path_buf(),
            budget_bytes: 1 << 28,
            daily_write_bytes: 1 << 28,
            snapshot_budget_bytes: 1 << 26,
        };
        // Two turns; windows let go of pages, so positions are stored while they are there.
        let text = tokens(7, 330, tiny.vocab);
        let mut bench = Bench::of(tiny, Box::new(cpu(2, false)), &held(340, 1, 64));
        let identity = bench.model.identity();
        let id = bench.open();
        let store = DiskStore::open(&disk).expect("a store");
        for (start, end) in [(0, 192), (192, 256), (256, 300)] {
            bench.feed(id, &text[start..end], 64);
            let image = bench.model.export(bench.dev.as_mut(), id, start..end).expect("held");
            store.append(&identity, &text[..end], start, &image).expect("stored");
        }
        if bench.model.info().recurrent() {
            let state = bench.model.snapshot(bench.dev.as_mut(), id).expect("a state");
            store.append_snapshot(&identity, &text[..300], &state, true).expect("stored");
        }
        let expected = bench.feed(id, &text[300..], 8);
        drop((bench, store));
        let store = DiskStore::open(&disk).expect("a store");
        let mut fresh = Bench::of(tiny, Box::new(cpu(2, false)), &held(340, 1, 64));
        let found = store.find(&fresh.model.identity(), &text[..329]);
        assert_eq!(found.tokens, 300, "{name}");
        let id = fresh.open();
        let (model, dev): (&mut Model, _) = (&mut fresh.model, fresh.dev.as_mut());
        for piece in &found.pieces {
            let bytes = store.read(piece).expect("undamaged");
            let range = piece.first..piece.first + piece.tokens;
            let image = Image { tokens: &text, range, take: piece.take_tokens, bytes: &bytes };
            model.import(dev, id, &image).expect("an image");
        }
        if let Some(&(len, snapshot)) = found.snapshots.last() {
            let state = store.read_snapshot(snapshot).expect("undamaged");
            model.restore(dev, id, len, &state).expect("a state");
        }
        assert_same_bits(&fresh.feed(id, &text[300..], 8), &expected, tiny.vocab, name);
    });
}

#[test]
fn the_bill_has_the_records() {
    walk(|name, tiny| {
        let info = ModelInfo::read(&tiny.file).expect("a model");
        for (sequences, held_rows) in [(1, 0), (1, 1), (3, 9)] {
            let layout = Layout { held_rows, ..layout(64, sequences, 16) };
            let bill = info.footprint(&layout);
            let mut dev = cpu(1, false);
            let model = Model::load(tiny.file.clone(), &mut dev, &layout, &mut |_, _| ()).expect("a model");
            let held = hob_compute::Compute::held_bytes(&dev);
            assert_eq!((held.pages, held.buffers), (bill.kv, bill.scratch + bill.state), "{name}");
            let records = bill.lines.iter().find(|l| l.name.contains("records of"));
            let holds = info.recurrent() && info.rolls_back().is_none();
            assert_eq!(records.is_some(), holds && held_rows > 0, "{name}: {:?}", bill.lines);
            assert_eq!(bill.lines.iter().map(|l| l.bytes).sum::<u64>(), bill.total, "{name}");
            model.unload(&mut dev).expect("unloaded");
        }
        let error = Model::load(
            tiny.file.clone(),
            &mut cpu(1, false),
            &Layout { held_rows: 17, ..layout(64, 1, 16) },
            &mut |_, _| (),
        );
        assert!(error.err().is_some_and(|e| e.to_string().contains("held_rows")), "{name}");
    });
}

/// Records of the largest hybrid that people run at home, by hand.
#[test]
fn records_of_a_35b_by_hand() {
    let experts = Some(hob_model::config::ExpertShape { count: 256, top_k: 8, ff: 512 });
    let shape = hob_model::config::DenseShape {
        vocab: 320,
        dim: 2048,
        layers: 40,
        heads: 16,
        kv_heads: 2,
        head_dim: 256,
        ffn: 512,
        ctx_train: 262_144,
        rope_base: 1e7,
        experts,
        ..Default::default()
    };
    let config = hob_model::Config::dense("qwen35moe", &shape).expect("a config");
    let delta = config.layers.iter().filter_map(|layer| match layer.mixer {
        hob_model::Mixer::DeltaNet(delta) => Some(delta.shape),
        _ => None,
    });
    let delta: Vec<_> = delta.collect();
    assert_eq!(delta.len(), 30);
    // 32 value heads of 1 + 128 + 128 floats, and 8,192 columns before the convolution.
    let row = 4 * (32 * (1 + 128 + 128) + 8192) * delta.len();
    assert_eq!(row, 1_969_920);
    let record = |s: &hob_compute::DeltaShape| s.value_heads * s.products().record() + s.channels();
    assert_eq!(4 * delta.iter().map(record).sum::<usize>(), row);
}
