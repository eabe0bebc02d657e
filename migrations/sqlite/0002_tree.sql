-- The Merkle tree over the log (RFC 6962), in tiles of 256 hashes (C2SP tlog-tiles).
CREATE TABLE tiles (
    -- level * 2^56 + index: a level's tiles lie together, the newest at its end.
    id     INTEGER PRIMARY KEY,
    -- Up to 256 hashes of 32 bytes; the last tile of a level grows in place.
    hashes BLOB NOT NULL
) STRICT;

CREATE TABLE tree (
    singleton  INTEGER PRIMARY KEY CHECK (singleton = 0),
    -- Entries that the tiles cover.
    size       INTEGER NOT NULL,
    -- The newest checkpoint: a signed note over exactly that size; NULL before the first.
    checkpoint BLOB
) STRICT;

INSERT INTO tree (singleton, size) VALUES (0, 0);
