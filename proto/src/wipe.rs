//! Messages that carry private keys or join tokens wipe them when they are dropped: a
//! sender's once it is encoded, a receiver's once it was read.

use zeroize::Zeroize;

use crate::{agent, v1, workload};

impl Drop for workload::X509svid {
    fn drop(&mut self) {
        self.x509_svid_key.zeroize();
    }
}

impl Drop for agent::HandedSvid {
    fn drop(&mut self) {
        self.private_key.zeroize();
    }
}

impl Drop for v1::JoinToken {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

impl Drop for v1::CreateJoinTokenResponse {
    fn drop(&mut self) {
        self.token.zeroize();
    }
}

impl Drop for agent::HandedToken {
    fn drop(&mut self) {
        self.token.zeroize();
    }
}

impl Drop for agent::Offer {
    fn drop(&mut self) {
        self.state_key.zeroize();
    }
}
