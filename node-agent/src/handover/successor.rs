//! The side that starts: asks the agent that serves, and takes over once it can serve
//! itself.

use std::{
    collections::HashMap,
    io::{self, ErrorKind},
    net::TcpListener as StdTcpListener,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener as StdUnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use citadel_identity::{TrustDomain, crypto::OneTimeKey};
use citadel_proto::agent::{
    HandedOver, HandoverState, Offer, OfferedSocket, SocketKind, TakeOverConfirmation,
    TakeOverRequest,
};
use rustix::net::{AddressFamily, SocketType, sockopt};
use tokio::{
    io::Interest,
    net::{TcpListener, UnixListener},
};

use super::{
    FORMAT, HandoverError, OFFER_DEADLINE, blocking, failed, memory, peer, state,
    wire::{MESSAGE_DEADLINE, Wire},
};
use crate::socket::{self, BoundSocket};

/// What the agent that serves offers. Dropped without a confirmation, it serves on.
pub(crate) struct Taken {
    wire: Wire,
    /// None once it was taken out.
    pub state: HandoverState,
    /// Of the other agent.
    pub version: String,
    sockets: HashMap<SocketKind, (OwnedFd, OfferedSocket)>,
    confirmed: Vec<SocketKind>,
}

/// The connection between the two, for as long as both live: its end is the other's.
#[derive(Debug)]
pub(crate) struct Tie(Option<UnixStream>);

/// Asks the agent that serves, if there is one. `None` where nobody does.
pub(crate) async fn ask(
    path: PathBuf,
    trust_domain: &TrustDomain,
    cluster: &str,
) -> Result<Option<Taken>, HandoverError> {
    let trust_domain = trust_domain.clone();
    let request = TakeOverRequest {
        oldest_format: FORMAT,
        newest_format: FORMAT,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        trust_domain: trust_domain.to_string(),
        cluster: cluster.to_owned(),
    };
    blocking(move || {
        let stream = match UnixStream::connect(&path) {
            Ok(stream) => stream,
            Err(error) if is_nobody(&error) => return Ok(None),
            Err(error) => return Err(failed("asking the agent that serves")(error)),
        };
        peer::is_same_user(&stream)?;
        let mut wire = Wire::new(stream).map_err(failed("the connection"))?;
        wire.send(&request, &[])?;
        wire.wait_for(OFFER_DEADLINE)
            .map_err(failed("the connection"))?;
        let (mut offer, mut descriptors) = wire.receive::<Offer>()?;
        if !offer.refused.is_empty() {
            let reason = offer.refused.chars().filter(|c| !c.is_control());
            return Err(HandoverError::Refused(reason.take(512).collect()));
        }
        if offer.format != FORMAT {
            return Err(HandoverError::Malformed("form of the state"));
        }
        let sockets = std::mem::take(&mut offer.sockets);
        if descriptors.len() != sockets.len() + 1 {
            return Err(HandoverError::Malformed("number of descriptors"));
        }
        let key = OneTimeKey::from_bytes(&offer.state_key);
        let key = key.ok_or(HandoverError::Malformed("key"))?;
        let bytes = memory::read(descriptors.remove(0), key)?;
        Ok(Some(Taken {
            state: state::decode(&bytes, &trust_domain)?,
            version: std::mem::take(&mut offer.version),
            sockets: sockets
                .into_iter()
                .zip(descriptors)
                .map(|(socket, descriptor)| (socket.kind(), (descriptor, socket)))
                .collect(),
            confirmed: Vec::new(),
            wire,
        }))
    })
    .await
}

fn is_nobody(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::PermissionDenied
    )
}

impl Taken {
    /// The Unix socket of this kind, if it was handed over and is the very one that has its
    /// file at `path`.
    pub(crate) fn unix(
        &mut self,
        kind: SocketKind,
        path: &Path,
    ) -> Result<Option<(UnixListener, BoundSocket)>, HandoverError> {
        let Some((descriptor, offered)) = self.sockets.remove(&kind) else {
            return Ok(None);
        };
        check(&descriptor, &[AddressFamily::UNIX])?;
        let Some(placed) = socket::adopt(path, (offered.device, offered.inode)) else {
            return Ok(None);
        };
        if offered.supervised {
            placed.identity().leave();
        }
        let listener = StdUnixListener::from(descriptor);
        let adopted = listener
            .set_nonblocking(true)
            .and_then(|()| UnixListener::from_std(listener));
        let listener = adopted.map_err(failed("the socket that was handed over"))?;
        self.confirmed.push(kind);
        Ok(Some((listener, placed)))
    }

    /// The TCP socket of this kind, if it was handed over and listens on this port.
    pub(crate) fn tcp(
        &mut self,
        kind: SocketKind,
        port: u16,
    ) -> Result<Option<TcpListener>, HandoverError> {
        let Some((descriptor, _)) = self.sockets.remove(&kind) else {
            return Ok(None);
        };
        check(&descriptor, &[AddressFamily::INET, AddressFamily::INET6])?;
        let listener = StdTcpListener::from(descriptor);
        let adopted = listener
            .set_nonblocking(true)
            .and_then(|()| TcpListener::from_std(listener));
        let listener = adopted.map_err(failed("the port that was handed over"))?;
        if listener
            .local_addr()
            .is_ok_and(|address| address.port() != port)
        {
            return Ok(None);
        }
        self.confirmed.push(kind);
        Ok(Some(listener))
    }

    /// Tells the agent that serves that this one does now. After an error nobody knows
    /// whether it had heard it: this process has to end.
    pub(crate) async fn confirm(self) -> Result<Tie, HandoverError> {
        let confirmation = TakeOverConfirmation {
            taken: self.confirmed.iter().map(|kind| (*kind).into()).collect(),
        };
        let mut wire = self.wire;
        blocking(move || {
            wire.send(&confirmation, &[])?;
            wire.wait_for(MESSAGE_DEADLINE)
                .map_err(failed("the connection"))?;
            wire.receive::<HandedOver>()?;
            Ok(Tie::new(&wire))
        })
        .await
    }
}

/// A listening stream socket of one of these families.
fn check(descriptor: &OwnedFd, families: &[AddressFamily]) -> Result<(), HandoverError> {
    let socket = descriptor.as_fd();
    let good = sockopt::socket_acceptconn(socket).unwrap_or(false)
        && sockopt::socket_type(socket).is_ok_and(|kind| kind == SocketType::STREAM)
        && sockopt::socket_domain(socket).is_ok_and(|family| families.contains(&family));
    good.then_some(()).ok_or(HandoverError::Malformed("socket"))
}

impl Tie {
    pub(super) fn new(wire: &Wire) -> Self {
        Self(wire.stream().try_clone().ok())
    }

    /// The other end is gone already.
    pub(super) fn none() -> Self {
        Self(None)
    }

    /// Resolves when the other process has ended.
    pub(crate) async fn broken(&self) {
        let Some(stream) = &self.0 else { return };
        let watched = stream
            .try_clone()
            .and_then(|stream| {
                stream.set_nonblocking(true)?;
                tokio::net::UnixStream::from_std(stream)
            })
            .map(Arc::new);
        if let Ok(stream) = watched {
            // Nothing is said any more: what can be read is the end.
            let _ = stream.ready(Interest::READABLE).await;
        }
    }
}
