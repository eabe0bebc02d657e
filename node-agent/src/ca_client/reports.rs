//! Tells the CA in sum what the workloads of this node run on.

use std::time::Duration;

use citadel_identity::bundle::Bundle;
use citadel_proto::v1;
use citadel_runtime::ShutdownSignal;
use tokio::time::{Instant, sleep, timeout};
use tonic::Code;

use super::{
    CaError,
    session::{Link, Session},
    status::error_of,
};
use crate::holders::{Behind, Holders, Summary};

/// Between two reports, at least: what changes meanwhile is in the next one.
const AT_MOST_EVERY: Duration = Duration::from_secs(5);

/// With nothing new to say: a CA that was started again has lost the last one.
const AT_LEAST_EVERY: Duration = Duration::from_mins(5);

/// After a report that got lost.
const TRY_AGAIN: Duration = Duration::from_secs(15);

const DEADLINE: Duration = Duration::from_secs(5);

impl Session {
    /// Reports until the shutdown.
    pub async fn report(&self, holders: Holders, shutdown: ShutdownSignal) {
        tokio::select! {
            () = self.keep_reporting(&holders) => {}
            () = shutdown.wait() => {}
        }
    }

    async fn keep_reporting(&self, holders: &Holders) {
        let mut changes = holders.changes();
        let mut bundles = self.bundles();
        let mut links = self.links();
        // What the CA has, and since when.
        let mut last: Option<(v1::HoldersReport, Instant)> = None;
        loop {
            let link = links.borrow_and_update().clone();
            let mut wait = AT_LEAST_EVERY;
            if let Some(link) = link {
                changes.mark_unchanged();
                let current = bundles.borrow_and_update().clone();
                let current = current
                    .as_ref()
                    .and_then(|set| set.get(self.trust_domain()));
                let current = current.map(Bundle::authorities_sha256);
                let summary = holders.summary(current.as_deref().unwrap_or_default());
                let report = to_report(summary, current.unwrap_or_default());
                // A renewal is acknowledged too, and changes nothing of this.
                let is_news = last
                    .as_ref()
                    .is_none_or(|(sent, at)| *sent != report || at.elapsed() >= AT_LEAST_EVERY);
                let sent = if is_news {
                    self.send(&link, report.clone()).await
                } else {
                    Ok(())
                };
                match sent {
                    // A CA of an earlier version: another one may come.
                    Err(Refused::Unknown) => {
                        if links.changed().await.is_err() {
                            return;
                        }
                        continue;
                    }
                    Err(Refused::Call(error)) => {
                        tracing::debug!(%error, "a report is lost");
                        (last, wait) = (None, TRY_AGAIN);
                    }
                    Ok(()) if is_news => last = Some((report, Instant::now())),
                    Ok(()) => {}
                }
            }
            sleep(AT_MOST_EVERY).await;
            let ended = tokio::select! {
                changed = changes.changed() => changed.is_err(),
                changed = bundles.changed() => changed.is_err(),
                changed = links.changed() => changed.is_err(),
                () = sleep(wait) => false,
            };
            if ended {
                return;
            }
        }
    }

    async fn send(&self, link: &Link, report: v1::HoldersReport) -> Result<(), Refused> {
        let mut client = link.client.clone();
        let request = v1::ReportHoldersRequest {
            report: Some(report),
        };
        let outcome = match timeout(DEADLINE, client.report_holders(request)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(status)) if status.code() == Code::Unimplemented => {
                return Err(Refused::Unknown);
            }
            Ok(Err(status)) => Err(error_of(&status)),
            Err(_) => Err(CaError::Unreachable("no answer in time".to_owned())),
        };
        self.note_call(outcome.as_ref().copied());
        outcome.map_err(Refused::Call)
    }
}

enum Refused {
    Unknown,
    Call(CaError),
}

fn to_report(summary: Summary, bundle_sha256: String) -> v1::HoldersReport {
    let bundles = summary.bundles.into_iter();
    v1::HoldersReport {
        bundle_sha256,
        bundles: bundles
            .map(|(bundle_sha256, of)| v1::BundleHolders {
                bundle_sha256,
                grade_a: of.grade_a,
                grade_b: of.grade_b,
            })
            .collect(),
        behind: summary.behind,
        earliest_behind: summary.earliest_behind.map(to_holder),
        complete: summary.complete,
    }
}

fn to_holder(behind: Behind) -> v1::Holder {
    v1::Holder {
        spiffe_id: behind.spiffe_id,
        serial: behind.serial,
        not_after: behind.not_after,
        pod_uid: behind.pod_uid.unwrap_or_default(),
        bundle_sha256: behind.bundle.unwrap_or_default(),
    }
}
