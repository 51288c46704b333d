//! What a search for hidden facts found, for people and as JSON. It must not search.

use std::fmt;

use hob_plan::units::show_count;
use serde::Serialize;

use super::Task;

/// One fact.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trial {
    pub place: String,
    pub number: String,
    /// What greedy decoding gives, up to its first wrong token.
    pub said: String,
    /// Whether greedy decoding gives the number.
    pub right: bool,
    /// Smallest lead of a token of the number over the best other token, in nats; negative where another wins.
    pub margin: f64,
    /// Logarithm of the number's probability.
    pub log_p: f64,
    pub prompt_tokens: usize,
}

/// All facts of one format, context and depth.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cell {
    pub kv: String,
    pub ctx: usize,
    /// Percent of the text before the fact.
    pub depth: f64,
    pub trials: Vec<Trial>,
}

impl Cell {
    fn right(&self) -> usize {
        self.trials.iter().filter(|t| t.right).count()
    }

    /// Mean of a figure over the trials.
    fn mean(&self, figure: impl Fn(&Trial) -> f64) -> f64 {
        self.trials.iter().map(figure).sum::<f64>() / self.trials.len().max(1) as f64
    }
}

/// The result.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    pub model: String,
    pub parameters: u64,
    pub task: Task,
    /// Facts asked for, and facts there were: fewer after an interrupt.
    pub trials: usize,
    pub trials_planned: usize,
    pub cells: Vec<Cell>,
    pub seconds: f64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let task = match self.task {
            Task::Copy => "the sentence begun again, to be copied on",
            Task::Question => "a question in the model's chat template",
        };
        let of = if self.trials < self.trials_planned {
            format!(" of {} (interrupted)", self.trials_planned)
        } else {
            String::new()
        };
        let millions = show_count(self.parameters / 1_000_000);
        writeln!(
            f,
            "{}: {millions} M weights; {task}; {} facts{of}; {:.0} s",
            self.model, self.trials, self.seconds
        )?;
        writeln!(
            f,
            "found / facts, and the mean margin in nats by which the number leads (+) or trails (-)\n"
        )?;
        let mut ctxs: Vec<usize> = self.cells.iter().map(|c| c.ctx).collect();
        ctxs.sort_unstable();
        ctxs.dedup();
        let mut done: Vec<&str> = Vec::new();
        for kv in self.cells.iter().map(|c| c.kv.as_str()) {
            if !done.contains(&kv) {
                done.push(kv);
                self.table(f, kv, &ctxs)?;
            }
        }
        Ok(())
    }
}

impl Report {
    /// Depths below each other, contexts beside each other.
    fn table(&self, f: &mut fmt::Formatter<'_>, kv: &str, ctxs: &[usize]) -> fmt::Result {
        write!(f, "  KV {kv:<11}")?;
        ctxs.iter().try_for_each(|ctx| write!(f, " {ctx:>15}"))?;
        writeln!(f)?;
        let of_kv = || self.cells.iter().filter(|c| c.kv == kv);
        let mut depths: Vec<f64> = of_kv().map(|c| c.depth).collect();
        depths.sort_by(f64::total_cmp);
        depths.dedup();
        for depth in depths {
            write!(f, "  depth {depth:>5.0} % ")?;
            for ctx in ctxs {
                match of_kv().find(|c| c.ctx == *ctx && c.depth == depth) {
                    Some(cell) => {
                        let found = format!("{}/{}", cell.right(), cell.trials.len());
                        write!(f, " {found:>7} {:>+7.2}", cell.mean(|t| t.margin))?;
                    }
                    None => write!(f, " {:>15}", "-")?,
                }
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
