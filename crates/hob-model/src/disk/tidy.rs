//! Staying within the budgets: which chains are given up, and how their room is given back to the file system.
//! The least valuable leaf goes first, so no beginning goes before what hangs on it; segments that became empty are
//! removed, sparse ones are copied together. Only under the folder's lock. It must not know how records look.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::time::Duration;

use hob_files::store::{self, AppendFile, FileLock};

use super::catalog::Catalog;
use super::error::Result;
use super::record::{Entry, Key, Kind, Place};
use super::types::Refusal;
use super::write::Writer;
use super::{DiskStore, index, segment};

const HALF_LIFE_SECONDS: f64 = 6.0 * 3600.0;
/// How long an append waits for another process that tidies: 0.2 s in all.
const LOCK_TRIES: usize = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// What a record is worth: tokens per byte, weighted by uses that count half as much every six hours.
fn score(entry: &Entry, now: u64) -> f64 {
    let age = now.saturating_sub(entry.used) as f64;
    let uses = f64::from(entry.hits) * (-age / HALF_LIFE_SECONDS).exp2();
    let tokens = if entry.kind == Kind::Snapshot { entry.first as usize } else { entry.tokens.len() };
    (if uses < 0.01 { 1.0 } else { uses + 1.0 }) * tokens as f64 / entry.record_bytes() as f64
}

/// Orders by score, then by the oldest use, then by age in the store.
type Worth = (u64, u64, u64);

fn worth(id: u64, entry: &Entry, now: u64) -> Worth {
    // The bits of floats that are not negative order like the floats.
    (score(entry, now).to_bits(), entry.used, id)
}

/// Leaves in the order of giving up; grows as leaves make their parents leaves.
struct Queue {
    heap: BinaryHeap<Reverse<Worth>>,
    protected: HashSet<u64>,
    now: u64,
}

impl Queue {
    fn new(catalog: &Catalog, protected: HashSet<u64>, now: u64) -> Queue {
        let orphans = catalog.orphans();
        let candidates = catalog.entries().filter(|(id, entry)| match entry.kind {
            Kind::Fragment => catalog.is_leaf(&entry.key),
            _ => orphans.contains(id),
        });
        let worth = candidates.map(|(id, entry)| match orphans.contains(&id) {
            // Nobody can find it.
            true => Reverse((0, entry.used, id)),
            false => Reverse(worth(id, entry, now)),
        });
        Queue { heap: worth.collect(), protected, now }
    }

    /// Gives up the next leaf with its snapshots; `None` when only protected chains are left, else whether a segment
    /// became empty.
    fn evict(&mut self, catalog: &mut Catalog) -> Option<bool> {
        loop {
            let Reverse((_, _, id)) = self.heap.pop()?;
            if self.protected.contains(&id) {
                continue;
            }
            let Some(entry) = catalog.remove(id) else { continue };
            let mut emptied = bury(catalog, entry.place);
            for snapshot in catalog.snapshots_of(&entry.key) {
                if let Some(snapshot) = catalog.remove(snapshot) {
                    emptied |= bury(catalog, snapshot.place);
                }
            }
            let parent = catalog.id_of(&entry.parent).filter(|_| catalog.is_leaf(&entry.parent));
            if let Some((id, parent)) = parent.and_then(|id| Some((id, catalog.get(id)?))) {
                self.heap.push(Reverse(worth(id, parent, self.now)));
            }
            return Some(emptied);
        }
    }
}

/// Remembers that the record at `place` was given up; whether that was its segment's last.
fn bury(catalog: &mut Catalog, place: Place) -> bool {
    catalog.dead.push(place);
    catalog.stats.evicted += 1;
    catalog.segments.get(&place.segment).is_none_or(|segment| segment.live == 0)
}

impl DiskStore {
    /// Bytes of all files, with the next index, which is written beside the last one.
    fn used(&self) -> u64 {
        let catalog = self.catalog();
        catalog.segment_bytes() + catalog.index_bytes + index::estimate(&catalog)
    }

    /// What the files may take in all: a part of the budget is left for compaction, which copies before it removes.
    fn cap(&self) -> u64 {
        self.config.budget_bytes - self.config.budget_bytes / 32
    }

    pub(super) fn fits(&self, bytes: u64) -> bool {
        self.used().saturating_add(bytes) <= self.cap()
    }

    pub(super) fn lock(&self) -> Result<Option<FileLock>> {
        Ok(FileLock::try_lock(&index::lock_path(&self.config.dir))?)
    }

    /// The same with a little patience: an append refused now leaves a gap that all later ones of its chain fall into.
    fn lock_soon(&self) -> Result<Option<FileLock>> {
        for _ in 0..LOCK_TRIES {
            if let Some(lock) = self.lock()? {
                return Ok(Some(lock));
            }
            std::thread::sleep(LOCK_PAUSE);
        }
        self.lock()
    }

