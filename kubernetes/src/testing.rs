//! A stand-in for [`ClusterApi`] in unit tests.

use std::collections::HashMap;
use std::sync::Mutex;

use async_trait::async_trait;
use tokio::sync::watch;

use crate::api::{ApiError, ClusterApi, Published};
use crate::records::{AccountRecord, Labels, NodeRecord, Phase, PodRecord};
use crate::review::Review;

pub(crate) fn pod(uid: &str, name: &str) -> PodRecord {
    PodRecord {
        uid: uid.into(),
        name: name.into(),
        namespace: "shop".into(),
        account: "web".into(),
        node: Some("n1".into()),
        phase: Phase::Running,
        labels: Labels::default(),
        containers: [].into(),
        mirror: None,
    }
}

pub(crate) fn account(uid: &str, name: &str) -> AccountRecord {
    AccountRecord {
        uid: uid.into(),
        name: name.into(),
        namespace: "shop".into(),
    }
}

pub(crate) fn node(uid: &str, name: &str) -> NodeRecord {
    NodeRecord {
        uid: uid.into(),
        name: name.into(),
    }
}

#[derive(Default)]
struct State {
    pods: HashMap<String, PodRecord>,
    accounts: HashMap<String, AccountRecord>,
    nodes: HashMap<String, NodeRecord>,
    jwks: Option<Result<String, ApiError>>,
    failure: Option<ApiError>,
}

/// Answers from what it was given, counts the requests, and can hold them.
pub(crate) struct FakeApi {
    state: Mutex<State>,
    calls: watch::Sender<usize>,
    waiting: watch::Sender<usize>,
    held: watch::Sender<bool>,
}

impl Default for FakeApi {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            calls: watch::Sender::new(0),
            waiting: watch::Sender::new(0),
            held: watch::Sender::new(false),
        }
    }
}

impl FakeApi {
    pub(crate) fn put_pod(&self, pod: PodRecord) {
        self.state
            .lock()
            .unwrap()
            .pods
            .insert(pod.name.to_string(), pod);
    }

    pub(crate) fn put_account(&self, account: AccountRecord) {
        self.state
            .lock()
            .unwrap()
            .accounts
            .insert(account.name.to_string(), account);
    }

    pub(crate) fn put_node(&self, node: NodeRecord) {
        self.state
            .lock()
            .unwrap()
            .nodes
            .insert(node.name.to_string(), node);
    }

    pub(crate) fn set_jwks(&self, answer: Result<String, ApiError>) {
        self.state.lock().unwrap().jwks = Some(answer);
    }

    pub(crate) fn fail(&self, error: Option<ApiError>) {
        self.state.lock().unwrap().failure = error;
    }

    /// Requests wait until [`Self::release`]; their answers are made before they wait.
    pub(crate) fn hold(&self) {
        self.held.send_replace(true);
    }

    pub(crate) fn release(&self) {
        self.held.send_replace(false);
    }

    /// Until a request is held.
    pub(crate) async fn waiting(&self) {
        self.waiting.subscribe().wait_for(|n| *n > 0).await.unwrap();
    }

    pub(crate) fn calls(&self) -> usize {
        *self.calls.borrow()
    }

    /// Until so many requests were made in all.
    pub(crate) async fn called(&self, count: usize) {
        self.calls
            .subscribe()
            .wait_for(|n| *n >= count)
            .await
            .unwrap();
    }

    async fn answer<T>(
        &self,
        make: impl FnOnce(&State) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        self.calls.send_modify(|n| *n += 1);
        let answer = {
            let state = self.state.lock().unwrap();
            state.failure.clone().map_or_else(|| make(&state), Err)
        };
        self.waiting.send_modify(|n| *n += 1);
        self.held.subscribe().wait_for(|held| !held).await.unwrap();
        self.waiting.send_modify(|n| *n -= 1);
        answer
    }
}

#[async_trait]
impl ClusterApi for FakeApi {
    async fn get_pod(&self, _: &str, name: &str) -> Result<Option<PodRecord>, ApiError> {
        self.answer(|state| Ok(state.pods.get(name).cloned())).await
    }

    async fn get_account(&self, _: &str, name: &str) -> Result<Option<AccountRecord>, ApiError> {
        self.answer(|state| Ok(state.accounts.get(name).cloned()))
            .await
    }

    async fn get_node(&self, name: &str) -> Result<Option<NodeRecord>, ApiError> {
        self.answer(|state| Ok(state.nodes.get(name).cloned()))
            .await
    }

    async fn review_token(&self, _: &str, _: &[String]) -> Result<Review, ApiError> {
        self.answer(|_| Ok(Review::default())).await
    }

    async fn fetch_issuer(&self) -> Result<String, ApiError> {
        Ok("https://kubernetes.default.svc".into())
    }

    async fn fetch_jwks(&self) -> Result<String, ApiError> {
        self.answer(|state| state.jwks.clone().unwrap()).await
    }

    async fn probe(&self) -> Result<(), ApiError> {
        self.answer(|_| Ok(())).await
    }

    async fn publish(&self, _: &str, _: &str, _: &Published) -> Result<(), ApiError> {
        self.answer(|_| Ok(())).await
    }
}
