//! Timelines: what Perfetto is given, and what it comes to.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use common::*;
use hob_engine::*;
use hob_files::ModelFile;
use hob_model::{Layout, ModelInfo};
use serde_json::Value;

/// A file that can be looked at, and that fails after so many bytes.
#[derive(Clone)]
struct Shared {
    bytes: Arc<Mutex<Vec<u8>>>,
    room: usize,
}

impl Write for Shared {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let mut bytes = self.bytes.lock().unwrap();
        if bytes.len() + data.len() > self.room {
            return Err(io::Error::other("the test's disk is full"));
        }
        bytes.extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Traced {
    text: String,
    report: io::Result<TraceSummary>,
    outcomes: Vec<Outcome>,
}

/// Two replies under a timeline, on a file with room for so many bytes.
fn traced(file: &Arc<ModelFile>, room: usize) -> Traced {
    let config = RuntimeConfig { threads: Some(2), profile: true, ..RuntimeConfig::default() };
    let mut engine = load(&Runtime::new(&config).unwrap(), file, layout(2, 32));
    let out = Shared { bytes: Arc::default(), room };
    let report = Arc::new(Mutex::new(None));
    let kept = Arc::clone(&report);
    engine.set_trace(Trace::new(Box::new(out.clone())), move |result| *kept.lock().unwrap() = Some(result));
    let ids = [submit(&mut engine, &greedy(prompt(1, 40), 6)), submit(&mut engine, &greedy(prompt(2, 3), 9))];
    let outcomes = run_all(&mut engine, &ids).into_iter().map(|end| end.result.unwrap()).collect();
    drop(engine);
    let text = String::from_utf8(out.bytes.lock().unwrap().clone()).unwrap();
    let report = report.lock().unwrap().take().expect("the end of the engine ends the timeline");
    Traced { text, report, outcomes }
}

/// Begin, end (nanoseconds) and the event, by process and track.
type Tracks = BTreeMap<(u64, u64), Vec<(u64, u64, Value)>>;

/// The complete events by track, and the tracks' names.
fn tracks(text: &str) -> (Tracks, BTreeMap<(u64, u64), String>) {
    let events: Vec<Value> = serde_json::from_str(text).expect("JSON");
    let (mut spans, mut names) = (Tracks::new(), BTreeMap::new());
    for event in events {
        let track = (event["pid"].as_u64().unwrap(), event["tid"].as_u64().unwrap());
        match event["ph"].as_str().unwrap() {
            "M" if event["name"] == "thread_name" => {
                names.insert(track, event["args"]["name"].as_str().unwrap().to_owned());
            }
            "M" => assert_eq!(event["name"], "process_name"),
            "X" => {
                let nanos = |key: &str| (event[key].as_f64().unwrap() * 1e3).round() as u64;
                let (from, to) = (nanos("ts"), nanos("ts") + nanos("dur"));
                spans.entry(track).or_default().push((from, to, event));
            }
            other => panic!("an event of kind {other}"),
        }
    }
    (spans, names)
}

fn verbs(spans: &[(u64, u64, Value)]) -> BTreeSet<&str> {
    spans.iter().map(|s| s.2["cat"].as_str().unwrap()).collect()
}

#[test]
fn a_timeline_shows_every_phase_and_verb_in_order() {
    let tiny = Tiny::new();
    let traced = traced(&tiny.file, usize::MAX);
    let (spans, names) = tracks(&traced.text);
    let of = |name: &str| *names.iter().find(|(_, n)| n.as_str() == name).expect(name).0;
    let device = *names.iter().find(|(_, n)| n.starts_with("device 0: cpu ")).expect("the device").0;
    assert_eq!(names.len(), 4, "{names:?}");
    for (track, spans) in &spans {
        for pair in spans.windows(2) {
            assert!(pair[0].1 <= pair[1].0, "{}: {} and {} overlap", names[track], pair[0].2, pair[1].2);
        }
    }
    // A device that runs at once does so within the step's run.
    let runs = &spans[&of("run")];
    let inside = |s: &(u64, u64, Value)| runs.iter().any(|r| r.0 <= s.0 && s.1 <= r.1);
    assert!(spans[&device].iter().all(inside), "verbs lie within the phase that ran them");
    assert_eq!(spans[&of("settle")].len(), runs.len());
    assert!(spans[&of("schedule")].len() >= runs.len());
    let seen = verbs(&spans[&device]);
    for verb in ["embed", "norm", "linear", "rope", "append_kv", "attend", "map", "pick"] {
        assert!(seen.contains(verb), "{verb} is missing among {seen:?}");
    }
    let named: BTreeSet<&str> = spans[&device].iter().map(|s| s.2["name"].as_str().unwrap()).collect();
    assert!(named.contains("linear blk.0.ffn_gate + blk.0.ffn_up"), "{named:?}");
    for (_, _, span) in &spans[&device] {
        assert!(span["args"]["bytes"].as_u64().unwrap() > 0 && span["args"]["GB/s"].is_f64(), "{span}");
    }
    // Every pass reads all matrices, and the head where there are logits.
    let info = ModelInfo::read(&tiny.file).unwrap();
    let linear = spans[&device].iter().filter(|s| s.2["cat"] == "linear");
    let bytes: u64 = linear.map(|s| s.2["args"]["bytes"].as_u64().unwrap()).sum();
    let pass = info.bytes_per_token(0, &Layout::new(1).kv);
    assert!(
        bytes > pass * 9 && bytes < pass * runs.len() as u64 * 2,
        "{bytes} in {} passes of {pass}",
        runs.len()
    );
    // The same tokens as without.
    let mut plain = tiny.engine(layout(2, 32));
    for (outcome, asked) in traced.outcomes.iter().zip([greedy(prompt(1, 40), 6), greedy(prompt(2, 3), 9)]) {
        assert_eq!(outcome.tokens, alone(&mut plain, &asked).tokens);
    }
}

#[test]
fn the_verbs_of_mixtures_and_recurrent_layers_are_there() {
    let mut seen = BTreeSet::new();
    for name in ["qwen3_moe", "lfm2_moe", "gemma2"] {
        let (spans, names) = tracks(&traced(&reference_model(name), usize::MAX).text);
        let device = names.iter().find(|(_, n)| n.starts_with("device")).expect("the device").0;
        seen.extend(verbs(&spans[device]).into_iter().map(str::to_owned));
    }
    for verb in ["route", "experts", "short_conv", "map"] {
        assert!(seen.contains(verb), "{verb} is missing among {seen:?}");
    }
}

#[test]
fn the_summary_adds_up() {
    let table = traced(&Tiny::new().file, usize::MAX).report.unwrap().to_string();
    let lines: Vec<Vec<&str>> = table.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["verb", "calls", "ms", "GB/s", "share"]);
    let share = |l: &Vec<&str>| l[4].trim_end_matches('%').parse::<f64>().unwrap();
    let sum: f64 = lines[1..].iter().map(share).sum();
    assert!((sum - 100.0).abs() < 1.0, "{table}");
    let millis: Vec<f64> = lines[1..].iter().map(|l| l[2].parse().unwrap()).collect();
    assert!(millis.is_sorted_by(|a, b| a >= b), "the longest first: {table}");
    let calls = |verb: &str| lines.iter().find(|l| l[0] == verb).unwrap()[1].parse::<u64>().unwrap();
    // Per layer one, and as many embeds as passes.
    let layers = ModelInfo::read(&Tiny::new().file).unwrap().config.layers.len() as u64;
    assert_eq!(calls("attend"), calls("embed") * layers);
}

