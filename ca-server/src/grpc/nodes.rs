//! Administration of nodes outside Kubernetes: join tokens, eviction. Each change is recorded in
//! the transaction that makes it.

use citadel_identity::{
    TrustDomain,
    join_token::{self, JoinToken},
    template,
};
use citadel_proto::{log::AuthenticationMethod, v1};
use citadel_runtime::client::Address;
use time::{Duration, OffsetDateTime};
use tonic::Status;

use super::admin::store_status;
use crate::{
    caller::{EXTERNAL_CLUSTER, unix_ms},
    config::is_subdomain,
    log::{act_of, enum_name},
    store::{ExternalNode, JoinToken as StoredToken, NodeChange, Store, StoreError},
};

/// How long a token can be used where nothing is said, and at most.
const DEFAULT_TTL: Duration = Duration::minutes(10);
const MAX_TTL: Duration = Duration::days(7);

/// What join tokens tell of this CA.
#[derive(Clone, Debug)]
pub(crate) struct Joining {
    pub(crate) trust_domain: TrustDomain,
    /// SHA-256 of the DER of a root that the CA's serving chain holds.
    pub(crate) root_sha256: [u8; 32],
    /// The CA's own DNS names with its port.
    pub(crate) addresses: Vec<String>,
}

impl Joining {
    pub(super) async fn create(
        &self,
        store: &dyn Store,
        by: &str,
        request: v1::CreateJoinTokenRequest,
    ) -> Result<v1::CreateJoinTokenResponse, Status> {
        let node = self.node(&request.node)?;
        let ttl = match request.ttl_seconds {
            0 => DEFAULT_TTL,
            seconds => Duration::seconds(seconds),
        };
        if ttl < Duration::SECOND || ttl > MAX_TTL {
            return Err(Status::invalid_argument(
                "ttl_seconds: write one second to 7 days, or 0 for 10 minutes",
            ));
        }
        let addresses = if request.ca_addresses.is_empty() {
            self.addresses.clone()
        } else {
            request.ca_addresses
        };
        if addresses.is_empty() {
            return Err(Status::invalid_argument(
                "ca_addresses: give the CA's address as the node reaches it, host:port (it has no \
                 ca.dns_names of which one could be made)",
            ));
        }
        if addresses.len() > join_token::MAX_ADDRESSES {
            return Err(Status::invalid_argument("ca_addresses: give at most 16"));
        }
        for address in &addresses {
            if let Err(error) = address.parse::<Address>() {
                return Err(Status::invalid_argument(format!("ca_addresses: {error}")));
            }
        }
        let now = OffsetDateTime::now_utc();
        let token = JoinToken::generate(
            self.trust_domain.clone(),
            addresses,
            self.root_sha256,
            node.clone(),
        );
        let stored = StoredToken {
            id: token.id.to_vec(),
            secret_sha256: token.secret_sha256().to_vec(),
            node: node.clone(),
            created_ms: unix_ms(now),
            expires_ms: unix_ms(now + ttl),
            created_by: by.to_owned(),
            used: None,
            revoked_ms: None,
        };
        let record = token_record(&stored);
        let details = format!(
            "node {EXTERNAL_CLUSTER}/{node}, token {}, for {} s",
            record.id,
            ttl.whole_seconds()
        );
        let entry = act_of("create-join-token", by, &details);
        let added = store.change_nodes(NodeChange::AddToken(stored), entry);
        applied(added.await, || {
            format!(
                "node {node} is evicted (`citadel node admit` lets it in again), or too many \
                 tokens wait to be used"
            )
        })?;
        let mut response = v1::CreateJoinTokenResponse::default();
        response.token.clone_from(&token.encode());
        response.record = Some(record);
        Ok(response)
    }

    /// The name of a node, as the agents' SPIFFE IDs can have it.
    fn node(&self, name: &str) -> Result<String, Status> {
        let fits = template::agent_id(&self.trust_domain, EXTERNAL_CLUSTER, name).is_ok();
        named(name).filter(|_| fits).ok_or_else(no_name)
    }
}

