//! A whole cluster of one node: API server, controllers, scheduler, kubelet and containerd.
//! What tests apply to it runs.

mod containerd;
mod forward;
mod kubelet;
mod machine;
mod sandbox;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use http::Method;
use serde_json::Value;
use tokio::sync::OnceCell;

use self::containerd::Containerd;
use self::kubelet::{ADDRESS, Kubelet};
use self::sandbox::Sandbox;
use super::{ApiError, ApiServer, Options};
use crate::dir::TestDir;
use crate::image::Image;
use crate::parts::part;
use crate::process::{Launch, Process};
use crate::wait;

pub use self::kubelet::NODE;
pub use self::machine::Machine;
pub use self::sandbox::Container;

/// The first address of the services' range, where pods look for the API server: it is on
/// `lo` of the suite's network, and so needs no proxy.
const API: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1)), 443);

/// What a pod may take to get as far as a test waits for; the machine may be busy.
pub const POD: Duration = Duration::from_secs(90);

/// A running cluster with one node, [`NODE`].
pub struct NodeCluster {
    /// Its API server.
    pub api: ApiServer,
    sandbox: Sandbox,
    containerd: Containerd,
    kubelet: Kubelet,
    _controllers: [Process; 2],
    forwarder: forward::Forwarder,
    /// The machine as it was before.
    pub before: Machine,
    dir: TestDir,
}

