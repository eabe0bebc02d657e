//! Local validation of service-account tokens with the cluster's own keys.

use std::sync::Arc;

use citadel_kubernetes::jwks::RefetchOutcome;
use futures::future::join_all;

use super::{
    Authenticator, AuthnError,
    claims::{self, Claims, Unverified},
    keyset::KeySet,
};
use crate::{
    caller::{ObjectRef, Subject},
    clusters::{ClusterHandle, Mode},
};

/// What local validation says of a token; a rejection is an [`AuthnError`].
pub(super) enum Verdict<'a> {
    /// The signature is good, by a key of this cluster.
    Valid(&'a ClusterHandle),
    /// Not ours to judge; only this goes on to TokenReview.
    NotMine(String),
}

impl Authenticator {
    pub(super) async fn local(
        &self,
        token: &Unverified<'_>,
        cluster_id: Option<&str>,
    ) -> Result<Verdict<'_>, AuthnError> {
        let Unverified { header, claims, .. } = token;
        if header.crit.is_some() {
            return Err(AuthnError::rejected(
                "the token has critical header extensions",
            ));
        }
        let issuer = &*claims.iss;
        if self.of_issuer(issuer).next().is_none() {
            // Until every issuer is known nothing can be called foreign.
            join_all(self.without_issuer().map(ClusterHandle::refresh_keys)).await;
            if self.of_issuer(issuer).next().is_none() {
                self.all_issuers_known()?;
                return Ok(Verdict::NotMine(format!(
                    "issuer {issuer:.200} is not ours"
                )));
            }
        }
        if claims
            .kubernetes
            .as_ref()
            .is_some_and(|k| k.secret.is_some())
        {
            return Ok(Verdict::NotMine("the token is bound to a Secret".into()));
        }
        let kid = header
            .kid
            .as_deref()
            .ok_or_else(|| AuthnError::rejected("the token names no key (kid)"))?;
        let many = self.clusters.sole().is_none();
        let named = cluster_id.filter(|_| many);
        let Some((cluster, keys)) = self.find_key(issuer, kid, named).await? else {
            return Ok(Verdict::NotMine(format!(
                "key {kid:.100} is of no cluster whose tokens are checked here"
            )));
        };
        if named.is_some_and(|name| name != cluster.name()) {
            return Err(AuthnError::rejected(
                "clusterid names another cluster than the token's key",
            ));
        }
        if keys.is_unsupported(kid) {
            return Ok(Verdict::NotMine(
                "the key's algorithm can't be checked here".into(),
            ));
        }
        keys.verify(token)
            .map_err(|error| AuthnError::rejected(error.to_string()))?;
        Ok(Verdict::Valid(cluster))
    }

    fn local_clusters(&self) -> impl Iterator<Item = &ClusterHandle> {
        self.clusters
            .iter()
            .filter(|cluster| cluster.mode() == Mode::Local)
    }

    fn of_issuer(&self, issuer: &str) -> impl Iterator<Item = &ClusterHandle> {
        self.local_clusters().filter(|c| c.is_issuer(issuer))
    }

    fn without_issuer(&self) -> impl Iterator<Item = &ClusterHandle> {
        self.local_clusters().filter(|c| !c.knows_issuer())
    }

    /// What no known cluster recognises may be one's whose issuer was never heard of.
    fn all_issuers_known(&self) -> Result<(), AuthnError> {
        match self.without_issuer().next() {
            None => Ok(()),
            Some(cluster) => Err(AuthnError::Unavailable(format!(
                "the issuer of cluster {} is not known yet",
                cluster.name()
            ))),
        }
    }

    /// The cluster whose keys include `kid`. An unknown `kid` costs one refetch, shared and
    /// rate-limited, of each cluster that can have it; what one cluster can't answer stands in
    /// the way of no key of another. It is no cluster's here only if the caller `named` one
    /// whose API server judges its tokens itself.
    async fn find_key(
        &self,
        issuer: &str,
        kid: &str,
        named: Option<&str>,
    ) -> Result<Option<(&ClusterHandle, Arc<KeySet>)>, AuthnError> {
        if let Some(found) = self.known_key(issuer, kid)? {
            return Ok(Some(found));
        }
        let reviews = named.and_then(|name| self.clusters.get(name));
        if reviews.is_some_and(|cluster| cluster.mode() == Mode::TokenReview) {
            return Ok(None);
        }
        let refetched = join_all(
            self.of_issuer(issuer)
                .chain(self.without_issuer())
                .map(async |cluster| (cluster, cluster.refresh_keys().await)),
        )
        .await;
        if let Some(found) = self.known_key(issuer, kid)? {
            return Ok(Some(found));
        }
        self.all_issuers_known()?;
        for (cluster, outcome) in refetched {
            let reason = match (outcome, cluster.keys()) {
                (RefetchOutcome::Fresh, Some(Ok(_))) => continue,
                (RefetchOutcome::Fresh, Some(Err(reason))) => reason,
                (RefetchOutcome::Fresh, None) => "it is too old already".into(),
                (RefetchOutcome::RateLimited | RefetchOutcome::Failed, _) => {
                    "it can't be fetched again right now".into()
                }
            };
            return Err(AuthnError::Unavailable(format!(
                "key {kid:.100} is unknown; the JWKS of cluster {}: {reason}",
                cluster.name()
            )));
        }
        Err(AuthnError::rejected(format!(
            "no key {kid:.100} in a fresh JWKS"
        )))
    }

    /// As [`Self::find_key`], in the keys that are there.
    fn known_key(
        &self,
        issuer: &str,
        kid: &str,
    ) -> Result<Option<(&ClusterHandle, Arc<KeySet>)>, AuthnError> {
        let found = self.of_issuer(issuer).find_map(|cluster| {
            let keys = cluster.keys()?.ok()?;
            keys.contains(kid).then_some((cluster, keys))
        });
        if let Some((cluster, keys)) = &found {
            self.check_not_shared(cluster, keys, kid)?;
        }
        Ok(found)
    }

    /// A key of two clusters tells neither: its tokens wait until an operator has parted them.
    fn check_not_shared(
        &self,
        cluster: &ClusterHandle,
        keys: &KeySet,
        kid: &str,
    ) -> Result<(), AuthnError> {
        match self.clusters.shared_key(cluster, keys, kid) {
            None => Ok(()),
            Some(shared) => Err(AuthnError::Unavailable(shared.to_string())),
        }
    }
}

