//! A transcript of more than 8,000 tokens on real weights, killed in mid-reply and resumed.
//!
//! Runs where HOB_TEST_MODELS names a folder with `SmolLM2-135M-Instruct.Q4_1.gguf`; `hob pull` fetches it. Takes minutes.

mod common;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::child::{Child, wait_for_tokens};
use common::*;
use hob_engine::*;
use hob_files::ModelFile;
use hob_model::{Layout, ModelInfo};
use hob_testkit::temp::TempDir;

const MODEL: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

fn model() -> Option<Arc<ModelFile>> {
    let Some(folder) = std::env::var_os("HOB_TEST_MODELS") else {
        println!("skipped: HOB_TEST_MODELS is not set");
        return None;
    };
    let path = Path::new(&folder).join(MODEL);
    if !path.exists() {
        println!("skipped: {} is not there", path.display());
        return None;
    }
    Some(Arc::new(ModelFile::open(&path).unwrap()))
}

fn long_layout() -> Layout {
    Layout { threads: 2, cached_tokens: 512, ..Layout::new(9216) }
}

/// A text of 8,200 tokens: numbered lines, so that no two pages are alike.
fn transcript(front: &Front) -> Vec<u32> {
    let mut text = String::new();
    for line in 0..1200 {
        text.push_str(&format!(
            "{line}. The lighthouse keeper wrote down the wind, the tide and {} ships.\n",
            line * 7 % 31
        ));
    }
    let tokens = front.tokenizer().encode_prompt(&text).unwrap();
    assert!(tokens.len() > 8200, "{}", tokens.len());
    tokens[..8200].to_vec()
}

fn reply(prompt: Vec<u32>, max_tokens: usize) -> Request {
    request(prompt, whole_rows(), max_tokens)
}

/// Not a test by itself: goes on until it is killed.
#[test]
fn child_that_is_killed() {
    let (Some(child), Some(file)) = (Child::of_this_process(), model()) else { return };
    let mut engine = load_with(&runtime(), &file, long_layout(), &on_disk(&child.dir));
    let mut session = engine.session().unwrap();
    let asked = reply(transcript(&engine.front()), 900);
    engine.generate(&mut session, &asked, &Cancel::new(), &mut |_| {}).unwrap();
    println!("the end");
}

#[test]
fn a_long_transcript_is_resumed_after_a_kill() {
    let Some(file) = model() else { return };
    let dir = TempDir::new("real");
    let cache = on_disk(dir.path());
    let watched = Watched::new(ModelInfo::read(&file).unwrap().config.vocab);
    let mut plain = load(&watched.runtime, &file, long_layout());
    let asked = reply(transcript(&plain.front()), 24);
    let since = Instant::now();
    let want = alone(&mut plain, &asked);
    println!("uninterrupted: first token after {:.2} s", want.figures.first_token_micros as f64 / 1e6);
    let rows = watched.logits();
    drop(plain);
    let mut child = Child::start("child_that_is_killed", MODEL, dir.path(), "");
    // 32 full pages: all of the prompt but its last tokens, or some of the reply too.
    wait_for_tokens(&cache, 8192);
    std::thread::sleep(Duration::from_millis(300));
    child.kill().unwrap();
    child.wait().unwrap();
    println!("killed {:.0} s after the start", since.elapsed().as_secs_f64());

    let mut engine = load_with(&watched.runtime, &file, long_layout(), &cache);
    let got = alone(&mut engine, &asked);
    let f = &got.figures;
    println!(
        "resumed: first token after {:.2} s; {} of {} tokens restored in {:.2} s (estimates: restore {:.2} s, recompute {:.2} s)",
        f.first_token_micros as f64 / 1e6,
        f.restored_tokens,
        f.prompt_tokens,
        f.restore_micros as f64 / 1e6,
        f.restore_estimate_micros as f64 / 1e6,
        f.recompute_estimate_micros as f64 / 1e6,
    );
    assert_eq!(got.tokens, want.tokens);
    assert!(watched.logits() == rows, "logits differ after the kill");
    assert!(f.restored_tokens >= 8192, "{}", f.restored_tokens);
}
