//! Carries out an election: reads and writes one Lease in `kube-system`, and starts and stops what its holder does.
//!
//! Owns the *term*: what is spawned into it begins when the Lease is ours and has ended, to the last task, before we could
//! begin again. Its fence closes the writers of a term that may be over even where a task has not noticed yet.

#[cfg(test)]
mod tests;

use std::future::pending;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease as LeaseObject;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};
use types::well_known::NAMESPACE_SYSTEM;

use super::{Answer, Candidate, Moment, REQUEST_DEADLINE, Record, Request};
use crate::clock;
use crate::events::{self, Recorder};
use crate::informers::Store;
use crate::objects::{Key, LEASES, Lease, Meta};
use crate::write::{Fence, Target, Writer};

/// Giving the Lease back must not hold a shutdown.
const RELEASE_DEADLINE: Duration = Duration::from_secs(2);

/// What is asked for, and by whom.
pub struct Lock {
    /// The Lease, `kube-scheduler` or `kube-controller-manager`.
    pub name: &'static str,
    /// Nobody else may have the same, not even we before a restart.
    pub identity: String,
    pub writer: Writer,
    pub recorder: Recorder,
    /// Tells when another gives the Lease back.
    pub leases: Arc<Store<Lease>>,
}

/// One time of leading.
pub struct Term {
    /// Cancelled when it is over.
    pub over: CancellationToken,
    /// Closes when it may be over.
    pub fence: Fence,
    /// What runs during it.
    pub tasks: TaskTracker,
}

type Asking = Pin<Box<dyn Future<Output = Answer> + Send>>;

struct Running {
    term: Term,
    deadline: watch::Sender<Instant>,
}

/// Leads whenever it may, until told to stop; `begin` spawns a term's work. Then the Lease is given back, when nothing
/// acts any more, so that another need not wait.
pub async fn run(lock: Lock, shutdown: CancellationToken, begin: impl Fn(&Term)) {
    let origin = Instant::now();
    let moment = |at: Instant| at.duration_since(origin);
    let mut candidate = Candidate::new(lock.identity.clone());
    let freed = lock.listen(&shutdown);
    let mut running: Option<Running> = None;
    let mut asking: Option<(Request, Moment, Asking)> = None;
    loop {
        let now = moment(Instant::now());
        let until = candidate.acts_until(now);
        match (&running, until) {
            (None, Some(until)) => {
                info!(lease = lock.name, identity = lock.identity, "Leading");
                lock.say("became leader");
                let new = Running::new(origin + until);
                begin(&new.term);
                running = Some(new);
            }
            (Some(running), Some(until)) => {
                running.deadline.send_replace(origin + until);
            }
            (Some(_), None) => {
                warn!(
                    lease = lock.name,
                    identity = lock.identity,
                    "No longer leading"
                );
                lock.say("stopped leading");
                if let Some(old) = running.take() {
                    old.end().await;
                }
                continue;
            }
            (None, None) => {}
        }
        let mut next = None;
        if asking.is_none() {
            match candidate.next(now, clock::now()) {
                Ok(request) => {
                    let ask: Asking = Box::pin(lock.ask(request.clone()));
                    asking = Some((request, now, ask));
                }
                Err(at) => next = Some(at),
            }
        }
        let answer = async {
            match &mut asking {
                Some((_, _, ask)) => ask.await,
                None => pending().await,
            }
        };
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            () = at(until.map(|until| origin + until)) => {}
            answer = answer => {
                if let Some((request, asked, _)) = asking.take() {
                    let now = moment(Instant::now());
                    candidate.answered(&request, asked, answer, now, rand::random());
                }
            }
            () = freed.notified() => candidate.hurry(moment(Instant::now())),
            () = at(next.map(|next| origin + next)) => {}
        }
    }
    // A renewal under way is given up: its version is spent, or ours is.
    drop(asking);
    if let Some(old) = running.take() {
        old.end().await;
    }
    lock.give_back(&mut candidate).await;
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => pending().await,
    }
}

// === impl Running ===

impl Running {
    fn new(until: Instant) -> Self {
        let (deadline, receiver) = watch::channel(until);
        Self {
            term: Term {
                over: CancellationToken::new(),
                fence: Fence::until(receiver),
                tasks: TaskTracker::new(),
            },
            deadline,
        }
    }

