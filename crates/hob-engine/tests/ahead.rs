//! A device that works behind our back: batches are recorded ahead, and nothing else changes.

mod common;

use common::faulty::Deed;
use common::*;
use hob_compute::ComputeError;
use hob_engine::*;
use hob_model::{Layout, ModelInfo};
use hob_testkit::tiny::{TinySpec, f32_encode};
use std::sync::Arc;
use std::sync::atomic::Ordering;

fn vocab(tiny: &Tiny) -> usize {
    ModelInfo::read(&tiny.file).unwrap().config.vocab
}

fn seeded(seed: u64) -> Sampling {
    Sampling { seed: Some(seed), temperature: 1.3, ..Sampling::default() }
}

/// Greedy, drawn on the device, with every stage of the chain, and two that look at whole rows.
fn chains() -> Vec<Sampling> {
    vec![
        Sampling::greedy(),
        seeded(7),
        Sampling { typical_p: 0.8, top_k: 200, ..seeded(3) },
        Sampling { top_k: 0, top_p: 0.9, ..seeded(8) },
        Sampling { repeat_penalty: 1.2, presence_penalty: 0.4, ..seeded(9) },
    ]
}

/// Jobs of different prompts, lengths and chains, some of which end by a stop string.
fn mixed(engine: &mut Engine) -> Vec<Request> {
    let mut all = Vec::new();
    for (i, chain) in chains().into_iter().enumerate() {
        let mut asked = request(prompt(i as u32, [90, 3, 41, 1, 20][i]), chain, [24, 40, 1, 17, 33][i]);
        if i % 2 == 0 {
            let text = alone(engine, &Request { max_tokens: 20, ..asked.clone() }).text;
            let middle = text.char_indices().map(|(at, _)| at).nth(text.chars().count() / 2).unwrap_or(0);
            asked.stop = text[middle..].chars().next().map(String::from).into_iter().collect();
        }
        all.push(asked);
    }
    all
}

/// Batches that began before the one in front of them was waited for.
fn ahead(deeds: &[Deed]) -> usize {
    let mut waiting = 0;
    let mut count = 0;
    for deed in deeds {
        match deed {
            Deed::Embed { .. } => count += usize::from(waiting > 0),
            Deed::Submit(_) => waiting += 1,
            Deed::Picked(_) => waiting -= 1,
        }
        assert!(waiting <= 2, "no more than one batch ahead");
    }
    count
}

fn drawn(deeds: &[Deed]) -> usize {
    deeds.iter().map(|d| if let Deed::Embed { device, .. } = d { *device } else { 0 }).sum()
}

#[test]
fn a_reply_is_recorded_one_batch_ahead() {
    let tiny = Tiny::new();
    let watched = Watched::asynchronous(vocab(&tiny));
    let mut engine = tiny.engine_on(&watched.runtime, layout(1, 32));
    for (i, chain) in [Sampling::greedy(), seeded(5)].into_iter().enumerate() {
        let asked = request(prompt(i as u32, 70), chain, 30);
        let want = alone(&mut tiny.engine(layout(1, 32)), &asked);
        watched.deeds();
        assert_eq!(alone(&mut engine, &asked).tokens, want.tokens);
        let deeds = watched.deeds();
        // Three chunks of the prompt, then 29 tokens that only the device knew.
        assert_eq!((ahead(&deeds), drawn(&deeds)), (31, 29), "{deeds:?}");
    }
    // A device that runs at once is not recorded ahead.
    let watched = Watched::new(vocab(&tiny));
    let mut engine = tiny.engine_on(&watched.runtime, layout(1, 32));
    alone(&mut engine, &greedy(prompt(1, 70), 30));
    let deeds = watched.deeds();
    assert_eq!((ahead(&deeds), drawn(&deeds)), (0, 0));
}

