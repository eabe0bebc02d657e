-- The Merkle tree over the log (RFC 6962), in tiles of 256 hashes (C2SP tlog-tiles).
CREATE TABLE tiles (
    -- level * 2^56 + index: a level's tiles lie together, the newest at its end.
    id     bigint PRIMARY KEY,
    -- Up to 256 hashes of 32 bytes; the last tile of a level grows in place.
    hashes bytea NOT NULL
);

-- Hashes do not compress.
ALTER TABLE tiles ALTER COLUMN hashes SET STORAGE EXTERNAL;

CREATE TABLE tree (
    singleton   smallint PRIMARY KEY CHECK (singleton = 0),
    -- Entries that the tiles cover.
    size        bigint NOT NULL DEFAULT 0 CHECK (size >= 0),
    -- The newest checkpoint: a signed note over exactly that size; NULL before the first.
    checkpoint  bytea,
    -- Whose task the tree is, and until when. Each step also says from which size it goes
    -- on: a holder that was asleep past its time does no harm.
    holder      text NOT NULL DEFAULT '',
    lease_until timestamptz NOT NULL DEFAULT '-infinity'
) WITH (fillfactor = 10);

INSERT INTO tree (singleton) VALUES (0);
