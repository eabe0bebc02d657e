//! The CA's own serving certificate: issued through the line, recorded like any other, and
//! renewed at half of its life without dropping a connection.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use citadel_identity::key::WorkloadKey;
use citadel_runtime::{shutdown::ShutdownSignal, tls::ReloadingCertificate};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;

use crate::{
    authz::{Ask, Policy, Wish},
    issuance::{Issuance, Item, ItemError},
};

/// Why there is no serving certificate.
#[derive(Debug, thiserror::Error)]
pub enum ServingError {
    /// The line did not issue it.
    #[error("serving certificate: {0}")]
    Issue(#[from] ItemError),
    /// The key could not be made or used.
    #[error("serving key: {0}")]
    Key(String),
}

/// First retry after a failed renewal; it doubles up to a minute.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);

/// Issues a certificate for `listen` and puts it in place. Returns when to renew it.
pub(crate) async fn renew(
    issuance: &Issuance,
    roots: &[CertificateDer<'static>],
    certificate: &ReloadingCertificate,
    listen: SocketAddr,
) -> Result<Duration, ServingError> {
    let now = OffsetDateTime::now_utc();
    let key = WorkloadKey::generate().map_err(|error| ServingError::Key(error.to_string()))?;
    let csr = key
        .csr()
        .map_err(|error| ServingError::Key(error.to_string()))?;
    let item = Item {
        ask: Ask::CaServer,
        wish: Wish::default(),
        csr,
    };
    let svid = issuance
        .issue(&Policy::server_caller(listen, now), &item, now)
        .await?;
    // The root goes along: an agent whose first trust is a root's hash needs it to check.
    let chain: Vec<_> = std::iter::once(svid.certificate.clone())
        .chain(issuance.line().issuer.certificate().chain().iter().cloned())
        .chain(roots.iter().cloned())
        .collect();
    certificate
        .replace(chain, key.pkcs8_der())
        .map_err(|error| ServingError::Key(error.to_string()))?;
    tracing::info!(serial = %svid.serial, not_after = %svid.not_after, "serving certificate");
    Ok(Duration::try_from(svid.renew_at - now).unwrap_or(FIRST_RETRY))
}

/// Renews until shutdown. A failure keeps the certificate that is there.
pub(crate) async fn keep_renewed(
    issuance: Arc<Issuance>,
    roots: Vec<CertificateDer<'static>>,
    certificate: Arc<ReloadingCertificate>,
    listen: SocketAddr,
    mut wait: Duration,
    shutdown: ShutdownSignal,
) {
    let mut retry = FIRST_RETRY;
    loop {
        tokio::select! {
            () = shutdown.wait() => return,
            () = tokio::time::sleep(wait) => {}
        }
        wait = match renew(&issuance, &roots, &certificate, listen).await {
            Ok(next) => {
                retry = FIRST_RETRY;
                next
            }
            Err(error) => {
                tracing::warn!(%error, retry_in = ?retry, "serving certificate not renewed");
                let wait = retry;
                retry = (retry * 2).min(LAST_RETRY);
                wait
            }
        };
    }
}
