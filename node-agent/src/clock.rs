//! Wall time, for validity and for noticing that the clock was set. Schedules use
//! tokio's monotonic clock.

use std::{fmt, time::SystemTime};

use time::OffsetDateTime;

/// Tells wall time.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// Now.
    fn now(&self) -> OffsetDateTime;
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> OffsetDateTime {
        SystemTime::now().into()
    }
}
