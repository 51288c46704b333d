//! Segment files: their names, reading one record out of one, and walking all headers of one whatever it contains.
//! It must not know what the records are for, and writes nothing.

use std::path::{Path, PathBuf};

use hob_files::store::StoredFile;
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use super::record::{ALIGN, Entry, HEAD_BYTES_MAX, HEADER_BYTES, Header, Kind, MAGIC, Place, decode_places};
use super::types::Limits;

const PREFIX: &str = "kv-";
const SUFFIX: &str = ".seg";
/// Bytes read at once where a payload is checked or a header searched for.
const BUFFER_BYTES: usize = 1 << 20;

/// The file of a segment.
pub(super) fn path(dir: &Path, segment: u64) -> PathBuf {
    dir.join(format!("{PREFIX}{segment:016x}{SUFFIX}"))
}

/// The segment whose file has this name; other names are none of ours.
pub(super) fn id_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
    let plain = digits.len() == 16 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    plain.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
}

/// Why a record could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Miss {
    /// The file is gone, or the system does not give it out.
    Gone,
    /// It is there, and wrong.
    Damaged(&'static str),
}

/// A note found while scanning.
pub(super) struct Note {
    pub kind: Kind,
    pub places: Vec<Place>,
    pub time: u64,
}

/// What a walk over a segment found.
#[derive(Default)]
pub(super) struct Scan {
    /// Fragments and snapshots.
    pub headers: Vec<Header>,
    pub notes: Vec<Note>,
    /// Bytes and counters of the notes' records: (stored, day_bytes, record bytes).
    pub note_costs: Vec<(u64, u64, u64)>,
    /// Up to where everything has been seen; a later scan goes on from here.
    pub end: u64,
    /// The file ends with a whole record and nothing before that is damaged: it may be appended to.
    pub clean: bool,
}

/// Walks the headers from `from` (a multiple of 64) on. Damage is skipped by looking for the next header that is right,
/// at most `most` records are taken.
pub(super) fn scan(dir: &Path, segment: u64, from: u64, limits: &Limits, most: usize) -> Option<Scan> {
    let file = StoredFile::open(&path(dir, segment)).ok()??;
    let mut scan = Scan { end: from, clean: true, ..Scan::default() };
    let mut head = vec![0; HEAD_BYTES_MAX];
    while scan.end < file.bytes() && scan.headers.len() + scan.notes.len() < most {
        let place = Place { segment, offset: scan.end };
        let Some(header) = header_at(&file, place, &mut head, limits) else {
            scan.clean = false;
            // A header cut short by the end of the file may be one that is being written now.
            if file.bytes() - scan.end < HEAD_BYTES_MAX as u64 {
                break;
            }
            scan.end = next_header(&file, place, limits);
            continue;
        };
        match header.entry.end() {
            Some(end) if end <= file.bytes() => {
                take(&mut scan, &file, header);
                scan.end = end;
            }
            // Being written now, or torn.
            _ => {
                scan.clean = false;
                break;
            }
        }
    }
    scan.clean &= scan.end == file.bytes();
    Some(scan)
}

fn take(scan: &mut Scan, file: &StoredFile, header: Header) {
    if !header.entry.kind.is_note() {
        scan.headers.push(header);
        return;
    }
    let entry = &header.entry;
    scan.note_costs.push((entry.stored, header.day_bytes, entry.record_bytes()));
    if let Ok(payload) = payload(file, &header) {
        scan.notes.push(Note { kind: entry.kind, places: decode_places(&payload), time: entry.created });
    }
}

fn header_at(file: &StoredFile, place: Place, head: &mut [u8], limits: &Limits) -> Option<Header> {
    let count = file.bytes().checked_sub(place.offset)?.min(head.len() as u64) as usize;
    let head = head.get_mut(..count).filter(|_| count >= HEADER_BYTES)?;
    file.read_exact_at(head, place.offset).ok()?;
    Header::decode(head, place, limits)
}