/// Whom verified claims name. `sub` and the private claim must say the same.
pub(super) fn subject(cluster: &str, claims: &Claims<'_>) -> Result<Subject, AuthnError> {
    let (namespace, account) = claims::split_username(&claims.sub)
        .ok_or_else(|| AuthnError::rejected("the token's subject is no service account"))?;
    let kubernetes = claims
        .kubernetes
        .as_ref()
        .ok_or_else(|| AuthnError::rejected("the token has no kubernetes.io claim"))?;
    if kubernetes.namespace != namespace || kubernetes.serviceaccount.name != account {
        return Err(AuthnError::rejected(
            "the token's subject and its kubernetes.io claim differ",
        ));
    }
    if kubernetes.serviceaccount.uid.is_empty() {
        return Err(AuthnError::rejected("the token's account has no UID"));
    }
    let bound = |reference: &Option<claims::Reference<'_>>| {
        reference
            .as_ref()
            .filter(|reference| !reference.uid.is_empty())
            .map(ObjectRef::from)
    };
    Ok(Subject {
        cluster: cluster.to_owned(),
        namespace: namespace.to_owned(),
        account: (&kubernetes.serviceaccount).into(),
        pod: bound(&kubernetes.pod),
        node: bound(&kubernetes.node),
    })
}
