//! One list-and-watch per kind for the whole crate, kept in a store that everybody reads.
//!
//! Owns the watches and the cached objects. Never decides: handlers are told old and new version and put keys into
//! queues. Nothing else in this crate opens a watch.
//!
//! # Guarantees
//! - Handlers run in the order of revisions, after the store holds the new version, before [`Store::reached`] says so.
//! - A handler that comes later is told of everything there is, as if it had just been added; one whose term has ended is
//!   told nothing more.
//! - A lost watch is resumed at its last revision; when that is gone (410), a new list is compared with the store and the
//!   differences are told like events. No change is missed for good, though versions in between may be.
//! - An object that cannot be read is as if it were not there, with a warning that names it; the others go on.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use futures::TryStreamExt;
use kube::Client;
use kube::api::WatchEvent;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

mod item;
use types::error::chain;

use crate::objects::{Key, Watched};
use item::{Item, List, Unreadable};

/// How long the server is asked to keep one watch open.
const WATCH_SECONDS: u64 = 290;
/// A watch that says nothing for longer than it was asked to live is dead.
const WATCH_SILENCE: Duration = Duration::from_secs(WATCH_SECONDS + 10);
const LIST_DEADLINE: Duration = Duration::from_secs(30);
const PAGE: usize = 500;
/// A watch that ends sooner than this is followed by a pause.
const BRIEF: Duration = Duration::from_millis(100);

/// What happened to one object: `(None, Some)` added, `(Some, Some)` changed, `(Some, None)` gone.
pub struct Change<'a, T> {
    pub old: Option<&'a Arc<T>>,
    pub new: Option<&'a Arc<T>>,
}

type Handler<T> = Box<dyn Fn(Change<'_, T>) + Send + Sync>;

/// All objects of one kind, as somebody sees them who is interested until his term ends.
pub struct Store<T> {
    inner: Arc<Inner<T>>,
    /// Handlers added through this view are told nothing any more once it is cancelled.
    term: CancellationToken,
}

struct Inner<T> {
    url: String,
    accept: Option<&'static str>,
    /// Part of the query, already escaped; may be empty.
    query: Cow<'static, str>,
    index: fn(&T) -> Option<String>,
    /// Short sections only, never held over an await.
    state: RwLock<State<T>>,
    handlers: Mutex<Vec<(CancellationToken, Handler<T>)>>,
    /// The newest revision seen; `None` until the first list is complete.
    revision: watch::Sender<Option<u64>>,
}

struct State<T> {
    objects: BTreeMap<Key, Arc<T>>,
    index: HashMap<String, BTreeSet<Key>>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("list {url}")]
    List { url: String, source: kube::Error },
    #[error("watch {url}")]
    Watch { url: String, source: kube::Error },
    #[error("{url} did not answer within {deadline:?}")]
    Deadline { url: String, deadline: Duration },
    #[error("build a request for {url}")]
    Request { url: String, source: http::Error },
    #[error("watch {url}: revision {revision} is gone")]
    Gone { url: String, revision: u64 },
}

// === impl Store ===

impl<T: Watched> Store<T> {
    pub fn new(url: String) -> Self {
        Self::indexed(url, |_| None)
    }

    /// A store that also finds objects by a value computed from each.
    pub fn indexed(url: String, index: fn(&T) -> Option<String>) -> Self {
        Self::build(url, None, index)
    }

    /// A store that asks the server for metadata only.
    pub fn metadata_only(url: String) -> Self {
        Self::build(
            url,
            Some(
                "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json",
            ),
            |_| None,
        )
    }

    /// A store of the objects that a query selects, such as `fieldSelector=type%3Dx`.
    pub fn selected(url: String, query: &'static str) -> Self {
        Self::queried(url, Cow::Borrowed(query))
    }

    /// A store of at most one object, the one of that name.
    pub fn named(url: String, name: &str) -> Self {
        let mut query = "fieldSelector=metadata.name%3D".to_owned();
        query.extend(percent_encode(name));
        Self::queried(url, Cow::Owned(query))
    }

    fn queried(url: String, query: Cow<'static, str>) -> Self {
        let mut store = Self::new(url);
        if let Some(inner) = Arc::get_mut(&mut store.inner) {
            inner.query = query;
        }
        store
    }

