//! The watch cache: what every read is answered from. Current objects, the recent history, and the open watches.
//! It owns finished bytes and their index, and never parses them; it never writes: the store publishes into it what
//! has become durable, before the writer is answered.
//!
//! ```text
//! store ── publish(events) ──► objects (persistent ordered set per resource) ──► get, snapshot
//!                          ├─► ring of events, a checkpoint every 512       ──► snapshot_at, watch from a revision
//!                          └─► one bounded queue per watcher                ──► Watcher::next
//! ```
//! An older state is the nearest later checkpoint with the events since taken back. What is older than the
//! *horizon* is forgotten: `Error::Compacted`.

mod clock;
mod objects;
mod watch;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use tokio::sync::{mpsc, watch as latest};
use tokio::time::Instant;

use self::clock::{Clock, Marks};
pub use self::clock::{Mark, Millis};
use self::objects::Objects;
pub use self::objects::Snapshot;
pub use self::watch::{Interest, Watcher};
use self::watch::{Place, Watchers};
use crate::store::{Error, Event, Key, Revision, Stored};

/// Events between two checkpoints of a resource: the most that must be taken back to read an old state.
const CHECKPOINT_EVERY: usize = 512;
/// Bytes an event costs beside those of superseded objects.
const EVENT_OVERHEAD: usize = 160;

/// How much history is kept, and how far a watcher may fall behind.
#[derive(Clone, Debug)]
pub struct Config {
    /// History younger than this is kept…
    pub keep: Duration,
    /// …and so are this many revisions, however old…
    pub at_least: u64,
    /// …but never more than this many bytes of superseded states.
    pub max_bytes: usize,
    /// Events a watcher may leave in its queue before it is ended.
    pub watcher_queue: usize,
    /// How far back `older_than` can tell.
    pub keep_times: Duration,
}

/// See the module. Every method is quick and none waits, but `wait_for`.
pub struct Cache {
    config: Config,
    clock: Clock,
    /// Held for look-ups, and for the publication of one batch; never over an await.
    state: RwLock<State>,
    newest: latest::Sender<Revision>,
    next_watcher: AtomicU64,
    slow_watchers: AtomicU64,
}

/// What a store found on its medium.
#[derive(Default)]
pub struct Loaded {
    pub revision: Revision,
    /// Events up to and including this revision are not known.
    pub horizon: Revision,
    pub objects: Vec<Arc<Stored>>,
    /// All after the horizon, by revision.
    pub events: Vec<Arc<Event>>,
    /// By time.
    pub marks: Vec<Mark>,
    /// The time now.
    pub now: Millis,
}

/// Figures for metrics and for whoever wonders.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    pub revision: Revision,
    pub horizon: Revision,
    pub events: usize,
    pub event_bytes: usize,
    /// Watches ended because they did not keep up.
    pub slow_watchers: u64,
    /// By resource: objects and open watches.
    pub resources: Vec<(Arc<str>, usize, usize)>,
}

#[derive(Default)]
struct State {
    revision: Revision,
    /// The oldest revision whose state can be read, and after which can be watched.
    horizon: Revision,
    resources: HashMap<Arc<str>, Resource>,
    namespaces: HashSet<Arc<str>>,
    events: VecDeque<Arc<Event>>,
    event_bytes: usize,
    marks: Option<Marks>,
}

#[derive(Default)]
struct Resource {
    objects: Objects,
    events: VecDeque<Arc<Event>>,
    /// Objects right after the event of that revision; oldest first.
    checkpoints: VecDeque<(Revision, Objects)>,
    since_checkpoint: usize,
    watchers: Watchers,
}

// === impl Config ===

impl Default for Config {
    fn default() -> Self {
        Self {
            keep: Duration::from_secs(300),
            at_least: 1_000,
            max_bytes: 64 << 20,
            watcher_queue: 8_192,
            keep_times: Duration::from_secs(2 * 3600),
        }
    }
}

// === impl Cache: reading ===

impl Cache {
    pub fn new(config: Config) -> Self {
        Self::load(config, Loaded::default())
    }

    /// The newest revision whose change readers can see.
    pub fn revision(&self) -> Revision {
        self.read().revision
    }

    pub fn get(&self, key: &Key) -> Option<Arc<Stored>> {
        self.find(&key.resource, &key.namespace, &key.name)
    }

    pub fn find(&self, resource: &str, namespace: &str, name: &str) -> Option<Arc<Stored>> {
        let state = self.read();
        let objects = &state.resources.get(resource)?.objects;
        objects.get(namespace, name).map(Arc::clone)
    }

