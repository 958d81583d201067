//! OpenAPI, derived from the kinds and the type graph: v3 per group and version, v2 in one piece as JSON and as protobuf.
//!
//! ```text
//! /openapi/v3                        index: a path with a hash for each group and version
//! /openapi/v3/apis/apps/v1?hash=…    its document; another hash is redirected to the right one
//! /openapi/v2                        everything, JSON or gnostic protobuf by Accept
//! ```
//! Documents are built on first use and kept as bytes. kubectl reads from them: patch strategies (client-side apply), the
//! `fieldValidation` and `dryRun` parameters of PATCH (create, replace, diff), descriptions (explain).
//! Differs from Kubernetes: the deprecated `/watch/` paths are served but not described; v3 is JSON only.

mod descriptions;
mod gnostic;
mod operations;
mod paths;
mod schemas;

use std::collections::BTreeMap;
use std::sync::{LazyLock, OnceLock};

use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH, LOCATION, VARY};
use http::{HeaderMap, Response, StatusCode};
use serde_json::{Map, Value, json};

use crate::codec;
use crate::discovery::{entity_tag, hash, set, version_path};
use crate::kinds::{self, Kinds};
use crate::schema::{self, Schema};
use crate::status::{Error, Reason};

const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
/// How clients ask for it: the `@` is no legal character of a media type, so answers have a dot there.
const V2_PROTOBUF_ASKED: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// Which of the two versions of OpenAPI is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Dialect {
    V2,
    V3,
}

/// All documents about one table of kinds.
pub struct OpenApi {
    kinds: &'static Kinds,
    schema: &'static Schema,
    /// By path without slashes around it: `api/v1`, `apis/apps/v1`.
    v3: BTreeMap<String, Group>,
    index: OnceLock<Bytes>,
    v2: OnceLock<Document>,
    v2_protobuf: OnceLock<Document>,
}

struct Group {
    group: String,
    version: String,
    /// Upper-case SHA-512 of what the document is made from (facts, rows, our version), not of the document: so the
    /// index can name it without building all documents, which cost a second of CPU and 15 MB.
    hash: String,
    document: OnceLock<Bytes>,
}

struct Document {
    body: Bytes,
    /// Upper-case SHA-512 of the body.
    hash: String,
}

/// The documents about the built-in kinds.
pub fn builtin() -> &'static OpenApi {
    static BUILTIN: LazyLock<OpenApi> =
        LazyLock::new(|| OpenApi::new(kinds::table(), schema::builtin()));
    &BUILTIN
}

// === impl Dialect ===

impl Dialect {
    /// Where `$ref`s point.
    fn definitions(self) -> &'static str {
        match self {
            Self::V2 => "#/definitions/",
            Self::V3 => "#/components/schemas/",
        }
    }
}

// === impl Document ===

impl Document {
    fn new(body: impl Into<Bytes>) -> Self {
        let body = body.into();
        let hash = hash(&body);
        Self { body, hash }
    }
}

// === impl OpenApi ===

impl OpenApi {
    pub fn new(kinds: &'static Kinds, schema: &'static Schema) -> Self {
        let facts = hash(schema::FACTS.as_bytes());
        let mut v3 = BTreeMap::new();
        for group in kinds.groups() {
            for version in kinds.versions(group) {
                let path = version_path(group, version);
                let entry = Group {
                    hash: hash_of_inputs(kinds, &facts, group, version),
                    group: group.to_owned(),
                    version: version.to_owned(),
                    document: OnceLock::new(),
                };
                v3.insert(path.trim_start_matches('/').to_owned(), entry);
            }
        }
        Self {
            kinds,
            schema,
            v3,
            index: OnceLock::new(),
            v2: OnceLock::new(),
            v2_protobuf: OnceLock::new(),
        }
    }

    /// Answers a GET below `/openapi/`; `None` for a path that is not served. `asked` is the query's `hash`.
    /// The first answer takes tens of milliseconds of CPU.
    pub fn respond(
        &self,
        path: &str,
        asked: Option<&str>,
        headers: &HeaderMap,
    ) -> Option<Result<Response<Bytes>, Error>> {
        match path.trim_end_matches('/') {
            "/openapi/v2" => Some(self.respond_v2(headers)),
            "/openapi/v3" => Some(Ok(self.respond_index(headers))),
            path => {
                let key = path.strip_prefix("/openapi/v3/")?;
                let (key, group) = self.v3.get_key_value(key)?;
                Some(Ok(self.respond_v3(key, group, asked, headers)))
            }
        }
    }

    fn respond_index(&self, headers: &HeaderMap) -> Response<Bytes> {
        let body = self.index.get_or_init(|| self.build_index().into());
        let tag = entity_tag(body);
        // Upstream says text/plain here; clients do not look.
        cached(headers, body, codec::JSON, &tag)
    }

