//! `hob run`: one prompt, one answer. The answer is all that stdout ever holds.

use std::io::{self, IsTerminal, Read};
use std::path::Path;

use anyhow::{Context, Result};
use hob_engine::Prompt;
use hob_text::Message;

use crate::args::RunArgs;
use crate::exit::{self, UsageError};
use crate::house::{Ask, House, Loaded};
use crate::record::Record;
use crate::reply;
use crate::term::{self, Answer};

/// Longest prompt read from a file or stdin: far above any context.
const MOST_PROMPT_BYTES: u64 = 64 << 20;

pub fn run(house: &House, args: &RunArgs) -> Result<i32> {
    let text = prompt_text(args)?;
    let mut record = args.session.as_deref().map(|name| Record::open(house, name)).transpose()?;
    let recorded = record.as_ref().and_then(Record::model);
    let model = args.model.wanted(recorded);
    let ask = Ask {
        model,
        args: &args.model,
        conversations: 0,
        quiet: args.quiet,
        profile: args.profile.profile.as_deref(),
    };
    let mut loaded = house.load(&ask).map_err(|e| match &record {
        Some(record) => record.explain(e, &args.model),
        None => e,
    })?;
    let (prompt, messages) = match &mut record {
        Some(record) => next_turn(record, &mut loaded, args, text)?,
        None => (single(&loaded, args, text)?, Vec::new()),
    };
    let request = reply::request(prompt, &reply::sampling(&args.sampling), &args.sampling);
    let mut session = loaded.engine.session()?;
    if let Some(record) = &mut record {
        // A question is kept even if the answer never comes.
        record.store(&loaded, &messages, None)?;
    }
    let mut answer = Answer::default();
    let reply = reply::stream(house, &mut loaded, &mut session, &request, &mut answer, house.started)?;
    answer.end_line();
    if let Some(record) = &mut record {
        let mut messages = messages;
        messages.push(Message::assistant(reply.outcome.text.clone()));
        record.store(&loaded, &messages, Some(session.tokens()))?;
    }
    // A reader that went away has seen enough.
    if !args.quiet && !answer.is_closed() {
        if let Some(ending) = reply::ending(&reply.outcome, loaded.engine.ctx_tokens()) {
            term::note(&ending);
        }
        term::note(&reply::figures(&loaded, &reply));
    }
    house.remember(&loaded, &reply.outcome.figures);
    answer.finish().context("writing the answer to stdout")?;
    Ok(if reply.interrupted { exit::INTERRUPTED } else { exit::OK })
}

/// A prompt that nothing went before.
fn single(loaded: &Loaded, args: &RunArgs, text: String) -> Result<Prompt> {
    // A base model continues the text as it stands.
    let base = !args.raw && args.system.is_none() && loaded.engine.front().is_base_model();
    if base && !args.quiet {
        term::note(
            "this file has no chat template and is probably a base model: it continues your text (as --raw)",
        );
    }
    if args.raw || base {
        return Ok(Prompt::text(text));
    }
    let system = args.system.iter().map(Message::system);
    let messages: Vec<Message> = system.chain([Message::user(text)]).collect();
    Ok(Prompt::text(loaded.engine.front().render_chat(&messages)?))
}

/// The conversation so far with `text` as its next question, as a prompt and as messages.
fn next_turn(
    record: &mut Record,
    loaded: &mut Loaded,
    args: &RunArgs,
    text: String,
) -> Result<(Prompt, Vec<Message>)> {
    let (mut messages, unanswered) = record.messages_with(args.system.as_deref())?;
    record.resume(loaded);
    if !args.quiet {
        let name = record.name().unwrap_or_default();
        let asked = messages.iter().filter(|m| m.role == "user").count();
        term::note(&match asked {
            0 => format!("session {name} begins"),
            1 => format!("session {name} goes on after 1 question"),
            n => format!("session {name} goes on after {n} questions"),
        });
    }
    if let Some(lost) = unanswered.filter(|m| m.content != text)
        && !args.quiet
    {
        let start: String = term::printable(&lost.content).chars().take(60).collect();
        term::note(&format!("the last question got no answer and is left out: {start}"));
    }
    messages.push(Message::user(text));
    let prompt = Prompt::text(loaded.engine.front().render_chat(&messages)?);
    Ok((prompt, messages))
}

/// Words and files in the order: words, then each file; stdin when there is neither.
fn prompt_text(args: &RunArgs) -> Result<String> {
    let mut parts = Vec::new();
    if !args.prompt.is_empty() {
        parts.push(args.prompt.join(" "));
    }
    for file in &args.file {
        parts.push(if file == Path::new("-") { read_stdin()? } else { read_file(file)? });
    }
    if parts.is_empty() {
        if io::stdin().is_terminal() {
            let way_out = "no prompt: write hob run \"Why is the sky blue?\", or -f FILE, or pipe text in; hob chat talks";
            return Err(UsageError(way_out.to_string()).into());
        }
        parts.push(read_stdin()?);
    }
    let text = parts.join("\n\n");
    if text.trim().is_empty() {
        return Err(UsageError("the prompt is empty: give some text".to_string()).into());
    }
    // A file's last newline is the file's, not the prompt's.
    Ok(if args.raw { text } else { text.trim_end().to_string() })
}

fn read_stdin() -> Result<String> {
    read_text(io::stdin().lock(), "stdin")
}

fn read_file(path: &Path) -> Result<String> {
    let file =
        std::fs::File::open(path).with_context(|| format!("reading the prompt from {}", path.display()))?;
    read_text(file, &path.display().to_string())
}

fn read_text(from: impl Read, name: &str) -> Result<String> {
    let mut bytes = Vec::new();
    from.take(MOST_PROMPT_BYTES + 1)
        .read_to_end(&mut bytes)
        .with_context(|| format!("reading the prompt from {name}"))?;
    if bytes.len() as u64 > MOST_PROMPT_BYTES {
        let most = hob_plan::units::show_bytes(MOST_PROMPT_BYTES);
        return Err(
            UsageError(format!("the prompt in {name} is longer than {most}: no context holds it")).into()
        );
    }
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        UsageError(format!("the prompt in {name} is not UTF-8 text (byte {at}); convert it first")).into()
    })
}
