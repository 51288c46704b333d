//! What runs on this machine really reached, by model and thread count. Owns `HOB_HOME/history.json`; it must not know
//! how a forecast uses it.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::PlanError;

/// File under `HOB_HOME`.
pub const HISTORY_FILE: &str = "history.json";
/// Models x thread counts kept; the least recently used goes first.
const ENTRIES: usize = 256;
/// Runs kept per entry, newest last.
const RUNS: usize = 16;
/// Shortest decode that says anything about speed.
pub const LEAST_DECODE_TOKENS: usize = 16;
/// Shortest prefill that does.
pub const LEAST_PREFILL_TOKENS: usize = 64;

/// Which runs are comparable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// `ModelFile::model_id`.
    pub model: String,
    pub isa: String,
    pub threads: usize,
}

/// What runs of one key reached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    #[serde(flatten)]
    pub key: Key,
    /// Decode, in 10^9 bytes read per second.
    pub decode: Vec<Speed>,
    /// Prefill, in 10^9 multiply-adds per second.
    pub prefill: Vec<Speed>,
    pub last_unix: u64,
}

/// What was reached, beside what the constants alone had foretold.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    pub actual: f64,
    pub predicted: f64,
}

impl Speed {
    pub fn ratio(&self) -> f64 {
        self.actual / self.predicted
    }

    fn is_sane(&self) -> bool {
        [self.actual, self.predicted].iter().all(|v| v.is_finite() && *v > 0.0)
    }
}

/// One run, measured. `None`: too short to tell.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct Run {
    pub decode: Option<Speed>,
    pub prefill: Option<Speed>,
}

/// All entries.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    entries: Vec<Entry>,
}

impl History {
    /// A missing or damaged history is an empty one.
    pub fn load(home: &Path) -> Self {
        std::fs::read(home.join(HISTORY_FILE))
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default()
    }

    pub fn find(&self, key: &Key) -> Option<&Entry> {
        self.entries.iter().find(|e| e.key == *key)
    }

    /// Adds one run; the oldest runs and entries make room.
    pub fn add(&mut self, key: &Key, run: Run) {
        let (decode, prefill) = (run.decode.filter(Speed::is_sane), run.prefill.filter(Speed::is_sane));
        if decode.is_none() && prefill.is_none() {
            return;
        }
        let at = self.entries.iter().position(|e| e.key == *key);
        let mut entry = at.map(|i| self.entries.remove(i)).unwrap_or_else(|| Entry {
            key: key.clone(),
            decode: Vec::new(),
            prefill: Vec::new(),
            last_unix: 0,
        });
        push_bounded(&mut entry.decode, decode);
        push_bounded(&mut entry.prefill, prefill);
        entry.last_unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        self.entries.insert(0, entry);
        self.entries.truncate(ENTRIES);
    }

    /// Adds one run to the file. Two processes at once: one of the two runs may be lost, the file stays whole.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn record(home: &Path, key: &Key, run: Run) -> Result<(), PlanError> {
        let path = home.join(HISTORY_FILE);
        let failed = |problem: String| PlanError::History { path: path.clone(), problem };
        let mut history = Self::load(home);
        history.add(key, run);
        let bytes = serde_json::to_vec(&history).map_err(|e| failed(e.to_string()))?;
        std::fs::create_dir_all(home).map_err(|e| failed(e.to_string()))?;
        hob_files::store::write_atomic(&path, &bytes).map_err(|e| failed(e.to_string()))
    }
}

fn push_bounded(values: &mut Vec<Speed>, value: Option<Speed>) {
    values.extend(value);
    let surplus = values.len().saturating_sub(RUNS);
    values.drain(..surplus);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::fake_root;

    fn key(model: &str) -> Key {
        Key { model: model.into(), isa: "avx2".into(), threads: 2 }
    }

    fn run(actual: f64) -> Run {
        Run { decode: Some(Speed { actual, predicted: 1.0 }), prefill: None }
    }

    fn actual(speeds: &[Speed]) -> Vec<f64> {
        speeds.iter().map(|s| s.actual).collect()
    }

    #[test]
    fn runs_survive_a_restart() {
        let dir = fake_root("history-restart", &[]);
        let home = dir.join("not/yet");
        History::record(&home, &key("a"), run(0.7)).expect("record");
        let prefill = Some(Speed { actual: 90.0, predicted: 60.0 });
        History::record(&home, &key("a"), Run { prefill, ..run(0.8) }).expect("record");
        History::record(&home, &key("b"), run(0.5)).expect("record");
        let history = History::load(&home);
        let entry = history.find(&key("a")).expect("a");
        assert_eq!(actual(&entry.decode), [0.7, 0.8]);
        assert_eq!(entry.prefill.iter().map(Speed::ratio).collect::<Vec<_>>(), [1.5]);
        assert_eq!(history.find(&Key { threads: 1, ..key("a") }), None);
    }

    #[test]
    fn it_stays_small() {
        let mut history = History::default();
        for i in 0..ENTRIES + 50 {
            history.add(&key(&i.to_string()), run(0.5));
        }
        assert_eq!(history.entries.len(), ENTRIES);
        assert!(history.find(&key("0")).is_none());
        for i in 0..RUNS + 5 {
            history.add(&key("300"), run(1.0 + i as f64));
        }
        let speeds = actual(&history.find(&key("300")).expect("entry").decode);
        assert_eq!(speeds.len(), RUNS);
        assert_eq!(speeds[RUNS - 1], RUNS as f64 + 5.0);
    }

    #[test]
    fn nonsense_is_not_learned() {
        let mut history = History::default();
        for bad in [f64::NAN, f64::INFINITY, 0.0, -1.0] {
            history.add(&key("a"), run(bad));
            history
                .add(&key("a"), Run { decode: Some(Speed { actual: 1.0, predicted: bad }), prefill: None });
        }
        history.add(&key("a"), Run::default());
        assert_eq!(history, History::default());
    }

    #[test]
    fn a_damaged_file_is_an_empty_history() {
        let dir = fake_root("history-damaged", &[(HISTORY_FILE, "{\"entries\": [{\"model\": 1}]}")]);
        let home = dir.path().to_path_buf();
        assert_eq!(History::load(&home), History::default());
        History::record(&home, &key("a"), run(0.7)).expect("record");
        assert!(History::load(&home).find(&key("a")).is_some());
    }

    #[test]
    fn a_home_that_is_a_file_is_an_error_with_its_name() {
        let dir = fake_root("history-file", &[("home", "x")]);
        let home = dir.join("home");
        let error = History::record(&home, &key("a"), run(0.7)).expect_err("a file is no folder");
        assert!(error.to_string().contains(HISTORY_FILE), "{error}");
    }
}
