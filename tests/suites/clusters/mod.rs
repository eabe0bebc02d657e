//! One CA for two clusters. Both API servers name the same issuer, as most do: only their keys
//! tell their tokens apart.

mod keys;
mod review;
mod shared_key;

use citadel_tests::citadel::CaBuilder;
use citadel_tests::client::Admin;
use citadel_tests::dir::TestDir;
use citadel_tests::kubernetes::{ApiServer, Audit, Options};
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard, OnceCell};

use crate::support::{Scene, Workload};

/// The clusters' API servers.
struct Two {
    east: Side,
    west: Side,
    reviews: Mutex<()>,
}

/// One of them, with the record of the reviews that it was asked for.
struct Side {
    api: ApiServer,
    audit: Audit,
}

impl Two {
    /// The suite's, which no test stops. Tests keep apart by namespaces.
    async fn shared() -> &'static Self {
        static SHARED: OnceCell<Two> = OnceCell::const_new();
        let start = async || {
            let (east, west) = tokio::join!(Side::start(), Side::start());
            assert_eq!(east.api.issuer(), west.api.issuer());
            let reviews = Mutex::new(());
            Two {
                east,
                west,
                reviews,
            }
        };
        SHARED.get_or_init(start).await
    }

    /// Held by whoever counts reviews.
    async fn counting(&self) -> MutexGuard<'_, ()> {
        self.reviews.lock().await
    }

    /// A CA in namespace `home` of both clusters, whose scene is the west. The clusters have
    /// these modes, and identities hold the cluster's name.
    async fn scene(&self, home: &str, east: &str, west: &str) -> Scene<'_> {
        let clusters = [
            cluster("east", &self.east.api, home, east).await,
            cluster("west", &self.west.api, home, west).await,
        ];
        let ca = of(&clusters).start().await;
        let admin = Admin::of(&ca);
        let api = &self.west.api;
        Scene { api, ca, admin }
    }
}

impl Side {
    async fn start() -> Self {
        let audit = Audit::of(&json!({
            "resources": [{ "group": "authentication.k8s.io", "resources": ["tokenreviews"] }],
        }));
        let api = ApiServer::start_with(Options {
            flags: audit.flags(),
            ..Default::default()
        });
        Self {
            api: api.await,
            audit,
        }
    }

    /// How many reviews the CA in namespace `home` has asked for.
    async fn reviews(&self, home: &str) -> usize {
        let group = format!("system:serviceaccounts:{home}");
        let ours = self.api.review("no token", &["citadel"]);
        self.audit.requests_of(&group, ours).await.len()
    }
}

/// A CA of these clusters.
fn of(clusters: &[Value; 2]) -> CaBuilder {
    CaBuilder::with_clusters(TestDir::new("ca"), clusters.to_vec())
        .set("id_template", "/c/{cluster}/ns/{namespace}/sa/{account}")
}

/// A cluster of a CA's configuration, with an account for the CA in namespace `home`.
async fn cluster(name: &str, api: &ApiServer, home: &str, mode: &str) -> Value {
    let access = api.ca_access(home, &TestDir::new(name)).await;
    json!({ "name": name, "kubeconfig": access.kubeconfig, "mode": mode })
}

/// A pod `web-1` of account `web` on a node of its own; equal names in every cluster.
async fn workload(api: &ApiServer, namespace: &str) -> Workload {
    let node = format!("node-{namespace}");
    api.create_node(&node).await;
    let uid = api.create_workload(namespace, "web", "web-1", &node).await;
    Workload {
        namespace: namespace.into(),
        account: "web".into(),
        pod: "web-1".into(),
        node,
        uid,
        token: api.token(namespace, "web", "web-1").await,
    }
}

/// The identity of account `web`.
fn web_id(cluster: &str, namespace: &str) -> String {
    format!("spiffe://example.org/c/{cluster}/ns/{namespace}/sa/web")
}
