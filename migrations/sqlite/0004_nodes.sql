-- Nodes outside Kubernetes, and the tokens that they join with. Each change is in one
-- transaction with the entry of the log that records it.
CREATE TABLE join_tokens (
    -- 16 random bytes.
    id            BLOB PRIMARY KEY,
    -- Of its secret, which is kept nowhere.
    secret_sha256 BLOB NOT NULL,
    -- Name of the node that it admits.
    node          TEXT NOT NULL,
    -- Milliseconds since the epoch, as all times here.
    created_ms    INTEGER NOT NULL,
    expires_ms    INTEGER NOT NULL,
    created_by    TEXT NOT NULL,
    -- When it was used, and SHA-256 of the SubjectPublicKeyInfo that it admitted: who holds that
    -- key and lost the answer may ask again.
    used_ms       INTEGER,
    used_spki     BLOB,
    -- The UID that the node got.
    used_uid      TEXT,
    revoked_ms    INTEGER
) STRICT;

CREATE TABLE external_nodes (
    name        TEXT PRIMARY KEY,
    -- Another one after each join: what was issued to the one before counts no more. Empty for
    -- a name that was evicted before it joined.
    uid         TEXT NOT NULL,
    -- citadel.log.v1.AuthenticationMethod.
    method      INTEGER NOT NULL,
    attested_ms INTEGER NOT NULL,
    -- NULL while it is admitted.
    evicted_ms  INTEGER
) STRICT;
