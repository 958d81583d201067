//! Events: what users read with `kubectl describe`. Recording never blocks and never fails; writing may lag.
//!
//! Owns the correlation of similar Events, as upstream: repeats raise a count, the eleventh of a kind within ten minutes
//! is combined, and one object may have 25 at once and one more every five minutes. Writes are paced, so that a thousand
//! pods get their Events after they run and not instead of it. Never decides what is worth an Event.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use types::error::chain;

use crate::clock;
use crate::objects::{EVENTS, Meta, Resource};
use crate::write::{Target, Writer};

/// More waiting Events than this, of one type, are dropped; the log says so.
const CAPACITY: usize = 8_192;
/// Written at once before pacing starts, and per second from then on.
const BURST: f64 = 25.0;
const PER_SECOND: f64 = 50.0;

const SIMILAR_WITHIN: i64 = 600;
const SIMILAR_BEFORE_COMBINED: usize = 10;
const SPAM_BURST: f64 = 25.0;
const SPAM_PER_SECOND: f64 = 1.0 / 300.0;
/// What is remembered for correlation; the oldest half goes when it is full.
const REMEMBERED: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    Normal,
    Warning,
}

/// One thing that happened to one object.
#[derive(Clone, Debug)]
pub struct Note {
    pub component: &'static str,
    pub about: ObjectReference,
    pub type_: Type,
    pub reason: &'static str,
    pub message: String,
    pub action: Option<&'static str>,
}

/// Where parts of this crate drop their Events.
#[derive(Clone)]
pub struct Recorder {
    component: &'static str,
    normal: mpsc::Sender<Note>,
    warnings: mpsc::Sender<Note>,
}

/// The task's side. Warnings overtake: somebody is waiting for them.
pub struct Inbox {
    normal: mpsc::Receiver<Note>,
    warnings: mpsc::Receiver<Note>,
}

/// Remembers what was written. Pure: takes the time, does no I/O.
#[derive(Default)]
struct Correlator {
    similar: HashMap<String, Similar>,
    written: HashMap<String, Known>,
    spam: HashMap<String, Bucket>,
}

struct Similar {
    messages: HashSet<String>,
    last: Timestamp,
}

struct Known {
    name: String,
    first: Timestamp,
    count: i32,
    last: Timestamp,
}

struct Bucket {
    tokens: f64,
    last: Timestamp,
}

#[derive(Debug, PartialEq)]
enum Decision {
    Create {
        name: String,
        message: String,
    },
    Repeat {
        name: String,
        count: i32,
        message: String,
    },
    Drop,
}

pub fn channel() -> (Recorder, Inbox) {
    let (normal, normal_inbox) = mpsc::channel(CAPACITY);
    let (warnings, warnings_inbox) = mpsc::channel(CAPACITY);
    let recorder = Recorder {
        component: "",
        normal,
        warnings,
    };
    let inbox = Inbox {
        normal: normal_inbox,
        warnings: warnings_inbox,
    };
    (recorder, inbox)
}

/// A reference to an object, as Events carry it.
pub fn reference(resource: Resource, meta: &Meta) -> ObjectReference {
    ObjectReference {
        api_version: Some(resource.api_version.to_owned()),
        kind: Some(resource.kind.to_owned()),
        name: Some(meta.name.clone()),
        namespace: (!meta.namespace.is_empty()).then(|| meta.namespace.clone()),
        uid: Some(meta.uid.clone()),
        resource_version: Some(meta.resource_version.clone()),
        field_path: None,
    }
}