pub(super) async fn tokens(store: &dyn Store) -> Result<v1::ListJoinTokensResponse, Status> {
    let tokens = store.join_tokens().await;
    let tokens = tokens.map_err(|error| store_status(&error))?;
    Ok(v1::ListJoinTokensResponse {
        tokens: tokens.iter().map(token_record).collect(),
    })
}

pub(super) async fn revoke(store: &dyn Store, by: &str, id: &str) -> Result<(), Status> {
    let mut bytes = [0; join_token::ID_BYTES];
    hex::decode_to_slice(id, &mut bytes)
        .map_err(|_| Status::invalid_argument("id: give it as the list shows it"))?;
    let change = NodeChange::RevokeToken {
        id: bytes.to_vec(),
        at_ms: unix_ms(OffsetDateTime::now_utc()),
    };
    let id = hex::encode(bytes);
    let entry = act_of("revoke-join-token", by, &format!("token {id}"));
    let revoked = store.change_nodes(change, entry);
    applied(revoked.await, || {
        format!("there is no join token {id} that could still be used")
    })
}

pub(super) async fn list(store: &dyn Store) -> Result<v1::ListNodesResponse, Status> {
    let mut nodes: Vec<v1::NodeRecord> = Vec::new();
    loop {
        let after = nodes.last().map(|node| node.node.clone());
        let page = store.external_nodes(&after.unwrap_or_default()).await;
        let page = page.map_err(|error| store_status(&error))?;
        if page.is_empty() {
            return Ok(v1::ListNodesResponse { nodes });
        }
        nodes.extend(page.into_iter().map(node_record));
    }
}

pub(super) async fn evict(store: &dyn Store, by: &str, node: &str) -> Result<(), Status> {
    let node = named(node).ok_or_else(no_name)?;
    let change = NodeChange::Evict {
        node: node.clone(),
        at_ms: unix_ms(OffsetDateTime::now_utc()),
    };
    let details = format!("node {EXTERNAL_CLUSTER}/{node}");
    let evicted = store.change_nodes(change, act_of("evict-node", by, &details));
    applied(evicted.await, || format!("node {node} is evicted already"))
}

pub(super) async fn admit(store: &dyn Store, by: &str, node: &str) -> Result<(), Status> {
    let node = named(node).ok_or_else(no_name)?;
    let details = format!("node {EXTERNAL_CLUSTER}/{node}");
    let change = NodeChange::Admit { node: node.clone() };
    let admitted = store.change_nodes(change, act_of("admit-node", by, &details));
    applied(admitted.await, || format!("node {node} is not evicted"))
}

fn named(name: &str) -> Option<String> {
    is_subdomain(name).then(|| name.to_owned())
}

fn no_name() -> Status {
    Status::invalid_argument("node: write its name, such as vm-1 or vm-1.example.org")
}

/// `why` where the change did not apply.
fn applied<T>(outcome: Result<T, StoreError>, why: impl Fn() -> String) -> Result<(), Status> {
    match outcome {
        Ok(_) => Ok(()),
        Err(StoreError::NotApplied) => Err(Status::failed_precondition(why())),
        Err(error) => Err(store_status(&error)),
    }
}

fn token_record(token: &StoredToken) -> v1::JoinTokenRecord {
    v1::JoinTokenRecord {
        id: hex::encode(&token.id),
        node: token.node.clone(),
        created_ms: token.created_ms,
        expires_ms: token.expires_ms,
        created_by: token.created_by.clone(),
        used_ms: token.used.as_ref().map_or(0, |used| used.at_ms),
        revoked_ms: token.revoked_ms.unwrap_or_default(),
    }
}

fn node_record(node: ExternalNode) -> v1::NodeRecord {
    let method = i32::try_from(node.method).unwrap_or_default();
    let method = AuthenticationMethod::try_from(method).unwrap_or_default();
    let named = enum_name(method.as_str_name(), "AUTHENTICATION_METHOD_");
    v1::NodeRecord {
        node: node.name,
        method: if node.uid.is_empty() {
            String::new()
        } else {
            named
        },
        uid: node.uid,
        attested_ms: node.attested_ms,
        evicted_ms: node.evicted_ms.unwrap_or_default(),
    }
}
