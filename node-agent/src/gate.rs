//! What every RPC of the socket does first: who calls, and may it go on?

use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use citadel_identity::TrustDomain;
use citadel_runtime::{LineLimit, ShutdownSignal, grpc::Call};
use http::Request;
use prost::Message;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Extensions, Status, body::Body, metadata::MetadataMap};

use crate::{
    attest::{Peer, relayed::RelayedToken},
    connections::Caller,
    identities::{Identities, View},
};

/// The largest message of a client, in bytes. Envoy's first request on a stream has its node with
/// the names of all extensions it was built with: 61 KiB with Envoy 1.40, and with a mesh's
/// metadata of the proxy some more.
pub(crate) const MAX_REQUEST: usize = 256 * 1024;

/// A caller that was let in.
pub(crate) struct Admitted {
    pub view: View,
    /// Cancelled when the process at the other end has ended.
    pub gone: CancellationToken,
}

/// A request as a call, with the bounds of its caller.
pub(crate) fn call<M: Message + Default>(request: Request<Body>) -> Result<Call<M>, Status> {
    let caller = request.extensions().get::<Caller>();
    let unfinished = Arc::clone(caller.ok_or_else(unattested)?.unfinished());
    Call::new(request, MAX_REQUEST, Some(unfinished))
}

/// Resolves when a stream has to end, and says why.
pub(crate) async fn over(gone: &CancellationToken, shutdown: &ShutdownSignal) -> Status {
    tokio::select! {
        biased;
        () = gone.cancelled() => Status::unavailable("the caller's process has ended"),
        () = shutdown.wait() => Status::unavailable("the agent is shutting down"),
    }
}

fn unattested() -> Status {
    Status::internal("the connection was not attested")
}

/// Lets a request in, or says why not. The metadata may hold the caller's own token.
pub(crate) async fn admit(
    identities: &Identities,
    extensions: &Extensions,
    metadata: &MetadataMap,
    rpc: &'static str,
) -> Result<Admitted, Status> {
    let caller = extensions.get::<Caller>().ok_or_else(unattested)?;
    let peer = match caller.peer() {
        Ok(peer) => Arc::clone(peer),
        Err(reason) => {
            let code = if reason.is_transient() {
                Code::Unavailable
            } else {
                Code::PermissionDenied
            };
            return Err(refuse(code, &reason.to_string(), "unknown", rpc));
        }
    };
    if caller.gone().is_cancelled() || !peer.is_alive() {
        let reason = "the process that opened this connection has ended";
        return Err(refuse(
            Code::PermissionDenied,
            reason,
            &peer.describe(),
            rpc,
        ));
    }
    let relayed = relayed_token(metadata, &peer, rpc)?;
    let view = identities.of(peer, relayed).await;
    Ok(Admitted {
        view,
        gone: caller.gone().clone(),
    })
}

fn relayed_token(
    metadata: &MetadataMap,
    peer: &Peer,
    rpc: &'static str,
) -> Result<Option<RelayedToken>, Status> {
    let mut values = metadata.get_all("authorization").iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let refused = |reason: &str| refuse(Code::PermissionDenied, reason, &peer.describe(), rpc);
    if values.next().is_some() {
        return Err(refused("more than one authorization header"));
    }
    let pod = peer.pod.as_ref().map(|pod| &pod.uid);
    RelayedToken::from_header(value.as_bytes(), pod)
        .map(Some)
        .map_err(|reason| refused(&reason.to_string()))
}

/// A line in the log for the refusal, and the status for the caller.
pub(crate) fn refuse(code: Code, reason: &str, peer: &str, rpc: &'static str) -> Status {
    if let Some(left_out) = line() {
        tracing::warn!(target: "citadel::refused", reason, ?code, peer, rpc, left_out, "refused");
    }
    Status::new(code, reason)
}

/// The most lines in [`LineLimit::WINDOW`] about what workloads do.
const MAX_LINES: u32 = 200;

/// Whether there is a line left for something that a workload can do again and again: else
/// it could fill the disk. How many were left out before it.
pub(crate) fn line() -> Option<u64> {
    static LIMIT: LazyLock<Mutex<LineLimit>> = LazyLock::new(Mutex::default);
    let mut limit = LIMIT.lock().unwrap_or_else(PoisonError::into_inner);
    limit.take(Instant::now(), MAX_LINES)
}

/// True if `name` is the SPIFFE ID of the trust domain itself: `spiffe://example.org`.
pub(crate) fn names_trust_domain(name: &str) -> Option<TrustDomain> {
    let rest = name.strip_prefix("spiffe://")?;
    (!rest.contains('/'))
        .then(|| TrustDomain::new(rest).ok())
        .flatten()
}