/// Writes Events until told to stop, each as who noted it; those still waiting then are lost.
pub async fn run(
    mut inbox: Inbox,
    writer_of: impl Fn(&'static str) -> Writer,
    shutdown: CancellationToken,
) {
    // One per component: a handful.
    let mut writers: HashMap<&'static str, Writer> = HashMap::new();
    let mut correlator = Correlator::default();
    let mut tokens = BURST;
    let mut last = Instant::now();
    loop {
        let note = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            Some(note) = inbox.warnings.recv() => note,
            Some(note) = inbox.normal.recv() => note,
            else => return,
        };
        let now = clock::now();
        let decision = correlator.next(&note, now);
        if decision == Decision::Drop {
            continue;
        }
        tokens = (tokens + last.elapsed().as_secs_f64() * PER_SECOND).min(BURST);
        last = Instant::now();
        if tokens < 1.0 {
            let pause = Duration::from_secs_f64((1.0 - tokens) / PER_SECOND);
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
        tokens -= 1.0;
        let component = note.component;
        let writer = writers
            .entry(component)
            .or_insert_with(|| writer_of(component));
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            () = write(writer, note, decision, now) => {}
        }
    }
}

async fn write(writer: &Writer, note: Note, decision: Decision, now: Timestamp) {
    let namespace = note
        .about
        .namespace
        .clone()
        .unwrap_or_else(|| "default".to_owned());
    let (name, count, message) = match decision {
        Decision::Drop => return,
        Decision::Create { name, message } => (name, 1, message),
        Decision::Repeat {
            name,
            count,
            message,
        } => {
            let patch = json!({"count": count, "message": message, "lastTimestamp": Time(now)});
            let target = Target::new(EVENTS, &namespace, &name);
            match writer.patch(&target, &patch).await {
                // It expired: write it anew.
                Err(error) if error.is_not_found() => (name, count, message),
                Err(error) => return debug!(error = %chain(&error), "Event was not updated"),
                Ok(_) => return,
            }
        }
    };
    let event = Event {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: Some(namespace.clone()),
            ..ObjectMeta::default()
        },
        involved_object: note.about,
        type_: Some(format!("{:?}", note.type_)),
        reason: Some(note.reason.to_owned()),
        message: Some(message),
        source: Some(EventSource {
            component: Some(note.component.to_owned()),
            host: None,
        }),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        count: Some(count),
        action: note.action.map(str::to_owned),
        reporting_component: Some(note.component.to_owned()),
        ..Event::default()
    };
    if let Err(error) = writer.create(EVENTS, &namespace, &event).await {
        // Objects of a namespace that goes away have nobody left to read their Events.
        debug!(error = %chain(&error), "Event was not written");
    }
}

// === impl Recorder ===

impl Recorder {
    /// The same channel, speaking for another component.
    #[must_use]
    pub fn named(&self, component: &'static str) -> Self {
        Self {
            component,
            normal: self.normal.clone(),
            warnings: self.warnings.clone(),
        }
    }

    pub fn normal(&self, about: ObjectReference, reason: &'static str, message: String) {
        self.note(about, Type::Normal, reason, message, None);
    }

    pub fn warning(&self, about: ObjectReference, reason: &'static str, message: String) {
        self.note(about, Type::Warning, reason, message, None);
    }

    pub fn note(
        &self,
        about: ObjectReference,
        type_: Type,
        reason: &'static str,
        message: String,
        action: Option<&'static str>,
    ) {
        let note = Note {
            component: self.component,
            about,
            type_,
            reason,
            message,
            action,
        };
        let sender = match type_ {
            Type::Normal => &self.normal,
            Type::Warning => &self.warnings,
        };
        if sender.try_send(note).is_err() {
            warn!(reason, "Event dropped: too many are waiting");
        }
    }
}

// === impl Correlator ===

impl Correlator {
    fn next(&mut self, note: &Note, now: Timestamp) -> Decision {
        self.make_room();
        let about = format!(
            "{}/{}/{}/{}/{}",
            note.component,
            note.about.kind.as_deref().unwrap_or_default(),
            note.about.namespace.as_deref().unwrap_or_default(),
            note.about.name.as_deref().unwrap_or_default(),
            note.about.uid.as_deref().unwrap_or_default(),
        );
        let group = format!("{about}/{:?}/{}", note.type_, note.reason);
        let (key, message) = self.combine(group, note, now);
        if !self.admit(about, now) {
            return Decision::Drop;
        }
        if let Some(known) = self.written.get_mut(&key) {
            known.count = known.count.saturating_add(1);
            known.last = now;
            return Decision::Repeat {
                name: known.name.clone(),
                count: known.count,
                message,
            };
        }
        let name = format!(
            "{}.{:x}",
            note.about.name.as_deref().unwrap_or_default(),
            now.as_nanosecond()
        );
        self.written.insert(
            key,
            Known {
                name: name.clone(),
                first: now,
                count: 1,
                last: now,
            },
        );
        Decision::Create { name, message }
    }

