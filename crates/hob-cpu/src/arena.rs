//! Memory for what is streamed: zeroed, 2 MiB-aligned anonymous memory that asks for huge pages.
//!
//! 4 KiB pages cost up to half of the read bandwidth, so weights and KV live here. It must not know what is stored.

use std::alloc::Layout;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use hob_compute::ComputeError;

/// Size of a huge page on every platform that has them here.
const HUGE: usize = 2 << 20;
/// Below this an ordinary 64-byte-aligned allocation serves.
const SMALL: usize = 1 << 20;

mod sealed {
    /// Types for which all-zero bytes are a value and which need no drop.
    pub trait Zeroable: Copy {}
    impl Zeroable for u8 {}
    impl Zeroable for u16 {}
    impl Zeroable for u32 {}
    impl Zeroable for f32 {}
}

/// A fixed-length zeroed slice in huge-page memory (or ordinary aligned memory when small).
pub struct HugeVec<T: sealed::Zeroable> {
    ptr: NonNull<T>,
    len: usize,
    /// Bytes mapped; 0 means the memory came from the allocator.
    mapped: usize,
    marker: PhantomData<T>,
}

// SAFETY: it owns its memory like a Vec<T> of a plain Copy type.
unsafe impl<T: sealed::Zeroable> Send for HugeVec<T> {}
// SAFETY: shared access only reads.
unsafe impl<T: sealed::Zeroable> Sync for HugeVec<T> {}

impl<T: sealed::Zeroable> HugeVec<T> {
    /// Allocates `len` zeroes. Large blocks are mapped and touched only when written.
    ///
    /// # Errors
    /// [`ComputeError::Memory`] when the system refuses.
    pub fn zeroed(len: usize) -> Result<Self, ComputeError> {
        let memory = || ComputeError::Memory {
            what: "a device allocation".into(),
            bytes: (len as u64).saturating_mul(size_of::<T>() as u64),
        };
        let bytes =
            len.checked_mul(size_of::<T>()).filter(|&b| b <= isize::MAX as usize / 2).ok_or_else(memory)?;
        if bytes == 0 {
            return Ok(HugeVec { ptr: NonNull::dangling(), len, mapped: 0, marker: PhantomData });
        }
        #[cfg(target_os = "linux")]
        if bytes >= SMALL {
            let mapped = bytes.next_multiple_of(HUGE);
            let ptr = map_huge(mapped).ok_or_else(memory)?;
            return Ok(HugeVec { ptr: ptr.cast(), len, mapped, marker: PhantomData });
        }
        let layout = Self::layout(bytes);
        // SAFETY: the layout has a non-zero size.
        let raw = unsafe { std::alloc::alloc_zeroed(layout) };
        let ptr = NonNull::new(raw.cast()).ok_or_else(memory)?;
        Ok(HugeVec { ptr, len, mapped: 0, marker: PhantomData })
    }

    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes, 64).expect("size was checked against isize::MAX / 2")
    }
}

impl<T: sealed::Zeroable> Drop for HugeVec<T> {
    fn drop(&mut self) {
        let bytes = self.len * size_of::<T>();
        if bytes == 0 {
            return;
        }
        #[cfg(target_os = "linux")]
        if self.mapped > 0 {
            // SAFETY: exactly this range was mapped by `map_huge` and nobody else holds it.
            unsafe { libc::munmap(self.ptr.as_ptr().cast(), self.mapped) };
            return;
        }
        // SAFETY: allocated in `zeroed` with the same layout.
        unsafe { std::alloc::dealloc(self.ptr.as_ptr().cast(), Self::layout(bytes)) };
    }
}

impl<T: sealed::Zeroable> Deref for HugeVec<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `len` zero-initialised values live at `ptr` for as long as `self`.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl<T: sealed::Zeroable> DerefMut for HugeVec<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and `&mut self` is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

