-- The index over the log: derived from it outside the commits, and rebuilt from it at
-- will. What it says is what the entries say.

-- How far it reaches: every entry below `indexed` is in the tables below. Who adds to
-- the index holds this row's lock: one server at a time.
CREATE TABLE index_source (
    singleton  smallint PRIMARY KEY CHECK (singleton = 0),
    indexed    bigint NOT NULL DEFAULT 0,
    -- Goes up when the index is emptied: ids of subjects from before mean nothing.
    generation bigint NOT NULL DEFAULT 0,
    -- Of what is derived. A program of another version leaves the index alone, or
    -- makes it anew when its own is higher. 0: made by nobody yet.
    version    integer NOT NULL DEFAULT 0
) WITH (fillfactor = 10);

INSERT INTO index_source (singleton) VALUES (0);

-- Whose certificates: one row for all renewals of one workload. '' is "unknown". Texts
-- are cut after 256 characters (an index takes no longer ones), NUL is stored as U+FFFD;
-- the entries have them whole.
CREATE TABLE index_subjects (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- First 16 bytes of the SHA-256 over all other columns.
    digest        bytea NOT NULL UNIQUE,
    trust_domain  text COLLATE "C" NOT NULL,
    spiffe_id     text COLLATE "C" NOT NULL,
    -- citadel.log.v1.CertificateUse
    certificate_use integer NOT NULL,
    cluster       text COLLATE "C" NOT NULL,
    namespace     text COLLATE "C" NOT NULL,
    account       text COLLATE "C" NOT NULL,
    account_uid   text COLLATE "C" NOT NULL,
    pod           text COLLATE "C" NOT NULL,
    pod_uid       text COLLATE "C" NOT NULL,
    node          text COLLATE "C" NOT NULL,
    node_uid      text COLLATE "C" NOT NULL,
    issuer_key_id bytea NOT NULL
);
CREATE INDEX index_subjects_by_spiffe_id ON index_subjects (spiffe_id);
CREATE INDEX index_subjects_by_pod ON index_subjects (pod_uid);
CREATE INDEX index_subjects_by_node ON index_subjects (node);
CREATE INDEX index_subjects_by_node_uid ON index_subjects (node_uid);
CREATE INDEX index_subjects_by_account ON index_subjects (namespace, account);

-- Both tables are keyed by epoch first (log index / 65,536): new rows then fall into
-- a few hundred pages that stay in the cache, however long the log is, and a lookup
-- costs one seek an epoch.
CREATE TABLE index_issued (
    epoch      bigint NOT NULL,
    subject    bigint NOT NULL,
    idx        bigint NOT NULL,
    -- Seconds since the epoch, as in the certificate.
    not_before bigint NOT NULL,
    not_after  bigint NOT NULL,
    PRIMARY KEY (epoch, subject, idx) INCLUDE (not_before, not_after)
);

CREATE TABLE index_keys (
    epoch bigint NOT NULL,
    -- First 8 bytes of the key's SHA-256, big-endian; the entry has the rest.
    spki  bigint NOT NULL,
    idx   bigint NOT NULL,
    PRIMARY KEY (epoch, spki, idx)
);

-- Bounds over the entries of an epoch: a query skips those that can't match.
CREATE TABLE index_epochs (
    epoch          bigint PRIMARY KEY,
    -- Time of the entries, milliseconds.
    min_time_ms    bigint NOT NULL,
    max_time_ms    bigint NOT NULL,
    -- Validity of the certificates, seconds; NULL while there is none.
    min_not_before bigint,
    min_not_after  bigint,
    max_not_after  bigint
);

-- For people with a SQL shell.
CREATE VIEW certificates AS
SELECT i.idx, s.trust_domain, s.spiffe_id, s.certificate_use, s.cluster, s.namespace,
       s.account, s.account_uid, s.pod, s.pod_uid, s.node, s.node_uid,
       encode(s.issuer_key_id, 'hex') AS issuer_key_id,
       i.not_before, i.not_after
FROM index_issued i JOIN index_subjects s ON s.id = i.subject;
