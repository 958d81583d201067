//! From a request to an answer: one file per verb, and the steps every request takes. No kind is named here.
//!
//! ```text
//! parse ─► authenticate ─► authorise ─► body ─► room? ─► find the kind ─► verb ─► answer
//!   └───────────── whatever fails on the way becomes a Status ────────────┘
//! ```
//! Never touches the store itself: reads go to the cache, writes through `registry`.

mod create;
mod delete;
mod get;
mod list;
pub mod negotiate;
mod other;
mod patch;
pub mod reply;
mod subresource;
mod update;
mod watch;

use std::ops::RangeInclusive;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::FutureExt as _;
use http::request::Parts;
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::auth::{Access, User};
use crate::cache::Cache;
use crate::codec::{self, Decoded};
use crate::kinds::strategy::Door;
use crate::kinds::{Kind, Kinds};
use crate::links::{self, Links};
use crate::metrics::Metrics;
use crate::nodes::Nodes;
use crate::registry::{Outcome, Registry};
use crate::request::query::{FieldValidation, ListOptions, WriteOptions};
use crate::request::{Query, RequestInfo, ResourcePath};
use crate::schema::{GroupVersionKind, Schema, TypeId};
use crate::selector::Selector;
use crate::status::Error;
use crate::store::Store;
use crate::table;
use negotiate::{Accept, Format, Shape};
use reply::Reply;

/// Everything a request may need. One per server.
pub struct Api {
    pub store: Arc<dyn Store>,
    pub cache: Arc<Cache>,
    pub schema: &'static Schema,
    pub kinds: &'static Kinds,
    pub settings: Settings,
    pub access: Access,
    pub nodes: Nodes,
    /// Of nodes that cannot be dialled.
    pub links: Arc<Links>,
    pub metrics: Metrics,
    /// Cancelled when the server begins to drain: watches end, readiness fails.
    pub stopping: CancellationToken,
    pub room: Room,
}

/// What is the same for the whole life of a server.
#[derive(Clone, Debug)]
pub struct Settings {
    pub service_cidr: ipnet::Ipv4Net,
    pub node_ports: RangeInclusive<u16>,
    /// Names of IngressClasses that are ours beside our own.
    pub ingress_classes: Vec<String>,
    /// `host:port` where clients reach this server.
    pub advertised: std::net::SocketAddr,
}

/// How many requests may be worked on at once; long-running ones do not count.
pub struct Room {
    reads: Semaphore,
    writes: Semaphore,
    /// Beside `writes`, for the cluster's own components.
    reserve: Semaphore,
    /// KiB of bodies that are on their way.
    bodies: Semaphore,
}

/// One request for a resource, on its way through a verb.
pub(crate) struct Call<'a> {
    pub(crate) api: &'a Arc<Api>,
    pub(crate) kind: &'static Kind,
    pub(crate) path: &'a ResourcePath,
    pub(crate) query: &'a Query,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) user: &'a User,
    pub(crate) accept: Accept,
    pub(crate) now: Timestamp,
}

const MAX_BODY: usize = 3 * 1024 * 1024;
const DEADLINE: Duration = Duration::from_secs(60);
const READS: usize = 400;
const WRITES: usize = 200;
const RESERVE: usize = 50;
/// KiB.
const BODIES: usize = 256 * 1024;
/// How long a body may take to arrive.
const WAIT_FOR_BODY: Duration = Duration::from_secs(10);
/// How long a request waits for room before it is told to come back.
const WAIT_FOR_ROOM: Duration = Duration::from_secs(5);
/// How long a refusal waits for the newest state.
const WAIT_TO_BE_SURE: Duration = Duration::from_secs(1);
/// How long a read waits for a revision that has not been reached.
pub(crate) const WAIT_FOR_REVISION: Duration = Duration::from_secs(3);

// === impl Room ===

impl Default for Room {
    fn default() -> Self {
        Self {
            reads: Semaphore::new(READS),
            writes: Semaphore::new(WRITES),
            reserve: Semaphore::new(RESERVE),
            bodies: Semaphore::new(BODIES),
        }
    }
}

