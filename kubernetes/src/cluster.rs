//! One cluster's API server: the client, its requests, and the watches that feed an inventory.

use std::collections::HashMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::Method;
use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::watch;

use crate::api::{ApiError, ClusterApi, Published};
use crate::inventory::Inventory;
use crate::names::is_object_name;
use crate::node_pods::{NodePod, NodePods};
use crate::records::{AccountRecord, NodeRecord, PodRecord};
use crate::review::{self, Review};
use crate::transport::{Call, CallError, Transport};
use crate::watch::Follower;

/// Largest answer with a single object or review, in bytes; etcd holds no object of over 1.5 MB.
const MAX_OBJECT: usize = 8 << 20;
/// Largest key set, in bytes.
const MAX_JWKS: usize = 1 << 20;
/// What of the `ConfigMap` is the CA's: where agents find the trust bundle, and the log's
/// newest checkpoint.
const BUNDLE_KEY: &str = "root-cert.pem";
const CHECKPOINT_KEY: &str = "log.checkpoint";
/// Under this name the API server keeps who owns which field of the `ConfigMap`.
const FIELD_MANAGER: &str = "citadel-ca";

/// How to reach a cluster.
#[derive(Debug, Clone)]
pub struct ClusterConfig {
    /// The name that this CA gives the cluster.
    pub name: String,
    /// A kubeconfig file, of which the current context counts; in-cluster credentials if `None`.
    pub kubeconfig: Option<PathBuf>,
    /// The longest time that a request may take as a whole. Default 3 s.
    pub deadline: Duration,
    /// The longest time that a page of a list may take, or a watch until it is open. Default 30 s.
    pub page_deadline: Duration,
    /// Between two probes; while the API server does not answer, a fifth of it. Default 10 s.
    pub probe_interval: Duration,
    /// A watch that is silent for so long is reopened, with a new list. Default 3 min.
    pub watch_silence: Duration,
}

impl ClusterConfig {
    /// The defaults, for a cluster of that name.
    pub fn new(name: impl Into<String>, kubeconfig: Option<PathBuf>) -> Self {
        Self {
            name: name.into(),
            kubeconfig,
            deadline: Duration::from_secs(3),
            page_deadline: Duration::from_secs(30),
            probe_interval: Duration::from_secs(10),
            watch_silence: Duration::from_mins(3),
        }
    }
}

/// Why a cluster can't be set up. Nothing has been asked of its API server yet.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The kubeconfig is missing, is no kubeconfig, or names files that are missing.
    #[error("cluster {cluster}: kubeconfig {path}: {reason}")]
    Kubeconfig {
        /// The cluster's name.
        cluster: String,
        /// The file.
        path: PathBuf,
        /// What is wrong with it, without its content.
        reason: String,
    },
    /// There is no kubeconfig and this is no pod.
    #[error(
        "cluster {cluster}: no kubeconfig is set, and in-cluster credentials are not there: \
         {reason}. Set `kubeconfig` for this cluster, or run in a pod with a service account"
    )]
    InCluster {
        /// The cluster's name.
        cluster: String,
        /// What is missing.
        reason: String,
    },
    /// The API server would not be authenticated: whoever sits between could invent identities.
    #[error(
        "cluster {cluster}: {what} does not authenticate the API server: set \
         `certificate-authority` in the kubeconfig and an https:// server"
    )]
    Unauthenticated {
        /// The cluster's name.
        cluster: String,
        /// The setting that takes the authentication away.
        what: &'static str,
    },
    /// The kubeconfig wants a proxy.
    #[error("cluster {cluster}: `proxy-url` in a kubeconfig is not supported")]
    Proxy {
        /// The cluster's name.
        cluster: String,
    },
    /// TLS, client certificate or credentials can't be set up.
    #[error("cluster {cluster}: {reason}")]
    Client {
        /// The cluster's name.
        cluster: String,
        /// What is wrong.
        reason: String,
    },
}

