//! One or many items through the line, in order, with one commit for all.

use std::sync::Arc;

use citadel_identity::csr;
use time::OffsetDateTime;

use super::{
    Intended, IssuanceError, Line, Recorded, Signed, Svid, Template,
    round::{IN_A_ROW, Rounds},
};
use crate::{
    authn::AuthnError,
    authz::{Ask, Denied, Policy, Wish},
    caller::Caller,
    metrics::{Metrics, Stage},
};

/// One wanted certificate.
#[derive(Clone, Debug)]
pub struct Item {
    /// What is asked for.
    pub ask: Ask,
    /// Lifetime and predecessor.
    pub wish: Wish,
    /// PKCS#10, DER: the proven public key is all that is taken from it.
    pub csr: Vec<u8>,
}

/// What became of one item.
pub type Release = Result<Svid, ItemError>;

/// Why one item failed.
#[derive(Debug, thiserror::Error)]
pub enum ItemError {
    /// A relayed token did not authenticate its workload.
    #[error(transparent)]
    Authentication(#[from] AuthnError),
    /// The caller may not have it.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// It could not be issued.
    #[error(transparent)]
    Issuance(Arc<IssuanceError>),
}

impl From<IssuanceError> for ItemError {
    fn from(error: IssuanceError) -> Self {
        Self::Issuance(Arc::new(error))
    }
}

/// The line with its policy: what every protocol's adapter calls.
pub struct Issuance {
    policy: Arc<Policy>,
    line: Line,
    rounds: Arc<Rounds>,
    metrics: Arc<Metrics>,
}

impl Issuance {
    /// Puts the parts together.
    pub fn new(policy: Arc<Policy>, line: Line, metrics: Arc<Metrics>) -> Self {
        let rounds = Rounds::new(line.issuer.clone(), metrics.clone());
        Self {
            policy,
            line,
            rounds,
            metrics,
        }
    }

    /// The policy.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The active issuer and the store.
    pub fn line(&self) -> &Line {
        &self.line
    }

    /// Issues one certificate.
    ///
    /// # Errors
    /// [`ItemError`]; nothing was released.
    pub async fn issue(&self, caller: &Caller, item: &Item, now: OffsetDateTime) -> Release {
        let _coming = self.line.store.announce();
        let recorded = async {
            let intended = self.prepare(caller, item, now).await?;
            let signed = self.rounds.sign(intended).await?;
            Ok::<_, ItemError>(self.record(vec![signed]).await?)
        };
        let mut recorded = recorded.await.inspect_err(|error| self.not_signed(error))?;
        match recorded.pop() {
            Some(recorded) => Ok(self.release(recorded)),
            None => Err(IssuanceError::Store(crate::store::StoreError::Unavailable(
                "the store answered without an index".into(),
            ))
            .into()),
        }
    }

    /// Issues many, with one commit; one item's failure does not touch the others. Items that
    /// failed before are passed through.
    pub async fn issue_many(
        &self,
        caller: &Caller,
        items: Vec<Result<Item, ItemError>>,
        now: OffsetDateTime,
    ) -> Vec<Release> {
        let _coming = self.line.store.announce();
        let mut results: Vec<Option<Release>> = Vec::with_capacity(items.len());
        let mut intended = Vec::with_capacity(items.len());
        for (place, item) in items.into_iter().enumerate() {
            let outcome = match item {
                Ok(item) => self.prepare(caller, &item, now).await,
                Err(error) => Err(error),
            };
            let outcome = outcome.inspect_err(|error| self.not_signed(error));
            match outcome {
                Ok(one) => {
                    intended.push((place, one));
                    results.push(None);
                }
                Err(error) => results.push(Some(Err(error))),
            }
            // A batch of 256 is 20 ms of CPU: others get their turn in between.
            if place % 8 == 7 {
                tokio::task::yield_now().await;
            }
        }
        let mut signed = Vec::with_capacity(intended.len());
        let mut places = Vec::with_capacity(intended.len());
        for (place, one) in intended {
            match self.rounds.sign_one(one).await {
                Ok(one) => {
                    signed.push(one);
                    places.push(place);
                }
                Err(error) => self.fail(&mut results, place, error.into()),
            }
            if signed.len() % IN_A_ROW == IN_A_ROW - 1 {
                tokio::task::yield_now().await;
            }
        }
        if !signed.is_empty() {
            match self.record(signed).await {
                Ok(recorded) => {
                    for (place, recorded) in places.into_iter().zip(recorded) {
                        if let Some(slot) = results.get_mut(place) {
                            *slot = Some(Ok(self.release(recorded)));
                        }
                    }
                }
                Err(error) => {
                    let error = Arc::new(error);
                    for place in places {
                        self.fail(&mut results, place, ItemError::Issuance(error.clone()));
                    }
                }
            }
        }
        results.into_iter().flatten().collect()
    }

    async fn prepare(
        &self,
        caller: &Caller,
        item: &Item,
        now: OffsetDateTime,
    ) -> Result<Intended, ItemError> {
        let timer = self.metrics.stage(Stage::Authorize);
        self.policy.look_up(caller, &item.ask).await?;
        let grant = self
            .policy
            .authorize(caller, &item.ask, item.wish.clone(), now)?;
        timer.end();
        let timer = self.metrics.stage(Stage::ProvePossession);
        let key = csr::prove_possession(&item.csr).map_err(IssuanceError::from)?;
        timer.end();
        let issuer = &self.line.issuer;
        let timer = self.metrics.stage(Stage::Prepare);
        let prepared =
            Template::new(grant, key, issuer, self.line.shortest, now)?.prepare(issuer)?;
        timer.end();
        Ok(prepared.intend(issuer)?)
    }

    async fn record(&self, signed: Vec<Signed>) -> Result<Vec<Recorded>, IssuanceError> {
        let timer = self.metrics.stage(Stage::Record);
        let recorded = Signed::record(signed, &self.line.issuer, self.line.store.as_ref()).await?;
        timer.end();
        Ok(recorded)
    }

    /// An item that was prepared gets nothing.
    fn fail(&self, results: &mut [Option<Release>], place: usize, error: ItemError) {
        self.not_signed(&error);
        if let Some(slot) = results.get_mut(place) {
            *slot = Some(Err(error));
        }
    }

    /// Counts a CSR that was not signed. A denial is not the CSR's fault: Istio counts none.
    fn not_signed(&self, error: &ItemError) {
        if let ItemError::Issuance(error) = error {
            self.metrics.not_signed(error.istio_type());
        }
    }

    fn release(&self, recorded: Recorded) -> Svid {
        self.metrics.issued();
        recorded.release()
    }
}
