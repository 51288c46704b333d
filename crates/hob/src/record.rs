//! A conversation that is kept by name: what was said so far, and its place on disk. It must not print answers.

use anyhow::{Context, Result};
use hob_engine::{Transcript, Transcripts};
use hob_text::Message;

use crate::args::ModelArgs;
use crate::exit::UsageError;
use crate::house::{House, Loaded};
use crate::term;

/// Folder under `HOB_HOME`.
const SESSIONS_DIR: &str = "sessions";
/// Names that hob gives begin with this.
const UNNAMED: &str = "chat-";

/// The folder of conversations.
///
/// # Errors
/// It cannot be made.
pub fn transcripts(house: &House) -> Result<Transcripts> {
    Ok(Transcripts::open(&house.home().join(SESSIONS_DIR))?)
}

/// One conversation and where it is kept.
pub struct Record {
    transcripts: Transcripts,
    /// `None`: it gets a name when there is something to keep.
    name: Option<String>,
    /// As it was read or last written; `None`: it is new.
    stored: Option<Transcript>,
}

impl Record {
    /// The conversation `name`, which may be new.
    ///
    /// # Errors
    /// A name that cannot be one, or a file that cannot be read.
    pub fn open(house: &House, name: &str) -> Result<Self> {
        let transcripts = transcripts(house)?;
        let stored = transcripts.load(name)?;
        Ok(Self { transcripts, name: Some(name.to_string()), stored })
    }

    /// The conversation that was changed last.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub fn last(house: &House) -> Result<Self> {
        let files = transcripts(house)?.files()?;
        let Some(last) = files.first() else {
            anyhow::bail!("there is no conversation to continue yet: hob chat starts one");
        };
        Self::open(house, &last.name)
    }

    /// A new conversation, which gets a name when it is first stored.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn unnamed(house: &House) -> Result<Self> {
        Ok(Self { transcripts: transcripts(house)?, name: None, stored: None })
    }

    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The model it was recorded with, if that is known.
    pub fn model(&self) -> Option<&str> {
        self.stored.as_ref().map(|t| t.model.as_str()).filter(|m| !m.is_empty())
    }

    /// Whether there is nothing in it yet.
    pub fn is_new(&self) -> bool {
        self.stored.is_none()
    }

    /// What was said. A question that got no answer (the program was killed) is given separately.
    pub fn messages(&self) -> (Vec<Message>, Option<Message>) {
        let mut messages = self.stored.as_ref().map(|t| t.messages.clone()).unwrap_or_default();
        let unanswered = messages.pop_if(|m| m.role == "user");
        (messages, unanswered)
    }

    /// What was said, opened by `system` where that is given.
    ///
    /// # Errors
    /// The conversation has another system message already.
    pub fn messages_with(&self, system: Option<&str>) -> Result<(Vec<Message>, Option<Message>)> {
        let (mut messages, unanswered) = self.messages();
        let first = messages.first().filter(|m| m.role == "system");
        match (system, first) {
            (Some(asked), Some(said)) if said.content != asked => {
                let name = self.name.as_deref().unwrap_or_default();
                let text = format!(
                    "session {name} began with another system message; leave --system out, or give another --session name"
                );
                return Err(UsageError(text).into());
            }
            (Some(asked), None) if messages.is_empty() => messages.push(Message::system(asked)),
            (Some(_), None) => {
                let name = self.name.as_deref().unwrap_or_default();
                let text = format!(
                    "session {name} began without a system message; leave --system out, or give another --session name"
                );
                return Err(UsageError(text).into());
            }
            _ => {}
        }
        Ok((messages, unanswered))
    }

    /// Hands what is known of the timeline to the engine, or says why that is no use.
    pub fn resume(&self, loaded: &mut Loaded) {
        let Some(stored) = &self.stored else { return };
        if stored.model_id == loaded.plan.model_id {
            loaded.engine.remember(&stored.tokens);
            return;
        }
        let (name, recorded) = (self.name.as_deref().unwrap_or_default(), &stored.model);
        let what = match *recorded == loaded.source {
            true => "another version of this model".to_string(),
            false => recorded.clone(),
        };
        let now = &loaded.plan.model;
        term::note(&format!(
            "session {name} was recorded with {what}; {now} reads all of it anew and goes on"
        ));
    }

    /// Stores what was said, and the timeline it was said in; without one, the last that is known stays. Another program that changed the same conversation meanwhile keeps its own: this one goes on
    /// under a new name, which is said. A conversation without a question is not kept.
    ///
    /// # Errors
    /// What the disk says.
    pub fn store(&mut self, loaded: &Loaded, messages: &[Message], tokens: Option<&[u32]>) -> Result<()> {
        if !messages.iter().any(|m| m.role == "user") {
            return self.forget();
        }
        let known =
            || self.stored.as_ref().filter(|t| t.model_id == loaded.plan.model_id).map(|t| t.tokens.clone());
        let transcript = Transcript {
            messages: messages.to_vec(),
            tokens: tokens.map(<[u32]>::to_vec).or_else(known).unwrap_or_default(),
            model: loaded.source.clone(),
            model_id: loaded.plan.model_id.clone(),
        };
        let name = match self.name.take() {
            Some(name) if self.is_ours(&name)? => name,
            Some(taken) => {
                let name = self.fresh(&format!("{taken}-"))?;
                term::note(&format!(
                    "another hob changed session {taken}; this conversation goes on as {name}"
                ));
                name
            }
            None => self.fresh(UNNAMED)?,
        };
        let stored = self.transcripts.save(&name, &transcript);
        self.name = Some(name);
        stored.context("keeping the conversation")?;
        self.stored = Some(transcript);
        Ok(())
    }

    fn forget(&mut self) -> Result<()> {
        if let (Some(name), Some(_)) = (&self.name, &self.stored)
            && self.is_ours(name)?
        {
            self.transcripts.remove(name)?;
        }
        self.stored = None;
        Ok(())
    }

    /// From now on under `name`. What is stored under a name that the user gave stays.
    ///
    /// # Errors
    /// There is a conversation of that name, or it cannot be one.
    pub fn rename(&mut self, name: &str) -> Result<()> {
        if self.transcripts.load(name)?.is_some() {
            anyhow::bail!(
                "there is a session {name} already; take another name, or remove it: hob sessions rm {name}"
            );
        }
        if self.name.as_deref().is_some_and(|old| old.starts_with(UNNAMED)) {
            self.forget()?;
        }
        self.name = Some(name.to_string());
        self.stored = None;
        Ok(())
    }

    /// An error of a model that the user did not name says who did.
    pub fn explain(&self, error: anyhow::Error, args: &ModelArgs) -> anyhow::Error {
        match (&self.name, self.model()) {
            (Some(name), Some(_)) if args.model.is_none() => error.context(format!(
                "session {name} was recorded with this model; -m MODEL goes on with another"
            )),
            _ => error,
        }
    }

    /// Whether the file is as this program left it.
    fn is_ours(&self, name: &str) -> Result<bool> {
        Ok(self.transcripts.load(name)?.map(|t| t.messages)
            == self.stored.as_ref().map(|t| t.messages.clone()))
    }

    fn fresh(&self, stem: &str) -> Result<String> {
        let names = self.transcripts.names()?;
        let taken = names.iter().filter_map(|n| n.strip_prefix(stem)?.parse::<u64>().ok());
        Ok(format!("{stem}{}", taken.max().unwrap_or(0) + 1))
    }
}
