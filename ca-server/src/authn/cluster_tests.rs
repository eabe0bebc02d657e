//! Two clusters with keys of their own, or not: whose token it is, and whether what a renewal
//! rests on is alive.

#![allow(clippy::unwrap_used)]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use citadel_identity::bundle::BundleSet;
use citadel_kubernetes::{
    AccountRecord, ApiError, ClusterApi, Inventory, NodeRecord, Phase, PodRecord, Published,
    RefetchOutcome, Review, records::Labels,
};
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::sync::watch;

use super::{Authenticator, AuthnError};
use crate::{
    authz::{Policy, Registered},
    caller::{Authority, BearerToken, Caller, Method, ObjectRef, Origin},
    clusters::{ClusterHandle, ClusterParts, Clusters, Mode},
    store::{SqliteOptions, SqliteStore},
    testing::policy_options,
};

const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
const STALENESS: Duration = Duration::from_secs(600);

/// An API server that has keys and nodes, and nothing else.
#[derive(Default)]
struct Keys(Mutex<Vec<Value>>);

impl Keys {
    fn set(&self, keys: &[Value]) {
        *self.0.lock().unwrap() = keys.to_vec();
    }
}

fn absent<T>() -> Result<T, ApiError> {
    Err(ApiError::Unreachable("there are only keys".into()))
}

#[async_trait]
impl ClusterApi for Keys {
    async fn get_pod(&self, _: &str, _: &str) -> Result<Option<PodRecord>, ApiError> {
        absent()
    }
    async fn get_account(&self, _: &str, _: &str) -> Result<Option<AccountRecord>, ApiError> {
        absent()
    }
    async fn get_node(&self, name: &str) -> Result<Option<NodeRecord>, ApiError> {
        let uid = format!("{name}-uid").into();
        let name = name.into();
        Ok(Some(NodeRecord { uid, name }))
    }
    async fn review_token(&self, _: &str, _: &[String]) -> Result<Review, ApiError> {
        absent()
    }
    async fn fetch_jwks(&self) -> Result<String, ApiError> {
        let keys = self.0.lock().unwrap().clone();
        if keys.is_empty() {
            return absent();
        }
        Ok(json!({ "keys": keys }).to_string())
    }
    async fn fetch_issuer(&self) -> Result<String, ApiError> {
        Ok(ISSUER.into())
    }
    async fn probe(&self) -> Result<(), ApiError> {
        absent()
    }
    async fn publish(&self, _: &str, _: &str, _: &Published) -> Result<(), ApiError> {
        absent()
    }
}

/// A P-256 key that signs tokens.
struct Signer(rcgen::KeyPair);

impl Signer {
    fn new() -> Self {
        Self(rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap())
    }

    /// As a JWKS has it, by this name.
    fn jwk(&self, kid: &str) -> Value {
        let point = self.0.public_key_raw();
        let number = |at: std::ops::Range<usize>| URL_SAFE_NO_PAD.encode(&point[at]);
        json!({
            "kty": "EC", "use": "sig", "alg": "ES256", "crv": "P-256", "kid": kid,
            "x": number(1..33), "y": number(33..65),
        })
    }

    /// A token of `shop/web` and its pod `web-1`, which both clusters have.
    fn token(&self, kid: &str) -> BearerToken {
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let object = |name: &str| json!({ "name": name, "uid": format!("{name}-uid") });
        let claims = json!({
            "iss": ISSUER, "sub": "system:serviceaccount:shop:web", "aud": ["citadel"],
            "iat": now, "nbf": now, "exp": now + 3600,
            "kubernetes.io": {
                "namespace": "shop", "serviceaccount": object("web"), "pod": object("web-1"),
            },
        });
        let mut header = jsonwebtoken::Header::new(Algorithm::ES256);
        header.kid = Some(kid.into());
        let key = EncodingKey::from_ec_der(self.0.serialized_der());
        BearerToken::new(jsonwebtoken::encode(&header, &claims, &key).unwrap())
    }
}

fn inventory() -> Arc<Inventory> {
    let inventory = Inventory::default();
    let now = tokio::time::Instant::now().into_std();
    let pod = PodRecord {
        uid: "web-1-uid".into(),
        name: "web-1".into(),
        namespace: "shop".into(),
        account: "web".into(),
        node: Some("n1".into()),
        phase: Phase::Running,
        labels: Labels::default(),
        containers: Arc::from([]),
        mirror: None,
    };
    let account = AccountRecord {
        uid: "web-uid".into(),
        name: "web".into(),
        namespace: "shop".into(),
    };
    let node = NodeRecord {
        uid: "n1-uid".into(),
        name: "n1".into(),
    };
    inventory.load_pods(vec![pod], now);
    inventory.load_accounts(vec![account], now);
    inventory.load_nodes(vec![node], now);
    Arc::new(inventory)
}

struct World {
    authenticator: Authenticator,
    clusters: Arc<Clusters>,
    /// Of `east` and `west`, the API servers.
    apis: [Arc<Keys>; 2],
    _store: tempfile::TempDir,
    _bundles: watch::Sender<Arc<BundleSet>>,
}

