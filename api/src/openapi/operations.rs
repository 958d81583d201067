//! Which operations a row of the kinds table has, before they are written in a dialect. Pure.

use crate::discovery::version_path;
use crate::kinds::{Kind, Subresource};
use crate::schema::{GroupVersionKind, Schema};

/// One method of one path.
pub(super) struct Operation {
    pub(super) path: String,
    pub(super) method: &'static str,
    /// `x-kubernetes-action`.
    pub(super) action: &'static str,
    /// `createAppsV1NamespacedDeployment`
    pub(super) id: String,
    pub(super) description: String,
    pub(super) kind: GroupVersionKind,
    pub(super) body: Body,
    /// Definition of what a success answers with; `None` for plain text.
    pub(super) answer: Option<String>,
    pub(super) codes: &'static [&'static str],
    pub(super) query: Vec<&'static [Parameter]>,
}

pub(super) enum Body {
    None,
    /// An object of this definition.
    Object(String),
    /// May be left away.
    DeleteOptions,
    Patch,
}

/// A query parameter: name, type, description.
pub(super) struct Parameter(
    pub(super) &'static str,
    pub(super) &'static str,
    pub(super) &'static str,
);

pub(super) const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
pub(super) const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";

pub(super) const PRETTY: &[Parameter] = &[Parameter(
    "pretty",
    "string",
    "'true' asks for output with line breaks.",
)];
const DRY_RUN: Parameter = Parameter(
    "dryRun",
    "string",
    "'All' runs the whole request without storing its outcome.",
);
const WRITE: &[Parameter] = &[
    DRY_RUN,
    Parameter(
        "fieldManager",
        "string",
        "Name of the actor that makes the change, at most 128 printable characters.",
    ),
    Parameter(
        "fieldValidation",
        "string",
        "What to do about unknown or duplicate fields: Ignore, Warn (the default) or Strict.",
    ),
];
const FORCE: &[Parameter] = &[Parameter(
    "force",
    "boolean",
    "Take over fields that other managers own. Only for apply patches.",
)];
const DELETE: &[Parameter] = &[
    DRY_RUN,
    Parameter(
        "gracePeriodSeconds",
        "integer",
        "Seconds the object gets to end by itself; 0 means at once.",
    ),
    Parameter(
        "ignoreStoreReadErrorWithClusterBreakingPotential",
        "boolean",
        "Delete an object even if its stored form cannot be read.",
    ),
    Parameter(
        "orphanDependents",
        "boolean",
        "Deprecated: use propagationPolicy.",
    ),
    Parameter(
        "propagationPolicy",
        "string",
        "What happens to dependents: Orphan, Background or Foreground.",
    ),
];
const LIST: &[Parameter] = &[
    Parameter(
        "allowWatchBookmarks",
        "boolean",
        "Ask for BOOKMARK events in a watch.",
    ),
    Parameter(
        "continue",
        "string",
        "Token of the last page, to get the next one.",
    ),
    Parameter(
        "fieldSelector",
        "string",
        "Restrict to objects with these field values.",
    ),
    Parameter(
        "labelSelector",
        "string",
        "Restrict to objects with these labels.",
    ),
    Parameter("limit", "integer", "Objects on one page; 0 means all."),
    Parameter(
        "resourceVersion",
        "string",
        "Which revision the answer must or may come from.",
    ),
    Parameter(
        "resourceVersionMatch",
        "string",
        "How resourceVersion is meant: Exact or NotOlderThan.",
    ),
    Parameter(
        "sendInitialEvents",
        "boolean",
        "Begin a watch with the objects there are.",
    ),
    Parameter(
        "timeoutSeconds",
        "integer",
        "When a watch or list is ended by the server.",
    ),
    Parameter(
        "watch",
        "boolean",
        "Stream changes instead of answering with a list.",
    ),
];
const LOG: &[Parameter] = &[
    Parameter("container", "string", "Which container."),
    Parameter("follow", "boolean", "Go on streaming."),
    Parameter(
        "insecureSkipTLSVerifyBackend",
        "boolean",
        "Do not verify the node's certificate.",
    ),
    Parameter("limitBytes", "integer", "Stop after so many bytes."),
    Parameter("previous", "boolean", "The log before the last restart."),
    Parameter("sinceSeconds", "integer", "Not older than so many seconds."),
    Parameter("stream", "string", "All, Stdout or Stderr."),
    Parameter("tailLines", "integer", "Only so many lines from the end."),
    Parameter("timestamps", "boolean", "Put the time before every line."),
];
const EXEC: &[Parameter] = &[
    Parameter("command", "string", "The command, one parameter per word."),
    Parameter("container", "string", "Which container."),
    Parameter("stderr", "boolean", "Connect standard error."),
    Parameter("stdin", "boolean", "Connect standard input."),
    Parameter("stdout", "boolean", "Connect standard output."),
    Parameter("tty", "boolean", "Use a terminal."),
];
const PORTS: &[Parameter] = &[Parameter("ports", "integer", "The ports to forward.")];
const PATH: &[Parameter] = &[Parameter("path", "string", "The path to proxy to.")];

