//! Starts and stops etcd and kube-apiserver.

use std::net::SocketAddr;
use std::time::Duration;

use ::http::Method;
use serde_json::Value;
use tokio::sync::OnceCell;

use super::certificates::Authority;
use super::client::{Admin, ApiError};
use super::{KeyType, SigningKey, access};
use crate::dir::TestDir;
use crate::parts::part;
use crate::process::{Launch, Process};
use crate::{http, ports, secrets};

/// Two seconds on an idle machine; suites share theirs with other suites.
const START: Duration = Duration::from_secs(90);

/// How an API server is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// `--service-account-issuer`.
    pub issuer: String,
    /// What signs its tokens.
    pub key_type: KeyType,
    /// A key in place of a fresh one of `key_type`.
    pub signing_key: Option<SigningKey>,
    /// Where it listens; else on a port of its own on loopback.
    pub address: Option<SocketAddr>,
    /// Whether it reaches kubelets, and takes their certificates.
    pub kubelets: bool,
    /// Further flags.
    pub flags: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            issuer: "https://kubernetes.default.svc.cluster.local".into(),
            key_type: KeyType::Rsa2048,
            signing_key: None,
            address: None,
            kubelets: false,
            flags: Vec::new(),
        }
    }
}

/// A running API server with an etcd of its own. It has no controllers, no
/// scheduler and no kubelet: what tests put into it stays as it was put.
pub struct ApiServer {
    setup: Setup,
    _etcd: Process,
    server: tokio::sync::Mutex<Process>,
    pub(super) key: SigningKey,
    pub(super) root_pem: String,
    pub(super) authority: Authority,
    pub(super) admin: Admin,
}

/// What kube-apiserver is started with, again too.
struct Setup {
    dir: TestDir,
    options: Options,
    address: SocketAddr,
    etcd: SocketAddr,
}

impl ApiServer {
    /// The suite's common one, which no test stops. Tests keep apart by
    /// namespaces and node names of their own.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<ApiServer> = OnceCell::const_new();
        SHARED.get_or_init(Self::start).await
    }

    /// One of the test's own, which it may stop.
    pub async fn start() -> Self {
        Self::start_with(Options::default()).await
    }

    /// One of the test's own, set up in another way.
    pub async fn start_with(options: Options) -> Self {
        let dir = TestDir::new("kube");
        let authority = Authority::make(&dir);
        let root_pem = authority.root_pem.clone();
        let (certificate, key) = authority.client("kube-apiserver", "system:masters");
        dir.write("kubelet-client.crt", certificate);
        dir.write("kubelet-client.key", key);
        let fresh = || SigningKey::generate(options.key_type);
        let key = options.signing_key.clone().unwrap_or_else(fresh);
        dir.write("sa.key", key.private_pem());
        dir.write("sa.pub", key.public_pem());
        let admin_token = secrets::random_token("API server administrator");
        dir.write(
            "tokens.csv",
            format!("{admin_token},admin,admin,\"system:masters\"\n"),
        );

        let setup = Setup {
            dir,
            address: options.address.unwrap_or_else(ports::address),
            options,
            etcd: ports::address(),
        };
        let kubeconfig = access::kubeconfig(setup.address, &root_pem, &admin_token);
        setup.dir.write("admin.kubeconfig", &kubeconfig);
        let admin = Admin::connect(&kubeconfig).await;
        let etcd = setup.start_etcd().await;
        let server = tokio::sync::Mutex::new(setup.start_server(&admin).await);
        Self {
            setup,
            _etcd: etcd,
            server,
            key,
            root_pem,
            authority,
            admin,
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.setup.address
    }

    /// The issuer that its tokens name.
    pub fn issuer(&self) -> &str {
        &self.setup.options.issuer
    }

    /// The key that its tokens are signed with.
    pub fn signing_key(&self) -> &SigningKey {
        &self.key
    }

    /// The administrator's kubeconfig file, for `kubectl`.
    pub fn admin_kubeconfig(&self) -> std::path::PathBuf {
        self.setup.dir.join("admin.kubeconfig")
    }

    /// A kubeconfig whose user is `name` of `group`, by a client certificate.
    pub(super) fn client_kubeconfig(&self, name: &str, group: &str) -> String {
        let (certificate, key) = self.authority.client(name, group);
        access::kubeconfig_of(
            self.address(),
            &self.root_pem,
            &access::certificate_user(&certificate, &key),
        )
    }

    /// A file that it was started with.
    pub(super) fn file(&self, name: &str) -> std::path::PathBuf {
        self.setup.dir.join(name)
    }

    /// A request as the administrator.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, ApiError> {
        self.admin.send(method, path, body).await
    }

    /// SIGKILL to kube-apiserver; etcd keeps the state.
    pub async fn stop(&self) {
        self.server.lock().await.kill().await;
    }

    /// Starts it again after `stop`, on the same address.
    pub async fn start_again(&self) {
        let mut server = self.server.lock().await;
        assert!(!server.is_running(), "the API server still runs");
        *server = self.setup.start_server(&self.admin).await;
    }

    /// SIGSTOP: connections stay open, and nothing answers on them.
    pub async fn pause(&self) {
        self.server.lock().await.pause();
    }

    /// SIGCONT after `pause`.
    pub async fn resume(&self) {
        self.server.lock().await.resume();
    }
}