    /// Makes room for a record of `bytes`, or says why there is none.
    pub(super) fn make_room(&self, writer: &mut Writer, bytes: u64) -> Result<Option<Refusal>> {
        if bytes > self.daily_left(&self.catalog()) {
            return Ok(Some(Refusal::DailyBudget));
        }
        if bytes > self.cap() {
            return Ok(Some(Refusal::Budget));
        }
        let enough = || self.fits(bytes) && !self.catalog().is_full();
        // Others write too. Looking this often keeps a few of them within the part left for compaction.
        if writer.unseen + bytes > self.config.budget_bytes / 64 || !enough() {
            self.refresh_with(writer)?;
        }
        if enough() {
            return Ok(None);
        }
        let Some(lock) = self.lock_soon()? else { return Ok(Some(Refusal::Budget)) };
        let protected = {
            let catalog = self.catalog();
            [catalog.written, catalog.read].into_iter().flatten().collect()
        };
        // A little more than asked for, so that not every append comes here.
        let room = self.cap() - bytes;
        self.reclaim(writer, room - room / 16, protected, &lock)?;
        self.compact_sparse(writer, &lock)?;
        Ok(match (enough(), bytes <= self.daily_left(&self.catalog())) {
            (true, true) => None,
            // Compaction may have used up the day.
            (true, false) => Some(Refusal::DailyBudget),
            (false, _) => Some(Refusal::Budget),
        })
    }

    /// Gives up chains and compacts until all files take at most `room` bytes, or only protected chains are left.
    /// Live bytes first go down to three quarters of that, so that compaction never copies much to win little.
    pub(super) fn reclaim(
        &self,
        writer: &mut Writer,
        room: u64,
        protected: HashSet<u64>,
        lock: &FileLock,
    ) -> Result<()> {
        let mut queue = Queue::new(&self.catalog(), protected, self.now());
        let mut left = true;
        loop {
            self.remove_empty(writer, true)?;
            let crowded = self.catalog().is_crowded() && left;
            if self.used() <= room && !crowded {
                return Ok(());
            }
            let roomy = self.catalog().live_bytes() <= room / 4 * 3;
            if roomy && !crowded && self.compact_one(writer, (4, 3), true, lock)? {
                continue;
            }
            // One leaf where compaction could not help, else as many as it takes.
            let mut catalog = self.catalog();
            let enough = |catalog: &Catalog| {
                roomy || catalog.live_bytes() <= room / 4 * 3 && !(crowded && catalog.is_crowded())
            };
            loop {
                match queue.evict(&mut catalog) {
                    None => {
                        left = false;
                        break;
                    }
                    Some(true) => break,
                    Some(false) if enough(&catalog) => break,
                    Some(false) => {}
                }
            }
            drop(catalog);
            if !left {
                self.remove_empty(writer, true)?;
                while self.used() > room && self.compact_one(writer, (1, 1), true, lock)? {}
                return Ok(());
            }
        }
    }

    /// Removes segments without a live record, unless another process appends to them; `own`: also the one that this
    /// process appends to.
    fn remove_empty(&self, writer: &mut Writer, own: bool) -> Result<()> {
        let current = writer.id();
        let empty: Vec<(u64, u64)> = {
            let catalog = self.catalog();
            let empty = catalog.segments.iter().filter(|(id, s)| {
                s.live == 0
                    && (s.ours || s.bytes == 0)
                    && s.looked == s.bytes
                    && (own || current != Some(**id))
            });
            empty.map(|(&id, s)| (id, s.bytes)).collect()
        };
        for (id, bytes) in empty {
            if Some(id) == current {
                writer.current = None;
            }
            if store::remove_unlocked(&segment::path(&self.config.dir, id), Some(bytes))? {
                self.catalog().remove_segment(id);
            }
        }
        Ok(())
    }

    /// Compacts segments whose live bytes fall below a third.
    pub(super) fn compact_sparse(&self, writer: &mut Writer, lock: &FileLock) -> Result<()> {
        self.remove_empty(writer, false)?;
        while self.compact_one(writer, (3, 1), false, lock)? {}
        Ok(())
    }

    /// Whether [`DiskStore::compact_sparse`] has anything to do.
    pub(super) fn is_sparse(&self, writer: &Writer) -> bool {
        let catalog = self.catalog();
        let mut others = catalog.segments.iter().filter(|(id, _)| writer.id() != Some(**id));
        others.any(|(_, s)| s.ours && s.live_bytes.saturating_mul(3) < s.bytes)
    }

