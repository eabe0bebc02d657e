//! Who may read the log: administrators of the role auditor.

use std::collections::HashSet;

use citadel_runtime::tls::PeerInfo;
use time::OffsetDateTime;
use tonic::{Code, Status, metadata::MetadataMap};

use super::{
    front::{Front, credentials_of},
    refusal::Refusal,
};
use crate::{authz::account_key, caller::Caller};

/// Who may read: SPIFFE IDs (`spiffe://…`) and service accounts (`namespace/account`).
#[derive(Clone, Debug, Default)]
pub(crate) struct AdminAccess {
    /// Subjects of the role auditor, and of operator, which includes it.
    pub(crate) auditors: HashSet<String>,
    /// The uid that the server runs as: beside root, the one that the local socket serves.
    pub(crate) own_uid: u32,
}

impl AdminAccess {
    /// Takes a turn, authenticates the peer, and refuses it unless it is an auditor.
    pub(crate) async fn check(
        &self,
        front: &Front,
        rpc: &'static str,
        peer: &PeerInfo,
        metadata: &MetadataMap,
    ) -> Result<(), Status> {
        let credentials = credentials_of(peer, metadata);
        front
            .serve(rpc, &credentials, async {
                let caller = front
                    .caller(&credentials, OffsetDateTime::now_utc())
                    .await?;
                if self.is_auditor(&caller) {
                    return Ok(());
                }
                Err(Refusal::new(
                    Code::PermissionDenied,
                    "the caller has no administrator's role",
                    "the caller is named neither in admin.auditor nor in admin.operator",
                ))
            })
            .await
    }

    fn is_auditor(&self, caller: &Caller) -> bool {
        let by_id = caller
            .evidence
            .certificate
            .as_ref()
            .is_some_and(|(_, id)| self.auditors.contains(&id.to_string()));
        let by_account = caller.subject.as_ref().is_some_and(|subject| {
            self.auditors
                .contains(&account_key(&subject.namespace, &subject.account.name))
        });
        by_id || by_account
    }
}
