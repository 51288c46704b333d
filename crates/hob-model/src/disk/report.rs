//! What `hob cache` shows and does: counters, the list of chains, trimming, verifying.
//! It must not know how records look on disk.

use std::collections::HashSet;

use hob_files::store;

use super::catalog::Catalog;
use super::error::{DiskError, Result};
use super::record::{Entry, Key, Kind};
use super::segment::Miss;
use super::types::{Bad, Chain, Identity, Report, Stats, Trimmed};
use super::{DiskStore, index, load, segment};

const SHOWN_TOKENS: usize = 64;
const SHOWN_BAD: usize = 100;

impl DiskStore {
    /// Counters and sizes.
    pub fn stats(&self) -> Stats {
        let mut catalog = self.catalog();
        catalog.day.roll(self.now());
        let snapshots = catalog.entries().filter(|(_, entry)| entry.kind == Kind::Snapshot).count();
        Stats {
            fragments: catalog.entries().count() - snapshots,
            snapshots,
            bytes: catalog.segment_bytes() + catalog.index_bytes,
            live_bytes: catalog.live_bytes(),
            snapshot_bytes: catalog.snapshot_bytes(),
            segments: catalog.segments.len(),
            written_today: catalog.day.bytes,
            ..catalog.stats
        }
    }

    /// The tokens of all chains of `identity`: what a conversation that comes back as text may be compared with.
    pub fn chains(&self, identity: &Identity) -> Vec<Vec<u32>> {
        let catalog = self.catalog();
        let ours = |entry: &&(u64, &Entry)| entry.1.kind == Kind::Fragment && entry.1.identity == *identity;
        let fragments: Vec<(u64, &Entry)> = catalog.entries().filter(|e| ours(&e)).collect();
        let continued: HashSet<(&Key, u32)> = fragments.iter().map(|(_, e)| (&e.parent, e.taken)).collect();
        let ends = fragments.iter().filter(|(_, e)| !continued.contains(&(&e.key, e.tokens.len() as u32)));
        ends.filter_map(|&(id, _)| tokens(&catalog, id)).collect()
    }

    /// All chains, most recently used first.
    pub fn list(&self) -> Vec<Chain> {
        let now = self.now();
        let catalog = self.catalog();
        let fragments = || catalog.entries().filter(|(_, entry)| entry.kind == Kind::Fragment);
        let continued: HashSet<(&Key, u32)> = fragments().map(|(_, e)| (&e.parent, e.taken)).collect();
        let ends = fragments().filter(|(_, e)| !continued.contains(&(&e.key, e.tokens.len() as u32)));
        let mut chains: Vec<Chain> = ends.filter_map(|(id, end)| chain(&catalog, id, end, now)).collect();
        let order = |chain: &Chain| (chain.age_seconds, chain.first_tokens.clone(), chain.tokens);
        chains.sort_by_cached_key(order);
        chains
    }

    /// Gives up the least valuable chains and compacts until the files take at most `to_bytes`; 0 removes all.
    /// Segments another process is writing stay.
    ///
    /// # Errors
    /// [`DiskError::Busy`] while another process tidies; [`DiskError::File`] if the system refuses.
    pub fn trim(&self, to_bytes: u64) -> Result<Trimmed> {
        let before_bytes = self.stats().bytes;
        let mut writer = self.writer();
        self.refresh_with(&mut writer)?;
        let lock = self.lock()?.ok_or_else(|| DiskError::Busy { dir: self.config.dir.clone() })?;
        let evicted = self.catalog().stats.evicted;
        // A smaller one is written at the end; until then the headers say the same. What cannot be removed, such as
        // a link in its place, is replaced then.
        let _ = store::remove_unlocked(&index::path(&self.config.dir), None);
        self.catalog().index_bytes = 0;
        self.reclaim(&mut writer, to_bytes, HashSet::new(), &lock)?;
        self.write_index(&mut writer, &lock)?;
        let records = self.catalog().stats.evicted - evicted;
        drop(writer);
        Ok(Trimmed { before_bytes, after_bytes: self.stats().bytes, records })
    }

