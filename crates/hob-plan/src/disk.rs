//! How much disk K and V of earlier conversations may take, and where. Owns the default budgets and their reasons; what is
//! stored, and how, is `hob_model::disk`'s.

use std::path::{Path, PathBuf};

use hob_files::store;
use hob_model::disk::DiskConfig;
use serde::Serialize;

use crate::units::{Size, show_bytes};

/// Folder under `HOB_HOME`. It may be deleted at any time: only speed is lost.
pub const CACHE_DIR: &str = "cache";
/// The most disk that is taken unasked: some 260,000 tokens of an 8B model at 8 bits.
const MOST_BYTES: u64 = 16 << 30;
/// Share of the free disk that is taken unasked: the disk is for other things.
const FREE_SHARE: u64 = 10;
/// Less than this holds no conversation worth the files.
const LEAST_BYTES: u64 = 64 << 20;
/// Share of the budget for snapshots of recurrent state; only models that have such state use it.
const SNAPSHOT_SHARE: u64 = 8;
/// Writes a day, in budgets: at 16 GiB that is 58 TiB in five years, below what small SSDs are rated for (about 150).
const WRITES_A_DAY: u64 = 2;

/// What the user typed about the disk.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum DiskWish {
    /// hob decides how much.
    #[default]
    Auto,
    Size(Size),
    Off,
}

impl DiskWish {
    /// Reads `off` or a size such as `4G` or `5%` (of the free disk).
    ///
    /// # Errors
    /// A sentence that names what was typed and what is accepted.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.trim() {
            t if t.eq_ignore_ascii_case("off") || t == "0" => Ok(Self::Off),
            t => Size::parse(t)
                .map(Self::Size)
                .map_err(|_| format!("'{text}' is not a size; write for example 4G, 5% or off")),
        }
    }
}

/// The disk part of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DiskPlan {
    pub dir: PathBuf,
    /// Everything that may lie there; 0: nothing is written or read.
    pub bytes: u64,
    /// Of these, for snapshots of recurrent state.
    pub snapshot_bytes: u64,
    pub daily_write_bytes: u64,
    /// What lies there now.
    pub used_bytes: u64,
    /// Free on that disk; `None` where the system does not say.
    pub free_bytes: Option<u64>,
    pub why: String,
}

impl DiskPlan {
    /// Looks at the disk below `dir` (which need not exist yet) and decides.
    pub fn of(dir: &Path, wish: &DiskWish) -> Self {
        Self::decide(dir, wish, free_below(dir), used_below(dir))
    }

    fn decide(dir: &Path, wish: &DiskWish, free: Option<u64>, used: u64) -> Self {
        // What the cache holds already is its own to use.
        let room = free.map(|f| f.saturating_add(used));
        let (bytes, why) = match *wish {
            DiskWish::Off => (0, "off: asked for".to_string()),
            DiskWish::Size(size) => {
                let asked = size.of(room.unwrap_or(MOST_BYTES));
                match room.filter(|&r| r < asked) {
                    Some(room) => {
                        let short = format!("{} asked for, but only so much is free", show_bytes(asked));
                        (room, short)
                    }
                    None => (asked, "asked for".to_string()),
                }
            }
            DiskWish::Auto => {
                let share = room.map_or(MOST_BYTES, |r| r / FREE_SHARE);
                let why = if share < MOST_BYTES { "a tenth of the free disk" } else { "no more unasked" };
                (share.min(MOST_BYTES), why.to_string())
            }
        };
        let (bytes, why) = match (bytes, free) {
            (1..LEAST_BYTES, Some(free)) => (0, format!("off: only {} free on that disk", show_bytes(free))),
            (1..LEAST_BYTES, None) => (0, format!("off: less than {}", show_bytes(LEAST_BYTES))),
            _ => (bytes, why),
        };
        Self {
            dir: dir.to_path_buf(),
            bytes,
            snapshot_bytes: bytes / SNAPSHOT_SHARE,
            daily_write_bytes: bytes.saturating_mul(WRITES_A_DAY),
            used_bytes: used,
            free_bytes: free,
            why,
        }
    }

