//! Signatures that several requests wait for, made one after the other.
//!
//! A P-256 signature reads a table of 150 KB, a third of a core's cache. Made between the other
//! work of a request, each one fetches the table anew and drives out what that work needs;
//! made in a row, only the first one does.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::{Intended, IssuanceError, Issuer, Signed};
use crate::{
    keys::SignError,
    metrics::{Metrics, Stage},
};

/// Signatures in a row before others get their turn: under a millisecond.
pub(super) const IN_A_ROW: usize = 32;

/// What waits to be signed.
pub(super) struct Rounds {
    issuer: Arc<Issuer>,
    metrics: Arc<Metrics>,
    waiting: Mutex<Vec<Waiting>>,
}

struct Waiting {
    intended: Intended,
    reply: oneshot::Sender<Result<Signed, IssuanceError>>,
}

impl Rounds {
    pub(super) fn new(issuer: Arc<Issuer>, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            issuer,
            metrics,
            waiting: Mutex::default(),
        })
    }

    /// Signs with whatever else is ready to be signed now. Nothing waits longer than for the
    /// tasks that can run at this moment.
    pub(super) async fn sign(
        self: &Arc<Self>,
        intended: Intended,
    ) -> Result<Signed, IssuanceError> {
        if !self.issuer.signer().in_process() {
            return self.sign_one(intended).await;
        }
        let (reply, signed) = oneshot::channel();
        let begins = {
            let mut waiting = self.waiting();
            waiting.push(Waiting { intended, reply });
            waiting.len() == 1
        };
        if begins {
            // A task of its own: whoever began it may hang up.
            tokio::spawn(Arc::clone(self).run());
        }
        // The sender is dropped only with the runtime.
        let ended = |_| SignError("the server is ending".into());
        signed.await.map_err(ended)?
    }

    /// Signs here and now.
    pub(super) async fn sign_one(&self, intended: Intended) -> Result<Signed, IssuanceError> {
        let timer = self.metrics.stage(Stage::Sign);
        let signed = intended.sign(&self.issuer).await?;
        timer.end();
        Ok(signed)
    }

    async fn run(self: Arc<Self>) {
        tokio::task::yield_now().await;
        let round = std::mem::take(&mut *self.waiting());
        for (place, Waiting { intended, reply }) in round.into_iter().enumerate() {
            if reply.is_closed() {
                continue;
            }
            let _ = reply.send(self.sign_one(intended).await);
            if place % IN_A_ROW == IN_A_ROW - 1 {
                tokio::task::yield_now().await;
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use citadel_identity::{csr::prove_possession, key::WorkloadKey};
    use futures::{FutureExt as _, future::join_all};
    use prometheus_client::registry::Registry;
    use time::OffsetDateTime;

    use super::*;
    use crate::{
        authz::{Ask, Policy, Registered, Wish},
        clusters::Clusters,
        config::Config,
        issuance::Template,
        keys::CaKeys,
        testing::policy_options,
    };

    struct Bench {
        policy: Policy,
        rounds: Arc<Rounds>,
    }

    impl Bench {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let data_dir = folder.path().display();
            let text = format!("trust_domain: example.org\ndata_dir: {data_dir}\n");
            let config = Config::from_yaml("test", &text).unwrap();
            let keys = CaKeys::load_or_create(&config, OffsetDateTime::now_utc()).unwrap();
            let day = std::time::Duration::from_hours(25);
            let trust_domain = config.trust_domain.clone();
            let issuer = Issuer::new(keys.issuer, keys.signer, trust_domain, day);
            let clusters = Arc::new(Clusters::new(Vec::new()));
            let metrics = Arc::new(Metrics::register(&mut Registry::default()));
            Self {
                policy: Policy::new(policy_options(), Registered::default(), clusters),
                rounds: Rounds::new(Arc::new(issuer), metrics),
            }
        }

        /// The CA's own next certificate, and its key.
        fn intended(&self) -> (Intended, Vec<u8>) {
            let now = OffsetDateTime::now_utc();
            let issuer = &self.rounds.issuer;
            let caller = Policy::server_caller(([127, 0, 0, 1], 1).into(), now);
            let grant = self
                .policy
                .authorize(&caller, &Ask::CaServer, Wish::default(), now)
                .unwrap();
            let key = prove_possession(&WorkloadKey::generate().unwrap().csr().unwrap()).unwrap();
            let spki = key.spki_der().to_vec();
            let shortest = std::time::Duration::from_secs(10);
            let template = Template::new(grant, key, issuer, shortest, now).unwrap();
            let intended = template.prepare(issuer).unwrap().intend(issuer).unwrap();
            (intended, spki)
        }
    }

    fn holds(signed: &Signed, spki: &[u8]) -> bool {
        signed
            .certificate()
            .windows(spki.len())
            .any(|part| part == spki)
    }

    #[tokio::test]
    async fn everybody_gets_their_own_and_later_ones_begin_another_round() {
        let bench = Bench::new();
        for many in [1, 2 * IN_A_ROW + 1, 1] {
            let asked: Vec<_> = (0..many).map(|_| bench.intended()).collect();
            let signing = asked.into_iter().map(|(intended, spki)| {
                let rounds = Arc::clone(&bench.rounds);
                async move { holds(&rounds.sign(intended).await.unwrap(), &spki) }
            });
            assert!(join_all(signing).await.into_iter().all(|own| own));
            assert!(bench.rounds.waiting().is_empty());
        }
    }

    #[tokio::test]
    async fn who_hangs_up_keeps_nobody_waiting() {
        let bench = Bench::new();
        let (first, _) = bench.intended();
        let (second, spki) = bench.intended();
        let mut began = Box::pin(bench.rounds.sign(first));
        assert!(
            began.as_mut().now_or_never().is_none(),
            "the round is to come"
        );
        let waits = bench.rounds.sign(second);
        drop(began);
        assert!(holds(&waits.await.unwrap(), &spki));
    }
}
