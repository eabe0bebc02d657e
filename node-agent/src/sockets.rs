//! Where this agent's sockets come from: from the agent that served until now, from a
//! supervisor, or they are bound.

use std::{io, path::Path, sync::Arc};

use citadel_proto::agent::SocketKind;
use citadel_runtime::admin::{AdminServer, Readiness};
use prometheus_client::registry::Registry;
use tokio::net::UnixListener;

use crate::{
    StartError,
    config::Settings,
    handover::{self, Giver, Taken, Tie},
    passed::Passed,
    socket::{self, Audience, BoundSocket},
};

/// A listener with its file.
pub(crate) type Placed = (UnixListener, BoundSocket);

/// What there is before anything is bound.
pub(crate) struct Sources {
    taken: Option<Taken>,
    passed: Passed,
}

impl Sources {
    /// Asks the agent that serves, if there is one. Its secrets are taken at once, its
    /// sockets when they are wanted. If it only says no, this process starts as after a
    /// reboot, and finds the socket served.
    pub(crate) async fn find(settings: &Settings, giver: &Giver, passed: Passed) -> Self {
        let taken = match &settings.handover {
            Some(handover) => {
                let path = handover.socket.clone();
                let asked = handover::ask(path, &settings.trust_domain, &settings.cluster);
                asked.await.unwrap_or_else(|error| {
                    tracing::warn!(%error, "nothing is taken over");
                    None
                })
            }
            None => None,
        };
        let mut sources = Self { taken, passed };
        if let Some(taken) = &mut sources.taken {
            let restored = giver.take_over(std::mem::take(&mut taken.state));
            tracing::info!(
                version = taken.version,
                secrets = restored.taken,
                left = restored.left,
                "this agent takes over from the one that serves"
            );
        }
        sources
    }

    /// A Unix socket at `path`.
    pub(crate) fn unix(
        &mut self,
        kind: SocketKind,
        path: &Path,
        audience: Audience,
    ) -> Result<Placed, StartError> {
        if let Some(taken) = &mut self.taken
            && let Some(handed) = taken.unix(kind, path)?
        {
            return Ok(handed);
        }
        if let Some(passed) = self.passed.take(kind, path)? {
            return Ok(passed);
        }
        Ok(socket::bind(path, audience)?)
    }

    /// The same for administrators. Where `path` is the default one (`named` is false) it
    /// may be in a folder that this agent can't make (a read-only root): then `without`
    /// is said, and there is none.
    pub(crate) fn for_administrators(
        &mut self,
        kind: SocketKind,
        path: &Path,
        named: bool,
        without: &str,
    ) -> Result<Option<Placed>, StartError> {
        match self.unix(kind, path, Audience::Administrators) {
            Ok(placed) => Ok(Some(placed)),
            Err(StartError::Socket(error)) if !named => {
                tracing::warn!(%error, "{without}; set admin_socket");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The port of health and metrics, or the other agent's where that has it already.
    pub(crate) async fn admin(
        &mut self,
        settings: &Settings,
        readiness: Readiness,
        registry: Arc<Registry>,
    ) -> Result<AdminServer, StartError> {
        let address = settings.admin_listen;
        let bound = AdminServer::bind(address, readiness.clone(), Arc::clone(&registry)).await;
        let in_use = match bound {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => error,
            bound => return bound.map_err(StartError::Admin),
        };
        let taken = self.taken.as_mut();
        let handed = taken.map(|taken| taken.tcp(SocketKind::AdminHttp, address.port()));
        match handed.transpose()?.flatten() {
            Some(listener) => {
                AdminServer::on(listener, readiness, registry).map_err(StartError::Admin)
            }
            None => Err(StartError::Admin(in_use)),
        }
    }

    /// Tells the other agent, if there is one, that this one serves now.
    pub(crate) async fn confirm(self) -> Result<Option<Tie>, StartError> {
        match self.taken {
            Some(taken) => Ok(Some(taken.confirm().await?)),
            None => Ok(None),
        }
    }
}
