//! The database as a file: its lock, its settings, its schema version, and what its errors mean.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::sqlite::{
    SqliteAutoVacuum, SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, ConnectOptions, Row};
use types::error::chain;

use super::Options;
use crate::store::Error;

/// Forward only: a migration that was released is never edited.
const MIGRATIONS: [&str; 1] = [include_str!("../migrations/sqlite/0001_objects.sql")];
/// What a commit flushes is whole pages: small ones make a lone commit quicker, and cost batches nothing.
const PAGE_BYTES: u32 = 4_096;
/// Pages in the log before they are copied into the database: 16 MiB.
const CHECKPOINT_PAGES: &str = "4000";
const SQLITE_FULL: i32 = 13;
/// There are Secrets in it. SQLite gives its other files the mode of the first.
const MODE: u32 = 0o600;

/// The file while it is ours: the lock goes when this does.
pub(super) struct Owned {
    path: PathBuf,
    options: Options,
    _lock: File,
}

// === impl Owned ===

impl Owned {
    pub(super) fn new(path: &Path, options: &Options, lock: File) -> Self {
        Self {
            path: path.to_owned(),
            options: options.clone(),
            _lock: lock,
        }
    }

    pub(super) async fn connect(&self) -> Result<SqliteConnection, Error> {
        connect(&self.path, &self.options).await
    }
}

/// Takes the lock beside the database. The kernel lets go of it when the process ends, however it ends; the number
/// inside only makes the message better.
pub(super) fn lock(path: &Path) -> Result<File, Error> {
    let mut beside = path.to_owned().into_os_string();
    beside.push(".lock");
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(MODE)
        .open(PathBuf::from(beside))
        .map_err(|error| unusable(path, &error))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut owner = String::new();
            let known = file.read_to_string(&mut owner).is_ok() && !owner.is_empty();
            let owner = if known { owner.trim() } else { "unknown" };
            let message = format!("{} (process {owner})", path.display());
            return Err(Error::Locked(message));
        }
        Err(TryLockError::Error(error)) => return Err(unusable(path, &error)),
    }
    let note = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()));
    // On a full disk the note is missing; the lock holds all the same.
    if let Err(error) = note {
        tracing::debug!(error = %chain(&error), "Could not note the owner in the lock file");
    }
    Ok(file)
}

fn unusable(path: &Path, error: &std::io::Error) -> Error {
    Error::Unavailable(format!("{}: {error}", path.display()))
}

pub(super) async fn connect(path: &Path, options: &Options) -> Result<SqliteConnection, Error> {
    let mut create = File::options();
    create.append(true).create(true).mode(MODE);
    create.open(path).map_err(|error| unusable(path, &error))?;
    let mut connect = SqliteConnectOptions::new()
        .filename(path)
        .page_size(PAGE_BYTES)
        .auto_vacuum(SqliteAutoVacuum::Incremental)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(options.lock_deadline.max(Duration::from_millis(1)))
        .pragma("wal_autocheckpoint", CHECKPOINT_PAGES)
        .pragma("cache_size", "-4096")
        .thread_name(|_| "store".to_owned())
        .disable_statement_logging();
    if !options.sealer.is_empty() {
        // What was written before it was sealed does not stay behind in pages that are free.
        connect = connect.pragma("secure_delete", "ON");
    }
    if let Some(bytes) = options.max_bytes {
        let pages = (bytes / u64::from(PAGE_BYTES)).max(1);
        connect = connect.pragma("max_page_count", pages.to_string());
    }
    connect.connect().await.map_err(refused)
}

/// Brings an older file, or an empty one, to the newest schema.
pub(super) async fn migrate(connection: &mut SqliteConnection) -> Result<(), Error> {
    let row = sqlx::query("PRAGMA user_version")
        .fetch_one(&mut *connection)
        .await
        .map_err(refused)?;
    let found = usize::try_from(row.get::<i64, _>(0)).unwrap_or(usize::MAX);
    if found > MIGRATIONS.len() {
        return Err(Error::Unavailable(format!(
            "the database has schema version {found}, and this program knows versions up to {}",
            MIGRATIONS.len()
        )));
    }
    for (migration, version) in MIGRATIONS.iter().zip(1usize..).skip(found) {
        let sql = format!("BEGIN IMMEDIATE; {migration}; PRAGMA user_version = {version}; COMMIT");
        let done = sqlx::raw_sql(AssertSqlSafe(sql))
            .execute(&mut *connection)
            .await;
        done.map_err(refused)?;
    }
    Ok(())
}

/// What an error of SQLite means to a client.
pub(super) fn refused(error: sqlx::Error) -> Error {
    let code = error
        .as_database_error()
        .and_then(|e| e.code())
        .and_then(|code| code.parse::<i32>().ok());
    match code {
        Some(code) if code & 0xff == SQLITE_FULL => Error::Full,
        _ => Error::Unavailable(error.to_string()),
    }
}