#[test]
fn company_of_all_kinds_changes_nothing() {
    let tiny = Tiny::new();
    let mut reference = tiny.engine(layout(1, 512));
    let requests = mixed(&mut reference);
    let want: Vec<Outcome> = requests.iter().map(|r| alone(&mut reference, r)).collect();
    assert!(want.iter().any(|o| o.finish == Finish::Stop) && want.iter().any(|o| o.finish == Finish::Length));
    for (chunk_rows, logit_rows) in [(1, 1), (7, 2), (64, 5), (64, 1)] {
        let watched = Watched::asynchronous(vocab(&tiny));
        let mut engine = tiny.engine_on(&watched.runtime, Layout { logit_rows, ..layout(5, chunk_rows) });
        for round in 0..2 {
            let ids: Vec<JobId> = requests.iter().map(|r| submit(&mut engine, r)).collect();
            for ((end, want), asked) in run_all(&mut engine, &ids).into_iter().zip(&want).zip(&requests) {
                let got = end.result.unwrap();
                let what = format!("chunk {chunk_rows}, logit rows {logit_rows}, round {round}: {asked:?}");
                assert_eq!(
                    (&got.tokens, &got.text, got.finish),
                    (&want.tokens, &want.text, want.finish),
                    "{what}"
                );
                assert_eq!(end.session.ready_tokens() + 1, end.session.tokens().len(), "{what}");
            }
        }
        let deeds = watched.deeds();
        assert!(ahead(&deeds) > 20, "chunk {chunk_rows}: {}", ahead(&deeds));
    }
}

/// Those whose sampler looks at whole rows take part in every second batch; the others in each.
#[test]
fn whole_rows_hold_up_nobody_else() {
    let tiny = Tiny::new();
    let watched = Watched::asynchronous(vocab(&tiny));
    let mut engine = tiny.engine_on(&watched.runtime, layout(2, 32));
    let (fast, slow) = (greedy(prompt(1, 5), 40), request(prompt(2, 5), whole_rows(), 40));
    let ids = [submit(&mut engine, &fast), submit(&mut engine, &slow)];
    let mut tokens = [0; 2];
    for _ in 0..22 {
        engine.step(&mut |_, _| {});
    }
    let deeds = watched.deeds();
    for deed in &deeds[..] {
        if let Deed::Embed { host, device } = deed {
            tokens[0] += device;
            tokens[1] += host;
        }
    }
    assert!(ahead(&deeds) >= 20, "{deeds:?}");
    assert_eq!(tokens[0], 21, "the greedy one goes on in every batch: {deeds:?}");
    assert!((20..=21).contains(&tokens[1]), "two prompts, and every second batch: {deeds:?}");
    assert_eq!(run_all(&mut engine, &ids).len(), 2);
}

#[test]
fn a_session_goes_on_as_if_nothing_had_run_ahead() {
    let tiny = Tiny::new();
    let watched = Watched::asynchronous(vocab(&tiny));
    let mut engine = tiny.engine_on(&watched.runtime, roomy(2, 1024));
    let mut reference = tiny.engine(roomy(2, 1024));
    let (mut here, mut there) = (engine.session().unwrap(), reference.session().unwrap());
    let mut text = prompt(3, 230);
    for turn in 0..4u32 {
        // Replies end on, before and behind the edge of a page.
        let asked = request(text.clone(), seeded(u64::from(turn)), 26);
        let got = generate(&mut engine, &mut here, &asked).unwrap();
        let want = generate(&mut reference, &mut there, &asked).unwrap();
        assert_eq!(got.tokens, want.tokens, "turn {turn}");
        assert_eq!(got.figures.reused_tokens, want.figures.reused_tokens, "turn {turn}");
        assert_eq!(got.figures.decode_steps, want.figures.decode_steps, "turn {turn}");
        assert_eq!((here.tokens(), here.ready_tokens()), (there.tokens(), there.ready_tokens()));
        text = here.tokens().to_vec();
        text.extend(prompt(turn + 20, 3));
    }
    // Another session finds what this one left in shared pages, and only what was really said.
    let other = alone(&mut engine, &greedy(text.clone(), 5));
    let want = alone(&mut reference, &greedy(text, 5));
    assert_eq!((&other.tokens, other.figures.reused_tokens), (&want.tokens, want.figures.reused_tokens));
    assert!(other.figures.reused_tokens > 256, "{:?}", other.figures);
}

