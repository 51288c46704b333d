//! Writing records: the segment this process appends to, notes, making it all durable, the index.
//! It must not decide what to give up for room; `tidy` does.

use std::hash::{BuildHasher, RandomState};

use hob_files::store::{self, AppendFile, FileLock};
use xxhash_rust::xxh3::xxh3_128;

use super::catalog::Catalog;
use super::error::Result;
use super::record::{ALIGN, Entry, Header, Kind, NOTE_PLACES, Place, encode_places};
use super::types::Refusal;
use super::{DiskStore, index, load, segment};

/// The index is written when this many bytes per byte of index are behind it: 1.6 % of all bytes written at most.
const INDEX_RATIO: u64 = 64;
/// How many half-full segments are tried before a new one is made.
const REOPEN_TRIES: usize = 4;
/// No segment is smaller than this, whatever the budget.
const SEGMENT_BYTES_MIN: u64 = 4096;

/// What only the writing thread needs.
#[derive(Default)]
pub(super) struct Writer {
    /// The segment being appended to.
    pub current: Option<(u64, AppendFile)>,
    /// Bytes written since this process last looked what others have written.
    pub unseen: u64,
}

impl Writer {
    /// The segment being appended to.
    pub(super) fn id(&self) -> Option<u64> {
        self.current.as_ref().map(|(id, _)| *id)
    }
}

impl DiskStore {
    /// Bytes after which a segment is closed.
    pub(super) fn segment_bytes(&self) -> u64 {
        self.limits.segment_bytes.min((self.config.budget_bytes / 32).max(SEGMENT_BYTES_MIN))
    }

    /// Bytes that may still be written today.
    pub(super) fn daily_left(&self, catalog: &Catalog) -> u64 {
        self.config.daily_write_bytes.saturating_sub(catalog.day.bytes)
    }

    /// Stores a record, making room for it first. The entry's place is chosen here.
    pub(super) fn store(&self, writer: &mut Writer, entry: Entry, payload: &[u8]) -> Result<Stored> {
        if let Some(refusal) = self.make_room(writer, entry.record_bytes())? {
            return Ok(Err(refusal));
        }
        let bytes = entry.record_bytes();
        let entry = self.write(writer, entry, payload)?;
        let mut catalog = self.catalog();
        catalog.stats.payload_bytes += payload.len() as u64;
        let id = catalog.insert(entry);
        Ok(id.map(|id| (id, bytes)).ok_or(Refusal::Limit))
    }

    /// Appends a record to the current segment, without asking whether there is room.
    pub(super) fn write(&self, writer: &mut Writer, mut entry: Entry, payload: &[u8]) -> Result<Entry> {
        let bytes = entry.record_bytes();
        let (id, file) = self.segment_for(writer, bytes)?;
        let id = *id;
        entry.place = Place { segment: id, offset: file.len() };
        let day_bytes = self.catalog().day.bytes + bytes;
        let header = Header { entry, payload_sum: xxh3_128(payload), day_bytes };
        let head = header.encode();
        let padding = [0; ALIGN as usize];
        let pad = bytes as usize - head.len() - payload.len();
        let done = file.append(&[&head, payload, &padding[..pad]]);
        let (len, broken) = (file.len(), file.is_broken());
        let mut catalog = self.catalog();
        let segment = catalog.segments.entry(id).or_default();
        (segment.bytes, segment.scanned, segment.looked) = (len, len, len);
        segment.clean &= !broken;
        segment.ours = true;
        if broken {
            writer.current = None;
        }
        done?;
        catalog.day.bytes += bytes;
        catalog.stats.written_bytes += bytes;
        writer.unseen += bytes;
        Ok(header.entry)
    }