    /// Reads everything and checks every checksum; damaged records are forgotten (for good at the next flush).
    ///
    /// # Errors
    /// [`DiskError::File`] if the folder cannot be listed any more.
    pub fn verify(&self) -> Result<Report> {
        self.refresh()?;
        let mut entries: Vec<(u64, Entry)> =
            self.catalog().entries().map(|(id, entry)| (id, entry.clone())).collect();
        // In the order of the files, so that a disk reads forwards.
        entries.sort_unstable_by_key(|(_, entry)| entry.place);
        let mut report = Report::default();
        for (id, entry) in entries {
            match segment::check(&self.config.dir, &entry, &self.limits) {
                Ok(()) => {
                    let count = match entry.kind {
                        Kind::Snapshot => &mut report.snapshots,
                        _ => &mut report.fragments,
                    };
                    *count += 1;
                    report.bytes += entry.payload_bytes;
                }
                Err(miss) => self.report_bad(&mut report, id, &entry, miss),
            }
        }
        let catalog = self.catalog();
        report.orphans = catalog.orphans().len();
        let unread = catalog.segments.values().filter(|segment| !segment.ours && segment.bytes > 0).count();
        drop(catalog);
        report.foreign_files = load::listing(&self.config.dir, &self.limits)?.foreign + unread;
        Ok(report)
    }

    fn report_bad(&self, report: &mut Report, id: u64, entry: &Entry, miss: Miss) {
        let mut catalog = self.catalog();
        // Unless compaction moved it, or eviction gave it up, while it was read.
        if !catalog.forget(id, entry.place) {
            return;
        }
        catalog.stats.damaged += 1;
        report.bad_count += 1;
        let problem = match miss {
            Miss::Gone => "the file cannot be read any more",
            Miss::Damaged(problem) => {
                catalog.dead.push(entry.place);
                problem
            }
        };
        if report.bad.len() < SHOWN_BAD {
            let file = segment::path(&self.config.dir, entry.place.segment);
            report.bad.push(Bad { file, offset: entry.place.offset, problem: problem.to_string() });
        }
    }
}

/// The tokens of the chain that ends in `id`; `None` if its beginning is missing.
fn tokens(catalog: &Catalog, id: u64) -> Option<Vec<u32>> {
    let ids = catalog.chain(id)?;
    let mut tokens = Vec::new();
    for (at, id) in ids.iter().enumerate().rev() {
        let next = at.checked_sub(1).and_then(|at| catalog.get(ids[at]));
        let entry = catalog.get(*id)?;
        let taken = next.map_or(entry.tokens.len(), |next| entry.tokens.len().min(next.taken as usize));
        tokens.extend_from_slice(&entry.tokens[..taken]);
    }
    Some(tokens)
}

/// The chain that ends in `end`; `None` if its beginning is missing.
fn chain(catalog: &Catalog, id: u64, end: &Entry, now: u64) -> Option<Chain> {
    let mut chain = Chain {
        identity: end.identity,
        tokens: end.first as usize + end.tokens.len(),
        bytes: 0,
        own_bytes: 0,
        snapshots: 0,
        age_seconds: now.saturating_sub(end.used),
        hits: end.hits,
        first_tokens: Vec::new(),
    };
    // Another chain may branch off inside its last fragment.
    let mut shared = !catalog.is_leaf(&end.key);
    // Of a fragment, how many tokens belong to the chain.
    let mut taken = u32::MAX;
    let ids = catalog.chain(id)?;
    for &id in &ids {
        let entry = catalog.get(id)?;
        shared |= catalog.child_count(&entry.key) > 1 || (taken as usize) < entry.tokens.len();
        let snapshots = catalog.snapshots_of(&entry.key);
        let snapshots = snapshots.iter().filter_map(|id| catalog.get(*id)).filter(|s| s.taken <= taken);
        let (count, bytes) = snapshots.fold((0, 0), |(n, bytes), s| (n + 1, bytes + s.record_bytes()));
        let bytes = entry.record_bytes() + bytes;
        chain.snapshots += count;
        chain.bytes += bytes;
        chain.own_bytes += if shared { 0 } else { bytes };
        taken = entry.taken;
    }
    // From the front, as far as each is used by the next.
    for (at, &id) in ids.iter().enumerate().rev() {
        let entry = catalog.get(id)?;
        let used = match at.checked_sub(1).and_then(|next| catalog.get(ids[next])) {
            Some(next) => (next.taken as usize).min(entry.tokens.len()),
            None => entry.tokens.len(),
        };
        let room = SHOWN_TOKENS - chain.first_tokens.len();
        chain.first_tokens.extend(entry.tokens.iter().take(used.min(room)));
        if chain.first_tokens.len() == SHOWN_TOKENS {
            break;
        }
    }
    Some(chain)
}
