//! Another node: one task that dials it and keeps its connection, and the handle others send through. The task asks
//! `machine` what to do and does it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rand::RngExt;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tracing::{debug, info};
use types::error::chain;

use super::connection::{Connection, Dialler, Driver};
use super::datagrams::{Datagram, Outbox};
use super::kinds::Kinds;
use super::machine::{Action, Event, Link, Machine, Timing, millis};
use super::routes::Target;
use crate::network::SocketError;
use crate::network::nodes::Node;
use crate::network::udp::Lost;

/// Events of a node's connections that may wait; each sends one at a time.
const EVENTS: usize = 16;

/// What to send through to a node.
pub(crate) struct Peer {
    pub(super) node: Arc<Node>,
    status: watch::Receiver<Status>,
    target: watch::Sender<Option<Target>>,
    events: mpsc::Sender<Event>,
    wanted: Arc<Notify>,
    outbox: Arc<Outbox>,
    pub(super) kinds: Kinds,
    /// The tasks, gone with the last handle.
    tasks: Mutex<Vec<AbortOnDropHandle<()>>>,
}

/// What callers see of the link, with the connection when there is one.
#[derive(Clone)]
pub(super) struct Status {
    pub(super) link: Link,
    pub(super) connection: Option<Connection>,
}

/// What a peer's task needs.
#[derive(Clone)]
pub(super) struct Means {
    pub(super) dialler: Arc<Dialler>,
    pub(super) timing: Timing,
    pub(super) tasks: TaskTracker,
    pub(super) stop: CancellationToken,
    pub(super) lost: Arc<Lost>,
}

struct Task {
    node: Arc<Node>,
    means: Means,
    machine: Machine,
    epoch: Instant,
    status: watch::Sender<Status>,
    target: watch::Receiver<Option<Target>>,
    events: mpsc::Sender<Event>,
    connection: Option<Connection>,
    /// Of those that were replaced but may come back: at most the one suspected.
    suspect: Option<Connection>,
    dial: Option<AbortOnDropHandle<std::io::Result<(Connection, Driver)>>>,
    /// Ends its connections.
    closing: CancellationToken,
}

// === impl Peer ===

impl Peer {
    pub(super) fn new(node: Arc<Node>, target: Option<Target>, means: Means) -> Arc<Self> {
        let (status, seen) = watch::channel(Status {
            link: Link::Idle,
            connection: None,
        });
        let (target, target_seen) = watch::channel(target);
        let (events, queue) = mpsc::channel(EVENTS);
        let wanted = Arc::new(Notify::new());
        let task = Task {
            node: Arc::clone(&node),
            machine: Machine::new(means.timing),
            epoch: Instant::now(),
            status,
            target: target_seen,
            events: events.clone(),
            connection: None,
            suspect: None,
            dial: None,
            closing: means.stop.child_token(),
            means: means.clone(),
        };
        let task = means.tasks.spawn(task.run(queue, Arc::clone(&wanted)));
        let outbox = Arc::new(Outbox::new(Arc::clone(&means.lost)));
        let sending = Arc::clone(&outbox).run(seen.clone(), Arc::clone(&wanted));
        let stop = means.stop.clone();
        let sending = means.tasks.spawn(async move {
            // Nobody may ever send anything.
            stop.run_until_cancelled_owned(sending).await;
        });
        Arc::new(Self {
            node,
            outbox,
            kinds: Kinds::default(),
            status: seen,
            target,
            events,
            wanted,
            tasks: Mutex::new(vec![
                AbortOnDropHandle::new(task),
                AbortOnDropHandle::new(sending),
            ]),
        })
    }

    pub(super) fn set_target(&self, target: Option<Target>) {
        self.target.send_if_modified(|known| {
            let before = std::mem::replace(known, target);
            before != target
        });
    }

    /// The node is no more: its connection ends when its streams are gone from under it.
    pub(super) fn close(&self) {
        self.tasks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
        self.node.set_reachable(false);
    }

    /// A connection to open a stream on. Waits for a dial under way, `patient` callers even for one that takes long; fails
    /// at once when the node is known to be dead. Cancel by dropping.
    pub(super) async fn ready(
        &self,
        patient: bool,
        timeout: Duration,
    ) -> Result<Connection, SocketError> {
        if let Some(connection) = &self.status.borrow().connection {
            return Ok(connection.clone());
        }
        let mut status = self.status.clone();
        let decided = |status: &Status| match status.link {
            Link::Up(_) | Link::Down => true,
            Link::Doubtful => !patient,
            Link::Idle | Link::Dialling => false,
        };
        self.wanted.notify_one();
        match tokio::time::timeout(timeout, status.wait_for(decided)).await {
            Ok(Ok(status)) => status.connection.clone().ok_or(SocketError::Unreachable),
            Ok(Err(_)) => Err(SocketError::Unreachable),
            Err(_) => Err(SocketError::TimedOut),
        }
    }

