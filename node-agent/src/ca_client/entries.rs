//! The registration entries of this node, as the CA sent them.

use citadel_identity::{SpiffeId, TrustDomain, selector::Selector, template};
use citadel_proto::v1::{EntriesUpdate, EntryRecord};

use super::conflicts::{self, Conflict};

/// The most entries that are kept; a CA that sends more is told in the log.
const MAX_ENTRIES: usize = 10_000;

/// Why an entry that selects by container is left out.
const NO_CONTAINERS: &str = "it selects by container (container-name, container-image), and this \
    agent can't tell the containers of a pod apart; set `pods` in its configuration";

/// The entries of this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entries {
    /// Changes whenever the set changes.
    pub revision: u64,
    /// In the CA's order.
    pub list: Vec<NodeEntry>,
    /// What this agent hands out to nobody.
    pub ignored: Vec<Ignored>,
    /// What stands in another entry's way.
    pub conflicts: Vec<Conflict>,
}

/// An entry that is left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ignored {
    /// The CA's name of it.
    pub entry_id: String,
    /// Why, and what to do about it.
    pub reason: String,
}

/// An entry: who may have which identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeEntry {
    /// The CA's name of it.
    pub entry_id: String,
    /// The identity.
    pub spiffe_id: SpiffeId,
    /// For workloads with several identities.
    pub hint: String,
    selectors: Vec<Selector>,
}

impl Entries {
    /// Takes over what can be understood; an entry that can't (a newer CA's selector)
    /// is left out, never guessed at. Without `knows_containers`, one that selects by
    /// container too: any container of the pod would get it.
    pub fn from_update(
        update: EntriesUpdate,
        trust_domain: &TrustDomain,
        knows_containers: bool,
    ) -> Self {
        let (mut list, mut ignored) = (Vec::new(), Vec::new());
        if update.entries.len() > MAX_ENTRIES {
            tracing::warn!(
                entries = update.entries.len(),
                limit = MAX_ENTRIES,
                "the CA sends more entries than are kept: the rest is ignored"
            );
        }
        for record in update.entries.into_iter().take(MAX_ENTRIES) {
            let entry_id = record.entry_id.clone();
            match NodeEntry::from_record(record, trust_domain) {
                Ok(entry) if entry.names_a_container() && !knows_containers => {
                    let reason = NO_CONTAINERS.to_owned();
                    ignored.push(Ignored { entry_id, reason });
                }
                Ok(entry) => list.push(entry),
                Err(reason) => ignored.push(Ignored { entry_id, reason }),
            }
        }
        Self {
            revision: update.revision,
            conflicts: conflicts::find(&list),
            list,
            ignored,
        }
    }

    /// Says of each entry that is ignored or in the way why, once for as long as it stays: `before` is
    /// what was held until now.
    pub(super) fn tell_ignored(&self, before: Option<&Self>) {
        for entry in self.news(before) {
            tracing::warn!(
                entry_id = entry.entry_id,
                reason = entry.reason,
                "no workload of this node gets this entry: the agent ignores it"
            );
        }
        let told = before.map_or(&[][..], |before| &before.conflicts);
        for conflict in self.conflicts.iter().filter(|c| !told.contains(c)) {
            tracing::warn!(
                entry_id = conflict.entry_id,
                beside = conflict.beside,
                reason = conflict.kind.explain(),
                "an entry of this node stands in another one's way"
            );
        }
    }

    fn news<'a>(&'a self, before: Option<&'a Self>) -> impl Iterator<Item = &'a Ignored> {
        let told = before.map_or(&[][..], |before| &before.ignored);
        self.ignored
            .iter()
            .filter(move |entry| !told.contains(entry))
    }

    /// True if some entry that could be for a process of this kind asks for its
    /// executable's digest.
    pub fn need_digest(&self, in_pod: bool) -> bool {
        self.list
            .iter()
            .any(|entry| entry.is_for(in_pod) && entry.selectors.iter().any(needs_digest))
    }
}