/// Answers one request. Never fails and never panics: what goes wrong is in the answer.
pub async fn serve(api: Arc<Api>, request: Request<Body>) -> Response {
    let started = Instant::now();
    let (parts, body) = request.into_parts();
    let query = Query::parse(parts.uri.query().unwrap_or_default());
    let info = RequestInfo::parse(&parts.method, parts.uri.path(), &query);
    let _counted = api.metrics.begin(info.is_long_running());
    let work = answer(&api, &parts, &query, &info, body);
    // A bug in one request must not take the caller's task with it.
    let result = match AssertUnwindSafe(work).catch_unwind().await {
        Ok(result) => result,
        Err(_) => {
            tracing::error!(path = %info.path, verb = info.verb, "Panicked while answering");
            Err(Error::internal("this request could not be answered"))
        }
    };
    let reply = result.unwrap_or_else(|error| {
        let format = Accept::parse(&parts.headers, &query).map_or(Format::Json, |a| a.format);
        Reply::error(&error, format)
    });
    api.metrics
        .end(&info, reply.status.as_u16(), started.elapsed());
    reply.finish(&parts.headers).await
}

async fn answer(
    api: &Arc<Api>,
    parts: &Parts,
    query: &Query,
    info: &RequestInfo,
    body: Body,
) -> Result<Reply, Error> {
    let user = parts.extensions.get::<User>();
    let authenticate = || api.access.authenticate(user, &parts.headers, now());
    let user = surely(api, authenticate).await?;
    if let Some(ask) = links::Ask::parse(&info.path) {
        return links::serve(api, parts, &user, ask).await;
    }
    surely(api, || api.access.authorise(&user, info)).await?;
    if info.is_long_running() {
        return route(api, parts, query, info, &user, body).await;
    }
    let deadline = deadline(query);
    let work = async {
        // A body that does not come must not take the room of those that are there.
        let (body, arrived) = if matches!(parts.method, Method::GET | Method::HEAD) {
            (Body::empty(), None)
        } else {
            let (body, arrived) = receive(&api.room, body, &parts.headers).await?;
            (Body::from(body), arrived)
        };
        let _room = make_room(&api.room, &parts.method, &user).await?;
        drop(arrived);
        route(api, parts, query, info, &user, body).await
    };
    match tokio::time::timeout(deadline, work).await {
        Ok(result) => result,
        Err(_) => Err(Error::timeout(
            "Timeout: request did not complete within the allotted timeout",
            0,
        )),
    }
}

/// What this server refuses another one may have allowed just now: where there are others, the question is put again on
/// the newest state.
async fn surely<T>(api: &Api, ask: impl Fn() -> Result<T, Error>) -> Result<T, Error> {
    let answer = ask();
    if answer.is_ok() || !api.store.is_shared() {
        return answer;
    }
    match tokio::time::timeout(WAIT_TO_BE_SURE, api.newest()).await {
        Ok(Ok(())) => ask(),
        _ => answer,
    }
}

/// `?timeout=10s`, never more than a minute.
fn deadline(query: &Query) -> Duration {
    let wanted = query.first("timeout").and_then(|text| {
        let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
        let number: u64 = number.parse().ok()?;
        match unit {
            "ms" => Some(Duration::from_millis(number)),
            "s" => Some(Duration::from_secs(number)),
            "m" | "m0s" => number.checked_mul(60).map(Duration::from_secs),
            _ => None,
        }
    });
    wanted
        .filter(|wanted| !wanted.is_zero())
        .map_or(DEADLINE, |wanted| wanted.min(DEADLINE))
}

