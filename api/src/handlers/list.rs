//! Many objects at one revision: a concatenation of finished bytes, in pages when asked.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};

use super::Call;
use super::negotiate::{self, Shape};
use super::reply::Reply;
use crate::cache::Snapshot;
use crate::registry::{self, encode};
use crate::request::query::{ListOptions, VersionMatch};
use crate::selector::Selector;
use crate::status::{Error, Reason};
use crate::store::{self, Stored};
use crate::table::{self, ListMeta};

/// One page of a list.
pub(super) struct Page {
    pub(super) items: Vec<Arc<Stored>>,
    pub(super) meta: ListMeta,
}

/// Where a continued list goes on.
struct Continuation {
    /// `None`: at whatever is newest, inconsistently.
    revision: Option<u64>,
    namespace: String,
    name: String,
}

const EXPIRED: &str = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.";

pub(super) async fn list(call: &Call<'_>) -> Result<Reply, Error> {
    if !call.kind.is_stored() {
        return super::other::computed(call);
    }
    let options = call.query.list_options(false)?;
    let selector = call.selector(&options)?;
    let page = page(call, &options, &selector).await?;
    render(call, &page)
}

/// The objects a list, a table or a deletion of many is about.
pub(super) async fn page(
    call: &Call<'_>,
    options: &ListOptions,
    selector: &Selector,
) -> Result<Page, Error> {
    let continuation = Continuation::parse(&options.continue_token)?;
    let snapshot = snapshot(call, options, continuation.as_ref()).await?;
    let namespace = call.kind.is_namespaced().then_some(call.namespace());
    let namespace = namespace.filter(|ns| !ns.is_empty());
    let start = continuation
        .as_ref()
        .map(|c| (c.namespace.as_str(), c.name.as_str()));
    let limit = match options.limit {
        0 => usize::MAX,
        limit => limit,
    };
    let mut meta = ListMeta::at(snapshot.revision);
    if let Some(name) = selector.only_name()
        && let Some(namespace) = namespace.or((!call.kind.is_namespaced()).then_some(""))
    {
        let found = snapshot.get(namespace, name).cloned();
        let items = found.into_iter().filter(|o| selector.matches(o)).collect();
        return Ok(Page { items, meta });
    }
    let mut rest = snapshot.page(namespace, start);
    let mut items: Vec<Arc<Stored>> = Vec::with_capacity(limit.min(snapshot.len()));
    let everything = selector.is_everything();
    while items.len() < limit {
        let Some(object) = rest.next() else {
            break;
        };
        if everything || selector.matches(object) {
            items.push(Arc::clone(object));
        }
    }
    let more = if items.len() < limit {
        0
    } else if everything {
        rest.count()
    } else {
        usize::from(rest.any(|object| selector.matches(object)))
    };
    if let Some(last) = items.last().filter(|_| more > 0) {
        meta.continue_token = token(Some(snapshot.revision), &last.key.namespace, &last.key.name);
        meta.remaining = everything.then_some(more);
    }
    Ok(Page { items, meta })
}

async fn snapshot(
    call: &Call<'_>,
    options: &ListOptions,
    continuation: Option<&Continuation>,
) -> Result<Snapshot, Error> {
    let cache = &call.api.cache;
    let resource = &*call.kind.storage;
    if let Some(continuation) = continuation {
        let Some(revision) = continuation.revision else {
            return Ok(cache.snapshot(resource));
        };
        call.api.reach(revision).await?;
        return cache.snapshot_at(resource, revision).map_err(|error| {
            let mut error = match error {
                store::Error::Compacted { .. } => Error::new(Reason::Expired, EXPIRED),
                other => return other.into(),
            };
            error.details.continue_token = token(None, &continuation.namespace, &continuation.name);
            error
        });
    }
    let revision = options.resource_version.unwrap_or(0);
    if revision > 0 {
        call.api.reach(revision).await?;
    }
    // A page at a revision means exactly that revision, also from before the client could say so.
    let exact = match options.version_match {
        VersionMatch::Exact => true,
        VersionMatch::NotOlderThan => false,
        VersionMatch::Unset => revision > 0 && options.limit > 0,
    };
    if exact && revision > 0 {
        Ok(cache.snapshot_at(resource, revision)?)
    } else {
        Ok(cache.snapshot(resource))
    }
}

