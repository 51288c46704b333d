//! State on disk: what was run is not run again after a restart, however the process ended and whatever became of the
//! files, and what is said afterwards is the same.

mod common;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use common::child::{Child, PATIENCE, wait_for_snapshot, wait_for_tokens};
use common::*;
use hob_engine::*;
use hob_files::ModelFile;
use hob_model::ModelInfo;
use hob_testkit::temp::TempDir;
use hob_testkit::tiny::TinySpec;

fn watched(file: &Arc<ModelFile>) -> Watched {
    Watched::new(ModelInfo::read(file).unwrap().config.vocab)
}

fn engine_with(runtime: &Arc<Runtime>, file: &Arc<ModelFile>, cache: &CacheConfig) -> Engine {
    load_with(runtime, file, roomy(1, 1024), cache)
}

/// Models whose state is of different kinds: K and V only, with biases, behind windows, recurrent in three ways, a latent,
/// compressed entries.
fn models() -> Vec<(&'static str, Arc<ModelFile>)> {
    ["llama_tied", "qwen2", "gemma3", "lfm2", "qwen3_5", "nemotron_h", "mamba2", "deepseek_v3", "deepseek_v4"]
        .map(|name| (name, reference_model(name)))
        .into()
}

#[test]
fn a_restart_changes_no_bit() {
    for (name, file) in models() {
        let dir = TempDir::new("survival");
        let cache = on_disk(dir.path());
        let watched = watched(&file);
        let first = request(prompt(1, 700), whole_rows(), 30);
        // Uninterrupted: two turns in one session, without a store.
        let mut plain = load(&watched.runtime, &file, roomy(1, 0));
        let mut session = plain.session().unwrap();
        let want_first = generate(&mut plain, &mut session, &first).unwrap();
        let rows_first = watched.logits();
        let second = request([session.tokens(), &prompt(2, 40)].concat(), whole_rows(), 30);
        let want_second = generate(&mut plain, &mut session, &second).unwrap();
        let rows_second = watched.logits();
        assert_eq!((rows_first.len(), rows_second.len()), (30, 30));

        let got = alone(&mut engine_with(&watched.runtime, &file, &cache), &first);
        assert_eq!((got.figures.restored_tokens, &got.tokens), (0, &want_first.tokens), "{name}");
        assert!(watched.logits() == rows_first, "{name}: storing changed the logits");
        // The next turn in another process.
        let got = alone(&mut engine_with(&watched.runtime, &file, &cache), &second);
        assert_eq!(got.tokens, want_second.tokens, "{name}");
        assert!(watched.logits() == rows_second, "{name}: logits differ after a restart");
        assert_eq!(got.figures.restored_tokens, 700 + 29, "{name}: all that was run");
        assert_eq!(got.figures.cached_tokens(), 700 + 29);
        assert!(got.figures.restore_micros > 0 && got.figures.restore_estimate_micros > 0, "{name}");
        assert!(got.figures.recompute_estimate_micros > got.figures.restore_estimate_micros, "{name}");
        // The first turn again in a third.
        let got = alone(&mut engine_with(&watched.runtime, &file, &cache), &first);
        assert_eq!((got.figures.restored_tokens, &got.tokens), (699, &want_first.tokens), "{name}");
        assert!(watched.logits() == rows_first, "{name}: logits differ after a second restart");
    }
}

#[test]
fn another_model_finds_nothing_in_the_store() {
    let dir = TempDir::new("survival");
    let cache = on_disk(dir.path());
    let asked = request(prompt(1, 600), whole_rows(), 4);
    let (one, other) =
        (Tiny::new(), Tiny::with(&TinySpec { seed: 2, ..TinySpec::llama() }, &hob_testkit::tiny::f32_encode));
    let runtime = runtime();
    alone(&mut engine_with(&runtime, &one.file, &cache), &asked);
    let got = alone(&mut engine_with(&runtime, &other.file, &cache), &asked);
    assert_eq!(got.figures.restored_tokens, 0);
    assert_eq!(got.tokens, alone(&mut load(&runtime, &other.file, roomy(1, 0)), &asked).tokens);
    let again = alone(&mut engine_with(&runtime, &one.file, &cache), &asked);
    assert_eq!(again.figures.restored_tokens, 599);
}

