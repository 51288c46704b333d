//! A timeline for Perfetto or chrome://tracing, and what it comes to per verb. It must not know who measures, nor why.
//!
//! Events are written as they come, in the JSON array form of the Trace Event Format, so that hours of serving take no
//! memory and a file that was cut off still opens. One track per phase of the engine, one per device.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use hob_compute::{Compute, DeviceInfo, Span, now_nanos};
use serde_json::json;

/// The two groups of tracks.
const ENGINE: u32 = 1;
const DEVICES: u32 = 2;

/// A timeline that is being written.
pub struct Trace {
    out: BufWriter<Box<dyn Write + Send>>,
    /// The first failure; nothing is written after it.
    problem: Option<io::Error>,
    begun: bool,
    /// Spans on their way from the device.
    spans: Vec<Span>,
    phases: Vec<&'static str>,
    devices: BTreeMap<usize, Total>,
    verbs: BTreeMap<(usize, &'static str), Total>,
}

#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
struct Total {
    calls: u64,
    nanos: u64,
    bytes: u64,
}

impl Total {
    fn add(&mut self, span: &Span) {
        self.calls += 1;
        self.nanos += span.nanos;
        self.bytes += span.bytes;
    }
}

impl Trace {
    /// Begins a timeline in a file, which is replaced if it exists.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn create(path: &Path) -> io::Result<Trace> {
        Ok(Self::new(Box::new(File::create(path)?)))
    }

    pub fn new(out: Box<dyn Write + Send>) -> Trace {
        // The clock begins here at the latest.
        now_nanos();
        Trace {
            out: BufWriter::new(out),
            problem: None,
            begun: false,
            spans: Vec::new(),
            phases: Vec::new(),
            devices: BTreeMap::new(),
            verbs: BTreeMap::new(),
        }
    }

    /// A phase that began at `since` ([`now_nanos`]) and is over.
    pub fn phase(&mut self, name: &'static str, since: u64) {
        let known = self.phases.iter().position(|&phase| phase == name);
        let track = known.unwrap_or(self.phases.len()) as u32;
        if known.is_none() {
            self.phases.push(name);
            self.name(ENGINE, track, name);
        }
        let nanos = now_nanos().saturating_sub(since);
        self.write(&json!({
            "name": name, "cat": "engine", "ph": "X", "pid": ENGINE, "tid": track,
            "ts": micros(since), "dur": micros(nanos),
        }));
    }

    /// Takes what the device has finished.
    pub fn collect(&mut self, device: &mut dyn Compute) {
        let mut spans = std::mem::take(&mut self.spans);
        device.take_spans(&mut spans);
        // Verbs of one device follow one another, but devices with queues of their own report late.
        spans.sort_by_key(|span| (span.start_nanos, span.device));
        for span in &spans {
            if !self.devices.contains_key(&span.device) {
                self.name(DEVICES, span.device as u32, &describe(device.info(), span.device));
            }
            self.span(span);
        }
        spans.clear();
        self.spans = spans;
    }

    fn span(&mut self, span: &Span) {
        self.devices.entry(span.device).or_default().add(span);
        self.verbs.entry((span.device, span.verb)).or_default().add(span);
        let name = format!("{} {}", span.verb, span.detail);
        self.write(&json!({
            "name": name.trim_end(), "cat": span.verb, "ph": "X", "pid": DEVICES, "tid": span.device,
            "ts": micros(span.start_nanos), "dur": micros(span.nanos),
            "args": { "verb": span.verb, "bytes": span.bytes, "GB/s": rate(span.bytes, span.nanos) },
        }));
    }

    /// Names a track.
    fn name(&mut self, process: u32, track: u32, name: &str) {
        let group = if process == ENGINE { "engine" } else { "devices" };
        for (kind, track, name) in [("process_name", 0, group), ("thread_name", track, name)] {
            self.write(&json!({
                "name": kind, "ph": "M", "pid": process, "tid": track, "args": { "name": name },
            }));
        }
    }

    fn write(&mut self, event: &serde_json::Value) {
        if self.problem.is_some() {
            return;
        }
        let before = if self.begun { ",\n" } else { "[\n" };
        self.begun = true;
        self.problem = write!(self.out, "{before}{event}").err();
    }

    /// Closes the file.
    ///
    /// # Errors
    /// That some of it could not be written.
    pub fn finish(mut self) -> io::Result<TraceSummary> {
        if let Some(problem) = self.problem {
            return Err(problem);
        }
        self.out.write_all(if self.begun { b"\n]\n" } else { b"[]\n" })?;
        self.out.flush()?;
        let mut lines: Vec<Line> = Vec::new();
        for (&(device, verb), &total) in &self.verbs {
            let all = self.devices.get(&device).map_or(0, |t| t.nanos);
            let share = if all > 0 { total.nanos as f64 / all as f64 } else { 0.0 };
            lines.push(Line { device, verb, total, share });
        }
        lines.sort_by_key(|line| (line.device, std::cmp::Reverse(line.total.nanos)));
        Ok(TraceSummary { lines })
    }
}

/// What a timeline comes to, per device and verb; shows as a table.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceSummary {
    lines: Vec<Line>,
}

#[derive(Clone, Debug, PartialEq)]
struct Line {
    device: usize,
    verb: &'static str,
    total: Total,
    /// Of the time in which the device did anything.
    share: f64,
}

impl fmt::Display for TraceSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.lines.is_empty() {
            return write!(f, "no verb was timed: the device has no clock for them");
        }
        let several = self.lines.iter().any(|line| line.device > 0);
        write!(f, "{:<15} {:>9} {:>11} {:>9} {:>7}", "verb", "calls", "ms", "GB/s", "share")?;
        for Line { device, verb, total, share } in &self.lines {
            let verb = if several { format!("{device}:{verb}") } else { (*verb).to_owned() };
            let Total { calls, nanos, bytes } = *total;
            let (ms, rate, percent) = (nanos as f64 / 1e6, rate(bytes, nanos), 100.0 * share);
            write!(f, "\n{verb:<15} {calls:>9} {ms:>11.2} {rate:>9.2} {percent:>6.1}%")?;
        }
        Ok(())
    }
}

fn describe(info: &DeviceInfo, device: usize) -> String {
    let DeviceInfo { kind, isa, threads, adapter, .. } = info;
    let what = if adapter.is_empty() { format!("{kind} {isa}, {threads} threads") } else { adapter.clone() };
    format!("device {device}: {what}")
}

fn micros(nanos: u64) -> f64 {
    nanos as f64 / 1e3
}

/// In GB/s: bytes per nanosecond.
fn rate(bytes: u64, nanos: u64) -> f64 {
    let rate = if nanos > 0 { bytes as f64 / nanos as f64 } else { 0.0 };
    (rate * 100.0).round() / 100.0
}
