//! What the agent of a node, or a trusted account on it, may ask for: what our own watch
//! shows on that node, and nothing else.

use std::sync::Arc;

use citadel_identity::{
    SpiffeId,
    selector::{PodFacts, Selector},
};
use citadel_kubernetes::{inventory::Lookup, records::PodRecord};
use time::OffsetDateTime;

use super::{
    Denied, Entry, EntryNodes, Policy, Registered, Use,
    policy::{Allowed, account_key},
};
use crate::{
    caller::{Authority, Caller, EXTERNAL_CLUSTER, Method, ObjectRef, Origin, Subject},
    clusters::ClusterHandle,
};

impl Policy {
    /// The account-level identity of a pod on the agent's node.
    pub(super) fn pod_of_node(
        &self,
        cluster: &str,
        node: &ObjectRef,
        pod_uid: &str,
        namespace: Option<&str>,
        account: Option<&str>,
        now: OffsetDateTime,
    ) -> Result<Allowed, Denied> {
        let handle = self.fresh_cluster(cluster)?;
        let pod = pod_on_node(handle, pod_uid, &node.name)?;
        if namespace.is_some_and(|n| *n != *pod.namespace)
            || account.is_some_and(|a| *a != *pod.account)
        {
            return Err(Denied::NotEntitled(format!(
                "pod {pod_uid} runs as {}/{}, not as the account asked for",
                pod.namespace, pod.account
            )));
        }
        if pod.is_mirror() {
            return Err(Denied::NotEntitled(format!(
                "pod {pod_uid} is a mirror pod: only an entry that names its node gives it an identity"
            )));
        }
        let subject = subject_of(handle, &pod, node)?;
        Ok(Allowed {
            spiffe_id: self.account_id(&subject)?,
            dns_names: Vec::new(),
            usage: Use::Workload,
            origin: agent_origin(handle.method(), Some(subject), None, None, now),
            entry_ttl: None,
            hint: String::new(),
        })
    }

    /// One of the entries of the agent's node.
    pub(super) fn entry_of_node(
        &self,
        agent: &Caller,
        cluster: &str,
        node: &ObjectRef,
        entry: &Entry,
        pod_uid: Option<&str>,
        now: OffsetDateTime,
    ) -> Result<Allowed, Denied> {
        let entry_id = &entry.entry_id;
        let only_unix = entry.selectors.iter().all(Selector::is_unix);
        let vouching = || Some((cluster.to_owned(), node.clone()));
        if cluster == EXTERNAL_CLUSTER {
            if !only_unix {
                return Err(Denied::NotEntitled(format!(
                    "entry {entry_id} is for pods, and none runs on node {cluster}/{}",
                    node.name
                )));
            }
            let method = agent.origin.method;
            let origin = agent_origin(method, None, vouching(), Some(&entry.entry_id), now);
            return Ok(entry_allowed(entry, origin));
        }
        let handle = self.fresh_cluster(cluster)?;
        let method = handle.method();
        let origin = if only_unix {
            agent_origin(method, None, vouching(), Some(&entry.entry_id), now)
        } else {
            let pod_uid = pod_uid.ok_or_else(|| {
                Denied::Invalid(format!(
                    "entry {entry_id} has pod selectors: pod_uid is missing"
                ))
            })?;
            let pod = pod_on_node(handle, pod_uid, &node.name)?;
            check_selectors(entry, &pod)?;
            let subject = subject_of(handle, &pod, node)?;
            agent_origin(method, Some(subject), None, Some(&entry.entry_id), now)
        };
        Ok(entry_allowed(entry, origin))
    }

    /// A renewal, by the workload itself, of what an entry gave it.
    pub(super) fn own_entry(
        &self,
        registered: &Registered,
        subject: &Subject,
        origin: &Origin,
        entry_id: &str,
    ) -> Result<Allowed, Denied> {
        let ended = |why: &str| Denied::RenewalEnded(format!("entry {entry_id} {why}"));
        let (Some(pod), Some(node)) = (&subject.pod, &subject.node) else {
            return Err(ended("rests on no pod: it renews only through the agent"));
        };
        let entry = registered
            .of_node(&subject.cluster, &node.name)
            .into_iter()
            .find(|entry| entry.entry_id == entry_id)
            .ok_or_else(|| ended("no longer holds on the pod's node"))?;
        if entry.is_the_agents_word() {
            return Err(ended(
                "has unix or container selectors: it renews only through the agent",
            ));
        }
        let handle = self.fresh_cluster(&subject.cluster)?;
        let pod = pod_on_node(handle, &pod.uid, &node.name)?;
        check_selectors(entry, &pod)?;
        Ok(entry_allowed(entry, origin.clone()))
    }

