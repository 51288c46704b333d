//! Sessions on a tiny model: company, chunks, reuse, ends, errors, panics.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use common::*;
use hob_engine::*;
use hob_model::{KvLayout, Layout};
use hob_testkit::tiny::{TinySpec, f32_encode, vocab};

/// Greedy, device top-k, full row, penalties with bias.
fn chains() -> Vec<Sampling> {
    let seeded = |seed| Sampling { seed: Some(seed), temperature: 1.2, ..Sampling::default() };
    vec![
        Sampling::greedy(),
        seeded(7),
        Sampling { top_k: 0, top_p: 0.9, ..seeded(8) },
        Sampling { repeat_penalty: 1.2, presence_penalty: 0.4, logit_bias: vec![(65, 2.0)], ..seeded(9) },
    ]
}

#[test]
fn chunk_size_and_company_change_nothing() {
    let tiny = Tiny::new();
    let requests: Vec<Request> = chains()
        .into_iter()
        .zip([90, 3, 41, 1])
        .enumerate()
        .map(|(i, (chain, n))| request(prompt(i as u32, n), chain, 24))
        .collect();
    let mut reference = tiny.engine(layout(1, 512));
    let want: Vec<Outcome> = requests.iter().map(|r| alone(&mut reference, r)).collect();
    assert!(want.iter().all(|o| o.tokens.len() == 24 && o.finish == Finish::Length));
    let distinct = |o: &Outcome| o.tokens.iter().collect::<std::collections::BTreeSet<_>>().len();
    assert!(
        want.iter().map(distinct).max().unwrap() > 5,
        "the model must say something: {:?}",
        want[1].tokens
    );
    for chunk_rows in [1, 2, 7, 64] {
        for logit_rows in [1, 4] {
            let mut engine = tiny.engine(Layout { logit_rows, ..layout(4, chunk_rows) });
            for (request, want) in requests.iter().zip(&want) {
                assert_eq!(alone(&mut engine, request).tokens, want.tokens, "alone, chunk {chunk_rows}");
            }
            let ids: Vec<JobId> = requests.iter().map(|r| submit(&mut engine, r)).collect();
            for (end, want) in run_all(&mut engine, &ids).into_iter().zip(&want) {
                let got = end.result.unwrap();
                assert_eq!(
                    got.tokens, want.tokens,
                    "in company, chunk {chunk_rows}, logit rows {logit_rows}"
                );
                assert_eq!(got.text, want.text);
            }
        }
    }
}

#[test]
fn a_long_prompt_does_not_starve_a_decode() {
    let tiny = Tiny::new();
    let mut engine = tiny.engine(layout(2, 8));
    let short = submit(&mut engine, &greedy(prompt(1, 2), 30));
    engine.step(&mut |_, _| {});
    let long = submit(&mut engine, &greedy(prompt(2, 100), 2));
    let mut texts_before_long = 0;
    let mut prefills = Vec::new();
    let mut first = false;
    let mut steps = 0;
    while !first {
        let before = steps;
        engine.step(&mut |id, event| match event {
            Event::Prefill { ready, of } if id == long => prefills.push((ready, of)),
            Event::Text(_) if id == long => first = true,
            Event::Done(_) if id == long => first = true,
            _ => steps += usize::from(id == short),
        });
        texts_before_long += usize::from(steps > before);
    }
    // 100 tokens in chunks of 7 beside one decode row.
    assert_eq!(prefills.len(), 100usize.div_ceil(7) - 1, "{prefills:?}");
    assert_eq!(prefills.first(), Some(&(7, 100)));
    assert!(texts_before_long > 0, "the decode went on meanwhile");
}

