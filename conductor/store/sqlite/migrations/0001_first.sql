-- Times are integers: nanoseconds since 1970 UTC, NULL for none. Empty texts are NULL.
-- JSON is text. Secrets of a node are one AES-GCM box (see seal.go).

-- +goose Up
CREATE TABLE meta (
  name  TEXT PRIMARY KEY,
  value BLOB NOT NULL
) STRICT;

CREATE TABLE nodes (
  id                     INTEGER PRIMARY KEY AUTOINCREMENT,
  uuid                   TEXT NOT NULL UNIQUE,
  name                   TEXT UNIQUE,
  created_at             INTEGER NOT NULL,
  updated_at             INTEGER,
  driver                 TEXT,
  driver_info            TEXT NOT NULL,
  driver_internal_info   TEXT NOT NULL,
  instance_info          TEXT NOT NULL,
  secrets                BLOB,
  properties             TEXT NOT NULL,
  extra                  TEXT NOT NULL,
  network_data           TEXT NOT NULL,
  instance_uuid          TEXT UNIQUE,
  instance_name          TEXT,
  resource_class         TEXT,
  owner                  TEXT,
  lessee                 TEXT,
  description            TEXT,
  conductor_group        TEXT,
  shard                  TEXT,
  chassis_uuid           TEXT,
  parent_node            TEXT,
  interfaces             TEXT NOT NULL,
  provision_state        TEXT NOT NULL,
  target_provision_state TEXT,
  provision_updated_at   INTEGER,
  power_state            TEXT,
  target_power_state     TEXT,
  last_error             TEXT,
  maintenance            INTEGER NOT NULL,
  maintenance_reason     TEXT,
  fault                  TEXT,
  automated_clean        INTEGER,
  protected              INTEGER NOT NULL,
  protected_reason       TEXT,
  retired                INTEGER NOT NULL,
  retired_reason         TEXT,
  console_enabled        INTEGER NOT NULL,
  disable_power_off      INTEGER NOT NULL,
  boot_mode              TEXT,
  secure_boot            INTEGER,
  clean_step             TEXT NOT NULL,
  deploy_step            TEXT NOT NULL,
  service_step           TEXT NOT NULL,
  raid_config            TEXT NOT NULL,
  target_raid_config     TEXT NOT NULL,
  inspection_started_at  INTEGER,
  inspection_finished_at INTEGER,
  traits                 TEXT NOT NULL,
  version                INTEGER NOT NULL,
  fence                  INTEGER NOT NULL DEFAULT 0 -- of the last claim of any work of the node
) STRICT;
CREATE INDEX nodes_provision_state ON nodes (provision_state);

-- Large, and read one node at a time.
CREATE TABLE inventories (
  node_uuid   TEXT PRIMARY KEY REFERENCES nodes (uuid) ON DELETE CASCADE,
  inventory   TEXT,
  plugin_data TEXT
) STRICT;

CREATE TABLE ports (
  id               INTEGER PRIMARY KEY AUTOINCREMENT,
  uuid             TEXT NOT NULL UNIQUE,
  node_uuid        TEXT NOT NULL REFERENCES nodes (uuid) ON DELETE CASCADE,
  address          TEXT NOT NULL UNIQUE,
  name             TEXT UNIQUE,
  physical_network TEXT,
  portgroup_uuid   TEXT,
  description      TEXT,
  pxe_enabled      INTEGER NOT NULL,
  is_smartnic      INTEGER NOT NULL,
  local_link       TEXT NOT NULL,
  extra            TEXT NOT NULL,
  internal_info    TEXT NOT NULL,
  created_at       INTEGER NOT NULL,
  updated_at       INTEGER
) STRICT;
CREATE INDEX ports_node ON ports (node_uuid);

CREATE TABLE work (
  id         INTEGER PRIMARY KEY AUTOINCREMENT,
  node_uuid  TEXT NOT NULL UNIQUE REFERENCES nodes (uuid) ON DELETE CASCADE,
  kind       TEXT NOT NULL,
  payload    TEXT,
  run_at     INTEGER NOT NULL,
  deadline   INTEGER,
  cause      TEXT,
  attempt    INTEGER NOT NULL DEFAULT 0,
  fence      INTEGER NOT NULL DEFAULT 0,
  owner      TEXT,            -- NULL: nobody has it
  lease_end  INTEGER,
  woken      INTEGER NOT NULL DEFAULT 0, -- a wake-up came while it ran
  created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX work_due ON work (run_at);

CREATE TABLE boots (
  id         INTEGER PRIMARY KEY AUTOINCREMENT,
  nonce_hash BLOB NOT NULL UNIQUE, -- SHA-256
  path_hash  BLOB NOT NULL UNIQUE, -- SHA-256
  node_uuid  TEXT NOT NULL REFERENCES nodes (uuid) ON DELETE CASCADE,
  mac        TEXT,
  created_at INTEGER NOT NULL,
  used_at    INTEGER
) STRICT;
CREATE INDEX boots_node ON boots (node_uuid, id);

CREATE TABLE evidence (
  id        INTEGER PRIMARY KEY AUTOINCREMENT,
  node_uuid TEXT REFERENCES nodes (uuid) ON DELETE CASCADE,
  mac       TEXT,
  at        INTEGER NOT NULL,
  hop       TEXT NOT NULL,
  fact      TEXT NOT NULL,
  ok        INTEGER NOT NULL,
  detail    TEXT NOT NULL
) STRICT;
CREATE INDEX evidence_node ON evidence (node_uuid, id);

CREATE TABLE history (
  id         INTEGER PRIMARY KEY AUTOINCREMENT,
  uuid       TEXT NOT NULL UNIQUE,
  node_uuid  TEXT NOT NULL REFERENCES nodes (uuid) ON DELETE CASCADE,
  event      TEXT,
  event_type TEXT,
  severity   TEXT,
  conductor  TEXT,
  user       TEXT,
  created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX history_node ON history (node_uuid, id);

-- +goose Down
DROP TABLE history;
DROP TABLE evidence;
DROP TABLE boots;
DROP TABLE work;
DROP TABLE ports;
DROP TABLE inventories;
DROP TABLE nodes;
DROP TABLE meta;