    /// The segment that takes the next `bytes`: the current one, one that a process has left with room, or a new one.
    fn segment_for<'w>(&self, writer: &'w mut Writer, bytes: u64) -> Result<&'w mut (u64, AppendFile)> {
        let limit = self.segment_bytes();
        let full = |file: &AppendFile| !file.is_empty() && file.len() + bytes > limit;
        if writer.current.as_ref().is_some_and(|(_, file)| full(file)) {
            self.close(writer)?;
        }
        let current = match writer.current.take() {
            Some(current) => current,
            None => self.reopen(limit, bytes)?.map_or_else(|| self.new_segment(), Ok)?,
        };
        Ok(writer.current.insert(current))
    }

    fn new_segment(&self) -> Result<(u64, AppendFile)> {
        // Random, so that a place names one record for good, whatever process removes or makes files.
        let id = RandomState::new().hash_one(self.now());
        let file = AppendFile::create(&segment::path(&self.config.dir, id))?;
        self.catalog().segments.entry(id).or_default().clean = true;
        Ok((id, file))
    }

    fn reopen(&self, limit: u64, bytes: u64) -> Result<Option<(u64, AppendFile)>> {
        let fits: Vec<(u64, u64)> = {
            let catalog = self.catalog();
            let open = catalog.segments.iter().filter(|(_, s)| s.clean && s.ours && s.scanned == s.bytes);
            open.filter(|(_, s)| s.bytes + bytes <= limit)
                .map(|(&id, s)| (id, s.bytes))
                .take(REOPEN_TRIES)
                .collect()
        };
        for (id, len) in fits {
            match AppendFile::reopen(&segment::path(&self.config.dir, id), len) {
                Ok(Some(file)) => return Ok(Some((id, file))),
                Ok(None) => {}
                // Not ours to write to: a link, or rights that somebody changed.
                Err(_) => self.catalog().segments.entry(id).or_default().clean = false,
            }
        }
        Ok(None)
    }

    /// Closes the current segment, durably.
    pub(super) fn close(&self, writer: &mut Writer) -> Result<()> {
        self.sync(writer)?;
        writer.current = None;
        Ok(())
    }

    /// Makes the current segment durable. After an error nothing more is appended to it.
    pub(super) fn sync(&self, writer: &mut Writer) -> Result<()> {
        let Some((id, file)) = &mut writer.current else { return Ok(()) };
        if file.synced() == file.len() && !file.is_empty() {
            return Ok(());
        }
        let done = file.sync();
        let mut catalog = self.catalog();
        let segment = catalog.segments.entry(*id).or_default();
        match done {
            Ok(()) => segment.durable = segment.durable.max(file.synced()),
            Err(e) => {
                (segment.clean, segment.failed) = (false, true);
                writer.current = None;
                return Err(e.into());
            }
        }
        Ok(())
    }

    /// Writes down what was read and given up since the last time. Hints both: within budget, or not at all.
    pub(super) fn write_notes(&self, writer: &mut Writer) -> Result<()> {
        let now = self.now();
        let lists = {
            let mut catalog = self.catalog();
            let mut dead = std::mem::take(&mut catalog.dead);
            dead.retain(|place| catalog.segments.contains_key(&place.segment));
            [(Kind::Tombstones, dead), (Kind::Uses, catalog.take_touched())]
        };
        for (kind, places) in lists {
            for places in places.chunks(NOTE_PLACES) {
                let payload = encode_places(places);
                let note = Entry {
                    kind,
                    turn_end: false,
                    identity: [0; 32],
                    key: [0; 32],
                    parent: [0; 32],
                    taken: 0,
                    first: 0,
                    tokens: [].into(),
                    place: Place { segment: 0, offset: 0 },
                    payload_bytes: payload.len() as u64,
                    created: now,
                    used: now,
                    stored: now,
                    hits: 0,
                };
                let bytes = note.record_bytes();
                let today = bytes <= self.daily_left(&self.catalog());
                if today && self.fits(bytes) {
                    self.write(writer, note, &payload)?;
                }
            }
        }
        Ok(())
    }

    /// Whether enough is behind the index to write it anew.
    pub(super) fn index_is_due(&self) -> bool {
        let catalog = self.catalog();
        let behind: u64 = catalog.segments.values().map(|s| s.scanned.saturating_sub(s.indexed)).sum();
        behind >= INDEX_RATIO * index::estimate(&catalog)
    }

    /// Writes the index, having made durable what it names. The caller holds the folder's lock.
    pub(super) fn write_index(&self, writer: &mut Writer, _lock: &FileLock) -> Result<()> {
        self.sync(writer)?;
        let behind: Vec<(u64, u64)> = {
            let catalog = self.catalog();
            let behind = catalog.segments.iter().filter(|(_, s)| s.scanned > s.durable && !s.failed);
            behind.map(|(&id, s)| (id, s.scanned)).collect()
        };
        for (id, scanned) in behind {
            store::sync_file(&segment::path(&self.config.dir, id))?;
            self.catalog().segments.entry(id).or_default().durable = scanned;
        }
        for name in load::leftovers(&self.config.dir)? {
            store::remove_unlocked(&self.config.dir.join(name), None)?;
        }
        let (payload, bytes) = index::encode(&self.catalog());
        if bytes > self.daily_left(&self.catalog()) || bytes > self.config.budget_bytes {
            return Ok(());
        }
        store::write_checked(&index::path(&self.config.dir), &payload)?;
        let mut catalog = self.catalog();
        catalog.index_bytes = bytes;
        catalog.day.bytes += bytes;
        catalog.stats.written_bytes += bytes;
        // The index says what the notes would have said.
        catalog.dead.clear();
        catalog.take_touched();
        for segment in catalog.segments.values_mut() {
            segment.indexed = segment.scanned.min(segment.durable);
        }
        Ok(())
    }
}

/// The id and bytes of a stored record, or why it was not stored.
pub(super) type Stored = std::result::Result<(u64, u64), Refusal>;