    /// Ends everything, at each task's next await.
    async fn end(self) {
        self.deadline.send_replace(Instant::now());
        self.term.over.cancel();
        self.term.tasks.close();
        self.term.tasks.wait().await;
    }
}

// === impl Lock ===

impl Lock {
    /// Notified when the Lease changes and nobody holds it.
    fn listen(&self, shutdown: &CancellationToken) -> Arc<Notify> {
        let freed = Arc::new(Notify::new());
        let (waker, name) = (Arc::clone(&freed), self.name);
        self.leases.during(shutdown).on_change(move |change| {
            let Some(lease) = change.latest().filter(|lease| is(lease, name)) else {
                return;
            };
            let held = lease.spec.holder_identity.as_deref().unwrap_or_default();
            if held.is_empty() {
                waker.notify_one();
            }
        });
        freed
    }

    /// Sends one request; the future owns all it needs.
    fn ask(&self, request: Request) -> impl Future<Output = Answer> + Send + use<> {
        let (writer, name) = (self.writer.clone(), self.name);
        async move {
            match timeout(REQUEST_DEADLINE, send(&writer, name, &request)).await {
                Ok(answer) => answer,
                Err(_) => {
                    warn!(
                        lease = name,
                        ?request,
                        "No answer within {REQUEST_DEADLINE:?}"
                    );
                    Answer::Failed
                }
            }
        }
    }

    fn say(&self, what: &str) {
        let key = Key::new(NAMESPACE_SYSTEM, self.name);
        let known = self.leases.get(&key);
        let meta = known.map_or_else(
            || Meta {
                name: key.name,
                namespace: key.namespace,
                ..Meta::default()
            },
            |lease| lease.metadata.clone(),
        );
        let about = events::reference(LEASES, &meta);
        let message = format!("{} {what}", self.identity);
        self.recorder.normal(about, "LeaderElection", message);
    }

    async fn give_back(&self, candidate: &mut Candidate) {
        let Some(request) = candidate.release() else {
            return;
        };
        match timeout(RELEASE_DEADLINE, send(&self.writer, self.name, &request)).await {
            Ok(Answer::Is(_)) => info!(lease = self.name, "Gave the lease back"),
            Ok(answer) => info!(lease = self.name, ?answer, "The lease was not given back"),
            Err(_) => warn!(
                lease = self.name,
                "The lease could not be given back within {RELEASE_DEADLINE:?}"
            ),
        }
    }
}

fn is(lease: &Lease, name: &str) -> bool {
    lease.metadata.name == name && lease.metadata.namespace == NAMESPACE_SYSTEM
}

async fn send(writer: &Writer, name: &str, request: &Request) -> Answer {
    let target = Target::new(LEASES, NAMESPACE_SYSTEM, name);
    let result = match request {
        Request::Read => writer.get::<Lease>(target.url()).await,
        Request::Create(record) => {
            writer
                .create_as(LEASES, NAMESPACE_SYSTEM, &object(name, record))
                .await
        }
        Request::Update(record) => writer.replace(&target, &object(name, record)).await,
    };
    match result {
        Ok(lease) => Answer::Is(Record::of(&lease.spec, &lease.metadata.resource_version)),
        Err(error) if error.is_not_found() => Answer::Absent,
        Err(error) if error.is_conflict() => Answer::Refused,
        Err(error) => {
            warn!(
                lease = name,
                error = &error as &dyn std::error::Error,
                "Election"
            );
            Answer::Failed
        }
    }
}

fn object(name: &str, record: &Record) -> LeaseObject {
    LeaseObject {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(NAMESPACE_SYSTEM.to_owned()),
            resource_version: (!record.version.is_empty()).then(|| record.version.clone()),
            ..ObjectMeta::default()
        },
        spec: Some(record.spec(clock::now())),
    }
}

/// Where nobody else could lead: a term that ends with the process.
pub fn forever(shutdown: &CancellationToken, tasks: &TaskTracker) -> Term {
    Term {
        over: shutdown.clone(),
        fence: Fence::default(),
        tasks: tasks.clone(),
    }
}
