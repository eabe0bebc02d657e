//! What is recorded at a start beside the start itself: a CA key or a policy that is another
//! one than that of the last certificate in the log.

use citadel_proto::log::{CaKeyChanged, CaKeyState, Entry, entry::Kind};
use prost::Message as _;

use super::entries::{entry, policy_changed};
use crate::store::{LogIndex, MAX_PAGE, NewEntry, Store, StoreError};

/// How far back the last certificate is looked for, in pages. Every start issues one.
const PAGES: u64 = 4;

/// What holds for the certificates to come.
#[derive(Clone, Copy, Debug)]
pub struct InForce<'a> {
    /// Subject key id of the issuer.
    pub issuer_key_id: &'a [u8],
    /// Its certificate, DER.
    pub issuer_certificate: &'a [u8],
    /// Revision of policy and registration entries.
    pub policy_revision: u64,
}

/// Entries for what is another since the last certificate was issued; none where all is as it
/// was.
///
/// # Errors
/// The store can't be read.
pub async fn changes(store: &dyn Store, now: InForce<'_>) -> Result<Vec<NewEntry>, StoreError> {
    let before = Before::of(store).await?;
    let mut entries = Vec::new();
    if before.issuer_key_id.as_deref() != Some(now.issuer_key_id) {
        if let Some(retired) = before.issuer_key_id {
            entries.push(entry(Kind::CaKeyChanged(CaKeyChanged {
                key_id: retired,
                state: CaKeyState::Retired.into(),
                certificate: Vec::new(),
            })));
        }
        entries.push(entry(Kind::CaKeyChanged(CaKeyChanged {
            key_id: now.issuer_key_id.to_vec(),
            state: CaKeyState::Active.into(),
            certificate: now.issuer_certificate.to_vec(),
        })));
    }
    if before.policy_revision != Some(now.policy_revision) {
        entries.push(policy_changed(
            before.policy_revision.unwrap_or_default(),
            now.policy_revision,
        ));
    }
    Ok(entries)
}

/// What the newest entries say.
#[derive(Default)]
struct Before {
    issuer_key_id: Option<Vec<u8>>,
    policy_revision: Option<u64>,
}

impl Before {
    async fn of(store: &dyn Store) -> Result<Self, StoreError> {
        let mut before = Self::default();
        let mut end = store.size().await?;
        for _ in 0..PAGES {
            let from = end.saturating_sub(MAX_PAGE as u64);
            let mut page = store.read(LogIndex(from), MAX_PAGE).await?;
            page.retain(|entry| entry.index.0 < end);
            for stored in page.iter().rev() {
                before.take_in(&stored.bytes);
                if before.issuer_key_id.is_some() && before.policy_revision.is_some() {
                    return Ok(before);
                }
            }
            if from == 0 {
                break;
            }
            end = from;
        }
        Ok(before)
    }

    /// An older entry: it counts for what no newer one has said.
    fn take_in(&mut self, bytes: &[u8]) {
        match Entry::decode(bytes).ok().and_then(|entry| entry.kind) {
            Some(Kind::Issued(issued)) => {
                self.issuer_key_id.get_or_insert(issued.issuer_key_id);
                self.policy_revision.get_or_insert(issued.policy_revision);
            }
            Some(Kind::PolicyChanged(changed)) => {
                self.policy_revision.get_or_insert(changed.new_revision);
            }
            Some(Kind::CaKeyChanged(changed)) if changed.state() == CaKeyState::Active => {
                self.issuer_key_id.get_or_insert(changed.key_id);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use citadel_proto::log::Issued;

    use super::*;
    use crate::store::{SqliteOptions, SqliteStore};

    fn in_force(key: &'static [u8], policy_revision: u64) -> InForce<'static> {
        InForce {
            issuer_key_id: key,
            issuer_certificate: b"certificate",
            policy_revision,
        }
    }

    fn kinds(entries: &[NewEntry]) -> Vec<Kind> {
        entries
            .iter()
            .map(|entry| Entry::decode(entry.bytes.as_slice()).unwrap().kind.unwrap())
            .collect()
    }

    #[tokio::test]
    async fn each_change_is_recorded_once() {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(SqliteOptions::new(folder.path().join("log.db")))
            .await
            .unwrap();
        let first = changes(&store, in_force(b"one", 7)).await.unwrap();
        let [Kind::CaKeyChanged(key), Kind::PolicyChanged(policy)] = &kinds(&first)[..] else {
            panic!("{:?}", kinds(&first));
        };
        assert_eq!(
            (key.key_id.as_slice(), key.state()),
            (&b"one"[..], CaKeyState::Active)
        );
        assert_eq!((policy.old_revision, policy.new_revision), (0, 7));
        store.append(first).await.unwrap();
        assert_eq!(changes(&store, in_force(b"one", 7)).await.unwrap(), []);

        // Certificates, more than a page of other entries, and another policy.
        let issued = Issued {
            issuer_key_id: b"one".to_vec(),
            policy_revision: 7,
            ..Issued::default()
        };
        store
            .append(vec![entry(Kind::Issued(issued))])
            .await
            .unwrap();
        for _ in 0..3 {
            let others = (0..500).map(|_| super::super::server_stopped()).collect();
            store.append(others).await.unwrap();
        }
        assert_eq!(changes(&store, in_force(b"one", 7)).await.unwrap(), []);
        let other = changes(&store, in_force(b"two", 8)).await.unwrap();
        let [
            Kind::CaKeyChanged(old),
            Kind::CaKeyChanged(new),
            Kind::PolicyChanged(policy),
        ] = &kinds(&other)[..]
        else {
            panic!("{:?}", kinds(&other));
        };
        assert_eq!(
            (old.key_id.as_slice(), old.state()),
            (&b"one"[..], CaKeyState::Retired)
        );
        assert_eq!(
            (new.key_id.as_slice(), new.state()),
            (&b"two"[..], CaKeyState::Active)
        );
        assert_eq!((policy.old_revision, policy.new_revision), (7, 8));
        store.append(other).await.unwrap();
        assert_eq!(changes(&store, in_force(b"two", 8)).await.unwrap(), []);
        store.close().await;
    }
}
