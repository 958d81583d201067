//! Objects that outlive their use: bootstrap tokens that expired, and certificate requests that were answered, or never
//! will be. Deletes each when its time has come; never touches others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde::Deserialize;

use super::Shared;
use crate::clock;
use crate::informers::Store;
use crate::objects::{Key, Meta, REQUESTS, Request, Resource, SECRETS, Watched};
use crate::reconcile::{Outcome, Queue};
use crate::write::{Delete, Error, Target, Writer, gone_is_fine};

/// An answered request is of use for so long…
const ANSWERED: SignedDuration = SignedDuration::from_hours(1);
/// …and an unanswered one waits so long.
const UNANSWERED: SignedDuration = SignedDuration::from_hours(24);
const EXPIRATION: &str = "expiration";

/// A Secret of type `bootstrap.kubernetes.io/token`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Token {
    pub metadata: Meta,
    pub data: BTreeMap<String, ByteString>,
}

impl Watched for Token {
    fn meta(&self) -> &Meta {
        &self.metadata
    }
}

/// When the token ends; never, when it does not say. What cannot be read counts as expired.
pub fn token_ends(token: &Token) -> Option<Timestamp> {
    let text = std::str::from_utf8(&token.data.get(EXPIRATION)?.0).unwrap_or_default();
    Some(text.parse().unwrap_or(Timestamp::UNIX_EPOCH))
}

/// When a certificate request has been there long enough. An approved one that got no certificate waits for its signer.
pub fn request_ends(request: &Request) -> Option<Timestamp> {
    let conditions = request.status.conditions.as_deref().unwrap_or_default();
    let later = |from: Timestamp, by| from.checked_add(by).ok();
    if conditions.is_empty() {
        let created = request.metadata.creation_timestamp.as_ref()?;
        return later(created.0, UNANSWERED);
    }
    let issued = request
        .status
        .certificate
        .as_ref()
        .is_some_and(|c| !c.0.is_empty());
    let counts = |type_: &str| match type_ {
        "Approved" => issued,
        type_ => matches!(type_, "Denied" | "Failed"),
    };
    conditions
        .iter()
        .filter(|c| counts(&c.type_))
        .filter_map(|c| later(c.last_update_time.as_ref()?.0, ANSWERED))
        .min()
}

pub struct Controller<T> {
    store: Arc<Store<T>>,
    resource: Resource,
    ends: fn(&T) -> Option<Timestamp>,
    writer: Writer,
    pub queue: Arc<Queue<Key>>,
}

/// Bootstrap tokens.
pub fn tokens(shared: &Arc<Shared>) -> Arc<Controller<Token>> {
    let store = &shared.informers.bootstrap_tokens;
    let writer = shared.writer("token-cleaner");
    Controller::new("tokencleaner", store, SECRETS, token_ends, writer)
}

/// Certificate requests.
pub fn requests(shared: &Arc<Shared>) -> Arc<Controller<Request>> {
    let store = &shared.informers.requests;
    let writer = shared.writer("certificate-controller");
    Controller::new("csrcleaner", store, REQUESTS, request_ends, writer)
}

// === impl Controller ===

impl<T: Watched> Controller<T> {
    fn new(
        name: &'static str,
        store: &Arc<Store<T>>,
        resource: Resource,
        ends: fn(&T) -> Option<Timestamp>,
        writer: Writer,
    ) -> Arc<Self> {
        let queue = Queue::new(name, Duration::ZERO);
        let waker = Arc::clone(&queue);
        store.on_change(move |change| {
            if let Some(object) = change.new {
                waker.add(object.meta().key());
            }
        });
        Arc::new(Self {
            store: Arc::clone(store),
            resource,
            ends,
            writer,
            queue,
        })
    }

    /// One pass over one object.
    pub async fn pass(&self, key: Key) -> Result<Outcome, Error> {
        let Some(object) = self.store.get(&key) else {
            return Ok(Outcome::Done);
        };
        let Some(end) = (self.ends)(&object) else {
            return Ok(Outcome::Done);
        };
        let left = end.duration_since(clock::now());
        if left.is_positive() {
            // To the next second, so that it is over then.
            let seconds = u64::try_from(left.as_secs()).unwrap_or_default();
            return Ok(Outcome::Again(Duration::from_secs(
                seconds.saturating_add(1),
            )));
        }
        let target = Target::of(self.resource, object.meta());
        let meta = object.meta();
        let options = Delete {
            // Somebody may just have given it more time.
            resource_version: Some(meta.resource_version.clone()),
            ..Delete::of(&meta.uid)
        };
        gone_is_fine(self.writer.delete(&target, options).await)?;
        Ok(Outcome::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(text: &str) -> Option<Timestamp> {
        text.parse().ok()
    }

    #[test]
    fn a_token_ends_when_it_says() {
        let token = |expiration: Option<&str>| Token {
            data: expiration
                .map(|text| (EXPIRATION.to_owned(), ByteString(text.as_bytes().to_vec())))
                .into_iter()
                .collect(),
            ..Token::default()
        };
        assert_eq!(token_ends(&token(None)), None);
        let day = "2026-11-23T10:00:00Z";
        assert_eq!(token_ends(&token(Some(day))), at(day));
        let offset = "2026-11-23T12:00:00+02:00";
        assert_eq!(token_ends(&token(Some(offset))), at(day));
        assert_eq!(
            token_ends(&token(Some("tomorrow"))),
            Some(Timestamp::UNIX_EPOCH)
        );
    }

    #[test]
    fn requests_end_by_what_became_of_them() {
        let request = |status| -> Request {
            let created = "2026-11-23T00:00:00Z";
            let request =
                json!({"metadata": {"name": "r", "creationTimestamp": created}, "status": status});
            serde_json::from_value(request).expect("a request")
        };
        let condition = |type_: &str| json!([{"type": type_, "status": "True", "lastUpdateTime": "2026-11-23T05:00:00Z"}]);
        let cases = [
            (json!({}), at("2026-11-24T00:00:00Z")),
            (
                json!({"conditions": condition("Denied")}),
                at("2026-11-23T06:00:00Z"),
            ),
            (
                json!({"conditions": condition("Failed")}),
                at("2026-11-23T06:00:00Z"),
            ),
            (json!({"conditions": condition("Approved")}), None),
            (
                json!({"conditions": condition("Approved"), "certificate": "Yw=="}),
                at("2026-11-23T06:00:00Z"),
            ),
        ];
        for (status, end) in cases {
            assert_eq!(request_ends(&request(status.clone())), end, "{status}");
        }
    }
}
