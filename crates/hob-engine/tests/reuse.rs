//! Prefixes found in memory: conversations that take turns, edits, texts that come back in other tokens, and what
//! failures leave behind.

mod common;

use std::sync::atomic::Ordering;

use common::*;
use hob_engine::*;
use hob_testkit::tiny::vocab;
use hob_text::Special;

/// The timeline of a session and `n` tokens more.
fn longer(session: &Session, seed: u32, n: usize) -> Vec<u32> {
    [session.tokens(), &prompt(seed, n)].concat()
}

#[test]
fn four_conversations_taking_turns_rerun_only_their_new_tokens() {
    let tiny = Tiny::new();
    let mut engine = tiny.engine(roomy(1, 4096));
    let mut apart = tiny.engine(roomy(4, 0));
    let mut one = engine.session().unwrap();
    let mut four: Vec<Session> = (0..4).map(|_| apart.session().unwrap()).collect();
    let mut timelines: Vec<Vec<u32>> = (0..4).map(|c| prompt(c, 300 + 31 * c as usize)).collect();
    for turn in 0..5 {
        for c in 0..4 {
            let asked = request(timelines[c].clone(), whole_rows(), 12);
            let got = generate(&mut engine, &mut one, &asked).unwrap();
            let want = generate(&mut apart, &mut four[c], &asked).unwrap();
            assert_eq!(got.tokens, want.tokens, "turn {turn} of {c}");
            // All but the last sampled token was run in the turn before.
            let expected = if turn == 0 { 0 } else { timelines[c].len() - 20 - 1 };
            assert_eq!(got.figures.reused_tokens, expected, "turn {turn} of {c}");
            timelines[c] = longer(&one, 50 + turn, 20);
        }
    }
}

#[test]
fn a_prompt_edited_in_the_middle_is_recomputed_from_there() {
    let tiny = Tiny::new();
    let mut engine = tiny.engine(roomy(1, 4096));
    let mut session = engine.session().unwrap();
    let first = prompt(1, 900);
    generate(&mut engine, &mut session, &greedy(first.clone(), 5)).unwrap();
    // Another conversation takes the sequence.
    generate(&mut engine, &mut session, &greedy(prompt(2, 300), 5)).unwrap();
    let mut edited = first;
    edited[600] = 99;
    let asked = request(edited, whole_rows(), 8);
    let got = generate(&mut engine, &mut session, &asked).unwrap();
    assert!((512..=600).contains(&got.figures.reused_tokens), "{}", got.figures.reused_tokens);
    assert_eq!(got.tokens, alone(&mut tiny.engine(roomy(1, 0)), &asked).tokens);
}

#[test]
fn recurrent_state_goes_back_to_the_nearest_snapshot() {
    let file = reference_model("lfm2");
    let mut engine = load(&runtime(), &file, roomy(1, 4096));
    let mut session = engine.session().unwrap();
    let first = prompt(1, 600);
    let asked = request(first.clone(), whole_rows(), 8);
    let want = generate(&mut engine, &mut session, &asked).unwrap();
    let end = session.tokens().to_vec();
    generate(&mut engine, &mut session, &greedy(prompt(2, 40), 5)).unwrap();
    // The same again: only its last token is run.
    let again = generate(&mut engine, &mut session, &asked).unwrap();
    assert_eq!((again.figures.reused_tokens, &again.tokens), (599, &want.tokens));
    generate(&mut engine, &mut session, &greedy(prompt(2, 40), 5)).unwrap();
    // The next turn.
    let next = request([&end[..], &prompt(3, 9)].concat(), whole_rows(), 8);
    let went_on = generate(&mut engine, &mut session, &next).unwrap();
    assert_eq!(went_on.figures.reused_tokens, 600 + 7);
    // An edit.
    let mut edited = first;
    edited[530] = 99;
    let edited = request(edited, whole_rows(), 8);
    let rebuilt = generate(&mut engine, &mut session, &edited).unwrap();
    assert_eq!(rebuilt.figures.reused_tokens, 512);
    let mut fresh = load(&runtime(), &file, roomy(1, 0));
    assert_eq!(went_on.tokens, alone(&mut fresh, &next).tokens);
    assert_eq!(rebuilt.tokens, alone(&mut fresh, &edited).tokens);
}

#[test]
fn many_sequences_share_one_beginning() {
    let tiny = Tiny::new();
    let mut engine = tiny.engine(roomy(3, 1024));
    let system = prompt(1, 520);
    let want = alone(&mut engine, &greedy(system.clone(), 4));
    let asked: Vec<Request> = (0..3).map(|c| greedy([&system[..], &prompt(10 + c, 5)].concat(), 6)).collect();
    let ids: Vec<JobId> = asked.iter().map(|r| submit(&mut engine, r)).collect();
    let mut fresh = tiny.engine(roomy(1, 0));
    for (end, asked) in run_all(&mut engine, &ids).into_iter().zip(&asked) {
        let outcome = end.result.unwrap();
        assert!(outcome.figures.reused_tokens >= 512, "{}", outcome.figures.reused_tokens);
        assert_eq!(outcome.tokens, alone(&mut fresh, asked).tokens);
    }
    assert_eq!(alone(&mut engine, &greedy(system, 4)).tokens, want.tokens);
}

/// A rendered conversation, and the letters of its reply one by one: its text would be two tokens, 't' and 'he'.
const OPENING: &str = "<|im_start|>user\nhello there<|im_end|>\n<|im_start|>assistant\n";
const NEXT: &str = "<|im_end|>\n<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\n";

