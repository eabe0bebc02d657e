//! Local validation of service-account tokens with the cluster's own keys.

use std::sync::Arc;

use citadel_kubernetes::jwks::RefetchOutcome;

use super::{
    Authenticator, AuthnError,
    claims::{self, Claims, Header},
    keyset::KeySet,
};
use crate::{
    caller::{BearerToken, ObjectRef, Subject},
    clusters::{ClusterHandle, Mode},
};

/// What local validation says of a token; a rejection is an [`AuthnError`].
pub(super) enum Verdict<'a> {
    /// Signature, times and audience are good.
    Valid {
        /// Whose key verified it: that decides the cluster.
        cluster: &'a ClusterHandle,
        /// The verified claims.
        claims: Box<Claims>,
    },
    /// Not ours to judge; only this goes on to TokenReview.
    NotMine(String),
}

impl Authenticator {
    pub(super) async fn local(
        &self,
        token: &BearerToken,
        header: &Header,
        claims: &Claims,
        cluster_id: Option<&str>,
    ) -> Result<Verdict<'_>, AuthnError> {
        if header.crit.is_some() {
            return Err(AuthnError::rejected(
                "the token has critical header extensions",
            ));
        }
        let mine = self.of_issuer(&claims.iss).await?;
        if mine.is_empty() {
            return Ok(Verdict::NotMine(format!(
                "issuer {:.200} is not ours",
                claims.iss
            )));
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
        let Some((cluster, keys)) = self.find_key(&mine, kid, named).await? else {
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
        // The key decides the algorithm; `alg` can only agree.
        if keys.algorithm(kid).map(|a| format!("{a:?}")).as_deref() != Some(header.alg.as_str()) {
            return Err(AuthnError::rejected(format!(
                "algorithm {:.20} is not that of key {kid:.100}",
                header.alg
            )));
        }
        let claims = keys
            .verify(token.expose(), kid, &self.audiences)
            .map_err(|error| AuthnError::rejected(error.to_string()))?;
        Ok(Verdict::Valid {
            cluster,
            claims: Box::new(claims),
        })
    }

    /// The clusters with local validation.
    fn locals(&self) -> impl Iterator<Item = &ClusterHandle> {
        let is_local = |cluster: &&ClusterHandle| cluster.mode() == Mode::Local;
        self.clusters.iter().filter(is_local)
    }

    /// A cluster whose tokens can't be told from foreign ones yet.
    fn without_issuer(&self) -> Option<&ClusterHandle> {
        self.locals().find(|cluster| !cluster.knows_issuer())
    }

    /// The clusters with local validation whose issuer this is.
    async fn of_issuer(&self, issuer: &str) -> Result<Vec<&ClusterHandle>, AuthnError> {
        let mine = || self.locals().filter(|c| c.is_issuer(issuer)).collect();
        let known: Vec<&ClusterHandle> = mine();
        if !known.is_empty() {
            return Ok(known);
        }
        for cluster in self.locals().filter(|c| !c.knows_issuer()) {
            cluster.refresh_keys().await;
        }
        let known = mine();
        match self.without_issuer() {
            Some(cluster) if known.is_empty() => Err(issuer_unknown(cluster)),
            _ => Ok(known),
        }
    }

    /// The cluster whose keys include `kid`. An unknown `kid` costs one refetch, shared and
    /// rate-limited; after that it is refused. It is no cluster's here only if the caller
    /// `named` one whose API server judges its tokens itself.
    async fn find_key<'a>(
        &self,
        mine: &[&'a ClusterHandle],
        kid: &str,
        named: Option<&str>,
    ) -> Result<Option<(&'a ClusterHandle, Arc<KeySet>)>, AuthnError> {
        for attempt in 0..2 {
            let mut unusable = None;
            for cluster in mine {
                match cluster.keys() {
                    Some(Ok(keys)) if keys.contains(kid) => {
                        self.check_not_shared(cluster, &keys, kid)?;
                        return Ok(Some((cluster, keys)));
                    }
                    Some(Ok(_)) => {}
                    Some(Err(reason)) => unusable = Some(reason),
                    None => unusable = Some("the keys were never fetched, or too long ago".into()),
                }
            }
            let reviews = named.and_then(|name| self.clusters.get(name));
            if reviews.is_some_and(|cluster| cluster.mode() == Mode::TokenReview) {
                return Ok(None);
            }
            if attempt == 1 {
                return Err(match (unusable, self.without_issuer()) {
                    (Some(reason), _) => AuthnError::Unavailable(reason),
                    (None, Some(cluster)) => issuer_unknown(cluster),
                    (None, None) => {
                        AuthnError::rejected(format!("no key {kid:.100} in a fresh JWKS"))
                    }
                });
            }
            for cluster in mine {
                match cluster.refresh_keys().await {
                    RefetchOutcome::Fresh => {}
                    RefetchOutcome::RateLimited | RefetchOutcome::Failed => {
                        return Err(AuthnError::Unavailable(format!(
                            "key {kid:.100} is unknown, and the JWKS of cluster {} can't be \
                             fetched again right now",
                            cluster.name()
                        )));
                    }
                }
            }
        }
        Err(AuthnError::rejected("no such key"))
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

fn issuer_unknown(cluster: &ClusterHandle) -> AuthnError {
    AuthnError::Unavailable(format!(
        "the issuer of cluster {} is not known yet",
        cluster.name()
    ))
}

/// Whom verified claims name. `sub` and the private claim must say the same.
pub(super) fn subject(cluster: &str, claims: &Claims) -> Result<Subject, AuthnError> {
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
    let bound = |reference: &Option<claims::Reference>| {
        reference
            .clone()
            .map(ObjectRef::from)
            .filter(|object| !object.uid.is_empty())
    };
    Ok(Subject {
        cluster: cluster.to_owned(),
        namespace: namespace.to_owned(),
        account: kubernetes.serviceaccount.clone().into(),
        pod: bound(&kubernetes.pod),
        node: bound(&kubernetes.node),
    })
}
