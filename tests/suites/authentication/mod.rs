//! Who is believed to be who, and who is not: by both services that take a
//! workload's own credential.

mod admin_socket;
mod certificates;
mod keys;
mod liveness;
mod tokens;

use citadel_tests::client::Client;
use citadel_tests::pki::csr;
use tonic::{Code, Status};

use crate::support::{Scene, certificate_request};

/// Asks through `citadel.v1.WorkloadService`.
async fn issue(client: &Client) -> Result<(), Status> {
    client.issue(&csr::plain()).await.map(drop)
}

/// Asks through `IstioCertificateService`.
async fn create_certificate(client: &Client) -> Result<(), Status> {
    let request = certificate_request(&csr::plain().pem(), 0);
    client.create_certificate(request).await.map(drop)
}

/// Panics unless both services take this client.
async fn both_accept(client: &Client, what: &str) {
    for answer in [issue(client).await, create_certificate(client).await] {
        answer.unwrap_or_else(|status| panic!("{what}: {status:?}"));
    }
}

impl Scene<'_> {
    /// Panics unless both services refuse this client as unauthenticated, for
    /// this reason, and issue nothing.
    async fn both_reject(&self, client: &Client, reason: &str) {
        self.refuses(Code::Unauthenticated, reason, issue(client))
            .await;
        self.refuses(Code::Unauthenticated, reason, create_certificate(client))
            .await;
    }
}
