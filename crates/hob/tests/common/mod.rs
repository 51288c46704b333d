//! Runs the binary with a home of its own and tiny models. Nothing here reaches a network or another program's models.
#![allow(dead_code)] // each test file uses its own part

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;

use hob_testkit::tiny::{TinySpec, f32_encode};

/// What a finished run left.
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// The run must have ended with `code`.
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e} in\n{}", self.stdout))
    }
}

impl From<Output> for Ran {
    fn from(out: Output) -> Self {
        Self {
            code: out.status.code().unwrap_or(-1),
            stdout: String::from_utf8(out.stdout).expect("stdout is UTF-8"),
            stderr: String::from_utf8(out.stderr).expect("stderr is UTF-8"),
        }
    }
}

/// The command with `home` as `HOB_HOME` and as home folder.
pub fn command(home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hob"));
    command.args(args);
    for name in [
        "HOB_MODEL",
        "HOB_ISA",
        "HOB_API_KEY",
        "HOB_CACHE_DIR",
        "HOB_CACHE_DISK",
        "HF_HOME",
        "HF_HUB_CACHE",
        "OLLAMA_MODELS",
        "XDG_DATA_HOME",
    ] {
        command.env_remove(name);
    }
    command.env("HOB_HOME", home).env("HOME", home).env("HF_HUB_OFFLINE", "1").env("NO_COLOR", "1");
    command
}

/// Runs to the end with nothing on stdin.
pub fn hob_in(home: &Path, args: &[&str]) -> Ran {
    command(home, args).stdin(Stdio::null()).output().expect("hob starts").into()
}

/// As [`hob_in`], in the home that all tests share, whose machine is measured once.
pub fn hob(args: &[&str]) -> Ran {
    hob_in(home(), args)
}

/// Runs to the end with `input` piped in.
pub fn hob_with(input: &[u8], args: &[&str]) -> Ran {
    let mut child = start(args);
    // A run that fails early does not read its input.
    let _ = child.stdin.take().expect("stdin").write_all(input);
    child.wait_with_output().expect("hob ends").into()
}

/// Starts with all three streams piped.
pub fn start(args: &[&str]) -> Child {
    command(home(), args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("hob starts")
}

struct Shared {
    dir: PathBuf,
    model: PathBuf,
}

/// In cargo's own folder for test files, so that nothing piles up elsewhere.
fn shared() -> &'static Shared {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    SHARED.get_or_init(|| {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("hob-cli");
        std::fs::create_dir_all(&dir).expect("folder");
        let model = dir.join("tiny.gguf");
        write_model(&TinySpec::llama(), &model);
        hob_in(&dir, &["plan"]).expect(0);
        Shared { dir, model }
    })
}

/// In one rename: another test process may be reading the one that is there.
pub fn write_model(spec: &TinySpec, path: &Path) {
    let fresh = path.with_extension(format!("{}.part", std::process::id()));
    spec.write_gguf(&fresh, &f32_encode).expect("tiny model");
    std::fs::rename(&fresh, path).expect("rename");
}

pub fn home() -> &'static Path {
    &shared().dir
}

/// Path of the tiny llama model (trained for 512 tokens).
pub fn model() -> &'static str {
    shared().model.to_str().expect("UTF-8 path")
}

/// A file in the shared home.
pub fn file(name: &str, content: &[u8]) -> String {
    let path = home().join(name);
    std::fs::write(&path, content).expect("file");
    path.to_str().expect("UTF-8 path").to_string()
}

/// Bytes of the tiny model.
pub fn model_bytes() -> Vec<u8> {
    std::fs::read(model()).expect("tiny model")
}

/// Sends SIGINT, as Ctrl-C does.
#[cfg(unix)]
pub fn interrupt(child: &Child) {
    let status = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill");
    assert!(status.success());
}
