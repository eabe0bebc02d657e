-- Nodes outside Kubernetes, and the tokens that they join with. Each change is in one
-- transaction with the entry of the log that records it.
CREATE TABLE join_tokens (
    -- 16 random bytes.
    id            bytea PRIMARY KEY,
    -- Of its secret, which is kept nowhere.
    secret_sha256 bytea NOT NULL,
    -- Name of the node that it admits.
    node          text NOT NULL,
    -- Milliseconds since the epoch, as all times here.
    created_ms    bigint NOT NULL,
    expires_ms    bigint NOT NULL,
    created_by    text NOT NULL,
    -- When it was used, and SHA-256 of the SubjectPublicKeyInfo that it admitted: who holds that
    -- key and lost the answer may ask again.
    used_ms       bigint,
    used_spki     bytea,
    -- The UID that the node got.
    used_uid      text,
    revoked_ms    bigint
);

CREATE TABLE external_nodes (
    name        text PRIMARY KEY,
    -- Another one after each join: what was issued to the one before counts no more. Empty for
    -- a name that was evicted before it joined.
    uid         text NOT NULL,
    -- citadel.log.v1.AuthenticationMethod.
    method      bigint NOT NULL,
    attested_ms bigint NOT NULL,
    -- NULL while it is admitted.
    evicted_ms  bigint
);
