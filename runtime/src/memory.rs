//! How this process gets its memory.

use std::alloc::{GlobalAlloc, Layout};

use libmimalloc_sys as mi;
use nix::{errno::Errno, sys::prctl};

/// mimalloc for Rust, by its short way.
///
/// The `mimalloc` crate asks for aligned memory whatever the alignment is, and of that mimalloc
/// has no short way unless the size is a power of two: it takes more than it needs and looks for
/// the aligned place in it (`docs/performance.md` has what that cost).
///
/// C libraries keep the `malloc` that they have: in its place mimalloc does not get along with
/// libraries that are loaded before it and answer for the clock.
pub struct Mimalloc;

/// What `malloc` aligns to by itself, on the machines that this is built for (as the standard
/// library has it for its own).
const USUAL_ALIGNMENT: usize = 16;

/// Whether memory of that size is aligned enough by itself: mimalloc aligns small blocks to their
/// size and all others to 16 bytes.
fn is_usual(size: usize, align: usize) -> bool {
    align <= USUAL_ALIGNMENT && align <= size
}

// An allocator is unsafe by its trait; each function hands on what it was asked.
#[allow(unsafe_code)]
// SAFETY: the memory is mimalloc's, as large as asked and aligned as asked (`is_usual`), and null
// where there is none; nothing here panics or allocates.
unsafe impl GlobalAlloc for Mimalloc {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let (size, align) = (layout.size(), layout.align());
        // SAFETY: any size and any power of two will do.
        unsafe {
            if is_usual(size, align) {
                mi::mi_malloc(size).cast()
            } else {
                mi::mi_malloc_aligned(size, align).cast()
            }
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let (size, align) = (layout.size(), layout.align());
        // SAFETY: as above.
        unsafe {
            if is_usual(size, align) {
                mi::mi_zalloc(size).cast()
            } else {
                mi::mi_zalloc_aligned(size, align).cast()
            }
        }
    }

    unsafe fn dealloc(&self, memory: *mut u8, _: Layout) {
        // SAFETY: the caller had it from here, and uses it no more.
        unsafe { mi::mi_free(memory.cast()) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let align = layout.align();
        // SAFETY: the caller had it from here; a block that stays where it is was aligned.
        unsafe {
            if is_usual(size, align) {
                mi::mi_realloc(memory.cast(), size).cast()
            } else {
                mi::mi_realloc_aligned(memory.cast(), size, align).cast()
            }
        }
    }
}

/// Asks for no huge pages. The allocator would have them by 2 MiB, and of many connections'
/// buffers only the first bytes are ever used: a third of the memory of a server with small
/// requests, and half of an agent's with thousands of streams, was what nobody had touched.
///
/// To be called before there is much memory. It passes on to programs that this one starts.
///
/// # Errors
/// What `prctl(PR_SET_THP_DISABLE)` says.
pub fn without_huge_pages() -> Result<(), Errno> {
    prctl::set_thp_disable(true)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::slice;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_kernel_gives_no_huge_pages_afterwards() {
        without_huge_pages().unwrap();
        assert!(prctl::get_thp_disable().unwrap());
    }

    proptest! {
        // It calls an allocator as the standard library does.
        #[allow(unsafe_code)]
        #[test]
        fn memory_is_as_asked_and_keeps_what_is_in_it(
            size in prop_oneof![1_usize..64, 1_usize..3000, 1_usize..200_000],
            then in prop_oneof![1_usize..64, 1_usize..3000, 1_usize..200_000],
            align in (0_u32..13).prop_map(|power| 1_usize << power),
            zeroed: bool,
        ) {
            let layout = Layout::from_size_align(size, align).unwrap();
            let aligned = |memory: *mut u8| memory.addr().is_multiple_of(align) && !memory.is_null();
            // SAFETY: each block is used within its size, and given back once.
            unsafe {
                let memory = if zeroed { Mimalloc.alloc_zeroed(layout) } else { Mimalloc.alloc(layout) };
                prop_assert!(aligned(memory));
                if zeroed {
                    prop_assert!(slice::from_raw_parts(memory, size).iter().all(|byte| *byte == 0));
                }
                memory.write_bytes(7, size);
                let memory = Mimalloc.realloc(memory, layout, then);
                prop_assert!(aligned(memory));
                let kept = slice::from_raw_parts(memory, size.min(then));
                prop_assert!(kept.iter().all(|byte| *byte == 7));
                memory.write_bytes(8, then);
                Mimalloc.dealloc(memory, Layout::from_size_align(then, align).unwrap());
            }
        }
    }
}
