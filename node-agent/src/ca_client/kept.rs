//! What a node outside Kubernetes keeps over a restart: its own SVID and the roots.

use std::sync::Arc;

use citadel_identity::key::WorkloadKey;

use super::{Credential, Session, identity::AgentSvid};

impl Session {
    /// On a node outside Kubernetes: the roots of the moment are there after a restart.
    pub(super) async fn keep_roots(&self) {
        let Credential::External(external) = &self.credential else {
            return std::future::pending().await;
        };
        let mut bundles = self.bundles();
        while bundles.changed().await.is_ok() {
            let set = bundles.borrow_and_update().clone();
            let own = set.as_ref().and_then(|set| set.get(self.trust_domain()));
            if let Some(Err(error)) = own.map(|own| external.keep_bundle(own)) {
                tracing::error!(%error, "the trust bundle is not kept for the next start");
            }
        }
    }

    /// The SVID that this node kept over a restart, or that `citadel node join` put there; each
    /// is tried once.
    pub(super) fn kept_svid(
        &self,
        seen: &mut Vec<u8>,
        held: Option<&AgentSvid>,
    ) -> Option<Arc<AgentSvid>> {
        let Credential::External(external) = &self.credential else {
            return None;
        };
        let kept = match external.kept() {
            Ok(kept) => kept?,
            Err(error) => {
                tracing::error!(%error, "this node's own SVID is not to be had");
                return None;
            }
        };
        let leaf = kept.chain.first()?;
        if *leaf == *seen || held.and_then(AgentSvid::leaf) == Some(leaf) {
            return None;
        }
        seen.clone_from(leaf);
        let bundles = kept.bundles();
        let now = self.clock.now();
        let now_ms = i64::try_from(now.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX);
        let restored = WorkloadKey::from_pkcs8(&kept.key)
            .map_err(|error| error.to_string())
            .and_then(|key| {
                AgentSvid::restore(
                    &kept.chain,
                    Arc::new(key),
                    self.trust_domain(),
                    &bundles,
                    now_ms,
                )
                .map_err(|error| error.to_string())
            });
        match restored {
            Ok(svid) => {
                self.trust.adopt(bundles);
                Some(Arc::new(svid))
            }
            Err(reason) => {
                tracing::warn!(reason, "the SVID that this node kept is of no use any more");
                None
            }
        }
    }
}