#[test]
fn a_common_prefix_is_reused_and_gives_the_same_answer() {
    let tiny = Tiny::new();
    let mut engine = tiny.engine(layout(2, 16));
    let mut kept = engine.session().unwrap();
    let first = generate(&mut engine, &mut kept, &greedy(prompt(1, 40), 10)).unwrap();
    assert_eq!(first.figures.reused_tokens, 0);

    let again = generate(&mut engine, &mut kept, &greedy(prompt(1, 40), 10)).unwrap();
    assert_eq!(again.figures.reused_tokens, 39, "one token must run, for its logits");
    assert_eq!(again.tokens, first.tokens);

    let mut longer = prompt(1, 40);
    longer.extend(&first.tokens);
    longer.extend(prompt(9, 20));
    let turn = greedy(longer.clone(), 10);
    let continued = generate(&mut engine, &mut kept, &turn).unwrap();
    assert_eq!(continued.figures.reused_tokens, 40 + 9, "all but the last sampled token was run");
    assert_eq!(continued.tokens, alone(&mut engine, &turn).tokens);

    let mut edited = longer;
    edited[25] = 99;
    let turn = greedy(edited, 10);
    let rebuilt = generate(&mut engine, &mut kept, &turn).unwrap();
    assert_eq!(rebuilt.figures.reused_tokens, 25);
    assert_eq!(rebuilt.tokens, alone(&mut engine, &turn).tokens);

    let shorter = greedy(prompt(1, 12), 10);
    let cut = generate(&mut engine, &mut kept, &shorter).unwrap();
    assert_eq!((cut.figures.reused_tokens, cut.figures.prompt_tokens), (11, 12));
    assert_eq!(cut.tokens, alone(&mut engine, &shorter).tokens);
}

#[test]
fn prompts_of_text_and_tokens_share_one_timeline() {
    let tiny = Tiny::new();
    let mut engine = tiny.engine(layout(1, 16));
    let mut session = engine.session().unwrap();
    assert_eq!(session.ready_tokens(), 0);
    generate(&mut engine, &mut session, &greedy(prompt(3, 30), 4)).unwrap();
    assert_eq!(session.ready_tokens(), 33);
    let mixed = Prompt {
        segments: vec![Segment::Tokens(prompt(3, 3)), Segment::Text("on".into()), Segment::Tokens(vec![7])],
    };
    let text = engine.tokenizer().encode("on", hob_text::Special::Parse).unwrap();
    let asked = Request { sampling: Sampling::greedy(), max_tokens: 1, ..Request::new(mixed) };
    let outcome = generate(&mut engine, &mut session, &asked).unwrap();
    assert_eq!((outcome.figures.prompt_tokens, outcome.figures.reused_tokens), (3 + text.len() + 1, 3));
    assert_eq!(session.tokens()[..3 + text.len() + 1], [prompt(3, 3), text, vec![7]].concat());
}

#[test]
fn the_first_text_gets_the_beginning_token_once() {
    let tiny = Tiny::new();
    let engine = tiny.engine(layout(1, 16));
    let front = engine.front();
    let plain = front.tokenize(&Prompt::text("on the other")).unwrap();
    assert_eq!(plain, engine.tokenizer().encode_prompt("on the other").unwrap());
    let split = Prompt { segments: vec![Segment::Text("on the".into()), Segment::Text(" other".into())] };
    assert_eq!(front.tokenize(&split).unwrap(), plain, "later segments get none");
}

#[test]
fn stop_strings_cut_across_tokens() {
    let tiny = Tiny::new();
    let mut engine = tiny.engine(layout(1, 64));
    // Bias leaves 'a' and 'b'; the penalty on the last token makes them take turns.
    let (a, b) = (u32::from(b'a') + 4, u32::from(b'b') + 4);
    let sampling = Sampling {
        logit_bias: vec![(a, 100.0), (b, 100.0)],
        repeat_penalty: 10.0,
        repeat_last_n: 1,
        ..Sampling::greedy()
    };
    let spell = engine.tokenizer().decode(&[a, b]);
    assert_eq!(spell, "ab");
    let mut base = request(vec![b], sampling, 12);
    let free = alone(&mut engine, &base);
    assert!(free.text.starts_with("abab"), "{}", free.text);
    base.stop = vec!["bab".into(), "zzz".into()];
    let mut pieces = Vec::new();
    let mut session = engine.session().unwrap();
    let stopped =
        engine.generate(&mut session, &base, &Cancel::new(), &mut |t| pieces.push(t.to_owned())).unwrap();
    assert_eq!((stopped.finish, stopped.text.as_str()), (Finish::Stop, "a"));
    assert_eq!(pieces, ["a"], "nothing of the stop string was ever emitted");
    assert_eq!(stopped.tokens, free.tokens[..4]);
    // A beginning of a stop string at the end is text after all.
    base.stop = vec!["abc".into()];
    base.max_tokens = 2;
    drop(session);
    let cut = alone(&mut engine, &base);
    assert_eq!((cut.finish, cut.text.as_str()), (Finish::Length, "ab"));
}