    /// Copies the live records of the emptiest segment to the current one and removes it; of those segments whose live
    /// bytes times `whole` are less than all bytes times `part`, the current one only with `own`. `false` if there is
    /// none, the day's budget forbids it, or another process appends to it.
    fn compact_one(
        &self,
        writer: &mut Writer,
        (whole, part): (u64, u64),
        own: bool,
        _lock: &FileLock,
    ) -> Result<bool> {
        let mut candidates: Vec<(u64, u64, u64)> = {
            let catalog = self.catalog();
            let sparse = catalog.segments.iter().filter(|(id, s)| {
                let few = s.live_bytes.saturating_mul(whole) < s.bytes.saturating_mul(part);
                s.ours && s.live > 0 && few && (own || writer.id() != Some(**id))
            });
            sparse.map(|(&id, s)| (s.live_bytes.saturating_mul(1000) / s.bytes, id, s.bytes)).collect()
        };
        candidates.sort_unstable();
        for (_, id, bytes) in candidates {
            if writer.id() == Some(id) {
                self.close(writer)?;
            }
            // Held while its records are copied.
            let Ok(Some(held)) = AppendFile::reopen(&segment::path(&self.config.dir, id), bytes) else {
                continue;
            };
            let live = self.catalog().segments.get(&id).map_or(0, |s| s.live_bytes);
            if live > self.daily_left(&self.catalog()) {
                return Ok(false);
            }
            self.move_records(writer, id)?;
            drop(held);
            self.remove_empty(writer, false)?;
            return Ok(true);
        }
        Ok(false)
    }

    fn move_records(&self, writer: &mut Writer, id: u64) -> Result<()> {
        let mut entries: Vec<(u64, Entry)> = {
            let mut catalog = self.catalog();
            if let Some(segment) = catalog.segments.get_mut(&id) {
                // Nothing may be appended to it again.
                segment.clean = false;
            }
            let inside = catalog.entries().filter(|(_, entry)| entry.place.segment == id);
            inside.map(|(id, entry)| (id, entry.clone())).collect()
        };
        entries.sort_unstable_by_key(|(_, entry)| entry.place);
        for (id, mut entry) in entries {
            let place = entry.place;
            let Ok(payload) = segment::read(&self.config.dir, &entry, &self.limits) else {
                self.catalog().forget(id, place);
                continue;
            };
            entry.stored = self.now();
            let bytes = entry.record_bytes();
            let moved = self.write(writer, entry, &payload)?;
            let mut catalog = self.catalog();
            catalog.relocate(id, moved.place, moved.stored);
            catalog.stats.compacted_bytes += bytes;
        }
        // The copies are durable before the originals go.
        self.sync(writer)
    }

    /// Makes room for a snapshot of `bytes` within the snapshots' own budget.
    pub(super) fn make_snapshot_room(&self, writer: &mut Writer, bytes: u64) -> Result<Option<Refusal>> {
        let budget = self.config.snapshot_budget_bytes;
        if bytes > budget {
            return Ok(Some(Refusal::SnapshotBudget));
        }
        if self.catalog().snapshot_bytes() + bytes <= budget {
            return Ok(None);
        }
        self.refresh_with(writer)?;
        let Some(lock) = self.lock_soon()? else { return Ok(Some(Refusal::SnapshotBudget)) };
        {
            let mut catalog = self.catalog();
            let goal = (budget - bytes).min(budget - budget / 8);
            let mut held = catalog.snapshot_bytes();
            for id in snapshots_by_worth(&catalog, self.now()) {
                if held <= goal {
                    break;
                }
                if let Some(entry) = catalog.remove(id) {
                    held = held.saturating_sub(entry.record_bytes());
                    bury(&mut catalog, entry.place);
                }
            }
        }
        self.compact_sparse(writer, &lock)?;
        Ok(None)
    }
}

/// Snapshots in the order of giving up: those inside turns, then turn ends, the last of each chain at the very end;
/// within these by worth.
fn snapshots_by_worth(catalog: &Catalog, now: u64) -> Vec<u64> {
    // Per fragment, up to how many of its tokens a later snapshot follows.
    let mut followed: HashMap<Key, u32> = HashMap::new();
    let snapshots: Vec<(u64, &Entry)> = catalog.entries().filter(|(_, e)| e.kind == Kind::Snapshot).collect();
    for (_, snapshot) in &snapshots {
        let mut at = catalog.id_of(&snapshot.parent).and_then(|id| catalog.get(id));
        let mut steps = 0;
        while let Some(fragment) = at.filter(|_| steps < snapshot.first) {
            steps += 1;
            let reach = followed.entry(fragment.parent).or_default();
            if *reach >= fragment.taken && *reach > 0 {
                break;
            }
            *reach = fragment.taken.max(*reach);
            at = catalog.id_of(&fragment.parent).and_then(|id| catalog.get(id));
        }
    }
    let latest_here = |snapshot: &Entry| {
        let beside = catalog.snapshots_of(&snapshot.parent);
        beside.iter().filter_map(|id| catalog.get(*id)).all(|other| other.taken <= snapshot.taken)
    };
    let mut order: Vec<_> = snapshots
        .iter()
        .map(|&(id, entry)| {
            let reach = followed.get(&entry.parent).copied().unwrap_or(0);
            let newest = latest_here(entry) && reach < entry.taken;
            (newest, entry.turn_end, worth(id, entry, now), id)
        })
        .collect();
    order.sort_unstable();
    order.into_iter().map(|(.., id)| id).collect()
}