/// Every operation of a row, its subresources' included.
pub(super) fn of(schema: &Schema, kind: &Kind) -> Vec<Operation> {
    let maker = Maker {
        schema,
        kind,
        base: version_path(&kind.group, &kind.version),
        api: api_name(&kind.group, &kind.version),
        scope: if kind.is_namespaced() {
            "Namespaced"
        } else {
            ""
        },
    };
    let mut operations = maker.collection();
    operations.extend(maker.object());
    for sub in kind.subresources {
        operations.extend(maker.subresource(sub));
    }
    operations
}

struct Maker<'a> {
    schema: &'a Schema,
    kind: &'a Kind,
    /// `/apis/apps/v1`
    base: String,
    /// `AppsV1`
    api: String,
    scope: &'static str,
}

// === impl Maker ===

impl Maker<'_> {
    /// `/apis/apps/v1/namespaces/{namespace}/deployments`
    fn collection_path(&self) -> String {
        let plural = &self.kind.plural;
        if self.kind.is_namespaced() {
            format!("{}/namespaces/{{namespace}}/{plural}", self.base)
        } else {
            format!("{}/{plural}", self.base)
        }
    }

    fn make(&self, method: &'static str, action: &'static str, path: String) -> Operation {
        Operation {
            path,
            method,
            action,
            id: String::new(),
            description: String::new(),
            kind: self.kind.gvk(),
            body: Body::None,
            answer: Some(self.kind.definition.to_string()),
            codes: &["200"],
            query: Vec::new(),
        }
    }

    fn collection(&self) -> Vec<Operation> {
        let Self {
            kind, api, scope, ..
        } = self;
        let name = &kind.kind;
        let list = GroupVersionKind {
            kind: kind.list_kind(),
            ..kind.gvk()
        };
        let list = self
            .schema
            .kind(&list)
            .map(|ty| self.schema.name(ty).to_owned());
        let mut operations = Vec::new();
        if kind.has_verb("list") {
            operations.push(Operation {
                id: format!("list{api}{scope}{name}"),
                description: format!("list or watch objects of kind {name}"),
                answer: list.clone(),
                query: vec![LIST],
                ..self.make("get", "list", self.collection_path())
            });
        }
        if kind.has_verb("list") && kind.is_namespaced() {
            operations.push(Operation {
                id: format!("list{api}{name}ForAllNamespaces"),
                description: format!("list or watch objects of kind {name}"),
                answer: list,
                query: vec![LIST, PRETTY],
                ..self.make("get", "list", format!("{}/{}", self.base, kind.plural))
            });
        }
        if kind.has_verb("create") {
            operations.push(Operation {
                id: format!("create{api}{scope}{name}"),
                description: format!("create {} {name}", article(name)),
                body: Body::Object(kind.definition.to_string()),
                codes: &["200", "201", "202"],
                query: vec![WRITE],
                ..self.make("post", "post", self.collection_path())
            });
        }
        if kind.has_verb("deletecollection") {
            operations.push(Operation {
                id: format!("delete{api}Collection{scope}{name}"),
                description: format!("delete collection of {name}"),
                body: Body::DeleteOptions,
                answer: Some(STATUS.to_owned()),
                query: vec![DELETE, LIST_WITHOUT_WATCH],
                ..self.make("delete", "deletecollection", self.collection_path())
            });
        }
        operations
    }

    fn object(&self) -> Vec<Operation> {
        let Self {
            kind, api, scope, ..
        } = self;
        let name = &kind.kind;
        let path = format!("{}/{{name}}", self.collection_path());
        let mut operations = Vec::new();
        for (verb, word, method) in [
            ("get", "read", "get"),
            ("update", "replace", "put"),
            ("patch", "patch", "patch"),
            ("delete", "delete", "delete"),
        ] {
            if !kind.has_verb(verb) {
                continue;
            }
            let what = match verb {
                "get" => "read the specified",
                "update" => "replace the specified",
                "patch" => "partially update the specified",
                _ => "delete",
            };
            let mut operation = self.make(method, method, path.clone());
            operation.id = format!("{word}{api}{scope}{name}");
            operation.description = if verb == "delete" {
                format!("delete {} {name}", article(name))
            } else {
                format!("{what} {name}")
            };
            fill(&mut operation, &kind.definition);
            if verb == "delete" && !kind.strategy.returns_deleted() {
                operation.answer = Some(STATUS.to_owned());
            }
            operations.push(operation);
        }
        operations
    }

    fn subresource(&self, sub: &Subresource) -> Vec<Operation> {
        let own = self.kind.gvk();
        let gvk = match sub.version {
            "" => GroupVersionKind::new(own.group, own.version, sub.kind),
            version => GroupVersionKind::new(sub.group, version, sub.kind),
        };
        let definition = self
            .schema
            .kind(&gvk)
            .map(|ty| self.schema.name(ty).to_owned());
        let path = format!("{}/{{name}}/{}", self.collection_path(), sub.name);
        let connects = sub.kind.ends_with("Options");
        let methods = sub.verbs.iter().map(|verb| match *verb {
            "create" => "post",
            "update" => "put",
            "delete" => "delete",
            "patch" => "patch",
            _ => "get",
        });
        let mut operations = Vec::new();
        for method in methods {
            let mut operation = self.make(method, method, path.clone());
            operation.kind = gvk.clone();
            operation.id = self.subresource_id(sub, method, connects);
            operation.description = format!("{} of the specified {}", sub.name, self.kind.kind);
            if connects {
                operation.action = "connect";
                operation.answer = None;
                operation.query = vec![connection_query(sub.name)];
            } else if sub.name == "log" {
                operation.answer = None;
                operation.query = vec![LOG];
            } else if let Some(definition) = &definition {
                operation.answer = Some(definition.clone());
                fill(&mut operation, definition);
            }
            operations.push(operation);
        }
        operations
    }

    fn subresource_id(&self, sub: &Subresource, method: &str, connects: bool) -> String {
        let Self {
            kind, api, scope, ..
        } = self;
        let tail = format!("{scope}{}{}", kind.kind, capital(sub.name));
        if connects {
            return format!("connect{api}{}{tail}", capital(method));
        }
        let word = match method {
            "get" => "read",
            "put" => "replace",
            "post" => "create",
            other => other,
        };
        format!("{word}{api}{tail}")
    }
}