impl NodeCluster {
    /// The suite's only one: a second would want the same addresses.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<NodeCluster> = OnceCell::const_new();
        SHARED.get_or_init(Self::start).await
    }

    async fn start() -> Self {
        let machine = Machine::look();
        for address in [&API.ip().to_string(), ADDRESS] {
            on_loopback(address);
        }
        let dir = TestDir::new("cluster");
        let sandbox = Sandbox::start(&dir).await;
        let options = Options {
            address: Some(API),
            flags: vec!["--enable-admission-plugins=NodeRestriction".into()],
            kubelets: true,
            ..Options::default()
        };
        let (api, containerd) =
            tokio::join!(ApiServer::start_with(options), Containerd::start(&sandbox));
        let controllers = [
            controller(
                &api,
                &dir,
                "kube-controller-manager",
                "KUBE_CONTROLLER_MANAGER",
            ),
            controller(&api, &dir, "kube-scheduler", "KUBE_SCHEDULER"),
        ];
        let kubelet = Kubelet::start(&api, &sandbox).await;
        kubelet::default_account(&api, "default").await;
        Self {
            api,
            sandbox,
            containerd,
            kubelet,
            _controllers: controllers,
            forwarder: forward::Forwarder::default(),
            before: machine,
            dir,
        }
    }

    /// Makes an image and puts it on the node.
    pub async fn image(&self, image: &Image) {
        self.containerd
            .import(&image.archive(&TestDir::new("image")))
            .await;
    }

    /// `kubectl` as the administrator: what it prints, or why it failed.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String, String> {
        let kubectl = self.start_kubectl(args);
        let status = kubectl.wait(POD).await;
        if status.success() {
            Ok(kubectl.output())
        } else {
            Err(kubectl.log() + &kubectl.output())
        }
    }

    /// The same, still running.
    pub fn start_kubectl(&self, args: &[&str]) -> Process {
        Launch::new("kubectl", part("KUBECTL"))
            .arg("--kubeconfig")
            .arg(self.api.admin_kubeconfig())
            .args(args)
            .env("HOME", self.dir.path())
            .in_new_files()
            .start(&self.dir)
    }

    /// Applies manifests.
    pub async fn apply(&self, manifests: &str) {
        let file = TestDir::new("apply").write("manifests.yaml", manifests);
        let applied = self
            .kubectl(&["apply", "-f", file.to_str().expect("a plain path")])
            .await;
        applied.unwrap_or_else(|e| panic!("kubectl apply: {e}"));
    }

    /// An object, if it is there.
    pub async fn get(&self, path: &str) -> Option<Value> {
        match self.api.request(Method::GET, path, None).await {
            Ok(object) => Some(object),
            Err(ApiError { code: 404, .. }) => None,
            Err(e) => panic!("GET {path}: {e:?}"),
        }
    }

    /// A pod object.
    pub async fn pod(&self, namespace: &str, name: &str) -> Option<Value> {
        self.get(&format!("/api/v1/namespaces/{namespace}/pods/{name}"))
            .await
    }

    /// Waits until a pod is Ready; its object.
    pub async fn ready_pod(&self, namespace: &str, name: &str) -> Value {
        wait::until(
            &format!("pod {namespace}/{name} is ready"),
            POD,
            async || {
                assert!(self.kubelet.is_running(), "{}", self.kubelet.log());
                assert!(self.containerd.is_running(), "containerd ended");
                let pod = self.pod(namespace, name).await?;
                is_ready(&pod).then_some(pod)
            },
        )
        .await
    }

    /// Waits until the node has a ready pod with this value of its label `app`, as a
    /// `DaemonSet` or a `Deployment` makes them; its object.
    pub async fn ready_app(&self, namespace: &str, app: &str) -> Value {
        let path = format!("/api/v1/namespaces/{namespace}/pods?labelSelector=app%3D{app}");
        wait::until(
            &format!("a pod of {namespace}/{app} is ready"),
            POD,
            async || {
                let pods = self.get(&path).await?;
                let pods = pods["items"].as_array()?;
                pods.iter().find(|pod| is_ready(pod)).cloned()
            },
        )
        .await
    }

    /// Deletes a pod, and waits until its object is gone.
    pub async fn delete_pod(&self, namespace: &str, name: &str) {
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}?gracePeriodSeconds=1");
        let deleted = self.api.request(Method::DELETE, &path, None).await;
        let uid = deleted.expect("the pod is there")["metadata"]["uid"].clone();
        wait::until(
            &format!("pod {namespace}/{name} is gone"),
            POD,
            async || {
                let pod = self.pod(namespace, name).await;
                pod.is_none_or(|pod| pod["metadata"]["uid"] != uid)
                    .then_some(())
            },
        )
        .await;
    }

    /// What a pod's container has printed.
    pub async fn pod_log(&self, namespace: &str, pod: &str, container: &str) -> String {
        self.kubectl(&["logs", "-n", namespace, pod, "-c", container])
            .await
            .unwrap_or_else(|e| format!("(no log: {e})"))
    }

    /// Gives a service the data path that there is no kube-proxy for: connections to its
    /// address go to `target`, at the same port. Its address.
    pub async fn route_service(
        &self,
        namespace: &str,
        name: &str,
        target: SocketAddr,
    ) -> SocketAddr {
        let path = format!("/api/v1/namespaces/{namespace}/services/{name}");
        let service = self.get(&path).await.expect("the service");
        let address = service["spec"]["clusterIP"].as_str().expect("an address");
        let listen = SocketAddr::new(address.parse().expect("an address"), target.port());
        self.forwarder
            .route(listen, target, || on_loopback(address))
            .await;
        listen
    }

    /// Hands the kubelet a static pod.
    pub fn add_static_pod(&self, name: &str, manifest: &str) {
        let folder = self.kubelet.static_pods();
        // Renamed, since the kubelet reads whatever it sees.
        let hidden = folder.join(format!(".{name}"));
        std::fs::write(&hidden, manifest).expect("a static pod");
        std::fs::rename(hidden, folder.join(format!("{name}.yaml"))).expect("a static pod");
    }

    /// A running container by the ID of the runtime.
    pub fn container(&self, id: &str) -> Container {
        self.sandbox.container(id)
    }

    /// A path on the node, seen from outside.
    pub fn node_path(&self, path: &str) -> std::path::PathBuf {
        self.sandbox.path(Path::new(path))
    }
}

/// Whether a pod's object says that it is Ready.
fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.is_some_and(|all| {
        all.iter()
            .any(|c| c["type"] == "Ready" && c["status"] == "True")
    })
}

fn controller(api: &ApiServer, dir: &TestDir, name: &str, at: &str) -> Process {
    let kubeconfig = api.admin_kubeconfig();
    let mut launch = Launch::new(name, part(at))
        .arg(format!("--kubeconfig={}", kubeconfig.display()))
        .args(["--leader-elect=false", "--secure-port=0"]);
    if name == "kube-controller-manager" {
        launch = launch
            .arg("--use-service-account-credentials")
            .arg(format!(
                "--service-account-private-key-file={}",
                api.file("sa.key").display()
            ))
            .arg(format!("--root-ca-file={}", api.file("root.crt").display()));
    }
    launch.start(dir)
}

/// Adds an address to the suite's own `lo`.
fn on_loopback(address: &str) {
    let added = Command::new("ip")
        .args(["address", "add", &format!("{address}/32"), "dev", "lo"])
        .output()
        .expect("ip");
    let errors = String::from_utf8_lossy(&added.stderr);
    assert!(added.status.success(), "{address} on lo: {errors}");
}