    fn respond_v3(
        &self,
        key: &str,
        group: &Group,
        asked: Option<&str>,
        headers: &HeaderMap,
    ) -> Response<Bytes> {
        if let Some(asked) = asked
            && asked != group.hash
        {
            let mut response = Response::new(Bytes::new());
            *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
            set(response.headers_mut(), LOCATION, &location(key, group));
            set(response.headers_mut(), VARY, "Accept");
            return response;
        }
        let tag = format!("\"{}\"", group.hash);
        let document = group.document.get_or_init(|| {
            self.build_v3(&group.group, &group.version)
                .to_string()
                .into()
        });
        let mut response = cached(headers, document, codec::JSON, &tag);
        if asked.is_some() {
            set(response.headers_mut(), CACHE_CONTROL, "public, immutable");
        }
        response
    }

    fn respond_v2(&self, headers: &HeaderMap) -> Result<Response<Bytes>, Error> {
        let accept = headers
            .get(ACCEPT)
            .and_then(|accept| accept.to_str().ok())
            .filter(|accept| !accept.trim().is_empty())
            .unwrap_or("*/*");
        for entry in accept.split(',') {
            let (document, content_type) = match codec::essence(entry) {
                V2_PROTOBUF | V2_PROTOBUF_ASKED => (self.v2_protobuf(), V2_PROTOBUF),
                codec::JSON | "*/*" | "application/*" => (self.v2(), codec::JSON),
                _ => continue,
            };
            let tag = format!("\"{}\"", document.hash);
            return Ok(cached(headers, &document.body, content_type, &tag));
        }
        Err(Error::new(
            Reason::NotAcceptable,
            format!("only the following media types are accepted: application/json, {V2_PROTOBUF}"),
        ))
    }

    fn v2(&self) -> &Document {
        self.v2
            .get_or_init(|| Document::new(self.build_v2().to_string()))
    }

    fn v2_protobuf(&self) -> &Document {
        self.v2_protobuf
            .get_or_init(|| Document::new(gnostic::encode(&self.build_v2())))
    }

    fn build_index(&self) -> String {
        let mut paths = Map::new();
        for (key, group) in &self.v3 {
            let url = location(key, group);
            paths.insert(key.clone(), json!({"serverRelativeURL": url}));
        }
        json!({"paths": paths}).to_string()
    }

    fn build_v3(&self, group: &str, version: &str) -> Value {
        let writer = paths::Writer::new(Dialect::V3, self.schema);
        let described = writer.version(self.kinds, group, version);
        let texts = descriptions::of(&[(group, version)]);
        let schemas = schemas::closure(self.schema, Dialect::V3, &described.roots, &texts);
        json!({
            "openapi": "3.0.0",
            "info": info(),
            "paths": described.paths,
            "components": {"schemas": schemas, "securitySchemes": security()},
        })
    }

    fn build_v2(&self) -> Value {
        let writer = paths::Writer::new(Dialect::V2, self.schema);
        let mut all = paths::Described::default();
        let mut versions = Vec::new();
        for group in self.v3.values() {
            versions.push((&*group.group, &*group.version));
            all.extend(writer.version(self.kinds, &group.group, &group.version));
        }
        let texts = descriptions::of(&versions);
        let definitions = schemas::closure(self.schema, Dialect::V2, &all.roots, &texts);
        json!({
            "swagger": "2.0",
            "info": info(),
            "paths": all.paths,
            "definitions": definitions,
            "securityDefinitions": security(),
            "security": [{"BearerToken": []}],
        })
    }
}

fn info() -> Value {
    json!({"title": "Kubernetes", "version": "1.36"})
}

fn security() -> Value {
    json!({"BearerToken": {
        "type": "apiKey",
        "name": "authorization",
        "in": "header",
        "description": "Bearer token",
    }})
}

fn location(key: &str, group: &Group) -> String {
    format!("/openapi/v3/{key}?hash={}", group.hash)
}

/// Anything that could change a group version's document changes this text: our version (the code that writes it and the
/// descriptions), the rows of its kinds, the types.
fn hash_of_inputs(kinds: &Kinds, facts: &str, group: &str, version: &str) -> String {
    let rows = kinds
        .all()
        .iter()
        .filter(|kind| kind.group == group && kind.version == version)
        .map(|kind| format!("{} {} {:?}", kind.kind, kind.plural, kind.verbs));
    let rows: Vec<_> = rows.collect();
    let ours = env!("CARGO_PKG_VERSION");
    hash(format!("{ours} {facts} {group}/{version} {rows:?}").as_bytes())
}

/// The body with its tag, or 304 when the client has it.
fn cached(headers: &HeaderMap, body: &Bytes, content_type: &str, tag: &str) -> Response<Bytes> {
    let known = headers
        .get(IF_NONE_MATCH)
        .is_some_and(|known| known.as_bytes() == tag.as_bytes());
    let mut response = Response::new(if known { Bytes::new() } else { body.clone() });
    if known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let headers = response.headers_mut();
    set(headers, CONTENT_TYPE, content_type);
    set(headers, ETAG, tag);
    set(headers, VARY, "Accept");
    response
}

#[cfg(test)]
mod tests;
