//! Ends connections that are held without being used. Whoever completes a TLS handshake has a
//! connection; without this it could keep it for ever and never ask for anything.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep};

/// Length of the HTTP/2 client connection preface (RFC 9113, section 3.4).
const PREFACE: usize = 24;

/// Why a connection ends.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    NoPreface,
    Idle,
}

/// When a connection last began a request.
#[derive(Debug)]
pub(super) struct LastUse {
    opened: Instant,
    /// Milliseconds since `opened`.
    at: AtomicU64,
}

/// The clock of one connection, polled with its reads.
pub(super) struct Watchdog {
    timer: Pin<Box<Sleep>>,
    /// Bytes of the preface still to come.
    missing: usize,
    /// How long it may be idle, and since when it is; `None` for ever.
    idle: Option<(Duration, Arc<LastUse>)>,
}

impl LastUse {
    pub(super) fn now() -> Self {
        Self {
            opened: Instant::now(),
            at: AtomicU64::new(0),
        }
    }

    pub(super) fn is_now(&self) {
        let at = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.at.store(at, Ordering::Relaxed);
    }

    fn ago(&self) -> Duration {
        let at = Duration::from_millis(self.at.load(Ordering::Relaxed));
        self.opened.elapsed().saturating_sub(at)
    }
}

impl Watchdog {
    pub(super) fn new(preface: Duration, idle: Option<(Duration, Arc<LastUse>)>) -> Self {
        Self {
            timer: Box::pin(sleep(preface)),
            missing: PREFACE,
            idle,
        }
    }

    /// Whether the connection has to end. Wakes the task when it may have to.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Option<Verdict> {
        while let Poll::Ready(()) = self.timer.as_mut().poll(cx) {
            if self.missing > 0 {
                return Some(Verdict::NoPreface);
            }
            let (limit, last_use) = self.idle.as_ref()?;
            let left = limit.saturating_sub(last_use.ago());
            if left.is_zero() {
                return Some(Verdict::Idle);
            }
            self.timer.as_mut().reset(Instant::now() + left);
        }
        None
    }

    /// The client sent so many bytes. True if there is nothing more to watch.
    pub(super) fn has_read(&mut self, bytes: usize) -> bool {
        if self.missing == 0 {
            return false;
        }
        self.missing = self.missing.saturating_sub(bytes);
        if self.missing > 0 {
            return false;
        }
        let Some((limit, _)) = &self.idle else {
            return true;
        };
        self.timer.as_mut().reset(Instant::now() + *limit);
        false
    }
}