impl World {
    /// Clusters `east` and `west` with these keys; time stands still from here on.
    async fn of(east: &[Value], west: &[Value]) -> Self {
        citadel_identity::crypto::install_default();
        let store = tempfile::tempdir().unwrap();
        let options = SqliteOptions::new(store.path().join("test.db"));
        let sqlite = Arc::new(SqliteStore::open(options).await.unwrap());
        // The database works by real time.
        tokio::time::pause();
        let apis = [Arc::new(Keys::default()), Arc::new(Keys::default())];
        let handles = apis.iter().zip(["east", "west"]).map(|(api, name)| {
            ClusterHandle::new(ClusterParts {
                name: name.into(),
                mode: Mode::Local,
                issuers: vec![ISSUER.into()],
                api: api.clone(),
                inventory: inventory(),
                max_staleness: STALENESS,
            })
        });
        let clusters = Arc::new(Clusters::new(handles.collect()));
        let policy = Policy::new(policy_options(), Registered::default(), clusters.clone());
        let (bundles, receiver) = watch::channel(Arc::new(BundleSet::default()));
        let world = Self {
            authenticator: Authenticator::new(
                clusters.clone(),
                Arc::new(policy),
                vec!["citadel".into()],
                sqlite,
                receiver,
                Vec::new(),
            ),
            clusters,
            apis,
            _store: store,
            _bundles: bundles,
        };
        world.keys_are(east, west).await;
        world
    }

    /// Both API servers have these keys from now on, and the CA has fetched them.
    async fn keys_are(&self, east: &[Value], west: &[Value]) {
        for ((api, keys), cluster) in self.apis.iter().zip([east, west]).zip(self.clusters.iter()) {
            api.set(keys);
            if !keys.is_empty() {
                tokio::time::advance(Duration::from_secs(11)).await;
                assert_eq!(cluster.refresh_keys().await, RefetchOutcome::Fresh);
            }
        }
    }

    async fn authenticate(
        &self,
        token: &BearerToken,
        cluster_id: Option<&str>,
    ) -> Result<Caller, AuthnError> {
        let address = "127.0.0.1:1".parse().unwrap();
        let now = OffsetDateTime::now_utc();
        let authenticator = &self.authenticator;
        authenticator.token(token, cluster_id, address, now).await
    }

    /// The cluster whose workload it is.
    async fn cluster_of(&self, token: &BearerToken) -> String {
        let caller = self.authenticate(token, None).await.unwrap();
        caller.subject.unwrap().cluster.clone()
    }

    /// Nobody gets in with it, whatever cluster it is said to be of.
    async fn is_in_doubt(&self, token: &BearerToken, kid: &str) {
        for cluster_id in [None, Some("east"), Some("west")] {
            match self.authenticate(token, cluster_id).await {
                Err(AuthnError::Unavailable(why)) => {
                    assert!(why.contains(&format!("share the key {kid}")), "{why}");
                    assert!(why.contains("east") && why.contains("west"), "{why}");
                }
                other => panic!("{cluster_id:?}: {other:?}"),
            }
        }
    }

    fn shared(&self) -> Vec<String> {
        let shared = self.clusters.shared_keys();
        assert!(
            shared
                .iter()
                .all(|s| s.concerns("east") && s.concerns("west"))
        );
        assert!(!shared.iter().any(|s| s.concerns("north")));
        shared.iter().map(ToString::to_string).collect()
    }
}

#[tokio::test]
async fn the_key_that_verifies_decides_the_cluster() {
    let (one, two) = (Signer::new(), Signer::new());
    let world = World::of(&[one.jwk("a")], &[two.jwk("b")]).await;
    assert_eq!(world.cluster_of(&one.token("a")).await, "east");
    assert_eq!(world.cluster_of(&two.token("b")).await, "west");
    assert_eq!(world.shared(), Vec::<String>::new());
    // A header may only narrow it.
    let wrong = world.authenticate(&two.token("b"), Some("east")).await;
    assert!(matches!(wrong, Err(AuthnError::Rejected(_))), "{wrong:?}");
    // The key of the other cluster under this one's name is not this one's.
    let forged = world.authenticate(&one.token("b"), None).await;
    assert!(matches!(forged, Err(AuthnError::Rejected(_))), "{forged:?}");
}

#[tokio::test]
async fn a_key_that_two_clusters_come_to_share_is_nobodys() {
    let (one, two) = (Signer::new(), Signer::new());
    let (good, other) = (one.token("a"), two.token("b"));
    let (a, b) = (one.jwk("a"), two.jwk("b"));
    let world = World::of(std::slice::from_ref(&a), std::slice::from_ref(&b)).await;
    assert_eq!(world.cluster_of(&good).await, "east");

    // After the start, west lists east's key too: not the first listed wins, nor the last.
    world
        .keys_are(std::slice::from_ref(&a), &[b.clone(), a.clone()])
        .await;
    world.is_in_doubt(&good, "a").await;
    assert_eq!(world.cluster_of(&other).await, "west", "its own key");
    let [shared] = world.shared().try_into().unwrap();
    assert!(shared.contains("clusters east and west share the key a"));

    // The other way round as well.
    world
        .keys_are(&[a.clone(), b.clone()], std::slice::from_ref(&b))
        .await;
    world.is_in_doubt(&other, "b").await;
    assert_eq!(world.cluster_of(&good).await, "east");

    // Parted again, all is well without a restart.
    world
        .keys_are(std::slice::from_ref(&a), std::slice::from_ref(&b))
        .await;
    assert_eq!(world.cluster_of(&good).await, "east");
    assert_eq!(world.cluster_of(&other).await, "west");
    assert_eq!(world.shared(), Vec::<String>::new());
}

