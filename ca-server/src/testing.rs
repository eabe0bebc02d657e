//! What unit tests share: a stand-in for an API server, and a policy that grants nothing more
//! than a pod's own identity.
#![allow(clippy::unwrap_used)]

use std::{
    collections::HashSet,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use citadel_identity::template::IdTemplate;
use citadel_kubernetes::{
    AccountRecord, ApiError, ClusterApi, NodeRecord, PodRecord, Published, Review,
};

use crate::authz::PolicyOptions;

pub(crate) fn policy_options() -> PolicyOptions {
    PolicyOptions {
        trust_domain: "example.org".parse().unwrap(),
        template: IdTemplate::parse("/ns/{namespace}/sa/{account}").unwrap(),
        agent_accounts: HashSet::new(),
        impersonating_accounts: HashSet::new(),
        allow_unbound: HashSet::new(),
        default_ttl: Duration::from_secs(3600),
        min_ttl: Duration::from_secs(10),
        max_ttl: Duration::from_secs(86_400),
        serving_ttl: Duration::from_secs(86_400),
        external_ttl: Duration::from_secs(86_400),
        ca_dns_names: Vec::new(),
        max_renewal_age: Duration::from_secs(604_800),
    }
}

/// What the API server has. `None` where it does not answer.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) nodes: Option<Vec<NodeRecord>>,
    pub(crate) accounts: Option<Vec<AccountRecord>>,
    pub(crate) jwks: Option<String>,
    pub(crate) issuer: Option<String>,
}

/// Answers from its state and counts the requests for objects. It knows no pods.
#[derive(Default)]
pub(crate) struct FakeApi {
    pub(crate) state: Mutex<State>,
    asked: AtomicUsize,
}

impl FakeApi {
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    fn of<T>(&self, part: impl FnOnce(&State) -> Option<T>) -> Result<T, ApiError> {
        let away = || ApiError::Unreachable("it is away".into());
        part(&self.state.lock().unwrap()).ok_or_else(away)
    }
}

#[async_trait]
impl ClusterApi for FakeApi {
    async fn get_pod(&self, _: &str, _: &str) -> Result<Option<PodRecord>, ApiError> {
        self.of(|_| None)
    }
    async fn get_account(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<AccountRecord>, ApiError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let is_it = |a: &&AccountRecord| *a.namespace == *namespace && *a.name == *name;
        self.of(|state| Some(state.accounts.as_ref()?.iter().find(is_it).cloned()))
    }
    async fn get_node(&self, name: &str) -> Result<Option<NodeRecord>, ApiError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let is_it = |node: &&NodeRecord| *node.name == *name;
        self.of(|state| Some(state.nodes.as_ref()?.iter().find(is_it).cloned()))
    }
    async fn review_token(&self, _: &str, _: &[String]) -> Result<Review, ApiError> {
        self.of(|_| None)
    }
    async fn fetch_jwks(&self) -> Result<String, ApiError> {
        self.of(|state| state.jwks.clone())
    }
    async fn fetch_issuer(&self) -> Result<String, ApiError> {
        self.of(|state| state.issuer.clone())
    }
    async fn probe(&self) -> Result<(), ApiError> {
        Ok(())
    }
    async fn publish(&self, _: &str, _: &str, _: &Published) -> Result<(), ApiError> {
        Ok(())
    }
}
