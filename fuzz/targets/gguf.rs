//! Any bytes as a GGUF file: refused, or a table whose every extent lies in the file; memory in proportion.
#![no_main]

use hob_files::{Limits, gguf};
use hob_testkit::alloc::{CountingAllocator, measure_thread};
use libfuzzer_sys::fuzz_target;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fuzz_target!(|bytes: &[u8]| {
    let size = bytes.len() as u64;
    let (result, usage) = measure_thread(|| gguf::parse(bytes, &Limits::default()));
    assert!(usage.peak_bytes <= 4 * size + (1 << 20), "peak of {} bytes", usage.peak_bytes);
    let header = match result {
        Ok(header) => header,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    for t in &header.tensors {
        assert!(t.bytes > 0 && t.offset >= header.data_start);
        assert!(t.offset.checked_add(t.bytes).is_some_and(|end| end <= size), "{} leaves the file", t.name);
        let elements: usize = t.shape.iter().product();
        assert_eq!(elements / t.format.block_len() * t.format.block_bytes(), t.bytes as usize);
    }
    for (key, value) in header.metadata.iter() {
        assert_eq!(header.metadata.get(key).map(std::ptr::from_ref), Some(std::ptr::from_ref(value)));
        if let Ok(Some(strings)) = header.metadata.str_array(key) {
            assert_eq!(strings.iter().map(str::len).sum::<usize>(), strings.text_bytes());
        }
    }
});