    /// Lost when too much waits already, or the node does not answer: as UDP may lose it.
    pub(crate) fn send_datagram(&self, from: SocketAddr, to: SocketAddr, payload: Bytes) {
        if let Some(datagram) = Datagram::new(from, to, payload) {
            self.outbox.push(datagram);
        }
    }

    /// Whether it is worth while to send anything there.
    pub(crate) fn is_reachable(&self) -> bool {
        self.node.is_reachable()
    }

    /// `connection` takes no new streams.
    pub(super) async fn retired(&self, connection: &Connection) {
        // Nobody listens: the node is gone.
        let _ = self.events.send(Event::Ended(connection.generation)).await;
        let mut status = self.status.clone();
        let other = |status: &Status| status.link != Link::Up(connection.generation);
        // The task is gone: whoever asks next learns that.
        drop(status.wait_for(other).await);
    }
}

// === impl Task ===

impl Task {
    async fn run(mut self, mut events: mpsc::Receiver<Event>, wanted: Arc<Notify>) {
        self.target.mark_changed();
        loop {
            let deadline = self
                .machine
                .deadline()
                .map(|at| self.epoch + Duration::from_millis(at));
            let event = tokio::select! {
                biased;
                () = self.means.stop.cancelled() => return,
                Some(event) = events.recv() => event,
                changed = self.target.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    match *self.target.borrow_and_update() {
                        Some(_) => Event::Addressed,
                        None => Event::Unaddressed,
                    }
                }
                dialled = finished(&mut self.dial) => self.dialled(dialled),
                () = tokio::time::sleep_until(deadline.unwrap_or(self.epoch)), if deadline.is_some() => {
                    Event::Time
                }
                () = wanted.notified() => Event::Wanted,
            };
            self.on(event);
        }
    }

    fn on(&mut self, event: Event) {
        let now = millis(self.epoch.elapsed());
        let mut rng = rand::rng();
        let action = self.machine.on(event, now, |n| rng.random_range(0..n));
        match event {
            Event::Suspected(generation) => {
                self.suspect = self.connection.take_if(|c| c.generation == generation);
            }
            Event::Recovered(generation) if self.connection.is_none() => {
                self.connection = self.suspect.take_if(|c| c.generation == generation);
            }
            Event::Ended(generation) => {
                drop(self.connection.take_if(|c| c.generation == generation));
                drop(self.suspect.take_if(|c| c.generation == generation));
            }
            Event::Dialled => self.suspect = None,
            _ => {}
        }
        match action {
            Some(Action::Dial(generation)) => self.dial = self.begin(generation),
            Some(Action::Abandon) => self.dial = None,
            None => {}
        }
        self.publish();
    }

    fn begin(
        &self,
        generation: u64,
    ) -> Option<AbortOnDropHandle<std::io::Result<(Connection, Driver)>>> {
        let target = (*self.target.borrow())?;
        let dialler = Arc::clone(&self.means.dialler);
        let node = self.node.name.clone();
        let dial = async move { dialler.dial(&node, target, generation).await };
        Some(AbortOnDropHandle::new(self.means.tasks.spawn(dial)))
    }

    fn dialled(
        &mut self,
        dialled: Result<std::io::Result<(Connection, Driver)>, tokio::task::JoinError>,
    ) -> Event {
        self.dial = None;
        match dialled {
            Ok(Ok((connection, driver))) => {
                debug!(node = %self.node.name, generation = connection.generation, "Tunnel is up");
                let (node, generation) = (self.node.name.clone(), connection.generation);
                let (events, stop) = (self.events.clone(), self.closing.clone());
                self.means.tasks.spawn(async move {
                    driver.run(&node, generation, events, stop).await;
                });
                self.connection = Some(connection);
                Event::Dialled
            }
            Ok(Err(error)) => {
                debug!(node = %self.node.name, target = ?*self.target.borrow(), error = %chain(&error), "Tunnel cannot be dialled");
                Event::Failed
            }
            Err(error) => {
                debug!(node = %self.node.name, error = %chain(&error), "Dial of the tunnel was cut short");
                Event::Failed
            }
        }
    }

    fn publish(&self) {
        let (link, reachable) = (self.machine.link(), self.machine.is_reachable());
        self.status.send_if_modified(|status| {
            let changed = status.link != link;
            status.link = link;
            status.connection = match link {
                Link::Up(_) => self.connection.clone(),
                _ => None,
            };
            changed
        });
        // Who waits for the node finds the connection.
        if self.node.is_reachable() != reachable {
            info!(node = %self.node.name, reachable, "Node's reachability changed");
            self.node.set_reachable(reachable);
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.closing.cancel();
        // Callers that wait must not wait for nobody.
        self.status.send_modify(|status| {
            status.link = Link::Down;
            status.connection = None;
        });
    }
}

/// The dial's result; never, when there is none.
async fn finished<T>(dial: &mut Option<AbortOnDropHandle<T>>) -> Result<T, tokio::task::JoinError> {
    match dial {
        Some(dial) => dial.await,
        None => std::future::pending().await,
    }
}
