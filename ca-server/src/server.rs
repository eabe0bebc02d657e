//! Puts the parts together and binds. What is bound serves in `serve.rs`.

mod serve;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use citadel_identity::{TrustDomain, bundle::BundleSet, crypto, tls::BundleHandle};
use citadel_kubernetes::{Cluster, ClusterConfig, Inventory, inventory::Remember};
use citadel_runtime::{
    Shutdown,
    admin::{AdminServer, Readiness},
    process,
    tls::{self, ConnectionMetrics, ReloadingCertificate},
};
use prometheus_client::registry::Registry;
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use tokio::{net::TcpListener, sync::watch};

use crate::{
    admission::Admission,
    audit::AuditLog,
    authn::Authenticator,
    authz::Policy,
    clusters::{ClusterHandle, ClusterParts, Clusters, SharedKey},
    config::{Config, ConfigArgs, StoreLocation},
    grpc::{AdminAccess, Front, FrontParts, Joining, Refusals},
    holders::Holders,
    issuance::{Issuance, Issuer, Line},
    keys::{CaKeys, KeyError},
    log::{self, Log, LogError, Rollback},
    metrics::Metrics,
    monitor, published,
    reload::Reload,
    serving, settings,
    store::{PostgresOptions, PostgresStore, SqliteOptions, SqliteStore, Store, StoreError},
};