/// Maps `bytes` (a multiple of 2 MiB) at a 2 MiB boundary and asks for huge pages.
#[cfg(target_os = "linux")]
fn map_huge(bytes: usize) -> Option<NonNull<u8>> {
    let span = bytes.checked_add(HUGE)?;
    // SAFETY: a fresh private anonymous mapping; nothing existing is touched.
    let raw = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            span,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if raw == libc::MAP_FAILED {
        return None;
    }
    let start = raw as usize;
    let aligned = start.next_multiple_of(HUGE);
    // SAFETY: both ends lie inside the mapping just made and outside the part that is kept.
    unsafe {
        if aligned > start {
            libc::munmap(raw, aligned - start);
        }
        let tail = start + span - (aligned + bytes);
        if tail > 0 {
            libc::munmap((aligned + bytes) as *mut libc::c_void, tail);
        }
        libc::madvise(aligned as *mut libc::c_void, bytes, libc::MADV_HUGEPAGE);
    }
    NonNull::new(aligned as *mut u8)
}

/// Packs many weights into few large huge-page chunks, so that rounding to 2 MiB costs nothing.
pub struct Arena {
    current: Mutex<Option<(Arc<Chunk>, usize)>>,
}

struct Chunk(HugeVec<u8>);

/// Exclusive bytes of an arena, 64-byte aligned. The chunk is returned when its last span is dropped.
pub struct Span {
    chunk: Arc<Chunk>,
    start: usize,
    len: usize,
}

impl Arena {
    /// Chunks are this large, or as large as one request that is larger.
    const CHUNK: usize = 64 << 20;

    pub fn new() -> Arena {
        Arena { current: Mutex::new(None) }
    }

    /// Takes `bytes` zeroed bytes.
    ///
    /// # Errors
    /// [`ComputeError::Memory`] when the system refuses a new chunk.
    pub fn take(&self, bytes: usize) -> Result<Span, ComputeError> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((chunk, used)) = current.as_mut()
            && bytes <= chunk.0.len() - *used
        {
            let start = *used;
            *used = (start + bytes).next_multiple_of(64).min(chunk.0.len());
            return Ok(Span { chunk: Arc::clone(chunk), start, len: bytes });
        }
        let chunk = Arc::new(Chunk(HugeVec::zeroed(bytes.max(Self::CHUNK))?));
        let used = bytes.next_multiple_of(64).min(chunk.0.len());
        *current = Some((Arc::clone(&chunk), used));
        Ok(Span { chunk, start: 0, len: bytes })
    }
}

impl Default for Arena {
    fn default() -> Self {
        Self::new()
    }
}

impl Deref for Span {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the range lies inside the chunk, and no other span's `&mut` covers it.
        unsafe { std::slice::from_raw_parts(self.chunk.0.ptr.as_ptr().add(self.start), self.len) }
    }
}

impl DerefMut for Span {
    fn deref_mut(&mut self) -> &mut [u8] {
        let base = self.chunk.0.ptr.as_ptr();
        // SAFETY: spans of a chunk never overlap and each is handed out once, so this range is ours alone.
        unsafe { std::slice::from_raw_parts_mut(base.add(self.start), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_zeroed_aligned_and_disjoint() {
        let arena = Arena::new();
        let mut spans: Vec<Span> =
            [1usize, 63, 64, 65, 100_000].iter().map(|&n| arena.take(n).unwrap()).collect();
        for (i, span) in spans.iter_mut().enumerate() {
            assert_eq!(span.as_ptr() as usize % 64, 0);
            assert!(span.iter().all(|&b| b == 0));
            span.fill(i as u8 + 1);
        }
        for (i, span) in spans.iter().enumerate() {
            assert!(span.iter().all(|&b| b == i as u8 + 1));
        }
    }

    #[test]
    fn an_impossible_size_is_an_error() {
        assert!(matches!(HugeVec::<f32>::zeroed(usize::MAX / 4), Err(ComputeError::Memory { .. })));
        assert!(HugeVec::<f32>::zeroed(1 << 46).is_err());
    }

    #[test]
    fn large_blocks_are_huge_page_aligned() {
        let v = HugeVec::<u8>::zeroed(3 << 20).unwrap();
        assert_eq!(v.as_ptr() as usize % HUGE, 0);
        assert_eq!(v.len(), 3 << 20);
    }
}
