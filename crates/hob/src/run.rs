//! `hob run`: one prompt, one answer. The answer is all that stdout ever holds.

use std::io::{self, IsTerminal, Read};
use std::path::Path;

use anyhow::{Context, Result};
use hob_engine::Prompt;
use hob_text::Message;

use crate::args::RunArgs;
use crate::exit::{self, UsageError};
use crate::house::{House, wish};
use crate::reply;
use crate::term::{self, Answer};

/// Longest prompt read from a file or stdin: far above any context.
const MOST_PROMPT_BYTES: u64 = 64 << 20;

pub fn run(house: &House, args: &RunArgs) -> Result<i32> {
    let text = prompt_text(args)?;
    let mut loaded = house.load(&args.model.model, &wish(&args.model.layout), args.quiet)?;
    // A base model continues the text as it stands.
    let base = !args.raw && args.system.is_none() && loaded.engine.front().is_base_model();
    if base && !args.quiet {
        term::note(
            "this file has no chat template and is probably a base model: it continues your text (as --raw)",
        );
    }
    let prompt = if args.raw || base {
        Prompt::text(text)
    } else {
        let system = args.system.iter().map(Message::system);
        let messages: Vec<Message> = system.chain([Message::user(text)]).collect();
        Prompt::text(loaded.engine.front().render_chat(&messages)?)
    };
    let request = reply::request(prompt, &reply::sampling(&args.sampling), &args.sampling);
    let mut session = loaded.engine.session()?;
    let mut answer = Answer::default();
    let reply = reply::stream(house, &mut loaded, &mut session, &request, &mut answer, house.started)?;
    answer.end_line();
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
