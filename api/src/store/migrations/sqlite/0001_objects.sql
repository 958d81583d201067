-- Current objects, the change log that undoes them, and one row of counters. There is no index on the key: the one
-- process that owns the file has all objects in memory and addresses rows by id.

CREATE TABLE meta (
    one        INTEGER PRIMARY KEY CHECK (one = 1),
    revision   INTEGER NOT NULL, -- the newest; gap-free
    written_at INTEGER NOT NULL, -- when, in milliseconds since 1970
    horizon    INTEGER NOT NULL  -- history up to and including this revision is gone
) STRICT;
INSERT INTO meta VALUES (1, 0, 0, 0);

CREATE TABLE objects (
    id        INTEGER PRIMARY KEY, -- the revision that created the object: rows are appended
    revision  INTEGER NOT NULL,
    resource  TEXT NOT NULL,
    namespace TEXT NOT NULL,
    name      TEXT NOT NULL,
    value     BLOB NOT NULL
) STRICT;

-- One row per revision, with what it replaced: a creation costs no second copy of the object. The state a change
-- led to is the next change's `previous`, or the object itself.
CREATE TABLE history (
    revision          INTEGER PRIMARY KEY,
    id                INTEGER NOT NULL,
    resource          TEXT NOT NULL,
    namespace         TEXT NOT NULL,
    name              TEXT NOT NULL,
    previous_revision INTEGER, -- NULL: the object was created
    previous          BLOB,
    last              BLOB     -- NOT NULL: the object was deleted, and this is what watchers were shown
) STRICT;

-- Which revision was the newest at which time, coarsely: retention and expiry survive a restart.
CREATE TABLE marks (
    revision INTEGER PRIMARY KEY,
    at       INTEGER NOT NULL
) STRICT;
