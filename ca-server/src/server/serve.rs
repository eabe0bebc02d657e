//! Serves what was bound, and ends in order.

use std::{future::pending, sync::Arc, time::Duration};

use citadel_identity::tls::ClientVerifier;
use citadel_proto::v1::{
    admin_service_server::AdminServiceServer, agent_service_server::AgentServiceServer,
};
use citadel_runtime::{
    grpc::{self, Http2, Served},
    https, supervisor, tls,
};
use tokio::sync::Semaphore;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;
use tower::Layer as _;

use super::{Bound, StartError};
use crate::{
    grpc::{
        AdminApi, AgentApi, Gate, HealthApi, IstioApi, MAX_BATCH_REQUEST, MAX_SINGLE_REQUEST,
        Services, WorkloadApi,
    },
    public::{self, Public},
    settings,
};

/// How long accepted requests may take once the shutdown has begun.
const DRAIN: Duration = Duration::from_secs(25);

impl Bound {
    /// Serves until the shutdown; then finishes what was accepted and closes the store.
    ///
    /// # Errors
    /// [`StartError`] if a listener fails for good.
    pub async fn serve(self) -> Result<(), StartError> {
        let clients = Arc::new(ClientVerifier::new(self.trust_domain, self.client_bundles));
        if let Some(listener) = self.public {
            let tls = tls::https_config(self.certificate.clone(), clients.clone())?;
            let incoming = tls::incoming(
                listener,
                tls,
                self.limits.connections,
                self.connection_metrics.clone(),
                self.shutdown.signal(),
            );
            let router = public::router(Public {
                front: self.front.clone(),
                access: self.access.clone(),
                log: self.log.clone(),
                open_hashes: self.public_hashes,
                deadline: self.limits.request_deadline,
                reads: Arc::new(Semaphore::new(public::READS)),
            });
            let serving = https::serve(incoming, router, self.shutdown.signal());
            self.shutdown.spawn(serving);
        }
        let tls = tls::server_config(self.certificate.clone(), clients)?;
        let incoming = tls::incoming(
            self.listener,
            tls,
            self.limits.connections,
            self.connection_metrics,
            self.shutdown.signal(),
        );
        let health = HealthServer::new(HealthApi {
            ready: self.readiness.subscribe(),
            shutdown: self.shutdown.signal(),
        });

        let admin_api = || AdminApi {
            front: self.front.clone(),
            access: self.access.clone(),
            log: self.log.clone(),
            joining: self.joining.clone(),
        };
        let istio = IstioApi {
            front: self.front.clone(),
            default_ttl: self.istio_default_ttl,
        };
        let agents = AgentServiceServer::new(AgentApi(self.front.clone()));
        let admin = AdminServiceServer::new(admin_api());
        let routes = Routes::new(health.max_decoding_message_size(MAX_SINGLE_REQUEST))
            .add_service(agents.max_decoding_message_size(MAX_BATCH_REQUEST))
            .add_service(admin.max_decoding_message_size(MAX_SINGLE_REQUEST))
            .prepare();
        let services = Services {
            workloads: Served(WorkloadApi(self.front.clone())),
            istio: Served(istio),
            others: routes,
        };
        let gate = Gate::new(self.front.refusals.clone(), self.limits.request_deadline);
        let http2 = Http2 {
            streams: self.limits.streams_per_connection,
            keepalive: Duration::from_secs(30),
            keepalive_timeout: Duration::from_secs(10),
        };
        let signal = self.shutdown.signal();
        // The listener ends by itself on shutdown, once handshakes in progress are done; then
        // every connection is told to go away and its accepted requests are finished.
        let serving = grpc::serve(incoming, gate.layer(services), http2, pending());
        let serving = self.shutdown.spawn(serving);
        if let Some(path) = &self.admin_socket {
            let listener =
                settings::bind_admin_socket(path).map_err(|error| StartError::Listen {
                    what: format!("admin_socket {}", path.display()),
                    error,
                })?;
            let incoming = UnixListenerStream::new(listener);
            let routes = Routes::new(AdminServiceServer::new(admin_api())).prepare();
            let until = signal.wait_owned();
            self.shutdown
                .spawn(grpc::serve(incoming, routes, Http2::default(), until));
        }
        self.shutdown.spawn(self.admin_server.serve(signal.clone()));
        let public = self.public_address.map(tracing::field::display);
        tracing::info!(grpc = %self.grpc, admin = %self.admin, public, "serving");
        supervisor::ready();

        tokio::select! {
            () = signal.wait() => {}
            _ = serving => tracing::error!("the gRPC listener has ended by itself: shutting down"),
        }
        supervisor::stopping();
        let drained = self.shutdown.drain(DRAIN).await;
        tracing::info!(?drained, "shut down");
        self.log.close().await;
        if let Some(path) = &self.admin_socket {
            let _ = std::fs::remove_file(path);
        }
        Ok(())
    }
}
