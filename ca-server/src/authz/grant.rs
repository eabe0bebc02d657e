//! What a caller was granted.

use std::time::Duration;

use citadel_identity::{SpiffeId, serial::Serial};
use citadel_proto::log;

use crate::caller::{Caller, Origin};

/// What the certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// A workload's X.509-SVID.
    Workload,
    /// The SVID of a node agent.
    Agent,
    /// The serving certificate of the CA itself.
    CaServer,
}

impl From<Use> for log::CertificateUse {
    fn from(value: Use) -> Self {
        match value {
            Use::Workload => Self::Workload,
            Use::Agent => Self::Agent,
            Use::CaServer => Self::CaServer,
        }
    }
}

/// The right to one X.509-SVID. Made by [`super::Policy::authorize`] alone, consumed by
/// the issuance line.
#[derive(Clone, Debug)]
pub struct Grant {
    pub(super) spiffe_id: SpiffeId,
    pub(super) dns_names: Vec<String>,
    pub(super) lifetime: Duration,
    pub(super) usage: Use,
    pub(super) caller: Caller,
    pub(super) origin: Origin,
    pub(super) policy_revision: u64,
    pub(super) previous_serial: Option<Serial>,
    pub(super) hint: String,
}

impl Grant {
    /// The identity that was granted.
    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.spiffe_id
    }

    /// DNS names from entries and policy; never from a CSR.
    pub fn dns_names(&self) -> &[String] {
        &self.dns_names
    }

    /// How long the certificate lives from now on.
    pub fn lifetime(&self) -> Duration {
        self.lifetime
    }

    /// What it is for.
    pub fn usage(&self) -> Use {
        self.usage
    }

    /// Who asked.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// What the identity rests on.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Revision of the policy that allowed it.
    pub fn policy_revision(&self) -> u64 {
        self.policy_revision
    }

    /// The serial that it replaces, where one was named.
    pub fn previous_serial(&self) -> Option<&Serial> {
        self.previous_serial.as_ref()
    }

    /// The hint of its entry, if any.
    pub fn hint(&self) -> &str {
        &self.hint
    }

    /// What tells who holds the identity from all others who do, and stays the same from
    /// renewal to renewal: the identity with its pod, else with its node and entry.
    pub fn holder(&self) -> Vec<&str> {
        let node = self.origin.node.as_ref();
        let mut holder = vec![self.spiffe_id.path()];
        holder.extend(self.pod_uid());
        holder.extend(node.map(|(_, node)| node.uid.as_str()));
        holder.extend(self.origin.entry_id.as_deref());
        holder
    }

    /// UID of the pod that the identity belongs to, where there is one.
    pub fn pod_uid(&self) -> Option<&str> {
        let pod = self.origin.subject.as_ref()?.pod.as_ref()?;
        Some(&pod.uid)
    }
}
