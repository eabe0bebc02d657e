//! Keys of two clusters. The key that verifies a token decides its cluster, so a key that two
//! of them have decides nothing.

use super::{ClusterHandle, Clusters};
use crate::authn::keyset::KeySet;

/// One key under two clusters: the same key, whatever it is called, or two keys of one name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "clusters {one} and {other} share the key {kid}: a token's key must tell its cluster; give \
     each API server a signing key of its own"
)]
pub struct SharedKey {
    kid: String,
    one: String,
    other: String,
}

impl SharedKey {
    /// Whether this cluster is one of the two.
    pub fn concerns(&self, cluster: &str) -> bool {
        self.one == cluster || self.other == cluster
    }
}

impl Clusters {
    /// Every key that two clusters share, by all that is known now. A cluster whose JWKS has
    /// not arrived shares none yet.
    pub fn shared_keys(&self) -> Vec<SharedKey> {
        let mut shared = Vec::new();
        for (at, one) in self.handles.iter().enumerate() {
            let Some(keys) = one.keys_of_any_age() else {
                continue;
            };
            let mut kids: Vec<&str> = keys.key_ids().collect();
            // In one order always: whoever compares two answers sees only what changed.
            kids.sort_unstable();
            for other in self.handles.iter().skip(at + 1) {
                let Some(theirs) = other.keys_of_any_age() else {
                    continue;
                };
                let both = kids.iter().filter(|kid| keys.shares(kid, &theirs));
                shared.extend(both.map(|kid| SharedKey {
                    kid: (*kid).to_owned(),
                    one: one.name.clone(),
                    other: other.name.clone(),
                }));
            }
        }
        shared
    }

    /// Whether another cluster has the key `kid` of this one too, by the newest JWKS of each.
    pub fn shared_key(&self, of: &ClusterHandle, keys: &KeySet, kid: &str) -> Option<SharedKey> {
        let others = self.handles.iter().filter(|other| other.name != of.name);
        let mut theirs = others.filter_map(|other| Some((other, other.keys_of_any_age()?)));
        let (other, _) = theirs.find(|(_, theirs)| keys.shares(kid, theirs))?;
        Some(SharedKey {
            kid: kid.to_owned(),
            one: of.name.clone(),
            other: other.name.clone(),
        })
    }
}
