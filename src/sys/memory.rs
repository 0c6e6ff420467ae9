//! Memory that is asked for and given back by the page: an idle monitor has next to none.

use std::ffi::c_void;
use std::io;
use std::ptr;

/// A buffer of whole pages that costs nothing until it is touched and can be given back to the kernel.
#[derive(Debug)]
pub struct Arena {
    start: ptr::NonNull<u8>,
    len: usize,
}

impl Arena {
    /// Maps `len` bytes, rounded up to pages by the kernel.
    pub fn new(len: usize) -> io::Result<Arena> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new anonymous mapping touches no existing memory.
        let start = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = ptr::NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mmap answered address 0"))?;
        Ok(Arena { start, len })
    }

    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is `len` bytes long, lives as long as self, and is borrowed mutably with it.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    /// Gives the pages behind the first `keep` bytes back; their contents become zero.
    pub fn release(&mut self, keep: usize) {
        let keep = keep.next_multiple_of(PAGE).min(self.len);
        // SAFETY: the range lies in our own private mapping, and `&mut self` proves that nobody looks at it.
        unsafe { libc::madvise(self.start.as_ptr().add(keep).cast(), self.len - keep, libc::MADV_DONTNEED) };
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing borrows it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

const PAGE: usize = 4096;

/// Large buffers get mappings of their own and go back to the kernel when they are freed, instead of leaving holes in
/// a heap that lives as long as the container. Small ones are not kept in the allocator's cache for this thread, from
/// which nothing ever goes back: what clients of the service had used would stay, in pieces all over the heap.
pub fn keep_heap_small() {
    // SAFETY: changes a setting of the allocator before there is another thread.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, 16 * 1024) };
    #[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
    // SAFETY: what the C library calls at a thread's end: it empties the cache and does without it from then on, while
    // allocating goes on as before.
    unsafe {
        __malloc_arena_thread_freeres()
    };
}

// SAFETY: the signature is that of glibc's malloc/arena.c and malloc.c, where it takes and returns nothing. A glibc
// without it fails to link, and says so by this name.
#[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
unsafe extern "C" {
    /// Of glibc, whose setting for it (glibc.malloc.tcache_count) can only be made before a program starts.
    fn __malloc_arena_thread_freeres();
}

/// Bytes of the heap that are in use, mappings of large buffers included.
pub fn heap_in_use() -> usize {
    // SAFETY: only looks at the allocator's own counters; there is one thread.
    let info = unsafe { libc::mallinfo2() };
    info.uordblks + info.hblkhd
}

/// Gives back what is not needed now: free heap, and the stack below the caller's frame.
#[inline(never)]
pub fn release_memory() {
    let here = 0u8;
    let below = ((&raw const here as usize) & !(PAGE - 1)) - PAGE;
    // SAFETY: malloc_trim only returns free memory. The stack that is given up lies a whole page below the current
    // frame, so nothing live is in it; where it is not mapped, nothing happens.
    unsafe {
        libc::malloc_trim(0);
        libc::madvise((below - STACK_USED) as *mut c_void, STACK_USED, libc::MADV_DONTNEED);
    }
}

// SAFETY: symbols that the linker makes; only their addresses mean something (end(3)).
unsafe extern "C" {
    static __executable_start: u8;
    static etext: u8;
}

/// Gives back the pages of the program itself: most of them are of the start-up, and what is needed again comes from the
/// page cache.
#[inline(never)]
pub fn forget_program() {
    let start = (&raw const __executable_start as usize).next_multiple_of(PAGE);
    let end = &raw const etext as usize & !(PAGE - 1);
    if start < end {
        // SAFETY: from the beginning of the image to the end of its code there is nothing that was ever written to (the
        // program is not relocated), so the pages that come back are the same.
        unsafe { libc::madvise(start as *mut c_void, end - start, libc::MADV_DONTNEED) };
    }
}

/// Bytes of stack that may have been used, generously.
const STACK_USED: usize = 96 * 1024;
