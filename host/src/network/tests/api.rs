//! An API server of a few lines: lists and watches of Services and EndpointSlices, and the patches and Events it was sent.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use kube::Client;
use kube::client::Body as ClientBody;
use serde_json::{Value, json};
use tokio::sync::{broadcast, mpsc};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::BroadcastStream;

type Answer = UnsyncBoxBody<Bytes, Infallible>;

/// What is in the API, and what was written to it.
pub(super) struct Api {
    objects: Arc<Mutex<Vec<(&'static str, Value)>>>,
    events: broadcast::Sender<(&'static str, Value)>,
    /// Method, path and body of every write.
    pub(super) writes: mpsc::UnboundedReceiver<(String, Value)>,
    pub(super) client: Client,
}

pub(super) const SERVICES: &str = "/api/v1/services";
pub(super) const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";

impl Api {
    pub(super) fn new() -> Self {
        let objects: Arc<Mutex<Vec<(&'static str, Value)>>> = Arc::default();
        let (events, _) = broadcast::channel(1024);
        let (sender, writes) = mpsc::unbounded_channel();
        let (known, feed) = (Arc::clone(&objects), events.clone());
        let service = tower::service_fn(move |request: Request<ClientBody>| {
            let (known, feed, sender) = (Arc::clone(&known), feed.clone(), sender.clone());
            async move { Ok::<_, Infallible>(answer(request, &known, &feed, &sender).await) }
        });
        Self {
            objects,
            events,
            writes,
            client: Client::new(service, "default"),
        }
    }

    /// Removes an object, and tells the watches.
    pub(super) fn delete(&self, path: &'static str, object: Value) {
        self.forget(path, &object);
        drop(
            self.events
                .send((path, json!({"type": "DELETED", "object": object}))),
        );
    }

    fn forget(&self, path: &'static str, object: &Value) {
        let key = |object: &Value| {
            let metadata = &object["metadata"];
            (metadata["namespace"].clone(), metadata["name"].clone())
        };
        let mut objects = self.objects.lock().unwrap();
        objects.retain(|(p, o)| *p != path || key(o) != key(object));
    }

    /// Adds or replaces an object, and tells the watches.
    pub(super) fn put(&self, path: &'static str, object: Value) {
        self.forget(path, &object);
        self.objects.lock().unwrap().push((path, object.clone()));
        // Nobody may be watching yet.
        drop(
            self.events
                .send((path, json!({"type": "MODIFIED", "object": object}))),
        );
    }
}

async fn answer(
    request: Request<ClientBody>,
    objects: &Mutex<Vec<(&'static str, Value)>>,
    events: &broadcast::Sender<(&'static str, Value)>,
    writes: &mpsc::UnboundedSender<(String, Value)>,
) -> Response<Answer> {
    let path = request.uri().path().to_owned();
    if request.method() != Method::GET {
        let what = format!("{} {path}", request.method());
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap();
        let echo = json!({"metadata": {"name": "x", "namespace": "x"}, "spec": {},
            "eventTime": null, "reportingController": "", "reportingInstance": "", "action": ""});
        drop(writes.send((what, body)));
        return full(&echo);
    }
    if request
        .uri()
        .query()
        .unwrap_or_default()
        .contains("watch=true")
    {
        let objects = objects.lock().unwrap();
        let known: Vec<_> = objects
            .iter()
            .map(|(at, object)| Ok((*at, json!({"type": "ADDED", "object": object}))))
            .collect();
        let events = BroadcastStream::new(events.subscribe());
        let feed = tokio_stream::iter(known)
            .chain(events)
            .filter_map(move |event| {
                let (at, event) = event.ok()?;
                (at == path).then(|| Ok(Frame::data(Bytes::from(format!("{event}\n")))))
            });
        return Response::new(StreamBody::new(feed).boxed_unsync());
    }
    let items: Vec<Value> = objects
        .lock()
        .unwrap()
        .iter()
        .filter(|(at, _)| *at == path)
        .map(|(_, object)| object.clone())
        .collect();
    full(&json!({"metadata": {"resourceVersion": "1"}, "items": items}))
}

fn full(value: &Value) -> Response<Answer> {
    Response::new(Full::new(Bytes::from(value.to_string())).boxed_unsync())
}
