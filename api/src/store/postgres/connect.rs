//! Getting to the database: connections that are fit for use, the schema, and what errors mean.
//!
//! A connection is refused when the store could not keep its promises on it: an old server, an encoding other than
//! UTF-8, `synchronous_commit = off`, a standby or read-only database, notifications that do not arrive (a pooler that
//! shares sessions between transactions). One without `fsync` is warned of. Of several places the first is taken that is fit, beginning with the last one
//! that was.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection, PgListener, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgPool, Row};
use tokio::time::timeout;

use super::{Address, place};
use crate::store::Error;

/// Forward only: a migration that was released is never edited.
const MIGRATIONS: [&str; 1] = [include_str!("../migrations/postgres/0001_objects.sql")];
const OLDEST_SERVER: i32 = 130_000;
const CONNECT: Duration = Duration::from_secs(5);
/// For everything that is done in one go at start.
const PREPARE: Duration = Duration::from_secs(60);
/// How long a notification of our own may take.
const NOTIFICATION: Duration = Duration::from_secs(5);
/// "coracle", and what for.
const MIGRATING: i64 = 0x636f_7261_636c_6500;
pub(super) const COMPACTING: i64 = MIGRATING + 1;
pub(super) const CHANNEL: &str = "coracle";

/// What every session begins with. A writer that is gone, or hangs, must not hold the others up; plans must not depend
/// on statistics that a young table does not have.
const SESSION: &str = "SET lock_timeout = '5s'; SET statement_timeout = '10s'; \
    SET idle_in_transaction_session_timeout = '3s'; SET tcp_user_timeout = '10s'; \
    SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; \
    SET jit = off; SET client_min_messages = 'warning'";

pub(super) struct Server {
    address: Address,
    /// Which of its places was fit last.
    current: AtomicUsize,
    /// Tells our notifications from others'.
    pub(super) id: String,
    listening: PgPool,
    /// Places whose promise of durability has been doubted aloud.
    doubted: Mutex<BTreeSet<String>>,
}

/// What a failure says about the commit that met it.
pub(super) enum Failure {
    /// It did not happen, and it may help to try again.
    Again(Error),
    /// It did not happen, and will not.
    Refused(Error),
    /// The connection is gone: nobody knows.
    Lost(Error),
}

// === impl Server ===

impl Server {
    pub(super) fn new(address: Address) -> Self {
        let places = address.0.into_iter();
        let places = places.map(ConnectOptions::disable_statement_logging);
        let address = Address(places.collect());
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .max_lifetime(None)
            .idle_timeout(None)
            .acquire_timeout(CONNECT);
        let first = address.0.first().cloned().unwrap_or_default();
        Self {
            listening: pool.connect_lazy_with(first),
            current: AtomicUsize::new(0),
            id: format!("{:016x}", rand::random::<u64>()),
            doubted: Mutex::default(),
            address,
        }
    }

    /// A connection that has been looked at.
    pub(super) async fn connect(&self) -> Result<PgConnection, Error> {
        let count = self.address.0.len();
        let start = self.current.load(Ordering::Relaxed);
        let mut problems = Vec::new();
        for at in (0..count).map(|step| (start + step) % count) {
            match self.connect_to(&self.address.0[at]).await {
                Ok(connection) => {
                    if at != start {
                        tracing::info!(place = %place(&self.address.0[at]), "Database is used at another place");
                        self.current.store(at, Ordering::Relaxed);
                        let options = self.address.0[at].clone();
                        self.listening.set_connect_options(options);
                    }
                    return Ok(connection);
                }
                Err(problem) => problems.push((at, problem)),
            }
        }
        let told = problems.iter().map(|(at, problem)| match count {
            1 => problem.clone(),
            _ => format!("{}: {problem}", place(&self.address.0[*at])),
        });
        let told: Vec<String> = told.collect();
        let why = format!("{}: {}", self.address, told.join("; "));
        Err(Error::Unavailable(why))
    }

    /// The error is what is wrong with that place.
    async fn connect_to(&self, options: &PgConnectOptions) -> Result<PgConnection, String> {
        let connecting = timeout(CONNECT, async {
            let mut connection = options.connect().await.map_err(|e| e.to_string())?;
            let begun = connection.execute(SESSION).await;
            begun.map_err(|e| e.to_string())?;
            let doubts = check(&mut connection).await?;
            self.doubt(place(options), &doubts);
            Ok(connection)
        });
        let connected = connecting.await;
        connected.unwrap_or_else(|_| Err(format!("no answer in {CONNECT:?}")))
    }

