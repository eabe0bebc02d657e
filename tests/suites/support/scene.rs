//! A CA on an API server, and who is there.

use std::time::Duration;

use citadel_proto::v1::issue_item::Subject;
use citadel_proto::v1::issue_result::Outcome;
use citadel_proto::v1::{IssueItem, ItemError, PodSubject, X509Svid};
use citadel_tests::citadel::{Ca, CaBuilder};
use citadel_tests::client::{Admin, Client, ClientBuilder, Identity};
use citadel_tests::dir::TestDir;
use citadel_tests::kubernetes::{AgentPod, ApiServer};
use citadel_tests::pki::csr::{self, Csr};
use citadel_tests::wait;
use serde_json::{Value, json};

/// How long the CA's watches may take to show what was just made.
const SEEN: Duration = Duration::from_secs(5);

/// A CA whose only cluster is this API server.
pub(crate) struct Scene<'a> {
    pub(crate) api: &'a ApiServer,
    pub(crate) ca: Ca,
    pub(crate) admin: Admin,
}

/// A pod with its token.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    pub(crate) namespace: String,
    pub(crate) account: String,
    pub(crate) pod: String,
    pub(crate) node: String,
    pub(crate) uid: String,
    pub(crate) token: String,
}

/// The agent of a node, by its SVID.
pub(crate) struct AgentClient {
    pub(crate) pod: AgentPod,
    pub(crate) node: String,
    pub(crate) identity: Identity,
    pub(crate) client: Client,
}

impl Scene<'static> {
    /// On the suite's common API server, all settings as they are.
    pub(crate) async fn start() -> Self {
        Self::with(|ca| ca).await
    }

    /// On the suite's common API server, with other settings.
    pub(crate) async fn with(change: impl FnOnce(CaBuilder) -> CaBuilder) -> Self {
        Scene::on(ApiServer::shared().await, change).await
    }
}

impl<'a> Scene<'a> {
    /// On any API server.
    pub(crate) async fn on(
        api: &'a ApiServer,
        change: impl FnOnce(CaBuilder) -> CaBuilder,
    ) -> Self {
        Self::of(api, change(CaBuilder::new(api).await)).await
    }

    /// On any API server, with these settings of the cluster.
    pub(crate) async fn with_cluster(api: &'a ApiServer, settings: Value) -> Self {
        Self::with_cluster_and(api, settings, |ca| ca).await
    }

    /// The same with other settings of the CA too.
    pub(crate) async fn with_cluster_and(
        api: &'a ApiServer,
        settings: Value,
        change: impl FnOnce(CaBuilder) -> CaBuilder,
    ) -> Self {
        let dir = TestDir::new("ca");
        let access = api.ca_access("citadel-system", &dir).await;
        let mut cluster = json!({ "name": "default", "kubeconfig": access.kubeconfig });
        let settings = settings.as_object().expect("a map").clone();
        cluster.as_object_mut().expect("a map").extend(settings);
        let ca = CaBuilder::with_clusters(dir, json!([cluster]));
        Self::of(api, change(ca)).await
    }

    async fn of(api: &'a ApiServer, ca: CaBuilder) -> Self {
        let ca = ca.start().await;
        let admin = Admin::of(&ca);
        Self { api, ca, admin }
    }

    /// A client without any credential.
    pub(crate) fn client(&self) -> ClientBuilder {
        ClientBuilder::new(&self.ca)
    }

    /// A pod `web-1` of account `web` on a node of its own: `node-NAMESPACE`.
    pub(crate) async fn workload(&self, namespace: &str) -> Workload {
        let node = format!("node-{namespace}");
        self.api.create_node(&node).await;
        self.pod(namespace, "web", "web-1", &node).await
    }

    /// A pod on a node that exists; namespace and account are made with it.
    pub(crate) async fn pod(
        &self,
        namespace: &str,
        account: &str,
        pod: &str,
        node: &str,
    ) -> Workload {
        let uid = self
            .api
            .create_workload(namespace, account, pod, node)
            .await;
        Workload {
            namespace: namespace.into(),
            account: account.into(),
            pod: pod.into(),
            node: node.into(),
            uid,
            token: self.api.token(namespace, account, pod).await,
        }
    }

    /// A client that presents this workload's token.
    pub(crate) fn client_of(&self, workload: &Workload) -> Client {
        self.client().token(&workload.token).build()
    }

    /// The SVID of a workload, by its token.
    pub(crate) async fn identity_of(&self, workload: &Workload) -> Identity {
        let csr = csr::plain();
        let answer = self.client_of(workload).issue(&csr).await.expect("an SVID");
        Identity::new(&answer.svid.expect("an SVID"), &csr)
    }

    /// A node, its agent's pod, and the agent's SVID.
    pub(crate) async fn agent(&self, node: &str) -> AgentClient {
        let pod = self.api.create_agent(node).await;
        let by_token = self.client().token(&pod.token).build();
        let csr = csr::plain();
        // The Node object may be newer than what the watch shows.
        let answer = wait::until("the agent attests", SEEN, async || {
            by_token.attest(&csr).await.ok()
        })
        .await;
        let identity = Identity::new(&answer.svid.expect("an SVID"), &csr);
        let client = self.client().identity(&identity).build();
        AgentClient {
            pod,
            node: node.into(),
            identity,
            client,
        }
    }

    /// Waits until the CA's watch shows a pod to the agent of its node.
    pub(crate) async fn seen_by(&self, agent: &AgentClient, workload: &Workload) {
        wait::until("the pod is seen", SEEN, async || {
            agent.one(AgentClient::pod_item(&workload.uid)).await.ok()
        })
        .await;
    }
}

impl Workload {
    /// `spiffe://example.org/ns/NAMESPACE/sa/ACCOUNT`.
    pub(crate) fn spiffe_id(&self) -> String {
        format!(
            "spiffe://example.org/ns/{}/sa/{}",
            self.namespace, self.account
        )
    }
}

impl AgentClient {
    /// An item of a batch, for a new key.
    pub(crate) fn item(subject: Subject) -> IssueItem {
        Self::item_for(subject, &csr::plain())
    }

    /// An item of a batch, for this key.
    pub(crate) fn item_for(subject: Subject, csr: &Csr) -> IssueItem {
        IssueItem {
            idempotency_key: "item".into(),
            csr: csr.der.clone(),
            subject: Some(subject),
            ..Default::default()
        }
    }

    /// An item for a pod's account identity.
    pub(crate) fn pod_item(uid: &str) -> IssueItem {
        Self::item(Subject::Pod(PodSubject {
            pod_uid: uid.into(),
            ..Default::default()
        }))
    }

    /// The outcome of a batch of one item.
    pub(crate) async fn one(&self, item: IssueItem) -> Result<X509Svid, ItemError> {
        let key = item.idempotency_key.clone();
        let answer = self.client.batch(vec![item]).await.expect("a batch");
        let [result] = answer.results.try_into().expect("one result");
        assert_eq!(result.idempotency_key, key);
        match result.outcome.expect("an outcome") {
            Outcome::Svid(svid) => Ok(svid),
            Outcome::Error(error) => Err(error),
        }
    }
}
