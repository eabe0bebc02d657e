//! The cluster that `citadel dev` stands on when there is no Kubernetes: one node, one
//! agent's pod, and an issuer of service-account-shaped tokens. It exists in this command
//! only, and its key in this process's memory only.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use citadel_identity::key::WorkloadKey;
use citadel_kubernetes::review::Review;
use citadel_kubernetes::{
    AccountRecord, ApiError, ClusterApi, Event, Inventory, NodeRecord, Phase, PodRecord, Published,
};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use time::OffsetDateTime;
use x509_parser::prelude::FromDer as _;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::exit::Failure;
use crate::uid::uid;

/// The cluster's name in the CA's configuration.
pub(crate) const CLUSTER: &str = "dev";
/// The only node: this machine.
pub(crate) const NODE: &str = "localhost";
/// Where the agent lives, and as whom: the CA's default.
const AGENT_NAMESPACE: &str = "citadel-system";
const AGENT_ACCOUNT: &str = "citadel-agent";
const AGENT_POD: &str = "citadel-agent-dev";
/// What the issuer calls itself; a name that can be nobody else's (RFC 2606).
pub(crate) const ISSUER: &str = "https://citadel-dev.invalid";
const AUDIENCE: &str = "citadel";

/// As the kubelet's tokens; the agent's is made anew well before.
const TOKEN_LIFETIME: i64 = 3_600;
/// How often the inventory hears that all is as it was. The CA's default patience is ten
/// minutes.
const STILL_ALIVE: Duration = Duration::from_secs(30);

/// One node, one pod, one account, one key.
pub(crate) struct DevCluster {
    node: NodeRecord,
    pod: PodRecord,
    account: AccountRecord,
    kid: String,
    signing: EncodingKey,
    jwks: Value,
}

impl DevCluster {
    pub(crate) fn new() -> Result<Self, Failure> {
        let failed = |error: &dyn std::fmt::Display| {
            Failure::local(format!("can't make the local issuer's key: {error}"))
        };
        let key = WorkloadKey::generate().map_err(|error| failed(&error))?;
        let spki = key.spki_der();
        let (_, info) = SubjectPublicKeyInfo::from_der(spki).map_err(|error| failed(&error))?;
        // An uncompressed point: 4, then two coordinates of 32 bytes.
        let &[4, ref coordinates @ ..] = &*info.subject_public_key.data else {
            return Err(failed(&"its public key has an unknown form"));
        };
        let (x, y) = coordinates.split_at(coordinates.len() / 2);
        let kid = hex::encode(&citadel_identity::crypto::sha256(spki)[..8]);
        let jwks = json!({ "keys": [{
            "use": "sig", "kty": "EC", "crv": "P-256", "alg": "ES256", "kid": kid,
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
        }] });
        Ok(Self {
            node: NodeRecord {
                uid: uid().into(),
                name: NODE.into(),
            },
            pod: PodRecord {
                uid: uid().into(),
                name: AGENT_POD.into(),
                namespace: AGENT_NAMESPACE.into(),
                account: AGENT_ACCOUNT.into(),
                node: Some(NODE.into()),
                phase: Phase::Running,
                labels: [("app", AGENT_ACCOUNT)].into_iter().collect(),
                containers: [].into(),
                mirror: None,
            },
            account: AccountRecord {
                uid: uid().into(),
                name: AGENT_ACCOUNT.into(),
                namespace: AGENT_NAMESPACE.into(),
            },
            signing: EncodingKey::from_ec_der(key.pkcs8_der()),
            kid,
            jwks,
        })
    }

    /// A token for the agent's pod, as the kubelet would give it.
    pub(crate) fn agent_token(&self, now: OffsetDateTime) -> Result<String, Failure> {
        let now = now.unix_timestamp();
        let claims = json!({
            "iss": ISSUER,
            "aud": [AUDIENCE],
            "sub": format!("system:serviceaccount:{AGENT_NAMESPACE}:{AGENT_ACCOUNT}"),
            "iat": now, "nbf": now, "exp": now + TOKEN_LIFETIME,
            "jti": uid(),
            "kubernetes.io": {
                "namespace": AGENT_NAMESPACE,
                "node": { "name": NODE, "uid": &*self.node.uid },
                "pod": { "name": AGENT_POD, "uid": &*self.pod.uid },
                "serviceaccount": { "name": AGENT_ACCOUNT, "uid": &*self.account.uid },
            },
        });
        let header = Header {
            kid: Some(self.kid.clone()),
            ..Header::new(Algorithm::ES256)
        };
        jsonwebtoken::encode(&header, &claims, &self.signing)
            .map_err(|error| Failure::local(format!("can't sign the agent's token: {error}")))
    }

