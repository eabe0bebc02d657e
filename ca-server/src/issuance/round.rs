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
