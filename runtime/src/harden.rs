//! Keeps this process's memory, and so its keys, off the disk and away from debuggers.

use nix::{
    errno::Errno,
    sys::{
        prctl,
        resource::{Resource, setrlimit},
    },
};

/// The kernel refused a protection.
#[derive(Debug, thiserror::Error)]
pub enum HardenError {
    /// `RLIMIT_CORE` could not be lowered.
    #[error("cannot turn core dumps off (RLIMIT_CORE): {0}")]
    CoreLimit(#[source] Errno),
    /// `PR_SET_DUMPABLE` could not be cleared.
    #[error("cannot make the process non-dumpable (PR_SET_DUMPABLE): {0}")]
    Dumpable(#[source] Errno),
}

/// Turns core dumps off and forbids other processes of the same user to attach or to read
/// this one's memory. Both limits are set to zero for good: nothing can raise them again
/// without privilege.
///
/// A core pattern that pipes into a program ignores a small `RLIMIT_CORE` on some kernels;
/// a process that is not dumpable writes no core to a pipe either. Hence both.
pub fn harden() -> Result<(), HardenError> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(HardenError::CoreLimit)?;
    prctl::set_dumpable(false).map_err(HardenError::Dumpable)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use nix::sys::resource::getrlimit;

    use super::*;

    #[test]
    fn no_core_dump_can_be_written_afterwards() {
        harden().unwrap();
        assert_eq!(getrlimit(Resource::RLIMIT_CORE).unwrap(), (0, 0));
        assert!(!prctl::get_dumpable().unwrap());
    }
}
