//! Nodes outside Kubernetes and the tokens that they join with: what all servers of one log
//! must agree on. A change and the entry of the log that records it are one transaction.

/// Tokens that may wait to be used at once.
const MAX_OPEN_TOKENS: i64 = 10_000;

/// Nodes that are known at once, evicted ones too.
const MAX_NODES: i64 = 100_000;

/// How long a token is kept for people to look at once it can't be used any more.
const KEPT_MS: i64 = 7 * 24 * 3600 * 1000;

/// Rows of one answer at most.
pub(super) const MAX_ROWS: i64 = 10_000;

/// A join token, without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinToken {
    /// Names it: 16 random bytes.
    pub id: Vec<u8>,
    /// SHA-256 of its secret.
    pub secret_sha256: Vec<u8>,
    /// The node that it admits.
    pub node: String,
    /// When it was made, milliseconds since the epoch.
    pub created_ms: i64,
    /// From when on it can't be used.
    pub expires_ms: i64,
    /// Who made it.
    pub created_by: String,
    /// Whom it admitted.
    pub used: Option<UsedBy>,
    /// When it was revoked.
    pub revoked_ms: Option<i64>,
}

/// Whom a token admitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsedBy {
    /// When, milliseconds since the epoch.
    pub at_ms: i64,
    /// SHA-256 of the key (`SubjectPublicKeyInfo`).
    pub spki_sha256: Vec<u8>,
    /// The UID that the node got.
    pub uid: String,
}

/// A node outside Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalNode {
    /// Its name.
    pub name: String,
    /// Another one after each join; empty for a name that was evicted before it joined.
    pub uid: String,
    /// `citadel.log.v1.AuthenticationMethod`.
    pub method: i64,
    /// When it joined, milliseconds since the epoch.
    pub attested_ms: i64,
    /// When it was evicted; `None` while it is admitted.
    pub evicted_ms: Option<i64>,
}

/// One change, all of it or nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeChange {
    /// A new token; not for a node that is evicted, nor beyond the bound of open ones. Takes
    /// away those that ended long ago.
    AddToken(JoinToken),
    /// Ends a token that was not used.
    RevokeToken {
        /// The token.
        id: Vec<u8>,
        /// Now.
        at_ms: i64,
    },
    /// Uses a token, which must be unused, unexpired and not revoked, for its node, which must
    /// not be evicted.
    Join {
        /// The token.
        id: Vec<u8>,
        /// SHA-256 of the key that it admits.
        spki_sha256: Vec<u8>,
        /// What the node is known by from now on.
        uid: String,
        /// `citadel.log.v1.AuthenticationMethod`.
        method: i64,
        /// Now.
        at_ms: i64,
    },
    /// Lets a node in that proved itself otherwise; not one that is evicted.
    Attest {
        /// The node.
        node: String,
        /// What it is known by from now on.
        uid: String,
        /// `citadel.log.v1.AuthenticationMethod`.
        method: i64,
        /// Now.
        at_ms: i64,
    },
    /// Ends a node and its open tokens, known or not; not one that is evicted already.
    Evict {
        /// The node.
        node: String,
        /// Now.
        at_ms: i64,
    },
    /// Takes an eviction back.
    Admit {
        /// The node.
        node: String,
    },
}

/// A value of a statement.
#[derive(Clone, Copy)]
pub(super) enum Arg<'a> {
    Text(&'a str),
    Bytes(&'a [u8]),
    Int(i64),
}

/// One statement of a change. Both engines read it: numbered parameters, and no word that one
/// of them lacks.
pub(super) struct Step<'a> {
    pub(super) sql: &'static str,
    pub(super) args: Vec<Arg<'a>>,
    /// Whether the change does not apply where no row is touched.
    pub(super) must: bool,
}

/// A row of `join_tokens`, in the order of [`TOKEN_COLUMNS`].
pub(super) type TokenRow = (
    Vec<u8>,
    Vec<u8>,
    String,
    i64,
    i64,
    String,
    Option<i64>,
    Option<Vec<u8>>,
    Option<String>,
    Option<i64>,
);

/// A row of `external_nodes`, in the order of its columns.
pub(super) type NodeRow = (String, String, i64, i64, Option<i64>);

pub(super) const TOKEN: &str = "SELECT id, secret_sha256, node, created_ms, expires_ms, created_by, used_ms, used_spki, \
     used_uid, revoked_ms FROM join_tokens WHERE id = $1";

pub(super) const TOKENS: &str = "SELECT id, secret_sha256, node, created_ms, expires_ms, created_by, used_ms, used_spki, \
     used_uid, revoked_ms FROM join_tokens ORDER BY created_ms DESC, id LIMIT $1";

pub(super) const NODE: &str =
    "SELECT name, uid, method, attested_ms, evicted_ms FROM external_nodes WHERE name = $1";

pub(super) const NODES: &str = "SELECT name, uid, method, attested_ms, evicted_ms FROM external_nodes \
     WHERE name > $1 ORDER BY name LIMIT $2";

// === impl NodeChange ===

impl NodeChange {
    pub(super) fn steps(&self) -> Vec<Step<'_>> {
        use Arg::{Bytes, Int, Text};

