//! What a stream of the Workload API was sent, for the count of who runs on what.
//!
//! Nothing is acknowledged here. Who takes a renewed SVID after the message with a bundle
//! has read that message: so much is shown of the bundle, and no more.

use citadel_identity::{TrustDomain, bundle::Bundle};

use crate::{
    holders::{Content, Tracked},
    identities::Snapshot,
};

pub(super) struct Sent {
    tracked: Tracked,
    /// The message holds SVIDs, not bundles alone.
    with_svids: bool,
    serials: Vec<String>,
    bundle: Option<String>,
}

impl Sent {
    pub(super) fn new(tracked: Tracked, with_svids: bool) -> Self {
        Self {
            tracked,
            with_svids,
            serials: Vec::new(),
            bundle: None,
        }
    }

    /// A message with all of `snapshot` was sent.
    pub(super) fn note(&mut self, snapshot: &Snapshot, own: &TrustDomain) {
        let name = own.id_string();
        let bundle = snapshot.bundles.get(own).map(Bundle::authorities_sha256);
        let mut serials = Vec::new();
        if self.with_svids {
            serials.extend(snapshot.svids.iter().map(|svid| svid.serial.clone()));
            let ids: Vec<String> = snapshot.svids.iter().map(|it| it.id.to_string()).collect();
            self.tracked
                .keep(|known| known == name || ids.iter().any(|id| id == known));
            for (svid, id) in snapshot.svids.iter().zip(&ids) {
                if !self.serials.contains(&svid.serial) {
                    self.tracked.sent(id, &svid.serial, svid.holding());
                }
            }
        }
        if let Some(bundle) = &bundle {
            if self.bundle.as_ref() != Some(bundle) {
                // A stream of bundles alone never renews: it tells nothing of its holder.
                let content = if self.with_svids {
                    Content::OwnBundle(bundle.clone())
                } else {
                    Content::Other
                };
                self.tracked.sent(&name, bundle, content.into());
            } else if serials != self.serials {
                self.tracked.acknowledged(&name, bundle);
            }
        }
        (self.serials, self.bundle) = (serials, bundle);
    }
}
