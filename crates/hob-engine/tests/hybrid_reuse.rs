//! "Forcing full prompt re-processing": conversations with models whose state cannot be cut, in every way that they come
//! back. Each runs what is new or changed, and little more.

mod common;

use common::child::PATIENCE;
use common::*;
use hob_engine::*;
use hob_model::Layout;
use hob_testkit::temp::TempDir;

const MODELS: [&str; 2] = ["lfm2", "qwen3_5"];

/// What ends a message, what templates write behind it, and how they begin a reply.
const END: u32 = 2;
const BREAK: u32 = 11;
const REPLY: [u32; 2] = [12, 13];

/// A message of `n` tokens with its end.
fn message(seed: u32, n: usize) -> Vec<u32> {
    let text = prompt(seed, n).into_iter().filter(|&token| token != END);
    text.chain([END, BREAK]).collect()
}

/// Instructions and a question, up to the beginning of the reply.
fn opening(instructions: u32, question: u32) -> Vec<u32> {
    [message(instructions, 300), message(question, 150), REPLY.to_vec()].concat()
}

/// Behind the last end of a message in a prompt.
fn last_turn(tokens: &[u32]) -> usize {
    tokens.iter().rposition(|&token| token == END).map_or(0, |at| at + 1)
}

fn each(mut test: impl FnMut(&str, Engine)) {
    for name in MODELS {
        test(name, load(&runtime(), &reference_model(name), roomy(1, 4096)));
    }
}

/// Tokens of a prompt that need not be run.
fn reused(engine: &mut Engine, session: &mut Session, tokens: Vec<u32>) -> usize {
    let outcome = generate(engine, session, &greedy(tokens, 12)).unwrap();
    outcome.figures.reused_tokens + outcome.figures.restored_tokens
}

/// The timeline, its end, and another question.
fn next(session: &Session, question: u32) -> Vec<u32> {
    [session.tokens(), &[END, BREAK], &message(question, 60), &REPLY].concat()
}

#[test]
fn a_conversation_that_continues_runs_only_what_is_new() {
    each(|name, mut engine| {
        let mut session = engine.session().unwrap();
        assert_eq!(reused(&mut engine, &mut session, opening(1, 2)), 0);
        for turn in 0..4 {
            // All but the last sampled token was run.
            let run = session.tokens().len() - 1;
            let tokens = next(&session, 10 + turn);
            assert_eq!(reused(&mut engine, &mut session, tokens), run, "{name}, turn {turn}");
        }
    });
}

#[test]
fn an_edited_last_question_runs_from_there() {
    each(|name, mut engine| {
        let mut session = engine.session().unwrap();
        reused(&mut engine, &mut session, opening(1, 2));
        // The first question: all but the instructions, which end in one end and one break.
        let again = reused(&mut engine, &mut session, opening(1, 3));
        assert_eq!(again, 300 + 1, "{name}");
        // A later one: all but what came before it.
        let run = session.tokens().len() - 1;
        let before = session.tokens().to_vec();
        let asked = |question| [&before[..], &[END, BREAK], &message(question, 60), &REPLY].concat();
        reused(&mut engine, &mut session, asked(20));
        assert_eq!(reused(&mut engine, &mut session, asked(21)), run, "{name}");
    });
}

#[test]
fn a_reply_that_comes_back_without_its_reasoning_is_run_alone() {
    each(|name, mut engine| {
        let mut session = engine.session().unwrap();
        let first = opening(1, 2);
        reused(&mut engine, &mut session, first.clone());
        // The reply begins as the template says, and goes on otherwise than it was sampled.
        let reply = [&REPLY[..1], &message(30, 8), &message(31, 40), &REPLY].concat();
        let tokens = [&first[..last_turn(&first) + 1], &reply].concat();
        let expected = last_turn(&first);
        assert!(first.len() - expected < 8);
        assert_eq!(reused(&mut engine, &mut session, tokens), expected, "{name}");
    });
}

#[test]
fn a_reply_that_is_made_again_runs_only_how_it_begins() {
    each(|name, mut engine| {
        let mut session = engine.session().unwrap();
        let asked = opening(1, 2);
        reused(&mut engine, &mut session, asked.clone());
        let again = reused(&mut engine, &mut session, asked.clone());
        assert_eq!(again, last_turn(&asked), "{name}: of {}", asked.len());
    });
}

#[test]
fn instructions_that_conversations_share_are_run_once() {
    each(|name, mut engine| {
        for question in 0..3 {
            let mut session = engine.session().unwrap();
            let expected = if question == 0 { 0 } else { 300 + 1 };
            let found = reused(&mut engine, &mut session, opening(1, 40 + question));
            assert_eq!(found, expected, "{name}, question {question}");
        }
    });
}

/// The process ends; another goes on, edits the last question, and takes up the instructions.
#[test]
fn a_restart_runs_only_what_is_new() {
    for name in MODELS {
        let dir = TempDir::new("hybrid_reuse");
        let file = reference_model(name);
        let open = || load_with(&runtime(), &file, roomy(1, 1024), &on_disk(dir.path()));
        let mut engine = open();
        let mut session = engine.session().unwrap();
        reused(&mut engine, &mut session, opening(1, 2));
        let (run, before) = (session.tokens().len() - 1, session.tokens().to_vec());
        let asked = |question| [&before[..], &[END, BREAK], &message(question, 60), &REPLY].concat();
        assert!(engine.flush(PATIENCE));
        drop((session, engine));
        for (what, tokens, expected) in [
            ("continued", asked(20), run),
            ("edited", asked(21), run),
            ("made again", asked(21), last_turn(&asked(21))),
            ("edited at its beginning", opening(1, 3), 300 + 1),
        ] {
            let mut engine = open();
            let mut session = engine.session().unwrap();
            assert_eq!(reused(&mut engine, &mut session, tokens), expected, "{name}, {what}");
            assert!(engine.flush(PATIENCE));
        }
    }
}

/// State on the way through a long prompt is worth less than the end of any conversation.
#[test]
fn a_long_prompt_pushes_out_no_conversation() {
    for name in MODELS {
        // Room for a few states only.
        let layout = Layout { cached_tokens: 600, ..roomy(1, 0) };
        let mut engine = load(&runtime(), &reference_model(name), layout);
        let mut session = engine.session().unwrap();
        let first = [message(1, 40), REPLY.to_vec()].concat();
        reused(&mut engine, &mut session, first);
        let (run, tokens) = (session.tokens().len() - 1, next(&session, 5));
        reused(&mut engine, &mut session, [message(50, 400), REPLY.to_vec()].concat());
        assert_eq!(reused(&mut engine, &mut session, tokens), run, "{name}");
    }
}