        let must = |sql, args| Step {
            sql,
            args,
            must: true,
        };
        let may = |sql, args| Step {
            sql,
            args,
            must: false,
        };
        match self {
            Self::AddToken(token) => vec![
                may(
                    "DELETE FROM join_tokens WHERE expires_ms < $1",
                    vec![Int(token.created_ms.saturating_sub(KEPT_MS))],
                ),
                must(
                    "INSERT INTO join_tokens \
                       (id, secret_sha256, node, created_ms, expires_ms, created_by) \
                     SELECT $1, $2, $3, $4, $5, $6 \
                     WHERE NOT EXISTS (SELECT 1 FROM external_nodes \
                                       WHERE name = $3 AND evicted_ms IS NOT NULL) \
                       AND (SELECT count(*) FROM join_tokens WHERE used_ms IS NULL) < $7",
                    vec![
                        Bytes(&token.id),
                        Bytes(&token.secret_sha256),
                        Text(&token.node),
                        Int(token.created_ms),
                        Int(token.expires_ms),
                        Text(&token.created_by),
                        Int(MAX_OPEN_TOKENS),
                    ],
                ),
            ],
            Self::RevokeToken { id, at_ms } => vec![must(
                "UPDATE join_tokens SET revoked_ms = $2 \
                 WHERE id = $1 AND used_ms IS NULL AND revoked_ms IS NULL",
                vec![Bytes(id), Int(*at_ms)],
            )],
            Self::Join {
                id,
                spki_sha256,
                uid,
                method,
                at_ms,
            } => vec![
                must(
                    "UPDATE join_tokens SET used_ms = $2, used_spki = $3, used_uid = $4 \
                     WHERE id = $1 AND used_ms IS NULL AND revoked_ms IS NULL AND expires_ms > $2",
                    vec![Bytes(id), Int(*at_ms), Bytes(spki_sha256), Text(uid)],
                ),
                // An eviction that came between is seen here: the row is locked.
                must(
                    "INSERT INTO external_nodes (name, uid, method, attested_ms) \
                     SELECT node, $2, $3, $4 FROM join_tokens WHERE id = $1 \
                       AND (SELECT count(*) FROM external_nodes) < $5 \
                     ON CONFLICT (name) DO UPDATE SET uid = excluded.uid, \
                       method = excluded.method, attested_ms = excluded.attested_ms \
                     WHERE external_nodes.evicted_ms IS NULL",
                    vec![
                        Bytes(id),
                        Text(uid),
                        Int(*method),
                        Int(*at_ms),
                        Int(MAX_NODES),
                    ],
                ),
            ],
            Self::Attest {
                node,
                uid,
                method,
                at_ms,
            } => vec![must(
                "INSERT INTO external_nodes (name, uid, method, attested_ms) \
                 SELECT $1, $2, $3, $4 WHERE (SELECT count(*) FROM external_nodes) < $5 \
                 ON CONFLICT (name) DO UPDATE SET uid = excluded.uid, \
                   method = excluded.method, attested_ms = excluded.attested_ms \
                 WHERE external_nodes.evicted_ms IS NULL",
                vec![
                    Text(node),
                    Text(uid),
                    Int(*method),
                    Int(*at_ms),
                    Int(MAX_NODES),
                ],
            )],
            Self::Evict { node, at_ms } => vec![
                must(
                    "INSERT INTO external_nodes (name, uid, method, attested_ms, evicted_ms) \
                     SELECT $1, '', 0, 0, $2 \
                     WHERE (SELECT count(*) FROM external_nodes) < $3 \
                     ON CONFLICT (name) DO UPDATE SET evicted_ms = excluded.evicted_ms \
                     WHERE external_nodes.evicted_ms IS NULL",
                    vec![Text(node), Int(*at_ms), Int(MAX_NODES + 1000)],
                ),
                may(
                    "UPDATE join_tokens SET revoked_ms = $2 \
                     WHERE node = $1 AND used_ms IS NULL AND revoked_ms IS NULL",
                    vec![Text(node), Int(*at_ms)],
                ),
            ],
            // The UID goes too: what was issued before the eviction stays ended.
            Self::Admit { node } => vec![must(
                "DELETE FROM external_nodes WHERE name = $1 AND evicted_ms IS NOT NULL",
                vec![Text(node)],
            )],
        }
    }
}

// === impl JoinToken ===

impl From<TokenRow> for JoinToken {
    fn from(row: TokenRow) -> Self {
        let (id, secret_sha256, node, created_ms, expires_ms, created_by, used, spki, uid, revoked) =
            row;
        Self {
            id,
            secret_sha256,
            node,
            created_ms,
            expires_ms,
            created_by,
            used: used.map(|at_ms| UsedBy {
                at_ms,
                spki_sha256: spki.unwrap_or_default(),
                uid: uid.unwrap_or_default(),
            }),
            revoked_ms: revoked,
        }
    }
}

// === impl ExternalNode ===

impl From<NodeRow> for ExternalNode {
    fn from((name, uid, method, attested_ms, evicted_ms): NodeRow) -> Self {
        Self {
            name,
            uid,
            method,
            attested_ms,
            evicted_ms,
        }
    }
}
