//! What the store knows in memory: entries by key, who follows whom, what each segment holds, the day's counter.
//! Lookup walks the trie by comparing tokens; hashes only find candidates. It must not know files or locks.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::index;
use super::record::{Entry, Header, Key, Kind, Place, root_key};
use super::segment::{Note, Scan};
use super::types::{Found, FragmentId, Identity, Limits, Piece, SnapshotId, Stats};

const DAY_SECONDS: u64 = 24 * 3600;
/// Two processes may store the same beginning twice; of more than this many rivals the rest is not looked at.
const RIVALS: usize = 16;

/// A segment file as far as known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Segment {
    pub bytes: u64,
    /// Up to where its records are in the catalog.
    pub scanned: u64,
    /// The size it had when it was last scanned.
    pub looked: u64,
    /// Up to where it is known to survive a power cut.
    pub durable: u64,
    /// Up to where the index on disk knows it.
    pub indexed: u64,
    pub live_bytes: u64,
    pub live: usize,
    /// Ends with a whole record, nothing damaged: may be appended to.
    pub clean: bool,
    /// A sync of it failed: what is not durable never will be, whatever a later sync says.
    pub failed: bool,
    /// Has or had a right record; a file without one is left alone whatever its name.
    pub ours: bool,
}

/// Bytes written on one day.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Day {
    pub day: u64,
    pub bytes: u64,
}

impl Day {
    /// Goes to the day of `now`. A clock that goes back by one day continues the later day's count, so that midnight
    /// and small corrections give no second budget; one that was wrong by more starts anew, so that a date far in the
    /// future does not block writing forever.
    pub(super) fn roll(&mut self, now: u64) {
        let day = now / DAY_SECONDS;
        if day > self.day || day + 1 < self.day {
            *self = Day { day, bytes: 0 };
        }
    }

    /// Takes note of bytes another writer stored at `stored`, whose own count was then `counter`.
    fn learn(&mut self, stored: u64, bytes: u64, counter: u64) -> u64 {
        let same = stored / DAY_SECONDS == self.day;
        self.bytes += if same { bytes } else { 0 };
        if same { counter } else { 0 }
    }
}

/// The longest match of a walk: fragments with the number of their tokens used.
#[derive(Debug, Default)]
pub(super) struct Path {
    pub steps: Vec<(u64, u32)>,
    pub tokens: usize,
}

#[derive(Debug)]
pub(super) struct Catalog {
    limits: Limits,
    entries: HashMap<u64, Entry>,
    next: u64,
    by_key: HashMap<Key, u64>,
    by_place: HashMap<Place, u64>,
    /// Fragments by (parent, tokens of it before them, their first token).
    following: HashMap<(Key, u32, u32), Vec<u64>>,
    snapshots: HashMap<Key, Vec<u64>>,
    /// Fragments per parent.
    children: HashMap<Key, u32>,
    pub segments: BTreeMap<u64, Segment>,
    pub day: Day,
    pub stats: Stats,
    /// Ends of the chains last written and last found or read: not to be evicted.
    pub written: Option<u64>,
    pub read: Option<u64>,
    /// Read since the last note about it.
    touched: HashSet<u64>,
    /// Given up since the last note about it.
    pub dead: Vec<Place>,
    /// Bytes an index needs for the entries.
    pub described: u64,
    /// Bytes of the index file.
    pub index_bytes: u64,
}

impl Catalog {
    pub(super) fn new(limits: Limits) -> Catalog {
        Catalog {
            limits,
            entries: HashMap::new(),
            next: 0,
            by_key: HashMap::new(),
            by_place: HashMap::new(),
            following: HashMap::new(),
            snapshots: HashMap::new(),
            children: HashMap::new(),
            segments: BTreeMap::new(),
            day: Day::default(),
            stats: Stats::default(),
            written: None,
            read: None,
            touched: HashSet::new(),
            dead: Vec::new(),
            described: 0,
            index_bytes: 0,
        }
    }

    pub(super) fn get(&self, id: u64) -> Option<&Entry> {
        self.entries.get(&id)
    }

