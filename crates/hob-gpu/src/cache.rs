//! Compiled kernels on disk, so that the next start compiles nothing. It must not know what kernels compute.
//!
//! One file per adapter, durable and with a checksum; what stands in front says which adapter, driver and version of hob
//! it is for. Whatever is damaged or foreign is as good as absent. Drivers without such data (all but Vulkan's) have none.

use std::path::{Path, PathBuf};

use hob_files::store;

use crate::context::{AdapterFacts, Context};

/// Compiled kernels take some ten KiB each; a file beyond this is none of ours.
const MOST_BYTES: u64 = 256 << 20;

/// Where the compiled kernels of an adapter lie.
pub(crate) struct Cache {
    path: PathBuf,
    key: String,
    /// Kernels compiled when the file was last written.
    stored: u64,
}

/// What compiled kernels depend on beside their text, which the driver compares itself.
fn key(facts: &AdapterFacts) -> String {
    let AdapterFacts { name, backend, driver, .. } = facts;
    format!("hob {} kernels\n{name}\n{backend}\n{driver}\n", env!("CARGO_PKG_VERSION"))
}

/// The part of a file's payload behind the key and its length.
fn data<'a>(payload: &'a [u8], key: &str) -> Option<&'a [u8]> {
    let (length, rest) = payload.split_first_chunk::<4>()?;
    let (found, data) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    (found == key.as_bytes()).then_some(data)
}

impl Cache {
    /// Takes what `folder` has for the adapter into `context`.
    pub fn open(folder: &Path, context: &mut Context) -> Cache {
        let key = key(&context.facts);
        let letters = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
        let name: String = context.facts.name.chars().map(letters).take(64).collect();
        let path = folder.join(format!("{name}.kernels"));
        let payload = store::read_checked(&path, MOST_BYTES).ok().flatten();
        let found = payload.as_deref().and_then(|payload| data(payload, &key));
        context.pipelines = context.pipeline_cache(found);
        Cache { path, key, stored: 0 }
    }

    /// Writes the compiled kernels if there are more than when it last did. A folder that cannot be written costs the
    /// next start its time and is no error.
    pub fn store(&mut self, context: &Context, kernels: u64) {
        if kernels <= self.stored {
            return;
        }
        self.stored = kernels;
        let Some(data) = context.pipelines.as_ref().and_then(wgpu::PipelineCache::get_data) else { return };
        let mut payload = (self.key.len() as u32).to_le_bytes().to_vec();
        payload.extend_from_slice(self.key.as_bytes());
        payload.extend_from_slice(&data);
        let folder = self.path.parent().unwrap_or(Path::new("."));
        if payload.len() as u64 <= MOST_BYTES && std::fs::create_dir_all(folder).is_ok() {
            let _ = store::write_checked(&self.path, &payload);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::data;

    #[test]
    fn only_what_stands_behind_the_same_key_counts() {
        let payload = [&3u32.to_le_bytes()[..], b"keybytes"].concat();
        assert_eq!(data(&payload, "key"), Some(&b"bytes"[..]));
        assert_eq!(data(&payload, "kex"), None);
        assert_eq!(data(&payload, "ke"), None);
        assert_eq!(data(&payload[..6], "key"), None);
        assert_eq!(data(&payload[..2], "key"), None);
        assert_eq!(data(&u32::MAX.to_le_bytes(), "key"), None);
    }
}
