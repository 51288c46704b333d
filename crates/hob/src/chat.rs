//! `hob chat`: a conversation in the terminal, or line by line from a pipe. Commands are in `chat/command.rs`.

mod command;

use std::io::{self, BufRead, IsTerminal};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use hob_engine::{Finish, Prompt, Sampling, Session};
use hob_text::Message;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use crate::args::{ChatArgs, SamplingArgs};
use crate::exit::{self, TooLong};
use crate::house::{Ask, CHAT_CONVERSATIONS, House, Loaded};
use crate::record::Record;
use crate::reply;
use crate::term::{self, Answer};

/// Lines of history kept.
const HISTORY_LINES: usize = 1000;

/// One conversation and what it runs on.
pub struct Chat<'a> {
    house: &'a House,
    loaded: Loaded,
    session: Session,
    /// `None`: nothing is kept.
    record: Option<Record>,
    messages: Vec<Message>,
    sampling: Sampling,
    args: SamplingArgs,
    /// Figures of the last answer.
    last: Option<String>,
    answer: Answer,
}

/// What comes after a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    Stay,
    Leave,
}

pub fn chat(house: &House, args: &ChatArgs) -> Result<i32> {
    let record = match &args.session {
        Some(name) => Some(Record::open(house, name)?),
        None if args.go_on => Some(Record::last(house)?),
        None if args.model.no_cache => None,
        None => Some(Record::unnamed(house)?),
    };
    let (messages, unanswered) = match &record {
        Some(record) => record.messages_with(args.system.as_deref())?,
        None => (args.system.iter().map(Message::system).collect(), None),
    };
    let model = args.model.wanted(record.as_ref().and_then(Record::model));
    let ask =
        Ask { model, args: &args.model, conversations: CHAT_CONVERSATIONS, quiet: false, profile: None };
    let mut loaded = house.load(&ask).map_err(|e| match &record {
        Some(record) => record.explain(e, &args.model),
        None => e,
    })?;
    if loaded.engine.template().is_none() {
        // Says why.
        loaded.engine.front().render_chat(&[Message::user("")])?;
    }
    if let Some(record) = &record {
        record.resume(&mut loaded);
    }
    let session = loaded.engine.session()?;
    let mut chat = Chat {
        house,
        loaded,
        session,
        record,
        messages,
        sampling: reply::sampling(&args.sampling),
        args: args.sampling.clone(),
        last: None,
        answer: Answer::default(),
    };
    chat.greet(unanswered);
    if io::stdin().is_terminal() {
        chat.talk()?
    } else {
        chat.read_pipe()?
    }
    chat.answer.finish().context("writing the answer to stdout")?;
    Ok(exit::OK)
}