    /// What a workload's own token proved, relayed by the agent of its node.
    pub(super) fn relayed(
        &self,
        cluster: &str,
        node: &ObjectRef,
        workload: &Caller,
        attested_pod: Option<&str>,
    ) -> Result<Allowed, Denied> {
        let subject = workload
            .subject
            .as_ref()
            .ok_or_else(|| Denied::NotEntitled("the relayed token names no account".into()))?;
        let pod = subject
            .pod
            .as_ref()
            .ok_or_else(|| Denied::NotEntitled("the relayed token is bound to no pod".into()))?;
        let token_node = subject
            .claimed_node()
            .map(|n| (n.name.as_str(), n.uid.as_str()));
        if subject.cluster != cluster || token_node != Some((&node.name, &node.uid)) {
            return Err(Denied::NotEntitled(format!(
                "the relayed token is of node {}/{}, the agent of {cluster}/{}",
                subject.cluster,
                token_node.map_or("(none)", |(name, _)| name),
                node.name
            )));
        }
        if attested_pod.is_some_and(|uid| uid != pod.uid) {
            return Err(Denied::NotEntitled(format!(
                "the relayed token names pod {}, the agent attested pod {}",
                pod.uid,
                attested_pod.unwrap_or_default()
            )));
        }
        let handle = self.fresh_cluster(cluster)?;
        let record = pod_on_node(handle, &pod.uid, &node.name)?;
        if record.is_mirror() {
            return Err(Denied::NotEntitled(
                "a mirror pod has no account identity".into(),
            ));
        }
        let origin = Origin {
            authority: Authority::RelayedToken,
            ..workload.origin.clone()
        };
        Ok(Allowed {
            spiffe_id: self.account_id(subject)?,
            dns_names: Vec::new(),
            usage: Use::Workload,
            origin,
            entry_ttl: None,
            hint: String::new(),
        })
    }

    /// The identity of a workload on the caller's node. The wanted ID is compared with the
    /// IDs made from the node's own pods, and never parsed apart.
    pub(super) fn impersonated(
        &self,
        caller: &Caller,
        wanted: &str,
        now: OffsetDateTime,
    ) -> Result<Allowed, Denied> {
        let denied = |why: String| Err(Denied::NotEntitled(why));
        let Some(subject) = &caller.subject else {
            return denied("only a pod of a trusted account may impersonate".into());
        };
        let key = account_key(&subject.namespace, &subject.account.name);
        if !self.options.impersonating_accounts.contains(&key) {
            return denied(format!(
                "account {key} is not listed in impersonation.accounts"
            ));
        }
        let (Some(pod), Some(node)) = (&subject.pod, subject.claimed_node()) else {
            return denied("impersonation needs a token bound to a pod, with a node claim".into());
        };
        self.check_pod_on_node(&subject.cluster, &pod.uid, node)?;
        let handle = self.fresh_cluster(&subject.cluster)?;
        let Some((target, spiffe_id)) = self.pod_of_id(handle, &node.name, wanted) else {
            return denied(format!(
                "no pod on node {} has the identity {wanted:.200}",
                node.name
            ));
        };
        Ok(Allowed {
            spiffe_id,
            dns_names: Vec::new(),
            usage: Use::Workload,
            origin: Origin {
                method: caller.evidence.method,
                subject: Some(Arc::new(subject_of(handle, &target, node)?)),
                node: None,
                entry_id: None,
                first_authenticated: now,
                authority: Authority::Impersonation,
            },
            entry_ttl: None,
            hint: String::new(),
        })
    }

    /// A pod on this node whose account-level identity is `wanted`.
    pub(super) fn pod_of_id(
        &self,
        handle: &ClusterHandle,
        node: &str,
        wanted: &str,
    ) -> Option<(Arc<PodRecord>, SpiffeId)> {
        let pods = handle.inventory().pods_on_node(node);
        pods.into_iter()
            .filter(|pod| !pod.is_mirror())
            .find_map(|pod| {
                let id = self
                    .id_of_account(handle.name(), &pod.namespace, &pod.account)
                    .ok()?;
                (id.to_string() == wanted).then_some((pod, id))
            })
    }

    /// Whether the watch shows this pod on this very Node object.
    pub(super) fn check_pod_on_node(
        &self,
        cluster: &str,
        pod_uid: &str,
        node: &ObjectRef,
    ) -> Result<(), Denied> {
        let handle = self.fresh_cluster(cluster)?;
        pod_on_node(handle, pod_uid, &node.name)?;
        match handle.inventory().node_by_uid(&node.uid) {
            Lookup::Live(record) if *record.name == *node.name => Ok(()),
            Lookup::Live(_) | Lookup::Gone => Err(node_is_gone(handle, node)),
            Lookup::Unknown => Err(Denied::Unavailable(format!(
                "node {} with UID {} is not known (yet)",
                node.name, node.uid
            ))),
        }
    }

    pub(super) fn refuse_mirror_pod(&self, subject: &Subject) -> Result<(), Denied> {
        let Some(pod) = &subject.pod else {
            return Ok(());
        };
        let handle = self.fresh_cluster(&subject.cluster)?;
        match handle.inventory().pod(&pod.uid) {
            Lookup::Live(record) if record.is_mirror() => Err(Denied::NotEntitled(
                "a mirror pod has no account identity".into(),
            )),
            _ => Ok(()),
        }
    }