impl NodeEntry {
    fn from_record(record: EntryRecord, trust_domain: &TrustDomain) -> Result<Self, String> {
        let spiffe_id = SpiffeId::new(&record.spiffe_id).map_err(|error| error.to_string())?;
        if !spiffe_id.is_member_of(trust_domain) || template::is_reserved(&spiffe_id) {
            return Err(format!("{spiffe_id} is no workload of this trust domain"));
        }
        if record.selectors.is_empty() {
            return Err("it has no selectors".to_owned());
        }
        let selectors = record
            .selectors
            .iter()
            .map(|text| text.parse::<Selector>().map_err(|error| error.to_string()))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            entry_id: record.entry_id,
            spiffe_id,
            hint: record.hint,
            selectors,
        })
    }

    /// An entry with unix selectors alone is for processes of the host: inside of a
    /// container anybody can be any uid. One with Kubernetes selectors is for pods.
    pub fn is_for(&self, in_pod: bool) -> bool {
        self.selectors.iter().any(|selector| !selector.is_unix()) == in_pod
    }

    /// All of them have to match.
    pub fn selectors(&self) -> &[Selector] {
        &self.selectors
    }

    /// True if it is for some containers of a pod alone.
    pub fn names_a_container(&self) -> bool {
        self.selectors.iter().any(Selector::names_a_container)
    }
}

fn needs_digest(selector: &Selector) -> bool {
    matches!(selector, Selector::Sha256(_))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    fn record(id: &str, selectors: &[&str]) -> EntryRecord {
        EntryRecord {
            entry_id: id.to_owned(),
            spiffe_id: format!("spiffe://example.org/{id}"),
            selectors: selectors.iter().map(|s| (*s).to_owned()).collect(),
            ..EntryRecord::default()
        }
    }

    fn entries(records: Vec<EntryRecord>) -> Entries {
        let update = EntriesUpdate {
            entries: records,
            revision: 7,
        };
        Entries::from_update(update, &TrustDomain::new("example.org").unwrap(), false)
    }

    #[test]
    fn what_is_not_understood_is_left_out() {
        let mut foreign = record("x", &["unix:uid:1"]);
        foreign.spiffe_id = "spiffe://other.org/x".into();
        let mut reserved = record("y", &["unix:uid:1"]);
        reserved.spiffe_id = "spiffe://example.org/citadel/ca".into();
        let entries = entries(vec![
            foreign,
            reserved,
            record("none", &[]),
            record("new", &["tpm:key:1"]),
            record("container", &["k8s:ns:shop", "k8s:container-name:app"]),
            record("good", &["unix:uid:1"]),
        ]);
        let kept: Vec<_> = entries.list.iter().map(|e| e.entry_id.as_str()).collect();
        assert_eq!(kept, ["good"]);
        assert_eq!(entries.revision, 7);
        let ignored: Vec<_> = entries
            .ignored
            .iter()
            .map(|e| e.entry_id.as_str())
            .collect();
        assert_eq!(ignored, ["x", "y", "none", "new", "container"]);
        let reason = &entries.ignored[4].reason;
        assert!(reason.contains("container-name"), "{reason}");
    }

    #[test]
    fn an_ignored_entry_is_told_of_once() {
        let first = entries(vec![record("a", &[]), record("good", &["unix:uid:1"])]);
        let names = |new: &Entries, old: Option<&Entries>| {
            let news = new.news(old).map(|entry| entry.entry_id.clone());
            news.collect::<Vec<_>>()
        };
        assert_eq!(names(&first, None), ["a"]);
        let second = entries(vec![record("a", &[]), record("b", &["tpm:key:1"])]);
        assert_eq!(names(&second, Some(&first)), ["b"]);
        assert_eq!(names(&second, Some(&second)), [""; 0]);
        // Gone and back again is news.
        assert_eq!(names(&first, Some(&Entries::default())), ["a"]);
    }

    #[test]
    fn digests_are_asked_for_only_where_an_entry_needs_one() {
        let digest = format!("unix:sha256:{}", "ab".repeat(32));
        assert!(!entries(vec![record("a", &["unix:uid:1"])]).need_digest(false));
        assert!(entries(vec![record("a", &[&digest])]).need_digest(false));
        assert!(!entries(vec![record("a", &[&digest])]).need_digest(true));
        assert!(entries(vec![record("a", &["k8s:ns:a", &digest])]).need_digest(true));
    }
}