#[test]
fn end_tokens_end_unless_ignored() {
    let tiny = Tiny::new();
    let mut engine = tiny.engine(layout(1, 64));
    let sampling = Sampling { logit_bias: vec![(vocab::IM_END, 100.0)], ..Sampling::greedy() };
    let mut asked = request(prompt(1, 5), sampling, 6);
    let ignored = alone(&mut engine, &asked);
    assert_eq!((ignored.finish, ignored.tokens), (Finish::Length, vec![vocab::IM_END; 6]));
    assert_eq!(ignored.text, "", "special tokens have no text");
    asked.ignore_eos = false;
    let ended = alone(&mut engine, &asked);
    assert_eq!((ended.finish, ended.tokens.len(), ended.text.as_str()), (Finish::EndToken, 0, ""));
    assert_eq!(ended.figures.generated_tokens, 0);
}

#[test]
fn a_full_context_ends_the_reply_and_a_longer_prompt_is_refused() {
    let tiny = Tiny::new();
    let mut engine = tiny.engine(Layout { ctx_tokens: 50, ..layout(1, 16) });
    let grown = alone(&mut engine, &greedy(prompt(1, 45), 100));
    assert_eq!((grown.finish, grown.tokens.len()), (Finish::Context, 6));
    let brim = alone(&mut engine, &greedy(prompt(1, 50), 100));
    assert_eq!((brim.finish, brim.tokens.len()), (Finish::Context, 1));

    let mut session = engine.session().unwrap();
    generate(&mut engine, &mut session, &greedy(prompt(1, 20), 3)).unwrap();
    let error = generate(&mut engine, &mut session, &greedy(prompt(1, 51), 3)).unwrap_err();
    assert!(matches!(error, EngineError::PromptTooLong { prompt_tokens: 51, ctx_tokens: 50 }));
    let message = error.to_string();
    assert!(message.contains("51") && message.contains("50") && message.contains("--ctx"), "{message}");
    assert_eq!(session.ready_tokens(), 22, "nothing was run, nothing was forgotten");
    let again = generate(&mut engine, &mut session, &greedy(prompt(1, 20), 3)).unwrap();
    assert_eq!(again.figures.reused_tokens, 19);
}

#[test]
fn cancel_is_seen_before_between_chunks_and_between_tokens() {
    let tiny = Tiny::new();
    let mut engine = tiny.engine(layout(1, 8));
    let mut session = engine.session().unwrap();
    let asked = greedy(prompt(1, 60), 50);

    let cancel = Cancel::new();
    cancel.cancel();
    let before = engine.generate(&mut session, &asked, &cancel, &mut |_| {}).unwrap();
    assert_eq!((before.finish, before.tokens.len()), (Finish::Cancelled, 0));
    assert_eq!(session.ready_tokens(), 0, "nothing was run");

    let cancel = Cancel::new();
    let mut seen = Vec::new();
    let during = engine.generate_events(&mut session, &asked, &cancel, &mut |event| {
        if let Event::Prefill { ready, of } = event {
            seen.push((ready, of));
            if seen.len() == 2 {
                cancel.cancel();
            }
        }
    });
    assert_eq!(during.unwrap().finish, Finish::Cancelled);
    assert_eq!(seen, [(8, 60), (16, 60)]);
    assert_eq!(session.ready_tokens(), 16);

    let cancel = Cancel::new();
    let full = alone_in(&mut engine, &mut session, &asked);
    let mut text = String::new();
    let cut = engine.generate(&mut session, &asked, &cancel, &mut |t| {
        text.push_str(t);
        if text.len() >= 5 {
            cancel.cancel();
        }
    });
    let cut = cut.unwrap();
    assert_eq!(cut.finish, Finish::Cancelled);
    assert_eq!(cut.text, text);
    assert!(!cut.tokens.is_empty() && cut.tokens.len() < 50);
    assert_eq!(cut.tokens, full.tokens[..cut.tokens.len()]);
    assert!(cut.figures.first_token_micros > 0, "what was measured is still told");
}

