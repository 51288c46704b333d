//! What the disk tier takes and gives: configuration, limits, the results of a lookup, and what `hob cache` shows.
//! Plain data; it must not know files.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// No fragment crosses a multiple of this many positions, so that one always fits one page of the model.
pub const FRAGMENT_TOKENS: usize = 256;

/// Which images may be compared at all: everything that decides the bits of a position besides its tokens.
pub type Identity = [u8; 32];

/// Where the tier lives and what it may cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskConfig {
    /// The folder; made (0700) when missing, tightened to 0700 when others can look into it.
    pub dir: PathBuf,
    /// Bytes of all files together. 0 stores nothing.
    pub budget_bytes: u64,
    /// Bytes written per UTC day, compaction and index included; wear of an SSD has a price. 0 writes nothing.
    pub daily_write_bytes: u64,
    /// Bytes of recurrent snapshots, which also count in `budget_bytes`.
    pub snapshot_budget_bytes: u64,
}

/// Limits on what the tier believes about its own files, which may be damaged or hostile. What is over a limit is
/// skipped, never an error, and no count in a file makes the tier reserve more memory than that file has bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes after which a segment file is closed and a new one begun. Default 64 MiB; a budget below 32 times that
    /// makes it smaller. A record larger than this gets a segment of its own.
    pub segment_bytes: u64,
    /// Segment files considered. Default 65,536; cost: about 200 bytes each.
    pub segments: usize,
    /// Fragments and snapshots known at once. Default 262,144; cost: up to 1.3 KB each (256 tokens and two keys).
    pub records: usize,
    /// Bytes of one image. Default 1 GiB, that is 4 MiB per token; 64 layers of 8 heads x 128 in f32 take 0.5 MiB.
    pub image_bytes: u64,
    /// Bytes of the index file. Default 512 MiB; cost: once that in memory while opening.
    pub index_bytes: u64,
    /// Tokens of one chain. Default 16,777,216.
    pub chain_tokens: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            segment_bytes: 64 << 20,
            segments: 1 << 16,
            records: 1 << 18,
            image_bytes: 1 << 30,
            index_bytes: 512 << 20,
            chain_tokens: 1 << 24,
        }
    }
}

/// Tells the time in seconds since 1970 (UTC). Ages, decay and the day of the write budget come from it.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The system's clock; 0 before 1970.
pub fn system_clock() -> Clock {
    Arc::new(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

/// A stored run of tokens with the image of their positions; valid in the process that got it, for as long as the
/// record is there (later: a miss).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FragmentId(pub(crate) u64);

/// A stored recurrent state; valid like [`FragmentId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SnapshotId(pub(crate) u64);

/// One step of a found chain: the first `take_tokens` positions of a fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    pub fragment: FragmentId,
    /// Position of the fragment's first token.
    pub first: usize,
    /// Tokens of the whole fragment: the image covers positions `first..first + tokens`.
    pub tokens: usize,
    /// How many of them belong to the chain, from the front; 1..=tokens.
    pub take_tokens: usize,
    /// Bytes of the whole image.
    pub bytes: u64,
}

/// The longest stored prefix of some tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Tokens covered from position 0.
    pub tokens: usize,
    /// Bytes to read for all pieces: the sum of their images.
    pub bytes: u64,
    /// In order, without gaps from position 0.
    pub pieces: Vec<Piece>,
    /// Recurrent states on the way, by length, ascending.
    pub snapshots: Vec<(usize, SnapshotId)>,
}

/// What became of an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// Bytes that went to disk; 0 if everything was there already or the store refused.
    pub bytes_written: u64,
    /// Tokens of the chain stored now, from position 0.
    pub stored_tokens: usize,
    /// Why nothing was written although something was missing. Also counted in [`Stats`].
    pub refused: Option<Refusal>,
}

/// Why the store politely wrote nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The day's write budget is used up.
    DailyBudget,
    /// No room within the byte budget: what is there is protected, or the image alone exceeds it.
    Budget,
    /// No room within the snapshots' byte budget.
    SnapshotBudget,
    /// The chain is not stored up to the fragment's start (or the snapshot's position): append from `stored_tokens`
    /// on first.
    Gap,
    /// A part of the fragment is stored already; images cannot be cut here, so append again from `stored_tokens` on.
    Overlap,
    /// A count or size over [`Limits`].
    Limit,
}

/// Counters of this process and the state of the store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Known fragments, and snapshots.
    pub fragments: usize,
    pub snapshots: usize,
    /// Bytes of all segment files and the index.
    pub bytes: u64,
    /// Bytes of records still in use.
    pub live_bytes: u64,
    /// Bytes of snapshot records still in use.
    pub snapshot_bytes: u64,
    pub segments: usize,
    /// Written today (UTC), by all processes as far as known.
    pub written_today: u64,
    /// Written by this process: records, index and compaction together; and payload (images, snapshots) alone.
    pub written_bytes: u64,
    pub payload_bytes: u64,
    /// Images and snapshots given out, and their bytes.
    pub reads: u64,
    pub read_bytes: u64,
    /// Reads that found a record gone or damaged: forgotten since.
    pub damaged: u64,
    /// Polite refusals by reason.
    pub refused_daily: u64,
    pub refused_budget: u64,
    pub refused_other: u64,
    /// Fragments and snapshots given up for room, and bytes moved by compaction.
    pub evicted: u64,
    pub compacted_bytes: u64,
    /// Times the index or a compaction could not be written. Costs time or room, never data.
    pub tidy_errors: u64,
}

/// A stored chain: a path from position 0 to the end of a fragment that nothing continues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    pub identity: Identity,
    /// Length in tokens.
    pub tokens: usize,
    /// Bytes of all records of the path (fragments and snapshots), also those shared with other chains.
    pub bytes: u64,
    /// Bytes that only this chain needs: what giving it up would free.
    pub own_bytes: u64,
    pub snapshots: usize,
    /// Since the last use.
    pub age_seconds: u64,
    /// Reads of its last fragment.
    pub hits: u32,
    /// Its first tokens (at most 64), to show what it is about.
    pub first_tokens: Vec<u32>,
}

/// What [`super::DiskStore::trim`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Trimmed {
    /// Bytes of files before and after.
    pub before_bytes: u64,
    pub after_bytes: u64,
    /// Fragments and snapshots given up.
    pub records: u64,
}

/// What [`super::DiskStore::verify`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Intact fragments and snapshots, and the bytes of their payload.
    pub fragments: usize,
    pub snapshots: usize,
    pub bytes: u64,
    /// Damaged records, forgotten now; the first 100 of `bad_count`.
    pub bad: Vec<Bad>,
    pub bad_count: usize,
    /// Intact fragments whose beginning is missing: they are found again once that is stored again.
    pub orphans: usize,
    /// Files in the folder that are not the tier's; they are left alone.
    pub foreign_files: usize,
}

/// One damaged record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bad {
    pub file: PathBuf,
    pub offset: u64,
    pub problem: String,
}
