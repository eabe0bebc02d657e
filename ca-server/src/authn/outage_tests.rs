//! Tokens of several clusters against keys that are there, late or away.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use citadel_identity::bundle::BundleSet;
use citadel_kubernetes::{AccountRecord, Inventory, NodeRecord, Phase, PodRecord, records::Labels};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::KeyPair;
use serde_json::json;

use super::*;
use crate::{
    authz::Registered,
    clusters::{ClusterParts, Mode},
    store::{SqliteOptions, SqliteStore},
    testing::{FakeApi, policy_options},
};

const ISSUER: &str = "https://kubernetes.default.svc";

/// A cluster with one pod, `web-1` of `shop/web` on `n1`, and a key of its own.
struct TestCluster {
    name: &'static str,
    key: KeyPair,
    api: Arc<FakeApi>,
    inventory: Arc<Inventory>,
}

impl TestCluster {
    fn new(name: &'static str) -> Self {
        let inventory = Inventory::default();
        let now = tokio::time::Instant::now().into_std();
        inventory.load_pods(
            vec![PodRecord {
                uid: "pod-uid".into(),
                name: "web-1".into(),
                namespace: "shop".into(),
                account: "web".into(),
                node: Some("n1".into()),
                phase: Phase::Running,
                labels: Labels::default(),
                containers: [].into(),
                mirror: None,
            }],
            now,
        );
        let account = AccountRecord {
            uid: "account-uid".into(),
            name: "web".into(),
            namespace: "shop".into(),
        };
        inventory.load_accounts(vec![account], now);
        let node = NodeRecord {
            uid: "node-uid".into(),
            name: "n1".into(),
        };
        inventory.load_nodes(vec![node], now);
        Self {
            name,
            key: KeyPair::generate().unwrap(),
            api: Arc::default(),
            inventory: Arc::new(inventory),
        }
    }

    /// Its API server answers from now on.
    fn comes_up(&self) {
        let point = self.key.public_key_raw();
        let (x, y) = point[1..].split_at(32);
        let jwks = json!({ "keys": [{
            "kty": "EC", "crv": "P-256", "kid": self.name,
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
        }] });
        let mut state = self.api.state.lock().unwrap();
        state.jwks = Some(jwks.to_string());
        state.issuer = Some(ISSUER.into());
    }

    fn token(&self, node: &serde_json::Value) -> BearerToken {
        self.token_of(ISSUER, self.name, node)
    }

    fn token_of(&self, issuer: &str, kid: &str, node: &serde_json::Value) -> BearerToken {
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let claims = json!({
            "iss": issuer, "aud": ["citadel"], "sub": "system:serviceaccount:shop:web",
            "exp": now + 600,
            "kubernetes.io": {
                "namespace": "shop", "node": node,
                "pod": { "name": "web-1", "uid": "pod-uid" },
                "serviceaccount": { "name": "web", "uid": "account-uid" },
            },
        });
        let header = Header {
            kid: Some(kid.into()),
            ..Header::new(Algorithm::ES256)
        };
        let key = EncodingKey::from_ec_der(&self.key.serialize_der());
        BearerToken::new(jsonwebtoken::encode(&header, &claims, &key).unwrap())
    }
}

struct Bench {
    authenticator: Authenticator,
    _folder: tempfile::TempDir,
}

impl Bench {
    async fn of(clusters: &[&TestCluster]) -> Self {
        citadel_identity::crypto::install_default();
        let handles = clusters.iter().map(|cluster| {
            ClusterHandle::new(ClusterParts {
                name: cluster.name.into(),
                mode: Mode::Local,
                issuers: Vec::new(),
                api: cluster.api.clone(),
                inventory: cluster.inventory.clone(),
                max_staleness: Duration::from_secs(60),
            })
        });
        let clusters = Arc::new(Clusters::new(handles.collect()));
        let policy = Policy::new(policy_options(), Registered::default(), clusters.clone());
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(SqliteOptions::new(folder.path().join("log.db")))
            .await
            .unwrap();
        let (_, bundles) = tokio::sync::watch::channel(Arc::new(BundleSet::default()));
        Self {
            authenticator: Authenticator::new(
                clusters,
                Arc::new(policy),
                vec!["citadel".into()],
                Arc::new(store),
                bundles,
                Vec::new(),
            ),
            _folder: folder,
        }
    }

