//! Citadel's node agent: attests the workloads of its node, keeps their certificates
//! renewed, and serves them over Envoy's SDS and the SPIFFE Workload API.
//!
//! [`build`] makes a whole agent in process: a test or `citadel dev` runs the same one
//! as the binary `citadel-agent`.

pub mod attest;
pub mod ca_client;
pub mod clock;
pub mod config;
pub mod connections;
pub mod external;
pub mod files;
mod gate;
pub mod handover;
pub mod holders;
pub mod identities;
mod limits;
pub mod metrics;
pub mod passed;
pub mod pods;
pub mod sds;
pub mod secrets;
pub mod socket;
mod sockets;
pub mod status;
pub mod workload_api;

#[cfg(test)]
#[path = "../../identity/tests/identity/mutation.rs"]
mod mutation;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod testing_agent;

use std::{
    io, net::SocketAddr, os::fd::AsFd as _, path::PathBuf, sync::Arc, task::Poll, time::Duration,
};

use citadel_identity::crypto;
use citadel_kubernetes::{ConnectError, NodePods};
use citadel_proto::agent::{SocketKind, agent_admin_service_server::AgentAdminServiceServer};
use citadel_runtime::{
    Shutdown, ShutdownSignal,
    admin::{AdminServer, Readiness},
    config::ConfigError,
    grpc::{self, Http2},
    process, supervisor,
};
use futures::{Stream, StreamExt as _};
use prometheus_client::registry::Registry;
use tokio::{net::UnixListener, task::JoinHandle};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::service::Routes;

use crate::{
    attest::{Attestor, proc::Proc, relayed::pod_named_by},
    ca_client::{Ca, Credential, FileToken, Session, SessionConfig, TokenSource},
    clock::{Clock, SystemClock},
    config::{Config, Settings, default_admin_socket},
    connections::{Connection, Limits},
    files::keeper::Keeper,
    handover::{
        Afterwards, Giver, HandoverError, HandoverSettings, Own, Predecessor, Served, Successor,
        Tie,
    },
    holders::Holders,
    identities::Identities,
    metrics::Metrics,
    passed::Passed,
    pods::Pods,
    sds::{Sds, SdsService, folders::FolderRule},
    secrets::SecretManager,
    socket::{Audience, BoundSocket, SocketError},
    sockets::{Placed, Sources},
    status::AgentAdmin,
    workload_api::{WorkloadApi, reflection},
};

/// How long open requests may take once the shutdown has begun.
const DRAIN: Duration = Duration::from_secs(5);

/// What the agent is made of beside its configuration. A test may replace parts.
#[derive(Debug)]
pub struct Parts {
    /// Ends the agent.
    pub shutdown: Shutdown,
    /// Tells wall time.
    pub clock: Arc<dyn Clock>,
    /// The agent's own token, in place of `token_file`.
    pub token: Option<Arc<dyn TokenSource>>,
    /// Sockets that a supervisor has opened.
    pub passed: Passed,
}

/// A bound agent: its addresses are known, and nothing is served before [`Bound::serve`].
pub struct Bound {
    /// Where workloads connect.
    pub socket: PathBuf,
    /// Where `/livez`, `/readyz` and `/metrics` are.
    pub admin: SocketAddr,
    /// Ends the agent.
    pub shutdown: Shutdown,
    listener: UnixListener,
    placed: BoundSocket,
    admin_server: AdminServer,
    attestor: Attestor,
    limits: Limits,
    metrics: Metrics,
    session: Arc<Session>,
    identities: Identities,
    keepers: Vec<Keeper>,
    pods: Option<WatchedPods>,
    own_pod: Option<String>,
    sds_files: Arc<[FolderRule]>,
    holders: Holders,
    administration: Option<Administration>,
    /// Where a successor asks.
    handover: Option<Placed>,
    /// Held until the end, which the process before this one waits for.
    _tie: Option<Tie>,
    giver: Giver,
}