    pub(super) fn id_of(&self, key: &Key) -> Option<u64> {
        self.by_key.get(key).copied()
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (u64, &Entry)> {
        self.entries.iter().map(|(&id, entry)| (id, entry))
    }

    pub(super) fn is_full(&self) -> bool {
        self.entries.len() >= self.limits.records
    }

    /// Whether eviction for lack of entries should go on.
    pub(super) fn is_crowded(&self) -> bool {
        self.entries.len() > self.limits.records - self.limits.records.div_ceil(16)
    }

    /// Adds an entry. The same record stored twice is one: the newer bytes count, the older ones are dead.
    pub(super) fn insert(&mut self, entry: Entry) -> Option<u64> {
        if let Some(id) = self.id_of(&entry.key) {
            self.merge(id, entry);
            return Some(id);
        }
        if self.is_full() {
            return None;
        }
        let id = self.next;
        self.next += 1;
        match entry.kind {
            Kind::Fragment => {
                let follows = (entry.parent, entry.taken, *entry.tokens.first()?);
                self.following.entry(follows).or_default().push(id);
                *self.children.entry(entry.parent).or_default() += 1;
            }
            Kind::Snapshot => self.snapshots.entry(entry.parent).or_default().push(id),
            Kind::Tombstones | Kind::Uses => return None,
        }
        self.by_key.insert(entry.key, id);
        self.place(id, &entry);
        self.described += index::described(&entry);
        self.entries.insert(id, entry);
        Some(id)
    }

    fn merge(&mut self, id: u64, entry: Entry) {
        let Some(old) = self.entries.get(&id) else { return };
        if old.place == entry.place || old.stored > entry.stored {
            return;
        }
        let (hits, used, created) = (old.hits, old.used, old.created);
        self.displace(id);
        self.place(id, &entry);
        let entry = Entry {
            hits: hits.max(entry.hits),
            used: used.max(entry.used),
            created: created.min(entry.created),
            ..entry
        };
        self.entries.insert(id, entry);
    }

    fn place(&mut self, id: u64, entry: &Entry) {
        self.by_place.insert(entry.place, id);
        let segment = self.segments.entry(entry.place.segment).or_default();
        segment.live_bytes += entry.record_bytes();
        segment.live += 1;
    }

    fn displace(&mut self, id: u64) {
        let Some(entry) = self.entries.get(&id) else { return };
        self.by_place.remove(&entry.place);
        if let Some(segment) = self.segments.get_mut(&entry.place.segment) {
            segment.live_bytes = segment.live_bytes.saturating_sub(entry.record_bytes());
            segment.live = segment.live.saturating_sub(1);
        }
    }

    /// Forgets an entry. What hangs on it stays known, and is found again if the same record is stored again.
    pub(super) fn remove(&mut self, id: u64) -> Option<Entry> {
        self.displace(id);
        let entry = self.entries.remove(&id)?;
        self.by_key.remove(&entry.key);
        self.described -= index::described(&entry);
        self.touched.remove(&id);
        match entry.kind {
            Kind::Fragment => {
                let follows = (entry.parent, entry.taken, entry.tokens[0]);
                drop_from(&mut self.following, &follows, id);
                if let Some(count) = self.children.get_mut(&entry.parent) {
                    *count -= 1;
                    if *count == 0 {
                        self.children.remove(&entry.parent);
                    }
                }
            }
            _ => drop_from(&mut self.snapshots, &entry.parent, id),
        }
        Some(entry)
    }

    /// The bytes of an entry have been copied to another place.
    pub(super) fn relocate(&mut self, id: u64, place: Place, stored: u64) {
        self.displace(id);
        let Some(entry) = self.entries.get_mut(&id) else { return };
        (entry.place, entry.stored) = (place, stored);
        let entry = entry.clone();
        self.place(id, &entry);
    }

    /// Forgets the entry if it still stands where it was when something was found wrong with it.
    pub(super) fn forget(&mut self, id: u64, place: Place) -> bool {
        let there = self.get(id).is_some_and(|entry| entry.place == place);
        if there {
            self.remove(id);
        }
        there
    }

    /// Forgets everything in a segment that is gone.
    pub(super) fn remove_segment(&mut self, segment: u64) {
        let ids: Vec<u64> =
            self.entries.iter().filter(|(_, e)| e.place.segment == segment).map(|(&id, _)| id).collect();
        for id in ids {
            self.remove(id);
        }
        self.segments.remove(&segment);
    }

    /// Takes over what scans of segments found: first all records but those that a note gave up, which must not stand for
    /// the same record stored anew, then what the notes say about records known before.
    pub(super) fn take(&mut self, scans: Vec<(u64, u64, Scan)>) {
        let mut counter = 0;
        let dead: HashSet<Place> = scans
            .iter()
            .flat_map(|(_, _, scan)| &scan.notes)
            .filter(|note| note.kind == Kind::Tombstones)
            .flat_map(|note| note.places.iter().copied())
            .collect();
        let mut notes: Vec<Note> = Vec::new();
        for (id, bytes, scan) in scans {
            let segment = self.segments.entry(id).or_default();
            (segment.bytes, segment.looked) = (bytes, bytes);
            (segment.scanned, segment.clean) = (scan.end, scan.clean);
            segment.ours |= !scan.headers.is_empty() || !scan.notes.is_empty();
            for Header { entry, day_bytes, .. } in scan.headers {
                counter = counter.max(self.day.learn(entry.stored, entry.record_bytes(), day_bytes));
                if !dead.contains(&entry.place) {
                    self.insert(entry);
                }
            }
            for (stored, day_bytes, bytes) in scan.note_costs {
                counter = counter.max(self.day.learn(stored, bytes, day_bytes));
            }
            notes.extend(scan.notes);
        }
        self.day.bytes = self.day.bytes.max(counter);
        for note in notes {
            for id in
                note.places.iter().filter_map(|place| self.by_place.get(place).copied()).collect::<Vec<_>>()
            {
                match note.kind {
                    Kind::Tombstones => drop(self.remove(id)),
                    _ => self.used_chain(id, note.time),
                }
            }
        }
    }

    /// A use of the chain that ends in `id`.
    fn used_chain(&mut self, id: u64, time: u64) {
        let mut next = Some(id);
        let mut left = self.entries.len();
        while let Some(entry) = next.and_then(|id| self.entries.get_mut(&id)).filter(|_| left > 0) {
            entry.hits = entry.hits.saturating_add(1);
            entry.used = entry.used.max(time);
            left -= 1;
            let parent = entry.parent;
            next = self.id_of(&parent);
        }
    }

    /// Counts a read.
    pub(super) fn mark_read(&mut self, id: u64, now: u64) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.hits = entry.hits.saturating_add(1);
        entry.used = entry.used.max(now);
        let (bytes, fragment) = (entry.payload_bytes, entry.kind == Kind::Fragment);
        self.touched.insert(id);
        if fragment {
            self.read = Some(id);
        }
        self.stats.reads += 1;
        self.stats.read_bytes += bytes;
    }