/// All regular files below a folder.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(self::files(&path));
        } else {
            files.push(path);
        }
    }
    files.sort();
    files
}

#[test]
fn a_damaged_store_costs_time_and_nothing_else() {
    type Damage = fn(&mut Vec<u8>);
    let damages: [(&str, Damage); 4] = [
        ("flipped here and there", |bytes| bytes.iter_mut().skip(100).step_by(5000).for_each(|b| *b ^= 0x10)),
        ("cut in half", |bytes| bytes.truncate(bytes.len() / 2)),
        ("emptied", Vec::clear),
        ("one bit on the way", |bytes| {
            // Behind it there are states after the prompt and after the reply.
            let at = bytes.len() * 2 / 5;
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1;
            }
        }),
    ];
    for name in ["llama_tied", "lfm2", "mamba2", "deepseek_v4"] {
        let file = reference_model(name);
        let watched = watched(&file);
        let asked = request(prompt(1, 700), whole_rows(), 10);
        let want = alone(&mut load(&watched.runtime, &file, roomy(1, 0)), &asked);
        let rows = watched.logits();
        for (how, damage) in damages {
            let dir = TempDir::new("survival");
            let cache = on_disk(dir.path());
            alone(&mut engine_with(&watched.runtime, &file, &cache), &asked);
            let stored = files(dir.path());
            assert!(!stored.is_empty());
            for path in stored {
                let mut bytes = std::fs::read(&path).unwrap();
                damage(&mut bytes);
                std::fs::write(&path, bytes).unwrap();
            }
            watched.logits();
            let mut engine = engine_with(&watched.runtime, &file, &cache);
            let got = alone(&mut engine, &asked);
            assert_eq!(got.tokens, want.tokens, "{name}, {how}");
            assert!(watched.logits() == rows, "{name}, {how}: logits differ");
            assert!(got.figures.restored_tokens < 699, "{name}, {how}");
            drop(engine);
            // What was run instead is stored again.
            let again = alone(&mut engine_with(&watched.runtime, &file, &cache), &asked);
            assert_eq!((again.figures.restored_tokens, &again.tokens), (699, &want.tokens), "{name}, {how}");
            watched.logits();
        }
    }
}

#[test]
fn a_budget_that_is_used_up_stops_no_reply() {
    let tiny = Tiny::new();
    let asked = request(prompt(1, 900), whole_rows(), 300);
    let want = alone(&mut tiny.engine(roomy(1, 0)), &asked);
    for (budget_bytes, daily_write_bytes) in
        [(0, 1 << 30), (1 << 30, 0), (200_000, 1 << 30), (1 << 30, 200_000)]
    {
        let dir = TempDir::new("survival");
        let mut cache = on_disk(dir.path());
        let disk = cache.disk.as_mut().unwrap();
        (disk.budget_bytes, disk.daily_write_bytes) = (budget_bytes, daily_write_bytes);
        for _ in 0..2 {
            let got = alone(&mut engine_with(&runtime(), &tiny.file, &cache), &asked);
            assert_eq!(got.tokens, want.tokens, "{budget_bytes}, {daily_write_bytes} a day");
        }
        let written: u64 = files(dir.path()).iter().map(|p| p.metadata().unwrap().len()).sum();
        assert!(
            written <= budget_bytes.min(daily_write_bytes).max(4096) * 11 / 10,
            "{written} bytes on disk"
        );
    }
}

