//! How much memory a plan may use, and whose limit that is. Owns the reserve; it must not know what the memory is for.

use serde::Serialize;

use crate::facts::MemoryFacts;
use crate::units::{Size, show_bytes};

/// Left to the rest of the system when nobody named a limit: 1/16 of what is free, within these bounds.
const RESERVE_LEAST: u64 = 64 << 20;
const RESERVE_MOST: u64 = 1 << 30;

/// The limit of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Budget {
    /// `None`: this system does not say, and the user did not either.
    pub bytes: Option<u64>,
    pub source: String,
    /// Free memory left untouched.
    pub reserve_bytes: u64,
}

impl Budget {
    /// As [`Budget::of`] for a plan on paper: a `--ram` beyond this machine is taken at its word, with a note.
    pub fn on_paper(memory: &MemoryFacts, ram: Option<Size>) -> (Self, Option<String>) {
        let whole = memory.ceiling().map_or(u64::MAX, |w| w.bytes);
        match ram.map(|r| r.of(whole)).filter(|&asked| asked > whole) {
            Some(bytes) => {
                let note =
                    format!("planned for {}; this machine has {}", show_bytes(bytes), show_bytes(whole));
                (Self { bytes: Some(bytes), source: "--ram".into(), reserve_bytes: 0 }, Some(note))
            }
            None => Self::of(memory, ram),
        }
    }

    /// The user's `--ram` if given (never above what the machine and its limits can hold), else what is free less a
    /// reserve. The second value warns when the two disagree.
    pub fn of(memory: &MemoryFacts, ram: Option<Size>) -> (Self, Option<String>) {
        let free = memory.free();
        if let Some(ram) = ram {
            let whole = memory.ceiling();
            let asked = ram.of(whole.as_ref().map_or(u64::MAX, |w| w.bytes));
            if let Some(whole) = whole
                && asked > whole.bytes
            {
                let warning = format!(
                    "--ram {} is more than there is ({}: {})",
                    show_bytes(asked),
                    whole.source,
                    show_bytes(whole.bytes)
                );
                return (
                    Self { bytes: Some(whole.bytes), source: whole.source, reserve_bytes: 0 },
                    Some(warning),
                );
            }
            let warning = free.filter(|f| f.bytes < asked).map(|f| {
                format!(
                    "--ram {} is more than is free now ({}: {})",
                    show_bytes(asked),
                    f.source,
                    show_bytes(f.bytes)
                )
            });
            return (Self { bytes: Some(asked), source: "--ram".into(), reserve_bytes: 0 }, warning);
        }
        match free {
            Some(free) => {
                let reserve = (free.bytes / 16).clamp(RESERVE_LEAST, RESERVE_MOST).min(free.bytes);
                (
                    Self { bytes: Some(free.bytes - reserve), source: free.source, reserve_bytes: reserve },
                    None,
                )
            }
            None => (
                Self { bytes: None, source: "unknown".into(), reserve_bytes: 0 },
                Some("this system does not say how much memory there is; give --ram SIZE to be safe".into()),
            ),
        }
    }

    pub fn holds(&self, bytes: u64) -> bool {
        self.bytes.is_none_or(|limit| bytes <= limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{LimitSource, MemoryLimit};

    const GIB: u64 = 1 << 30;

    fn memory(total: u64, free: u64, limits: Vec<MemoryLimit>) -> MemoryFacts {
        MemoryFacts { total_bytes: Some(total), available_bytes: Some(free), limits, huge_pages: None }
    }

    #[test]
    fn free_memory_less_a_reserve() {
        let (budget, warning) = Budget::of(&memory(16 * GIB, 8 * GIB, vec![]), None);
        assert_eq!((budget.bytes, budget.reserve_bytes, warning), (Some(8 * GIB - GIB / 2), GIB / 2, None));
        let (tiny, _) = Budget::of(&memory(GIB, 1 << 20, vec![]), None);
        assert_eq!(tiny.bytes, Some(0));
    }

    #[test]
    fn a_cgroup_is_tighter_than_free_memory() {
        let source = LimitSource::CgroupV2("/x".into());
        let limit = MemoryLimit { source, bytes: 2 * GIB, used_bytes: GIB };
        let (budget, _) = Budget::of(&memory(16 * GIB, 8 * GIB, vec![limit]), None);
        assert_eq!(budget.bytes, Some(GIB - GIB / 16));
        assert!(budget.source.contains("cgroup v2"), "{}", budget.source);
    }

    #[test]
    fn ram_is_obeyed_up_to_what_exists() {
        let m = memory(16 * GIB, 8 * GIB, vec![]);
        let (budget, warning) = Budget::of(&m, Some(Size::Bytes(GIB)));
        assert_eq!((budget.bytes, warning), (Some(GIB), None));
        let (budget, warning) = Budget::of(&m, Some(Size::Share(0.75)));
        assert_eq!(budget.bytes, Some(12 * GIB));
        assert!(warning.expect("more than free").contains("free now"));
        let (budget, warning) = Budget::of(&m, Some(Size::Bytes(99 * GIB)));
        assert_eq!(budget.bytes, Some(16 * GIB));
        assert!(warning.expect("more than there is").contains("99.0 GiB"));
    }

    #[test]
    fn a_plan_on_paper_takes_memory_that_is_not_here() {
        let m = memory(16 * GIB, 8 * GIB, vec![]);
        let (budget, note) = Budget::on_paper(&m, Some(Size::Bytes(64 * GIB)));
        assert_eq!((budget.bytes, budget.source.as_str()), (Some(64 * GIB), "--ram"));
        let note = note.expect("a note");
        assert!(note.contains("64.0 GiB") && note.contains("16.0 GiB"), "{note}");
        assert_eq!(Budget::on_paper(&m, Some(Size::Bytes(GIB))), Budget::of(&m, Some(Size::Bytes(GIB))));
        assert_eq!(Budget::on_paper(&m, None), Budget::of(&m, None));
    }

    #[test]
    fn unknown_memory_holds_anything_and_says_so() {
        let nothing =
            MemoryFacts { total_bytes: None, available_bytes: None, limits: vec![], huge_pages: None };
        let (budget, warning) = Budget::of(&nothing, None);
        assert!(budget.holds(u64::MAX));
        assert!(warning.expect("a warning").contains("--ram"));
        let (budget, _) = Budget::of(&nothing, Some(Size::Bytes(5)));
        assert!(budget.holds(5) && !budget.holds(6));
    }
}
