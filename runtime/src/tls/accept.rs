//! What an accept loop does about errors: it never ends, and never spins.

use std::{io, time::Duration};

use nix::errno::Errno;

const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Pauses after errors of `accept()` that are ours rather than the peer's.
#[derive(Debug)]
pub(crate) struct Backoff {
    pause: Duration,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self { pause: FIRST_PAUSE }
    }

    /// After a connection was accepted.
    pub(crate) fn reset(&mut self) {
        self.pause = FIRST_PAUSE;
    }

    /// After an error: returns at once where only that one connection failed, else (no file
    /// descriptors, no memory) after a pause that doubles.
    pub(crate) async fn after(&mut self, listener: &'static str, error: &io::Error) {
        if is_of_the_peer(error) {
            tracing::debug!(listener, %error, "a connection failed before it was accepted");
            return;
        }
        // At most one line a second once the pause is at its longest.
        tracing::error!(listener, %error, pause = ?self.pause, "cannot accept connections");
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }
}

/// Errors that accept(2) passes on from the one connection it was about to return.
fn is_of_the_peer(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(
            Errno::ECONNABORTED
                | Errno::ECONNRESET
                | Errno::EINTR
                | Errno::EPROTO
                | Errno::EPERM
                | Errno::ENETDOWN
                | Errno::ENETUNREACH
                | Errno::EHOSTDOWN
                | Errno::EHOSTUNREACH
                | Errno::ENOPROTOOPT
                | Errno::ENONET
        )
    )
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn our_errors_pause_longer_and_longer_and_those_of_the_peer_do_not() {
        let mut backoff = Backoff::new();
        let begun = Instant::now();
        backoff.after("test", &Errno::ECONNABORTED.into()).await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let begun = Instant::now();
            backoff.after("test", &Errno::EMFILE.into()).await;
            pauses.push(begun.elapsed().as_millis());
        }
        assert_eq!(pauses, [20, 40, 80, 160, 320, 640, 1000, 1000]);
        backoff.reset();
        let begun = Instant::now();
        backoff.after("test", &Errno::ENFILE.into()).await;
        assert_eq!(begun.elapsed(), FIRST_PAUSE);
    }
}
