//! The suite's cluster with Citadel in it, installed from `deploy/kubernetes`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use citadel_tests::dir::TestDir;
use citadel_tests::image::Image;
use citadel_tests::kubernetes::{NODE, NodeCluster};
use citadel_tests::parts::program;
use citadel_tests::wait;
use http::Method;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

/// Where Citadel is.
pub(crate) const SYSTEM: &str = "citadel-system";
/// What the manifests name.
const CITADEL: &str = "citadel:0.1.0";
/// What the tests' pods run.
pub(crate) const WORKLOAD: &str = "citadel.test/workload:1";
/// A pod that was told to end.
const ENDED: Duration = Duration::from_secs(30);
/// Where the CA listens.
const GRPC: u16 = 15012;

/// The running installation.
pub(crate) struct Deployed {
    pub(crate) cluster: &'static NodeCluster,
    /// The manifests as they are.
    pub(crate) shipped: String,
    /// The manifests as they were applied.
    pub(crate) applied: String,
    /// What `kubectl diff` found between them and the cluster, once all was running.
    pub(crate) drift: String,
    /// The log of the agent's second pod, which an update of the `DaemonSet` made.
    pub(crate) second_pod: String,
}

impl Deployed {
    /// The suite's common one.
    pub(crate) async fn shared() -> &'static Self {
        static SHARED: OnceCell<Deployed> = OnceCell::const_new();
        SHARED.get_or_init(Self::install).await
    }

    async fn install() -> Self {
        let cluster = NodeCluster::shared().await;
        let citadel = Image::new(CITADEL)
            .program(program("citadel-ca"), "/usr/local/bin/citadel-ca")
            .program(program("citadel-agent"), "/usr/local/bin/citadel-agent")
            .program(program("citadel"), "/usr/local/bin/citadel");
        let workload = Image::new(WORKLOAD)
            .program(program("citadel"), "/usr/local/bin/citadel")
            .tool("sleep")
            .tool("sh")
            .tool("mkdir")
            .tool("mount")
            .entrypoint(&["sleep", "infinity"]);
        cluster.image(&citadel).await;
        cluster.image(&workload).await;
        give_storage(cluster).await;

        // As it is: this already makes the CA.
        let base = deploy_folder();
        let shipped = render(cluster, &base).await;
        cluster.apply(&shipped).await;
        rolled_out(cluster, "deployment/citadel-ca").await;
        let address = route_to_ca(cluster).await;

        // And with the one patch, since there is no DNS here.
        let overlay = TestDir::new("overlay");
        let base = relative(&base, overlay.path());
        overlay.write("kustomization.yaml", overlay_of(&base, address));
        let applied = render(cluster, overlay.path()).await;
        let file = overlay.write("applied.yaml", &applied);
        cluster.apply(&applied).await;
        rolled_out(cluster, "daemonset/citadel-agent").await;
        let file = file.to_str().expect("a plain path");
        let drift = match cluster.kubectl(&["diff", "-f", file]).await {
            Ok(same) => same,
            Err(drift) => format!("kubectl diff: {drift}"),
        };

        set_policy(cluster).await;
        let second_pod = update(cluster).await;
        Self {
            cluster,
            shipped,
            applied,
            drift,
            second_pod,
        }
    }

    /// The agent's metrics.
    pub(crate) async fn agent_metrics(&self) -> String {
        let pod = self.cluster.ready_app(SYSTEM, "citadel-agent").await;
        let answer = citadel_tests::http::get(pod_address(&pod, 15015), "/metrics").await;
        answer.expect("the agent's metrics").body
    }
}

/// The policy of an operator, as the manifest's comment says: an edited `ConfigMap` and a
/// restart.
async fn set_policy(cluster: &NodeCluster) {
    let path = format!("/api/v1/namespaces/{SYSTEM}/configmaps/citadel-ca");
    let map = cluster.get(&path).await.expect("the CA's configuration");
    let config = map["data"]["ca.yaml"].as_str().expect("a text").to_owned();
    let node = [format!("default/{NODE}")];
    let entries = json!([
        { "id": "/duo/app", "hint": "app", "nodes": "all",
          "selectors": ["k8s:ns:duo", "k8s:container-name:app"] },
        { "id": "/duo/side", "hint": "side", "nodes": "all",
          "selectors": ["k8s:ns:duo", "k8s:container-name:side"] },
        { "id": "/duo/setup", "hint": "setup", "nodes": "all",
          "selectors": ["k8s:ns:duo", "k8s:container-name:setup"] },
        { "id": "/visited/app", "hint": "app", "nodes": "all",
          "selectors": ["k8s:ns:visited", "k8s:container-name:app"] },
        { "id": "/visited/visitor", "hint": "visitor", "nodes": "all",
          "selectors": ["k8s:ns:visited", "k8s:container-name:visitor", "k8s:container-image:citadel.test/workload:1"] },
        { "id": "/duo-2/app", "nodes": "all", "selectors": ["k8s:ns:duo-2", "k8s:container-name:app"] },
        { "id": "/static/listed", "nodes": node, "selectors": ["k8s:pod-name:listed-node-1"] },
        { "id": "/static/label", "nodes": node, "selectors": ["k8s:pod-label:app:static"] },
    ]);
    let agents =
        json!({ "accounts": ["citadel-system/citadel-agent", "citadel-system/reads-kubelet"] });
    let config = format!("{config}agents: {agents}\nentries: {entries}\n");
    let patch = json!({ "data": { "ca.yaml": config } });
    let patched = cluster
        .api
        .request(Method::PATCH, &path, Some(&patch))
        .await;
    patched.expect("the CA's configuration is changed");
    let restart = ["rollout", "restart", "-n", SYSTEM, "deployment/citadel-ca"];
    cluster.kubectl(&restart).await.expect("a restart");
    rolled_out(cluster, "deployment/citadel-ca").await;
    route_to_ca(cluster).await;
}

