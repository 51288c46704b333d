//! The disk tier: chains of tokens and the images of their positions, kept across restarts. A trie of *fragments*
//! (runs of tokens of one chain) in append-only segment files plus an index.
//! What comes back is byte-identical to what went in, or absent: a damaged, missing or foreign record is a miss.
//! It must not know models, devices or tokenizers: tokens, identities and bytes go in and come out.
//!
//! `record` says how a record looks, `segment` reads them, `index` is the shortcut for opening, `catalog` is what is
//! known in memory, `load` fills it, `write` appends, `tidy` stays within budgets, `report` shows.

mod catalog;
mod error;
mod index;
mod load;
mod record;
mod report;
mod segment;
mod tidy;
mod types;
mod write;

use std::sync::{Mutex, MutexGuard, PoisonError};

use hob_files::store;

use catalog::Catalog;
pub use error::{DiskError, Result};
use record::{Entry, Kind, Place, root_key};
use segment::Miss;
pub use types::{
    Appended, Bad, Chain, Clock, DiskConfig, FRAGMENT_TOKENS, Found, FragmentId, Identity, Limits, Piece,
    Refusal, Report, SnapshotId, Stats, Trimmed, system_clock,
};
use write::Writer;

/// The store. Every method takes `&self` and may be called from any thread: lookups and reads do not wait for
/// writes, writes wait for each other.
pub struct DiskStore {
    config: DiskConfig,
    limits: Limits,
    clock: Clock,
    /// Taken after `writer` where both are, and never while a file is written.
    catalog: Mutex<Catalog>,
    writer: Mutex<Writer>,
}

impl std::fmt::Debug for DiskStore {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("DiskStore").field("config", &self.config).finish_non_exhaustive()
    }
}

impl DiskStore {
    /// Opens the folder (making it if need be), reading the index and the headers of what is not in it yet.
    ///
    /// # Errors
    /// [`DiskError::File`] if the folder cannot be made, listed or made private. Damage inside is not an error.
    pub fn open(config: &DiskConfig) -> Result<DiskStore> {
        Self::open_with(config, Limits::default(), system_clock())
    }

    /// [`DiskStore::open`] with other limits and another clock.
    pub fn open_with(config: &DiskConfig, limits: Limits, clock: Clock) -> Result<DiskStore> {
        store::private_folder(&config.dir)?;
        let mut catalog = Catalog::new(limits.clone());
        load::open(&config.dir, &limits, &mut catalog, clock())?;
        Ok(DiskStore {
            config: config.clone(),
            limits,
            clock,
            catalog: Mutex::new(catalog),
            writer: Mutex::new(Writer::default()),
        })
    }

    pub fn config(&self) -> &DiskConfig {
        &self.config
    }

    fn now(&self) -> u64 {
        (self.clock)()
    }

    // A thread that panicked with a lock left no half-made change that a checksum would not catch.
    fn catalog(&self) -> MutexGuard<'_, Catalog> {
        self.catalog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The longest stored prefix of `tokens` under `identity`, compared token by token. Counts nothing as used, but
    /// protects the chain from eviction until another one is found.
    pub fn find(&self, identity: &Identity, tokens: &[u32]) -> Found {
        let mut catalog = self.catalog();
        let path = catalog.walk(identity, tokens);
        if let Some((end, _)) = path.steps.last() {
            catalog.read = Some(*end);
        }
        catalog.found(&path)
    }

    /// The image of the whole fragment of `piece`, verified against its checksum, tokens, parent and identity.
    /// `None` is a miss: the record is gone or damaged, and is forgotten with everything that hangs on it.
    pub fn read(&self, piece: &Piece) -> Option<Vec<u8>> {
        self.read_entry(piece.fragment.0)
    }

    /// A snapshot's bytes, verified like [`DiskStore::read`].
    pub fn read_snapshot(&self, snapshot: SnapshotId) -> Option<Vec<u8>> {
        self.read_entry(snapshot.0)
    }