/// A disk that fills up costs the timeline, never the replies; what was written opens up to there.
#[test]
fn a_full_disk_cuts_a_timeline_off() {
    let tiny = Tiny::new();
    for room in [0, 1, 9000, 20_000] {
        let traced = traced(&tiny.file, room);
        assert!(traced.report.unwrap_err().to_string().contains("full"), "{room}");
        assert_eq!(traced.outcomes.len(), 2);
        assert!(traced.outcomes.iter().all(|o| o.finish == Finish::Length));
        let whole = traced.text.rfind(",\n").map(|end| format!("{}]", &traced.text[..end]));
        assert!(whole.is_none_or(|text| serde_json::from_str::<Value>(&text).is_ok()), "{room}");
    }
}

#[test]
fn a_device_without_a_clock_shows_the_phases() {
    let tiny = Tiny::new();
    let watched = Watched::asynchronous(ModelInfo::read(&tiny.file).unwrap().config.vocab);
    let mut engine = tiny.engine_on(&watched.runtime, layout(1, 32));
    let out = Shared { bytes: Arc::default(), room: usize::MAX };
    let table = Arc::new(Mutex::new(String::new()));
    let kept = Arc::clone(&table);
    engine.set_trace(Trace::new(Box::new(out.clone())), move |result| {
        *kept.lock().unwrap() = result.unwrap().to_string();
    });
    alone(&mut engine, &greedy(prompt(1, 40), 6));
    drop(engine);
    let (spans, names) = tracks(&String::from_utf8(out.bytes.lock().unwrap().clone()).unwrap());
    assert_eq!((spans.len(), names.len()), (3, 3), "{names:?}");
    assert!(table.lock().unwrap().contains("no verb was timed"));
}
