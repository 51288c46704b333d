//! A tiny model on disk, engines on it, and a device that fails on cue and remembers logits.
#![allow(dead_code)] // each test file uses a part

pub mod child;
pub mod faulty;

use std::path::Path;
use std::sync::atomic::AtomicI64;
use std::sync::{Arc, Mutex};

use faulty::{Deed, Faulty};
use hob_compute::{Compute, DeviceInfo};
use hob_engine::*;
use hob_files::ModelFile;
use hob_model::Layout;
use hob_model::disk::DiskConfig;
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
        load(runtime, &self.file, layout)
    }

    pub fn engine(&self, layout: Layout) -> Engine {
        self.engine_on(&runtime(), layout)
    }
}

pub fn runtime() -> Arc<Runtime> {
    Runtime::new(&RuntimeConfig { threads: Some(2), exact: false, ..RuntimeConfig::default() }).unwrap()
}

/// A runtime that can be made to fail, and whose rows of logits can be looked at.
pub struct Watched {
    pub runtime: Arc<Runtime>,
    /// See [`faulty::Faulty`].
    pub countdown: Arc<AtomicI64>,
    pub life: Arc<AtomicI64>,
    pub silence: Arc<AtomicI64>,
    rows: Arc<Mutex<Vec<Vec<u32>>>>,
    deeds: Arc<Mutex<Vec<Deed>>>,
}

impl Watched {
    /// For a vocabulary of `width` tokens.
    pub fn new(width: usize) -> Watched {
        Self::with(width, false)
    }

    /// A device that says it works behind our back. It does what it is told at once, which is what such a device's work
    /// in order comes to.
    pub fn asynchronous(width: usize) -> Watched {
        Self::with(width, true)
    }

    fn with(width: usize, asynchronous: bool) -> Watched {
        Self::on(Self::device(width, asynchronous))
    }

    /// Any device; an account is kept of it.
    pub fn on(device: Faulty) -> Watched {
        let deeds = Arc::default();
        let [countdown, life, silence] = [&device.countdown, &device.life, &device.silence].map(Arc::clone);
        let rows = Arc::clone(&device.rows);
        let device = Faulty { deeds: Some(Arc::clone(&deeds)), ..device };
        Watched { runtime: Runtime::with_device(Box::new(device)), countdown, life, silence, rows, deeds }
    }

    /// The device alone; it keeps no account.
    pub fn device(width: usize, asynchronous: bool) -> Faulty {
        let cpu = hob_cpu::CpuConfig { threads: 2, exact: false, isa: None, pin: false };
        Self::around(Box::new(hob_cpu::Cpu::new(&cpu).unwrap()), width, asynchronous)
    }

    /// Any device, which says of itself what `asynchronous` says.
    pub fn around(inner: Box<dyn Compute>, width: usize, asynchronous: bool) -> Faulty {
        let info = DeviceInfo { asynchronous, ..inner.info().clone() };
        let never = || Arc::new(AtomicI64::new(i64::MAX));
        let (countdown, life, silence) = (never(), never(), never());
        Faulty { inner, info, countdown, life, silence, rows: Arc::default(), width, deeds: None }
    }

    /// The bits of the rows that samplers read since the last call; only chains that need whole rows read any.
    pub fn logits(&self) -> Vec<Vec<u32>> {
        std::mem::take(&mut *self.rows.lock().unwrap())
    }

    /// What the device was asked for since the last call.
    pub fn deeds(&self) -> Vec<Deed> {
        std::mem::take(&mut *self.deeds.lock().unwrap())
    }
}

/// A sampler that reads whole rows of logits and draws from them.
pub fn whole_rows() -> Sampling {
    Sampling { top_k: 0, top_p: 0.9, temperature: 1.1, seed: Some(8), ..Sampling::default() }
}

/// A store in `dir` with room for everything.
pub fn on_disk(dir: &Path) -> CacheConfig {
    let disk = DiskConfig {
        dir: dir.to_path_buf(),
        budget_bytes: 1 << 30,
        daily_write_bytes: 1 << 30,
        snapshot_budget_bytes: 1 << 28,
    };
    CacheConfig { disk: Some(disk), ..CacheConfig::default() }
}

/// Room for long prompts, and for the prefixes of conversations that are not running.
pub fn roomy(sequences: usize, cached_tokens: usize) -> Layout {
    Layout { ctx_tokens: 2048, cached_tokens, ..layout(sequences, 96) }
}

/// One of the models that hob-model keeps as references.
pub fn reference_model(name: &str) -> Arc<ModelFile> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../hob-model/tests/golden");
    Arc::new(ModelFile::open(golden.join(name).join("model.f32.gguf")).unwrap())
}

pub fn load(runtime: &Arc<Runtime>, file: &Arc<ModelFile>, layout: Layout) -> Engine {
    Engine::load(runtime, Arc::clone(file), layout, &mut |_, _| {}).unwrap()
}

/// As [`load`], with a store.
pub fn load_with(
    runtime: &Arc<Runtime>,
    file: &Arc<ModelFile>,
    layout: Layout,
    cache: &CacheConfig,
) -> Engine {
    let mut engine = load(runtime, file, layout);
    engine.set_cache(cache).unwrap();
    engine
}

/// Several sequences, all of which may have logits in one step.
pub fn layout(sequences: usize, chunk_rows: usize) -> Layout {
    Layout { sequences, chunk_rows, logit_rows: sequences, threads: 2, ..Layout::new(200) }
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