#[test]
fn end_tokens_contexts_and_limits_end_it_the_same() {
    let tiny = Tiny::new();
    let file = |ctx| Layout { ctx_tokens: ctx, ..layout(1, 64) };
    for (ctx, n, most) in [(40, 30, usize::MAX), (40, 40, 9), (41, 40, 9), (200, 10, 1), (200, 10, 2)] {
        let watched = Watched::asynchronous(vocab(&tiny));
        let mut engine = tiny.engine_on(&watched.runtime, file(ctx));
        for ignore_eos in [true, false] {
            let asked = Request { ignore_eos, ..request(prompt(4, n), seeded(2), most) };
            let (got, want) = (alone(&mut engine, &asked), alone(&mut tiny.engine(file(ctx)), &asked));
            assert_eq!((got.tokens, got.finish), (want.tokens, want.finish), "{ctx} {n} {most}");
        }
        // The last token's own row is never run, so nothing beyond the context or the limit was recorded.
        assert!(drawn(&watched.deeds()) <= 2 * most.min(ctx - n + 1), "{ctx} {n} {most}");
    }
    // Every token ends a reply in turn, so that rows that ran ahead are taken back at every length.
    let spec = TinySpec::llama();
    let watched = Watched::asynchronous(spec.vocab);
    let mut engine = tiny.engine_on(&watched.runtime, layout(1, 64));
    let mut reference = tiny.engine(layout(1, 64));
    let (mut ended, mut here) = (0, engine.session().unwrap());
    for seed in 0..60 {
        let asked = Request {
            ignore_eos: false,
            ..request(
                prompt(5, 12),
                Sampling { temperature: 8.0, top_k: 256, top_p: 1.0, min_p: 0.0, ..seeded(seed) },
                60,
            )
        };
        let (got, want) = (generate(&mut engine, &mut here, &asked).unwrap(), alone(&mut reference, &asked));
        assert_eq!((&got.tokens, got.finish), (&want.tokens, want.finish), "seed {seed}");
        ended += usize::from(got.finish == Finish::EndToken);
    }
    assert!(ended > 3, "{ended} replies met an end token");
}

#[test]
fn a_cancelled_reply_leaves_a_session_that_goes_on() {
    let tiny = Tiny::new();
    for steps in [1, 2, 3, 9] {
        let watched = Watched::asynchronous(vocab(&tiny));
        let mut engine = tiny.engine_on(&watched.runtime, layout(2, 32));
        let cancel = Cancel::new();
        let session = engine.session().unwrap();
        let asked = greedy(prompt(6, 50), 100);
        engine.submit(session, &asked, &cancel).map_err(|r| r.error).unwrap();
        let other = submit(&mut engine, &greedy(prompt(7, 4), 20));
        for _ in 0..steps {
            engine.step(&mut |_, _| {});
        }
        cancel.cancel();
        let mut cancelled = None;
        let mut finished = None;
        while engine.active() > 0 {
            engine.step(&mut |id, event| {
                if let Event::Done(end) = event {
                    if id == other { finished = Some(end) } else { cancelled = Some(end) }
                }
            });
        }
        let mut cancelled = cancelled.unwrap();
        assert_eq!(cancelled.result.as_ref().unwrap().finish, Finish::Cancelled);
        let full = alone(&mut tiny.engine(layout(1, 32)), &asked);
        let said = &cancelled.result.as_ref().unwrap().tokens;
        assert_eq!(&full.tokens[..said.len()], said, "what came is what would have come");
        let mut rest = asked.clone();
        let said = said.len();
        rest.prompt = Prompt::tokens(cancelled.session.tokens().to_vec());
        rest.max_tokens = 100 - said;
        let rest = generate(&mut engine, &mut cancelled.session, &rest).unwrap();
        assert_eq!(full.tokens[said..], rest.tokens, "after {steps} steps");
        let want = alone(&mut tiny.engine(layout(1, 32)), &greedy(prompt(7, 4), 20));
        assert_eq!(finished.unwrap().result.unwrap().tokens, want.tokens);
    }
}

