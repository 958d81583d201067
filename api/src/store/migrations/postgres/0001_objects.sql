-- The same tables as on SQLite, for several servers at once. The row of `meta` is the allocator of revisions and the lock
-- that orders all writers; `horizon` is a row of its own so that compaction never waits for them.

CREATE TABLE coracle.meta (
    one        INT PRIMARY KEY CHECK (one = 1),
    revision   BIGINT NOT NULL, -- the newest; gap-free
    written_at BIGINT NOT NULL  -- when, in milliseconds since 1970
) WITH (fillfactor = 10);
INSERT INTO coracle.meta VALUES (1, 0, 0);

CREATE TABLE coracle.horizon (
    one      INT PRIMARY KEY CHECK (one = 1),
    revision BIGINT NOT NULL    -- history up to and including this revision is gone
);
INSERT INTO coracle.horizon VALUES (1, 0);

CREATE TABLE coracle.objects (
    resource  TEXT COLLATE "C" NOT NULL,
    namespace TEXT COLLATE "C" NOT NULL,
    name      TEXT COLLATE "C" NOT NULL,
    created   BIGINT NOT NULL,  -- the revision that created the object
    revision  BIGINT NOT NULL,
    value     BYTEA NOT NULL,
    PRIMARY KEY (resource, namespace, name)
) WITH (fillfactor = 80);

-- One row per revision, with what it replaced: a creation costs no second copy of the object. The state a change
-- led to is the next change's `previous`, or the object itself.
CREATE TABLE coracle.history (
    revision          BIGINT PRIMARY KEY,
    created           BIGINT NOT NULL,
    commit_id         BIGINT NOT NULL, -- by which a server whose connection broke finds out what became of its commit
    resource          TEXT COLLATE "C" NOT NULL,
    namespace         TEXT COLLATE "C" NOT NULL,
    name              TEXT COLLATE "C" NOT NULL,
    previous_revision BIGINT,          -- NULL: the object was created
    previous          BYTEA,
    last              BYTEA            -- NOT NULL: the object was deleted, and this is what watchers were shown
);
CREATE INDEX history_of_object ON coracle.history (created, revision);

-- Which revision was the newest at which time, coarsely: retention and expiry survive a restart.
CREATE TABLE coracle.marks (
    revision BIGINT PRIMARY KEY,
    at       BIGINT NOT NULL
);