/// Almost nothing may wait: most pages are skipped while they are made, and none is lost in the end.
#[test]
fn a_slow_disk_is_caught_up_with() {
    let tiny = Tiny::new();
    let dir = TempDir::new("survival");
    let cache = CacheConfig { queue_bytes: 1, ..on_disk(dir.path()) };
    let asked = request(prompt(1, 1500), whole_rows(), 20);
    let want = alone(&mut engine_with(&runtime(), &tiny.file, &cache), &asked);
    let got = alone(&mut engine_with(&runtime(), &tiny.file, &cache), &asked);
    assert_eq!((got.figures.restored_tokens, got.tokens), (1499, want.tokens));
}

#[test]
fn fifty_turns_write_little_more_than_their_keys_and_values() {
    // Wide enough that a turn is a matter of kilobytes, as it is for a model of use.
    let spec = TinySpec { head_dim: 64, kv_heads: 4, ..TinySpec::llama() };
    let tiny = Tiny::with(&spec, &hob_testkit::tiny::f32_encode);
    let dir = TempDir::new("survival");
    let cache = on_disk(dir.path());
    let mut engine = engine_with(&runtime(), &tiny.file, &cache);
    let mut session = engine.session().unwrap();
    let mut timeline = prompt(1, 100);
    let mut reused = 0;
    for turn in 0..50 {
        let outcome = generate(&mut engine, &mut session, &greedy(timeline, 20)).unwrap();
        assert_eq!(outcome.figures.reused_tokens, reused, "turn {turn}");
        reused = session.ready_tokens();
        timeline = [session.tokens(), &prompt(turn, 15)].concat();
    }
    assert!(engine.flush(PATIENCE));
    let grown = reused as u64 * engine.info().kv_bytes_per_token(&hob_model::KvLayout::default());
    let written = engine.disk_stats().unwrap().written_bytes;
    assert!(grown > 1 << 20, "{grown}");
    assert!(written >= grown && written * 10 <= grown * 11, "{written} bytes for {grown} of keys and values");
    println!("50 turns: {written} bytes written for {grown} of keys and values");
}

#[test]
fn what_was_sampled_is_replayed_after_a_restart() {
    let tiny = Tiny::new();
    let dir = TempDir::new("survival");
    let cache = on_disk(dir.path());
    let opening =
        format!("<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", "hello there ".repeat(30));
    // Letters one by one: as text they are other tokens.
    let letters: Vec<u32> = "then the other".bytes().map(|b| u32::from(b) + 4).collect();
    let said = {
        let mut engine = engine_with(&runtime(), &tiny.file, &cache);
        let pinned =
            Prompt { segments: vec![Segment::Text(opening.clone()), Segment::Tokens(letters.clone())] };
        let asked = Request { sampling: Sampling::greedy(), max_tokens: 1, ..Request::new(pinned) };
        let mut session = engine.session().unwrap();
        generate(&mut engine, &mut session, &asked).unwrap();
        session.tokens()[..session.ready_tokens()].to_vec()
    };
    let mut engine = engine_with(&runtime(), &tiny.file, &cache);
    let mut session = engine.session().unwrap();
    let text = format!("{opening}then the other<|im_end|>\n<|im_start|>user\nand?<|im_end|>\n");
    let asked = Request { sampling: Sampling::greedy(), max_tokens: 1, ..Request::new(Prompt::text(text)) };
    let outcome = generate(&mut engine, &mut session, &asked).unwrap();
    assert_eq!(session.tokens()[..said.len()], said);
    assert_eq!(outcome.figures.restored_tokens, said.len());
}

/// In a child: its model, and its store.
fn of_child() -> Option<(Arc<ModelFile>, CacheConfig)> {
    let Child { dir, model } = Child::of_this_process()?;
    Some((reference_model(&model), on_disk(&dir)))
}

fn long_reply() -> Request {
    request(prompt(1, 600), whole_rows(), 1000)
}

/// Not a test by itself: goes on until it is killed.
#[test]
fn child_that_is_killed() {
    let Some((file, cache)) = of_child() else { return };
    let mut engine = engine_with(&runtime(), &file, &cache);
    let mut session = engine.session().unwrap();
    let mut told = 0;
    engine
        .generate(&mut session, &long_reply(), &Cancel::new(), &mut |text| {
            told += text.len();
            println!("{told} bytes of reply");
            std::thread::sleep(Duration::from_millis(5));
        })
        .unwrap();
    println!("the end");
}

