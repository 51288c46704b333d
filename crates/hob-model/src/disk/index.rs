//! The index file: what a scan of all segments would find, written now and then so that opening need not scan.
//! It is a cache of the segments and nothing else: damaged or missing, everything is found again from the headers
//! (except that records given up long ago come back, and have to be given up again).
//!
//! Payload of a checked file, little-endian: magic, day, bytes of that day; segments {id, scanned, clean}; identities;
//! entries {kind, turn_end, identity number, segment number, taken, first, tokens, hits, offset, payload bytes,
//! created, used, stored, key, parent, tokens}.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use hob_files::store;

use super::catalog::{Catalog, Day, Segment};
use super::record::{Entry, Fields, Key, Kind, Place};
use super::types::{FRAGMENT_TOKENS, Identity, Limits};

const MAGIC: [u8; 8] = *b"hobkvix\x01";
const NAME: &str = "kv.index";
const LOCK_NAME: &str = "kv.lock";
/// Where the count of the day stands in the payload.
const DAY_BYTES_AT: usize = 16;
/// An entry without its tokens: eight u32, five u64, two keys.
const ENTRY_BYTES: usize = 136;
/// What a checked file has besides its payload.
const FOOTER_BYTES: u64 = 24;

/// A decoded index.
#[derive(Debug, Default)]
pub(super) struct Index {
    pub day: Day,
    pub segments: Vec<(u64, u64, bool)>,
    pub entries: Vec<Entry>,
    /// Bytes of the file; 0 if there is none.
    pub bytes: u64,
}

pub(super) fn path(dir: &Path) -> PathBuf {
    dir.join(NAME)
}

/// Held while a process evicts, compacts or writes the index.
pub(super) fn lock_path(dir: &Path) -> PathBuf {
    dir.join(LOCK_NAME)
}

/// Whether the tier makes files of this name besides segments.
pub(super) fn is_ours(name: &str) -> bool {
    name == NAME || name == LOCK_NAME || is_leftover(name)
}

/// Whether this file was left by a process that died while it wrote an index.
pub(super) fn is_leftover(name: &str) -> bool {
    name.strip_prefix('.').and_then(|name| name.strip_prefix(NAME)).is_some_and(|rest| rest.ends_with(".tmp"))
}

/// The index of a folder; empty if there is none that is right in every byte.
pub(super) fn read(dir: &Path, limits: &Limits) -> Index {
    let path = path(dir);
    let Ok(facts) = std::fs::symlink_metadata(&path) else { return Index::default() };
    if !facts.is_file() {
        return Index::default();
    }
    let bytes = store::read_checked(&path, limits.index_bytes);
    let index = bytes.ok().flatten().and_then(|bytes| decode(&bytes, limits)).unwrap_or_default();
    Index { bytes: facts.len(), ..index }
}

/// The payload of an index of this catalog, and the bytes of its file. Only records that are durable are named.
pub(super) fn encode(catalog: &Catalog) -> (Vec<u8>, u64) {
    let segments: Vec<(&u64, &Segment)> = catalog.segments.iter().collect();
    let numbers: HashMap<u64, u32> = segments.iter().zip(0..).map(|((id, _), at)| (**id, at)).collect();
    let mut identities: Vec<Identity> = catalog.entries().map(|(_, entry)| entry.identity).collect();
    identities.sort_unstable();
    identities.dedup();
    let mut out = MAGIC.to_vec();
    put(&mut out, &[catalog.day.day, catalog.day.bytes, segments.len() as u64]);
    for (id, segment) in segments {
        put(&mut out, &[*id, segment.scanned.min(segment.durable), u64::from(segment.clean)]);
    }
    put(&mut out, &[identities.len() as u64]);
    out.extend(identities.as_flattened());
    let durable = |entry: &Entry| {
        let segment = catalog.segments.get(&entry.place.segment);
        segment.is_some_and(|segment| entry.end().is_some_and(|end| end <= segment.durable))
    };
    for (_, entry) in catalog.entries().filter(|(_, entry)| durable(entry)) {
        let identity = identities.binary_search(&entry.identity).unwrap_or(0) as u32;
        let segment = numbers.get(&entry.place.segment).copied().unwrap_or(0);
        let tokens = entry.tokens.len() as u32;
        let (kind, turn_end) = (entry.kind.code(), u32::from(entry.turn_end));
        for number in [kind, turn_end, identity, segment, entry.taken, entry.first, tokens, entry.hits] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        put(&mut out, &[entry.place.offset, entry.payload_bytes, entry.created, entry.used, entry.stored]);
        out.extend_from_slice(&entry.key);
        out.extend_from_slice(&entry.parent);
        out.extend(entry.tokens.iter().flat_map(|token| token.to_le_bytes()));
    }
    // The index itself counts as written.
    let bytes = out.len() as u64 + FOOTER_BYTES;
    out[DAY_BYTES_AT..DAY_BYTES_AT + 8].copy_from_slice(&(catalog.day.bytes + bytes).to_le_bytes());
    (out, bytes)
}

fn put(out: &mut Vec<u8>, numbers: &[u64]) {
    out.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
}

/// Bytes of the file that [`encode`] would make, about: to decide whether it is worth writing.
pub(super) fn estimate(catalog: &Catalog) -> u64 {
    64 + 24 * catalog.segments.len() as u64 + catalog.described
}

/// Bytes of one entry.
pub(super) fn described(entry: &Entry) -> u64 {
    (ENTRY_BYTES + 4 * entry.tokens.len()) as u64
}

/// Reads an index; `None` unless it is complete and every count fits the bytes that are there.
fn decode(bytes: &[u8], limits: &Limits) -> Option<Index> {
    let mut fields = Fields { rest: bytes };
    if fields.array()? != MAGIC {
        return None;
    }
    let mut index = Index { day: Day { day: fields.u64()?, bytes: fields.u64()? }, ..Index::default() };
    for _ in 0..fields.u64()? {
        index.segments.push((fields.u64()?, fields.u64()?, fields.u64()? == 1));
    }
    let mut identities: Vec<Identity> = Vec::new();
    for _ in 0..fields.u64()? {
        identities.push(fields.array()?);
    }
    while !fields.rest.is_empty() && index.entries.len() < limits.records {
        let entry = decode_entry(&mut fields, &index.segments, &identities)?;
        if !entry.is_sane(limits) || entry.kind.is_note() {
            return None;
        }
        index.entries.push(entry);
    }
    Some(index)
}

fn decode_entry(
    fields: &mut Fields,
    segments: &[(u64, u64, bool)],
    identities: &[Identity],
) -> Option<Entry> {
    let kind = Kind::of(fields.u32()?)?;
    let turn_end = fields.u32()? == 1;
    let identity = *identities.get(fields.u32()? as usize)?;
    let segment = segments.get(fields.u32()? as usize)?.0;
    let [taken, first, count, hits] = [fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?];
    let place = Place { segment, offset: fields.u64()? };
    let [payload_bytes, created, used, stored] = [fields.u64()?, fields.u64()?, fields.u64()?, fields.u64()?];
    let [key, parent]: [Key; 2] = [fields.array()?, fields.array()?];
    if count as usize > FRAGMENT_TOKENS {
        return None;
    }
    let tokens = fields.take(4 * count as usize)?.as_chunks().0;
    Some(Entry {
        kind,
        turn_end,
        identity,
        key,
        parent,
        taken,
        first,
        tokens: tokens.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect(),
        place,
        payload_bytes,
        created,
        used,
        stored,
        hits,
    })
}