/// A body, and what holds its place until there is room to work on it. One that is here already needs no place.
async fn receive<'a>(
    room: &'a Room,
    body: Body,
    headers: &HeaderMap,
) -> Result<(Bytes, Option<SemaphorePermit<'a>>), Error> {
    let size = announced(headers).unwrap_or(MAX_BODY).min(MAX_BODY) / 1024 + 1;
    let mut read = pin!(read_body(body, headers));
    if let Some(body) = read.as_mut().now_or_never() {
        return Ok((body?, None));
    }
    let size = u32::try_from(size).unwrap_or(u32::MAX);
    let permit = tokio::time::timeout(WAIT_FOR_ROOM, room.bodies.acquire_many(size)).await;
    let Ok(Ok(permit)) = permit else {
        return Err(busy());
    };
    Ok((read.await?, Some(permit)))
}

async fn make_room<'a>(
    room: &'a Room,
    method: &Method,
    user: &User,
) -> Result<SemaphorePermit<'a>, Error> {
    let semaphore = match *method {
        Method::GET | Method::HEAD => &room.reads,
        _ => {
            let of_the_cluster = user.name.starts_with("system:");
            if of_the_cluster && let Ok(permit) = room.reserve.try_acquire() {
                return Ok(permit);
            }
            &room.writes
        }
    };
    match tokio::time::timeout(WAIT_FOR_ROOM, semaphore.acquire()).await {
        Ok(Ok(permit)) => Ok(permit),
        _ => Err(busy()),
    }
}

fn busy() -> Error {
    Error::too_many_requests("Too many requests, please try again later.", 1)
}

async fn route(
    api: &Arc<Api>,
    parts: &Parts,
    query: &Query,
    info: &RequestInfo,
    user: &User,
    body: Body,
) -> Result<Reply, Error> {
    let Some(path) = info.resource() else {
        return other::serve(api, parts, query, info).await;
    };
    if info.verb.is_empty() || parts.method == Method::HEAD {
        return Err(Error::method_not_allowed());
    }
    let Some(kind) = api.kinds.find(&path.group, &path.version, &path.resource) else {
        let known = api.kinds.versions(&path.group).contains(&&*path.version);
        return if known {
            Err(Error::no_such_resource())
        } else {
            Ok(Reply::no_page())
        };
    };
    check_scope(kind, path, info.verb)?;
    if kind.is_stored() && wants_newest(info.verb, query) {
        api.newest().await?;
    }
    let call = Call {
        api,
        kind,
        path,
        query,
        headers: &parts.headers,
        user,
        accept: Accept::parse(&parts.headers, query)?,
        now: now(),
    };
    if !path.subresource.is_empty() {
        return subresource::serve(&call, info.verb, &parts.method, body).await;
    }
    let needs_a_name = matches!(info.verb, "update" | "patch");
    if !kind.has_verb(info.verb) || (needs_a_name && path.name.is_empty()) {
        return Err(Error::method_not_allowed());
    }
    match info.verb {
        "get" => get::get(&call).await,
        "list" => list::list(&call).await,
        "watch" => watch::watch(&call).await,
        "create" => create::create(&call, read_body(body, &parts.headers).await?).await,
        "update" => {
            update::update(&call, Door::Main, &read_body(body, &parts.headers).await?).await
        }
        "patch" => patch::patch(&call, Door::Main, &read_body(body, &parts.headers).await?).await,
        "delete" => delete::delete(&call, &read_body(body, &parts.headers).await?).await,
        "deletecollection" => {
            delete::delete_collection(&call, &read_body(body, &parts.headers).await?).await
        }
        _ => Err(Error::method_not_allowed()),
    }
}

/// Whether a request is about the newest state there is, whichever server made it so: every write, and every read that
/// names no revision and continues no list. The others are content with what this server has.
fn wants_newest(verb: &str, query: &Query) -> bool {
    let silent = |name| query.first(name).unwrap_or_default().is_empty();
    match verb {
        "get" | "list" | "watch" => silent("resourceVersion") && silent("continue"),
        _ => true,
    }
}

/// Paths with a namespace are for namespaced kinds; across namespaces one may only read.
fn check_scope(kind: &Kind, path: &ResourcePath, verb: &str) -> Result<(), Error> {
    if !kind.is_namespaced() {
        let of_itself = path.resource == "namespaces" && path.namespace == path.name;
        return if path.namespace.is_empty() || of_itself {
            Ok(())
        } else {
            Err(Error::no_such_resource())
        };
    }
    match (path.namespace.is_empty(), path.name.is_empty(), verb) {
        (false, _, _) | (true, true, "list" | "watch") => Ok(()),
        (true, false, "watch") => Ok(()),
        (true, true, _) => Err(Error::method_not_allowed()),
        (true, false, _) => Err(Error::no_such_resource()),
    }
}