impl Chat<'_> {
    /// Says which conversation goes on, and where it stood.
    fn greet(&self, unanswered: Option<Message>) {
        let Some(record) = self.record.as_ref().filter(|r| !r.is_new()) else { return };
        let name = record.name().unwrap_or_default();
        let turns = self.messages.iter().filter(|m| m.role == "user").count();
        let plural = if turns == 1 { "" } else { "s" };
        term::note(&format!("session {name} goes on after {turns} question{plural}"));
        let last = self.messages.iter().rev().take(2).collect::<Vec<_>>();
        for message in last.into_iter().rev().filter(|m| m.role != "system") {
            let mark = if message.role == "user" { "> " } else { "" };
            term::note(&format!("{mark}{}", term::printable_lines(&message.content)));
        }
        if let Some(lost) = unanswered {
            let text = term::printable_lines(&lost.content);
            term::note(&format!("this question got no answer; ask it again if you like:\n> {text}"));
        }
    }

    /// Line editing, history, Ctrl-D leaves.
    fn talk(&mut self) -> Result<()> {
        let kept = if self.record.is_some() {
            "; hob chat --continue comes back to it"
        } else {
            "; nothing is kept"
        };
        term::note(&format!("/help shows commands; Ctrl-C stops an answer; Ctrl-D leaves{kept}"));
        let mut editor = Editor::open(self.house.home().join("chat_history.txt"))?;
        loop {
            match editor.read() {
                Ok(text) => {
                    if self.line(&text)? == Next::Leave {
                        return Ok(());
                    }
                }
                Err(ReadlineError::Interrupted) => term::note("Ctrl-D or /exit leaves"),
                Err(ReadlineError::Eof) => return Ok(()),
                Err(problem) => return Err(problem).context("reading the terminal"),
            }
        }
    }

    /// Each line of a pipe is a turn.
    fn read_pipe(&mut self) -> Result<()> {
        for line in io::stdin().lock().lines() {
            let line = line.context("reading stdin (one turn a line, UTF-8)")?;
            if self.line(&line)? == Next::Leave || self.answer.is_closed() {
                break;
            }
        }
        Ok(())
    }

    /// A command or a turn. Only failures that end the conversation are errors.
    fn line(&mut self, line: &str) -> Result<Next> {
        let line = line.trim();
        if line.is_empty() {
            return Ok(Next::Stay);
        }
        match line.strip_prefix('/') {
            Some(command) => self.command(command),
            None => {
                self.turn(line.to_string());
                Ok(Next::Stay)
            }
        }
    }

    /// One question and its answer. A failed turn is taken back and reported.
    fn turn(&mut self, text: String) {
        self.messages.push(Message::user(text));
        self.keep(None);
        if let Err(problem) = self.respond() {
            self.messages.pop();
            self.keep(None);
            term::error(&format!("{problem:#}"));
            if problem.is::<TooLong>() {
                term::note("/clear starts over");
            }
        }
    }

    /// Answers the last message and keeps the answer, however it ended.
    fn respond(&mut self) -> Result<()> {
        let rendered = self.loaded.engine.front().render_chat(&self.messages)?;
        let request = reply::request(Prompt::text(rendered), &self.sampling, &self.args);
        let since = Instant::now();
        let reply = reply::stream(
            self.house,
            &mut self.loaded,
            &mut self.session,
            &request,
            &mut self.answer,
            since,
        )?;
        self.answer.end_line();
        let outcome = &reply.outcome;
        self.messages.push(Message::assistant(outcome.text.clone()));
        if let Some(ending) = reply::ending(outcome, self.loaded.engine.ctx_tokens()) {
            term::note(&ending);
        }
        if outcome.finish != Finish::Cancelled {
            self.house.remember(&self.loaded, &outcome.figures);
        }
        self.last = Some(reply::figures(&self.loaded, &reply));
        let tokens = self.session.tokens().to_vec();
        self.keep(Some(&tokens));
        Ok(())
    }

    /// Stores the conversation as it stands. A disk that will not take it is said, and the conversation goes on.
    fn keep(&mut self, tokens: Option<&[u32]>) {
        let Some(record) = &mut self.record else { return };
        if let Err(problem) = record.store(&self.loaded, &self.messages, tokens) {
            term::error(&format!("{problem:#}"));
        }
    }
}

/// Rustyline with a history file and lines that go on after a backslash.
struct Editor {
    editor: DefaultEditor,
    path: PathBuf,
}

impl Editor {
    fn open(path: PathBuf) -> Result<Self> {
        let config =
            rustyline::Config::builder().max_history_size(HISTORY_LINES)?.auto_add_history(false).build();
        let mut editor = DefaultEditor::with_config(config).context("opening the terminal")?;
        // No history yet is how everybody starts.
        let _ = editor.load_history(&path);
        Ok(Self { editor, path })
    }

    fn read(&mut self) -> Result<String, ReadlineError> {
        let mut text = String::new();
        loop {
            let line = self.editor.readline(if text.is_empty() { "> " } else { "  " })?;
            match line.strip_suffix('\\') {
                Some(more) => {
                    text.push_str(more);
                    text.push('\n');
                }
                None => {
                    text.push_str(&line);
                    break;
                }
            }
        }
        let _ = self.editor.add_history_entry(&text);
        let saved = self.path.parent().map_or(Ok(()), std::fs::create_dir_all).is_ok()
            && self.editor.save_history(&self.path).is_ok();
        if !saved {
            term::note(&format!("the history could not be written to {}", self.path.display()));
        }
        Ok(text)
    }
}