    /// Shows the CA what lives here, and keeps telling it that this is so. Ends only with
    /// the task that runs it.
    pub(crate) async fn keep_alive(self: Arc<Self>, inventory: Arc<Inventory>) {
        self.show(&inventory);
        loop {
            tokio::time::sleep(STILL_ALIVE).await;
            let now = Instant::now();
            inventory.apply_pod(Event::Bookmark, now);
            inventory.apply_account(Event::Bookmark, now);
            inventory.apply_node(Event::Bookmark, now);
        }
    }

    /// The whole of the cluster.
    pub(crate) fn show(&self, inventory: &Inventory) {
        let now = Instant::now();
        inventory.load_nodes(vec![self.node.clone()], now);
        inventory.load_accounts(vec![self.account.clone()], now);
        inventory.load_pods(vec![self.pod.clone()], now);
    }
}

/// The agent's account, as the CA's configuration names it.
pub(crate) fn agent_account() -> String {
    format!("{AGENT_NAMESPACE}/{AGENT_ACCOUNT}")
}

/// Shows nothing of the key.
impl std::fmt::Debug for DevCluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DevCluster")
            .field("kid", &self.kid)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl ClusterApi for DevCluster {
    async fn get_pod(&self, namespace: &str, name: &str) -> Result<Option<PodRecord>, ApiError> {
        let is_ours = (namespace, name) == (AGENT_NAMESPACE, AGENT_POD);
        Ok(is_ours.then(|| self.pod.clone()))
    }

    async fn get_account(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<AccountRecord>, ApiError> {
        let is_ours = (namespace, name) == (AGENT_NAMESPACE, AGENT_ACCOUNT);
        Ok(is_ours.then(|| self.account.clone()))
    }

    async fn get_node(&self, name: &str) -> Result<Option<NodeRecord>, ApiError> {
        Ok((name == NODE).then(|| self.node.clone()))
    }

    /// Whatever local validation does not recognise, this issuer has not made.
    async fn review_token(&self, _: &str, _: &[String]) -> Result<Review, ApiError> {
        Ok(Review::default())
    }

    async fn fetch_jwks(&self) -> Result<String, ApiError> {
        Ok(self.jwks.to_string())
    }

    async fn fetch_issuer(&self) -> Result<String, ApiError> {
        Ok(ISSUER.to_owned())
    }

    async fn probe(&self) -> Result<(), ApiError> {
        Ok(())
    }

    async fn publish(&self, _: &str, _: &str, _: &Published) -> Result<(), ApiError> {
        Err(ApiError::Denied {
            status: 404,
            hint: "`citadel dev` has no ConfigMaps".into(),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use citadel_kubernetes::Lookup;
    use jsonwebtoken::{DecodingKey, Validation};

    use super::*;

    fn decode(token: &str, by: &DevCluster) -> Result<Value, jsonwebtoken::errors::Error> {
        let jwk = &by.jwks["keys"][0];
        let part = |name: &str| jwk[name].as_str().unwrap();
        let key = DecodingKey::from_ec_components(part("x"), part("y")).unwrap();
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_audience(&[AUDIENCE]);
        validation.set_issuer(&[ISSUER]);
        jsonwebtoken::decode::<Value>(token, &key, &validation).map(|token| token.claims)
    }

    #[test]
    fn the_agent_s_token_is_bound_to_its_pod_and_verifies_with_the_jwks_alone() {
        let cluster = DevCluster::new().unwrap();
        let token = cluster.agent_token(OffsetDateTime::now_utc()).unwrap();
        let claims = decode(&token, &cluster).unwrap();
        let bound = &claims["kubernetes.io"];
        assert_eq!(bound["pod"]["uid"], *cluster.pod.uid);
        assert_eq!(bound["node"]["uid"], *cluster.node.uid);
        assert_eq!(bound["serviceaccount"]["uid"], *cluster.account.uid);
        assert_eq!(
            claims["sub"],
            "system:serviceaccount:citadel-system:citadel-agent"
        );
        let other = DevCluster::new().unwrap();
        decode(&token, &other).unwrap_err();
    }

    #[test]
    fn the_inventory_shows_what_the_token_names() {
        let cluster = DevCluster::new().unwrap();
        let inventory = Inventory::default();
        cluster.show(&inventory);
        assert!(matches!(inventory.pod(&cluster.pod.uid), Lookup::Live(_)));
        assert_eq!(inventory.pods_on_node(NODE).len(), 1);
        assert!(inventory.account(AGENT_NAMESPACE, AGENT_ACCOUNT).is_some());
        assert!(inventory.node(NODE).is_some());
        assert!(inventory.staleness(Instant::now()) < Duration::from_secs(60));
    }

    #[tokio::test(start_paused = true)]
    async fn the_inventory_never_gets_old() {
        let cluster = Arc::new(DevCluster::new().unwrap());
        let inventory = Arc::new(Inventory::default());
        let task = tokio::spawn(cluster.keep_alive(Arc::clone(&inventory)));
        tokio::time::sleep(STILL_ALIVE * 3).await;
        assert!(inventory.staleness(Instant::now()) < Duration::from_secs(60));
        task.abort();
    }
}