    fn read_entry(&self, id: u64) -> Option<Vec<u8>> {
        loop {
            let entry = self.catalog().get(id)?.clone();
            let result = segment::read(&self.config.dir, &entry, &self.limits);
            let mut catalog = self.catalog();
            match result {
                Ok(bytes) => {
                    catalog.mark_read(id, self.now());
                    return Some(bytes);
                }
                Err(miss) => {
                    if catalog.forget(id, entry.place) {
                        catalog.stats.damaged += 1;
                        if let Miss::Damaged(_) = miss {
                            catalog.dead.push(entry.place);
                        }
                        return None;
                    }
                    // Compaction moved it while it was read.
                }
            }
        }
    }

    /// Stores `tokens[from..]` with `image`, the bytes of those positions. `tokens` is the chain from position 0 to
    /// the fragment's end; `from..tokens.len()` must not cross a multiple of [`FRAGMENT_TOKENS`]. What is stored
    /// already is not stored again. May evict others to stay within the budgets, never this chain.
    ///
    /// # Errors
    /// [`DiskError::Input`] for an empty or crossing range; [`DiskError::File`] if the system refuses to write
    /// (the store stays usable). Budgets refuse with `Ok` and [`Appended::refused`].
    pub fn append(&self, identity: &Identity, tokens: &[u32], from: usize, image: &[u8]) -> Result<Appended> {
        if from >= tokens.len() || from / FRAGMENT_TOKENS != (tokens.len() - 1) / FRAGMENT_TOKENS {
            return Err(DiskError::input(
                format!("a range of positions within one multiple of {FRAGMENT_TOKENS}"),
                format!("{from}..{}", tokens.len()),
            ));
        }
        let mut writer = self.writer();
        let (stored, mut entry) = loop {
            let (stored, entry) = self.entry_after(identity, tokens);
            if stored < tokens.len() {
                break (stored, entry);
            }
            // A record may have come back with the beginning it hangs on; what nobody can read is stored anew.
            let last = self.catalog().written;
            if last.is_none_or(|id| self.read_entry(id).is_some()) {
                return Ok(Appended { bytes_written: 0, stored_tokens: stored, refused: None });
            }
        };
        (entry.tokens, entry.payload_bytes) = (tokens[stored..].into(), image.len() as u64);
        let refusal = match stored.cmp(&from) {
            std::cmp::Ordering::Less => Some(Refusal::Gap),
            std::cmp::Ordering::Greater => Some(Refusal::Overlap),
            std::cmp::Ordering::Equal => None,
        };
        self.append_entry(&mut writer, entry, image, (stored, refusal))
    }

    /// Stores the recurrent state after `tokens`, whose fragments must all be stored. `turn_end` snapshots are given
    /// up after those inside a turn, the newest of each chain last.
    ///
    /// # Errors
    /// As [`DiskStore::append`].
    pub fn append_snapshot(
        &self,
        identity: &Identity,
        tokens: &[u32],
        bytes: &[u8],
        turn_end: bool,
    ) -> Result<Appended> {
        if tokens.is_empty() {
            return Err(DiskError::input("a snapshot of at least one token", "none"));
        }
        let mut writer = self.writer();
        let (stored, mut entry) = self.entry_after(identity, tokens);
        (entry.kind, entry.turn_end, entry.payload_bytes) = (Kind::Snapshot, turn_end, bytes.len() as u64);
        let gap = (stored < tokens.len()).then_some(Refusal::Gap);
        if gap.is_none() {
            let known = self.catalog().id_of(&entry.expected_key());
            // It may have come back with the beginning it hangs on; what nobody can read is stored anew.
            if known.is_some_and(|id| self.read_entry(id).is_some()) {
                return Ok(Appended { bytes_written: 0, stored_tokens: stored, refused: None });
            }
        }
        self.append_entry(&mut writer, entry, bytes, (stored, gap))
    }

