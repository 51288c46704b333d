//! Any bytes as a safetensors file: refused, or extents that tile the data exactly; memory in proportion.
#![no_main]

use hob_files::{Limits, safetensors};
use hob_testkit::alloc::{CountingAllocator, measure_thread};
use libfuzzer_sys::fuzz_target;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fuzz_target!(|bytes: &[u8]| {
    let size = bytes.len() as u64;
    let (result, usage) = measure_thread(|| safetensors::parse(bytes, &Limits::default()));
    assert!(usage.peak_bytes <= 4 * size + (1 << 20), "peak of {} bytes", usage.peak_bytes);
    let header = match result {
        Ok(header) => header,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let opaque = header.opaque.iter().map(|t| (t.offset, t.bytes));
    let mut extents: Vec<(u64, u64)> =
        header.tensors.iter().map(|t| (t.offset, t.bytes)).chain(opaque).collect();
    extents.sort_unstable();
    let mut end = header.data_start;
    for (offset, length) in extents {
        assert!(offset == end && length > 0, "a gap, an overlap or an empty tensor at {offset}");
        end += length;
    }
    assert_eq!(end, size);
});
