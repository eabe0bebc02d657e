//! The side that serves: answers who asks to take over.

use std::os::{
    fd::{AsFd, OwnedFd},
    unix::net::UnixStream,
};

use citadel_proto::agent::{
    HandedOver, Offer, OfferedSocket, SocketKind, TakeOverConfirmation, TakeOverRequest,
};
use citadel_runtime::{Shutdown, ShutdownSignal, supervisor};
use tokio::net::UnixListener;

use super::{
    FORMAT, HandoverError, PATIENCE, Tie, blocking, failed, memory,
    peer::Own,
    state::Giver,
    wire::{MESSAGE_DEADLINE, Wire},
};
use crate::{
    secrets::Still,
    socket::{BoundSocket, Identity},
};

/// A socket that this process serves, and can hand over.
pub(crate) struct Served {
    pub kind: SocketKind,
    pub descriptor: OwnedFd,
    /// Of a Unix socket: its file, which stays when it was handed over.
    pub file: Option<Identity>,
}

/// Waits for a successor.
pub(crate) struct Predecessor {
    pub listener: UnixListener,
    pub placed: BoundSocket,
    pub served: Vec<Served>,
    pub giver: Giver,
    pub own: Own,
    /// Ends the intake of connections: the first thing that a handover changes here.
    pub intake: Shutdown,
}

impl Predecessor {
    /// Resolves once a successor has taken over; `None` at the shutdown.
    pub(crate) async fn run(self, shutdown: ShutdownSignal) -> Option<Tie> {
        loop {
            let accepted = tokio::select! {
                () = shutdown.wait() => return None,
                accepted = self.listener.accept() => accepted,
            };
            let stream = match accepted.and_then(|(stream, _)| stream.into_std()) {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a successor's connection could not be accepted");
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    continue;
                }
            };
            match self.hand_over(stream).await {
                Ok((tie, still)) => {
                    // Nothing is asked for any more: what the CA gave would be lost.
                    shutdown.wait().await;
                    drop(still);
                    return Some(tie);
                }
                Err(error) => {
                    tracing::warn!(%error, "nothing was handed over; this agent serves on");
                }
            }
        }
    }

    async fn hand_over(&self, stream: UnixStream) -> Result<(Tie, Option<Still>), HandoverError> {
        // Before a byte of it is read.
        let pid = self.own.may_succeed(&stream)?;
        let (mut wire, request) = blocking(move || {
            let mut wire = Wire::new(stream).map_err(failed("the successor's connection"))?;
            let (request, _) = wire.receive::<TakeOverRequest>()?;
            Ok((wire, request))
        })
        .await?;
        tracing::info!(
            pid,
            version = printable(&request.version),
            "another agent asks to take over"
        );
        if let Err(refused) = self.judge(&request) {
            let mut offer = Offer::default();
            offer.refused.clone_from(&refused);
            blocking(move || Ok(wire.send(&offer, &[])?)).await?;
            return Err(HandoverError::Refused(refused));
        }
        // Until it is dropped nothing changes: what is handed over is all there is.
        let still = self.giver.manager.hold_still(PATIENCE).await;
        if still.is_none() {
            tracing::warn!("the CA answers too late: what it issues now is lost");
        }
        let giver = self.giver.clone();
        let sockets: Vec<_> = self.served.iter().map(offered).collect();
        let descriptors = self
            .served
            .iter()
            .map(|served| served.descriptor.try_clone());
        let descriptors: Result<Vec<_>, _> = descriptors.collect();
        let descriptors = descriptors.map_err(failed("the sockets"))?;
        let (wire, confirmed) = blocking(move || {
            let (state, key) = memory::write(giver.encoded())?;
            let offer = Offer {
                refused: String::new(),
                format: FORMAT,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                state_key: key.expose().to_vec(),
                sockets,
            };
            let all = std::iter::once(&state).chain(&descriptors);
            let all: Vec<_> = all.map(AsFd::as_fd).collect();
            wire.send(&offer, &all)?;
            wire.wait_for(MESSAGE_DEADLINE)
                .map_err(failed("the successor's connection"))?;
            let (confirmed, _) = wire.receive::<TakeOverConfirmation>()?;
            Ok((wire, confirmed))
        })
        .await?;
        // From here on it is the other one that serves.
        self.let_go(&confirmed);
        if let Ok(pid) = u32::try_from(pid) {
            supervisor::main_process(pid);
        }
        let tie = blocking(move || {
            let mut wire = wire;
            wire.send(&HandedOver {}, &[])?;
            Ok(Tie::new(&wire))
        })
        .await;
        // Whether the word arrived or not: it has what it needs.
        tracing::info!(pid, "another agent has taken over");
        Ok((tie.unwrap_or_else(|_| Tie::none()), still))
    }

    fn judge(&self, request: &TakeOverRequest) -> Result<(), String> {
        if !(request.oldest_format..=request.newest_format).contains(&FORMAT) {
            return Err(format!(
                "it reads the forms {} to {} of the state, and this agent writes {FORMAT}",
                request.oldest_format, request.newest_format
            ));
        }
        if request.trust_domain != self.giver.trust_domain.as_str() {
            return Err("it is of another trust domain".to_owned());
        }
        Ok(())
    }

    fn let_go(&self, confirmed: &TakeOverConfirmation) {
        self.intake.trigger();
        for served in &self.served {
            let taken = confirmed.taken.contains(&i32::from(served.kind));
            if let Some(file) = served.file.as_ref().filter(|_| taken) {
                file.leave();
            }
        }
        let handover = i32::from(SocketKind::Handover);
        if confirmed.taken.contains(&handover) {
            self.placed.identity().leave();
        }
    }
}

fn offered(served: &Served) -> OfferedSocket {
    let (device, inode) = served.file.as_ref().map_or((0, 0), Identity::inode);
    OfferedSocket {
        kind: served.kind.into(),
        device,
        inode,
        supervised: served.file.as_ref().is_some_and(Identity::is_left),
    }
}

fn printable(text: &str) -> String {
    text.chars()
        .filter(char::is_ascii_graphic)
        .take(64)
        .collect()
}
