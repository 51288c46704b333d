//! The commands of `hob chat`: see [`HELP`].

use std::path::Path;

use anyhow::{Context, Result, bail};
use hob_engine::Sampling;
use hob_text::Message;

use super::{Chat, Next};
use crate::record::Record;
use crate::term;

const HELP: &str = "\
/system [TEXT]     show or set the system message (starts over)
/clear             forget the conversation, keep the system message
/retry             another answer to the last question
/set [NAME VALUE]  show or change temp, top-k, top-p, min-p, repeat-penalty, seed, max-tokens
/stats             figures of the last answer
/sessions          list recorded conversations
/save NAME         keep this conversation as session NAME
/load NAME         go on with session NAME
/export FILE       write the conversation as JSON
/import FILE       go on with a conversation that was written so
/exit              leave (Ctrl-D does too)
A line that ends in \\ goes on in the next one.";

/// Largest conversation that is loaded.
const MOST_FILE_BYTES: u64 = 64 << 20;

impl Chat<'_> {
    /// Runs what stands behind the slash. A command that fails says so and the conversation goes on.
    pub(super) fn command(&mut self, line: &str) -> Result<Next> {
        let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        let done = match name {
            "exit" | "quit" | "bye" => return Ok(Next::Leave),
            "help" | "?" => Ok(HELP.to_string()),
            "system" => self.system(rest),
            "clear" => self.clear(),
            "retry" => self.retry(),
            "set" => self.set(rest),
            "stats" => Ok(self.last.clone().unwrap_or_else(|| "no answer yet".to_string())),
            "sessions" => crate::sessions::list(self.house, false).map(|text| text.trim_end().to_string()),
            "save" => self.save(rest),
            "load" => self.load(rest),
            "export" => self.export(rest),
            "import" => self.import(rest),
            _ => Err(anyhow::anyhow!("there is no command /{name}; /help shows those there are")),
        };
        match done {
            Ok(text) if text.is_empty() => {}
            Ok(text) => term::note(&text),
            Err(problem) => term::error(&format!("{problem:#}")),
        }
        Ok(Next::Stay)
    }

    fn system(&mut self, text: &str) -> Result<String> {
        if text.is_empty() {
            return Ok(match self.messages.first().filter(|m| m.role == "system") {
                Some(message) => message.content.clone(),
                None => "no system message".to_string(),
            });
        }
        self.start_over(vec![Message::system(text)])?;
        Ok("system message set; the conversation starts over".to_string())
    }

    fn clear(&mut self) -> Result<String> {
        let system = self.messages.iter().filter(|m| m.role == "system").cloned().collect();
        self.start_over(system)?;
        Ok("the conversation starts over".to_string())
    }

    fn retry(&mut self) -> Result<String> {
        if self.messages.last().is_some_and(|m| m.role == "assistant") {
            self.messages.pop();
        }
        match self.messages.pop() {
            Some(question) if question.role == "user" => {
                self.turn(question.content);
                Ok(String::new())
            }
            other => {
                self.messages.extend(other);
                bail!("there is no question to answer again");
            }
        }
    }

    fn set(&mut self, text: &str) -> Result<String> {
        let (name, value) = text.split_once(|c: char| c.is_whitespace() || c == '=').unwrap_or((text, ""));
        let value = value.trim();
        if name.is_empty() {
            return Ok(self.settings());
        }
        let mut sampling = self.sampling.clone();
        match name {
            "temp" | "temperature" => sampling.temperature = number(name, value)?,
            "top-k" => sampling.top_k = number(name, value)?,
            "typical" => sampling.typical_p = number(name, value)?,
            "top-p" => sampling.top_p = number(name, value)?,
            "min-p" => sampling.min_p = number(name, value)?,
            "repeat-penalty" => sampling.repeat_penalty = number(name, value)?,
            "seed" if value == "random" => sampling.seed = None,
            "seed" => sampling.seed = Some(number(name, value)?),
            "max-tokens" => {
                let most: usize = number(name, value)?;
                if most == 0 {
                    bail!("max-tokens: expected at least 1");
                }
                self.args.max_tokens = Some(most);
            }
            _ => bail!("there is no setting '{name}'; /set shows those there are"),
        }
        sampling.validate(self.loaded.engine.front().vocab())?;
        self.sampling = sampling;
        Ok(self.settings())
    }

    fn settings(&self) -> String {
        let Sampling { temperature, top_k, typical_p, top_p, min_p, repeat_penalty, seed, .. } =
            &self.sampling;
        let seed = seed.map_or("random".to_string(), |s| s.to_string());
        let most = self.args.max_tokens.map_or("none".to_string(), |n| n.to_string());
        format!(
            "temp {temperature}, top-k {top_k}, typical {typical_p}, top-p {top_p}, min-p {min_p}, \
             repeat-penalty {repeat_penalty}, seed {seed}, max-tokens {most}"
        )
    }

    fn save(&mut self, name: &str) -> Result<String> {
        let name = session_name(name, "save", "export")?;
        let mut record = match self.record.take() {
            Some(record) => record,
            // --no-cache keeps nothing by itself; this asks for it.
            None => Record::unnamed(self.house)?,
        };
        let renamed = record.rename(name);
        self.record = Some(record);
        renamed?;
        let tokens = self.session.tokens().to_vec();
        self.keep(Some(&tokens));
        Ok(format!("this conversation is session {name} now"))
    }

    fn load(&mut self, name: &str) -> Result<String> {
        let name = session_name(name, "load", "import")?;
        let record = Record::open(self.house, name)?;
        if record.is_new() {
            bail!("there is no session {name}; /sessions lists those there are");
        }
        record.resume(&mut self.loaded);
        let (messages, unanswered) = record.messages();
        self.messages = messages;
        self.record = Some(record);
        self.greet(unanswered);
        Ok(String::new())
    }

    fn export(&self, file: &str) -> Result<String> {
        let path = path(file)?;
        let text = serde_json::to_vec_pretty(&self.messages)?;
        hob_files::store::write_atomic(path, &text).with_context(|| format!("writing {file}"))?;
        Ok(format!("{} messages written to {file}", self.messages.len()))
    }

    fn import(&mut self, file: &str) -> Result<String> {
        let path = path(file)?;
        let size = std::fs::metadata(path).with_context(|| format!("reading {file}"))?.len();
        if size > MOST_FILE_BYTES {
            bail!("{file} is too large for a conversation");
        }
        let text = std::fs::read(path).with_context(|| format!("reading {file}"))?;
        let messages = serde_json::from_slice(&text).with_context(|| {
            format!("{file} is not a conversation: a JSON array of {{\"role\", \"content\"}}")
        })?;
        self.start_over(messages)?;
        Ok(format!("{} messages read from {file}", self.messages.len()))
    }

    /// Goes on from `messages` as a conversation of its own: the one so far stays as it was recorded.
    fn start_over(&mut self, messages: Vec<Message>) -> Result<()> {
        if self.record.is_some() {
            self.record = Some(Record::unnamed(self.house)?);
        }
        self.messages = messages;
        Ok(())
    }
}

fn path(file: &str) -> Result<&Path> {
    if file.is_empty() {
        bail!("which file? /export FILE, /import FILE");
    }
    Ok(Path::new(file))
}

/// The name behind `/save` or `/load`; a path belongs to another command.
fn session_name<'a>(name: &'a str, command: &str, other: &str) -> Result<&'a str> {
    if name.is_empty() {
        bail!("which session? /{command} NAME; /sessions lists those there are");
    }
    if name.contains(['/', '\\']) || name.ends_with(".json") {
        bail!("'{name}' looks like a file: /{other} FILE; a session has a plain name");
    }
    Ok(name)
}

fn number<T: std::str::FromStr>(name: &str, text: &str) -> Result<T> {
    text.parse().map_err(|_| anyhow::anyhow!("{name}: expected a number, found '{text}'"))
}