    async fn token(&self, token: &BearerToken) -> Result<Caller, AuthnError> {
        let address = ([127, 0, 0, 1], 1).into();
        let now = OffsetDateTime::now_utc();
        self.authenticator.token(token, None, address, now).await
    }
}

fn n1() -> serde_json::Value {
    json!({ "name": "n1", "uid": "node-uid" })
}

#[tokio::test]
async fn one_clusters_outage_stops_no_token_of_another() {
    let (up, down) = (TestCluster::new("up"), TestCluster::new("down"));
    up.comes_up();
    for order in [[&up, &down], [&down, &up]] {
        let bench = Bench::of(&order).await;
        let caller = bench.token(&up.token(&n1())).await.unwrap();
        assert_eq!(caller.subject.unwrap().cluster, "up");
        // Nothing known recognises these, and the silent cluster might.
        for unknown in [
            down.token(&n1()),
            up.token_of("https://elsewhere", "up", &n1()),
        ] {
            let error = bench.token(&unknown).await.unwrap_err();
            assert!(matches!(error, AuthnError::Unavailable(_)), "{error}");
        }
    }
}

#[tokio::test]
async fn an_unknown_key_is_final_once_every_cluster_was_heard() {
    let (one, two) = (TestCluster::new("one"), TestCluster::new("two"));
    one.comes_up();
    let bench = Bench::of(&[&one, &two]).await;
    tokio::time::pause();
    let foreign = one.token_of(ISSUER, "made-up", &n1());
    let error = bench.token(&foreign).await.unwrap_err();
    assert!(matches!(error, AuthnError::Unavailable(_)), "{error}");
    two.comes_up();
    tokio::time::advance(Duration::from_secs(11)).await;
    let caller = bench.token(&two.token(&n1())).await.unwrap();
    assert_eq!(caller.subject.unwrap().cluster, "two");
    tokio::time::advance(Duration::from_secs(11)).await;
    let error = bench.token(&foreign).await.unwrap_err();
    assert!(matches!(error, AuthnError::Rejected(_)), "{error}");
}

#[tokio::test]
async fn keys_are_trusted_as_long_as_configured_and_no_longer() {
    let cluster = TestCluster::new("only");
    cluster.comes_up();
    let bench = Bench::of(&[&cluster]).await;
    tokio::time::pause();
    let token = cluster.token(&n1());
    bench.token(&token).await.unwrap();
    *cluster.api.state.lock().unwrap() = crate::testing::State::default();
    let handle = bench.authenticator.clusters.get("only").unwrap();
    tokio::time::advance(Duration::from_secs(60)).await;
    assert!(handle.keys().is_some());
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(handle.keys().is_none());
    let error = bench.token(&token).await.unwrap_err();
    assert!(matches!(error, AuthnError::Unavailable(_)), "{error}");
}

#[tokio::test]
async fn the_watch_adds_no_claim_to_a_token() {
    let cluster = TestCluster::new("only");
    cluster.comes_up();
    let bench = Bench::of(&[&cluster]).await;
    for (claim, uid) in [
        (n1(), "node-uid"),
        (json!(null), ""),
        // So the API server writes the node of a pod whose Node object is gone.
        (json!({ "name": "n1" }), ""),
    ] {
        let caller = bench.token(&cluster.token(&claim)).await.unwrap();
        let subject = caller.subject.unwrap();
        let node = subject.node.clone().unwrap();
        assert_eq!((node.name.as_str(), node.uid.as_str()), ("n1", uid));
        assert_eq!(subject.claimed_node().is_some(), !uid.is_empty());
        assert_eq!(caller.origin.subject.unwrap(), subject);
    }
}
