//! How this process gets its memory.

use nix::{errno::Errno, sys::prctl};

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
    use super::*;

    #[test]
    fn the_kernel_gives_no_huge_pages_afterwards() {
        without_huge_pages().unwrap();
        assert!(prctl::get_thp_disable().unwrap());
    }
}
