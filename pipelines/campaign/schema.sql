-- Tables of a campaign. Events are only ever added: an undo is one more, and `answers` is what holds.
CREATE TABLE campaign (settings TEXT NOT NULL, created TEXT NOT NULL);
CREATE TABLE prompts (
    prompt INTEGER PRIMARY KEY,
    id TEXT NOT NULL,               -- the row's
    row TEXT NOT NULL               -- JSON, as the output of a run
);
CREATE TABLE items (
    item INTEGER PRIMARY KEY,
    prompt INTEGER NOT NULL REFERENCES prompts,
    first TEXT NOT NULL,            -- a side as JSON: a candidate's index, or "fused"
    second TEXT NOT NULL,
    first_name TEXT NOT NULL,       -- contestants
    second_name TEXT NOT NULL,
    gold TEXT,                      -- the right answer, `first` on the left; null: not a gold item
    position INTEGER,               -- place in the order of items; null: not opened, `pairs: active` may choose it
    UNIQUE (prompt, first, second)
);
CREATE INDEX items_by_position ON items (position);
CREATE TABLE leases (
    item INTEGER NOT NULL REFERENCES items,
    annotator TEXT NOT NULL,
    swapped INTEGER NOT NULL,       -- whether `second` is shown on the left
    expires REAL NOT NULL,          -- seconds since 1970
    PRIMARY KEY (item, annotator)
) WITHOUT ROWID;
CREATE TABLE events (
    event INTEGER PRIMARY KEY AUTOINCREMENT,
    at TEXT NOT NULL,               -- ISO 8601
    annotator TEXT NOT NULL,
    item INTEGER NOT NULL REFERENCES items,
    round INTEGER NOT NULL,         -- how often the annotator has undone an answer to the item before
    kind TEXT NOT NULL CHECK (kind IN ('vote', 'skip', 'undo')),
    swapped INTEGER NOT NULL,
    preferred TEXT CHECK (preferred IN ('left', 'right', 'tie', 'both_good', 'both_bad')),
    comment TEXT,
    seconds REAL,                   -- from when it was shown until the answer, by the annotator's clock
    imported INTEGER NOT NULL DEFAULT 0,
    CHECK ((kind = 'vote') = (preferred IS NOT NULL))
);
-- Nobody votes twice on an item, whatever runs at once.
CREATE UNIQUE INDEX one_answer ON events (item, annotator, round) WHERE kind <> 'undo';
CREATE UNIQUE INDEX one_undo ON events (item, annotator, round) WHERE kind = 'undo';
CREATE INDEX events_by_annotator ON events (annotator);
CREATE TRIGGER events_stay BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'events are only added'); END;
CREATE TRIGGER events_remain BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'events are only added'); END;
CREATE VIEW answers AS
    SELECT * FROM events AS one
    WHERE kind <> 'undo' AND NOT EXISTS (
        SELECT 1 FROM events AS other
        WHERE other.kind = 'undo' AND other.item = one.item AND other.annotator = one.annotator
            AND other.round = one.round
    );
CREATE VIEW votes AS SELECT * FROM answers WHERE kind = 'vote';
