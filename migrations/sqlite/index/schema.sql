-- The index over the log, in a database file of its own: derived, never migrated.
-- A file of another `user_version` or of another log is dropped and rebuilt.

-- How far it reaches: every entry below `indexed` is in the tables below.
CREATE TABLE source (
    singleton INTEGER PRIMARY KEY CHECK (singleton = 0),
    log_id    BLOB NOT NULL,
    indexed   INTEGER NOT NULL
) STRICT;

-- Whose certificates: one row for all renewals of one workload. '' is "unknown".
CREATE TABLE subjects (
    id            INTEGER PRIMARY KEY,
    -- First 16 bytes of the SHA-256 over all other columns.
    digest        BLOB NOT NULL UNIQUE,
    trust_domain  TEXT NOT NULL,
    spiffe_id     TEXT NOT NULL,
    -- citadel.log.v1.CertificateUse
    certificate_use INTEGER NOT NULL,
    cluster       TEXT NOT NULL,
    namespace     TEXT NOT NULL,
    account       TEXT NOT NULL,
    account_uid   TEXT NOT NULL,
    pod           TEXT NOT NULL,
    pod_uid       TEXT NOT NULL,
    node          TEXT NOT NULL,
    node_uid      TEXT NOT NULL,
    issuer_key_id BLOB NOT NULL
) STRICT;
CREATE INDEX subjects_by_spiffe_id ON subjects (spiffe_id);
CREATE INDEX subjects_by_pod ON subjects (pod_uid);
CREATE INDEX subjects_by_node ON subjects (node);
CREATE INDEX subjects_by_node_uid ON subjects (node_uid);
CREATE INDEX subjects_by_account ON subjects (namespace, account);

-- Both tables are keyed by epoch first (log index / 65,536): new rows then fall into
-- a few hundred pages that stay in the cache, however long the log is, and a lookup
-- costs one seek an epoch.
CREATE TABLE issued (
    epoch      INTEGER NOT NULL,
    subject    INTEGER NOT NULL,
    idx        INTEGER NOT NULL,
    -- Seconds since the epoch, as in the certificate.
    not_before INTEGER NOT NULL,
    not_after  INTEGER NOT NULL,
    PRIMARY KEY (epoch, subject, idx)
) STRICT, WITHOUT ROWID;

CREATE TABLE keys (
    epoch INTEGER NOT NULL,
    -- First 8 bytes of the key's SHA-256, big-endian; the entry has the rest.
    spki  INTEGER NOT NULL,
    idx   INTEGER NOT NULL,
    PRIMARY KEY (epoch, spki, idx)
) STRICT, WITHOUT ROWID;

-- Bounds over the entries of an epoch: a query skips those that can't match.
CREATE TABLE epochs (
    epoch          INTEGER PRIMARY KEY,
    -- Time of the entries, milliseconds.
    min_time_ms    INTEGER NOT NULL,
    max_time_ms    INTEGER NOT NULL,
    -- Validity of the certificates, seconds; NULL while there is none.
    min_not_before INTEGER,
    min_not_after  INTEGER,
    max_not_after  INTEGER
) STRICT;

-- For people with a SQL shell.
CREATE VIEW certificates AS
SELECT i.idx, s.trust_domain, s.spiffe_id, s.certificate_use, s.cluster, s.namespace,
       s.account, s.account_uid, s.pod, s.pod_uid, s.node, s.node_uid,
       lower(hex(s.issuer_key_id)) AS issuer_key_id,
       i.not_before, i.not_after
FROM issued i JOIN subjects s ON s.id = i.subject;
