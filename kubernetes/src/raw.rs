//! The API's JSON as far as we read it, and its conversion into records.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::node_pods::RunningContainer;
use crate::records::{AccountRecord, Container, Labels, NodeRecord, Phase, PodRecord};

/// The kubelet's mark on the API's image of a static pod.
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";
/// Longest configuration hash that is kept, bytes; the kubelet's has 32.
const CONFIG_HASH: usize = 64;

#[derive(Deserialize)]
pub(crate) struct Pod {
    metadata: PodMeta,
    #[serde(default, deserialize_with = "null_is_default")]
    spec: PodSpec,
    #[serde(default, deserialize_with = "null_is_default")]
    status: PodStatus,
}

#[derive(Deserialize)]
struct PodMeta {
    uid: String,
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default, deserialize_with = "null_is_default")]
    labels: Pairs,
    #[serde(default, deserialize_with = "null_is_default")]
    annotations: MirrorMark,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct PodSpec {
    #[serde(deserialize_with = "null_is_default")]
    service_account_name: String,
    #[serde(deserialize_with = "null_is_default")]
    node_name: String,
    #[serde(deserialize_with = "null_is_default")]
    init_containers: Vec<ContainerSpec>,
    #[serde(deserialize_with = "null_is_default")]
    containers: Vec<ContainerSpec>,
    #[serde(deserialize_with = "null_is_default")]
    ephemeral_containers: Vec<ContainerSpec>,
}

#[derive(Deserialize)]
struct ContainerSpec {
    name: String,
    #[serde(default, deserialize_with = "null_is_default")]
    image: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct PodStatus {
    #[serde(deserialize_with = "null_is_default")]
    phase: String,
}

/// An object of which only the name matters.
#[derive(Deserialize)]
pub(crate) struct Named {
    metadata: NamedMeta,
}

#[derive(Deserialize)]
struct NamedMeta {
    uid: String,
    name: String,
    #[serde(default)]
    namespace: String,
}

/// Why well-formed JSON is no such object.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("metadata.{0} is empty")]
    Empty(&'static str),
}

fn required(field: &'static str, value: String) -> Result<Arc<str>, RecordError> {
    if value.is_empty() {
        return Err(RecordError::Empty(field));
    }
    Ok(value.into())
}

impl TryFrom<Pod> for PodRecord {
    type Error = RecordError;

    fn try_from(pod: Pod) -> Result<Self, RecordError> {
        let spec = pod.spec;
        let containers = spec
            .init_containers
            .into_iter()
            .chain(spec.containers)
            .chain(spec.ephemeral_containers)
            .map(|c| Container {
                name: c.name.into(),
                image: c.image.into(),
            })
            .collect();
        Ok(Self {
            uid: required("uid", pod.metadata.uid)?,
            name: required("name", pod.metadata.name)?,
            namespace: required("namespace", pod.metadata.namespace)?,
            account: spec.service_account_name.into(),
            node: (!spec.node_name.is_empty()).then(|| spec.node_name.into()),
            phase: match pod.status.phase.as_str() {
                "" | "Pending" => Phase::Pending,
                "Running" => Phase::Running,
                "Succeeded" => Phase::Succeeded,
                "Failed" => Phase::Failed,
                _ => Phase::Unknown,
            },
            labels: pod.metadata.labels.0.into_iter().collect::<Labels>(),
            containers,
            mirror: pod.metadata.annotations.0,
        })
    }
}

impl TryFrom<Named> for AccountRecord {
    type Error = RecordError;

    fn try_from(object: Named) -> Result<Self, RecordError> {
        Ok(Self {
            uid: required("uid", object.metadata.uid)?,
            name: required("name", object.metadata.name)?,
            namespace: required("namespace", object.metadata.namespace)?,
        })
    }
}

impl TryFrom<Named> for NodeRecord {
    type Error = RecordError;

    fn try_from(object: Named) -> Result<Self, RecordError> {
        Ok(Self {
            uid: required("uid", object.metadata.uid)?,
            name: required("name", object.metadata.name)?,
        })
    }
}

/// Go writes an absent list or map as `null` here and there.
fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// A map of strings as a list: one allocation, not a tree.
#[derive(Default)]
struct Pairs(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PairsVisitor(PhantomData<Pairs>);

        impl<'de> Visitor<'de> for PairsVisitor {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }

        deserializer.deserialize_map(PairsVisitor(PhantomData))
    }
}

/// Annotations: the mirror mark's value, if it is among them. The other values can be large (the
/// last applied configuration) and are skipped.
#[derive(Default)]
struct MirrorMark(Option<Arc<str>>);

impl<'de> Deserialize<'de> for MirrorMark {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MarkVisitor;

        impl<'de> Visitor<'de> for MarkVisitor {
            type Value = MirrorMark;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<MirrorMark, A::Error> {
                let mut found = None;
                while let Some(key) = map.next_key::<String>()? {
                    if key == MIRROR_ANNOTATION {
                        let hash = map.next_value::<Option<String>>()?;
                        let hash = hash.filter(|hash| hash.len() <= CONFIG_HASH);
                        found = Some(hash.unwrap_or_default().into());
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(MirrorMark(found))
            }
        }

        deserializer.deserialize_map(MarkVisitor)
    }
}

// === of a pod on the agent's own node ===

/// What a node's agent reads beside a record.
#[derive(Deserialize)]
pub(crate) struct OnNode {
    #[serde(default, deserialize_with = "null_is_default")]
    pub(crate) spec: MountSpec,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(crate) status: RunningStatus,
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub(crate) struct MountSpec {
    #[serde(deserialize_with = "null_is_default")]
    volumes: Vec<Volume>,
}

#[derive(Deserialize)]
struct Volume {
    #[serde(default, rename = "hostPath")]
    host_path: Option<HostPath>,
}

#[derive(Deserialize)]
struct HostPath {
    path: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub(crate) struct RunningStatus {
    #[serde(rename = "initContainerStatuses", deserialize_with = "null_is_default")]
    init: Vec<ContainerStatus>,
    #[serde(rename = "containerStatuses", deserialize_with = "null_is_default")]
    main: Vec<ContainerStatus>,
    #[serde(
        rename = "ephemeralContainerStatuses",
        deserialize_with = "null_is_default"
    )]
    ephemeral: Vec<ContainerStatus>,
}

#[derive(Deserialize)]
struct ContainerStatus {
    name: String,
    /// `containerd://`, `cri-o://` or `docker://` and the ID; empty until it was made.
    #[serde(default, rename = "containerID", deserialize_with = "null_is_default")]
    container_id: String,
}

impl MountSpec {
    pub(crate) fn host_paths(self) -> impl Iterator<Item = Arc<str>> {
        let paths = self
            .volumes
            .into_iter()
            .filter_map(|volume| volume.host_path);
        paths.map(|host| host.path.into())
    }
}

impl RunningStatus {
    pub(crate) fn running(self) -> impl Iterator<Item = RunningContainer> {
        self.init
            .into_iter()
            .chain(self.main)
            .chain(self.ephemeral)
            .filter_map(|status| {
                let (_runtime, id) = status.container_id.split_once("://")?;
                let is_id = id.len() == 64 && id.bytes().all(|digit| digit.is_ascii_hexdigit());
                is_id.then(|| RunningContainer {
                    id: id.into(),
                    name: status.name.into(),
                })
            })
    }
}
