//! What stands in the file, with the defaults.

use std::{fmt, path::PathBuf};

use citadel_runtime::{HumanDuration, telemetry::Format};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{SeqAccess, Visitor},
};

use super::store::Store;

/// How tokens of a cluster are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClusterMode {
    /// Against its keys and what our watches show.
    #[default]
    Local,
    /// By its API server.
    TokenReview,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    pub(super) trust_domain: Option<String>,
    pub(super) listen: String,
    pub(super) admin_listen: String,
    pub(super) public_listen: Option<String>,
    pub(super) admin_socket: Option<PathBuf>,
    pub(super) data_dir: PathBuf,
    pub(super) store: Option<Store>,
    pub(super) ca: Ca,
    pub(super) clusters: Vec<Cluster>,
    pub(super) audiences: Vec<String>,
    pub(super) id_template: String,
    pub(super) allow_unbound: Vec<String>,
    pub(super) agents: Agents,
    pub(super) external: External,
    pub(super) impersonation: Impersonation,
    pub(super) lifetimes: Lifetimes,
    pub(super) max_renewal_age: HumanDuration,
    pub(super) entries: Vec<Entry>,
    pub(super) bundle_configmap: Option<ConfigMap>,
    pub(super) admin: Admin,
    pub(super) limits: Limits,
    pub(super) log: Log,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Ca {
    pub(super) cacerts_dir: Option<PathBuf>,
    pub(super) replaces_key: Option<String>,
    pub(super) dns_names: Vec<String>,
    pub(super) serving_ttl: HumanDuration,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Cluster {
    pub(super) name: String,
    #[serde(default)]
    pub(super) kubeconfig: Option<PathBuf>,
    #[serde(default)]
    pub(super) mode: ClusterMode,
    #[serde(default)]
    pub(super) issuers: Vec<String>,
    #[serde(default = "api_deadline")]
    pub(super) api_deadline: HumanDuration,
    #[serde(default = "max_staleness")]
    pub(super) max_staleness: HumanDuration,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Agents {
    pub(super) accounts: Vec<String>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct External {
    pub(super) svid_ttl: Option<HumanDuration>,
    pub(super) x509pop: Option<X509Pop>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct X509Pop {
    pub(super) roots_file: PathBuf,
    pub(super) rules: Vec<Rule>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rule {
    #[serde(default)]
    pub(super) dns: Option<String>,
    #[serde(default)]
    pub(super) common_name: Option<String>,
    #[serde(default)]
    pub(super) node: Option<String>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Impersonation {
    pub(super) accounts: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Lifetimes {
    pub(super) default: HumanDuration,
    pub(super) istio_default: HumanDuration,
    pub(super) min: HumanDuration,
    pub(super) max: HumanDuration,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    pub(super) id: String,
    #[serde(default)]
    pub(super) dns_names: Vec<String>,
    #[serde(default)]
    pub(super) ttl: Option<HumanDuration>,
    #[serde(default)]
    pub(super) nodes: Option<Nodes>,
    #[serde(default)]
    pub(super) selectors: Vec<String>,
    #[serde(default)]
    pub(super) hint: String,
}

/// `all`, or a list of `<cluster>/<node>`.
#[derive(Debug)]
pub(super) enum Nodes {
    /// The word `all`, or whatever stands there instead.
    Word(String),
    Listed(Vec<String>),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ConfigMap {
    pub(super) namespace: String,
    pub(super) name: String,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Admin {
    pub(super) auditor: Vec<String>,
    pub(super) operator: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Limits {
    pub(super) in_flight: u32,
    pub(super) queue: u32,
    pub(super) queue_per_node: u32,
    pub(super) request_deadline: HumanDuration,
    pub(super) connections: u32,
    pub(super) connections_per_address: u32,
    pub(super) streams_per_connection: u32,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Log {
    pub(super) level: String,
    pub(super) format: Format,
    pub(super) public_hashes: bool,
    pub(super) refusals: Option<PathBuf>,
    pub(super) retention: HumanDuration,
}

fn api_deadline() -> HumanDuration {
    HumanDuration::from_secs(3)
}

fn max_staleness() -> HumanDuration {
    HumanDuration::from_mins(10)
}

// === impl Default: what counts where the file is silent ===

impl Default for File {
    fn default() -> Self {
        Self {
            trust_domain: None,
            listen: "[::]:15012".to_owned(),
            admin_listen: "[::]:15014".to_owned(),
            public_listen: None,
            admin_socket: None,
            data_dir: PathBuf::from("/var/lib/citadel"),
            store: None,
            ca: Ca::default(),
            clusters: vec![Cluster::default()],
            audiences: vec!["citadel".to_owned(), "istio-ca".to_owned()],
            id_template: "/ns/{namespace}/sa/{account}".to_owned(),
            allow_unbound: Vec::new(),
            agents: Agents::default(),
            external: External::default(),
            impersonation: Impersonation::default(),
            lifetimes: Lifetimes::default(),
            max_renewal_age: HumanDuration::from_days(7),
            entries: Vec::new(),
            bundle_configmap: None,
            admin: Admin::default(),
            limits: Limits::default(),
            log: Log::default(),
        }
    }
}

impl Default for Ca {
    fn default() -> Self {
        Self {
            cacerts_dir: None,
            replaces_key: None,
            dns_names: Vec::new(),
            serving_ttl: HumanDuration::from_hours(24),
        }
    }
}

impl Default for Cluster {
    fn default() -> Self {
        Self {
            name: "default".to_owned(),
            kubeconfig: None,
            mode: ClusterMode::default(),
            issuers: Vec::new(),
            api_deadline: api_deadline(),
            max_staleness: max_staleness(),
        }
    }
}

impl Default for Agents {
    fn default() -> Self {
        Self {
            accounts: vec!["citadel-system/citadel-agent".to_owned()],
        }
    }
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self {
            default: HumanDuration::from_hours(1),
            istio_default: HumanDuration::from_hours(24),
            min: HumanDuration::from_secs(10),
            max: HumanDuration::from_hours(24),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            in_flight: 256,
            queue: 4096,
            queue_per_node: 1024,
            request_deadline: HumanDuration::from_secs(10),
            connections: 4096,
            // A node's pods can all come from the node's address.
            connections_per_address: 512,
            streams_per_connection: 256,
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
            format: Format::default(),
            public_hashes: false,
            refusals: None,
            retention: HumanDuration::from_days(90),
        }
    }
}

// === impl Nodes ===

impl<'de> Deserialize<'de> for Nodes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WordOrList;

        impl<'de> Visitor<'de> for WordOrList {
            type Value = Nodes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`all` or a list of <cluster>/<node>")
            }

            fn visit_str<E>(self, word: &str) -> Result<Nodes, E> {
                Ok(Nodes::Word(word.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Nodes, A::Error> {
                let mut nodes = Vec::new();
                while let Some(node) = access.next_element()? {
                    nodes.push(node);
                }
                Ok(Nodes::Listed(nodes))
            }
        }

        deserializer.deserialize_any(WordOrList)
    }
}

impl Serialize for Nodes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Word(word) => serializer.serialize_str(word),
            Self::Listed(nodes) => serializer.collect_seq(nodes),
        }
    }
}
