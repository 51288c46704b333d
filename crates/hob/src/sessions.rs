//! `hob sessions`: recorded conversations, listed, shown and removed. Works without a model.

use std::time::SystemTime;

use anyhow::Result;
use hob_engine::{Transcript, TranscriptFile};
use hob_plan::units::show_count;
use serde_json::json;

use crate::args::{SessionsArgs, SessionsTool};
use crate::exit;
use crate::house::House;
use crate::record;
use crate::term;

/// Characters of the first question that are shown.
const OPENING: usize = 48;

pub fn sessions(house: &House, args: &SessionsArgs) -> Result<i32> {
    let text = match args.tool.clone().unwrap_or(SessionsTool::List) {
        SessionsTool::List => list(house, args.json)?,
        SessionsTool::Show { name } => show(house, &name, args.json)?,
        SessionsTool::Rm { names } => remove(house, &names, args.json)?,
    };
    term::print(&text)?;
    Ok(exit::OK)
}

/// A line for every conversation, the newest first.
pub fn list(house: &House, json: bool) -> Result<String> {
    let transcripts = record::transcripts(house)?;
    let files = transcripts.files()?;
    // One that cannot be read is listed all the same: it can be removed.
    let read: Vec<_> = files.iter().map(|f| (f, transcripts.load(&f.name).ok().flatten())).collect();
    if json {
        let all: Vec<_> = read.iter().map(|(file, talk)| as_json(file, talk.as_ref())).collect();
        return Ok(format!("{:#}\n", json!({ "sessions": all })));
    }
    if read.is_empty() {
        return Ok(
            "no sessions yet: hob chat keeps its conversations, hob run --session NAME keeps its own\n"
                .into(),
        );
    }
    let width = read.iter().map(|(f, _)| f.name.len()).max().unwrap_or(0).max(4);
    let mut out =
        format!("{:<width$}  {:>7}  {:>7}  {:<14} begins with\n", "name", "turns", "tokens", "last used");
    for (file, talk) in &read {
        let age = age(file.modified.elapsed().map_or(0, |d| d.as_secs()));
        match talk {
            Some(talk) => {
                let (turns, tokens) = (turns(talk), show_count(talk.tokens.len() as u64));
                let opening = opening(talk);
                out.push_str(&format!(
                    "{:<width$}  {turns:>7}  {tokens:>7}  {age:<14} {opening}\n",
                    file.name
                ));
            }
            None => {
                out.push_str(&format!(
                    "{:<width$}  {:>7}  {:>7}  {age:<14} (cannot be read)\n",
                    file.name, "-", "-"
                ));
            }
        }
    }
    Ok(out)
}

fn show(house: &House, name: &str, json: bool) -> Result<String> {
    let Some(talk) = record::transcripts(house)?.load(name)? else { return Err(unknown(name)) };
    if json {
        let all = json!({ "name": name, "model": talk.model, "messages": talk.messages });
        return Ok(format!("{all:#}\n"));
    }
    let mut out = String::new();
    for message in &talk.messages {
        let text = term::printable_lines(&message.content);
        out.push_str(&format!("{}:\n{text}\n\n", message.role));
    }
    Ok(out)
}

fn remove(house: &House, names: &[String], json: bool) -> Result<String> {
    let transcripts = record::transcripts(house)?;
    for name in names {
        if !transcripts.remove(name)? {
            return Err(unknown(name));
        }
        if !json {
            term::note(&format!(
                "removed session {name}; its KV leaves the disk cache with time, or with hob cache clear"
            ));
        }
    }
    Ok(if json { format!("{:#}\n", json!({ "removed": names })) } else { String::new() })
}

fn unknown(name: &str) -> anyhow::Error {
    anyhow::anyhow!("there is no session {name}; hob sessions lists those there are")
}

fn as_json(file: &TranscriptFile, talk: Option<&Transcript>) -> serde_json::Value {
    let unix = file.modified.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    json!({
        "name": file.name, "modified_unix": unix, "bytes": file.bytes, "readable": talk.is_some(),
        "model": talk.map(|t| &t.model), "turns": talk.map(turns), "tokens": talk.map(|t| t.tokens.len()),
    })
}

fn turns(talk: &Transcript) -> usize {
    talk.messages.iter().filter(|m| m.role == "user").count()
}

/// The first question on one line, cut.
fn opening(talk: &Transcript) -> String {
    let text = talk.messages.iter().find(|m| m.role == "user").map_or("", |m| m.content.as_str());
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let cut: String = term::printable(&line).chars().take(OPENING).collect();
    if cut.len() < line.len() { format!("{cut}...") } else { cut }
}

/// `just now`, `5 min ago`, `3 h ago`, `12 days ago`.
pub fn age(seconds: u64) -> String {
    match seconds {
        0..60 => "just now".to_string(),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_told_in_the_unit_people_use() {
        let told = [age(5), age(61), age(3 * 3600 + 5), age(3 * 86_400 + 5)];
        assert_eq!(told, ["just now", "1 min ago", "3 h ago", "3 days ago"]);
    }
}
