//! What outlives a session: the store on disk with its writer, and the rates by which restoring is held against
//! recomputing. It must not know sequences.

use std::sync::Arc;
use std::time::Duration;

use hob_model::disk::{DiskConfig, DiskStore, Identity};

use crate::error::Result;
use crate::writer::Writer;

/// What an engine keeps beyond its sequences and the pages of its layout.
#[derive(Clone, Debug, PartialEq)]
pub struct CacheConfig {
    /// Where pages are kept across restarts; `None` keeps them in memory only.
    pub disk: Option<DiskConfig>,
    /// Most bytes that wait to be written. When they do, the engine goes on and catches up later; so this is memory
    /// lent to a slow disk.
    pub queue_bytes: usize,
    /// Prompt tokens run per second, as far as the caller knows; `None` takes a guess from the bytes of the weights.
    /// Counts until the first prompt was measured.
    pub prefill_tokens_per_second: Option<f64>,
}

impl Default for CacheConfig {
    /// Nothing on disk; 64 MiB may wait.
    fn default() -> Self {
        CacheConfig { disk: None, queue_bytes: 64 << 20, prefill_tokens_per_second: None }
    }
}

/// The store on disk as one engine uses it.
pub(crate) struct Disk {
    pub store: Arc<DiskStore>,
    pub writer: Writer,
    pub identity: Identity,
}

impl Disk {
    /// Opens the store and starts its writer.
    pub fn open(config: &DiskConfig, queue_bytes: usize, identity: Identity) -> Result<Disk> {
        let store = Arc::new(DiskStore::open(config)?);
        let writer = Writer::start(Arc::clone(&store), identity, queue_bytes)?;
        Ok(Disk { store, writer, identity })
    }
}

/// Measured speeds of the two ways to state.
#[derive(Copy, Clone, Debug, PartialEq)]
pub(crate) struct Rates {
    /// Bytes restored per second: read, verified, and put into pages.
    disk: f64,
    /// Prompt tokens run per second.
    prefill: f64,
}

/// Bytes restored per second before anything was: what a plain SSD reads.
const DISK_BYTES_PER_SECOND: f64 = 0.5e9;
/// Bytes of weights applied to tokens per second of prefill before anything was measured: two slow cores.
const WEIGHT_BYTES_PER_SECOND: f64 = 30e9;
/// No model is guessed to be faster than this.
const MOST_TOKENS_PER_SECOND: f64 = 20_000.0;
/// How much the newest measurement counts.
const NEWEST: f64 = 0.5;

impl Rates {
    /// Before anything was measured; `weight_bytes` are those one token reads.
    pub fn guess(weight_bytes: u64) -> Rates {
        let prefill = (WEIGHT_BYTES_PER_SECOND / weight_bytes.max(1) as f64).min(MOST_TOKENS_PER_SECOND);
        Rates { disk: DISK_BYTES_PER_SECOND, prefill }
    }

    /// What the caller knows of prefills.
    pub fn assume_prefill(&mut self, tokens_per_second: f64) {
        if tokens_per_second.is_finite() && tokens_per_second > 0.0 {
            self.prefill = tokens_per_second;
        }
    }

    pub fn restored(&mut self, bytes: u64, took: Duration) {
        blend(&mut self.disk, bytes as f64, took);
    }

    pub fn ran(&mut self, tokens: usize, took: Duration) {
        blend(&mut self.prefill, tokens as f64, took);
    }

    /// Time to restore `bytes`.
    pub fn restore_time(&self, bytes: u64) -> Duration {
        seconds(bytes as f64 / self.disk)
    }

    /// Time to run `tokens` of a prompt.
    pub fn recompute_time(&self, tokens: usize) -> Duration {
        seconds(tokens as f64 / self.prefill)
    }
}

fn blend(rate: &mut f64, count: f64, took: Duration) {
    let measured = count / took.as_secs_f64();
    if count > 0.0 && measured.is_finite() {
        *rate += (measured - *rate) * NEWEST;
    }
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn estimates_follow_what_was_measured() {
        let mut rates = Rates::guess(100 << 20);
        let (restore, recompute) = (rates.restore_time(1 << 30), rates.recompute_time(1000));
        assert!(recompute > restore, "{rates:?}");
        for _ in 0..20 {
            rates.restored(1 << 20, Duration::from_secs(1));
            rates.ran(1_000_000, Duration::from_secs(1));
        }
        assert!(rates.restore_time(1 << 30) > Duration::from_secs(1000), "{rates:?}");
        assert!(rates.recompute_time(1000) < Duration::from_millis(2), "{rates:?}");
        // Nothing measured, nothing learnt.
        let before = rates;
        rates.restored(0, Duration::from_secs(1));
        rates.ran(5, Duration::ZERO);
        rates.assume_prefill(f64::NAN);
        assert_eq!(rates, before);
        rates.assume_prefill(10.0);
        assert_eq!(rates.recompute_time(20), Duration::from_secs(2));
        assert!(Rates::guess(0).recompute_time(usize::MAX) > Duration::ZERO);
    }
}