/// What the client says its body's length is.
fn announced(headers: &HeaderMap) -> Option<usize> {
    let length = headers.get(http::header::CONTENT_LENGTH)?;
    length.to_str().ok()?.parse().ok()
}

/// The whole body, at most 3 MiB, within ten seconds.
pub(crate) async fn read_body(body: Body, headers: &HeaderMap) -> Result<Bytes, Error> {
    if announced(headers).is_some_and(|length| length > MAX_BODY) {
        return Err(Error::too_large(MAX_BODY));
    }
    let body = Limited::new(body, MAX_BODY).collect();
    let Ok(body) = tokio::time::timeout(WAIT_FOR_BODY, body).await else {
        return Err(Error::timeout(
            "Timeout: the body did not arrive in time",
            0,
        ));
    };
    match body {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Error::too_large(MAX_BODY)),
        Err(error) => Err(Error::bad_request(format!(
            "the body could not be read: {error}"
        ))),
    }
}

/// The clock of the whole server: a request reads it once.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the rim: everything behind it takes `now`"
)]
pub(crate) fn now() -> Timestamp {
    Timestamp::now()
}

// === impl Api ===

impl Api {
    /// Waits until what any server has acknowledged can be read; at once where this server is the only one.
    pub(crate) async fn newest(&self) -> Result<(), Error> {
        match self.store.newest() {
            None => Ok(()),
            Some(newest) => newest.await.map_err(|error| {
                Error::unavailable(format!("the newest state is not known: {error}"))
            }),
        }
    }

    /// Waits until `revision` can be read.
    pub(crate) async fn reach(&self, revision: u64) -> Result<(), Error> {
        if self.store.is_shared() && self.cache.revision() < revision {
            // Another server has it, most likely.
            self.newest().await?;
        }
        let deadline = Instant::now() + WAIT_FOR_REVISION;
        self.cache
            .wait_for(revision, deadline)
            .await
            .map_err(|current| Error::resource_version_too_large(revision, current))
    }
}

// === impl Call ===

