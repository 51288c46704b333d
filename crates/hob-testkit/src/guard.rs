//! Buffers between two inaccessible pages: a kernel that reads or writes one byte beyond its slice dies at once, and a
//! write on the other side of the slice is found when the buffer is dropped. It must not know who uses the memory.

use std::ptr::NonNull;
use std::slice;

/// Which end of the buffer touches an inaccessible page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edge {
    /// The byte before the buffer is inaccessible; finds reads below the slice.
    Start,
    /// The byte after the buffer is inaccessible; finds reads beyond the slice.
    End,
}

/// What fills the unused part of the pages; checked on drop.
const CANARY: u8 = 0xA5;

/// Memory of an exact length with an inaccessible page directly before or after it. Starts as zeros.
#[derive(Debug)]
pub struct GuardedBuf {
    map: NonNull<u8>,
    map_bytes: usize,
    /// Where the accessible pages begin and how long they are.
    page_bytes: usize,
    offset: usize,
    bytes: usize,
}

// SAFETY: the buffer owns its mapping; shared access gives only shared slices.
unsafe impl Send for GuardedBuf {}
// SAFETY: as above.
unsafe impl Sync for GuardedBuf {}

impl GuardedBuf {
    /// `bytes` zeroed bytes that touch an inaccessible page at `edge`.
    ///
    /// # Panics
    /// If the system has no memory to map.
    pub fn new(bytes: usize, edge: Edge) -> Self {
        // SAFETY: sysconf only reads a constant of the system.
        let page_bytes = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).expect("a page size");
        let inner = bytes.max(1).next_multiple_of(page_bytes);
        let map_bytes = inner + 2 * page_bytes;
        // SAFETY: a fresh private anonymous mapping at an address of the system's choice.
        let map = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                map_bytes,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANON,
                -1,
                0,
            )
        };
        assert_ne!(map, libc::MAP_FAILED, "mmap of {map_bytes} bytes: {}", std::io::Error::last_os_error());
        let map = NonNull::new(map.cast::<u8>()).expect("mmap gives an address");
        // SAFETY: the inner pages lie within the mapping made above.
        let rc = unsafe {
            libc::mprotect(map.as_ptr().add(page_bytes).cast(), inner, libc::PROT_READ | libc::PROT_WRITE)
        };
        assert_eq!(rc, 0, "mprotect of {inner} bytes: {}", std::io::Error::last_os_error());
        let slack = inner - bytes;
        let offset = page_bytes + if edge == Edge::End { slack } else { 0 };
        // SAFETY: the inner pages are writable and nobody else knows them yet.
        unsafe { map.as_ptr().add(page_bytes).write_bytes(CANARY, inner) };
        // SAFETY: offset + bytes ends within the inner pages.
        unsafe { map.as_ptr().add(offset).write_bytes(0, bytes) };
        Self { map, map_bytes, page_bytes, offset, bytes }
    }

    /// A guarded copy of `source`.
    pub fn from_bytes(source: &[u8], edge: Edge) -> Self {
        let mut buf = Self::new(source.len(), edge);
        buf.as_mut_bytes().copy_from_slice(source);
        buf
    }

    /// A guarded copy of `source`.
    pub fn from_f32(source: &[f32], edge: Edge) -> Self {
        let mut buf = Self::new(size_of_val(source), edge);
        buf.as_mut_f32().copy_from_slice(source);
        buf
    }

    /// A guarded copy of `source`.
    pub fn from_i8(source: &[i8], edge: Edge) -> Self {
        let mut buf = Self::new(source.len(), edge);
        buf.as_mut_i8().copy_from_slice(source);
        buf
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether the length is 0.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    fn data(&self) -> *mut u8 {
        // SAFETY: offset lies within the mapping.
        unsafe { self.map.as_ptr().add(self.offset) }
    }

    /// Whether every byte of the accessible pages outside the buffer still holds the canary.
    fn slack_is_intact(&self) -> bool {
        let inner = self.map_bytes - 2 * self.page_bytes;
        let first = self.offset - self.page_bytes;
        // SAFETY: the inner pages are readable and, while self is borrowed, not written.
        let pages = unsafe { slice::from_raw_parts(self.map.as_ptr().add(self.page_bytes), inner) };
        pages[..first].iter().chain(&pages[first + self.bytes..]).all(|&b| b == CANARY)
    }
}

macro_rules! typed_views {
    ($($shared:ident $exclusive:ident $number:ty),*) => {
        impl GuardedBuf {$(
            #[doc = concat!("The buffer as `", stringify!($number), "`.\n\n# Panics\n")]
            #[doc = "If its length or its start does not fit the type."]
            pub fn $shared(&self) -> &[$number] {
                let n = self.checked_len::<$number>();
                // SAFETY: length and alignment were checked, every bit pattern is valid, the memory is ours.
                unsafe { slice::from_raw_parts(self.data().cast(), n) }
            }

            #[doc = concat!("The buffer as mutable `", stringify!($number), "`.\n\n# Panics\n")]
            #[doc = "If its length or its start does not fit the type."]
            pub fn $exclusive(&mut self) -> &mut [$number] {
                let n = self.checked_len::<$number>();
                // SAFETY: as above, and self is borrowed exclusively.
                unsafe { slice::from_raw_parts_mut(self.data().cast(), n) }
            }
        )*}
    };
}

