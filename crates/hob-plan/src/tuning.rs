//! The tuning table of a machine: knobs of the kernels, and the threads to decode with, found once by measuring. Owns its
//! place in the machine's cache; what the knobs do is `hob-cpu`'s.

use std::time::{SystemTime, UNIX_EPOCH};

use hob_cpu::linear::{self, Tuning};
use hob_cpu::tune;
use serde::{Deserialize, Serialize};

use crate::units::show_figures;

/// One value of one knob, as it was tried.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    pub knob: String,
    pub value: usize,
    /// Weights read per second, in percent of the read limit measured around the same passes.
    pub percent_of_limit: f64,
    /// 10^9 bytes per second.
    pub gb_per_s: f64,
}

/// What was found, and from what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TuningTable {
    /// How far ahead weights are prefetched while they stream, in bytes; 0 leaves it to the hardware.
    pub prefetch_bytes: usize,
    /// Activation rows that share one stream of packed weights, with the instructions this machine computes with.
    pub streamed_rows: usize,
    /// Units of work per thread in a decode step.
    pub tasks_per_thread: usize,
    /// Threads to decode with.
    pub threads: usize,
    pub trials: Vec<Trial>,
    /// Seconds since 1970.
    pub measured_unix: u64,
}

impl TuningTable {
    /// Tries every knob (a few seconds); `progress` gets a line per knob.
    ///
    /// # Errors
    /// Why it could not be measured.
    pub fn measure(threads: usize, progress: &mut dyn FnMut(&str)) -> Result<Self, String> {
        let found = tune::tune(threads, progress).map_err(|e| e.to_string())?;
        let trials = found.trials.into_iter().map(|t| Trial {
            knob: t.knob.to_string(),
            value: t.value,
            percent_of_limit: t.percent_of_limit,
            gb_per_s: t.gb_per_s,
        });
        Ok(TuningTable {
            prefetch_bytes: found.tuning.ahead,
            streamed_rows: found.streamed_rows,
            tasks_per_thread: found.tuning.spread,
            threads: found.threads,
            trials: trials.collect(),
            measured_unix: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
        })
    }

    /// Makes the kernels of this process use it.
    pub fn apply(&self) {
        linear::set_tuning(Tuning {
            ahead: self.prefetch_bytes.min(1 << 20),
            // Only the one of this machine's instructions is read.
            few: self.streamed_rows.max(1),
            few_wide: self.streamed_rows.max(1),
            spread: self.tasks_per_thread.max(1),
        });
    }

    /// One line for people.
    pub fn summary(&self) -> String {
        format!(
            "prefetch {} bytes ahead, {} tasks per thread, up to {} rows per stream, {} threads to decode",
            self.prefetch_bytes, self.tasks_per_thread, self.streamed_rows, self.threads
        )
    }

    /// Every trial, one per line.
    pub fn table(&self) -> String {
        let mut out = String::from("knob                value     GB/s  % of the read limit beside it\n");
        for t in &self.trials {
            let gb = show_figures(t.gb_per_s);
            out.push_str(&format!("{:<18} {:>6} {gb:>8} {:>6.0}\n", t.knob, t.value, t.percent_of_limit));
        }
        out.push_str(&format!("kept: {}\n", self.summary()));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_says_what_was_tried_and_kept() {
        let trial =
            Trial { knob: "prefetch bytes".into(), value: 2048, percent_of_limit: 97.2, gb_per_s: 20.1 };
        let table = TuningTable {
            prefetch_bytes: 2048,
            streamed_rows: 2,
            tasks_per_thread: 16,
            threads: 2,
            trials: vec![trial],
            measured_unix: 1,
        };
        let text = table.table();
        for part in ["prefetch bytes", "2048", "97", "20.1", "kept", "2 threads"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let json = serde_json::to_string(&table).expect("JSON");
        assert_eq!(serde_json::from_str::<TuningTable>(&json).expect("reads back"), table);
    }
}