impl<'a> Call<'a> {
    /// The namespace objects of this request are stored under.
    pub(crate) fn namespace(&self) -> &'a str {
        if self.kind.is_namespaced() {
            &self.path.namespace
        } else {
            ""
        }
    }

    pub(crate) fn registry(&self, door: Door<'a>, manager: &'a str, dry_run: bool) -> Registry<'a> {
        Registry {
            api: self.api,
            kind: self.kind,
            door,
            namespace: self.namespace(),
            user: self.user,
            manager,
            dry_run,
            trusted: false,
            now: self.now,
            warnings: Vec::new(),
        }
    }

    pub(crate) fn gvk(&self) -> GroupVersionKind {
        self.kind.gvk()
    }

    pub(crate) fn type_of(&self, definition: &str) -> Result<TypeId, Error> {
        let ty = self.api.schema.named(definition);
        ty.ok_or_else(|| Error::internal(format!("the type {definition} is not known")))
    }

    /// Decodes a body as this call's kind, or as `gvk` of `definition`; strict findings go where the client wants them.
    pub(crate) fn decode(
        &self,
        body: &[u8],
        definition: &str,
        gvk: &GroupVersionKind,
        validation: FieldValidation,
        warnings: &mut Vec<String>,
    ) -> Result<crate::object::Object, Error> {
        let ty = self.type_of(definition)?;
        let media_type = negotiate::content_type(self.headers);
        let Decoded { object, strict } = codec::decode(media_type, body, self.api.schema, ty, gvk)?;
        strictness(gvk, strict, validation, warnings)?;
        Ok(object)
    }

    pub(crate) fn selector(&self, options: &ListOptions) -> Result<Selector, Error> {
        let stored = self.api.kinds.stored(&self.kind.storage);
        let names = stored.unwrap_or(self.kind).strategy.field_names();
        Selector::parse(&options.label_selector, &options.field_selector, |label| {
            let label = self
                .kind
                .convert
                .map_or(label, |convert| convert.field(label));
            let namespaced = self.kind.is_namespaced();
            let known = label == "metadata.name"
                || (label == "metadata.namespace" && (namespaced || names.is_empty()))
                || names.contains(&label);
            known.then(|| label.to_owned())
        })
    }

    /// An object in the shape and format the client asked for; `bytes` are finished.
    pub(crate) fn object(
        &self,
        status: http::StatusCode,
        bytes: Bytes,
        definition: &str,
    ) -> Result<Reply, Error> {
        let bytes = match self.accept.shape {
            Shape::Object => bytes,
            Shape::Metadata => {
                let mut out = Vec::with_capacity(512);
                table::partial(&bytes, &mut out);
                out.into()
            }
            Shape::Table => {
                let include = negotiate::include(self.query)?;
                let revision = revision_of(&bytes);
                let meta = table::ListMeta {
                    revision,
                    ..table::ListMeta::default()
                };
                let objects = [bytes.as_ref()].into_iter();
                table::render(self.kind, objects, &meta, include, true, self.now).into()
            }
        };
        self.format(status, bytes, definition)
    }

    /// Finished JSON in the format the client asked for.
    pub(crate) fn format(
        &self,
        status: http::StatusCode,
        bytes: Bytes,
        definition: &str,
    ) -> Result<Reply, Error> {
        let tree = || -> Result<Value, Error> {
            serde_json::from_slice(&bytes).map_err(|error| Error::internal(error.to_string()))
        };
        let bytes = match self.accept.format {
            Format::Json if self.accept.pretty => serde_json::to_vec_pretty(&tree()?)
                .map_err(|error| Error::internal(error.to_string()))?
                .into(),
            Format::Json => bytes,
            Format::Yaml => codec::to_yaml(&tree()?)?.into(),
            Format::Protobuf if self.accept.shape == Shape::Object => {
                let encoded = codec::protobuf::encode(definition, &tree()?);
                encoded
                    .map_err(|_| Error::not_acceptable(&[codec::JSON, codec::YAML]))?
                    .into()
            }
            Format::Protobuf => return Err(Error::not_acceptable(&[codec::JSON, codec::YAML])),
        };
        Ok(Reply::new(status, self.accept.format.content_type(), bytes))
    }

    /// The answer to a create, update or patch.
    pub(crate) fn written(&self, outcome: Outcome, warnings: &[String]) -> Result<Reply, Error> {
        let status = if outcome.created {
            http::StatusCode::CREATED
        } else {
            http::StatusCode::OK
        };
        let mut reply = self.object(status, outcome.bytes, &self.kind.definition)?;
        reply.warn(warnings);
        Ok(reply)
    }

    /// The manager's name for this write.
    pub(crate) fn manager(&'a self, options: &'a WriteOptions) -> &'a str {
        negotiate::manager(&options.field_manager, self.headers)
    }
}

/// What `fieldValidation` does with unknown and duplicate fields.
pub(crate) fn strictness(
    gvk: &GroupVersionKind,
    strict: Vec<String>,
    validation: FieldValidation,
    warnings: &mut Vec<String>,
) -> Result<(), Error> {
    match validation {
        FieldValidation::Ignore => Ok(()),
        FieldValidation::Warn => {
            warnings.extend(strict);
            Ok(())
        }
        FieldValidation::Strict => codec::strict_error(gvk, &strict).map_or(Ok(()), Err),
    }
}

/// The resourceVersion within finished bytes.
fn revision_of(bytes: &[u8]) -> String {
    let metadata = crate::registry::encode::metadata_of(bytes).unwrap_or(b"{}");
    let metadata: Value = serde_json::from_slice(metadata).unwrap_or_default();
    metadata["resourceVersion"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}