/// Why the server does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The CA key or its certificates.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The log's key, its tree, or its history.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A cluster's credentials.
    #[error(transparent)]
    Cluster(#[from] citadel_kubernetes::cluster::ConnectError),
    /// The audit log of refusals can't be written.
    #[error("log.refusals: {}: {error}; name a file that the CA may write", path.display())]
    AuditLog {
        /// Where it was to be.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A port or a socket.
    #[error("{what}: {error}")]
    Listen {
        /// Which one.
        what: String,
        /// Why not.
        error: std::io::Error,
    },
    /// TLS can't be set up.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// The own serving certificate.
    #[error(transparent)]
    Serving(#[from] serving::ServingError),
    /// Two clusters that tokens could not tell apart.
    #[error(transparent)]
    SharedKey(#[from] SharedKey),
}

/// What a caller of [`build`] may bring instead of the configuration's own.
pub struct Parts {
    /// Ends the server.
    pub shutdown: Shutdown,
    /// Clusters in place of the configured ones: `citadel dev` brings its local issuer.
    pub clusters: Option<Vec<ClusterParts>>,
    /// What to do with a store that is older than what was seen of it.
    pub rollback: Rollback,
    /// Where the configuration came from, if changed registration entries are to be taken over
    /// from there.
    pub source: Option<ConfigArgs>,
}

impl Parts {
    /// The configured clusters.
    pub fn new(shutdown: Shutdown) -> Self {
        Self {
            shutdown,
            clusters: None,
            rollback: Rollback::Refuse,
            source: None,
        }
    }
}

/// A server that is bound and has all it needs; [`Bound::serve`] answers.
pub struct Bound {
    /// Where gRPC listens, with the real port.
    pub grpc: SocketAddr,
    /// Where the log is served over HTTPS, if it is.
    pub public_address: Option<SocketAddr>,
    /// Where `/livez`, `/readyz` and `/metrics` are.
    pub admin: SocketAddr,
    /// Ends it.
    pub shutdown: Shutdown,
    /// The trust bundle as it is now.
    pub bundles: Arc<BundleSet>,
    listener: TcpListener,
    admin_server: AdminServer,
    readiness: Readiness,
    admin_socket: Option<PathBuf>,
    front: Front,
    access: AdminAccess,
    public: Option<TcpListener>,
    public_hashes: bool,
    istio_default_ttl: Duration,
    certificate: Arc<ReloadingCertificate>,
    trust_domain: TrustDomain,
    client_bundles: BundleHandle,
    connection_metrics: ConnectionMetrics,
    limits: settings::ServerLimits,
    log: Arc<Log>,
    joining: Arc<Joining>,
}

/// Binds and prepares everything; nothing is answered yet.
///
/// # Errors
/// [`StartError`], which says what to change.
pub async fn build(config: Config, parts: Parts) -> Result<Bound, StartError> {
    crypto::install_default();
    let shutdown = parts.shutdown;
    let now = OffsetDateTime::now_utc();
    let keys = CaKeys::load_or_create(&config, now)?;
    let store = open_store(&config).await?;
    store
        .bind_issuer(
            keys.issuer.subject_key_id(),
            config.ca.replaces_key.as_deref(),
        )
        .await?;

    let directory = config.data_dir.clone();
    let log = Log::open(
        store.clone(),
        directory,
        &config.trust_domain,
        parts.rollback,
    )
    .await?;

    let readiness = Readiness::new();
    let mut registry = Registry::default();
    process::register(&mut registry);
    let metrics = Arc::new(Metrics::register(&mut registry));
    let connection_metrics = ConnectionMetrics::default();
    connection_metrics.register(&mut registry, "citadel_ca");
    metrics.ca_expiries(keys.certificates());

    let clusters = match parts.clusters {
        Some(parts) => Clusters::new(parts.into_iter().map(ClusterHandle::new).collect()),
        None => connect_clusters(&config, &shutdown).await?,
    };
    let clusters = Arc::new(clusters);
    let configmap = settings::bundle_configmap(&config);
    if let Some(configmap) = &configmap {
        published::check(&clusters, configmap, &log, parts.rollback).await?;
    }
    let registered = settings::registered(&config);
    let policy_revision = registered.revision;
    let policy = Policy::new(settings::policy(&config), registered, clusters.clone());
    let policy = Arc::new(policy);
    let in_force = log::InForce {
        issuer_key_id: keys.issuer.subject_key_id(),
        issuer_certificate: keys.issuer.certificate(),
        policy_revision,
    };
    let mut starting = vec![log::server_started(&config.digest)];
    starting.extend(log::changes(store.as_ref(), in_force).await?);
    store.append(starting).await?;

    let trust_domain = config.trust_domain.clone();
    let set = BundleSet::from(keys.bundle.clone());
    let roots: Vec<CertificateDer<'static>> = keys.bundle.authorities.clone();
    let root_sha256 = roots.first().map_or([0; 32], |root| crypto::sha256(root));
    let (bundle_sender, bundles) = watch::channel(Arc::new(set.clone()));
    let client_bundles = BundleHandle::new(set);

    let limits = settings::ServerLimits::from(&config);
    let issuer = Arc::new(Issuer::new(
        keys.issuer.clone(),
        keys.signer.clone(),
        trust_domain,
        settings::lint_max_lifetime(&config),
    ));
    let line = Line {
        issuer: issuer.clone(),
        store: store.clone(),
        shortest: config.lifetimes.min.get(),
    };
    let issuance = Arc::new(Issuance::new(policy.clone(), line, metrics.clone()));
    let authenticator = Arc::new(
        Authenticator::new(
            clusters.clone(),
            policy.clone(),
            config.audiences.clone(),
            store.clone(),
            bundles.clone(),
            issuer.key_id().to_vec(),
        )
        .with_x509pop(config.external.x509pop.clone()),
    );

    let (listener, grpc) = bind("listen", config.listen).await?;
    let (public, public_address) = match config.public_listen {
        Some(address) => {
            let (listener, address) = bind("public_listen", address).await?;
            (Some(listener), Some(address))
        }
        None => (None, None),
    };

    let certificate = Arc::new(ReloadingCertificate::empty());
    let renew_in = serving::renew(&issuance, &roots, &certificate, grpc).await?;
    shutdown.spawn(serving::keep_renewed(
        issuance.clone(),
        roots,
        certificate.clone(),
        grpc,
        renew_in,
        shutdown.signal(),
    ));
    shutdown.spawn(log.clone().run(shutdown.signal()));
    shutdown.spawn(
        log.clone()
            .retain(config.log.retention.get(), shutdown.signal()),
    );
    let admission = Admission::new(limits.admission);
    let holders = Arc::new(Holders::default());
    shutdown.spawn(monitor::run(monitor::Monitor {
        clusters: clusters.clone(),
        store: store.clone(),
        admission: admission.clone(),
        metrics: metrics.clone(),
        readiness: readiness.clone(),
        holders: holders.clone(),
        trust_domain: config.trust_domain.clone(),
        bundle_sender,
        shutdown: shutdown.signal(),
    }));
    if let Some(source) = parts.source {
        let reload = Reload {
            source,
            fixed_digest: config.fixed_digest.clone(),
            policy,
            store: store.clone(),
            metrics: metrics.clone(),
        };
        shutdown.spawn(reload.run(shutdown.signal()));
    }
    if let Some(configmap) = configmap {
        shutdown.spawn(published::run(
            clusters.clone(),
            configmap,
            bundles.clone(),
            log.clone(),
            shutdown.signal(),
        ));
    }
    monitor::first_keys(&clusters).await;
    if let Some(shared) = clusters.shared_keys().into_iter().next() {
        return Err(StartError::SharedKey(shared));
    }

    let admin_server =
        AdminServer::bind(config.admin_listen, readiness.clone(), Arc::new(registry))
            .await
            .map_err(|error| StartError::Listen {
                what: "admin_listen".into(),
                error,
            })?;
    let audit = match &config.log.refusals {
        Some(path) => Some(AuditLog::open(path).map_err(|error| StartError::AuditLog {
            path: path.clone(),
            error,
        })?),
        None => None,
    };
    let front = Front::new(FrontParts {
        authenticator,
        issuance,
        admission,
        refusals: Arc::new(Refusals::new(metrics.clone(), audit)),
        metrics,
        bundles: bundles.clone(),
        holders,
        shutdown: shutdown.signal(),
    });
    let bundles = bundles.borrow().clone();
    let joining = Arc::new(settings::joining(&config, grpc.port(), &root_sha256));
    Ok(Bound {
        grpc,
        admin: admin_server.address(),
        shutdown,
        bundles,
        listener,
        admin_server,
        readiness,
        admin_socket: config.admin_socket.clone(),
        front,
        access: settings::admin_access(&config),
        public,
        public_address,
        public_hashes: config.log.public_hashes,
        istio_default_ttl: config.lifetimes.istio_default.get(),
        certificate,
        trust_domain: config.trust_domain,
        client_bundles,
        connection_metrics,
        limits,
        log,
        joining,
    })
}

async fn bind(what: &str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |error| StartError::Listen {
        what: what.to_owned(),
        error,
    };
    let listener = tls::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

async fn open_store(config: &Config) -> Result<Arc<dyn Store>, StartError> {
    Ok(match &config.store {
        StoreLocation::Sqlite(path) => Arc::new(SqliteStore::open(SqliteOptions::new(path)).await?),
        StoreLocation::Postgres(options) => {
            let mut options = PostgresOptions::clone(options);
            // What is tried again has to be answered before the client is told otherwise.
            options.deadline = (config.limits.request_deadline.get() / 2)
                .clamp(Duration::from_millis(500), Duration::from_secs(30));
            Arc::new(PostgresStore::open(options).await?)
        }
    })
}

async fn connect_clusters(config: &Config, shutdown: &Shutdown) -> Result<Clusters, StartError> {
    let mut handles = Vec::with_capacity(config.clusters.len());
    for cluster in &config.clusters {
        let mut options = ClusterConfig::new(cluster.name.clone(), cluster.kubeconfig.clone());
        options.deadline = cluster.api_deadline.get();
        let api = Cluster::connect(options).await?;
        let inventory = Arc::new(Inventory::new(Remember::default()));
        shutdown.spawn(
            api.clone()
                .run_watches(inventory.clone(), shutdown.signal().wait_owned()),
        );
        handles.push(ClusterHandle::new(settings::cluster_parts(
            cluster, api, inventory,
        )));
    }
    Ok(Clusters::new(handles))
}