/// A client of one cluster's API server.
pub struct Cluster {
    config: ClusterConfig,
    transport: Transport,
    reachable: watch::Sender<bool>,
}

impl Cluster {
    /// Reads the credentials and sets up the client. The API server need not be there yet.
    ///
    /// `HTTPS_PROXY` and its like have no effect; plain HTTP is for loopback only.
    pub async fn connect(config: ClusterConfig) -> Result<Arc<Self>, ConnectError> {
        // The client library would choose a provider for the whole process otherwise.
        citadel_identity::crypto::install_default();
        let access = access(&config).await?;
        let cluster = || config.name.clone();
        if access.accept_invalid_certs {
            let what = "`insecure-skip-tls-verify`";
            return Err(ConnectError::Unauthenticated {
                cluster: cluster(),
                what,
            });
        }
        if access.cluster_url.scheme_str() != Some("https") && !is_loopback(&access.cluster_url) {
            let what = "a server without https:// that is not on loopback";
            return Err(ConnectError::Unauthenticated {
                cluster: cluster(),
                what,
            });
        }
        let transport = Transport::new(&access, &config.name, config.deadline).map_err(|e| {
            ConnectError::Client {
                cluster: cluster(),
                reason: client_reason(&e),
            }
        })?;
        Ok(Arc::new(Self {
            config,
            transport,
            reachable: watch::Sender::new(true),
        }))
    }

    #[cfg(test)]
    pub(crate) fn with_transport(config: ClusterConfig, transport: Transport) -> Arc<Self> {
        Arc::new(Self {
            config,
            transport,
            reachable: watch::Sender::new(true),
        })
    }

    /// The name that this CA gives the cluster.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// Whether the API server answered the last probe of [`Self::run_watches`]. It says nothing about
    /// the age of what the watches know.
    pub fn reachable(&self) -> watch::Receiver<bool> {
        self.reachable.subscribe()
    }

    /// Keeps `inventory` current until `shutdown`: lists and watches pods, service accounts and
    /// nodes, through any outage.
    pub async fn run_watches(
        self: Arc<Self>,
        inventory: Arc<Inventory>,
        shutdown: impl Future<Output = ()> + Send,
    ) {
        let recovered = watch::Sender::new(());
        let follower = self.follower("");
        tokio::select! {
            () = shutdown => {}
            () = follower.keep_all(&inventory, &recovered) => {}
            () = self.run_probe(&recovered) => {}
        }
    }

    /// Keeps `pods` current until `shutdown`: lists and watches the pods of one node, through any
    /// outage. The API server is not probed, since every node does this: one that hangs is noticed
    /// by the watch's silence.
    pub async fn run_node_watch(
        self: Arc<Self>,
        node: &str,
        pods: Arc<NodePods>,
        shutdown: impl Future<Output = ()> + Send,
    ) {
        let recovered = watch::Sender::new(());
        let fields = format!("spec.nodeName={node}");
        let follower = self.follower(&fields);
        tokio::select! {
            () = shutdown => {}
            () = follower.keep::<NodePod, _>(&*pods, recovered.subscribe()) => {}
        }
    }

    fn follower<'a>(&'a self, fields: &'a str) -> Follower<'a> {
        Follower {
            transport: &self.transport,
            cluster: &self.config.name,
            page_deadline: self.config.page_deadline,
            silence: self.config.watch_silence,
            fields,
        }
    }

    /// Notices a hung API server early, and tells the watches when it is back.
    async fn run_probe(&self, recovered: &watch::Sender<()>) {
        loop {
            let outcome = self.probe().await;
            let is_reachable = outcome.is_ok();
            let was_reachable = self.reachable.send_replace(is_reachable);
            match outcome {
                Ok(()) if !was_reachable => {
                    tracing::info!(cluster = %self.config.name, "the API server is back");
                    recovered.send_replace(());
                }
                Err(error) if was_reachable => {
                    tracing::warn!(cluster = %self.config.name, %error, "the API server does not answer");
                }
                _ => {}
            }
            let interval = self.config.probe_interval;
            tokio::time::sleep(if is_reachable { interval } else { interval / 5 }).await;
        }
    }

