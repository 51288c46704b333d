//! Layers with a window: pages that leave it are released, no logit changes for that, and what is kept can be resumed.

mod common;

use common::*;
use hob_model::{LayerConfig, LayerState, Layout, ModelError, ModelInfo};
use hob_testkit::tiny::TinySpec;

/// Fixtures with windows of 16 positions in some layers.
const FAMILIES: [&str; 5] = ["gemma2", "gemma3", "olmo3", "gpt_oss", "gemma4_e"];

/// Two layers, of which the second sees 100 positions.
fn half_windowed() -> Tiny {
    folder(&TinySpec { ctx: 4096, ..TinySpec::qwen2() }, |config| {
        config["use_sliding_window"] = true.into();
        config["sliding_window"] = 100.into();
        config["max_window_layers"] = 1.into();
    })
}

/// Every layer sees 300 positions.
fn all_windowed() -> Tiny {
    folder(&TinySpec { ctx: 4096, ..TinySpec::llama() }, |config| {
        config["model_type"] = "mistral".into();
        config["architectures"] = serde_json::json!(["MistralForCausalLM"]);
        config["sliding_window"] = 300.into();
    })
}

/// All kinds of windows, with names.
fn models() -> Vec<(String, Tiny)> {
    let mut models: Vec<_> = FAMILIES.map(|name| (name.to_string(), golden(name, true))).into();
    models.push(("half".to_string(), half_windowed()));
    models.push(("all".to_string(), all_windowed()));
    models
}

#[test]
fn released_pages_change_no_logit() {
    for (name, tiny) in models() {
        let prompt = tokens(1, 1100, tiny.vocab);
        for kind in [1, 2] {
            // All in one step: nothing can have been released before the last row is computed.
            let whole = {
                let mut bench = Bench::of(&tiny, device(kind), &layout(1100, 1, 1100));
                let id = bench.open();
                bench.feed(id, &prompt, 1100)
            };
            let mut bench = Bench::of(&tiny, device(kind), &layout(1100, 1, 40));
            let id = bench.open();
            let cut = bench.feed(id, &prompt, 40);
            assert_same_bits(&cut, &whole, tiny.vocab, &format!("{name}, device {kind}"));
        }
    }
}

#[test]
fn a_window_holds_no_more_pages_than_it_sees() {
    for (name, tiny) in models() {
        let prompt = tokens(2, 2000, tiny.vocab);
        let info = ModelInfo::read(&tiny.file).expect("a model");
        let layout = layout(2048, 1, 64);
        let pages = |window: Option<usize>| window.map_or(8, |w| ((w + 64) / 256 + 2).min(8));
        let own = |(i, _): &(usize, &LayerConfig)| matches!(info.states()[*i], LayerState::Kv { .. });
        let layers: Vec<_> = info.config.layers.iter().enumerate().filter(own).map(|(_, l)| l).collect();
        let most: usize = layers.iter().map(|l| pages(l.window)).sum();
        for sealed in [false, true] {
            let mut bench = Bench::of(&tiny, device(2), &layout);
            let all = bench.model.memory().free_pages;
            assert_eq!(all, most, "{name}: what is allocated");
            let page = all as u64 * bench.dev.held_bytes().pages / most as u64 / all as u64;
            assert!(page > 0);
            let id = bench.open();
            for part in prompt.chunks(64) {
                bench.feed(id, part, 64);
                if sealed {
                    bench.seal(id, &prompt);
                }
            }
            let memory = bench.model.memory();
            assert_eq!(memory.live_pages + memory.cached_pages + memory.free_pages, all, "{name}");
            // At position 2000 a window of 16 or 100 sees one page or two, one of 300 two.
            let seen = |window: Option<usize>| window.map_or(8, |w| 8 - (2001 - w) / 256);
            let now: usize = layers.iter().map(|l| seen(l.window)).sum();
            // The last pages go when the next step begins, or when the sequence is sealed.
            let late = if sealed { 0 } else { layers.iter().filter(|l| l.window.is_some()).count() };
            assert!((now..=now + late).contains(&memory.live_pages), "{name}: {memory:?}, {now} seen");
        }
    }
}

