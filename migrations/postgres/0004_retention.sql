-- Retention: the records of certificates below this index are gone (C2SP tlog-tiles, "minimum
-- index"), a multiple of 256. Entries of other kinds and all hashes stay.
ALTER TABLE tree ADD COLUMN minimum bigint NOT NULL DEFAULT 0 CHECK (minimum >= 0);
