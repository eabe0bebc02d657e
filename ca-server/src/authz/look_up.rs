//! What a decision needs and no watch has shown yet: one rate-limited request by name, before
//! the decision, which rests on the inventory alone. Absent or another one is final; an API
//! server that does not answer decides nothing.

use citadel_kubernetes::{inventory::Lookup, records::PodRecord, resolver::Resolved};

use super::{
    Ask, Denied, Policy,
    nodes::{node_is_gone, pod_on_node},
    policy::account_key,
};
use crate::{
    caller::{Caller, Role, Subject},
    clusters::ClusterHandle,
};

impl Policy {
    /// Asks the API server about what [`Self::authorize`] will need of the cluster: the Node
    /// object that a token names, and the account of a pod that is asked for by its UID.
    ///
    /// # Errors
    /// What is not there denies the ask, as [`Self::authorize`] would.
    pub async fn look_up(&self, caller: &Caller, ask: &Ask) -> Result<(), Denied> {
        match (&caller.role, ask) {
            (Role::Workload, Ask::AgentIdentity) => {
                let of_agent = |s: &&Subject| self.is_agent_account(&s.namespace, &s.account.name);
                match caller.subject.as_deref().filter(of_agent) {
                    Some(subject) => self.look_up_node(subject).await,
                    None => Ok(()),
                }
            }
            (Role::Workload, Ask::Impersonated(wanted)) => {
                let trusted = |s: &&Subject| {
                    let key = account_key(&s.namespace, &s.account.name);
                    self.options().impersonating_accounts.contains(&key)
                };
                let Some(subject) = caller.subject.as_deref().filter(trusted) else {
                    return Ok(());
                };
                self.look_up_node(subject).await?;
                let Some(node) = subject.claimed_node() else {
                    return Ok(());
                };
                let handle = self.fresh_cluster(&subject.cluster)?;
                match self.pod_of_id(handle, &node.name, wanted) {
                    Some((pod, _)) => look_up_account(handle, &pod).await,
                    None => Ok(()),
                }
            }
            (
                Role::Agent { cluster, node },
                Ask::Pod { uid, .. }
                | Ask::Entry {
                    pod_uid: Some(uid), ..
                },
            ) => {
                let handle = self.fresh_cluster(cluster)?;
                match pod_on_node(handle, uid, &node.name) {
                    Ok(pod) if !pod.is_mirror() => look_up_account(handle, &pod).await,
                    _ => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    async fn look_up_node(&self, subject: &Subject) -> Result<(), Denied> {
        let Some(node) = subject.claimed_node() else {
            return Ok(());
        };
        let handle = self.fresh_cluster(&subject.cluster)?;
        if handle.inventory().node_by_uid(&node.uid) != Lookup::Unknown {
            return Ok(());
        }
        let what = || format!("node {} with UID {}", node.name, node.uid);
        match handle.resolver().resolve_node(&node.name, &node.uid).await {
            Resolved::Live(_) => Ok(()),
            Resolved::Absent => Err(node_is_gone(handle, node)),
            Resolved::OtherUid => Err(Denied::NotEntitled(format!(
                "{} was deleted and made again",
                what()
            ))),
            Resolved::RateLimited | Resolved::Unreachable => Err(undecided(&what())),
        }
    }
}

async fn look_up_account(handle: &ClusterHandle, pod: &PodRecord) -> Result<(), Denied> {
    let (namespace, account) = (&pod.namespace, &pod.account);
    if handle.inventory().account(namespace, account).is_some() {
        return Ok(());
    }
    let resolver = handle.resolver();
    match resolver.resolve_account_name(namespace, account).await {
        Resolved::Live(_) => Ok(()),
        Resolved::Absent | Resolved::OtherUid => Err(Denied::NotEntitled(format!(
            "there is no account {namespace}/{account}"
        ))),
        Resolved::RateLimited | Resolved::Unreachable => {
            Err(undecided(&format!("account {namespace}/{account}")))
        }
    }
}

fn undecided(what: &str) -> Denied {
    Denied::Unavailable(format!(
        "{what} is unknown, and the API server can't be asked right now"
    ))
}
