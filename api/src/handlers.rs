//! From a request to an answer: one file per verb, and the steps every request takes. No kind is named here.
//!
//! ```text
//! parse ─► authenticate ─► authorise ─► body ─► room? ─► find the kind ─► verb ─► answer
//!   └───────────── whatever fails on the way becomes a Status ────────────┘
//! ```
//! Never touches the store itself: reads go to the cache, writes through `registry`.

mod call;
mod create;
mod delete;
mod get;
mod list;
pub mod negotiate;
mod other;
mod patch;
pub mod reply;
mod room;
mod subresource;
mod update;
mod watch;

use std::ops::RangeInclusive;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use futures::FutureExt as _;
use http::request::Parts;
use http::{Method, Request};
use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission::TolerationSeconds;
use crate::auth::{Access, User};
use crate::cache::Cache;
use crate::kinds::strategy::{Door, NodeRanges};
use crate::kinds::{Kind, Kinds};
use crate::links::{self, Links};
use crate::metrics::Metrics;
use crate::nodes::Nodes;
use crate::request::{Query, RequestInfo, ResourcePath};
use crate::schema::Schema;
use crate::status::Error;
use crate::store::Store;
use crate::streams::Streams;
use negotiate::{Accept, Format};
use reply::Reply;

pub(crate) use call::{Call, strictness};
pub use room::Room;
pub(crate) use room::read_body;
use room::{make_room, receive};

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
    pub streams: Streams,
    pub metrics: Metrics,
    /// Cancelled when the server begins to drain: watches end, readiness fails.
    pub stopping: CancellationToken,
    /// What goes on behind an answer: streams, links. The server's end waits for them.
    pub tasks: TaskTracker,
    /// Cancelled when the drain has taken too long: whatever is left ends.
    pub cut_off: CancellationToken,
    pub room: Room,
}

/// What is the same for the whole life of a server.
#[derive(Clone, Debug)]
pub struct Settings {
    pub service_cidr: ipnet::Ipv4Net,
    pub node_ports: RangeInclusive<u16>,
    /// Pod ranges that a node may register with.
    pub node_ranges: Option<NodeRanges>,
    /// What clients may find this server by, beside the names and addresses every server has.
    pub names: Vec<String>,
    /// Names of IngressClasses that are ours beside our own.
    pub ingress_classes: Vec<String>,
    pub tolerations: TolerationSeconds,
    /// The longest that certificates live which are signed for others.
    pub cluster_signing_duration: std::time::Duration,
    /// `host:port` where clients reach this server.
    pub advertised: std::net::SocketAddr,
}

const DEADLINE: Duration = Duration::from_secs(60);
/// How long a refusal waits for the newest state.
const WAIT_TO_BE_SURE: Duration = Duration::from_secs(1);
/// How long a read waits for a revision that has not been reached.
pub(crate) const WAIT_FOR_REVISION: Duration = Duration::from_secs(3);
const LOOK_AT_THE_CLOCK: Duration = Duration::from_secs(60);

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
    let deadline = deadline(query)?;
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
fn deadline(query: &Query) -> Result<Duration, Error> {
    let wanted = match query.first("timeout") {
        None | Some("") => Duration::ZERO,
        Some(text) => types::duration::parse(text).map_err(|wrong| {
            let text = format!("invalid timeout specified in the request URL - {wrong}");
            Error::bad_request(text)
        })?,
    };
    Ok(if wanted.is_zero() {
        DEADLINE
    } else {
        wanted.min(DEADLINE)
    })
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
    let no_head = parts.method == Method::HEAD && path.subresource != "proxy";
    if info.verb.is_empty() || no_head {
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
        parts,
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

/// The clock of the whole server: a request reads it once.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the rim: everything behind it takes `now`"
)]
pub(crate) fn now() -> Timestamp {
    Timestamp::now()
}

/// Waits until then; for ever when there is no such time. Looks at the clock now and then: it may be set.
pub(crate) async fn passed(time: Option<Timestamp>) {
    let Some(time) = time else {
        return std::future::pending().await;
    };
    loop {
        let Ok(left) = Duration::try_from(time.duration_since(now())) else {
            return;
        };
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(LOOK_AT_THE_CLOCK)).await;
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_may_ask_for_less_than_a_minute_as_go_writes_it() {
        let of = |raw: &str| deadline(&Query::parse(raw));
        for (raw, seconds) in [
            ("", 60),
            ("timeout=", 60),
            ("timeout=0s", 60),
            ("timeout=10s", 10),
            ("timeout=0.5m", 30),
            ("timeout=1m30s", 60),
            ("timeout=1000000h", 60),
        ] {
            let deadline = of(raw).expect("a span of time");
            assert_eq!(deadline, Duration::from_secs(seconds), "{raw}");
        }
        let refused = of("timeout=30").expect_err("no unit");
        assert_eq!(
            refused.message,
            "invalid timeout specified in the request URL - time: missing unit in duration \"30\""
        );
    }
}
