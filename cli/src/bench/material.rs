//! What the load consists of, made before the clock starts: tokens, CSRs, and the
//! requests encoded.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use citadel_identity::key::WorkloadKey;
use citadel_proto::v1::{
    CredentialKind, IssueBatchRequest, IssueItem, IssueSvidRequest, PodSubject, issue_item,
};
use serde::Deserialize;
use time::OffsetDateTime;

use super::population::Population;
use super::rsa_key::RsaKey;
use super::wire::{Call, bearer};
use crate::exit::Failure;
use crate::progress::Progress;

const ISSUE_SVID: &str = "/citadel.v1.WorkloadService/IssueSvid";
const ISSUE_BATCH: &str = "/citadel.v1.AgentService/IssueBatch";

/// Signs of a token that `agent` needs: which pod, on which node.
pub(crate) struct PodRef {
    pub(crate) uid: String,
    pub(crate) namespace: String,
    pub(crate) account: String,
    pub(crate) node: String,
}

/// Makes one CSR for each of `count` fresh keys, on all cores. The keys are dropped:
/// nobody will use these certificates.
pub(crate) fn csrs(count: usize, progress: &Progress) -> Result<Vec<Vec<u8>>, Failure> {
    on_all_cores(count, progress, |_| {
        WorkloadKey::generate()
            .and_then(|key| key.csr())
            .map_err(|error| Failure::local(format!("can't make a CSR: {error}")))
    })
}

/// Mints one token for each workload pod, on all cores.
pub(crate) fn tokens(
    population: &Population,
    key: &RsaKey,
    progress: &Progress,
) -> Result<Vec<String>, Failure> {
    let now = OffsetDateTime::now_utc().unix_timestamp();
    on_all_cores(population.workloads().len(), progress, |place| {
        key.token(&population.claims(&population.workloads()[place], now))
    })
}

/// The requests of the path `token`: one for each token.
pub(crate) fn token_calls(tokens: &[String], csrs: &[Vec<u8>]) -> Result<Arc<[Call]>, Failure> {
    tokens
        .iter()
        .zip(csrs.iter().cycle())
        .map(|(token, csr)| {
            let authorization = bearer(token).map_err(|_| {
                Failure::local("a token has characters that no header can carry")
                    .next("--tokens is a file with one token a line and nothing else.")
            })?;
            let request = IssueSvidRequest {
                kind: CredentialKind::X509Svid.into(),
                csr: csr.clone(),
                ..Default::default()
            };
            Ok(Call::new(ISSUE_SVID, Some(authorization), &request))
        })
        .collect()
}

/// The requests of one agent: batches that go round its pods.
pub(crate) fn batch_calls(pods: &[PodRef], csrs: &[Vec<u8>], batch: usize) -> Arc<[Call]> {
    let mut items = pods.iter().cycle().zip(csrs.iter().cycle()).enumerate();
    (0..pods.len().div_ceil(batch))
        .map(|_| {
            let items = items
                .by_ref()
                .take(batch)
                .map(|(number, (pod, csr))| IssueItem {
                    kind: CredentialKind::X509Svid.into(),
                    idempotency_key: number.to_string(),
                    csr: csr.clone(),
                    subject: Some(issue_item::Subject::Pod(PodSubject {
                        pod_uid: pod.uid.clone(),
                        namespace: pod.namespace.clone(),
                        service_account: pod.account.clone(),
                    })),
                    ..Default::default()
                })
                .collect();
            // An agent is known by its certificate.
            Call::new(ISSUE_BATCH, None, &IssueBatchRequest { items })
        })
        .collect()
}

/// Reads which pod a token is bound to. Nothing is verified: the server does that.
pub(crate) fn pod_of(token: &str) -> Option<PodRef> {
    #[derive(Deserialize)]
    struct Claims {
        #[serde(rename = "kubernetes.io")]
        bound: Bound,
    }
    #[derive(Deserialize)]
    struct Bound {
        namespace: String,
        pod: Named,
        serviceaccount: Named,
        node: Named,
    }
    #[derive(Deserialize)]
    struct Named {
        name: String,
        uid: String,
    }
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let bound = serde_json::from_slice::<Claims>(&payload).ok()?.bound;
    Some(PodRef {
        uid: bound.pod.uid,
        namespace: bound.namespace,
        account: bound.serviceaccount.name,
        node: bound.node.name,
    })
}

fn on_all_cores<T: Send>(
    count: usize,
    progress: &Progress,
    make: impl Fn(usize) -> Result<T, Failure> + Sync,
) -> Result<Vec<T>, Failure> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let work = || {
        let mut made = Vec::new();
        loop {
            let place = next.fetch_add(1, Ordering::Relaxed);
            if place >= count {
                return Ok(made);
            }
            made.push(make(place)?);
            progress.advance(1);
        }
    };
    // The order does not matter: each thing is as good as another.
    let parts: Vec<Result<Vec<T>, Failure>> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let gone = || Failure::local("a thread that prepares the load panicked");
        handles
            .into_iter()
            .map(|handle| handle.join().unwrap_or_else(|_| Err(gone())))
            .collect()
    });
    let mut all = Vec::with_capacity(count);
    for part in parts {
        all.extend(part?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn a_token_for_each_pod_says_which_pod_it_is_bound_to() {
        let population = Population::new(100);
        let key = RsaKey::generate().unwrap();
        let tokens = tokens(&population, &key, &Progress::hidden()).unwrap();
        let mut found: Vec<_> = tokens
            .iter()
            .map(|token| pod_of(token).unwrap().uid)
            .collect();
        let mut wanted: Vec<_> = population
            .workloads()
            .iter()
            .map(|pod| pod.uid.clone())
            .collect();
        found.sort();
        wanted.sort();
        assert_eq!(found, wanted);
        assert!(pod_of("a.b.c").is_none());
        assert!(pod_of("").is_none());
    }

    #[test]
    fn batches_are_full_and_go_round_the_pods() {
        let pods: Vec<PodRef> = (0..70)
            .map(|n| PodRef {
                uid: n.to_string(),
                namespace: "n".into(),
                account: "a".into(),
                node: "x".into(),
            })
            .collect();
        let csrs = csrs(10, &Progress::hidden()).unwrap();
        assert_eq!(csrs.len(), 10);
        assert_eq!(batch_calls(&pods, &csrs, 50).len(), 2);
        assert_eq!(batch_calls(&pods, &csrs, 256).len(), 1);
    }
}
