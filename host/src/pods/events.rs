//! Events: what happens to pods and the node, told in the API. One task writes them; telling never blocks, and a storm is
//! counted instead of written: equal ones become a count, one object may speak only so often, the queue is bounded.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use types::error::chain;

/// Events waiting to be written; more are dropped and counted.
const QUEUE: usize = 16_384;
/// Events per second, after a burst.
const RATE: u32 = 100;
const BURST: u32 = 100;
/// Events remembered, to count repetitions.
const REMEMBERED: usize = 4_096;
/// One object's events: a burst, then one in five minutes.
const OBJECT_BURST: f64 = 25.0;
const OBJECT_RATE: f64 = 1.0 / 300.0;
const WRITE: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Severity {
    Normal,
    Warning,
}

/// One thing that happened.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) about: Arc<ObjectReference>,
    /// `spec.containers{app}`
    pub(crate) field_path: Option<String>,
    pub(crate) severity: Severity,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    pub(crate) at: Timestamp,
}

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Recorder {
    queue: mpsc::Sender<Told>,
}

/// Writes what the recorders tell. Owned by one task: [`Writer::run`].
pub(crate) struct Writer {
    queue: mpsc::Receiver<Told>,
    client: Client,
    host: String,
    memory: Memory,
}

/// What was written lately. Pure: takes `now`.
#[derive(Default)]
struct Memory {
    written: HashMap<Key, Written>,
    objects: HashMap<String, Bucket>,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct Key {
    uid: String,
    field_path: Option<String>,
    severity: Severity,
    reason: &'static str,
    message: String,
}

#[derive(Clone, Debug)]
struct Written {
    name: String,
    namespace: String,
    count: i32,
    last: Timestamp,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    last: Timestamp,
}

enum Write {
    Create(Box<Event>),
    /// Said before: only the count and the time change.
    Count(Written),
    Nothing,
}

pub(crate) fn channel(client: Client, host: String) -> (Recorder, Writer) {
    let (sender, queue) = mpsc::channel(QUEUE);
    let writer = Writer {
        queue,
        client,
        host,
        memory: Memory::default(),
    };
    (Recorder { queue: sender }, writer)
}

// === impl Recorder ===

impl Recorder {
    pub(crate) fn tell(&self, told: Told) {
        if self.queue.try_send(told).is_err() {
            tracing::debug!("Dropped an event: too many are waiting");
        }
    }
}

// === impl Writer ===

impl Writer {
    /// Until `stop`; what waits then is lost, as events may be.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut allowance = f64::from(BURST);
        let mut last = Instant::now();
        loop {
            let told = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                told = self.queue.recv() => told,
            };
            let Some(told) = told else { return };
            let now = Instant::now();
            allowance =
                (allowance + (now - last).as_secs_f64() * f64::from(RATE)).min(f64::from(BURST));
            last = now;
            if allowance < 1.0 {
                let wait = Duration::from_secs_f64((1.0 - allowance) / f64::from(RATE));
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(wait) => {}
                }
            }
            allowance -= 1.0;
            let write = self.memory.plan(told, &self.host);
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.write(write) => {}
            }
        }
    }

    async fn write(&self, write: Write) {
        let written = tokio::time::timeout(WRITE, async {
            match write {
                Write::Create(event) => {
                    let namespace = event.metadata.namespace.clone().unwrap_or_default();
                    let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
                    api.create(&PostParams::default(), &event).await.map(drop)
                }
                Write::Count(known) => {
                    let api: Api<Event> = Api::namespaced(self.client.clone(), &known.namespace);
                    let patch = serde_json::json!({"count": known.count, "lastTimestamp": Time(known.last)});
                    api.patch(&known.name, &PatchParams::default(), &Patch::Merge(patch))
                        .await
                        .map(drop)
                }
                Write::Nothing => Ok(()),
            }
        });
        match written.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(error = %chain(&error), "Failed to write an event"),
            Err(_) => tracing::debug!("Timed out writing an event"),
        }
    }
}

// === impl Memory ===

impl Memory {
    fn plan(&mut self, told: Told, host: &str) -> Write {
        let uid = told.about.uid.clone().unwrap_or_default();
        if !self.may_speak(&uid, told.at) {
            return Write::Nothing;
        }
        let key = Key {
            uid,
            field_path: told.field_path.clone(),
            severity: told.severity,
            reason: told.reason,
            message: told.message.clone(),
        };
        if let Some(known) = self.written.get_mut(&key) {
            known.count += 1;
            known.last = told.at;
            return Write::Count(known.clone());
        }
        let event = event(told, host);
        self.remember(key, &event);
        Write::Create(Box::new(event))
    }