impl Setup {
    async fn start_etcd(&self) -> Process {
        let clients = format!("http://{}", self.etcd);
        let peers = format!("http://{}", ports::address());
        let etcd = Launch::new("etcd", part("ETCD"))
            .arg("--data-dir")
            .arg(self.dir.join("etcd"))
            .args([
                "--listen-client-urls",
                &clients,
                "--advertise-client-urls",
                &clients,
            ])
            .args([
                "--listen-peer-urls",
                &peers,
                "--initial-advertise-peer-urls",
                &peers,
            ])
            .args(["--initial-cluster", &format!("default={peers}")])
            // The tests are not about etcd's own durability.
            .arg("--unsafe-no-fsync")
            .start(&self.dir);
        let healthy = async || {
            http::get(self.etcd, "/health")
                .await
                .is_some_and(|answer| answer.status == 200)
        };
        etcd.ready(START, healthy).await;
        etcd
    }

    async fn start_server(&self, admin: &Admin) -> Process {
        let file = |flag: &str, name: &str| format!("{flag}={}", self.dir.join(name).display());
        let mut kubelets = Vec::new();
        if self.options.kubelets {
            kubelets.extend([
                file("--client-ca-file", "root.crt"),
                file("--kubelet-client-certificate", "kubelet-client.crt"),
                file("--kubelet-client-key", "kubelet-client.key"),
                "--kubelet-preferred-address-types=InternalIP".to_owned(),
            ]);
        }
        let server = Launch::new("kube-apiserver", part("KUBE_APISERVER"))
            .arg(format!("--etcd-servers=http://{}", self.etcd))
            .arg(format!("--bind-address={}", self.address.ip()))
            .arg(format!("--secure-port={}", self.address.port()))
            // Without it, the server looks for a default route, and there is none.
            .arg(format!("--advertise-address={}", self.address.ip()))
            .arg("--endpoint-reconciler-type=none")
            .arg("--service-cluster-ip-range=10.96.0.0/16")
            .arg(file("--tls-cert-file", "serving.crt"))
            .arg(file("--tls-private-key-file", "serving.key"))
            .arg(file("--token-auth-file", "tokens.csv"))
            .arg("--authorization-mode=Node,RBAC")
            .arg(format!("--service-account-issuer={}", self.options.issuer))
            .arg(file("--service-account-signing-key-file", "sa.key"))
            .arg(file("--service-account-key-file", "sa.pub"))
            .arg("--feature-gates=PodCertificateRequest=true,ClusterTrustBundle=true,ClusterTrustBundleProjection=true")
            .arg("--runtime-config=certificates.k8s.io/v1beta1=true")
            .args(&kubelets)
            .args(&self.options.flags)
            .start(&self.dir);
        let ready = async || {
            admin
                .send_text(Method::GET, "/readyz", None)
                .await
                .is_ok_and(|answer| answer == "ok")
        };
        server.ready(START, ready).await;
        server
    }
}