fn alone_in(engine: &mut Engine, session: &mut Session, request: &Request) -> Outcome {
    generate(engine, session, request).unwrap()
}

#[test]
fn one_cancelled_job_leaves_its_company_alone() {
    let tiny = Tiny::new();
    let mut engine = tiny.engine(layout(2, 16));
    let (a, b) = (greedy(prompt(1, 30), 20), greedy(prompt(2, 30), 20));
    let want = alone(&mut engine, &a);
    let kept = submit(&mut engine, &a);
    let cancel = Cancel::new();
    let session = engine.session().unwrap();
    let gone = engine.submit(session, &b, &cancel).map_err(|r| r.error).unwrap();
    for _ in 0..6 {
        engine.step(&mut |_, _| {});
    }
    cancel.cancel();
    let ends = run_all(&mut engine, &[kept, gone]);
    assert_eq!(ends[0].result.as_ref().unwrap().tokens, want.tokens);
    assert_eq!(ends[1].result.as_ref().unwrap().finish, Finish::Cancelled);
}

#[test]
fn bad_requests_are_refused_before_anything_runs() {
    let tiny = Tiny::new();
    let mut engine = tiny.engine(layout(1, 16));
    let mut session = engine.session().unwrap();
    let mut refuse = |request: &Request| generate(&mut engine, &mut session, request).unwrap_err();
    assert!(matches!(refuse(&greedy(vec![], 5)), EngineError::EmptyPrompt));
    assert!(matches!(refuse(&greedy(vec![1, 320], 5)), EngineError::UnknownToken { token: 320, vocab: 320 }));
    let hot = Sampling { temperature: -1.0, ..Sampling::default() };
    assert!(matches!(refuse(&request(vec![5], hot, 5)), EngineError::Field { field: "temperature", .. }));
    assert!(refuse(&greedy(vec![5], 0)).to_string().starts_with("max_tokens"));
    assert_eq!(session.ready_tokens(), 0);
    assert_eq!(engine.active(), 0);
}

#[test]
fn sequences_are_counted_and_come_back() {
    let tiny = Tiny::new();
    let mut engine = tiny.engine(layout(2, 16));
    let a = engine.session().unwrap();
    let _b = engine.session().unwrap();
    let error = engine.session().err().unwrap().to_string();
    assert!(error.contains('2'), "{error}");
    drop(a);
    assert!(engine.session().is_ok());
}

#[test]
fn foreign_sessions_and_busy_engines_are_refused() {
    let tiny = Tiny::new();
    let (mut one, mut two) = (tiny.engine(layout(2, 16)), tiny.engine(layout(2, 16)));
    let mut foreign = one.session().unwrap();
    let error = generate(&mut two, &mut foreign, &greedy(vec![5], 1)).unwrap_err();
    assert!(matches!(error, EngineError::ForeignSession));
    assert!(generate(&mut one, &mut foreign, &greedy(vec![5], 1)).is_ok(), "it came back unharmed");
    let job = submit(&mut one, &greedy(vec![5], 3));
    assert!(matches!(generate(&mut one, &mut foreign, &greedy(vec![5], 1)), Err(EngineError::Busy(1))));
    run_all(&mut one, &[job]);
}

/// A model whose head has not-a-number in the rows that `broken` names.
fn broken_head(broken: std::ops::Range<usize>) -> Tiny {
    let spec = TinySpec { tied: false, ..TinySpec::llama() };
    Tiny::with(&spec, &|name, rows, cols, weights| {
        let mut weights = weights.to_vec();
        if name == "output.weight" {
            weights[broken.start * cols..broken.end * cols].fill(f32::NAN);
        }
        f32_encode(name, rows, cols, &weights)
    })
}

#[test]
fn logits_that_are_not_numbers_are_an_error() {
    let all = broken_head(0..320);
    let mut engine = all.engine(layout(1, 16));
    for chain in chains() {
        let mut session = engine.session().unwrap();
        let error = generate(&mut engine, &mut session, &request(prompt(1, 9), chain, 5)).unwrap_err();
        assert!(matches!(error, EngineError::NotFinite { position: 8 }), "{error}");
    }
    // A single one is never sampled where the device picks, and seen where the whole row is read.
    let one = broken_head(77..78);
    let mut engine = one.engine(layout(1, 16));
    for (i, chain) in chains().into_iter().enumerate() {
        let mut session = engine.session().unwrap();
        let result = generate(&mut engine, &mut session, &request(prompt(1, 9), chain, 30));
        match result {
            Ok(outcome) => assert!(i < 2 && !outcome.tokens.contains(&77)),
            Err(error) => assert!(i >= 2 && matches!(error, EngineError::NotFinite { .. }), "{error}"),
        }
    }
}