    /// A chain was continued: its fragments are in use, without having been read.
    pub(super) fn mark_continued(&mut self, path: &Path, now: u64) {
        for (id, _) in &path.steps {
            if let Some(entry) = self.entries.get_mut(id) {
                entry.used = entry.used.max(now);
            }
        }
    }

    /// Places of the ends of chains read since the last call; their beginnings follow from them.
    pub(super) fn take_touched(&mut self) -> Vec<Place> {
        let touched = std::mem::take(&mut self.touched);
        let entries: Vec<&Entry> = touched.iter().filter_map(|id| self.entries.get(id)).collect();
        let parents: HashSet<&Key> = entries.iter().map(|entry| &entry.parent).collect();
        entries.iter().filter(|entry| !parents.contains(&entry.key)).map(|entry| entry.place).collect()
    }

    /// The longest stored prefix of `tokens`. Linear in the tokens, since at most one fragment continues a position,
    /// except where processes have stored the same beginning twice; the work on such rivals is bounded.
    pub(super) fn walk(&self, identity: &Identity, tokens: &[u32]) -> Path {
        let mut best = Path::default();
        let mut path = Path::default();
        // Rivals still to try: (length of the path before them, fragment).
        let mut rivals: Vec<(usize, u64)> = Vec::new();
        let mut work = 4 * tokens.len() + 1024;
        self.push_following(&mut rivals, 0, (root_key(identity), 0), tokens.first());
        while let Some((depth, id)) = rivals.pop() {
            if depth < path.steps.len() {
                if path.tokens > best.tokens {
                    best = Path { steps: path.steps.clone(), tokens: path.tokens };
                }
                let cut = path.steps.drain(depth..).map(|(_, taken)| taken as usize).sum::<usize>();
                path.tokens -= cut;
            }
            let Some(entry) = self.entries.get(&id) else { continue };
            if entry.identity != *identity || entry.first as usize != path.tokens {
                continue;
            }
            let rest = &tokens[path.tokens..];
            let same = entry.tokens.iter().zip(rest).take_while(|(a, b)| a == b).count();
            path.steps.push((id, same as u32));
            path.tokens += same;
            work = work.saturating_sub(same + 1);
            if work == 0 {
                break;
            }
            self.push_following(&mut rivals, path.steps.len(), (entry.key, same as u32), rest.get(same));
        }
        if path.tokens > best.tokens { path } else { best }
    }

