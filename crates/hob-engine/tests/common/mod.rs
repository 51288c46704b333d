//! A tiny model on disk, engines on it, and a device that fails on cue.
#![allow(dead_code)] // each test file uses a part

pub mod faulty;

use std::sync::Arc;

use hob_engine::*;
use hob_files::ModelFile;
use hob_model::Layout;
use hob_testkit::temp::TempDir;
use hob_testkit::tiny::{Encode, TinySpec, f32_encode};

/// A tiny model and the folder it lives in.
pub struct Tiny {
    _dir: TempDir,
    pub file: Arc<ModelFile>,
}

impl Tiny {
    pub fn new() -> Tiny {
        Self::with(&TinySpec::llama(), &f32_encode)
    }

    pub fn with(spec: &TinySpec, encode: &Encode) -> Tiny {
        let dir = TempDir::new("engine");
        let path = dir.join("tiny.gguf");
        spec.write_gguf(&path, encode).unwrap();
        let file = Arc::new(ModelFile::open(&path).unwrap());
        Tiny { _dir: dir, file }
    }

    pub fn engine_on(&self, runtime: &Arc<Runtime>, layout: Layout) -> Engine {
        Engine::load(runtime, Arc::clone(&self.file), layout, &mut |_, _| {}).unwrap()
    }

    pub fn engine(&self, layout: Layout) -> Engine {
        self.engine_on(&runtime(), layout)
    }
}

pub fn runtime() -> Arc<Runtime> {
    Runtime::new(&RuntimeConfig { threads: Some(2), exact: false }).unwrap()
}

/// Several sequences, all of which may have logits in one step.
pub fn layout(sequences: usize, chunk_rows: usize) -> Layout {
    Layout { ctx_tokens: 200, sequences, chunk_rows, logit_rows: sequences, threads: 2 }
}

/// `n` token ids that spell plain bytes.
pub fn prompt(seed: u32, n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| 10 + (i * 37 + seed * 101 + (i * i) % 11) % 200).collect()
}

pub fn request(tokens: Vec<u32>, sampling: Sampling, max_tokens: usize) -> Request {
    let prompt = Prompt::tokens(tokens);
    Request { sampling, max_tokens, ignore_eos: true, ..Request::new(prompt) }
}

pub fn greedy(tokens: Vec<u32>, max_tokens: usize) -> Request {
    request(tokens, Sampling::greedy(), max_tokens)
}

/// A fresh session's answer.
pub fn alone(engine: &mut Engine, request: &Request) -> Outcome {
    let mut session = engine.session().unwrap();
    generate(engine, &mut session, request).unwrap()
}

/// Checks on the way that what was emitted is what the outcome says.
pub fn generate(engine: &mut Engine, session: &mut Session, request: &Request) -> Result<Outcome> {
    let mut text = String::new();
    let outcome = engine.generate(session, request, &Cancel::new(), &mut |t| text.push_str(t))?;
    assert_eq!(outcome.text, text);
    Ok(outcome)
}

/// All submitted jobs to their ends, in order of submission.
pub fn run_all(engine: &mut Engine, ids: &[JobId]) -> Vec<Finished> {
    let mut ended: Vec<Option<Finished>> = ids.iter().map(|_| None).collect();
    let mut steps = 0;
    while engine.active() > 0 {
        engine.step(&mut |id, event| {
            if let Event::Done(end) = event {
                let index = ids.iter().position(|&i| i == id).unwrap();
                assert!(ended[index].replace(*end).is_none(), "a job ends once");
            }
        });
        steps += 1;
        assert!(steps < 10_000, "the loop must end");
    }
    ended.into_iter().map(Option::unwrap).collect()
}

pub fn submit(engine: &mut Engine, request: &Request) -> JobId {
    let session = engine.session().unwrap();
    engine.submit(session, request, &Cancel::new()).map_err(|r| r.error).unwrap()
}
