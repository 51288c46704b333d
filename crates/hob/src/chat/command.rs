//! The commands of `hob chat`: `/help`, `/system`, `/clear`, `/retry`, `/save`, `/load`, `/stats`, `/set`, `/exit`.

use std::path::Path;

use anyhow::{Context, Result, bail};
use hob_engine::Sampling;
use hob_text::Message;

use super::{Chat, Next};
use crate::term;

const HELP: &str = "\
/system [TEXT]     show or set the system message (starts over)
/clear             forget the conversation, keep the system message
/retry             another answer to the last question
/set [NAME VALUE]  show or change temp, top-k, top-p, min-p, repeat-penalty, seed, max-tokens
/stats             figures of the last answer
/save FILE         write the conversation as JSON
/load FILE         go on with a saved conversation
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
            "system" => Ok(self.system(rest)),
            "clear" => Ok(self.clear()),
            "retry" => self.retry(),
            "set" => self.set(rest),
            "stats" => Ok(self.last.clone().unwrap_or_else(|| "no answer yet".to_string())),
            "save" => self.save(rest),
            "load" => self.load(rest),
            _ => Err(anyhow::anyhow!("there is no command /{name}; /help shows those there are")),
        };
        match done {
            Ok(text) if text.is_empty() => {}
            Ok(text) => term::note(&text),
            Err(problem) => term::error(&format!("{problem:#}")),
        }
        Ok(Next::Stay)
    }

    fn system(&mut self, text: &str) -> String {
        if text.is_empty() {
            return match self.messages.first().filter(|m| m.role == "system") {
                Some(message) => message.content.clone(),
                None => "no system message".to_string(),
            };
        }
        self.messages = vec![Message::system(text)];
        "system message set; the conversation starts over".to_string()
    }

    fn clear(&mut self) -> String {
        self.messages.retain(|m| m.role == "system");
        "the conversation starts over".to_string()
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

    fn save(&self, file: &str) -> Result<String> {
        let path = path(file)?;
        let text = serde_json::to_vec_pretty(&self.messages)?;
        hob_files::store::write_atomic(path, &text).with_context(|| format!("saving to {file}"))?;
        Ok(format!("{} messages saved to {file}", self.messages.len()))
    }

    fn load(&mut self, file: &str) -> Result<String> {
        let path = path(file)?;
        let size = std::fs::metadata(path).with_context(|| format!("loading {file}"))?.len();
        if size > MOST_FILE_BYTES {
            bail!("{file} is too large for a conversation");
        }
        let text = std::fs::read(path).with_context(|| format!("loading {file}"))?;
        self.messages = serde_json::from_slice(&text).with_context(|| {
            format!("{file} is not a conversation: a JSON array of {{\"role\", \"content\"}}")
        })?;
        Ok(format!("{} messages loaded from {file}", self.messages.len()))
    }
}

fn path(file: &str) -> Result<&Path> {
    if file.is_empty() {
        bail!("which file? /save FILE, /load FILE");
    }
    Ok(Path::new(file))
}

fn number<T: std::str::FromStr>(name: &str, text: &str) -> Result<T> {
    text.parse().map_err(|_| anyhow::anyhow!("{name}: expected a number, found '{text}'"))
}