    /// The key under which the note is counted, and its message.
    fn combine(&mut self, group: String, note: &Note, now: Timestamp) -> (String, String) {
        let similar = self
            .similar
            .entry(group.clone())
            .or_insert_with(|| Similar {
                messages: HashSet::new(),
                last: now,
            });
        if now.as_second() - similar.last.as_second() > SIMILAR_WITHIN {
            similar.messages.clear();
        }
        similar.last = now;
        similar.messages.insert(note.message.clone());
        if similar.messages.len() > SIMILAR_BEFORE_COMBINED {
            // One message is forgotten so that the set stays small.
            similar.messages.remove(&note.message);
            let message = format!("(combined from similar events): {}", note.message);
            return (group, message);
        }
        (format!("{group}/{}", note.message), note.message.clone())
    }

    fn admit(&mut self, about: String, now: Timestamp) -> bool {
        let bucket = self.spam.entry(about).or_insert(Bucket {
            tokens: SPAM_BURST,
            last: now,
        });
        let elapsed = now.duration_since(bucket.last).as_secs_f64().max(0.0);
        bucket.tokens = (bucket.tokens + elapsed * SPAM_PER_SECOND).min(SPAM_BURST);
        bucket.last = now;
        if bucket.tokens < 1.0 {
            return false;
        }
        bucket.tokens -= 1.0;
        true
    }

    fn make_room(&mut self) {
        shrink(&mut self.similar, |s| s.last);
        shrink(&mut self.written, |k| k.last.max(k.first));
        shrink(&mut self.spam, |b| b.last);
    }
}

/// Forgets the older half of a full map.
fn shrink<T>(map: &mut HashMap<String, T>, last: fn(&T) -> Timestamp) {
    if map.len() < REMEMBERED {
        return;
    }
    let mut times: Vec<Timestamp> = map.values().map(last).collect();
    times.sort_unstable();
    let middle = times[times.len() / 2];
    map.retain(|_, value| last(value) > middle);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(message: &str) -> Note {
        Note {
            component: "replicaset-controller",
            about: ObjectReference {
                name: Some("web".to_owned()),
                ..ObjectReference::default()
            },
            type_: Type::Normal,
            reason: "SuccessfulCreate",
            message: message.to_owned(),
            action: None,
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).expect("a time")
    }

    #[test]
    fn the_same_note_raises_a_count() {
        let mut correlator = Correlator::default();
        let Decision::Create { name, .. } = correlator.next(&note("a"), at(0)) else {
            panic!("the first is new");
        };
        assert_eq!(
            correlator.next(&note("a"), at(1)),
            Decision::Repeat {
                name,
                count: 2,
                message: "a".to_owned()
            }
        );
    }

    #[test]
    fn similar_notes_are_combined_and_then_dropped() {
        let mut correlator = Correlator::default();
        let decisions: Vec<Decision> = (0..40)
            .map(|i| correlator.next(&note(&format!("Created pod: web-{i}")), at(0)))
            .collect();
        let created = decisions
            .iter()
            .filter(|d| matches!(d, Decision::Create { .. }))
            .count();
        assert_eq!(created, SIMILAR_BEFORE_COMBINED + 1);
        assert!(
            matches!(&decisions[12], Decision::Repeat { message, .. } if message.starts_with("(combined from similar events): "))
        );
        assert_eq!(decisions[39], Decision::Drop);
    }
}