fn letters() -> Vec<u32> {
    "the".bytes().map(|b| u32::from(b) + vocab::SPECIAL.len() as u32).collect()
}

fn pinned() -> Prompt {
    Prompt { segments: vec![Segment::Text(OPENING.into()), Segment::Tokens(letters())] }
}

#[test]
fn sampled_replies_stay_the_tokens_they_were() {
    let tiny = Tiny::new();
    let mut engine = tiny.engine(roomy(2, 1024));
    let asked = |prompt| Request { sampling: Sampling::greedy(), max_tokens: 1, ..Request::new(prompt) };
    assert_eq!(engine.tokenizer().encode("the", Special::Parse).unwrap().len(), 2);
    let mut session = engine.session().unwrap();
    generate(&mut engine, &mut session, &asked(pinned())).unwrap();
    drop(session);
    // Another session gets the text, in which the reply would be tokenized differently.
    let opening = engine.tokenizer().encode_prompt(OPENING).unwrap();
    let next = engine.tokenizer().encode(NEXT, Special::Parse).unwrap();
    let mut session = engine.session().unwrap();
    let text = format!("{OPENING}the{NEXT}");
    let outcome = generate(&mut engine, &mut session, &asked(Prompt::text(text.as_str()))).unwrap();
    assert_eq!(outcome.figures.reused_tokens, opening.len() + 3);
    let replayed = [&opening[..], &letters(), &next].concat();
    assert_eq!(session.tokens()[..replayed.len()], replayed);
    // An edited past, a reply that goes on without a break, another conversation: as the tokenizer says.
    for other in [text.replace("hello", "hullo"), format!("{OPENING}them"), "new".to_owned()] {
        let canonical = engine.tokenizer().encode_prompt(&other).unwrap();
        assert_eq!(engine.front().tokenize(&Prompt::text(other)).unwrap(), canonical);
    }
    // Tokens are taken as they are.
    let canonical = engine.tokenizer().encode_prompt(&text).unwrap();
    assert_ne!(canonical, replayed);
    assert_eq!(engine.front().tokenize(&Prompt::tokens(canonical.clone())).unwrap(), canonical);
}

#[test]
fn a_remembered_timeline_is_replayed_by_another_engine() {
    let tiny = Tiny::new();
    let timeline = {
        let mut engine = tiny.engine(roomy(1, 0));
        let mut session = engine.session().unwrap();
        let asked = Request { sampling: Sampling::greedy(), max_tokens: 1, ..Request::new(pinned()) };
        generate(&mut engine, &mut session, &asked).unwrap();
        session.tokens().to_vec()
    };
    let engine = tiny.engine(roomy(1, 0));
    let text = Prompt::text(format!("{OPENING}the{NEXT}"));
    let canonical = engine.front().tokenize(&text).unwrap();
    engine.remember(&timeline);
    let replayed = engine.front().tokenize(&text).unwrap();
    assert_eq!(replayed.len(), canonical.len() + 1);
    assert_eq!(engine.tokenizer().decode(&replayed), engine.tokenizer().decode(&canonical));
}

#[test]
fn a_cancelled_job_leaves_its_pages() {
    let tiny = Tiny::new();
    let mut engine = tiny.engine(roomy(1, 4096));
    let mut session = engine.session().unwrap();
    let asked = request(prompt(1, 900), whole_rows(), 8);
    let cancel = Cancel::new();
    let mut ran = 0;
    let outcome = engine.generate_events(&mut session, &asked, &cancel, &mut |event| {
        if let Event::Prefill { ready, .. } = event {
            ran = ready;
            if ready > 600 {
                cancel.cancel();
            }
        }
    });
    assert_eq!(outcome.unwrap().finish, Finish::Cancelled);
    generate(&mut engine, &mut session, &greedy(prompt(2, 300), 5)).unwrap();
    let again = generate(&mut engine, &mut session, &asked).unwrap();
    assert_eq!(again.figures.reused_tokens, ran, "nothing that was run is run again");
    assert_eq!(again.tokens, alone(&mut tiny.engine(roomy(1, 0)), &asked).tokens);
}

#[test]
fn a_panic_in_a_step_leaves_nothing_wrong_behind() {
    for name in ["llama_tied", "lfm2"] {
        let file = reference_model(name);
        let watched = Watched::new(hob_model::ModelInfo::read(&file).unwrap().config.vocab);
        let first = request(prompt(1, 700), whole_rows(), 12);
        let want = alone(&mut load(&watched.runtime, &file, roomy(1, 0)), &first);
        let rows = watched.logits();
        assert_eq!(rows.len(), 12);
        let mut engine = load(&watched.runtime, &file, roomy(1, 4096));
        // In the first pass, across page boundaries, and while decoding.
        for attends in [1, 3, 7, 8, 13, 14, 17, 18, 25] {
            let mut session = engine.session().unwrap();
            watched.countdown.store(attends, Ordering::Relaxed);
            let failed = generate(&mut engine, &mut session, &first);
            assert!(matches!(failed, Err(EngineError::Panic(_))), "{name}, attend {attends}");
            watched.logits();
            let again = generate(&mut engine, &mut session, &first).unwrap();
            assert_eq!(again.tokens, want.tokens, "{name}, attend {attends}");
            assert!(watched.logits() == rows, "{name}, attend {attends}: logits differ");
            // Back to a cold memory: every failure is met from the beginning.
            drop(session);
            drop(engine);
            engine = load(&watched.runtime, &file, roomy(1, 4096));
        }
    }
}