/// The pods of this node, and whom they come from.
struct WatchedPods {
    settings: pods::config::PodsSettings,
    source: pods::source::Connected,
    known: Arc<NodePods>,
}

/// The socket for administrators.
struct Administration {
    service: AgentAdmin,
    listener: UnixListener,
    placed: BoundSocket,
}

/// Why the agent does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// See [`ConfigError`].
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The source of this node's pods can't be set up.
    #[error("pods: {0}")]
    Pods(#[from] ConnectError),
    /// The folder of the agent's own SVID.
    #[error("external.state_dir: {0}")]
    State(#[from] external::StateError),
    /// See [`SocketError`].
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The system does not let the socket be watched.
    #[error("the socket can't be watched for connections: {0}")]
    Accept(#[source] io::Error),
    /// The admin port can't be bound.
    #[error("admin_listen: {0}")]
    Admin(#[source] io::Error),
    /// See [`HandoverError`].
    #[error("handover: {0}")]
    Handover(#[from] HandoverError),
}

impl Parts {
    /// The parts of a real agent.
    pub fn new(shutdown: Shutdown) -> Self {
        Self {
            shutdown,
            clock: Arc::new(SystemClock),
            token: None,
            passed: Passed::default(),
        }
    }
}

/// Binds the socket and the admin port. The CA need not be there.
pub async fn build(config: Config, parts: Parts) -> Result<Bound, StartError> {
    let settings: Settings = config.settings()?;
    limits::check(&settings);
    crypto::install_default();
    let metrics = Metrics::default();
    let mut registry = Registry::default();
    metrics.register(&mut registry);
    process::register(&mut registry);
    let readiness = Readiness::new();
    let credential = match (&settings.external, parts.token) {
        (Some(external), _) => Credential::External(Arc::new(external.open()?)),
        (None, Some(token)) => Credential::Token(token),
        (None, None) => Credential::Token(Arc::new(FileToken(settings.token_file.clone()))),
    };
    let session_config = SessionConfig {
        trust_domain: settings.trust_domain.clone(),
        addresses: settings.addresses.clone(),
        first_trust: settings.first_trust.clone(),
        cluster: settings.cluster.clone(),
        knows_containers: settings.pods.is_some(),
    };
    let pods = match settings.pods.clone() {
        Some(settings) => Some(WatchedPods {
            source: settings.source.connect().await?,
            known: Arc::new(settings.source.inventory()),
            settings,
        }),
        None => None,
    };
    // The agent needs no identity of its own account.
    let own_pod = match &credential {
        Credential::Token(source) => source.token().ok().and_then(|token| pod_named_by(&token)),
        Credential::External(_) => None,
    };
    let session = Session::new(
        session_config,
        credential,
        Arc::clone(&parts.clock),
        metrics.clone(),
        readiness.part("ca"),
    );
    let manager = SecretManager::new(
        Arc::clone(&session) as Arc<dyn Ca>,
        Arc::clone(&parts.clock),
        settings.trust_domain.clone(),
        session.bundles(),
        metrics.clone(),
        settings.manager.clone(),
    );
    let giver = Giver {
        trust_domain: settings.trust_domain.clone(),
        session: Arc::clone(&session),
        manager: manager.clone(),
    };
    let mut sources = Sources::find(&settings, &giver, parts.passed).await;
    let identities = Identities {
        manager,
        trust_domain: settings.trust_domain.clone(),
        entries: session.entries(),
        bundles: session.bundles(),
        ttl_seconds: settings.ttl_seconds,
        pods: pods
            .as_ref()
            .map_or_else(Pods::default, |pods| Pods::of(Arc::clone(&pods.known))),
    };
    let keeper = |rule| Keeper {
        rule,
        identities: identities.clone(),
        metrics: metrics.clone(),
    };
    let keepers = settings.files.iter().cloned().map(keeper).collect();
    let registry = Arc::new(registry);
    let admin_server = sources.admin(&settings, readiness, registry).await?;
    let holders = Holders::new(Arc::clone(&parts.clock), metrics.clone());
    let service = AgentAdmin {
        own_uid: nix::unistd::geteuid().as_raw(),
        trust_domain: settings.trust_domain.clone(),
        session: Arc::clone(&session),
        manager: identities.manager.clone(),
        bundles: session.bundles(),
        holders: holders.clone(),
        metrics: metrics.clone(),
        clock: parts.clock,
    };
    let default = || default_admin_socket(&settings.socket);
    let path = settings.admin_socket.clone().unwrap_or_else(default);
    let (kind, named) = (SocketKind::Administrators, settings.admin_socket.is_some());
    let without = "there is no socket for administrators (`citadel agent status`)";
    let administration = sources.for_administrators(kind, &path, named, without)?;
    let administration = administration.map(|(listener, placed)| Administration {
        service,
        listener,
        placed,
    });
    let handover = match &settings.handover {
        Some(HandoverSettings { socket, .. }) => {
            let without = "no other agent can take over from this one";
            sources.for_administrators(SocketKind::Handover, socket, named, without)?
        }
        None => None,
    };
    let (kind, audience) = (SocketKind::Workloads, Audience::Workloads);
    let (listener, placed) = sources.unix(kind, &settings.socket, audience)?;
    // From here on it is this process that serves.
    let tie = sources.confirm().await?;
    Ok(Bound {
        socket: settings.socket,
        admin: admin_server.address(),
        shutdown: parts.shutdown,
        listener,
        placed,
        admin_server,
        attestor: Attestor::new(Proc::new(&settings.proc_root), settings.cgroup_root),
        limits: settings.limits,
        metrics,
        session,
        identities,
        keepers,
        pods,
        own_pod,
        sds_files: settings.sds_files,
        holders,
        administration,
        handover,
        _tie: tie,
        giver,
    })
}

impl Administration {
    async fn serve(self, shutdown: ShutdownSignal) {
        let _placed = self.placed;
        let service = AgentAdminServiceServer::new(self.service);
        let routes = Routes::new(service.max_decoding_message_size(gate::MAX_REQUEST)).prepare();
        let incoming = UnixListenerStream::new(self.listener);
        let until = shutdown.wait_owned();
        grpc::serve(incoming, routes, Http2::default(), until).await;
    }
}

impl Bound {
    /// Serves until the shutdown, or until another agent has taken over.
    pub async fn serve(mut self) -> Result<Afterwards, StartError> {
        let intake = Shutdown::new();
        let waiting = self.wait_for_successor(&intake)?;
        let signal = || self.shutdown.signal();
        tracing::info!(
            socket = %self.socket.display(),
            admin = %self.admin,
            trust_domain = %self.identities.trust_domain,
            pid = std::process::id(),
            "citadel-agent serves"
        );
        supervisor::ready();
        self.shutdown.spawn(Arc::clone(&self.session).run(signal()));
        self.shutdown
            .spawn(self.identities.manager.clone().run(signal()));
        self.shutdown.spawn(self.admin_server.serve(signal()));
        for keeper in self.keepers {
            self.shutdown.spawn(keeper.run(signal()));
        }
        if let Some(pods) = self.pods {
            self.shutdown.spawn(pods.source.run(pods.known, signal()));
            self.shutdown.spawn(self.identities.pods.clone().run(
                pods.settings,
                self.own_pod,
                self.identities.manager.clone(),
                self.metrics.clone(),
                signal(),
            ));
        }
        let (session, holders, until) = (self.session, self.holders.clone(), signal());
        self.shutdown
            .spawn(async move { session.report(holders, until).await });
        if let Some(administration) = self.administration {
            self.shutdown.spawn(administration.serve(signal()));
        }
        let sds = Sds {
            identities: self.identities.clone(),
            files: self.sds_files,
            holders: self.holders.clone(),
            metrics: self.metrics.clone(),
            shutdown: signal(),
        };
        let workload_api = WorkloadApi {
            identities: self.identities.clone(),
            holders: self.holders,
            metrics: self.metrics.clone(),
            shutdown: signal(),
        };
        let until = signal();
        let ends = intake.clone();
        self.shutdown.spawn(async move {
            until.wait().await;
            ends.trigger();
        });
        let incoming = connections::accept(
            self.listener,
            self.attestor,
            &self.limits,
            &self.metrics,
            intake.signal(),
        )
        .map_err(StartError::Accept)?;
        // Once another agent accepts, what this one had accepted is served first. Then its
        // clients are told to connect anew (GOAWAY), and its streams end.
        let ends = self.shutdown.clone();
        let incoming = incoming.chain(futures::stream::poll_fn(move |_| {
            ends.trigger();
            Poll::Ready(None)
        }));
        tokio::select! {
            () = answer(incoming, routes(sds, workload_api), &self.limits, signal()) => {}
            // A client that keeps its connection open must not keep the agent.
            () = async {
                signal().wait().await;
                tokio::time::sleep(DRAIN).await;
            } => {}
        }
        drop(self.placed);
        supervisor::stopping();
        self.shutdown.drain(DRAIN).await;
        let successor = match waiting {
            Some(waiting) if waiting.is_finished() => waiting.await.ok().flatten(),
            _ => None,
        };
        Ok(successor.map_or(Afterwards::End, |tie| {
            Afterwards::HandedOver(Successor(tie))
        }))
    }

    /// Waits for a successor in a task, which ends the intake once there is one.
    fn wait_for_successor(
        &mut self,
        intake: &Shutdown,
    ) -> Result<Option<JoinHandle<Option<Tie>>>, StartError> {
        let Some((listener, placed)) = self.handover.take() else {
            return Ok(None);
        };
        let unix = |kind, listener: &UnixListener, placed: &BoundSocket| -> io::Result<_> {
            Ok(Served {
                kind,
                descriptor: listener.as_fd().try_clone_to_owned()?,
                file: Some(placed.identity().clone()),
            })
        };
        let served = || -> io::Result<_> {
            let mut served = vec![
                unix(SocketKind::Workloads, &self.listener, &self.placed)?,
                unix(SocketKind::Handover, &listener, &placed)?,
                Served {
                    kind: SocketKind::AdminHttp,
                    descriptor: self.admin_server.descriptor()?,
                    file: None,
                },
            ];
            if let Some(own) = &self.administration {
                served.push(unix(
                    SocketKind::Administrators,
                    &own.listener,
                    &own.placed,
                )?);
            }
            Ok(served)
        };
        let predecessor = Predecessor {
            served: served().map_err(StartError::Accept)?,
            listener,
            placed,
            giver: self.giver.clone(),
            own: Own {
                proc: self.attestor.proc.clone(),
                cgroup_root: self.attestor.cgroup_root.clone(),
                pods: self.identities.pods.clone(),
            },
            intake: intake.clone(),
        };
        let until = self.shutdown.signal();
        Ok(Some(self.shutdown.spawn(predecessor.run(until))))
    }
}

/// Both services, and what tells of them.
fn routes(sds: Sds, workload_api: WorkloadApi) -> Routes {
    let mut routes =
        Routes::new(grpc::Served(SdsService::new(sds))).add_service(grpc::Served(workload_api));
    if let Some(service) = reflection::service() {
        routes = routes.add_service(service);
    }
    if let Some(service) = reflection::service_v1alpha() {
        routes = routes.add_service(service);
    }
    routes.prepare()
}

/// Within the limits of one connection.
async fn answer(
    incoming: impl Stream<Item = io::Result<Connection>>,
    routes: Routes,
    limits: &Limits,
    until: ShutdownSignal,
) {
    let http2 = Http2 {
        streams: limits.streams_per_connection,
        keepalive: Duration::from_secs(60),
        keepalive_timeout: Duration::from_secs(20),
    };
    grpc::serve(incoming, routes, http2, until.wait_owned()).await;
}
