//! More than the CA can do, an end in the midst of work, and a certificate
//! that changes under open connections. The suite runs alone.

mod flood;
mod rotation;
mod shutdown;

use std::time::Duration;

use citadel_tests::citadel::Ca;
use citadel_tests::wait;

use crate::support::metric;

/// Waits until so many requests are in the CA's queue.
async fn waiting(ca: &Ca, count: u32) {
    wait::until(
        "the queue is as long",
        Duration::from_secs(10),
        async || {
            let waiting = metric(ca, "citadel_ca_queue_waiting").await;
            (waiting >= f64::from(count)).then_some(())
        },
    )
    .await;
}
