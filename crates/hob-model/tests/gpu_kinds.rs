//! One model for every kind of state on a GPU: saved and taken up again, and back behind drafts. (`hob-engine` restarts them
//! from disk.) Without an adapter every test says 'skipped'.

mod common;
#[path = "common/remembering.rs"]
mod remembering;

use common::*;
use hob_compute::Compute;
use hob_gpu::{Gpu, GpuConfig};
use remembering::*;

/// With drafts from position `start` on: long attention takes long on a software adapter.
fn remembers(name: &str, start: usize) {
    let Some(adapter) = hob_gpu::test_adapter() else { return };
    let config = GpuConfig { adapter, ..GpuConfig::default() };
    let dev: Box<dyn Compute> = Box::new(Gpu::open(&config).expect("the adapter opens"));
    let tiny = fixture(name);
    let mut bench = Bench::of(&tiny, dev, &held(400, 2, 64));
    goes_back(name, &tiny, &mut bench, (start, true));
    drop(comes_back(name, &tiny, bench.close()));
}

#[test]
fn columns_of_a_convolution() {
    remembers("lfm2", 245);
}

#[test]
fn a_delta_rule() {
    remembers("qwen3_5", 245);
}

#[test]
fn a_state_space() {
    remembers("mamba2", 245);
}

#[test]
fn a_latent() {
    remembers("deepseek_v3", 20);
}

#[test]
fn compressed_entries() {
    remembers("deepseek_v4", 20);
}

#[test]
fn keys_and_values_behind_a_window() {
    remembers("gemma3", 20);
}
