import GRDB

/// The tables; `docs/disk-format.md` explains them to people.
enum CatalogSchema {
    static let version = 5

    /// Brings an older catalog up to this version, in the caller's transaction.
    static func upgrade(_ db: Database, from version: Int) throws {
        if version < 2 { try db.execute(sql: replicationTables) }
        if version < 3 {
            try db.execute(sql: roleTables)
            try CatalogTransaction(db).noteKnownGenerations()
        }
        if version < 4 { try db.execute(sql: lineColumns) }
        if version < 5 { try db.execute(sql: imageIndex) }
        try db.execute(sql: "PRAGMA user_version = \(Self.version)")
    }

    static func create(in db: Database) throws {
        try createFirstTables(in: db)
        try upgrade(db, from: 1)
    }

    /// Since version 2.
    private static let replicationTables = """
        CREATE TABLE replica (
            id INTEGER PRIMARY KEY CHECK (id = 1),
            role TEXT NOT NULL,
            primary_pool TEXT NOT NULL,
            generation INTEGER, generation_id TEXT, generation_parent TEXT,
            generation_start INTEGER,
            incarnation_id TEXT,
            applied INTEGER NOT NULL,
            structure INTEGER NOT NULL,
            journal_segment INTEGER NOT NULL,
            staging INTEGER, staging_batch INTEGER, staging_shape INTEGER);
        CREATE TABLE targets (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            address TEXT NOT NULL UNIQUE,
            pool TEXT,
            mode TEXT NOT NULL,
            timeout_ms INTEGER NOT NULL,
            history_ms INTEGER NOT NULL,
            added_ns INTEGER NOT NULL,
            paused INTEGER NOT NULL DEFAULT 0,
            stale_ns INTEGER, stale_sequence INTEGER, stale_reason TEXT);
        """

    /// Since version 3.
    private static let roleTables = """
        CREATE TABLE generations (
            number INTEGER NOT NULL, id TEXT PRIMARY KEY, parent TEXT, start INTEGER NOT NULL,
            pool TEXT NOT NULL, begun_ns INTEGER NOT NULL, cause TEXT NOT NULL) WITHOUT ROWID;
        CREATE TABLE peers (
            pool TEXT PRIMARY KEY, address TEXT NOT NULL, seen_ns INTEGER NOT NULL,
            stale_ns INTEGER, stale_sequence INTEGER, stale_reason TEXT) WITHOUT ROWID;
        CREATE TABLE target_images (
            target INTEGER NOT NULL REFERENCES targets(id) ON DELETE CASCADE,
            image INTEGER NOT NULL, mode TEXT, on_timeout TEXT,
            PRIMARY KEY (target, image)) WITHOUT ROWID;
        ALTER TABLE targets ADD COLUMN on_timeout TEXT NOT NULL DEFAULT 'degrade';
        ALTER TABLE targets ADD COLUMN armed INTEGER NOT NULL DEFAULT 0;
        ALTER TABLE targets ADD COLUMN interval_ms INTEGER;
        ALTER TABLE targets ADD COLUMN latency_budget_us INTEGER;
        ALTER TABLE targets ADD COLUMN rate INTEGER;
        ALTER TABLE targets ADD COLUMN rpo_ms INTEGER;
        ALTER TABLE targets ADD COLUMN rpo_bytes INTEGER;
        ALTER TABLE targets ADD COLUMN on_rpo TEXT NOT NULL DEFAULT 'alarm';
        ALTER TABLE targets ADD COLUMN whole INTEGER NOT NULL DEFAULT 0;
        ALTER TABLE targets ADD COLUMN keep_diverged INTEGER NOT NULL DEFAULT 0;
        ALTER TABLE replica ADD COLUMN primary_address TEXT;
        ALTER TABLE replica ADD COLUMN heard_ns INTEGER;
        ALTER TABLE replica ADD COLUMN content_generation TEXT;
        ALTER TABLE replica ADD COLUMN divergence TEXT;
        ALTER TABLE replica ADD COLUMN divergence_target INTEGER;
        """

    /// Since version 4.
    private static let lineColumns = """
        ALTER TABLE targets ADD COLUMN compress TEXT NOT NULL DEFAULT 'auto';
        """

    /// Since version 5. A mirror asks at each name whether its image has another.
    private static let imageIndex = "CREATE INDEX nodes_by_image ON nodes(image)"

    private static func createFirstTables(in db: Database) throws {
        try db.execute(
            sql: """
                CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
                CREATE TABLE images (
                    id INTEGER PRIMARY KEY AUTOINCREMENT,
                    head INTEGER REFERENCES layers(id),
                    deleted INTEGER NOT NULL DEFAULT 0);
                CREATE TABLE layers (
                    id INTEGER PRIMARY KEY AUTOINCREMENT,
                    image INTEGER NOT NULL,
                    parent INTEGER REFERENCES layers(id),
                    sealed INTEGER NOT NULL DEFAULT 0,
                    size_bytes INTEGER NOT NULL DEFAULT 0,
                    sealed_sequence INTEGER NOT NULL DEFAULT 0);
                CREATE INDEX layers_by_parent ON layers(parent);
                CREATE TABLE snapshots (
                    id INTEGER PRIMARY KEY AUTOINCREMENT,
                    name TEXT NOT NULL UNIQUE,
                    created_ns INTEGER NOT NULL,
                    sequence INTEGER NOT NULL,
                    state INTEGER NOT NULL,
                    origin TEXT NOT NULL);
                CREATE TABLE nodes (
                    id INTEGER PRIMARY KEY AUTOINCREMENT,
                    parent INTEGER, name BLOB NOT NULL, kind INTEGER NOT NULL,
                    mode INTEGER NOT NULL, uid INTEGER NOT NULL, gid INTEGER NOT NULL,
                    access_ns INTEGER NOT NULL, modify_ns INTEGER NOT NULL,
                    change_ns INTEGER NOT NULL,
                    symlink BLOB, image INTEGER REFERENCES images(id), xattrs BLOB);
                CREATE TABLE snapshot_nodes (
                    snapshot INTEGER NOT NULL REFERENCES snapshots(id) ON DELETE CASCADE,
                    node INTEGER NOT NULL,
                    parent INTEGER, name BLOB NOT NULL, kind INTEGER NOT NULL,
                    mode INTEGER NOT NULL, uid INTEGER NOT NULL, gid INTEGER NOT NULL,
                    access_ns INTEGER NOT NULL, modify_ns INTEGER NOT NULL,
                    change_ns INTEGER NOT NULL,
                    symlink BLOB, image INTEGER, xattrs BLOB,
                    layer INTEGER REFERENCES layers(id), size_bytes INTEGER NOT NULL,
                    PRIMARY KEY (snapshot, node)) WITHOUT ROWID;
                CREATE INDEX snapshot_nodes_by_layer ON snapshot_nodes(layer);
                CREATE TABLE merges (
                    layer INTEGER PRIMARY KEY, into_layer INTEGER NOT NULL,
                    direction INTEGER NOT NULL);
                CREATE TABLE events (
                    id INTEGER PRIMARY KEY AUTOINCREMENT,
                    at_ns INTEGER NOT NULL, kind TEXT NOT NULL, subject TEXT NOT NULL,
                    message TEXT NOT NULL);
                """)
    }
}