    fn build(url: String, accept: Option<&'static str>, index: fn(&T) -> Option<String>) -> Self {
        Self {
            inner: Arc::new(Inner {
                url,
                accept,
                query: Cow::Borrowed(""),
                index,
                state: RwLock::new(State {
                    objects: BTreeMap::new(),
                    index: HashMap::new(),
                }),
                handlers: Mutex::new(Vec::new()),
                revision: watch::channel(None).0,
            }),
            term: CancellationToken::new(),
        }
    }

    /// The same objects for somebody whose handlers end with `term`.
    #[must_use]
    pub fn during(&self, term: &CancellationToken) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            term: term.clone(),
        }
    }

    /// Adds a handler. What the store holds already is told at once, as added; what changes at this very moment may be
    /// told twice.
    pub fn on_change(&self, handler: impl Fn(Change<'_, T>) + Send + Sync + 'static) {
        let mut handlers = self.inner.handlers();
        handlers.retain(|(term, _)| !term.is_cancelled());
        for object in self.all() {
            handler(Change {
                old: None,
                new: Some(&object),
            });
        }
        handlers.push((self.term.clone(), Box::new(handler)));
    }

    pub fn get(&self, key: &Key) -> Option<Arc<T>> {
        self.inner.read().objects.get(key).cloned()
    }

    pub fn all(&self) -> Vec<Arc<T>> {
        self.inner.read().objects.values().cloned().collect()
    }

    pub fn keys(&self) -> Vec<Key> {
        self.inner.read().objects.keys().cloned().collect()
    }

    /// The objects of one namespace that pass, in the order of their names.
    pub fn in_namespace(&self, namespace: &str, keep: impl Fn(&T) -> bool) -> Vec<Arc<T>> {
        self.inner
            .read()
            .objects
            .range(Key::new(namespace, "")..)
            .take_while(|(key, _)| key.namespace == namespace)
            .filter(|(_, object)| keep(object))
            .map(|(_, object)| Arc::clone(object))
            .collect()
    }

    /// The objects with that index value, in the order of their keys.
    pub fn by_index(&self, value: &str) -> Vec<Arc<T>> {
        let state = self.inner.read();
        let Some(keys) = state.index.get(value) else {
            return Vec::new();
        };
        keys.iter()
            .filter_map(|key| state.objects.get(key).cloned())
            .collect()
    }

    #[cfg(test)]
    pub(crate) fn url(&self) -> &str {
        &self.inner.url
    }

    /// Waits until the first list is complete.
    pub async fn synced(&self) {
        // The sender lives as long as `self`, so this cannot fail.
        let _ = self
            .inner
            .revision
            .subscribe()
            .wait_for(Option::is_some)
            .await;
    }

    /// Waits until the store has seen `revision`, so that the caller's own write is visible. False after the deadline.
    pub async fn reached(&self, revision: u64, deadline: Duration) -> bool {
        let mut seen = self.inner.revision.subscribe();
        let wait = seen.wait_for(|r| r.is_some_and(|r| r >= revision));
        matches!(timeout(deadline, wait).await, Ok(Ok(_)))
    }

    /// Lists and watches until told to stop.
    pub async fn run(&self, client: Client, shutdown: CancellationToken) {
        self.inner.run(client, shutdown).await;
    }
}

// === impl Inner ===

