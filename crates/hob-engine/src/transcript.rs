//! Conversations kept by name: what was said, and the tokens it was said in, so that a session goes on after a restart
//! exactly where it stood. One private, checked file per name, written whole or not at all.
//!
//! It must not know models or state: a conversation is worth keeping even where its KV pages are gone.

use std::fs::DirBuilder;
use std::io;
use std::path::{Path, PathBuf};

use hob_files::store;
use hob_text::Message;
use serde::{Deserialize, Serialize};

/// One conversation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Transcript {
    /// What was said, in the order of a chat template.
    pub messages: Vec<Message>,
    /// The last timeline ([`crate::Session::tokens`]): replies as they were sampled. Empty where it is not known;
    /// hand it to [`crate::Engine::remember`] before the conversation goes on.
    pub tokens: Vec<u32>,
    /// The model that said it, for people; empty where it is not known.
    #[serde(default)]
    pub model: String,
    /// `ModelFile::model_id` of that model: tokens of another one mean nothing.
    #[serde(default)]
    pub model_id: String,
}

/// A stored conversation, without what was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TranscriptFile {
    pub name: String,
    pub modified: std::time::SystemTime,
    pub bytes: u64,
}

/// Why a conversation was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum TranscriptError {
    #[error(
        "session name {found:?}: expected 1 to {MAX_NAME} of the characters a-z A-Z 0-9 . _ -, not beginning with a dot"
    )]
    Name { found: String },
    #[error("cannot {action} {}: {source}", path.display())]
    Folder { action: &'static str, path: PathBuf, source: io::Error },
    #[error(transparent)]
    File(#[from] hob_files::FileError),
    #[error(
        "{}: this session cannot be read ({problem}); it was written by another version of hob: move the file away, \
         or give another name",
        path.display()
    )]
    Unreadable { path: PathBuf, problem: String },
}

type Result<T> = std::result::Result<T, TranscriptError>;

/// Longest name, in bytes.
const MAX_NAME: usize = 64;
/// Most bytes of a stored conversation: far more than any context holds.
const MAX_BYTES: u64 = 256 << 20;
/// What a file's payload says first.
const VERSION: u32 = 1;
const EXTENSION: &str = "session";

#[derive(Serialize, Deserialize)]
struct Stored<T> {
    version: u32,
    transcript: T,
}

/// A folder of conversations.
#[derive(Clone, Debug)]
pub struct Transcripts {
    dir: PathBuf,
}

impl Transcripts {
    /// Opens a folder and makes it if it is not there, for its owner only.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn open(dir: &Path) -> Result<Transcripts> {
        let mut builder = DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(dir).map_err(|source| TranscriptError::Folder {
            action: "make the folder",
            path: dir.to_path_buf(),
            source,
        })?;
        Ok(Transcripts { dir: dir.to_path_buf() })
    }

    /// The conversation of that name; `None` if there is none.
    ///
    /// # Errors
    /// A name that cannot be one; a file that is damaged, not ours to read, or of another version. Nothing is deleted.
    pub fn load(&self, name: &str) -> Result<Option<Transcript>> {
        let path = self.path(name)?;
        let Some(bytes) = store::read_checked(&path, MAX_BYTES)? else { return Ok(None) };
        let unreadable = |problem: String| TranscriptError::Unreadable { path: path.clone(), problem };
        let stored: Stored<Transcript> =
            serde_json::from_slice(&bytes).map_err(|e| unreadable(e.to_string()))?;
        if stored.version != VERSION {
            return Err(unreadable(format!("expected version {VERSION}, found {}", stored.version)));
        }
        Ok(Some(stored.transcript))
    }

    /// Stores the conversation durably; an earlier one of that name is replaced, or kept if this fails.
    ///
    /// # Errors
    /// A name that cannot be one; what the disk says.
    pub fn save(&self, name: &str, transcript: &Transcript) -> Result<()> {
        let path = self.path(name)?;
        let bytes = serde_json::to_vec(&Stored { version: VERSION, transcript })
            .map_err(|e| TranscriptError::Unreadable { path: path.clone(), problem: e.to_string() })?;
        Ok(store::write_checked(&path, &bytes)?)
    }

    /// Forgets a conversation; true if there was one.
    ///
    /// # Errors
    /// A name that cannot be one; what the disk says.
    pub fn remove(&self, name: &str) -> Result<bool> {
        let path = self.path(name)?;
        match std::fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(TranscriptError::Folder { action: "remove", path, source }),
        }
    }

    /// The names of all conversations, in order.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn names(&self) -> Result<Vec<String>> {
        let failed =
            |source| TranscriptError::Folder { action: "read the folder", path: self.dir.clone(), source };
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_stem().and_then(|s| s.to_str());
            if let Some(name) =
                name.filter(|n| path.extension().is_some_and(|e| e == EXTENSION) && is_name(n))
            {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// All conversations, the newest first.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn files(&self) -> Result<Vec<TranscriptFile>> {
        let mut files = Vec::new();
        for name in self.names()? {
            // One that goes away meanwhile is not there.
            let Ok(about) = std::fs::metadata(self.path(&name)?) else { continue };
            let modified = about.modified().unwrap_or(std::time::SystemTime::UNIX_EPOCH);
            files.push(TranscriptFile { name, modified, bytes: about.len() });
        }
        files.sort_by(|a, b| b.modified.cmp(&a.modified).then_with(|| a.name.cmp(&b.name)));
        Ok(files)
    }

    fn path(&self, name: &str) -> Result<PathBuf> {
        if !is_name(name) {
            return Err(TranscriptError::Name { found: name.to_owned() });
        }
        Ok(self.dir.join(format!("{name}.{EXTENSION}")))
    }
}