/// The next place behind `bad` where a right header stands, or the end of the file.
fn next_header(file: &StoredFile, bad: Place, limits: &Limits) -> u64 {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut head = vec![0; HEAD_BYTES_MAX];
    let mut at = bad.offset + ALIGN;
    while at < file.bytes() {
        let count = (file.bytes() - at).min(BUFFER_BYTES as u64) as usize;
        if file.read_exact_at(&mut buffer[..count], at).is_err() {
            return file.bytes();
        }
        for step in (0..count).step_by(ALIGN as usize) {
            let place = Place { segment: bad.segment, offset: at + step as u64 };
            if buffer[step..count].starts_with(&MAGIC) && header_at(file, place, &mut head, limits).is_some()
            {
                return place.offset;
            }
        }
        at += count.next_multiple_of(ALIGN as usize) as u64;
    }
    file.bytes()
}

/// The payload behind a header; its room is taken only after the file proved long enough.
fn payload(file: &StoredFile, header: &Header) -> Result<Vec<u8>, Miss> {
    let entry = &header.entry;
    if entry.end().is_none_or(|end| end > file.bytes()) {
        return Err(Miss::Damaged("the file ends inside the record"));
    }
    let mut bytes = vec![0; usize::try_from(entry.payload_bytes).map_err(|_| Miss::Gone)?];
    file.read_exact_at(&mut bytes, entry.place.offset + entry.head_bytes()).map_err(|_| Miss::Gone)?;
    match xxh3_128(&bytes) == header.payload_sum {
        true => Ok(bytes),
        false => Err(Miss::Damaged("the payload does not match its checksum")),
    }
}

/// Opens the record of `entry` and makes sure that it is the one: same tokens, parent and identity.
fn open(dir: &Path, entry: &Entry, limits: &Limits) -> Result<(StoredFile, Header), Miss> {
    let file =
        StoredFile::open(&path(dir, entry.place.segment)).map_err(|_| Miss::Gone)?.ok_or(Miss::Gone)?;
    let mut head = vec![0; entry.head_bytes() as usize];
    file.read_exact_at(&mut head, entry.place.offset)
        .map_err(|_| Miss::Damaged("the file ends before the record"))?;
    let header =
        Header::decode(&head, entry.place, limits).ok_or(Miss::Damaged("the header is not right"))?;
    let found = &header.entry;
    let same = found.kind == entry.kind
        && found.key == entry.key
        && found.identity == entry.identity
        && found.parent == entry.parent
        && (found.taken, found.first, found.payload_bytes) == (entry.taken, entry.first, entry.payload_bytes)
        && found.tokens == entry.tokens;
    match same {
        true => Ok((file, header)),
        false => Err(Miss::Damaged("the record there is another one")),
    }
}

/// The verified payload of a record.
pub(super) fn read(dir: &Path, entry: &Entry, limits: &Limits) -> Result<Vec<u8>, Miss> {
    let (file, header) = open(dir, entry, limits)?;
    payload(&file, &header)
}

/// Verifies a record without keeping its payload.
pub(super) fn check(dir: &Path, entry: &Entry, limits: &Limits) -> Result<(), Miss> {
    let (file, header) = open(dir, entry, limits)?;
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut sum = Xxh3::new();
    let (mut at, mut left) = (entry.place.offset + entry.head_bytes(), entry.payload_bytes);
    while left > 0 {
        let count = left.min(BUFFER_BYTES as u64) as usize;
        let read = file.read_exact_at(&mut buffer[..count], at);
        read.map_err(|_| Miss::Damaged("the file ends inside the record"))?;
        sum.update(&buffer[..count]);
        (at, left) = (at + count as u64, left - count as u64);
    }
    match sum.digest128() == header.payload_sum {
        true => Ok(()),
        false => Err(Miss::Damaged("the payload does not match its checksum")),
    }
}