    /// How many of `tokens` are stored, and an entry that would follow them.
    fn entry_after(&self, identity: &Identity, tokens: &[u32]) -> (usize, Entry) {
        let now = self.now();
        let mut catalog = self.catalog();
        catalog.day.roll(now);
        let path = catalog.walk(identity, tokens);
        catalog.mark_continued(&path, now);
        let end = path.steps.last().copied();
        catalog.written = end.map(|(id, _)| id);
        let parent = end.and_then(|(id, taken)| Some((catalog.get(id)?.key, taken)));
        let (parent, taken) = parent.unwrap_or_else(|| (root_key(identity), 0));
        let entry = Entry {
            kind: Kind::Fragment,
            turn_end: false,
            identity: *identity,
            key: [0; 32],
            parent,
            taken,
            first: u32::try_from(path.tokens).unwrap_or(u32::MAX),
            tokens: [].into(),
            place: Place { segment: 0, offset: 0 },
            payload_bytes: 0,
            created: now,
            used: now,
            stored: now,
            hits: 0,
        };
        (path.tokens, entry)
    }

    /// Stores an entry that nothing speaks against, counting what does.
    fn append_entry(
        &self,
        writer: &mut Writer,
        mut entry: Entry,
        payload: &[u8],
        (stored, refusal): (usize, Option<Refusal>),
    ) -> Result<Appended> {
        entry.key = entry.expected_key();
        let tokens = entry.tokens.len();
        let snapshot = entry.kind == Kind::Snapshot;
        let mut refusal = refusal.or_else(|| (!entry.is_sane(&self.limits)).then_some(Refusal::Limit));
        if refusal.is_none() && snapshot {
            refusal = self.make_snapshot_room(writer, entry.record_bytes())?;
        }
        let result = match refusal {
            Some(refusal) => Err(refusal),
            None => self.store(writer, entry, payload)?,
        };
        let mut catalog = self.catalog();
        match result {
            Ok((id, bytes)) => {
                if !snapshot {
                    catalog.written = Some(id);
                }
                Ok(Appended { bytes_written: bytes, stored_tokens: stored + tokens, refused: None })
            }
            Err(refusal) => {
                match refusal {
                    Refusal::DailyBudget => catalog.stats.refused_daily += 1,
                    Refusal::Budget | Refusal::SnapshotBudget => catalog.stats.refused_budget += 1,
                    Refusal::Gap | Refusal::Overlap | Refusal::Limit => catalog.stats.refused_other += 1,
                }
                Ok(Appended { bytes_written: 0, stored_tokens: stored, refused: Some(refusal) })
            }
        }
    }

    /// Makes everything appended so far durable (fsync), and writes the index when enough is behind it. Also
    /// notices what other processes have written.
    ///
    /// # Errors
    /// [`DiskError::File`]: what was appended since the last flush may not survive a power cut.
    pub fn flush(&self) -> Result<()> {
        let mut writer = self.writer();
        self.catalog().day.roll(self.now());
        self.refresh_with(&mut writer)?;
        let noted = self.write_notes(&mut writer);
        self.sync(&mut writer)?;
        if noted.and_then(|()| self.tidy(&mut writer)).is_err() {
            self.catalog().stats.tidy_errors += 1;
        }
        Ok(())
    }

    /// Compaction and index, as far as due and unless another process is at it.
    fn tidy(&self, writer: &mut Writer) -> Result<()> {
        if !self.is_sparse(writer) && !self.index_is_due() {
            return Ok(());
        }
        let Some(lock) = self.lock()? else { return Ok(()) };
        self.compact_sparse(writer, &lock)?;
        if self.index_is_due() {
            self.write_index(writer, &lock)?;
        }
        Ok(())
    }

    /// Notices what other processes have written or removed since.
    ///
    /// # Errors
    /// [`DiskError::File`] if the folder cannot be listed any more.
    pub fn refresh(&self) -> Result<()> {
        self.refresh_with(&mut self.writer())
    }

    fn refresh_with(&self, writer: &mut Writer) -> Result<()> {
        writer.unseen = 0;
        load::refresh(&self.config.dir, &self.limits, &mut self.catalog(), writer.id())
    }
}
