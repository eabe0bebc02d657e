//! Everything that is handed over, put together and taken apart.

use std::mem;

use citadel_identity::TrustDomain;
use citadel_proto::agent::HandoverState;
use prost::Message;
use zeroize::Zeroizing;

use super::HandoverError;
use crate::{
    ca_client::{HandedStanding, Session},
    secrets::{Restoration, SecretManager},
};

/// Where the state of this process is.
#[derive(Clone)]
pub(crate) struct Giver {
    pub trust_domain: TrustDomain,
    pub session: std::sync::Arc<Session>,
    pub manager: SecretManager,
}

impl Giver {
    /// The state of this moment. The keys in the message wipe themselves.
    pub(super) fn encoded(&self) -> Zeroizing<Vec<u8>> {
        let standing = self.session.hand_over();
        let state = HandoverState {
            trust_domain: self.trust_domain.to_string(),
            bundles: standing.bundles,
            entries: standing.entries,
            agent: standing.agent,
            secrets: self.manager.hand_over(),
        };
        // Encoded into its full size at once: growing would leave keys behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(state.encoded_len()));
        state.encode_raw(&mut *bytes);
        bytes
    }

    /// Goes on with what the process before this one had.
    pub(crate) fn take_over(&self, mut state: HandoverState) -> Restoration {
        let standing = HandedStanding {
            bundles: mem::take(&mut state.bundles),
            entries: state.entries.take(),
            agent: state.agent.take(),
        };
        let bundles = self.session.take_over(standing);
        self.manager
            .restore(mem::take(&mut state.secrets), &bundles)
    }
}

/// Reads the state of a process of this trust domain.
pub(super) fn decode(
    bytes: &[u8],
    trust_domain: &TrustDomain,
) -> Result<HandoverState, HandoverError> {
    let state = HandoverState::decode(bytes).map_err(|_| HandoverError::Malformed("state"))?;
    if state.trust_domain != trust_domain.as_str() {
        return Err(HandoverError::Malformed("trust domain"));
    }
    Ok(state)
}
