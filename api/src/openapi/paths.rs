//! Writes operations as the `paths` of a v2 or v3 document. Pure.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::Dialect;
use super::operations::{self, Body, DELETE_OPTIONS, Operation, PRETTY, Parameter};
use super::schemas::{PATCH, kind_value};
use crate::codec;
use crate::discovery::version_path;
use crate::kinds::Kinds;
use crate::schema::Schema;

const RESOURCE_LIST: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.APIResourceList";
const PRODUCED: [&str; 3] = [codec::JSON, codec::PROTOBUF, codec::YAML];
const STREAMED: [&str; 5] = [
    codec::JSON,
    "application/json;stream=watch",
    codec::PROTOBUF,
    "application/vnd.kubernetes.protobuf;stream=watch",
    codec::YAML,
];
const PATCHES: [&str; 4] = [
    codec::APPLY,
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

/// Paths, and the definitions they refer to.
#[derive(Default)]
pub(super) struct Described {
    pub(super) paths: Map<String, Value>,
    pub(super) roots: BTreeSet<String>,
}

// === impl Described ===

impl Described {
    pub(super) fn extend(&mut self, other: Self) {
        self.paths.extend(other.paths);
        self.roots.extend(other.roots);
    }
}

#[derive(Clone, Copy)]
pub(super) struct Writer<'a> {
    dialect: Dialect,
    schema: &'a Schema,
}

// === impl Writer ===

impl<'a> Writer<'a> {
    pub(super) fn new(dialect: Dialect, schema: &'a Schema) -> Self {
        Self { dialect, schema }
    }

    /// All paths of one group and version.
    pub(super) fn version(self, kinds: &Kinds, group: &str, version: &str) -> Described {
        let mut described = Described::default();
        let tag = tag(group, version);
        self.resources(group, version, &tag, &mut described);
        for kind in kinds.in_version(group, version) {
            for operation in operations::of(self.schema, kind) {
                self.add(&operation, &tag, &mut described);
            }
        }
        described
    }

    /// `/apis/apps/v1/`: the legacy discovery document.
    fn resources(self, group: &str, version: &str, tag: &str, described: &mut Described) {
        let path = format!("{}/", version_path(group, version));
        described.roots.insert(RESOURCE_LIST.to_owned());
        let mut get = Map::new();
        get.insert("tags".to_owned(), json!([tag]));
        get.insert("description".to_owned(), "get available resources".into());
        get.insert("operationId".to_owned(), format!("{tag}-resources").into());
        self.answers(&mut get, Some(RESOURCE_LIST), &["200"], &PRODUCED);
        described.paths.insert(path, json!({"get": get}));
    }

    fn add(self, operation: &Operation, tag: &str, described: &mut Described) {
        let roots = &mut described.roots;
        roots.extend(operation.answer.clone());
        match &operation.body {
            Body::None => {}
            Body::Object(definition) => drop(roots.insert(definition.clone())),
            Body::DeleteOptions => drop(roots.insert(DELETE_OPTIONS.to_owned())),
            Body::Patch => drop(roots.insert(PATCH.to_owned())),
        }
        let item = described
            .paths
            .entry(operation.path.clone())
            .or_insert_with(|| json!({"parameters": self.path_parameters(&operation.path)}));
        item[operation.method] = Value::Object(self.operation(operation, tag));
    }

    fn operation(self, operation: &Operation, tag: &str) -> Map<String, Value> {
        let mut out = Map::new();
        out.insert("tags".to_owned(), json!([tag]));
        out.insert("description".to_owned(), (&*operation.description).into());
        out.insert("operationId".to_owned(), (&*operation.id).into());
        out.insert("x-kubernetes-action".to_owned(), operation.action.into());
        out.insert(
            "x-kubernetes-group-version-kind".to_owned(),
            kind_value(&operation.kind),
        );
        let mut parameters: Vec<Value> = Vec::new();
        for parameter in operation.query.iter().flat_map(|list| list.iter()) {
            parameters.push(self.query_parameter(parameter));
        }
        self.body(operation, &mut out, &mut parameters);
        if !parameters.is_empty() {
            out.insert("parameters".to_owned(), parameters.into());
        }
        let produced: &[&str] = match (operation.action, &operation.answer) {
            ("list", _) => &STREAMED,
            (_, None) => &["text/plain"],
            _ => &PRODUCED,
        };
        self.answers(
            &mut out,
            operation.answer.as_deref(),
            operation.codes,
            produced,
        );
        out
    }

