//! Waiting for something to become so, with a deadline.

use std::time::{Duration, Instant};

/// How often a condition is looked at that nothing announces.
const INTERVAL: Duration = Duration::from_millis(20);

/// Looks at `probe` until it gives a value. Panics with `what` at the deadline.
pub async fn until<T>(
    what: &str,
    deadline: Duration,
    mut probe: impl AsyncFnMut() -> Option<T>,
) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = probe().await {
            return value;
        }
        assert!(
            started.elapsed() < deadline,
            "not so within {deadline:?}: {what}"
        );
        tokio::time::sleep(INTERVAL).await;
    }
}
