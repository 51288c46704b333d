//! The records segments consist of: what they say, and how that becomes bytes and back. It must not know files.
//!
//! A record, little-endian, at a multiple of 64 bytes: a header of [`HEADER_BYTES`], the tokens (u32 each), the
//! payload, zeros up to the next multiple of 64. Two checksums: xxh3-64 over header and tokens, which also hold the
//! record's own place (a copy elsewhere is not a record), and xxh3-128 of the payload, kept in the header. xxh3 and
//! not BLAKE3, which makes the keys: it runs at the speed of memory where BLAKE3 would halve the speed of a restore,
//! and a checksum beside the data would not stop someone who may write to the folder in either case.

use xxhash_rust::xxh3::xxh3_64;

use super::types::{FRAGMENT_TOKENS, Identity, Limits};

/// BLAKE3 of everything that a record's content follows from.
pub(super) type Key = [u8; 32];

pub(super) const ALIGN: u64 = 64;
pub(super) const HEADER_BYTES: usize = 208;
/// Header and tokens of the longest fragment: what has to be read to know any record.
pub(super) const HEAD_BYTES_MAX: usize = HEADER_BYTES + 4 * FRAGMENT_TOKENS;
/// Bytes of one [`Place`] in the payload of a note.
const PLACE_BYTES: usize = 16;
/// Payload of the longest note; longer lists become several notes.
pub(super) const NOTE_BYTES_MAX: u64 = 64 << 10;
pub(super) const NOTE_PLACES: usize = NOTE_BYTES_MAX as usize / PLACE_BYTES;

pub(super) const MAGIC: [u8; 8] = *b"hobkv\0\0\x01";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Tokens and the image of their positions.
    Fragment,
    /// A recurrent state after `taken` tokens of its parent.
    Snapshot,
    /// A note: the records at these places are given up.
    Tombstones,
    /// A note: the chains that end in these records were read at the time of the note.
    Uses,
}

impl Kind {
    pub(super) fn code(self) -> u32 {
        match self {
            Kind::Fragment => 1,
            Kind::Snapshot => 2,
            Kind::Tombstones => 3,
            Kind::Uses => 4,
        }
    }

    pub(super) fn of(code: u32) -> Option<Kind> {
        [Kind::Fragment, Kind::Snapshot, Kind::Tombstones, Kind::Uses].into_iter().find(|k| k.code() == code)
    }

    pub(super) fn is_note(self) -> bool {
        matches!(self, Kind::Tombstones | Kind::Uses)
    }
}

/// Where a record stands. Segment ids are random and never used again, so a place names one record for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Place {
    pub segment: u64,
    pub offset: u64,
}

/// What is known of a stored record without its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub kind: Kind,
    /// Of a snapshot: taken at the end of a turn.
    pub turn_end: bool,
    pub identity: Identity,
    pub key: Key,
    /// Key of the fragment before, or [`root_key`].
    pub parent: Key,
    /// How many tokens of the parent come before this record.
    pub taken: u32,
    /// Position of the first token; of a snapshot, its length.
    pub first: u32,
    pub tokens: Box<[u32]>,
    pub place: Place,
    pub payload_bytes: u64,
    /// Seconds since 1970: when the chain got this record, when it was last used, when these bytes were written.
    pub created: u64,
    pub used: u64,
    pub stored: u64,
    pub hits: u32,
}

/// A record's header: the entry, and what only the bytes on disk need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub entry: Entry,
    pub payload_sum: u128,
    /// Bytes written on the day of `stored` up to and with this record, as far as its writer knew.
    pub day_bytes: u64,
}

impl Entry {
    /// Bytes of header and tokens.
    pub(super) fn head_bytes(&self) -> u64 {
        (HEADER_BYTES + 4 * self.tokens.len()) as u64
    }

    /// Bytes of the whole record with its padding.
    pub(super) fn record_bytes(&self) -> u64 {
        (self.head_bytes() + self.payload_bytes).next_multiple_of(ALIGN)
    }

    /// Where the record ends; `None` for one that no file can hold.
    pub(super) fn end(&self) -> Option<u64> {
        self.head_bytes()
            .checked_add(self.payload_bytes)?
            .checked_next_multiple_of(ALIGN)?
            .checked_add(self.place.offset)
    }

    /// The key that the rest of the entry must have; zeros for notes, which nobody looks up.
    pub(super) fn expected_key(&self) -> Key {
        let label: &[u8] = match self.kind {
            Kind::Fragment => b"hob fragment 1",
            Kind::Snapshot => b"hob snapshot 1",
            Kind::Tombstones | Kind::Uses => return [0; 32],
        };
        let mut hash = blake3::Hasher::new();
        hash.update(label).update(&self.identity).update(&self.parent);
        hash.update(&self.taken.to_le_bytes()).update(&self.first.to_le_bytes());
        let mut bytes = Vec::with_capacity(4 * self.tokens.len());
        bytes.extend(self.tokens.iter().flat_map(|token| token.to_le_bytes()));
        *hash.update(&bytes).finalize().as_bytes()
    }