/// A runtime whose device panics (or, for negative values, refuses) on cue.
fn faulty() -> (Arc<Runtime>, Arc<AtomicI64>) {
    let watched = Watched::new(320);
    (watched.runtime, watched.countdown)
}

#[test]
fn a_panic_ends_the_sessions_of_its_step_and_nothing_else() {
    let tiny = Tiny::new();
    let want = alone(&mut tiny.engine(layout(1, 16)), &greedy(prompt(1, 30), 12));
    let (runtime, countdown) = faulty();
    let mut engine = tiny.engine_on(&runtime, layout(2, 16));
    let mut session = engine.session().unwrap();
    // In the first chunk, in the second, and while decoding.
    for attends in [1, 4, 9] {
        countdown.store(attends, Ordering::Relaxed);
        let error = generate(&mut engine, &mut session, &greedy(prompt(1, 30), 12)).unwrap_err();
        assert!(matches!(&error, EngineError::Panic(what) if what == "the test broke the device"), "{error}");
        assert_eq!(session.ready_tokens(), 0, "its state is not trusted");
        let again = generate(&mut engine, &mut session, &greedy(prompt(1, 30), 12)).unwrap();
        assert_eq!(again.tokens, want.tokens, "after a panic at attend {attends}");
    }
    // Two in one step: both end, the engine goes on, and so does another engine of the process.
    let ids = [
        submit_in(&mut engine, session, &greedy(prompt(1, 30), 12)),
        submit(&mut engine, &greedy(prompt(2, 5), 12)),
    ];
    engine.step(&mut |_, _| {});
    countdown.store(1, Ordering::Relaxed);
    let ends = run_all(&mut engine, &ids);
    assert!(ends.iter().all(|e| matches!(e.result, Err(EngineError::Panic(_)))));
    drop(ends);
    let mut other = tiny.engine_on(&runtime, layout(1, 16));
    assert_eq!(alone(&mut other, &greedy(prompt(1, 30), 12)).tokens, want.tokens);
    assert_eq!(alone(&mut engine, &greedy(prompt(1, 30), 12)).tokens, want.tokens);
}

fn submit_in(engine: &mut Engine, session: Session, request: &Request) -> JobId {
    engine.submit(session, request, &Cancel::new()).map_err(|r| r.error).unwrap()
}

#[test]
fn a_device_error_keeps_what_was_there_before() {
    let tiny = Tiny::new();
    let (runtime, countdown) = faulty();
    let mut engine = tiny.engine_on(&runtime, layout(1, 16));
    let mut session = engine.session().unwrap();
    let first = generate(&mut engine, &mut session, &greedy(prompt(1, 30), 5)).unwrap();
    countdown.store(-99, Ordering::Relaxed);
    let mut longer = prompt(1, 30);
    longer.extend(prompt(4, 10));
    let error = generate(&mut engine, &mut session, &greedy(longer.clone(), 5)).unwrap_err();
    assert!(error.to_string().contains("the test refused"), "{error}");
    let again = generate(&mut engine, &mut session, &greedy(longer.clone(), 5)).unwrap();
    assert_eq!(again.figures.reused_tokens, 30);
    assert_eq!(again.tokens, alone(&mut tiny.engine(layout(1, 16)), &greedy(longer, 5)).tokens);
    assert_eq!(first.tokens.len(), 5);
}

#[test]
fn a_panicking_listener_does_not_cost_the_session() {
    let tiny = Tiny::new();
    let mut engine = tiny.engine(layout(1, 16));
    let mut session = engine.session().unwrap();
    let asked = greedy(prompt(1, 10), 20);
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = engine.generate(&mut session, &asked, &Cancel::new(), &mut |_| panic!("listener"));
    }));
    assert!(panicked.is_err());
    assert_eq!(engine.active(), 0);
    let after = generate(&mut engine, &mut session, &asked).unwrap();
    assert_eq!(after.tokens, alone(&mut tiny.engine(layout(1, 16)), &asked).tokens);
}