typed_views!(
    as_bytes as_mut_bytes u8,
    as_i8 as_mut_i8 i8,
    as_u16 as_mut_u16 u16,
    as_i32 as_mut_i32 i32,
    as_u32 as_mut_u32 u32,
    as_f32 as_mut_f32 f32
);

impl GuardedBuf {
    fn checked_len<T>(&self) -> usize {
        let size = size_of::<T>();
        assert!(
            self.bytes.is_multiple_of(size),
            "{} bytes are no whole number of {size}-byte items",
            self.bytes
        );
        assert!(
            self.data().cast::<T>().is_aligned(),
            "the buffer starts off the alignment of {size}-byte items"
        );
        self.bytes / size
    }
}

impl Drop for GuardedBuf {
    fn drop(&mut self) {
        let intact = self.slack_is_intact();
        // SAFETY: the mapping was made by new and no slice of it outlives self.
        unsafe { libc::munmap(self.map.as_ptr().cast(), self.map_bytes) };
        if !std::thread::panicking() {
            assert!(intact, "something wrote beside a guarded buffer of {} bytes", self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Edge, GuardedBuf};

    /// Whether the kernel can read the byte at `at` (asked through a pipe, so that no signal is raised).
    fn readable(at: *const u8) -> bool {
        let mut ends = [0; 2];
        // SAFETY: pipe fills the two descriptors.
        assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
        // SAFETY: write checks the address itself and answers EFAULT.
        let written = unsafe { libc::write(ends[1], at.cast(), 1) };
        let error = std::io::Error::last_os_error();
        // SAFETY: both descriptors are ours.
        unsafe { (libc::close(ends[0]), libc::close(ends[1])) };
        assert!(written == 1 || error.raw_os_error() == Some(libc::EFAULT), "write: {error}");
        written == 1
    }

    #[test]
    fn the_byte_after_the_end_and_the_byte_before_the_start_are_inaccessible() {
        for bytes in [1, 4, 63, 4096, 4097, 70_000] {
            let end = GuardedBuf::new(bytes, Edge::End);
            let range = end.as_bytes().as_ptr_range();
            assert!(readable(range.start) && readable(range.end.wrapping_sub(1)), "{bytes} bytes");
            assert!(!readable(range.end), "after {bytes} bytes");
            let start = GuardedBuf::new(bytes, Edge::Start);
            let range = start.as_bytes().as_ptr_range();
            assert!(readable(range.start) && readable(range.end.wrapping_sub(1)), "{bytes} bytes");
            assert!(!readable(range.start.wrapping_sub(1)), "before {bytes} bytes");
        }
    }

    #[test]
    fn empty_buffers_have_empty_views() {
        for edge in [Edge::Start, Edge::End] {
            let mut buf = GuardedBuf::new(0, edge);
            assert!(buf.is_empty() && buf.as_f32().is_empty() && buf.as_mut_bytes().is_empty());
        }
    }

    #[test]
    fn copies_hold_their_source_in_every_view() {
        let buf = GuardedBuf::from_f32(&[1.0, -2.5, f32::MAX], Edge::End);
        assert_eq!(buf.as_f32(), [1.0, -2.5, f32::MAX]);
        assert_eq!(buf.len(), 12);
        assert_eq!(buf.as_bytes()[..4], 1f32.to_ne_bytes());
        assert_eq!(GuardedBuf::from_i8(&[-1, 7], Edge::Start).as_bytes(), [255, 7]);
        assert_eq!(GuardedBuf::from_bytes(&[1, 2, 3], Edge::End).as_i8(), [1, 2, 3]);
        assert!(GuardedBuf::new(100, Edge::End).as_bytes().iter().all(|&b| b == 0));
    }

    #[test]
    #[should_panic(expected = "no whole number")]
    fn views_of_a_partial_item_are_refused() {
        GuardedBuf::new(7, Edge::Start).as_f32();
    }

    #[test]
    #[should_panic(expected = "wrote beside a guarded buffer")]
    fn a_write_on_the_open_side_is_found_on_drop() {
        let buf = GuardedBuf::new(16, Edge::End);
        // SAFETY: the byte before the slice lies in the buffer's own accessible page and nobody borrows it.
        unsafe { buf.data().sub(1).write(0) };
    }

    #[test]
    fn buffers_cross_threads() {
        let mut buf = GuardedBuf::new(8, Edge::End);
        std::thread::scope(|s| s.spawn(|| buf.as_mut_bytes().fill(3)).join().expect("no panic"));
        assert_eq!(buf.as_bytes(), [3; 8]);
    }
}