    /// Whether counts and ranges are possible at all.
    pub(super) fn is_sane(&self, limits: &Limits) -> bool {
        let tokens = self.tokens.len();
        let first = self.first as usize;
        let shape = match self.kind {
            Kind::Fragment => tokens > 0 && first % FRAGMENT_TOKENS + tokens <= FRAGMENT_TOKENS,
            Kind::Snapshot => tokens == 0 && first > 0,
            Kind::Tombstones | Kind::Uses => {
                tokens == 0
                    && self.payload_bytes <= NOTE_BYTES_MAX
                    && self.payload_bytes.is_multiple_of(PLACE_BYTES as u64)
            }
        };
        shape
            && self.taken as usize <= FRAGMENT_TOKENS
            && first.saturating_add(tokens) <= limits.chain_tokens
            && self.payload_bytes <= limits.image_bytes.max(NOTE_BYTES_MAX)
            && self.place.offset.is_multiple_of(ALIGN)
            && self.end().is_some()
    }
}

/// The parent of every chain's first fragment.
pub(super) fn root_key(identity: &Identity) -> Key {
    *blake3::Hasher::new().update(b"hob root 1").update(identity).finalize().as_bytes()
}

impl Header {
    /// Header and tokens as they stand on disk.
    pub(super) fn encode(&self) -> Vec<u8> {
        let e = &self.entry;
        let mut out = Vec::with_capacity(e.head_bytes() as usize);
        out.extend_from_slice(&MAGIC);
        for number in [e.kind.code(), u32::from(e.turn_end), e.taken, e.first, e.tokens.len() as u32, e.hits]
        {
            out.extend_from_slice(&number.to_le_bytes());
        }
        for key in [&e.identity, &e.key, &e.parent] {
            out.extend_from_slice(key);
        }
        out.extend_from_slice(&self.payload_sum.to_le_bytes());
        let numbers =
            [e.place.segment, e.place.offset, e.payload_bytes, e.created, e.used, e.stored, self.day_bytes];
        for number in numbers {
            out.extend_from_slice(&number.to_le_bytes());
        }
        let mut summed = out.clone();
        summed.extend(e.tokens.iter().flat_map(|token| token.to_le_bytes()));
        out.extend_from_slice(&xxh3_64(&summed).to_le_bytes());
        out.extend_from_slice(&summed[HEADER_BYTES - 8..]);
        out
    }

    /// Reads the header that starts `bytes`, which must reach to the end of its tokens. `None` unless its checksum,
    /// its place, its key and every count are right.
    pub(super) fn decode(bytes: &[u8], place: Place, limits: &Limits) -> Option<Header> {
        let mut fields = Fields { rest: bytes };
        if fields.array()? != MAGIC {
            return None;
        }
        let kind = fields.u32()?;
        let [turn_end, taken, first, count, hits] =
            [fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?];
        let count = count as usize;
        if count > FRAGMENT_TOKENS {
            return None;
        }
        let summed = bytes.get(..HEADER_BYTES - 8)?;
        let sum = u64::from_le_bytes(*bytes.get(HEADER_BYTES - 8..)?.first_chunk()?);
        let tokens = bytes.get(HEADER_BYTES..HEADER_BYTES + 4 * count)?;
        if xxh3_64(&[summed, tokens].concat()) != sum {
            return None;
        }
        let [identity, key, parent] = [fields.array()?, fields.array()?, fields.array()?];
        let payload_sum = u128::from_le_bytes(fields.array()?);
        let at = Place { segment: fields.u64()?, offset: fields.u64()? };
        let entry = Entry {
            kind: Kind::of(kind)?,
            turn_end: turn_end == 1,
            identity,
            key,
            parent,
            taken,
            first,
            tokens: tokens.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect(),
            place,
            payload_bytes: fields.u64()?,
            created: fields.u64()?,
            used: fields.u64()?,
            stored: fields.u64()?,
            hits,
        };
        let day_bytes = fields.u64()?;
        let right = at == place && entry.is_sane(limits) && entry.key == entry.expected_key();
        right.then_some(Header { entry, payload_sum, day_bytes })
    }
}

/// The payload of a note.
pub(super) fn encode_places(places: &[Place]) -> Vec<u8> {
    places.iter().flat_map(|place| [place.segment, place.offset]).flat_map(u64::to_le_bytes).collect()
}

pub(super) fn decode_places(bytes: &[u8]) -> Vec<Place> {
    let numbers = |pair: &[u8; PLACE_BYTES]| {
        let mut fields = Fields { rest: pair };
        Some(Place { segment: fields.u64()?, offset: fields.u64()? })
    };
    bytes.as_chunks().0.iter().filter_map(numbers).collect()
}

/// Takes little-endian fields off the front of untrusted bytes.
pub(super) struct Fields<'a> {
    pub rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(super) fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}