#[test]
fn figures_count_what_happened() {
    let tiny = Tiny::new();
    let mut engine = tiny.engine(layout(1, 16));
    let outcome = alone(&mut engine, &greedy(prompt(1, 30), 11));
    let f = outcome.figures;
    assert_eq!((f.prompt_tokens, f.reused_tokens, f.generated_tokens, f.decode_steps), (30, 0, 11, 10));
    assert_eq!(f.decode_bytes, 10 * engine.info().bytes_per_token(35, &KvLayout::default()));
    assert!(f.first_token_micros >= f.prefill_micros);
    let seeded = Sampling { seed: Some(5), ..Sampling::default() };
    assert_eq!(alone(&mut engine, &request(prompt(1, 4), seeded, 2)).seed, 5);
    let free = alone(&mut engine, &request(prompt(1, 4), Sampling::default(), 8));
    let repeat = Sampling { seed: Some(free.seed), ..Sampling::default() };
    assert_eq!(alone(&mut engine, &request(prompt(1, 4), repeat, 8)).tokens, free.tokens);
}

#[test]
fn chat_is_rendered_with_the_models_template() {
    let tiny = Tiny::new();
    let engine = tiny.engine(layout(1, 16));
    let messages = [hob_text::Message::system("be kind"), hob_text::Message::user("hi")];
    assert_eq!(
        engine.front().render_chat(&messages).unwrap(),
        "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    );
}

/// A model whose layers remember more than keys and values.
fn recurrent(runtime: &Arc<Runtime>) -> Engine {
    load(runtime, &reference_model("lfm2"), layout(2, 16))
}

#[test]
fn recurrent_state_is_kept_whole_or_built_anew() {
    let mut engine = recurrent(&runtime());
    let first = prompt(1, 40);
    let mut session = engine.session().unwrap();
    let outcome = generate(&mut engine, &mut session, &greedy(first.clone(), 10)).unwrap();
    assert_eq!(outcome.tokens, alone(&mut engine, &greedy(first.clone(), 10)).tokens);
    // The timeline goes on where it ended: nothing is run twice.
    let longer: Vec<u32> = session.tokens().iter().copied().chain(prompt(2, 5)).collect();
    let continued = generate(&mut engine, &mut session, &greedy(longer.clone(), 6)).unwrap();
    assert_eq!(continued.figures.reused_tokens, 40 + 9);
    assert_eq!(continued.tokens, alone(&mut engine, &greedy(longer, 6)).tokens);
    // A shorter common prefix cannot be cut out of the state.
    let turned: Vec<u32> = first[..25].iter().copied().chain(prompt(3, 9)).collect();
    let rebuilt = generate(&mut engine, &mut session, &greedy(turned.clone(), 6)).unwrap();
    assert_eq!(rebuilt.figures.reused_tokens, 0);
    assert_eq!(rebuilt.tokens, alone(&mut engine, &greedy(turned, 6)).tokens);
    // Nor can the last position alone.
    let again = session.tokens().to_vec();
    let again = generate(&mut engine, &mut session, &greedy(again[..again.len() - 1].to_vec(), 3)).unwrap();
    assert_eq!(again.figures.reused_tokens, 0);
}

#[test]
fn recurrent_state_after_a_device_error_is_built_anew() {
    let (runtime, countdown) = faulty();
    let mut engine = recurrent(&runtime);
    let mut session = engine.session().unwrap();
    let first = greedy(prompt(1, 30), 4);
    generate(&mut engine, &mut session, &first).unwrap();
    let next = greedy(session.tokens().iter().copied().chain(prompt(2, 5)).collect(), 4);
    // The second attention layer fails, after convolutions have moved on.
    countdown.store(-98, Ordering::Relaxed);
    generate(&mut engine, &mut session, &next).unwrap_err();
    countdown.store(i64::MAX, Ordering::Relaxed);
    let outcome = generate(&mut engine, &mut session, &next).unwrap();
    assert_eq!(outcome.tokens, alone(&mut engine, &next).tokens);
}