/// A refusal and a panic of the device, at every early moment: the jobs of that batch end, the engine goes on.
#[test]
fn failures_in_flight_end_their_jobs_only() {
    let tiny = Tiny::new();
    let asked = [greedy(prompt(8, 20), 12), request(prompt(9, 3), seeded(1), 12)];
    let mut reference = tiny.engine(layout(1, 32));
    let want: Vec<Outcome> = asked.iter().map(|r| alone(&mut reference, r)).collect();
    let layers = ModelInfo::read(&tiny.file).unwrap().config.layers.len() as i64;
    for fault in [1, -99] {
        for batch in [0, 1, 2, 5] {
            let watched = Watched::asynchronous(vocab(&tiny));
            let mut engine = tiny.engine_on(&watched.runtime, layout(2, 32));
            let ids: Vec<JobId> = asked.iter().map(|r| submit(&mut engine, r)).collect();
            let mut ended = Vec::new();
            for step in 0.. {
                if step == batch {
                    watched.countdown.store(if fault == 1 { layers } else { -99 }, Ordering::Relaxed);
                }
                let left = engine.step(&mut |id, event| {
                    if let Event::Done(end) = event {
                        ended.push((id, end));
                    }
                });
                if left == 0 {
                    break;
                }
            }
            assert_eq!(ended.len(), 2);
            for (id, end) in ended {
                let mut session = end.session;
                match (fault, end.result) {
                    (1, Err(EngineError::Panic(_))) | (-99, Err(EngineError::Model(_))) => {}
                    (_, other) => panic!("fault {fault} in batch {batch}: {:?}", other.map(|o| o.tokens)),
                }
                let which = ids.iter().position(|&i| i == id).unwrap();
                let again = generate(&mut engine, &mut session, &asked[which]).unwrap();
                assert_eq!(again.tokens, want[which].tokens, "fault {fault} in batch {batch}");
            }
        }
    }
}

/// What a batch came to cannot be read: its jobs end, with the rows that ran ahead of them, and sessions go on.
#[test]
fn results_that_cannot_be_read_end_their_jobs() {
    let tiny = Tiny::new();
    let asked = [greedy(prompt(8, 20), 12), request(prompt(9, 3), seeded(1), 12)];
    let mut reference = tiny.engine(layout(1, 32));
    let want: Vec<Outcome> = asked.iter().map(|r| alone(&mut reference, r)).collect();
    for batch in [0, 1, 6] {
        let watched = Watched::asynchronous(vocab(&tiny));
        let mut engine = tiny.engine_on(&watched.runtime, layout(2, 32));
        watched.silence.store(batch, Ordering::Relaxed);
        let ids: Vec<JobId> = asked.iter().map(|r| submit(&mut engine, r)).collect();
        for (i, end) in run_all(&mut engine, &ids).into_iter().enumerate() {
            let error = end.result.unwrap_err();
            assert!(error.to_string().contains("went wrong") && !error.is_lost(), "{error}");
            let mut session = end.session;
            assert_eq!(generate(&mut engine, &mut session, &asked[i]).unwrap().tokens, want[i].tokens);
        }
    }
}

#[test]
fn a_lost_device_ends_every_job_and_nothing_else() {
    let tiny = Tiny::new();
    for asynchronous in [false, true] {
        for batch in [0, 1, 4] {
            let watched = match asynchronous {
                true => Watched::asynchronous(vocab(&tiny)),
                false => Watched::new(vocab(&tiny)),
            };
            let mut engine = tiny.engine_on(&watched.runtime, roomy(4, 512));
            let spare = engine.session().unwrap();
            // One replies, one has a long prompt, one looks at whole rows.
            let asked = [
                greedy(prompt(1, 5), 50),
                greedy(prompt(2, 900), 50),
                request(prompt(3, 5), whole_rows(), 50),
            ];
            let ids: Vec<JobId> = asked.iter().map(|r| submit(&mut engine, r)).collect();
            watched.life.store(batch, Ordering::Relaxed);
            for end in run_all(&mut engine, &ids) {
                let error = end.result.unwrap_err();
                assert!(error.is_lost() && error.to_string().contains("is lost"), "{error}");
            }
            let Err(rejected) = engine.submit(spare, &asked[0], &Cancel::new()) else {
                panic!("not refused")
            };
            assert!(rejected.error.is_lost(), "{}", rejected.error);
            assert!(engine.session().is_err_and(|e| e.is_lost()));
            assert_eq!(engine.step(&mut |_, _| {}), 0);
            assert!(watched.runtime.device().submit().is_err_and(|e| matches!(e, ComputeError::Lost { .. })));
            drop(engine);
        }
    }
}