/// Names are file names on every system, and never a path.
fn is_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (1..=MAX_NAME).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hob_testkit::temp::TempDir;

    fn sample() -> Transcript {
        let messages =
            vec![Message::system("be kind"), Message::user("hi\n\"there\""), Message::assistant("ho")];
        Transcript { messages, tokens: vec![1, 2, u32::MAX], ..Transcript::default() }
    }

    #[test]
    fn what_was_saved_is_loaded_by_another_process() {
        let dir = TempDir::new("transcripts");
        let folder = dir.join("a/b");
        Transcripts::open(&folder).unwrap().save("work-1", &sample()).unwrap();
        let again = Transcripts::open(&folder).unwrap();
        assert_eq!(again.load("work-1").unwrap(), Some(sample()));
        assert_eq!(again.load("work-2").unwrap(), None);
        again.save("work-1", &Transcript::default()).unwrap();
        assert_eq!(again.load("work-1").unwrap(), Some(Transcript::default()));
        assert_eq!(again.names().unwrap(), ["work-1"]);
        assert!(again.remove("work-1").unwrap() && !again.remove("work-1").unwrap());
        assert_eq!(again.names().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn the_newest_conversation_comes_first() {
        let dir = TempDir::new("transcripts");
        let transcripts = Transcripts::open(dir.path()).unwrap();
        let hour = std::time::Duration::from_secs(3600);
        for (name, age) in [("b", 2), ("c", 0), ("a", 1)] {
            transcripts.save(name, &sample()).unwrap();
            let file =
                std::fs::File::options().append(true).open(dir.join(format!("{name}.session"))).unwrap();
            file.set_modified(std::time::SystemTime::now() - hour * age).unwrap();
        }
        let names: Vec<String> = transcripts.files().unwrap().into_iter().map(|f| f.name).collect();
        assert_eq!(names, ["c", "a", "b"]);
    }

    #[cfg(unix)]
    #[test]
    fn conversations_are_for_their_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let dir = TempDir::new("transcripts");
        let folder = dir.join("sessions");
        Transcripts::open(&folder).unwrap().save("x", &sample()).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&folder), mode(&folder.join("x.session"))), (0o700, 0o600));
    }

    #[test]
    fn a_name_is_never_a_path() {
        let dir = TempDir::new("transcripts");
        let transcripts = Transcripts::open(dir.path()).unwrap();
        let long = "x".repeat(65);
        for name in ["", ".", "..", "../up", "a/b", "a\\b", "c:", "nul\0", "é", ".hidden", &long] {
            assert!(matches!(transcripts.load(name), Err(TranscriptError::Name { .. })), "{name:?}");
            assert!(
                matches!(transcripts.save(name, &sample()), Err(TranscriptError::Name { .. })),
                "{name:?}"
            );
        }
    }

    #[test]
    fn a_damaged_conversation_is_an_error_and_stays_on_disk() {
        let dir = TempDir::new("transcripts");
        let transcripts = Transcripts::open(dir.path()).unwrap();
        transcripts.save("x", &sample()).unwrap();
        let path = dir.join("x.session");
        let stored = std::fs::read(&path).unwrap();
        for at in [0, stored.len() / 2, stored.len() - 1] {
            let mut bad = stored.clone();
            bad[at] ^= 1;
            std::fs::write(&path, &bad).unwrap();
            assert!(matches!(transcripts.load("x"), Err(TranscriptError::File(_))), "byte {at}");
            assert_eq!(std::fs::read(&path).unwrap(), bad);
        }
        let other = Stored { version: 2, transcript: sample() };
        store::write_checked(&path, &serde_json::to_vec(&other).unwrap()).unwrap();
        let error = transcripts.load("x").unwrap_err().to_string();
        assert!(error.contains("version 1") && error.contains('2') && error.contains("x.session"), "{error}");
    }
}