#[tokio::test]
async fn another_name_does_not_make_another_key() {
    let (one, two) = (Signer::new(), Signer::new());
    // Whoever holds the key would choose between the clusters by the name.
    let world = World::of(&[one.jwk("a")], &[one.jwk("b"), two.jwk("c")]).await;
    world.is_in_doubt(&one.token("a"), "a").await;
    world.is_in_doubt(&one.token("b"), "b").await;
    assert_eq!(world.cluster_of(&two.token("c")).await, "west");
    assert_eq!(world.shared().len(), 1);

    // Nor is a leading zero another number.
    let mut padded = one.jwk("b");
    let x = URL_SAFE_NO_PAD
        .decode(padded["x"].as_str().unwrap())
        .unwrap();
    padded["x"] = URL_SAFE_NO_PAD.encode([&[0], x.as_slice()].concat()).into();
    world.keys_are(&[one.jwk("a")], &[padded]).await;
    assert_eq!(world.shared().len(), 1);
    world.is_in_doubt(&one.token("a"), "a").await;
}

#[tokio::test]
async fn one_name_for_two_keys_tells_no_cluster() {
    let (one, two) = (Signer::new(), Signer::new());
    let world = World::of(&[one.jwk("1")], &[two.jwk("1")]).await;
    world.is_in_doubt(&one.token("1"), "1").await;
    world.is_in_doubt(&two.token("1"), "1").await;
    assert_eq!(world.shared().len(), 1);
}

#[tokio::test]
async fn keys_that_have_not_arrived_or_are_old_are_compared_as_well_as_can_be() {
    let (one, two) = (Signer::new(), Signer::new());
    let a = one.jwk("a");
    // West does not answer at the start: there is nothing to compare yet.
    let world = World::of(std::slice::from_ref(&a), &[]).await;
    assert_eq!(world.cluster_of(&one.token("a")).await, "east");
    world
        .keys_are(std::slice::from_ref(&a), std::slice::from_ref(&a))
        .await;
    world.is_in_doubt(&one.token("a"), "a").await;

    // West is away again, for longer than its keys are trusted. They are its keys still.
    tokio::time::advance(STALENESS * 2).await;
    let now = tokio::time::Instant::now().into_std();
    for cluster in world.clusters.iter() {
        cluster.inventory().load_pods(Vec::new(), now);
    }
    world.keys_are(&[a.clone(), two.jwk("b")], &[]).await;
    assert_eq!(world.clusters.get("west").unwrap().keys().map(drop), None);
    assert_eq!(world.shared().len(), 1);
}

#[tokio::test]
async fn a_renewal_without_a_pod_rests_on_its_node() {
    let world = World::of(&[Signer::new().jwk("a")], &[Signer::new().jwk("b")]).await;
    let origin = |cluster: &str, uid: &str| Origin {
        method: Method::Jwks,
        subject: None,
        node: Some((
            cluster.into(),
            ObjectRef {
                name: "n1".into(),
                uid: uid.into(),
            },
        )),
        entry_id: Some("/unix/alice#1".into()),
        first_authenticated: OffsetDateTime::now_utc(),
        authority: Authority::Agent,
    };
    let check = async |origin: Origin| world.authenticator.check_origin(origin).await;
    let rests_on = origin("east", "n1-uid");
    assert_eq!(check(rests_on.clone()).await.unwrap(), rests_on);

    for (gone, why) in [
        // Made again by its name.
        (
            origin("east", "n1-other"),
            "node n1 with UID n1-other was deleted and made again",
        ),
        (origin("north", "n1-uid"), "no cluster north"),
    ] {
        let error = check(gone).await.unwrap_err();
        assert!(matches!(error, AuthnError::Rejected(_)), "{error:?}");
        assert!(error.to_string().contains(why), "{error}");
    }
    let west = world.clusters.get("west").unwrap();
    let now = tokio::time::Instant::now().into_std();
    west.inventory().load_nodes(Vec::new(), now);
    let error = check(origin("west", "n1-uid")).await.unwrap_err();
    assert!(matches!(error, AuthnError::Rejected(_)), "{error:?}");

    // What the watches showed too long ago decides nothing.
    tokio::time::advance(STALENESS * 2).await;
    let error = check(origin("east", "n1-uid")).await.unwrap_err();
    assert!(matches!(error, AuthnError::Unavailable(_)), "{error:?}");
}