    /// The newest state of a resource; empty when nothing of it was ever stored. O(1).
    pub fn snapshot(&self, resource: &str) -> Snapshot {
        let state = self.read();
        let objects = state.resources.get(resource).map(|r| r.objects.clone());
        Snapshot::new(state.revision, objects.unwrap_or_default())
    }

    /// The state of a resource at exactly `revision`; at the newest when `revision` has not been reached, so ask
    /// [`Cache::wait_for`] before.
    ///
    /// # Errors
    /// `Compacted` when that state has been forgotten.
    pub fn snapshot_at(&self, resource: &str, revision: Revision) -> Result<Snapshot, Error> {
        let state = self.read();
        let revision = revision.min(state.revision);
        state.check(revision)?;
        let Some(resource) = state.resources.get(resource) else {
            return Ok(Snapshot::new(revision, Objects::default()));
        };
        let (mut objects, undo) = resource.around(revision);
        drop(state);
        for event in undo.iter().rev() {
            objects.undo(event);
        }
        Ok(Snapshot::new(revision, objects))
    }

    /// Every change of `resource` after revision `after`, in order, then those to come. A revision in the future
    /// waits for it.
    ///
    /// # Errors
    /// `Compacted` when changes after `after` have been forgotten.
    pub fn watch(self: &Arc<Self>, resource: &str, after: Revision) -> Result<Watcher, Error> {
        self.watch_for(resource, after, Interest::default())
    }

    /// As [`Cache::watch`], of only what `interest` wants: others' changes do not wake the watcher.
    pub fn watch_for(
        self: &Arc<Self>,
        resource: &str,
        after: Revision,
        interest: Interest,
    ) -> Result<Watcher, Error> {
        let id = self.next_watcher.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = mpsc::channel(self.config.watcher_queue);
        let mut state = self.write();
        state.check(after)?;
        let (name, entry) = state.resource(resource);
        let backlog: Vec<_> = entry
            .after(after)
            .filter(|event| interest.wants(event))
            .cloned()
            .collect();
        let place = Place {
            resource: name,
            namespace: interest.namespace.clone(),
            id,
        };
        entry.watchers.add(id, after, interest, sender);
        drop(state);
        Ok(Watcher::new(
            Arc::clone(self),
            place,
            backlog,
            receiver,
            after,
        ))
    }

    /// Waits until `revision` can be read.
    ///
    /// # Errors
    /// The newest revision, when it has not been reached at `deadline`.
    pub async fn wait_for(&self, revision: Revision, deadline: Instant) -> Result<(), Revision> {
        let mut newest = self.newest.subscribe();
        let reached = newest.wait_for(|newest| *newest >= revision);
        match tokio::time::timeout_at(deadline, reached).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(self.revision()),
        }
    }

    /// What has a higher revision was written less than `age` ago, or a few seconds more. By this server's clock and
    /// the store's marks; nobody else's time stamps.
    pub fn reached_before(&self, age: Duration) -> Revision {
        self.read().reached(self.now(), age)
    }

    /// Objects of `resource` last written at least `age` ago, a few seconds late at most: what a reaper deletes
    /// (with `Expect::At(object.revision)`). Linear in the number of objects, a pointer's look at each.
    pub fn older_than(&self, resource: &str, age: Duration) -> Vec<Arc<Stored>> {
        let snapshot = self.snapshot(resource);
        let limit = self.reached_before(age);
        let old = snapshot.iter().filter(|object| object.revision <= limit);
        old.cloned().collect()
    }

    /// The resources that have, or had, objects; in no order.
    pub fn resources(&self) -> Vec<Arc<str>> {
        self.read().resources.keys().cloned().collect()
    }

    pub fn stats(&self) -> Stats {
        let state = self.read();
        let resources = state.resources.iter();
        Stats {
            revision: state.revision,
            horizon: state.horizon,
            events: state.events.len(),
            event_bytes: state.event_bytes,
            slow_watchers: self.slow_watchers.load(Ordering::Relaxed),
            resources: resources
                .map(|(name, r)| (Arc::clone(name), r.objects.len(), r.watchers.len()))
                .collect(),
        }
    }
}

// === impl Cache: for the stores ===

