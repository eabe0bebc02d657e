//! The kubelet, as the node that it registers.

use std::path::PathBuf;
use std::time::Duration;

use http::Method;
use serde_json::json;

use super::super::ApiServer;
use super::containerd::SOCKET;
use super::sandbox::Sandbox;
use crate::dir::TestDir;
use crate::parts::part;
use crate::process::{Launch, Process};
use crate::wait;

/// The node's name.
pub const NODE: &str = "node-1";
/// The kubelet refuses loopback: this address is on `lo` of the suite's network.
pub(super) const ADDRESS: &str = "10.77.0.1";

/// From start until the API server shows a node that is ready.
const READY: Duration = Duration::from_secs(60);

pub(super) struct Kubelet {
    dir: TestDir,
    process: Process,
}

impl Kubelet {
    pub(super) async fn start(api: &ApiServer, sandbox: &Sandbox) -> Self {
        let dir = TestDir::new("kubelet");
        std::fs::create_dir(dir.join("static")).expect("a folder");
        let user = api.client_kubeconfig(&format!("system:node:{NODE}"), "system:nodes");
        let kubeconfig = dir.write("kubeconfig", user);
        let root = dir.write("root.crt", &api.root_pem);
        // As a cluster that signs its kubelets' certificates has it.
        let (certificate, key) = api.authority.server(ADDRESS);
        let (certificate, key) = (
            dir.write("serving.crt", certificate),
            dir.write("serving.key", key),
        );
        let config = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": ADDRESS,
            "authentication": {
                "anonymous": { "enabled": false },
                "webhook": { "enabled": true },
                "x509": { "clientCAFile": root },
            },
            "authorization": { "mode": "Webhook" },
            "tlsCertFile": certificate,
            "tlsPrivateKeyFile": key,
            "containerRuntimeEndpoint": format!("unix://{SOCKET}"),
            "failCgroupV1": false,
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": "/",
            "cgroupsPerQOS": true,
            "enforceNodeAllocatable": ["pods"],
            "failSwapOn": false,
            "makeIPTablesUtilChains": false,
            "registryPullQPS": 0,
            "resolvConf": "",
            "healthzPort": 0,
            "staticPodPath": dir.join("static"),
            "fileCheckFrequency": "1s",
            "podLogsDir": dir.join("pods"),
            "volumePluginDir": dir.join("plugins"),
            "evictionHard": { "memory.available": "50Mi", "nodefs.available": "1%" },
            "imageGCHighThresholdPercent": 100,
            "nodeStatusUpdateFrequency": "2s",
            "featureGates": {
                "PodCertificateRequest": true,
                "ClusterTrustBundle": true,
                "ClusterTrustBundleProjection": true,
            },
        });
        let config = dir.write("config.yaml", config.to_string());
        let process = Launch::new("kubelet", part("KUBELET"))
            .arg(format!("--config={}", config.display()))
            .arg(format!("--kubeconfig={}", kubeconfig.display()))
            .arg(format!("--root-dir={}", dir.join("root").display()))
            .arg(format!("--cert-dir={}", dir.join("pki").display()))
            .arg(format!("--hostname-override={NODE}"))
            .arg(format!("--node-ip={ADDRESS}"))
            .arg("--v=2")
            .wrapped(sandbox.wrapper())
            .start(&dir);
        let ready = async || {
            let path = format!("/api/v1/nodes/{NODE}");
            let node = api.request(Method::GET, &path, None).await;
            node.is_ok_and(|node| {
                let conditions = node["status"]["conditions"].as_array().cloned();
                let is_ready =
                    |c: &serde_json::Value| c["type"] == "Ready" && c["status"] == "True";
                // The taint goes a moment later, and nothing is scheduled before.
                node["spec"]["taints"].is_null()
                    && conditions.unwrap_or_default().iter().any(is_ready)
            })
        };
        process.ready(READY, ready).await;
        Self { dir, process }
    }

    /// Where the kubelet looks for static pods.
    pub(super) fn static_pods(&self) -> PathBuf {
        self.dir.join("static")
    }

    pub(super) fn is_running(&self) -> bool {
        self.process.is_running()
    }

    /// The kubelet's log, for a failure's message.
    pub(super) fn log(&self) -> String {
        self.process.log()
    }
}

/// Waits for an account that the controllers make in each namespace.
pub(super) async fn default_account(api: &ApiServer, namespace: &str) {
    let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/default");
    wait::until("the default account", READY, async || {
        api.request(Method::GET, &path, None).await.ok()
    })
    .await;
}
