//! The pods of a node from its own kubelet: `GET /pods`, for which the right `nodes/pods`
//! suffices. Nothing there can be watched, so it is asked again and again.
//!
//! A kubelet lists a pod until its containers have ended, and after a start of its own lists
//! fewer than it runs: that a pod is absent therefore says nothing, and takes nothing.

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use citadel_identity::pem;
use kube::config::AuthInfo;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::api::ApiError;
use crate::cluster::ConnectError;
use crate::inventory::Event;
use crate::node_pods::{NodePod, NodePods};
use crate::transport::{Call, CallError, Transport};

/// Largest list that is read, in bytes: several hundred pods of the largest kind.
const MAX_LIST: usize = 64 << 20;
/// Largest file of roots, in bytes.
const MAX_ROOTS: usize = 1 << 20;

/// How to reach a kubelet.
#[derive(Debug, Clone)]
pub struct KubeletConfig {
    /// The node's name, for messages.
    pub node: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// PEM file with the root of its serving certificate, which has to name the address.
    pub ca_file: PathBuf,
    /// The token to show it; read again for each use.
    pub token_file: PathBuf,
    /// Between two questions. Default 2 s.
    pub interval: Duration,
    /// The longest time that an answer may take. Default 10 s.
    pub deadline: Duration,
}

impl KubeletConfig {
    /// With the default times.
    pub fn new(node: &str, address: SocketAddr, ca_file: &Path, token_file: &Path) -> Self {
        Self {
            node: node.to_owned(),
            address,
            ca_file: ca_file.to_owned(),
            token_file: token_file.to_owned(),
            interval: Duration::from_secs(2),
            deadline: Duration::from_secs(10),
        }
    }
}

/// A client of one kubelet.
pub struct Kubelet {
    config: KubeletConfig,
    transport: Transport,
}

impl Kubelet {
    /// Sets up the client; the kubelet need not be there yet.
    pub fn connect(config: KubeletConfig) -> Result<Self, ConnectError> {
        citadel_identity::crypto::install_default();
        let wrong = |reason: String| ConnectError::Client {
            cluster: format!("(kubelet of {})", config.node),
            reason,
        };
        let roots = roots_in(&config.ca_file)
            .map_err(|reason| wrong(format!("{}: {reason}", config.ca_file.display())))?;
        let url = format!("https://{}", config.address)
            .parse()
            .map_err(|_| wrong(format!("{} is no address", config.address)))?;
        let mut access = kube::Config::new(url);
        access.root_cert = Some(roots);
        // Read again from time to time: clusters renew their root.
        access.root_cert_file = Some(config.ca_file.clone());
        access.auth_info = AuthInfo {
            token_file: Some(config.token_file.display().to_string()),
            ..AuthInfo::default()
        };
        let transport = Transport::new(&access, &config.node, config.deadline)
            .map_err(|_| wrong("the root or the token can't be used".into()))?;
        Ok(Self { config, transport })
    }

    /// Keeps `pods` current until `shutdown`, through any outage.
    pub async fn run(self, pods: &NodePods, shutdown: impl Future<Output = ()> + Send) {
        tokio::select! {
            () = shutdown => {}
            () = self.follow(pods) => {}
        }
    }

    async fn follow(&self, pods: &NodePods) {
        let mut reached = true;
        loop {
            match self.list().await {
                Ok(list) => {
                    if !reached {
                        tracing::info!(node = %self.config.node, "the kubelet is back");
                    }
                    reached = true;
                    let now = now();
                    for event in [Event::ListStarted, Event::Page(list), Event::ListFinished] {
                        pods.apply(event, now);
                    }
                }
                Err(error) => {
                    if reached {
                        tracing::warn!(node = %self.config.node, %error, "the kubelet's pods can't be read");
                    }
                    reached = false;
                }
            }
            tokio::time::sleep(self.config.interval).await;
        }
    }

    async fn list(&self) -> Result<Vec<NodePod>, ApiError> {
        let call = Call::get("/pods", self.config.deadline, MAX_LIST);
        let answer = self.transport.call(call).await;
        decode(&answer.map_err(CallError::into_api)?)
    }
}

/// The certificates of a PEM file, DER.
fn roots_in(file: &Path) -> Result<Vec<Vec<u8>>, String> {
    let text = std::fs::read(file).map_err(|error| error.to_string())?;
    let blocks = pem::decode(&text, MAX_ROOTS).map_err(|error| error.to_string())?;
    let certificates = blocks.into_iter().filter(|b| b.label == "CERTIFICATE");
    let roots: Vec<_> = certificates.map(|b| b.der.to_vec()).collect();
    if roots.is_empty() {
        return Err("it has no certificate".into());
    }
    Ok(roots)
}

/// What is no pod is left out.
fn decode(body: &[u8]) -> Result<Vec<NodePod>, ApiError> {
    #[derive(Deserialize)]
    struct List<'a> {
        #[serde(borrow)]
        items: Option<Vec<&'a RawValue>>,
    }
    let list: List<'_> = serde_json::from_slice(body)
        .map_err(|_| ApiError::Malformed("the list is not as the kubelet's API has it".into()))?;
    let items = list.items.unwrap_or_default();
    let pod = |item: &&RawValue| serde_json::from_str(item.get()).ok();
    Ok(items.iter().filter_map(pod).collect())
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_kubelets_list_is_read_and_odd_objects_are_left_out() {
        let list = br#"{"kind":"PodList","metadata":{},"items":[
            {"metadata":{"uid":"u1","name":"a","namespace":"n"}},{"metadata":{}},7]}"#;
        let pods = decode(list).unwrap();
        assert_eq!(pods.len(), 1);
        assert_eq!(&*pods[0].record.uid, "u1");
        assert!(decode(br#"{"items":null}"#).unwrap().is_empty());
        for bad in ["", "[]", "Unauthorized"] {
            assert!(decode(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