impl Cache {
    /// A cache that begins with what a store has found.
    pub(crate) fn load(config: Config, loaded: Loaded) -> Self {
        let (state, now) = State::of(&config, loaded);
        Self {
            clock: Clock::starting_at(now),
            newest: latest::Sender::new(state.revision),
            state: RwLock::new(state),
            next_watcher: AtomicU64::new(0),
            slow_watchers: AtomicU64::new(0),
            config,
        }
    }

    /// Starts over from what a store has found, when the changes in between have been forgotten: all watches end, and
    /// whoever resumes one learns that it is too old.
    pub(crate) fn replace(&self, mut loaded: Loaded) {
        loaded.now = self.now();
        let (state, _) = State::of(&self.config, loaded);
        let revision = state.revision;
        let garbage = std::mem::replace(&mut *self.write(), state);
        self.newest.send_replace(revision);
        drop(garbage);
    }

    pub(crate) fn now(&self) -> Millis {
        self.clock.now()
    }

    /// The mark a durable store writes down with the batch it publishes at `at`.
    pub(crate) fn due_mark(&self, at: Millis) -> Option<Mark> {
        self.read().marks.as_ref()?.due(at)
    }

    /// The oldest mark worth keeping.
    pub(crate) fn oldest_mark(&self) -> Option<Mark> {
        self.read().marks.as_ref()?.oldest()
    }

    pub(crate) fn horizon(&self) -> Revision {
        self.read().horizon
    }

    /// Shows `events`, which are durable now and follow the newest revision without a gap, to readers and watchers.
    pub(crate) fn publish(&self, events: Vec<Arc<Event>>, at: Millis) {
        let Some(last) = events.last().map(|event| event.revision) else {
            return;
        };
        let mut state = self.write();
        let mut slow = 0;
        for event in events {
            assert_eq!(event.revision, state.revision + 1, "revisions have no gaps");
            state.revision = event.revision;
            let (_, resource) = state.resource(&event.object.key.resource);
            resource.apply(&event);
            slow += resource.watchers.offer(&event);
            state.remember(event);
        }
        if let Some(marks) = &mut state.marks {
            marks.note(at, last);
        }
        let garbage = state.trim(&self.config, at);
        drop(state);
        self.newest.send_replace(last);
        self.slow_watchers.fetch_add(slow as u64, Ordering::Relaxed);
        drop(garbage);
    }

    /// Applies retention without a write, for a store that has been quiet.
    pub(crate) fn trim(&self) {
        let garbage = self.write().trim(&self.config, self.now());
        drop(garbage);
    }

    pub(crate) fn compact(&self, through: Revision) {
        let garbage = self.write().forget_through(through);
        drop(garbage);
    }

    /// Ends every watch, cleanly.
    pub(crate) fn end_watches(&self) {
        let mut state = self.write();
        for resource in state.resources.values_mut() {
            resource.watchers.clear();
        }
    }

    /// The same key, sharing its strings with others where it can.
    pub(crate) fn intern(&self, key: Key) -> Key {
        let state = self.read();
        let resource = state.resources.get_key_value(&key.resource);
        let namespace = state.namespaces.get(&key.namespace);
        Key {
            resource: resource.map_or(key.resource, |(name, _)| Arc::clone(name)),
            namespace: namespace.map_or(key.namespace, Arc::clone),
            name: key.name,
        }
    }

    /// Runs `look` while nothing is being published.
    fn quiet<T>(&self, look: impl FnOnce(Revision) -> T) -> T {
        let state = self.read();
        look(state.revision)
    }