    pub fn is_off(&self) -> bool {
        self.bytes == 0
    }

    /// What the store is opened with; `None` when it is off.
    pub fn config(&self) -> Option<DiskConfig> {
        (!self.is_off()).then(|| DiskConfig {
            dir: self.dir.clone(),
            budget_bytes: self.bytes,
            daily_write_bytes: self.daily_write_bytes,
            snapshot_budget_bytes: self.snapshot_bytes,
        })
    }

    /// One line for people.
    pub fn line(&self) -> String {
        if self.is_off() {
            return format!("disk cache: {}", self.why);
        }
        format!(
            "disk cache: {} of {} used ({}), at most {} written a day, in {}",
            show_bytes(self.used_bytes),
            show_bytes(self.bytes),
            self.why,
            show_bytes(self.daily_write_bytes),
            self.dir.display()
        )
    }
}

/// Free bytes of the disk that `dir` is or will be on.
fn free_below(dir: &Path) -> Option<u64> {
    let there = dir.ancestors().find(|d| d.is_dir())?;
    store::free_bytes(there).ok()
}

/// Bytes of the files below `dir`; what cannot be read counts nothing.
fn used_below(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let size = |entry: std::fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => used_below(&entry.path()),
        Ok(kind) if kind.is_file() => entry.metadata().map_or(0, |m| m.len()),
        _ => 0,
    };
    entries.flatten().map(size).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn decide(wish: &DiskWish, free: Option<u64>, used: u64) -> DiskPlan {
        DiskPlan::decide(Path::new("/x"), wish, free, used)
    }

    #[test]
    fn unasked_it_takes_a_tenth_of_the_free_disk_and_never_more_than_16_gib() {
        for (free, used, want) in [
            (Some(100 * GIB), 0, 10 * GIB),
            (Some(90 * GIB), 10 * GIB, 10 * GIB), // what it holds does not shrink it
            (Some(1000 * GIB), 0, 16 * GIB),
            (None, 0, 16 * GIB),
        ] {
            let plan = decide(&DiskWish::Auto, free, used);
            assert_eq!(plan.bytes, want, "{free:?} {used}");
            let config = plan.config().expect("on");
            assert_eq!((config.budget_bytes, config.snapshot_budget_bytes), (want, want / 8));
            assert_eq!(config.daily_write_bytes, 2 * want);
        }
    }

    #[test]
    fn a_full_disk_turns_it_off_and_says_so() {
        let plan = decide(&DiskWish::Auto, Some(500 << 20), 0);
        assert!(plan.is_off() && plan.config().is_none());
        assert!(plan.line().contains("off: only 500 MiB free"), "{}", plan.line());
    }

    #[test]
    fn what_is_asked_for_is_taken_but_no_more_than_there_is() {
        let asked = |text: &str| decide(&DiskWish::parse(text).expect(text), Some(100 * GIB), 0);
        assert_eq!(asked("30G").bytes, 30 * GIB);
        assert_eq!(asked("50%").bytes, 50 * GIB);
        assert_eq!(asked("200G").bytes, 100 * GIB);
        assert!(asked("200G").line().contains("200 GiB asked for"));
        assert!(asked("off").is_off() && asked("0").is_off());
        let error = DiskWish::parse("much").expect_err("no size");
        assert!(error.contains("much") && error.contains("off"), "{error}");
    }

    #[test]
    fn files_of_a_cache_are_counted_and_a_folder_that_is_not_there_has_none() {
        let dir = crate::testing::fake_root("disk-used", &[("a/b", "12345"), ("c", "123")]);
        assert_eq!(used_below(dir.path()), 8);
        assert_eq!(used_below(&dir.join("nowhere")), 0);
        assert!(free_below(&dir.join("not/yet/there")).is_some());
    }
}