/// What the device drew last is not ours once another engine has used it.
#[test]
fn engines_that_share_a_device_take_turns() {
    let tiny = Tiny::new();
    let watched = Watched::asynchronous(vocab(&tiny));
    let mut engines = [(); 2].map(|()| tiny.engine_on(&watched.runtime, layout(1, 32)));
    let asked = [request(prompt(1, 9), seeded(1), 30), request(prompt(2, 9), seeded(2), 30)];
    let want = asked.clone().map(|r| alone(&mut tiny.engine(layout(1, 32)), &r).tokens);
    let _ids = [0, 1].map(|i| submit(&mut engines[i], &asked[i]));
    let mut got = [Vec::new(), Vec::new()];
    let mut turn = 0usize;
    while engines.iter().any(|e| e.active() > 0) {
        // Not strictly in turns.
        let i = usize::from(turn % 5 > 1);
        turn += 1;
        engines[i].step(&mut |_, event| {
            if let Event::Done(end) = event {
                got[i] = end.result.unwrap().tokens;
            }
        });
    }
    assert_eq!(got, want);
}

/// Windows let go of pages, recurrent state goes back over held rows only: those models go ahead with care, or not at all
/// where no row can be held.
#[test]
fn windows_and_recurrent_state_are_right() {
    for (name, held_rows, goes_ahead) in [
        ("gemma3", 0, true),
        ("lfm2", 0, false),
        ("lfm2", 1, true),
        ("qwen3_5_moe", 0, false),
        ("qwen3_5_moe", 1, true),
        ("qwen3_moe", 0, true),
        ("mamba2", 1, true),
        ("deepseek_v2_lite", 0, true),
        ("deepseek_v4", 1, true),
    ] {
        let file = reference_model(name);
        let watched = Watched::asynchronous(ModelInfo::read(&file).unwrap().config.vocab);
        let layout = Layout { ctx_tokens: 900, cached_tokens: 512, held_rows, ..layout(2, 48) };
        let mut engine = load(&watched.runtime, &file, layout.clone());
        let mut reference = load(&runtime(), &file, layout);
        let (mut here, mut there) = (engine.session().unwrap(), reference.session().unwrap());
        let mut text = prompt(1, 300);
        for turn in 0..3 {
            let asked = request(text.clone(), seeded(turn), 25);
            let got = generate(&mut engine, &mut here, &asked).unwrap();
            let want = generate(&mut reference, &mut there, &asked).unwrap();
            assert_eq!(got.tokens, want.tokens, "{name}, turn {turn}");
            assert_eq!(got.figures.reused_tokens, want.figures.reused_tokens, "{name}, turn {turn}");
            text = here.tokens().to_vec();
            text.extend(prompt(turn as u32 + 9, 100));
        }
        let deeds = watched.deeds();
        assert_eq!(ahead(&deeds) > 40, goes_ahead, "{name}: {}", ahead(&deeds));
    }
}

/// What goes to disk is what was said, and a restart finds it.
#[test]
fn a_store_gets_what_was_settled() {
    let dir = hob_testkit::temp::TempDir::new("ahead");
    let tiny = Tiny::with(&TinySpec::llama(), &f32_encode);
    let file = Arc::clone(&tiny.file);
    let asked = request(prompt(2, 300), seeded(4), 120);
    let mut first = Vec::new();
    for round in 0..2 {
        let watched = Watched::asynchronous(vocab(&tiny));
        let mut engine = load_with(&watched.runtime, &file, roomy(1, 0), &on_disk(dir.path()));
        let mut session = engine.session().unwrap();
        let mut asked = asked.clone();
        if round == 1 {
            asked.prompt = Prompt::tokens([&first[..], &prompt(3, 5)].concat());
        }
        let out = generate(&mut engine, &mut session, &asked).unwrap();
        if round == 1 {
            assert!(out.figures.restored_tokens >= 400, "{:?}", out.figures);
            let mut reference = tiny.engine(roomy(1, 0));
            assert_eq!(out.tokens, alone(&mut reference, &asked).tokens);
        }
        first = session.tokens().to_vec();
        drop(session);
        assert!(engine.flush(common::child::PATIENCE));
    }
}