    fn forget(&self, place: &Place) {
        let mut state = self.write();
        if let Some(resource) = state.resources.get_mut(&place.resource) {
            resource.watchers.remove(place);
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl State ===

impl State {
    /// What was found, and the time it is.
    fn of(config: &Config, loaded: Loaded) -> (Self, Millis) {
        // The clock never runs backwards over a restart, or marks would lie.
        let latest = loaded.marks.last().map_or(0, |mark| mark.at);
        let mut state = Self {
            revision: loaded.revision,
            horizon: loaded.horizon,
            marks: Some(Marks::new(
                Duration::from_secs(5).min(config.keep / 8),
                config.keep_times.max(config.keep),
                loaded.marks,
            )),
            ..Self::default()
        };
        for object in loaded.objects {
            let (_, resource) = state.resource(&Arc::clone(&object.key.resource));
            resource.objects.put(object);
        }
        for event in loaded.events {
            state.remember(event);
        }
        (state, loaded.now.max(latest))
    }

    fn check(&self, revision: Revision) -> Result<(), Error> {
        if revision >= self.horizon {
            return Ok(());
        }
        Err(Error::Compacted {
            requested: revision,
            oldest: self.horizon,
        })
    }

    fn resource(&mut self, name: &str) -> (Arc<str>, &mut Resource) {
        // Two look-ups for a known resource, but no allocation.
        let name = match self.resources.get_key_value(name) {
            Some((name, _)) => Arc::clone(name),
            None => Arc::from(name),
        };
        let resource = self.resources.entry(Arc::clone(&name)).or_default();
        (name, resource)
    }

    /// Adds an event to the history.
    fn remember(&mut self, event: Arc<Event>) {
        self.event_bytes += cost(&event);
        let key = &event.object.key;
        if !self.namespaces.contains(&key.namespace) {
            self.share(&Arc::clone(&key.namespace));
        }
        let (_, resource) = self.resource(&event.object.key.resource);
        resource.events.push_back(Arc::clone(&event));
        self.events.push_back(event);
    }

    fn share(&mut self, namespace: &Arc<str>) {
        // Namespaces nobody uses any more are swept out each time the set doubles.
        if self.namespaces.len() >= 1_024 && self.namespaces.len().is_power_of_two() {
            self.namespaces.retain(|name| Arc::strong_count(name) > 1);
        }
        self.namespaces.insert(Arc::clone(namespace));
    }

    /// The revision that was the newest `age` ago; 0 when that is not known.
    fn reached(&self, now: Millis, age: Duration) -> Revision {
        let then = now.checked_sub(clock::millis(age));
        let marks = then.zip(self.marks.as_ref());
        marks.map_or(0, |(then, marks)| marks.revision_at(then))
    }

    /// Applies retention at `now`. What is returned is dropped outside of the lock.
    fn trim(&mut self, config: &Config, now: Millis) -> Vec<Arc<Event>> {
        let by_age = self.reached(now, config.keep);
        let by_count = self.revision.saturating_sub(config.at_least);
        let mut through = by_age.min(by_count);
        let mut excess = self.event_bytes.saturating_sub(config.max_bytes);
        for event in &self.events {
            if excess == 0 {
                break;
            }
            excess = excess.saturating_sub(cost(event));
            through = through.max(event.revision);
        }
        self.forget_through(through)
    }

    fn forget_through(&mut self, through: Revision) -> Vec<Arc<Event>> {
        let through = through.min(self.revision);
        if through <= self.horizon {
            return Vec::new();
        }
        self.horizon = through;
        let count = self.events.partition_point(|e| e.revision <= through);
        let garbage: Vec<_> = self.events.drain(..count).collect();
        for event in &garbage {
            self.event_bytes -= cost(event);
            if let Some(resource) = self.resources.get_mut(&event.object.key.resource) {
                resource.forget_through(through);
            }
        }
        garbage
    }
}

/// Bytes that only the history keeps alive because of this event.
fn cost(event: &Event) -> usize {
    let superseded = event.previous.as_ref().map_or(0, |p| p.bytes.len());
    let last = if event.deleted {
        event.object.bytes.len()
    } else {
        0
    };
    superseded + last + EVENT_OVERHEAD
}

// === impl Resource ===

impl Resource {
    fn apply(&mut self, event: &Event) {
        self.objects.apply(event);
        self.since_checkpoint += 1;
        if self.since_checkpoint == CHECKPOINT_EVERY {
            self.since_checkpoint = 0;
            let checkpoint = (event.revision, self.objects.clone());
            self.checkpoints.push_back(checkpoint);
        }
    }

    fn after(&self, revision: Revision) -> impl Iterator<Item = &Arc<Event>> {
        let first = self.events.partition_point(|e| e.revision <= revision);
        self.events.range(first..)
    }

    /// The nearest state at or after `revision`, and the events to take back to get there, oldest first.
    fn around(&self, revision: Revision) -> (Objects, Vec<Arc<Event>>) {
        let next = self.checkpoints.partition_point(|(at, _)| *at < revision);
        let (until, objects) = match self.checkpoints.get(next) {
            Some((at, objects)) => (*at, objects.clone()),
            None => (Revision::MAX, self.objects.clone()),
        };
        let undo = self.after(revision).take_while(|e| e.revision <= until);
        (objects, undo.cloned().collect())
    }

    fn forget_through(&mut self, through: Revision) {
        while self.events.front().is_some_and(|e| e.revision <= through) {
            self.events.pop_front();
        }
        while self.checkpoints.front().is_some_and(|c| c.0 < through) {
            self.checkpoints.pop_front();
        }
    }
}