impl<T: Watched> Inner<T> {
    /// Lists and watches until told to stop.
    async fn run(&self, client: Client, shutdown: CancellationToken) {
        let mut failures = 0u32;
        let mut resume = None;
        while !shutdown.is_cancelled() {
            let began = tokio::time::Instant::now();
            let round = self.round(&client, &mut resume, &mut failures);
            let result = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                result = round => result,
            };
            let pause = if let Err(error) = result {
                failures = failures.saturating_add(1);
                if matches!(error, Error::Gone { .. }) {
                    info!(error = %chain(&error), "Listing again");
                } else {
                    warn!(error = &error as &dyn std::error::Error, "Watch failed");
                }
                let (first, cap) = (Duration::from_millis(50), Duration::from_secs(10));
                Some(crate::reconcile::backoff(failures, first, cap))
            } else {
                // A server that ends every watch at once is not to be asked without pause.
                (began.elapsed() < BRIEF).then_some(BRIEF)
            };
            if let Some(pause) = pause {
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => return,
                    () = tokio::time::sleep(pause) => {}
                }
            }
        }
    }

    /// One list when there is nothing to resume, then one watch until it ends.
    async fn round(
        &self,
        client: &Client,
        resume: &mut Option<u64>,
        failures: &mut u32,
    ) -> Result<(), Error> {
        let from = match *resume {
            Some(revision) => revision,
            None => {
                let (revision, items) = self.list(client).await?;
                self.replace(items, revision);
                *resume = Some(revision);
                *failures = 0;
                revision
            }
        };
        let result = self.watch(client, from, failures).await;
        *resume = match &result {
            Err(Error::Gone { .. }) => None,
            _ => *self.revision.borrow(),
        };
        result
    }

    async fn list(&self, client: &Client) -> Result<(u64, Vec<T>), Error> {
        let mut items = Vec::new();
        let mut token = String::new();
        loop {
            let mut query = format!("{}?limit={PAGE}&{}", self.url, self.query);
            if !token.is_empty() {
                query.push_str("&continue=");
                query.extend(percent_encode(&token));
            }
            let request = self.request(query)?;
            let page: List<T> = timeout(LIST_DEADLINE, client.request(request))
                .await
                .map_err(|_| Error::Deadline {
                    url: self.url.clone(),
                    deadline: LIST_DEADLINE,
                })?
                .map_err(|source| Error::List {
                    url: self.url.clone(),
                    source,
                })?;
            items.extend(
                page.items
                    .into_iter()
                    .filter_map(|item| self.readable(item)),
            );
            token = page.metadata.continue_;
            if token.is_empty() {
                let revision = page.metadata.resource_version.parse().unwrap_or(0);
                return Ok((revision, items));
            }
        }
    }

    async fn watch(&self, client: &Client, from: u64, failures: &mut u32) -> Result<(), Error> {
        let request = self.request(format!(
            "{}?watch=true&allowWatchBookmarks=true&timeoutSeconds={WATCH_SECONDS}&resourceVersion={from}&{}",
            self.url, self.query
        ))?;
        let failed = |source| Error::Watch {
            url: self.url.clone(),
            source,
        };
        let gone = || Error::Gone {
            url: self.url.clone(),
            revision: from,
        };
        let events = timeout(LIST_DEADLINE, client.request_events::<Item<T>>(request))
            .await
            .map_err(|_| Error::Deadline {
                url: self.url.clone(),
                deadline: LIST_DEADLINE,
            })?
            .map_err(|source| {
                if is_gone(&source) {
                    gone()
                } else {
                    failed(source)
                }
            })?;
        let mut events = pin!(events);
        loop {
            let next = timeout(WATCH_SILENCE, events.try_next()).await;
            let Ok(next) = next else {
                debug!(url = self.url, "Watch went silent");
                return Ok(());
            };
            let event = next.map_err(|source| {
                if is_gone(&source) {
                    gone()
                } else {
                    failed(source)
                }
            })?;
            match event {
                None => return Ok(()),
                Some(WatchEvent::Added(item) | WatchEvent::Modified(item)) => self.put(item),
                Some(WatchEvent::Deleted(item)) => self.remove(&item),
                Some(WatchEvent::Bookmark(mark)) => {
                    self.advance(mark.metadata.resource_version.parse().unwrap_or(0));
                }
                Some(WatchEvent::Error(status)) if status.code == 410 => return Err(gone()),
                Some(WatchEvent::Error(status)) => return Err(failed(kube::Error::Api(status))),
            }
            *failures = 0;
        }
    }

    fn request(&self, uri: String) -> Result<http::Request<Vec<u8>>, Error> {
        let mut request = http::Request::get(uri);
        if let Some(accept) = self.accept {
            request = request.header(http::header::ACCEPT, accept);
        }
        request.body(Vec::new()).map_err(|source| Error::Request {
            url: self.url.clone(),
            source,
        })
    }

    /// Takes a complete list: what is not in it is gone.
    fn replace(&self, items: Vec<T>, revision: u64) {
        let listed: BTreeSet<Key> = items.iter().map(|o| o.meta().key()).collect();
        let vanished: Vec<Key> = self
            .read()
            .objects
            .keys()
            .filter(|key| !listed.contains(*key))
            .cloned()
            .collect();
        for key in vanished {
            self.forget(&key);
        }
        for object in items {
            self.insert(object);
        }
        self.revision.send_replace(Some(revision));
    }

    fn put(&self, item: Item<T>) {
        let (key, revision) = item.place();
        match self.readable(item) {
            Some(object) => self.insert(object),
            None => self.forget(&key),
        }
        self.advance(revision);
    }

    fn remove(&self, item: &Item<T>) {
        let (key, revision) = item.place();
        self.forget(&key);
        self.advance(revision);
    }

    fn readable(&self, item: Item<T>) -> Option<T> {
        match item {
            Item::Readable(object) => Some(object),
            Item::Unreadable(Unreadable { key, why, .. }) => {
                warn!(url = self.url, object = %key, error = why, "An object cannot be read and is left out");
                None
            }
        }
    }

    fn advance(&self, revision: u64) {
        self.revision.send_if_modified(|seen| match seen {
            Some(seen) if *seen < revision => {
                *seen = revision;
                true
            }
            _ => false,
        });
    }

    fn insert(&self, object: T) {
        let object = Arc::new(object);
        let key = object.meta().key();
        let old = {
            let mut state = self.write();
            let old = state.objects.insert(key.clone(), Arc::clone(&object));
            let (before, after) = (
                old.as_ref().and_then(|o| (self.index)(o)),
                (self.index)(&object),
            );
            if before != after {
                state.unindex(before, &key);
                if let Some(value) = after {
                    state.index.entry(value).or_default().insert(key);
                }
            }
            old
        };
        if let Some(old) = &old {
            if old.meta().resource_version == object.meta().resource_version {
                return;
            }
            if old.meta().uid != object.meta().uid {
                self.tell(Some(old), None);
                return self.tell(None, Some(&object));
            }
        }
        self.tell(old.as_ref(), Some(&object));
    }

    fn forget(&self, key: &Key) {
        let old = {
            let mut state = self.write();
            let Some(old) = state.objects.remove(key) else {
                return;
            };
            state.unindex((self.index)(&old), key);
            old
        };
        self.tell(Some(&old), None);
    }

    fn tell(&self, old: Option<&Arc<T>>, new: Option<&Arc<T>>) {
        let mut handlers = self.handlers();
        handlers.retain(|(term, _)| !term.is_cancelled());
        for (_, handler) in handlers.iter() {
            handler(Change { old, new });
        }
    }

    fn handlers(&self) -> MutexGuard<'_, Vec<(CancellationToken, Handler<T>)>> {
        self.handlers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> RwLockReadGuard<'_, State<T>> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State<T>> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Item ===