/// Body, codes and query of a method on one object.
fn fill(operation: &mut Operation, definition: &str) {
    match operation.method {
        "put" => {
            operation.body = Body::Object(definition.to_owned());
            operation.codes = &["200", "201"];
            operation.query = vec![WRITE];
        }
        "post" => {
            operation.body = Body::Object(definition.to_owned());
            operation.codes = &["200", "201", "202"];
            operation.query = vec![WRITE];
        }
        "patch" => {
            operation.body = Body::Patch;
            operation.codes = &["200", "201"];
            operation.query = vec![WRITE, FORCE];
        }
        "delete" => {
            operation.body = Body::DeleteOptions;
            operation.codes = &["200", "202"];
            operation.query = vec![DELETE];
        }
        _ => {}
    }
}

fn connection_query(subresource: &str) -> &'static [Parameter] {
    match subresource {
        "exec" => EXEC,
        "attach" => EXEC.split_first().map_or(EXEC, |(_, rest)| rest),
        "portforward" => PORTS,
        _ => PATH,
    }
}

/// deletecollection takes what list takes, but does not watch.
const LIST_WITHOUT_WATCH: &[Parameter] = LIST.split_at(LIST.len() - 1).0.split_at(1).1;

/// `AppsV1`, `CoreV1`, `RbacAuthorizationV1`
fn api_name(group: &str, version: &str) -> String {
    let group = match group {
        "" => "core",
        named => named.strip_suffix(".k8s.io").unwrap_or(named),
    };
    group.split('.').chain([version]).map(capital).collect()
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(letters).collect()
    })
}

fn article(noun: &str) -> &'static str {
    if noun.starts_with(['A', 'E', 'I', 'O', 'U']) {
        "an"
    } else {
        "a"
    }
}
