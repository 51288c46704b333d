//! From files to the catalog: opening a folder by its index, and noticing what other processes have changed since.
//! It must not write.

use std::collections::BTreeMap;
use std::path::Path;

use hob_files::FileError;

use super::catalog::Catalog;
use super::error::Result;
use super::types::Limits;
use super::{index, segment};

/// The segment files of a folder with their sizes, and how many files are not the tier's.
pub(super) struct Listing {
    pub segments: BTreeMap<u64, u64>,
    pub foreign: usize,
}

/// Lists a folder. Links, pipes and folders that bear a segment's name are foreign.
pub(super) fn listing(dir: &Path, limits: &Limits) -> Result<Listing> {
    let refused = |source| FileError::Io { action: "list the folder of the disk cache", source };
    let mut found = Listing { segments: BTreeMap::new(), foreign: 0 };
    for entry in std::fs::read_dir(dir).map_err(refused)? {
        let entry = entry.map_err(refused)?;
        let name = entry.file_name();
        let name = name.to_str().unwrap_or_default();
        // Metadata of the entry itself: a link is not followed.
        let size = entry.metadata().ok().filter(std::fs::Metadata::is_file).map(|facts| facts.len());
        match (segment::id_of(name), size) {
            (Some(id), Some(size)) if found.segments.len() < limits.segments => {
                found.segments.insert(id, size);
            }
            _ if index::is_ours(name) => {}
            _ => found.foreign += 1,
        }
    }
    Ok(found)
}

/// Files that processes left which died while they wrote an index.
pub(super) fn leftovers(dir: &Path) -> Result<Vec<String>> {
    let refused = |source| FileError::Io { action: "list the folder of the disk cache", source };
    let names = std::fs::read_dir(dir)
        .map_err(refused)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.filter(|name| index::is_leftover(name)).collect())
}

/// Fills an empty catalog from the index and from the segments behind it.
pub(super) fn open(dir: &Path, limits: &Limits, catalog: &mut Catalog, now: u64) -> Result<()> {
    let index = index::read(dir, limits);
    let files = listing(dir, limits)?.segments;
    catalog.day = index.day;
    catalog.day.roll(now);
    catalog.index_bytes = index.bytes;
    for (id, scanned, clean) in index.segments {
        // A file that is shorter than the index knows it lost its end: all of it is looked at again.
        let Some(&bytes) = files.get(&id).filter(|&&bytes| bytes >= scanned && scanned % 64 == 0) else {
            continue;
        };
        let segment = catalog.segments.entry(id).or_default();
        (segment.bytes, segment.scanned, segment.clean) = (bytes, scanned, clean);
        (segment.durable, segment.indexed, segment.ours) = (scanned, scanned, true);
    }
    for entry in index.entries {
        let segment = catalog.segments.get(&entry.place.segment);
        if segment.is_some_and(|segment| entry.end().is_some_and(|end| end <= segment.scanned)) {
            catalog.insert(entry);
        }
    }
    take_news(dir, limits, catalog, &files, None);
    Ok(())
}

/// Brings the catalog up to date with the folder, except for the segment this process is writing.
pub(super) fn refresh(dir: &Path, limits: &Limits, catalog: &mut Catalog, own: Option<u64>) -> Result<()> {
    let files = listing(dir, limits)?.segments;
    let gone: Vec<u64> =
        catalog.segments.keys().copied().filter(|id| !files.contains_key(id) && Some(*id) != own).collect();
    for id in gone {
        catalog.remove_segment(id);
    }
    take_news(dir, limits, catalog, &files, own);
    Ok(())
}

fn take_news(
    dir: &Path,
    limits: &Limits,
    catalog: &mut Catalog,
    files: &BTreeMap<u64, u64>,
    own: Option<u64>,
) {
    let mut scans = Vec::new();
    for (&id, &bytes) in files.iter().filter(|(id, _)| Some(**id) != own) {
        let known = catalog.segments.entry(id).or_default();
        if known.looked == bytes && bytes > 0 || known.scanned == bytes {
            (known.bytes, known.looked) = (bytes, bytes);
            continue;
        }
        known.bytes = bytes;
        let from = known.scanned;
        let clean = known.clean || from == 0;
        if let Some(mut scan) = segment::scan(dir, id, from, limits, limits.records) {
            scan.clean &= clean;
            scans.push((id, bytes, scan));
        }
    }
    catalog.take(scans);
}