    fn reference(self, definition: &str) -> Value {
        json!({"$ref": format!("{}{definition}", self.dialect.definitions())})
    }

    fn path_parameters(self, path: &str) -> Vec<Value> {
        let known = [
            ("name", "Name of the object."),
            ("namespace", "Namespace of the object."),
        ];
        let mut parameters: Vec<Value> = Vec::new();
        for (name, text) in known {
            if path.contains(&format!("{{{name}}}")) {
                let mut parameter = self.parameter(name, "path", "string", text);
                parameter["required"] = true.into();
                parameters.push(parameter);
            }
        }
        if !parameters.is_empty() || path.ends_with('s') {
            parameters.extend(PRETTY.iter().map(|p| self.query_parameter(p)));
        }
        parameters
    }

    fn query_parameter(self, Parameter(name, kind, text): &Parameter) -> Value {
        self.parameter(name, "query", kind, text)
    }

    fn parameter(self, name: &str, place: &str, kind: &str, text: &str) -> Value {
        match self.dialect {
            Dialect::V2 => json!({
                "name": name, "in": place, "description": text, "type": kind, "uniqueItems": true,
            }),
            Dialect::V3 => json!({
                "name": name, "in": place, "description": text,
                "schema": {"type": kind, "uniqueItems": true},
            }),
        }
    }

    fn body(self, operation: &Operation, out: &mut Map<String, Value>, list: &mut Vec<Value>) {
        let (definition, consumed, required): (_, &[&str], _) = match &operation.body {
            Body::None => return,
            Body::Object(definition) => (&**definition, &["*/*"], true),
            Body::DeleteOptions => (DELETE_OPTIONS, &["*/*"], false),
            Body::Patch => (PATCH, &PATCHES, true),
        };
        let schema = self.reference(definition);
        match self.dialect {
            Dialect::V2 => {
                let mut body = json!({"name": "body", "in": "body", "schema": schema});
                if required {
                    body["required"] = true.into();
                }
                list.push(body);
                out.insert("consumes".to_owned(), consumed.into());
            }
            Dialect::V3 => {
                let content = content(consumed, &schema);
                let mut body = json!({"content": content});
                if required {
                    body["required"] = true.into();
                }
                out.insert("requestBody".to_owned(), body);
            }
        }
    }

    fn answers(
        self,
        out: &mut Map<String, Value>,
        definition: Option<&str>,
        codes: &[&str],
        produced: &[&str],
    ) {
        let schema = definition.map_or_else(|| json!({"type": "string"}), |d| self.reference(d));
        let mut responses = Map::new();
        for code in codes {
            let text = match *code {
                "201" => "Created",
                "202" => "Accepted",
                _ => "OK",
            };
            let response = match self.dialect {
                Dialect::V2 => json!({"description": text, "schema": schema}),
                Dialect::V3 => json!({"description": text, "content": content(produced, &schema)}),
            };
            responses.insert((*code).to_owned(), response);
        }
        responses.insert("401".to_owned(), json!({"description": "Unauthorized"}));
        out.insert("responses".to_owned(), responses.into());
        if self.dialect == Dialect::V2 {
            out.insert("produces".to_owned(), produced.into());
            out.insert("schemes".to_owned(), json!(["https"]));
        }
    }
}

fn content(media_types: &[&str], schema: &Value) -> Map<String, Value> {
    let entry = json!({"schema": schema});
    media_types
        .iter()
        .map(|media_type| ((*media_type).to_owned(), entry.clone()))
        .collect()
}

/// `apps_v1`, `core_v1`, `rbacAuthorization_v1`
fn tag(group: &str, version: &str) -> String {
    if group.is_empty() {
        return format!("core_{version}");
    }
    let mut words = group.strip_suffix(".k8s.io").unwrap_or(group).split('.');
    let mut tag = words.next().unwrap_or_default().to_owned();
    for word in words {
        let (first, rest) = word.split_at(1);
        tag += &first.to_uppercase();
        tag += rest;
    }
    format!("{tag}_{version}")
}
