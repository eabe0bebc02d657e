-- The log: the truth. A commit writes these two B-trees at their right end and
-- nothing else: no index in random order belongs here.
CREATE TABLE entries (
    -- Position in the log: dense from 0, never reused.
    idx    INTEGER PRIMARY KEY CHECK (idx >= 0),
    -- Serial of the certificate that this entry records, in time order by its
    -- leading milliseconds; NULL for entries of other kinds.
    serial BLOB UNIQUE,
    -- One encoded citadel.log.v1.Entry.
    bytes  BLOB NOT NULL
) STRICT;

CREATE TABLE meta (
    singleton     INTEGER PRIMARY KEY CHECK (singleton = 0),
    -- Names this log, so that an index of another log is not taken for ours.
    log_id        BLOB NOT NULL DEFAULT (randomblob(16)),
    -- Subject key id of the active issuer; NULL until the first bind.
    issuer_key_id BLOB,
    -- Size of the log at the last start or clean stop: it can never be less again.
    known_size    INTEGER NOT NULL DEFAULT 0,
    -- Counts the writes that found out whether a failed disk is back.
    probes        INTEGER NOT NULL DEFAULT 0
) STRICT;

INSERT INTO meta (singleton) VALUES (0);