    async fn object<T: DeserializeOwned>(
        &self,
        path: &str,
        names: &[&str],
    ) -> Result<Option<T>, ApiError> {
        if !names.iter().all(|name| is_object_name(name)) {
            return Ok(None);
        }
        match self
            .transport
            .call(Call::get(path, self.config.deadline, MAX_OBJECT))
            .await
        {
            // serde's message can quote the object.
            Ok(body) => serde_json::from_slice(&body)
                .map(Some)
                .map_err(|_| ApiError::Malformed("the object is not as the API defines it".into())),
            Err(CallError::NotFound) => Ok(None),
            Err(error) => Err(error.into_api()),
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        media_type: &'static str,
        content: Vec<u8>,
    ) -> Result<Vec<u8>, ApiError> {
        let body = Some((media_type, content));
        let deadline = self.config.deadline;
        let call = Call {
            method,
            path,
            body,
            deadline,
            max_body: MAX_OBJECT,
        };
        self.transport.call(call).await.map_err(CallError::into_api)
    }
}

#[async_trait]
impl ClusterApi for Cluster {
    async fn get_pod(&self, namespace: &str, name: &str) -> Result<Option<PodRecord>, ApiError> {
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
        self.object(&path, &[namespace, name]).await
    }

    async fn get_account(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<AccountRecord>, ApiError> {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}");
        self.object(&path, &[namespace, name]).await
    }

    async fn get_node(&self, name: &str) -> Result<Option<NodeRecord>, ApiError> {
        self.object(&format!("/api/v1/nodes/{name}"), &[name]).await
    }

    async fn review_token(&self, token: &str, audiences: &[String]) -> Result<Review, ApiError> {
        let body = review::request_body(token, audiences)?;
        let path = "/apis/authentication.k8s.io/v1/tokenreviews";
        let answer = self
            .send(Method::POST, path, "application/json", body)
            .await?;
        review::decode(&answer, token)
    }

    async fn fetch_jwks(&self) -> Result<String, ApiError> {
        let call = Call::get("/openid/v1/jwks", self.config.deadline, MAX_JWKS);
        let body = self
            .transport
            .call(call)
            .await
            .map_err(CallError::into_api)?;
        String::from_utf8(body).map_err(|_| ApiError::Malformed("the key set is not UTF-8".into()))
    }

    async fn fetch_issuer(&self) -> Result<String, ApiError> {
        #[derive(serde::Deserialize)]
        struct Discovery {
            issuer: String,
        }
        let path = "/.well-known/openid-configuration";
        let call = Call::get(path, self.config.deadline, MAX_OBJECT);
        let body = self
            .transport
            .call(call)
            .await
            .map_err(CallError::into_api)?;
        match serde_json::from_slice(&body) {
            Ok(Discovery { issuer }) if !issuer.is_empty() => Ok(issuer),
            _ => Err(ApiError::Malformed(
                "the discovery document names no issuer".into(),
            )),
        }
    }

    async fn probe(&self) -> Result<(), ApiError> {
        let call = Call::get("/readyz", self.config.deadline, MAX_OBJECT);
        match self.transport.call(call).await.map_err(CallError::into_api) {
            Err(error @ ApiError::Unreachable(_)) => Err(error),
            // Refused or odd, it is an answer.
            Ok(_) | Err(ApiError::Denied { .. } | ApiError::Malformed(_)) => Ok(()),
        }
    }

    fn clock_skew(&self) -> Option<time::Duration> {
        self.transport.clock_skew()
    }

