//! Which of the node's entries may be for a process: what of its selectors can be checked
//! here is, and what can't is left to the CA.

use citadel_identity::selector::{PodFacts, Selector, UnixFacts};
use citadel_kubernetes::NodePod;

use crate::ca_client::{Entries, NodeEntry};

/// Where a process runs, as far as it is known.
#[derive(Debug, Clone, Copy)]
pub enum Place<'a> {
    /// On the host: unix selectors alone.
    Host,
    /// In a pod of which nothing but its UID is known.
    Pod {
        /// Whether more may be known in a moment.
        may_be_known: bool,
    },
    /// In a pod that Kubernetes has shown.
    Known {
        /// The pod.
        pod: &'a NodePod,
        /// The runtime's ID of the container, where the cgroup has one.
        container: Option<&'a str>,
    },
}

/// The entries for a process.
#[derive(Debug, Default)]
pub struct Choice<'a> {
    /// In the CA's order.
    pub entries: Vec<&'a NodeEntry>,
    /// One more may be for it: the kubelet has not said yet which container it runs in.
    pub awaits_container: bool,
}

/// What came of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Matches,
    DoesNot,
    NotYet,
}

/// Chooses among the node's entries.
pub fn choose<'a>(entries: &'a Entries, place: Place<'_>, unix: &UnixFacts) -> Choice<'a> {
    let in_pod = !matches!(place, Place::Host);
    let facts = match place {
        Place::Known { pod, container } => Some(Facts::of(pod, container)),
        Place::Host | Place::Pod { .. } => None,
    };
    let mut choice = Choice::default();
    for entry in &entries.list {
        let mine = entry.is_for(in_pod)
            && entry
                .selectors()
                .iter()
                .filter(|selector| selector.is_unix())
                .all(|selector| selector.matches_unix(unix));
        if !mine {
            continue;
        }
        let verdict = match (&facts, place) {
            (Some(facts), _) => facts.judge(entry.selectors()),
            // The CA checks the pod's selectors; nobody can tell its containers apart.
            (None, Place::Pod { may_be_known }) if entry.names_a_container() => {
                if may_be_known {
                    Verdict::NotYet
                } else {
                    Verdict::DoesNot
                }
            }
            (None, _) => Verdict::Matches,
        };
        match verdict {
            Verdict::Matches => choice.entries.push(entry),
            Verdict::DoesNot => {}
            Verdict::NotYet => choice.awaits_container = true,
        }
    }
    choice
}

/// What selectors are held against.
struct Facts {
    /// With all its containers.
    pod: PodFacts,
    /// With the one alone that asks; none as long as the kubelet has not named it.
    container: Option<PodFacts>,
    /// The process is in a container at all.
    has_container: bool,
}

impl Facts {
    fn of(pod: &NodePod, container: Option<&str>) -> Self {
        let record = &pod.record;
        let named = |(name, image): (&str, &str)| (name.to_owned(), image.to_owned());
        let all = || record.containers.iter().map(|c| (&*c.name, &*c.image));
        let facts = PodFacts {
            namespace: record.namespace.to_string(),
            account: record.account.to_string(),
            name: record.name.to_string(),
            uid: record.uid.to_string(),
            labels: record
                .labels
                .iter()
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
            containers: all().map(named).collect(),
            is_mirror: record.is_mirror(),
        };
        let name = container.and_then(|id| pod.container(id));
        let one = name.map(|name| PodFacts {
            containers: all().filter(|(own, _)| *own == name).map(named).collect(),
            ..facts.clone()
        });
        Self {
            pod: facts,
            container: one,
            has_container: container.is_some(),
        }
    }

    fn judge(&self, selectors: &[Selector]) -> Verdict {
        let (of_container, of_pod): (Vec<_>, Vec<_>) = selectors
            .iter()
            .filter(|selector| !selector.is_unix())
            .partition(|selector| selector.names_a_container());
        let hold = |selectors: &[&Selector], facts: &PodFacts| {
            selectors.iter().all(|selector| selector.matches_pod(facts))
        };
        // Even of the pod's other containers: what can't hold is not waited for.
        if !hold(&of_pod, &self.pod) || !hold(&of_container, &self.pod) {
            return Verdict::DoesNot;
        }
        if of_container.is_empty() {
            return Verdict::Matches;
        }
        match &self.container {
            Some(facts) if hold(&of_container, facts) => Verdict::Matches,
            None if self.has_container => Verdict::NotYet,
            Some(_) | None => Verdict::DoesNot,
        }
    }
}

#[cfg(test)]
#[path = "choice_tests.rs"]
mod tests;