impl<T: Watched> Item<T> {
    /// Which object, and which version of it.
    fn place(&self) -> (Key, u64) {
        match self {
            Self::Readable(object) => (object.meta().key(), object.meta().revision()),
            Self::Unreadable(object) => (object.key.clone(), object.revision),
        }
    }
}

// === impl State ===

impl<T> State<T> {
    fn unindex(&mut self, value: Option<String>, key: &Key) {
        let Some(value) = value else { return };
        if let Some(keys) = self.index.get_mut(&value) {
            keys.remove(key);
            if keys.is_empty() {
                self.index.remove(&value);
            }
        }
    }
}

// === impl Change ===

impl<T> Change<'_, T> {
    /// The newest version known.
    pub fn latest(&self) -> Option<&Arc<T>> {
        self.new.or(self.old)
    }

    /// Both versions, old first.
    pub fn both(&self) -> impl Iterator<Item = &Arc<T>> {
        self.old.into_iter().chain(self.new)
    }
}

fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 410)
}

/// Continue tokens are opaque: everything that is not plainly safe in a query is escaped.
fn percent_encode(token: &str) -> impl Iterator<Item = char> + '_ {
    token.bytes().flat_map(|byte| {
        let plain = byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
        let text = if plain {
            char::from(byte).to_string()
        } else {
            format!("%{byte:02X}")
        };
        text.chars().collect::<Vec<_>>()
    })
}

#[cfg(test)]
mod tests;
