//! TokenReview: the API server's word on a token, with a deadline, bounded in flight, kept
//! for a short time. Liveness is checked afterwards by our own watches, each time.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use citadel_identity::crypto;
use citadel_kubernetes::{ApiError, review::Review};
use tokio::{sync::Semaphore, time::Instant};

use super::{AuthnError, claims};
use crate::{
    caller::{BearerToken, ObjectRef, Subject},
    clusters::ClusterHandle,
};

/// Reviews under way at once; more wait within the request's deadline.
const IN_FLIGHT: usize = 64;
/// How long an answer is kept.
const KEPT: Duration = Duration::from_secs(10);
/// Answers kept; the oldest go first.
const MOST_KEPT: usize = 20_000;

/// A token that the API server accepted.
#[derive(Clone, Debug)]
pub(super) struct Reviewed {
    pub(super) subject: Subject,
    pub(super) token_id: Option<String>,
}

type Answer = Result<Reviewed, String>;
/// Cluster and SHA-256 of the token.
type Key = (String, [u8; 32]);

/// Keeps answers by the token's SHA-256: the token itself is not kept.
pub(super) struct Reviews {
    in_flight: Semaphore,
    kept: Mutex<HashMap<Key, (Instant, Answer)>>,
}

impl Default for Reviews {
    fn default() -> Self {
        Self {
            in_flight: Semaphore::new(IN_FLIGHT),
            kept: Mutex::default(),
        }
    }
}

impl Reviews {
    pub(super) async fn review(
        &self,
        cluster: &ClusterHandle,
        token: &BearerToken,
        audiences: &[String],
    ) -> Result<Reviewed, AuthnError> {
        let key = (
            cluster.name().to_owned(),
            crypto::sha256(token.expose().as_bytes()),
        );
        if let Some(answer) = self.kept(&key) {
            return answer.map_err(AuthnError::Rejected);
        }
        let _permit = self
            .in_flight
            .acquire()
            .await
            .map_err(|_| AuthnError::Unavailable("shutting down".into()))?;
        let review = cluster
            .api()
            .review_token(token.expose(), audiences)
            .await
            .map_err(|error: ApiError| {
                AuthnError::Unavailable(format!(
                    "TokenReview at cluster {}: {error}",
                    cluster.name()
                ))
            })?;
        let answer = judge(cluster.name(), &review, audiences);
        self.keep(key, answer.clone());
        answer.map_err(AuthnError::Rejected)
    }

    fn kept(&self, key: &Key) -> Option<Answer> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, answer) = kept.get(key)?;
        (at.elapsed() < KEPT).then(|| answer.clone())
    }

    fn keep(&self, key: Key, answer: Answer) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= MOST_KEPT {
            kept.retain(|_, (at, _)| at.elapsed() < KEPT);
            if kept.len() >= MOST_KEPT {
                kept.clear();
            }
        }
        kept.insert(key, (Instant::now(), answer));
    }
}

/// Reads the API server's answer; never trusts one without our audience.
fn judge(cluster: &str, review: &Review, audiences: &[String]) -> Answer {
    if !review.authenticated {
        let why = review.error.as_deref().unwrap_or("not authenticated");
        return Err(format!("TokenReview: {why}"));
    }
    let [audience] = review.audiences.as_slice() else {
        return Err("TokenReview: not exactly one of our audiences".into());
    };
    if !audiences.contains(audience) {
        return Err("TokenReview: audience is not ours".into());
    }
    if !review
        .groups
        .iter()
        .any(|group| group == "system:serviceaccounts")
    {
        return Err("TokenReview: not a service account".into());
    }
    let (namespace, account) = claims::split_username(&review.username)
        .ok_or_else(|| "TokenReview: the user is no service account".to_owned())?;
    let object = |name: Option<&str>, uid: Option<&str>| {
        let (name, uid) = (name?, uid?);
        (!uid.is_empty()).then(|| ObjectRef {
            name: name.to_owned(),
            uid: uid.to_owned(),
        })
    };
    if review.uid.is_empty() {
        return Err("TokenReview: the account has no UID".into());
    }
    Ok(Reviewed {
        subject: Subject {
            cluster: cluster.to_owned(),
            namespace: namespace.to_owned(),
            account: ObjectRef {
                name: account.to_owned(),
                uid: review.uid.clone(),
            },
            pod: object(review.pod_name(), review.pod_uid()),
            node: object(review.node_name(), review.node_uid()),
        },
        token_id: review
            .credential_id()
            .and_then(|id| id.strip_prefix("JTI="))
            .map(Into::into),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn good() -> Review {
        Review {
            authenticated: true,
            audiences: vec!["citadel".into()],
            username: "system:serviceaccount:shop:web".into(),
            uid: "a-uid".into(),
            groups: vec!["system:serviceaccounts".into()],
            ..Review::default()
        }
    }

    fn decide(review: &Review) -> Answer {
        judge("default", review, &["citadel".into(), "istio-ca".into()])
    }

    #[test]
    fn a_review_counts_only_with_everything_that_it_must_say() {
        assert_eq!(decide(&good()).unwrap().subject.account.name, "web");
        let broken: [fn(&mut Review); 7] = [
            |r| r.authenticated = false,
            |r| r.audiences.clear(),
            |r| r.audiences = vec!["api".into()],
            |r| r.audiences.push("istio-ca".into()),
            |r| r.groups.clear(),
            |r| r.username = "system:node:n1".into(),
            |r| r.uid.clear(),
        ];
        for (number, breaks) in broken.iter().enumerate() {
            let mut review = good();
            breaks(&mut review);
            assert!(decide(&review).is_err(), "defect {number} passed");
        }
    }
}
