//! One batch: keys are made, the CA is asked, and each answer goes to its secret.

use std::{sync::Arc, time::Duration};

use citadel_identity::key::WorkloadKey;
use citadel_proto::v1::{self, CredentialKind, ItemError, issue_result::Outcome};
use tokio::time::Instant;

use super::{
    key::{SecretKey, Wanted},
    manager::Shared,
    svid::{Expected, Svid},
    table::{Ask, Failure, Lane, Table},
};
use crate::ca_client::{CaError, MAX_BATCH_BYTES, MAX_BATCH_ITEMS};

/// What an item takes on the wire beside its token: CSR, names, serial. Generous.
const ITEM_BYTES: usize = 1024;

/// google.rpc.Code of refusals that may be final.
const INVALID_ARGUMENT: i32 = 3;
const PERMISSION_DENIED: i32 = 7;
const UNAUTHENTICATED: i32 = 16;

/// Takes what fits into one call.
pub(super) fn take_batch(table: &mut Table, lane: Lane, now: Instant) -> Vec<Ask> {
    let size = |wanted: &Wanted| {
        ITEM_BYTES
            + wanted
                .token
                .as_ref()
                .map_or(0, |token| token.expose().len())
    };
    table.take_due(lane, now, MAX_BATCH_ITEMS, MAX_BATCH_BYTES, size)
}

pub(super) struct Asker {
    pub shared: Arc<Shared>,
}

impl Asker {
    /// Asks for a batch and files the answers. Never fails: each failure belongs to a
    /// secret.
    pub(super) async fn ask(self, asks: Vec<Ask>) {
        let keys: Vec<SecretKey> = asks.iter().map(|ask| ask.wanted.key.clone()).collect();
        // Keys are made off the async threads: 256 of them take some milliseconds.
        let made = tokio::task::spawn_blocking(move || make_items(asks)).await;
        let (asks, private, items) = match made {
            Ok(Ok(made)) => made,
            Ok(Err(reason)) => return self.all_failed(&keys, &reason, None),
            Err(_) => return self.all_failed(&keys, "making keys failed", None),
        };
        let answer = self.shared.ca.issue_batch(items).await;
        let issued = match answer {
            Ok(issued) if issued.results.len() == asks.len() => issued,
            Ok(_) => {
                return self.all_failed(
                    &keys,
                    "the CA answered with another number of items",
                    None,
                );
            }
            Err(error) => {
                let retry_after = match &error {
                    CaError::Overloaded { retry_after, .. } => *retry_after,
                    _ => None,
                };
                return self.all_failed(&keys, &error.to_string(), retry_after);
            }
        };
        for (number, ((ask, key), result)) in asks
            .into_iter()
            .zip(private)
            .zip(issued.results)
            .enumerate()
        {
            self.file(number, &ask, key, result, issued.server_time_ms);
        }
    }

    fn file(
        &self,
        number: usize,
        ask: &Ask,
        key: WorkloadKey,
        result: v1::IssueResult,
        server_ms: i64,
    ) {
        let name = &ask.wanted.key;
        let outcome = match result.outcome {
            Some(outcome) if result.idempotency_key == number.to_string() => outcome,
            _ => {
                let reason = "the CA's answer belongs to no item".to_owned();
                return self.failed(
                    name,
                    Failure::Trouble {
                        reason,
                        retry_after: None,
                    },
                );
            }
        };
        let svid = match outcome {
            Outcome::Svid(svid) => svid,
            Outcome::Error(error) => return self.failed(name, failure_of(&error)),
        };
        let bundles = self.shared.bundles.borrow().clone().unwrap_or_default();
        let now = Instant::now();
        let expected = Expected {
            trust_domain: &self.shared.trust_domain,
            bundles: &bundles,
            issuers: &self.shared.issuers,
            id: ask.wanted.spiffe_id.as_ref(),
            server_ms,
            jitter: ask.jitter,
            received: now,
            received_at: self.shared.clock.now(),
        };
        match Svid::accept(svid, key, &expected) {
            Ok(svid) => {
                tracing::info!(
                    spiffe_id = %svid.id,
                    serial = svid.serial,
                    renew_in_ms = u64::try_from(svid.plan.renew_in.as_millis()).unwrap_or(u64::MAX),
                    "certificate received"
                );
                self.shared.metrics.renewed();
                self.shared.table().succeeded(name, svid, now);
            }
            Err(error) => {
                let reason = error.to_string();
                self.failed(
                    name,
                    Failure::Trouble {
                        reason,
                        retry_after: None,
                    },
                );
            }
        }
    }

    fn all_failed(&self, keys: &[SecretKey], reason: &str, retry_after: Option<Duration>) {
        for key in keys {
            let reason = reason.to_owned();
            self.failed(
                key,
                Failure::Trouble {
                    reason,
                    retry_after,
                },
            );
        }
    }

    fn failed(&self, key: &SecretKey, failure: Failure) {
        let (reason, denied) = match &failure {
            Failure::Trouble { reason, .. } => (reason.clone(), false),
            Failure::Denied { reason } => (reason.clone(), true),
        };
        let ended = self.shared.table().failed(key, failure, Instant::now());
        // An entry that does not match a pod is the usual case, not a failure.
        if denied && matches!(key, SecretKey::Entry { .. }) && !ended {
            tracing::debug!(%key, reason, "the CA refuses an entry");
            return;
        }
        self.shared.metrics.renewal_failed(denied);
        tracing::warn!(%key, reason, denied, ended, "no certificate from the CA");
    }
}

type Made = (Vec<Ask>, Vec<WorkloadKey>, Vec<v1::IssueItem>);

/// A new key for each certificate, also for each renewal.
fn make_items(asks: Vec<Ask>) -> Result<Made, String> {
    let mut private = Vec::with_capacity(asks.len());
    let mut items = Vec::with_capacity(asks.len());
    for (number, ask) in asks.iter().enumerate() {
        let key = WorkloadKey::generate().map_err(|error| format!("making a key: {error}"))?;
        let csr = key
            .csr()
            .map_err(|error| format!("making a CSR: {error}"))?;
        items.push(v1::IssueItem {
            kind: CredentialKind::X509Svid.into(),
            idempotency_key: number.to_string(),
            csr,
            ttl_seconds: ask.wanted.ttl_seconds,
            previous_serial: ask.previous_serial.clone(),
            subject: Some(ask.wanted.subject(ask.proven_pod.as_deref())),
        });
        private.push(key);
    }
    Ok((asks, private, items))
}

/// Final only if the CA refuses and says that a retry is useless.
fn failure_of(error: &ItemError) -> Failure {
    // The text is the CA's; it goes to logs and to callers.
    let reason: String = error
        .message
        .chars()
        .filter(|c| !c.is_control())
        .take(512)
        .collect();
    let refused = matches!(
        error.code,
        INVALID_ARGUMENT | PERMISSION_DENIED | UNAUTHENTICATED
    );
    match u64::try_from(error.retry_after_ms) {
        Ok(0) | Err(_) if refused => Failure::Denied { reason },
        Ok(0) | Err(_) => Failure::Trouble {
            reason,
            retry_after: None,
        },
        Ok(ms) => Failure::Trouble {
            reason,
            retry_after: Some(Duration::from_millis(ms)),
        },
    }
}
