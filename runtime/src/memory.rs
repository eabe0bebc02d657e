//! How this process gets its memory.

use mimalloc::MiMalloc;
use nix::{errno::Errno, sys::prctl};

/// All memory is mimalloc's, and there are no huge pages.
///
/// mimalloc is linked as the C library's `malloc`, so that SQLite and the cryptography have it as
/// well, and Rust by its usual way: what a global allocator of Rust asks of mimalloc is aligned
/// memory, for which it has no short way unless the size is a power of two.
///
/// The allocator would have huge pages by 2 MiB, and of many connections' buffers only the first
/// bytes are ever used: a third of the memory of a server with small requests, and half of an
/// agent's with thousands of streams, was what nobody had touched.
///
/// To be called before there is much memory. The pages' size passes on to programs that this one
/// starts.
///
/// # Errors
/// What `prctl(PR_SET_THP_DISABLE)` says.
pub fn prepare_memory() -> Result<(), Errno> {
    // Named somewhere, or the linker leaves it out.
    tracing::debug!(mimalloc = MiMalloc.version(), "memory");
    prctl::set_thp_disable(true)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::ptr;

    use super::*;

    #[test]
    fn the_kernel_gives_no_huge_pages_afterwards() {
        prepare_memory().unwrap();
        assert!(prctl::get_thp_disable().unwrap());
    }

    #[test]
    // It looks up the address in a table of the allocator's, whatever is there.
    #[allow(unsafe_code)]
    fn memory_is_mimallocs() {
        prepare_memory().unwrap();
        for size in [1, 100, 5000, 1 << 20] {
            let memory = vec![1_u8; size];
            let start = ptr::from_ref(&memory[0]);
            assert!(unsafe { libmimalloc_sys::mi_is_in_heap_region(start.cast()) });
        }
        let elsewhere = ptr::from_ref(&size_of::<u8>());
        assert!(!unsafe { libmimalloc_sys::mi_is_in_heap_region(elsewhere.cast()) });
    }
}
