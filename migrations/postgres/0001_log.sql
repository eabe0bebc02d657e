-- The log: the truth. A commit writes the right end of these B-trees and one row of
-- `head`, nothing else: no index in random order belongs here.
CREATE TABLE entries (
    -- Position in the log: dense from 0, never reused.
    idx    bigint NOT NULL CONSTRAINT entries_pkey PRIMARY KEY CHECK (idx >= 0),
    -- Serial of the certificate that this entry records, in time order by its
    -- leading milliseconds; NULL for entries of other kinds.
    serial bytea CONSTRAINT entries_serial_key UNIQUE,
    -- One encoded citadel.log.v1.Entry.
    bytes  bytea NOT NULL
);

-- Certificates do not compress: trying costs time, and wins nothing.
ALTER TABLE entries ALTER COLUMN bytes SET STORAGE EXTERNAL;

-- One row. Who appends holds its lock until the commit: that is how several servers
-- number one log without a gap.
CREATE TABLE head (
    singleton     smallint PRIMARY KEY CHECK (singleton = 0),
    -- Entries in the log: the index of the next one.
    size          bigint NOT NULL DEFAULT 0 CHECK (size >= 0),
    -- Names this log, so that another one is not taken for it.
    log_id        bytea NOT NULL DEFAULT uuid_send(gen_random_uuid()),
    -- Subject key id of the active issuer; NULL until the first bind.
    issuer_key_id bytea,
    -- Counts the writes that found out whether a failed store is back.
    probes        bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 10);

INSERT INTO head (singleton) VALUES (0);