    fn may_speak(&mut self, uid: &str, now: Timestamp) -> bool {
        if self.objects.len() >= REMEMBERED && !self.objects.contains_key(uid) {
            self.objects
                .retain(|_, bucket| bucket.at(now) < OBJECT_BURST);
            if self.objects.len() >= REMEMBERED {
                self.objects.clear();
            }
        }
        let full = Bucket {
            tokens: OBJECT_BURST,
            last: now,
        };
        let bucket = self.objects.entry(uid.to_owned()).or_insert(full);
        bucket.tokens = bucket.at(now);
        bucket.last = now;
        if bucket.tokens < 1.0 {
            return false;
        }
        bucket.tokens -= 1.0;
        true
    }

    fn remember(&mut self, key: Key, event: &Event) {
        if self.written.len() >= REMEMBERED {
            let oldest = self
                .written
                .iter()
                .min_by_key(|(_, known)| known.last)
                .map(|(key, _)| key.clone());
            if let Some(oldest) = oldest {
                self.written.remove(&oldest);
            }
        }
        let written = Written {
            name: event.metadata.name.clone().unwrap_or_default(),
            namespace: event.metadata.namespace.clone().unwrap_or_default(),
            count: 1,
            last: event
                .last_timestamp
                .as_ref()
                .map_or(Timestamp::UNIX_EPOCH, |time| time.0),
        };
        self.written.insert(key, written);
    }
}

impl Bucket {
    fn at(&self, now: Timestamp) -> f64 {
        let passed = now.duration_since(self.last).as_secs_f64().max(0.0);
        (self.tokens + passed * OBJECT_RATE).min(OBJECT_BURST)
    }
}

fn event(told: Told, host: &str) -> Event {
    let about = &told.about;
    let namespace = about
        .namespace
        .clone()
        .filter(|namespace| !namespace.is_empty());
    let name = format!(
        "{}.{:x}",
        about.name.as_deref().unwrap_or_default(),
        told.at.as_nanosecond()
    );
    Event {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: Some(namespace.unwrap_or_else(|| "default".to_owned())),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            field_path: told.field_path,
            ..(**about).clone()
        },
        type_: Some(
            match told.severity {
                Severity::Normal => "Normal",
                Severity::Warning => "Warning",
            }
            .to_owned(),
        ),
        reason: Some(told.reason.to_owned()),
        message: Some(shortened(told.message)),
        count: Some(1),
        first_timestamp: Some(Time(told.at)),
        last_timestamp: Some(Time(told.at)),
        source: Some(EventSource {
            component: Some("kubelet".to_owned()),
            host: Some(host.to_owned()),
        }),
        reporting_component: Some("kubelet".to_owned()),
        reporting_instance: Some(host.to_owned()),
        ..Event::default()
    }
}

/// The API takes messages of at most 1,024 bytes.
fn shortened(mut message: String) -> String {
    const LONGEST: usize = 1_024;
    if message.len() > LONGEST {
        let mut end = LONGEST - 3;
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
        message.push_str("...");
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(second: i64, message: &str) -> Told {
        Told {
            about: Arc::new(ObjectReference {
                uid: Some("u1".to_owned()),
                name: Some("web".to_owned()),
                namespace: Some("default".to_owned()),
                ..ObjectReference::default()
            }),
            field_path: None,
            severity: Severity::Normal,
            reason: "Started",
            message: message.to_owned(),
            at: Timestamp::from_second(second).expect("in range"),
        }
    }

    #[test]
    fn equal_events_are_counted() {
        let mut memory = Memory::default();
        assert!(matches!(memory.plan(told(0, "a"), "n1"), Write::Create(_)));
        assert!(matches!(
            memory.plan(told(1, "a"), "n1"),
            Write::Count(Written { count: 2, .. })
        ));
        assert!(matches!(memory.plan(told(2, "b"), "n1"), Write::Create(_)));
    }

    #[test]
    fn an_object_that_never_stops_is_silenced_and_heard_again_later() {
        let mut memory = Memory::default();
        let writes = (0..100)
            .filter(|at| !matches!(memory.plan(told(0, &at.to_string()), "n1"), Write::Nothing));
        assert_eq!(writes.count(), 25);
        assert!(!matches!(
            memory.plan(told(301, "later"), "n1"),
            Write::Nothing
        ));
    }

    #[test]
    fn long_messages_are_cut_between_letters() {
        assert!(shortened("ä".repeat(2_000)).len() <= 1_024);
    }
}