pub(super) fn render(call: &Call<'_>, page: &Page) -> Result<Reply, Error> {
    let definition = format!("{}List", call.kind.definition);
    let served = |stored: &Arc<Stored>| registry::serve(call.kind, stored);
    let bytes = match call.accept.shape {
        Shape::Object => concatenate(call, page)?,
        Shape::Table => {
            let objects: Vec<Bytes> = page.items.iter().map(served).collect::<Result<_, _>>()?;
            let include = negotiate::include(call.query)?;
            let objects = objects.iter().map(AsRef::as_ref);
            table::render(call.kind, objects, &page.meta, include, true, call.now)
        }
        Shape::Metadata => {
            let mut out = Vec::with_capacity(page.items.len() * 512 + 256);
            open(
                "PartialObjectMetadataList",
                "meta.k8s.io/v1",
                &page.meta,
                &mut out,
            );
            for (at, stored) in page.items.iter().enumerate() {
                if at > 0 {
                    out.push(b',');
                }
                table::partial(&served(stored)?, &mut out);
            }
            out.extend_from_slice(b"]}");
            out
        }
    };
    call.format(StatusCode::OK, bytes.into(), &definition)
}

/// Items leave their constant header out; everything else is copied as it is.
fn concatenate(call: &Call<'_>, page: &Page) -> Result<Vec<u8>, Error> {
    let header = encode::header(call.kind);
    let size: usize = page.items.iter().map(|item| item.bytes.len() + 1).sum();
    let mut out = Vec::with_capacity(size + 256);
    let list_kind = call.kind.list_kind();
    open(&list_kind, &call.kind.api_version(), &page.meta, &mut out);
    let converts = call.kind.convert.is_some();
    for (at, stored) in page.items.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        let converted;
        let bytes: &[u8] = if converts {
            converted = registry::serve(call.kind, stored)?;
            &converted
        } else {
            &stored.bytes
        };
        match bytes.strip_prefix(header.as_bytes()) {
            Some(rest) => {
                out.push(b'{');
                out.extend_from_slice(rest);
            }
            None => out.extend_from_slice(bytes),
        }
    }
    out.extend_from_slice(b"]}");
    Ok(out)
}

/// `{"kind":"PodList","apiVersion":"v1","metadata":{…},"items":[`.
fn open(kind: &str, api_version: &str, meta: &ListMeta, out: &mut Vec<u8>) {
    out.extend_from_slice(
        format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\",\"metadata\":").as_bytes(),
    );
    meta.write(out);
    out.extend_from_slice(b",\"items\":[");
}

/// As upstream's, so that nobody can tell: base64 of `{"v":"meta.k8s.io/v1","rv":7,"start":"ns/name\u0000"}`.
fn token(revision: Option<u64>, namespace: &str, name: &str) -> String {
    let start = format!("{namespace}/{name}\0");
    let revision = revision.map_or(json!(-1), |revision| json!(revision));
    let token = json!({ "v": "meta.k8s.io/v1", "rv": revision, "start": start });
    URL_SAFE_NO_PAD.encode(token.to_string())
}

// === impl Continuation ===

impl Continuation {
    fn parse(token: &str) -> Result<Option<Self>, Error> {
        if token.is_empty() {
            return Ok(None);
        }
        let invalid = |why: &str| {
            Error::bad_request(format!(
                "invalid continue token: continue key is not valid: {why}"
            ))
        };
        let bytes = URL_SAFE_NO_PAD
            .decode(token.trim_end_matches('='))
            .map_err(|error| invalid(&error.to_string()))?;
        let token: Value =
            serde_json::from_slice(&bytes).map_err(|error| invalid(&error.to_string()))?;
        if token["v"] != "meta.k8s.io/v1" {
            return Err(invalid("server does not recognize this encoded version"));
        }
        let start = token["start"].as_str().unwrap_or_default();
        let (namespace, name) = start
            .trim_end_matches('\0')
            .split_once('/')
            .ok_or_else(|| invalid("incorrect encoded start resourceVersion"))?;
        let revision = match &token["rv"] {
            Value::Number(number) => number.as_u64(),
            _ => return Err(invalid("incorrect encoded start resourceVersion")),
        };
        Ok(Some(Self {
            revision,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }))
    }
}
