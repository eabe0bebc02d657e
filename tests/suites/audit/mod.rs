//! The log of a running CA, as auditors see it.

mod backup;
mod command;
mod face;
mod refusals;
mod retention;
mod server;
mod walkthrough;
mod watch;

use std::time::Duration;

use citadel_ledger::{Checkpoint, VerifierKey};
use citadel_proto::v1::X509Svid;
use citadel_tests::pki::csr;
use citadel_tests::wait;

use crate::support::{Scene, Workload};

/// A checkpoint is signed every second in which something was recorded.
const CHECKPOINT: Duration = Duration::from_secs(10);

/// So many certificates for one workload.
async fn issue(scene: &Scene<'_>, workload: &Workload, count: usize) -> Vec<X509Svid> {
    let client = scene.client_of(workload);
    let mut issued = Vec::new();
    for _ in 0..count {
        let answer = client.issue(&csr::plain()).await.unwrap();
        issued.push(answer.svid.unwrap());
    }
    issued
}

/// The log's key, and its newest checkpoint once that covers this index.
async fn covered(scene: &Scene<'_>, index: u64) -> (VerifierKey, Checkpoint) {
    wait::until("a checkpoint covers it", CHECKPOINT, async || {
        let info = scene.admin.info().await;
        let key: VerifierKey = info.log_key.parse().unwrap();
        let keys = [key.clone()];
        let checkpoint = Checkpoint::open(info.checkpoint.as_bytes(), &keys).ok()?;
        (checkpoint.size > index).then_some((key, checkpoint))
    })
    .await
}