    async fn publish(
        &self,
        namespace: &str,
        configmap: &str,
        published: &Published,
    ) -> Result<(), ApiError> {
        if !is_object_name(namespace) || !is_object_name(configmap) {
            return Err(ApiError::Malformed(format!(
                "{namespace}/{configmap} can't be the name of a ConfigMap"
            )));
        }
        let path = format!(
            "/api/v1/namespaces/{namespace}/configmaps/{configmap}\
             ?fieldManager={FIELD_MANAGER}&force=true"
        );
        let mut data = serde_json::Map::new();
        data.insert(BUNDLE_KEY.to_owned(), published.bundle.as_str().into());
        if let Some(checkpoint) = &published.checkpoint {
            data.insert(CHECKPOINT_KEY.to_owned(), checkpoint.as_str().into());
        }
        let wanted = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"namespace": namespace, "name": configmap},
            "data": data,
        });
        // Server-side apply: creates it where needed, and leaves what others put there. Its media
        // type is YAML's, of which JSON is a part.
        let media_type = "application/apply-patch+yaml";
        self.send(
            Method::PATCH,
            &path,
            media_type,
            wanted.to_string().into_bytes(),
        )
        .await?;
        Ok(())
    }

    async fn published_checkpoint(
        &self,
        namespace: &str,
        configmap: &str,
    ) -> Result<Option<String>, ApiError> {
        #[derive(serde::Deserialize)]
        struct ConfigMap {
            #[serde(default)]
            data: HashMap<String, String>,
        }
        let path = format!("/api/v1/namespaces/{namespace}/configmaps/{configmap}");
        let found: Option<ConfigMap> = self.object(&path, &[namespace, configmap]).await?;
        Ok(found.and_then(|mut map| map.data.remove(CHECKPOINT_KEY)))
    }
}

/// Address and credentials.
async fn access(config: &ClusterConfig) -> Result<kube::Config, ConnectError> {
    let cluster = || config.name.clone();
    let Some(path) = &config.kubeconfig else {
        return kube::Config::incluster().map_err(|e: InClusterError| ConnectError::InCluster {
            cluster: cluster(),
            reason: e.to_string(),
        });
    };
    let wrong = |e: &KubeconfigError| ConnectError::Kubeconfig {
        cluster: cluster(),
        path: path.clone(),
        reason: kubeconfig_reason(e),
    };
    let file = Kubeconfig::read_from(path).map_err(|e| wrong(&e))?;
    if file
        .clusters
        .iter()
        .any(|c| c.cluster.as_ref().is_some_and(|c| c.proxy_url.is_some()))
    {
        return Err(ConnectError::Proxy { cluster: cluster() });
    }
    kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .map_err(|e| wrong(&e))
}

/// A parser's message can quote the file, which holds private keys and tokens.
fn kubeconfig_reason(error: &KubeconfigError) -> String {
    match error {
        KubeconfigError::ReadConfig(cause, _) => format!("can't be read: {cause}"),
        KubeconfigError::CurrentContextNotSet => "`current-context` is not set".into(),
        KubeconfigError::LoadContext(name) => format!("there is no context {name:?}"),
        KubeconfigError::LoadClusterOfContext(name) => {
            format!("the context names cluster {name:?}, which is not there")
        }
        KubeconfigError::MissingClusterUrl => "the cluster has no `server`".into(),
        KubeconfigError::LoadCertificateAuthority(_) => {
            "the certificate authority can't be loaded".into()
        }
        KubeconfigError::LoadClientCertificate(_) => {
            "the client certificate can't be loaded".into()
        }
        KubeconfigError::LoadClientKey(_) => "the client key can't be loaded".into(),
        _ => "it is no valid kubeconfig".into(),
    }
}

fn client_reason(error: &kube::Error) -> String {
    match error {
        kube::Error::RustlsTls(_) => {
            "the certificate authority or the client certificate and key can't be used".into()
        }
        _ => "the credentials can't be used".into(),
    }
}

fn is_loopback(url: &http::Uri) -> bool {
    let host = url.host().unwrap_or_default();
    let address = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|a| a.is_loopback())
}

#[cfg(test)]
mod tests;