    /// Once for each place.
    fn doubt(&self, place: String, doubts: &[&'static str]) {
        let mut doubted = self.doubted.lock().unwrap_or_else(PoisonError::into_inner);
        if !doubts.is_empty() && doubted.insert(place.clone()) {
            let off = doubts.join(", ");
            tracing::warn!(
                place,
                off,
                "The database may lose what it has acknowledged when its machine fails: these settings must be on"
            );
        }
    }

    fn lost(&self, error: &sqlx::Error) -> Error {
        Error::Unavailable(format!("{}: {error}", self.address))
    }

    /// Brings an older database, or an empty one, to the newest schema; one server at a time.
    pub(super) async fn migrate(&self, connection: &mut PgConnection) -> Result<(), Error> {
        let migrating = async {
            let mut transaction = connection.begin().await?;
            sqlx::query("SELECT pg_advisory_xact_lock($1), set_config('lock_timeout', '0', true)")
                .bind(MIGRATING)
                .execute(&mut *transaction)
                .await?;
            let there = "SELECT to_regclass('coracle.migrations') IS NOT NULL";
            let there: bool = transaction.fetch_one(there).await?.get(0);
            let found = if there {
                let newest = "SELECT coalesce(max(version), 0) FROM coracle.migrations";
                transaction.fetch_one(newest).await?.get::<i32, _>(0)
            } else {
                transaction
                    .execute(
                        "CREATE SCHEMA IF NOT EXISTS coracle; \
                         CREATE TABLE coracle.migrations (version INT PRIMARY KEY)",
                    )
                    .await?;
                0
            };
            let found = usize::try_from(found).unwrap_or(usize::MAX);
            for (migration, version) in MIGRATIONS.iter().zip(1usize..).skip(found) {
                let sql = format!("{migration}; INSERT INTO coracle.migrations VALUES ({version})");
                transaction.execute(AssertSqlSafe(sql)).await?;
            }
            transaction.commit().await?;
            Ok::<_, sqlx::Error>(found)
        };
        let done = timeout(PREPARE, migrating).await;
        let found = match done {
            Ok(found) => found.map_err(|error| {
                Error::Unavailable(format!("{}: cannot prepare it: {error}", self.address))
            })?,
            Err(_) => {
                let why = format!("{}: it was not prepared in {PREPARE:?}", self.address);
                return Err(Error::Unavailable(why));
            }
        };
        if found > MIGRATIONS.len() {
            return Err(Error::Unavailable(format!(
                "{}: the database has schema version {found}, and this program knows versions up to {}",
                self.address,
                MIGRATIONS.len()
            )));
        }
        Ok(())
    }

    /// A listener that has been seen to hear.
    pub(super) async fn listener(&self, other: &mut PgConnection) -> Result<PgListener, Error> {
        let mut listener = self.listen().await?;
        let hello = format!("hello {}", self.id);
        sqlx::query("SELECT pg_notify($1, $2)")
            .bind(CHANNEL)
            .bind(&hello)
            .execute(other)
            .await
            .map_err(|e| self.lost(&e))?;
        let heard = timeout(NOTIFICATION, async {
            while listener.recv().await?.payload() != hello {}
            Ok::<_, sqlx::Error>(())
        });
        match heard.await {
            Ok(heard) => heard.map_err(|e| self.lost(&e))?,
            Err(_) => {
                return Err(Error::Unavailable(format!(
                    "{}: notifications do not arrive; a pooler must be in session mode, or left out",
                    self.address
                )));
            }
        }
        Ok(listener)
    }

    pub(super) async fn listen(&self) -> Result<PgListener, Error> {
        let listening = async {
            let mut listener = PgListener::connect_with(&self.listening).await?;
            listener.listen(CHANNEL).await?;
            Ok(listener)
        };
        match timeout(CONNECT, listening).await {
            Ok(listener) => listener.map_err(|e: sqlx::Error| self.lost(&e)),
            Err(_) => {
                let why = format!("{}: no answer in {CONNECT:?}", self.address);
                Err(Error::Unavailable(why))
            }
        }
    }

    pub(super) async fn close(&self) {
        self.listening.close().await;
    }
}

/// Is a server fit for the store? Answers what may break the promise of durability when its machine fails, and is no reason
/// to refuse it: some disks make up for it, and who tries things out does not care.
async fn check(connection: &mut PgConnection) -> Result<Vec<&'static str>, String> {
    let sql = "SELECT current_setting('server_version_num')::int, \
        current_setting('server_encoding'), current_setting('synchronous_commit'), \
        pg_is_in_recovery(), current_setting('transaction_read_only'), current_setting('fsync'), \
        current_setting('full_page_writes')";
    let row = connection.fetch_one(sql).await.map_err(|e| e.to_string())?;
    let (version, encoding, synchronous): (i32, String, String) =
        (row.get(0), row.get(1), row.get(2));
    let (recovering, read_only): (bool, String) = (row.get(3), row.get(4));
    Err(if version < OLDEST_SERVER {
        let major = OLDEST_SERVER / 10_000;
        format!(
            "it is Postgres {}, and must be {major} or newer",
            version / 10_000
        )
    } else if encoding != "UTF8" {
        format!("its encoding is {encoding}, and must be UTF8")
    } else if synchronous == "off" {
        "synchronous_commit is off: what is acknowledged could be lost".to_owned()
    } else if recovering {
        "it is a standby".to_owned()
    } else if read_only == "on" {
        "it is read-only".to_owned()
    } else {
        let settings = [("fsync", 5), ("full_page_writes", 6)].into_iter();
        let off = settings.filter(|(_, at)| row.get::<&str, _>(*at) == "off");
        return Ok(off.map(|(name, _)| name).collect());
    })
}

/// What an error of Postgres means.
pub(super) fn judge(error: sqlx::Error) -> Failure {
    let code = error.as_database_error().and_then(|error| error.code());
    let Some(code) = code else {
        return Failure::Lost(Error::Unavailable(error.to_string()));
    };
    let text = || Error::Unavailable(error.to_string());
    match &*code {
        "53100" => Failure::Refused(Error::Full),
        // Serialisation, deadlock, a lock or statement that took too long.
        "40001" | "40P01" | "55P03" | "57014" => Failure::Again(text()),
        // The server is shutting down, or has crashed, or ended this session: perhaps right after the commit.
        "57P01" | "57P02" | "57P03" | "57P05" | "25P03" => Failure::Lost(text()),
        code if code.starts_with("08") => Failure::Lost(text()),
        // A standby now, or out of connections or memory: another connection may do better.
        "25006" => Failure::Again(text()),
        code if code.starts_with("53") => Failure::Again(text()),
        _ => Failure::Refused(text()),
    }
}

// === impl Failure ===

impl Failure {
    pub(super) fn into_error(self) -> Error {
        match self {
            Self::Again(error) | Self::Refused(error) | Self::Lost(error) => error,
        }
    }
}
