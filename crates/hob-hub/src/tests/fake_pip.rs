//! A shell script that answers to `python3 -m pip download ...`, and wheels for it to deliver.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use zip::write::SimpleFileOptions;

use super::support::*;
use crate::{Hub, Source, WheelSource};

/// Makes an executable script; `$DEST` is the folder that pip was told to download to, `$ARGS` everything it
/// was told.
pub fn python(dir: &TempDir, name: &str, body: &str) -> PathBuf {
    let script = format!(
        "#!/bin/sh\nARGS=\"$*\"\nDEST=\nwhile [ $# -gt 0 ]; do\n  if [ \"$1\" = --dest ]; then DEST=$2; fi\n  shift\ndone\n{body}\n"
    );
    let path = dir.path().join(name);
    // Another process writes it: a descriptor of ours, still open for writing in a child that some other test
    // is just forking, would make the script "busy".
    let mut writer = Command::new("sh")
        .args(["-c", "cat > \"$0\" && chmod 755 \"$0\""])
        .arg(&path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    writer.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(writer.wait().unwrap().success());
    path
}

/// A zip with these files, compressed as pip's wheels are.
pub fn wheel(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
    for (name, bytes) in files {
        zip.start_file(*name, options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

pub const MEMBER: &str = "some_model/Some.Q4_1.gguf";

/// The source that describes `wheel` and the model inside.
pub fn source(wheel: &[u8], model: &[u8]) -> WheelSource {
    WheelSource {
        package: "some-model",
        version: "1.2.3",
        wheel_bytes: wheel.len() as u64,
        wheel_sha256: leak(sha256(wheel)),
        member: MEMBER,
        bytes: model.len() as u64,
        sha256: leak(sha256(model)),
    }
}

pub fn model_of(source: WheelSource) -> crate::Entry {
    entry("some-model", vec![Source::Wheel(source)])
}

/// A hub whose Pythons are these.
pub fn hub_with(dir: &TempDir, interpreters: Vec<PathBuf>) -> Hub {
    let mut settings = quiet_settings();
    settings.pip.interpreters = interpreters;
    Hub::with_settings(dir.path().join("home"), settings)
}
