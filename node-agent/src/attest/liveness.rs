//! Is the process that connected still the one that its pid names?

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{getsockopt, sockopt},
};
use tokio::io::unix::AsyncFd;

use super::proc::Proc;

/// How often a process without a pidfd is looked at.
const POLL_EVERY: Duration = Duration::from_secs(2);

/// A hold on the process at the other end of a socket.
#[derive(Debug)]
pub enum Liveness {
    /// Names the process itself: no other can take its place.
    PidFd(AsyncFd<OwnedFd>),
    /// Kernels without `SO_PEERPIDFD`: the pid, and when its process started.
    StartTime {
        /// Where to look.
        proc: Proc,
        /// The peer's pid.
        pid: i32,
        /// Ticks since boot.
        started: u64,
    },
}

/// Why a peer can't be held.
#[derive(Debug, thiserror::Error)]
pub enum LivenessError {
    /// The process that connected has ended.
    #[error("the process that connected has ended")]
    Ended,
    /// Without a pidfd a process that may be younger than the connection may be a
    /// stranger that took over the pid.
    #[error("the process with the peer's pid may have started after the connection was made")]
    TooYoung,
    /// The kernel's answer made no sense.
    #[error("the kernel does not say who is connected: {0}")]
    Kernel(#[from] io::Error),
}

impl Liveness {
    /// True if this kernel has `SO_PEERPIDFD` (since 6.5) and no sandbox filters it.
    pub fn kernel_has_pidfds() -> bool {
        UnixStream::pair()
            .is_ok_and(|(ours, _theirs)| getsockopt(&ours, sockopt::PeerPidfd).is_ok())
    }

    /// Takes hold of the peer of `socket` by its pidfd.
    pub fn by_pidfd(socket: &impl AsFd) -> Result<Self, LivenessError> {
        match getsockopt(&socket.as_fd(), sockopt::PeerPidfd) {
            Ok(fd) => Self::pidfd(fd),
            Err(Errno::ESRCH | Errno::EINVAL | Errno::ENODATA) => Err(LivenessError::Ended),
            Err(other) => Err(LivenessError::Kernel(other.into())),
        }
    }

    // `new` is deprecated because some types' descriptors can change under it; that of an
    // OwnedFd can't, and the replacement is unsafe.
    #[expect(deprecated)]
    fn pidfd(fd: OwnedFd) -> Result<Self, LivenessError> {
        Ok(Self::PidFd(AsyncFd::new(fd)?))
    }

    /// The weaker hold of kernels without pidfds. The connection was made after the tick
    /// `after`: a process that was there by then had the pid when it was made.
    pub fn by_start_time(proc: &Proc, pid: i32, after: u64) -> Result<Self, LivenessError> {
        let started = proc.start_ticks(pid).map_err(|_| LivenessError::Ended)?;
        // Within one tick nobody knows which came first.
        if started >= after {
            return Err(LivenessError::TooYoung);
        }
        Ok(Self::StartTime {
            proc: proc.clone(),
            pid,
            started,
        })
    }

    /// True while the process that connected has not ended (a zombie has).
    pub fn is_alive(&self) -> bool {
        match self {
            Self::PidFd(fd) => {
                let mut fds = [PollFd::new(fd.get_ref().as_fd(), PollFlags::POLLIN)];
                poll(&mut fds, PollTimeout::ZERO) == Ok(0)
            }
            Self::StartTime { proc, pid, started } => {
                proc.start_ticks(*pid).is_ok_and(|now| now == *started)
            }
        }
    }

    /// Resolves when the process has ended.
    pub async fn ended(&self) {
        match self {
            Self::PidFd(fd) => {
                // An error here means that the process can't be watched any more,
                // which must not count as living.
                let _ = fd.readable().await;
            }
            Self::StartTime { .. } => {
                while self.is_alive() {
                    tokio::time::sleep(POLL_EVERY).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use std::path::Path;

    use super::*;

    fn proc() -> Proc {
        Proc::new(Path::new("/proc"))
    }

    #[test]
    fn without_a_pidfd_a_process_as_young_as_the_connection_is_refused() {
        let proc = proc();
        let pid = i32::try_from(std::process::id()).unwrap();
        let started = proc.start_ticks(pid).unwrap();
        for after in [started - 1, started] {
            let refused = Liveness::by_start_time(&proc, pid, after).unwrap_err();
            assert!(matches!(refused, LivenessError::TooYoung), "{after}");
        }
        assert!(
            Liveness::by_start_time(&proc, pid, started + 1)
                .unwrap()
                .is_alive()
        );
    }

    #[test]
    fn a_pid_that_changed_hands_is_not_alive() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let started = proc().start_ticks(pid).unwrap();
        let held = Liveness::StartTime {
            proc: proc(),
            pid,
            started: started - 1,
        };
        assert!(!held.is_alive());
    }
}