/// An update of the agent, as a new version's would be. The log of the pod that it made.
async fn update(cluster: &NodeCluster) -> String {
    let agent = async || cluster.ready_app(SYSTEM, "citadel-agent").await;
    let name = |pod: &Value| pod["metadata"]["name"].as_str().expect("a name").to_owned();
    let first = name(&agent().await);
    let restart = [
        "rollout",
        "restart",
        "-n",
        SYSTEM,
        "daemonset/citadel-agent",
    ];
    cluster.kubectl(&restart).await.expect("an update");
    rolled_out(cluster, "daemonset/citadel-agent").await;
    let path = format!("/api/v1/namespaces/{SYSTEM}/pods/{first}");
    wait::until("the first pod is gone", ENDED, async || {
        cluster.get(&path).await.is_none().then_some(())
    })
    .await;
    let second = name(&agent().await);
    assert_ne!(second, first);
    cluster.pod_log(SYSTEM, &second, "agent").await
}

/// The service's data path; its address.
async fn route_to_ca(cluster: &NodeCluster) -> SocketAddr {
    let pod = cluster.ready_app(SYSTEM, "citadel-ca").await;
    let target = pod_address(&pod, GRPC);
    cluster.route_service(SYSTEM, "citadel-ca", target).await
}

pub(crate) fn pod_address(pod: &Value, port: u16) -> SocketAddr {
    let ip = pod["status"]["podIP"].as_str().expect("a pod's address");
    SocketAddr::new(ip.parse().expect("an address"), port)
}

async fn rolled_out(cluster: &NodeCluster, what: &str) {
    let done = cluster
        .kubectl(&["rollout", "status", "-n", SYSTEM, what, "--timeout=80s"])
        .await;
    if let Err(error) = done {
        let state = cluster
            .kubectl(&["describe", "pods", "-n", SYSTEM])
            .await
            .unwrap_or_default();
        let logs = cluster
            .kubectl(&["logs", "-n", SYSTEM, what, "--all-containers", "--tail=40"])
            .await;
        panic!("{what}: {error}\n{state}\n{logs:?}");
    }
}

/// The storage that a cluster has, and this one has no provisioner for.
async fn give_storage(cluster: &NodeCluster) {
    let folder = "/var/lib/citadel-storage";
    std::fs::create_dir(cluster.node_path(folder)).expect("a folder of the node");
    let volume = json!({
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": { "name": "disk-1" },
        "spec": {
            "capacity": { "storage": "20Gi" },
            "accessModes": ["ReadWriteOnce"],
            "local": { "path": folder },
            "nodeAffinity": { "required": { "nodeSelectorTerms": [{ "matchExpressions": [
                { "key": "kubernetes.io/hostname", "operator": "In", "values": [NODE] },
            ] }] } },
        },
    });
    cluster.apply(&volume.to_string()).await;
}

async fn render(cluster: &NodeCluster, folder: &Path) -> String {
    let folder = folder.to_str().expect("a plain path");
    let rendered = cluster.kubectl(&["kustomize", folder]).await;
    rendered.unwrap_or_else(|e| panic!("kubectl kustomize {folder}: {e}"))
}

fn overlay_of(base: &str, ca: SocketAddr) -> String {
    json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [base],
        "patches": [{
            "target": { "kind": "DaemonSet", "name": "citadel-agent" },
            "patch": json!([{
                "op": "replace",
                "path": "/spec/template/spec/containers/0/env/0/value",
                "value": ca.to_string(),
            }]).to_string(),
        }],
    })
    .to_string()
}

fn deploy_folder() -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kubernetes");
    folder.canonicalize().expect("the manifests")
}

/// kustomize takes a base by a relative path alone.
fn relative(to: &Path, from: &Path) -> String {
    let up = "../".repeat(from.components().count() - 1);
    let down = to.strip_prefix("/").expect("an absolute path");
    format!("{up}{}", down.display())
}
