//! Who administers: auditors read, operators change.

use std::collections::HashSet;

use citadel_runtime::tls::PeerInfo;
use time::OffsetDateTime;
use tonic::{Code, Status, metadata::MetadataMap};

use super::{
    front::{Front, credentials_of},
    refusal::Refusal,
};
use crate::{authz::account_key, caller::Caller};

/// Who may do what: SPIFFE IDs (`spiffe://…`) and service accounts (`namespace/account`).
#[derive(Clone, Debug, Default)]
pub(crate) struct AdminAccess {
    /// Subjects of the role auditor, and of operator, which includes it.
    pub(crate) auditors: HashSet<String>,
    /// Subjects of the role operator.
    pub(crate) operators: HashSet<String>,
    /// The uid that the server runs as: beside root, the one that the local socket serves.
    pub(crate) own_uid: u32,
}

/// What an administrator has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AdminRole {
    /// May read.
    Auditor,
    /// May change.
    Operator,
}

impl AdminAccess {
    /// Takes a turn, authenticates the peer, and refuses it unless it has the role. Returns
    /// who it is, as the log names it.
    pub(crate) async fn check(
        &self,
        front: &Front,
        rpc: &'static str,
        role: AdminRole,
        peer: &PeerInfo,
        metadata: &MetadataMap,
    ) -> Result<String, Status> {
        let credentials = credentials_of(peer, metadata);
        front
            .serve(rpc, &credentials, async {
                let caller = front
                    .caller(&credentials, OffsetDateTime::now_utc())
                    .await?;
                if let Some(named) = self.named(role, &caller) {
                    return Ok(named);
                }
                Err(match role {
                    AdminRole::Auditor => Refusal::new(
                        Code::PermissionDenied,
                        "the caller has no administrator's role",
                        "the caller is named neither in admin.auditor nor in admin.operator",
                    ),
                    AdminRole::Operator => Refusal::new(
                        Code::PermissionDenied,
                        "the caller has no operator's role",
                        "the caller is not named in admin.operator",
                    ),
                })
            })
            .await
    }

    /// By which of its names the caller has this role.
    fn named(&self, role: AdminRole, caller: &Caller) -> Option<String> {
        let subjects = match role {
            AdminRole::Auditor => &self.auditors,
            AdminRole::Operator => &self.operators,
        };
        let certificate = caller.evidence.certificate.as_ref();
        let id = certificate.map(|(_, id)| id.to_string());
        let subject = caller.subject.as_ref();
        let account = subject.map(|s| account_key(&s.namespace, &s.account.name));
        id.into_iter()
            .chain(account)
            .find(|name| subjects.contains(name))
    }
}