#[test]
fn a_process_killed_in_mid_reply_loses_at_most_a_page() {
    // State that is larger than the K and V of a page is kept where the prompt ends, and not on every page of a reply.
    for (name, every_page) in
        [("llama_tied", true), ("lfm2", true), ("mamba2", false), ("deepseek_v4", false)]
    {
        let file = reference_model(name);
        let watched = watched(&file);
        let want = alone(&mut load(&watched.runtime, &file, roomy(1, 0)), &long_reply());
        let rows = watched.logits();
        let dir = TempDir::new("survival");
        let cache = on_disk(dir.path());
        let mut child = Child::start("child_that_is_killed", name, dir.path(), "");
        // The prompt, and one page of the reply.
        wait_for_tokens(&cache, 768);
        child.kill().unwrap();
        let status = child.wait().unwrap();
        assert!(!status.success(), "{name}: killed, not done");
        let mut said = String::new();
        child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(!said.contains("the end"), "{name}: it was still talking");

        // The same again.
        let mut engine = engine_with(&watched.runtime, &file, &cache);
        let mut session = engine.session().unwrap();
        let got = generate(&mut engine, &mut session, &long_reply()).unwrap();
        assert_eq!((got.figures.restored_tokens, &got.tokens), (599, &want.tokens), "{name}");
        assert!(watched.logits() == rows, "{name}: logits differ after the kill");
        drop((session, engine));
        if !every_page {
            continue;
        }

        // On with what had been said: the page of the reply that the killed process had made is not run again.
        let dir = TempDir::new("survival");
        let cache = on_disk(dir.path());
        let mut child = Child::start("child_that_is_killed", name, dir.path(), "");
        wait_for_tokens(&cache, 768);
        let said = [&prompt(1, 600)[..], &want.tokens[..200]].concat();
        if name == "lfm2" {
            wait_for_snapshot(&cache, &said, 768);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let mut engine = engine_with(&watched.runtime, &file, &cache);
        let on = request(said, whole_rows(), 1);
        let got = alone(&mut engine, &on);
        assert!(got.figures.restored_tokens >= 768, "{name}: {}", got.figures.restored_tokens);
        assert!(watched.logits()[0] == rows[200], "{name}: logits differ where the reply goes on");
    }
}

/// Not a test by itself: the system refuses its files to grow.
#[test]
fn child_with_a_full_disk() {
    let Some((file, cache)) = of_child() else { return };
    let mut engine = engine_with(&runtime(), &file, &cache);
    let asked = request(prompt(1, 1200), whole_rows(), 200);
    let outcome = alone(&mut engine, &asked);
    println!("tokens {:?}", outcome.tokens);
}

#[cfg(unix)]
#[test]
fn a_full_disk_stops_no_reply() {
    let file = reference_model("llama_tied");
    let asked = request(prompt(1, 1200), whole_rows(), 200);
    let want = alone(&mut load(&runtime(), &file, roomy(1, 0)), &asked);
    let dir = TempDir::new("survival");
    // Files may have 128 blocks; what goes beyond is refused instead of killing the process.
    let child =
        Child::start("child_with_a_full_disk", "llama_tied", dir.path(), "trap '' XFSZ; ulimit -f 128;");
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(said.contains(&format!("tokens {:?}", want.tokens)), "{said}");
    let most = files(dir.path()).iter().map(|p| p.metadata().unwrap().len()).max();
    assert!(most.is_some_and(|bytes| bytes <= 128 * 1024), "the limit was met: {most:?}");
    // What was written before is found, what came after is run.
    let got = alone(&mut engine_with(&runtime(), &file, &on_disk(dir.path())), &asked);
    assert_eq!(got.tokens, want.tokens);
}
