//! The shared store: one Postgres database, any number of API servers at once.
//!
//! ```text
//! commit ─► bounded queue ─► the writer: decide many commits against the cache ─► one transaction ─┐
//!                                                                                                  ├─► publish ─► cache
//! other servers ─► NOTIFY (or a look every second) ─► the follower: the log after the cache ───────┘
//! ```
//! **One row orders all writers.** Whoever writes moves `meta.revision` from the revision its cache is at, or does not write:
//! then the cache was the newest state, the batch was decided on it, and the numbers have no gaps. When the row has
//! moved (another server wrote), the writer locks it, reads the log up to it into the cache, and decides again. There is
//! one lock and it is taken first, so there is no deadlock.
//!
//! **The log is a cursor.** Notifications wake the follower and say nothing more. What a commit of this server changed is
//! published without being read back; both publish through [`Publisher`], which keeps the order.
//!
//! **A lost connection** leaves a commit in doubt: the next connection looks for the commit's id in the log, under the
//! lock, and does it again only if it is not there. Callers wait for that as long as [`Options::patience`].
//!
//! A server holds four connections, whatever its load: writer, follower, listener, keeper ([`keeper`] compacts).

mod connect;
mod follower;
mod keeper;
mod load;
mod publisher;
mod reseal;
mod statements;
mod writer;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use sqlx::postgres::PgConnectOptions;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::connect::Server;
use self::follower::{Asking, Follower};
use self::keeper::Keeper;
use self::publisher::Publisher;
use self::writer::Writer;
use super::queue::{Health, Limits, Queue};
use super::seal::Sealer;
use super::{Error, Indexer, Key, Operation, Revision, Store, Stored};
use crate::cache::{self, Cache};

/// Bytes of a key. A B-tree's entry takes 2,704, and has headers.
const MOST_KEY: usize = 2_000;

/// Where a database is and how to get in: one place, or several of which one at a time is writable. Never prints the
/// password.
#[derive(Clone)]
pub struct Address(Vec<PgConnectOptions>);

#[derive(Clone, Debug)]
pub struct Options {
    pub cache: cache::Config,
    pub queue: Limits,
    pub sealer: Arc<Sealer>,
    /// How long a commit is tried again while the database cannot be reached, before it fails.
    pub patience: Duration,
    /// How long a read of the newest state waits for the database.
    pub read_patience: Duration,
    /// Pause between looks at the log when nobody has said that there is something.
    pub poll: Duration,
    /// Pause between looks for history to compact.
    pub housekeeping: Duration,
}

/// See the module. Dropping it lets go of the database after what is queued; [`Store::close`] waits for that.
pub struct Postgres {
    cache: Arc<Cache>,
    queue: Queue,
    asking: Arc<Asking>,
    read_patience: Duration,
    writing: Arc<Health>,
    following: Arc<Health>,
    closing: CancellationToken,
    /// Cancelled once the writer has ended.
    ended: CancellationToken,
    tasks: TaskTracker,
}

// === impl Address ===

impl Address {
    /// `postgres://user@host:5432/database?sslmode=verify-full&sslrootcert=/ca.crt`. What is not in it comes from the
    /// usual environment (`PGPASSWORD`, `PGHOST`, …) and password file. Several hosts, `a:5432,b:5432`, are tried in order
    /// until one is writable.
    pub fn parse(url: &str) -> Result<Self, Error> {
        let unreadable = || {
            let what = "the address of the database cannot be read: it must be like \
                        postgres://USER@HOST:PORT,HOST:PORT/DATABASE?sslmode=verify-full&sslrootcert=FILE";
            Error::Unavailable(what.to_owned())
        };
        let (url, wanted) = without_attributes(url);
        // Whatever is wanted: a server that is not writable is never used.
        if let Some(wanted) = wanted
            && !matches!(&*wanted, "any" | "read-write" | "primary")
        {
            let what = format!(
                "target_session_attrs={wanted}: the store writes, so that it must be read-write, primary or any"
            );
            return Err(Error::Unavailable(what));
        }
        let all = one_host_each(&url).ok_or_else(unreadable)?;
        // The error could quote the URL, and with it the password.
        let options: Result<Vec<PgConnectOptions>, _> = all.iter().map(|url| url.parse()).collect();
        let options = options.map_err(|_| unreadable())?;
        // What libpq would take for several hosts.
        if options
            .iter()
            .any(|options| options.get_host().contains(','))
        {
            let what = "several hosts of the database belong before the path: postgres://USER@HOST:PORT,HOST:PORT/DATABASE";
            return Err(Error::Unavailable(what.to_owned()));
        }
        Ok(Self(options))
    }
}