    fn push_following(
        &self,
        rivals: &mut Vec<(usize, u64)>,
        depth: usize,
        at: (Key, u32),
        token: Option<&u32>,
    ) {
        let Some(&token) = token else { return };
        if let Some(ids) = self.following.get(&(at.0, at.1, token)) {
            rivals.extend(ids.iter().take(RIVALS).map(|&id| (depth, id)));
        }
    }

    /// The path as the caller sees it, with the snapshots on it.
    pub(super) fn found(&self, path: &Path) -> Found {
        let mut found = Found { tokens: path.tokens, ..Found::default() };
        for &(id, taken) in &path.steps {
            let Some(entry) = self.get(id) else { break };
            found.bytes += entry.payload_bytes;
            found.pieces.push(Piece {
                fragment: FragmentId(id),
                first: entry.first as usize,
                tokens: entry.tokens.len(),
                take_tokens: taken as usize,
                bytes: entry.payload_bytes,
            });
            for &id in self.snapshots.get(&entry.key).into_iter().flatten() {
                let fits = |s: &&Entry| {
                    let here = s.taken <= taken && s.identity == entry.identity;
                    here && s.first == entry.first + s.taken
                };
                if let Some(snapshot) = self.get(id).filter(fits) {
                    found.snapshots.push((snapshot.first as usize, SnapshotId(id)));
                }
            }
        }
        found.snapshots.sort_unstable();
        found
    }

    /// Whether no fragment hangs on this one.
    pub(super) fn is_leaf(&self, key: &Key) -> bool {
        !self.children.contains_key(key)
    }

    pub(super) fn child_count(&self, key: &Key) -> u32 {
        self.children.get(key).copied().unwrap_or(0)
    }

    pub(super) fn snapshots_of(&self, key: &Key) -> Vec<u64> {
        self.snapshots.get(key).cloned().unwrap_or_default()
    }

    /// Entries from `id` to the beginning of its chain; `None` if the beginning is missing.
    pub(super) fn chain(&self, id: u64) -> Option<Vec<u64>> {
        let mut ids = Vec::new();
        let mut next = id;
        loop {
            let entry = self.get(next)?;
            ids.push(next);
            // A hostile file may make a ring of parents, a right one cannot be longer than its tokens.
            if ids.len() > self.entries.len() {
                return None;
            }
            match self.id_of(&entry.parent) {
                Some(parent) => next = parent,
                None => return (entry.parent == root_key(&entry.identity)).then_some(ids),
            }
        }
    }

    /// Fragments whose beginning is missing, and snapshots whose fragment is.
    pub(super) fn orphans(&self) -> HashSet<u64> {
        let mut rooted: HashMap<u64, bool> = HashMap::new();
        for &id in self.entries.keys() {
            let mut path = Vec::new();
            let mut next = Some(id);
            let mut answer = false;
            while let Some(at) = next.filter(|_| path.len() <= self.entries.len()) {
                if let Some(&known) = rooted.get(&at) {
                    answer = known;
                    break;
                }
                path.push(at);
                let Some(entry) = self.entries.get(&at) else { break };
                next = self.id_of(&entry.parent);
                answer = next.is_none() && entry.parent == root_key(&entry.identity);
            }
            rooted.extend(path.into_iter().map(|at| (at, answer)));
        }
        rooted.into_iter().filter(|(_, rooted)| !rooted).map(|(id, _)| id).collect()
    }

    /// Bytes of all segment files.
    pub(super) fn segment_bytes(&self) -> u64 {
        self.segments.values().map(|segment| segment.bytes).sum()
    }

    pub(super) fn live_bytes(&self) -> u64 {
        self.segments.values().map(|segment| segment.live_bytes).sum()
    }

    pub(super) fn snapshot_bytes(&self) -> u64 {
        let ids = self.snapshots.values().flatten();
        ids.filter_map(|id| self.get(*id)).map(Entry::record_bytes).sum()
    }
}

fn drop_from<K: std::hash::Hash + Eq>(map: &mut HashMap<K, Vec<u64>>, key: &K, id: u64) {
    if let Some(ids) = map.get_mut(key) {
        ids.retain(|&other| other != id);
        if ids.is_empty() {
            map.remove(key);
        }
    }
}