    pub(super) fn fresh_cluster(&self, cluster: &str) -> Result<&ClusterHandle, Denied> {
        let handle = self
            .clusters
            .get(cluster)
            .ok_or_else(|| Denied::NotEntitled(format!("there is no cluster {cluster}")))?;
        handle
            .check_fresh()
            .map_err(|stale| Denied::Unavailable(stale.to_string()))?;
        Ok(handle)
    }
}

/// A live pod on the agent's node: by its UID, or a static pod by the configuration hash that
/// the agent finds in its place.
pub(super) fn pod_on_node(
    handle: &ClusterHandle,
    uid: &str,
    node: &str,
) -> Result<Arc<PodRecord>, Denied> {
    let unknown = || Denied::UnknownPod(uid.to_owned());
    match handle.inventory().pod(uid) {
        Lookup::Live(pod) => match pod.node.as_deref() {
            Some(own) if own == node => Ok(pod),
            Some(own) => Err(Denied::NotEntitled(format!(
                "pod {uid} runs on node {own}, not on {node}"
            ))),
            // It runs, or the agent would not ask: the watch is behind.
            None => Err(unknown()),
        },
        Lookup::Gone => Err(Denied::NotEntitled(format!("pod {uid} is gone"))),
        Lookup::Unknown => handle
            .inventory()
            .mirror_on_node(node, uid)
            .ok_or_else(unknown),
    }
}

/// A Node object of this UID existed, and does no longer.
pub(super) fn node_is_gone(handle: &ClusterHandle, node: &ObjectRef) -> Denied {
    let fate = match handle.inventory().node(&node.name) {
        Some(_) => "was deleted and made again",
        None => "is gone",
    };
    Denied::NotEntitled(format!("node {} with UID {} {fate}", node.name, node.uid))
}

fn subject_of(
    handle: &ClusterHandle,
    pod: &PodRecord,
    node: &ObjectRef,
) -> Result<Subject, Denied> {
    // Whatever a mirror pod names, a static pod runs as no account.
    let account = if pod.is_mirror() {
        ObjectRef::default()
    } else {
        let account = handle
            .inventory()
            .account(&pod.namespace, &pod.account)
            .ok_or_else(|| {
                Denied::Unavailable(format!(
                    "account {}/{} is not known (yet)",
                    pod.namespace, pod.account
                ))
            })?;
        ObjectRef {
            name: pod.account.to_string(),
            uid: account.uid.to_string(),
        }
    };
    Ok(Subject {
        cluster: handle.name().to_owned(),
        namespace: pod.namespace.to_string(),
        account,
        pod: Some(ObjectRef {
            name: pod.name.to_string(),
            uid: pod.uid.to_string(),
        }),
        node: Some(node.clone()),
    })
}

/// The CA repeats the check of pod, container, image and label selectors on its own watch.
fn check_selectors(entry: &Entry, pod: &PodRecord) -> Result<(), Denied> {
    // Any kubelet can make a mirror pod that says anything: only its own node's entries count.
    if pod.is_mirror() && entry.nodes == EntryNodes::All {
        return Err(Denied::NotEntitled(format!(
            "pod {} is a mirror pod, and entry {} does not name its node",
            pod.uid, entry.entry_id
        )));
    }
    let facts = PodFacts {
        namespace: pod.namespace.to_string(),
        account: pod.account.to_string(),
        name: pod.name.to_string(),
        uid: pod.uid.to_string(),
        labels: pod
            .labels
            .iter()
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .collect(),
        containers: pod
            .containers
            .iter()
            .map(|c| (c.name.to_string(), c.image.to_string()))
            .collect(),
        is_mirror: pod.is_mirror(),
    };
    match entry
        .selectors
        .iter()
        .filter(|s| !s.is_unix())
        .find(|s| !s.matches_pod(&facts))
    {
        None => Ok(()),
        Some(selector) => Err(Denied::NotEntitled(format!(
            "pod {} does not match {selector} of entry {}",
            pod.uid, entry.entry_id
        ))),
    }
}

fn agent_origin(
    method: Method,
    subject: Option<Subject>,
    node: Option<(String, ObjectRef)>,
    entry_id: Option<&str>,
    now: OffsetDateTime,
) -> Origin {
    Origin {
        method,
        subject: subject.map(Arc::new),
        node,
        entry_id: entry_id.map(ToOwned::to_owned),
        first_authenticated: now,
        authority: Authority::Agent,
    }
}

fn entry_allowed(entry: &Entry, origin: Origin) -> Allowed {
    Allowed {
        spiffe_id: entry.spiffe_id.clone(),
        dns_names: entry.dns_names.clone(),
        usage: Use::Workload,
        origin,
        entry_ttl: entry.ttl,
        hint: entry.hint.clone(),
    }
}