/// The URL without `target_session_attrs`, and what that says.
fn without_attributes(url: &str) -> (String, Option<String>) {
    let Some((place, query)) = url.split_once('?') else {
        return (url.to_owned(), None);
    };
    let mut wanted = None;
    let rest: Vec<&str> = query
        .split('&')
        .filter(|pair| match pair.strip_prefix("target_session_attrs=") {
            Some(value) => {
                wanted = Some(value.to_owned());
                false
            }
            None => true,
        })
        .collect();
    match rest.is_empty() {
        true => (place.to_owned(), wanted),
        false => (format!("{place}?{}", rest.join("&")), wanted),
    }
}

/// The URL once for each of its hosts.
fn one_host_each(url: &str) -> Option<Vec<String>> {
    let (scheme, rest) = url.split_once("://")?;
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let (user, hosts) = match authority.rsplit_once('@') {
        Some((user, hosts)) => (format!("{user}@"), hosts),
        None => (String::new(), authority),
    };
    let several = hosts.contains(',');
    let hosts = hosts.split(',');
    // An empty host is the default one, but not beside others.
    hosts
        .map(|host| {
            (!several || !host.is_empty()).then(|| format!("{scheme}://{user}{host}{path}"))
        })
        .collect()
}

/// `db:5432`
fn place(options: &PgConnectOptions) -> String {
    let port = options.get_port();
    match options.get_socket() {
        Some(socket) => format!("{}:{port}", socket.display()),
        None => format!("{}:{port}", options.get_host()),
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let places: Vec<String> = self.0.iter().map(place).collect();
        // What is not a place is the same for all; there is always one.
        let Some(options) = self.0.first() else {
            return Ok(());
        };
        let user = options.get_username();
        let database = options.get_database().unwrap_or(user);
        write!(f, "postgres://{user}@{}/{database}", places.join(","))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

// === impl Options ===

impl Default for Options {
    fn default() -> Self {
        Self {
            cache: cache::Config::default(),
            queue: Limits::default(),
            sealer: Arc::default(),
            patience: Duration::from_secs(10),
            read_patience: Duration::from_secs(10),
            poll: Duration::from_secs(1),
            housekeeping: Duration::from_secs(30),
        }
    }
}

// === impl Postgres ===

impl Postgres {
    /// Connects, prepares the database if it is new, and loads it. `indexer` is asked once per object and per superseded
    /// state, from several threads when there are many.
    ///
    /// # Errors
    /// `Unavailable` when the database cannot be reached or read, is damaged, was written by a newer version, or cannot
    /// keep the store's promises (see [`connect`]).
    pub async fn open(address: Address, indexer: Indexer) -> Result<Self, Error> {
        Self::open_with(address, indexer, Options::default()).await
    }

    pub async fn open_with(
        address: Address,
        indexer: Indexer,
        options: Options,
    ) -> Result<Self, Error> {
        let server = Arc::new(Server::new(address));
        let mut connection = server.connect().await?;
        server.migrate(&mut connection).await?;
        let listener = server.listener(&mut connection).await?;
        let loaded = load::load(
            &mut connection,
            Arc::clone(&indexer),
            Arc::clone(&options.sealer),
        );
        let (loaded, last) = loaded.await?;
        reseal::run(&mut connection, &options.sealer).await?;
        let forgotten = loaded.horizon;
        let cache = Arc::new(Cache::load(options.cache.clone(), loaded));
        let publisher = Arc::new(Publisher::new(
            Arc::clone(&cache),
            last,
            indexer,
            Arc::clone(&options.sealer),
        ));
        let (queue, requests) = Queue::new(options.queue.clone());
        let (writing, following) = (Arc::<Health>::default(), Arc::<Health>::default());
        let (closing, ended) = (CancellationToken::new(), CancellationToken::new());
        let asking = Arc::new(Asking::new());
        let tasks = TaskTracker::new();
        let follower = Follower::new(
            Arc::clone(&server),
            Arc::clone(&publisher),
            Arc::clone(&asking),
            Arc::clone(&following),
        );
        tasks.spawn(follower.run(options.poll, ended.clone()));
        let listening = follower::listen(
            Arc::clone(&server),
            listener,
            Arc::clone(&asking),
            ended.clone(),
        );
        tasks.spawn(listening);
        let keeper = Keeper::new(Arc::clone(&server), Arc::clone(&cache), forgotten);
        tasks.spawn(keeper.run(options.housekeeping, closing.clone()));
        let writer = Writer::new(
            server,
            connection,
            publisher,
            requests,
            Arc::clone(&writing),
            options.sealer,
            options.patience,
        );
        let (stop, end) = (closing.clone(), ended.clone().drop_guard());
        tasks.spawn(async move {
            writer.run(stop).await;
            drop(end);
        });
        tasks.close();
        Ok(Self {
            cache,
            queue,
            asking,
            read_patience: options.read_patience,
            writing,
            following,
            closing,
            ended,
            tasks,
        })
    }

    fn closed(&self) -> Error {
        let why = if self.closing.is_cancelled() {
            "it has been closed"
        } else {
            "its writer has stopped"
        };
        Error::Unavailable(why.to_owned())
    }

    async fn catch_up(&self) -> Result<(), Error> {
        if self.ended.is_cancelled() {
            return Err(self.closed());
        }
        let reached = tokio::time::timeout(self.read_patience, self.asking.ask());
        reached.await.map_err(|_| {
            let known = self.following.get();
            known.unwrap_or_else(|| Error::Unavailable("no answer from the database".to_owned()))
        })
    }
}

/// Text in Postgres has no zeros, and an entry of an index has an end.
fn fits(key: &Key) -> bool {
    let parts = [&*key.resource, &*key.namespace, &*key.name];
    let size: usize = parts.iter().map(|part| part.len()).sum();
    size <= MOST_KEY && !parts.iter().any(|part| part.contains('\0'))
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

#[async_trait]
impl Store for Postgres {
    fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    async fn commit(&self, operations: Vec<Operation>) -> Result<Vec<Arc<Stored>>, Error> {
        if operations.is_empty() {
            return Ok(Vec::new());
        }
        // One bad name must not fail what others commit at the same time.
        if let Some(operation) = operations.iter().find(|operation| !fits(&operation.key)) {
            let shown: String = operation.key.name.chars().take(64).collect();
            let why = format!(
                "no name can be {shown:?} ({} bytes)",
                operation.key.name.len()
            );
            return Err(Error::Unavailable(why));
        }
        self.queue.commit(operations, || self.closed()).await
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn newest(&self) -> Option<BoxFuture<'_, Result<(), Error>>> {
        Some(Box::pin(self.catch_up()))
    }

    async fn compact(&self, through: Revision) -> Result<(), Error> {
        // The keeper lets the database follow.
        self.cache.compact(through);
        Ok(())
    }

    fn health(&self) -> Result<(), Error> {
        if self.queue.is_closed() {
            return Err(self.closed());
        }
        let error = self.writing.get().or_else(|| self.following.get());
        error.map_or(Ok(()), Err)
    }

    async fn close(&self) {
        self.closing.cancel();
        self.cache.end_watches();
        self.tasks.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_fits_into_an_index() {
        let key = |length| Key::new("roles", "default", &"x".repeat(length));
        assert!(fits(&key(1_988)) && !fits(&key(1_989)));
        assert!(!fits(&Key::new("roles", "default", "a\0b")));
    }

    #[test]
    fn an_address_never_shows_its_password() {
        let url = "postgres://ann:hush@db.example:5433/prod?sslmode=require";
        let address = Address::parse(url).expect("an address");
        assert_eq!(
            format!("{address:?} {address}"),
            "postgres://ann@db.example:5433/prod postgres://ann@db.example:5433/prod"
        );
        let error = Address::parse("postgres://ann:hush@db:port/prod").expect_err("no port");
        assert!(!error.to_string().contains("hush"), "{error}");
    }

    #[test]
    fn several_hosts_are_several_places() {
        let url = "postgres://ann:hush@a,b:5433,[::1]:5434/prod?target_session_attrs=read-write&sslmode=require";
        let address = Address::parse(url).expect("an address");
        assert_eq!(
            address.to_string(),
            "postgres://ann@a:5432,b:5433,[::1]:5434/prod"
        );
        let passwords = "postgres://ann:hu,sh@a/prod";
        assert_eq!(Address::parse(passwords).expect("an address").0.len(), 1);
        for (wrong, why) in [
            ("postgres://ann:hush@a,,b/prod", "it must be like"),
            (
                "postgres://ann:hush@a/prod?target_session_attrs=standby",
                "read-write",
            ),
            ("postgres:///prod?host=a,b&password=hush", "before the path"),
        ] {
            let error = Address::parse(wrong).expect_err(wrong).to_string();
            assert!(error.contains(why) && !error.contains("hush"), "{error}");
        }
    }
}
