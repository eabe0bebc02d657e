//! Whether what a credential names still exists: pod, account and node, by UID.

use std::sync::Arc;

use citadel_kubernetes::{inventory::Lookup, resolver::Resolved};

use super::{Authenticator, AuthnError};
use crate::{
    caller::{ObjectRef, Subject},
    clusters::ClusterHandle,
};

impl Authenticator {
    /// Checks a subject against the watches; a UID that they never held costs one
    /// rate-limited read by name. With `node_too` the Node object must be the same one still
    /// (renewals: the record names it). Returns the subject with the name of its node filled in,
    /// but never with a UID that the credential does not have.
    pub(super) async fn check_alive(
        &self,
        cluster: &ClusterHandle,
        mut subject: Arc<Subject>,
        node_too: bool,
    ) -> Result<Arc<Subject>, AuthnError> {
        check_fresh(cluster)?;
        self.check_account(cluster, &subject).await?;
        if let Some(node_name) = self.check_pod(cluster, &subject).await? {
            match &subject.node {
                Some(node) if node.name != node_name => {
                    return Err(AuthnError::rejected(format!(
                        "the pod runs on node {node_name}, not on {}",
                        node.name
                    )));
                }
                Some(_) => {}
                None => {
                    Arc::make_mut(&mut subject).node = Some(ObjectRef {
                        name: node_name,
                        uid: String::new(),
                    });
                }
            }
        }
        if node_too && let Some(node) = subject.claimed_node() {
            check_node(cluster, node).await?;
        }
        Ok(subject)
    }

    /// Checks the node whose agent vouches for an identity without a pod.
    pub(super) async fn check_vouching_node(
        cluster: &ClusterHandle,
        node: &ObjectRef,
    ) -> Result<(), AuthnError> {
        check_fresh(cluster)?;
        check_node(cluster, node).await
    }

    async fn check_account(
        &self,
        cluster: &ClusterHandle,
        subject: &Subject,
    ) -> Result<(), AuthnError> {
        if !subject.has_account() && subject.pod.is_some() {
            // A static pod's; that it is one is checked with the pod.
            return Ok(());
        }
        let (namespace, account) = (&subject.namespace, &subject.account);
        let what = || {
            format!(
                "account {namespace}/{} with UID {}",
                account.name, account.uid
            )
        };
        let record = match cluster.inventory().account_by_uid(&account.uid) {
            Lookup::Live(record) => record,
            Lookup::Gone => return Err(AuthnError::rejected(format!("{} is gone", what()))),
            Lookup::Unknown => found(
                cluster
                    .resolver()
                    .resolve_account(namespace, &account.name, &account.uid)
                    .await,
                what,
            )?,
        };
        if *record.namespace != **namespace || *record.name != *account.name {
            return Err(AuthnError::rejected(format!("{} has another name", what())));
        }
        Ok(())
    }

    /// The node that the pod runs on, if there is a pod and it was scheduled.
    async fn check_pod(
        &self,
        cluster: &ClusterHandle,
        subject: &Subject,
    ) -> Result<Option<String>, AuthnError> {
        let Some(pod) = &subject.pod else {
            return Ok(None);
        };
        let namespace = &subject.namespace;
        let what = || format!("pod {namespace}/{} with UID {}", pod.name, pod.uid);
        let record = match cluster.inventory().pod(&pod.uid) {
            Lookup::Live(record) => record,
            Lookup::Gone => return Err(AuthnError::rejected(format!("{} is gone", what()))),
            Lookup::Unknown => found(
                cluster
                    .resolver()
                    .resolve_pod(namespace, &pod.name, &pod.uid)
                    .await,
                what,
            )?,
        };
        if *record.namespace != **namespace || *record.name != *pod.name {
            return Err(AuthnError::rejected(format!("{} has another name", what())));
        }
        if !subject.has_account() {
            if !record.is_mirror() {
                return Err(AuthnError::rejected(format!("{} is no static pod", what())));
            }
        } else if *record.account != *subject.account.name {
            return Err(AuthnError::rejected(format!(
                "{} runs as account {}, not as {}",
                what(),
                record.account,
                subject.account.name
            )));
        }
        Ok(record.node.as_deref().map(ToOwned::to_owned))
    }
}

fn check_fresh(cluster: &ClusterHandle) -> Result<(), AuthnError> {
    cluster
        .check_fresh()
        .map_err(|stale| AuthnError::Unavailable(stale.to_string()))
}

/// A record names the node by UID: one that was made again by that name is another one.
async fn check_node(cluster: &ClusterHandle, node: &ObjectRef) -> Result<(), AuthnError> {
    let what = || format!("node {} with UID {}", node.name, node.uid);
    let record = match cluster.inventory().node_by_uid(&node.uid) {
        Lookup::Live(record) => record,
        Lookup::Gone => return Err(AuthnError::rejected(format!("{} is gone", what()))),
        Lookup::Unknown => found(
            cluster.resolver().resolve_node(&node.name, &node.uid).await,
            what,
        )?,
    };
    if *record.name != *node.name {
        return Err(AuthnError::rejected(format!("{} has another name", what())));
    }
    Ok(())
}

fn found<T>(resolved: Resolved<T>, what: impl Fn() -> String) -> Result<T, AuthnError> {
    match resolved {
        Resolved::Live(record) => Ok(record),
        Resolved::Absent => Err(AuthnError::rejected(format!("{} does not exist", what()))),
        Resolved::OtherUid => Err(AuthnError::rejected(format!(
            "{} was deleted and made again",
            what()
        ))),
        Resolved::RateLimited => Err(AuthnError::Unavailable(format!(
            "{} is unknown, and too many such look-ups are under way",
            what()
        ))),
        Resolved::Unreachable => Err(AuthnError::Unavailable(format!(
            "{} is unknown, and the API server can't be asked",
            what()
        ))),
    }
}