#[test]
fn the_footprint_counts_windows_and_the_device_holds_as_much() {
    for (name, tiny) in models() {
        for layout in [layout(300, 1, 64), cached(2048, 3, 0), cached(4096, 2, 8192)] {
            let info = ModelInfo::read(&tiny.file).expect("a model");
            let bill = info.footprint(&layout);
            let mut dev = cpu(1, false);
            let loaded = hob_model::Model::load(tiny.file.clone(), &mut dev, &layout, &mut |_, _| ());
            let model = loaded.expect("a model");
            assert_eq!(hob_compute::Compute::held_bytes(&dev).pages, bill.kv, "{name}");
            assert_eq!(bill.lines.iter().map(|l| l.bytes).sum::<u64>(), bill.total);
            let windows = bill.lines.iter().any(|l| l.name.contains("KV pages: window of"));
            assert_eq!(windows, layout.ctx_tokens > 600, "{name}: {:?}", bill.lines);
            model.unload(&mut dev).expect("unloaded");
        }
    }
    // By hand: gemma3 has 1 full layer and 6 of window 16, 2 KV heads of 32 in f16.
    let info = ModelInfo::read(&golden("gemma3", true).file).expect("a model");
    let page = 256 * 2 * 2 * 32 * 2;
    let bill = info.footprint(&cached(4096, 2, 0));
    assert_eq!(bill.kv, 2 * (16 + 6 * 2) * page);
    let more = info.footprint(&cached(4096, 2, 8192)).kv - bill.kv;
    // 32 pages of the full layer; 2 pages for each of 6 ends of the others.
    assert_eq!(more, (32 + 6 * 6 * 2) * page);
}

#[test]
fn what_has_left_a_window_cannot_be_truncated_to_but_what_was_kept_is_found() {
    for (name, tiny) in models() {
        let prompt = tokens(3, 1500, tiny.vocab);
        let whole = logits(&tiny, cpu(2, false), &prompt, 64);
        let mut bench = Bench::of(&tiny, device(2), &cached(1536, 1, 4096));
        let id = bench.open();
        for (from, end) in [(0, 400), (400, 1500)] {
            for part in prompt[from..end].chunks(64) {
                bench.feed(id, part, 64);
                bench.seal(id, &prompt);
            }
            bench.keep(id, &prompt);
        }
        assert!(!bench.model.can_truncate(id, 400).expect("a sequence"), "{name}");
        let error = bench.model.truncate(id, 400).expect_err("its window is gone");
        assert!(matches!(error, ModelError::Rollback { held: 1500, wanted: 400 }), "{error}");
        assert!(error.to_string().contains("resume"), "{error}");
        assert!(bench.model.can_truncate(id, 1490).expect("a sequence"), "{name}: within its window");
        for most in [400, 1499, 700, 100, 256, 1030, 1] {
            let resumed = bench.resume(id, &prompt, most);
            if most == 400 || most == 1499 {
                assert_eq!(resumed, most, "{name}: a kept end");
            }
            // Pages are 256 positions, and a cache this large drops nothing.
            assert!(most - resumed < 256, "{name}: {resumed} of {most}");
            let rest = bench.feed(id, &prompt[resumed..], 64);
            assert_continues(&rest, &whole, resumed, tiny.vocab, &format!("{name}, {resumed} of {most}"));
        }
    }
}

#[test]
fn kept_ends_outlive_what_no_end_needs() {
    let tiny = golden("gemma3", true);
    let layout = cached(2048, 1, 2048);
    let mut bench = Bench::of(&tiny, device(2), &layout);
    let text = |seed| tokens(seed, 1000, tiny.vocab);
    let id = bench.open();
    // Three conversations of four pages: 12 pages of each windowed layer, of which the cache has room for fewer.
    for seed in 10..13 {
        for part in text(seed).chunks(64) {
            bench.feed(id, part, 64);
            bench.seal(id, &text(seed));
        }
        bench.keep(id, &text(seed));
        bench.model.truncate(id, 0).expect("always possible");
    }
    let found: Vec<usize> = (10..13).map(|seed| bench.model.resumable(None, &text(seed), 1000)).collect();
    assert_eq!(found, [1000, 1000, 1000], "every end that was kept");
    let whole = logits(&tiny, cpu(2, false), &text(10), 64);
    assert_eq!(bench.resume(id, &text(10), 999), 999);
    let rest = bench.feed(id, &text(10)[999..], 1);
    assert_continues(&rest, &whole, 999, tiny.vocab, "an old end");
}

#[test]
fn windowed_sequences_never_lack_pages_whatever_is_cached() {
    for (at, (_, tiny)) in models().into_iter().enumerate() {
        for cached_tokens in [0, 512] {
            let layout = Layout { cached_tokens, ..layout(700, 2, 100) };
            scramble(&tiny, &layout, 20 + at as u64, 60);
        }
    }
    let tiny = golden("gemma3", true);
    for (seed, kv) in (40..).zip(packed_layouts()) {
        scramble(&tiny, &Layout { cached_tokens: 512, kv, ..layout(700, 2, 100) }, seed, 60);
    }
    let tiny = golden("lfm2", true);
    scramble(&tiny, &Layout { cached_tokens: 512, ..layout(700, 2, 100) }, 30, 80);
}
