//! Path and query → [`RequestInfo`]: which verb on which resource. Pure; knows no kinds and reads no body.
//!
//! ```text
//! /api/v1/namespaces/default/pods/web/log
//!     └group "" version v1 └namespace └resource └name └subresource
//! /apis/apps/v1/watch/deployments          the legacy watch prefix
//! /healthz, /version, /apis, /apis/apps    not resources: `path` is all there is
//! ```

pub mod query;

use http::Method;

pub use query::Query;

/// What a request is about.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RequestInfo {
    /// The decoded path.
    pub path: String,
    pub target: Target,
    /// `get list watch create update patch delete deletecollection` for resources, the lower-case method for the rest.
    pub verb: &'static str,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Target {
    /// `/healthz`, `/apis/apps/v1`, `/openapi/v3` …: no resource is named.
    Other,
    Resource(ResourcePath),
}

/// A path below `/api/v1/` or `/apis/GROUP/VERSION/`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ResourcePath {
    /// Empty for the core group.
    pub group: String,
    pub version: String,
    /// Plural: `pods`.
    pub resource: String,
    /// Empty for cluster-scoped resources and for requests across namespaces. `namespaces/x` has `x` here as well.
    pub namespace: String,
    pub name: String,
    /// The one name a field selector lets through; only authorisation looks at it.
    pub selected_name: String,
    pub subresource: String,
    /// What follows the subresource: `pods/x/proxy/a/b` has `a/b`.
    pub rest: String,
}

// === impl RequestInfo ===

impl RequestInfo {
    pub fn parse(method: &Method, raw_path: &str, query: &Query) -> Self {
        let path = query::percent_decode(raw_path, false);
        let Some((resource, watch_prefix)) = ResourcePath::parse(raw_path) else {
            return Self {
                path,
                target: Target::Other,
                verb: lower(method),
            };
        };
        let mut info = Self {
            verb: resource.verb(method, watch_prefix, query),
            path,
            target: Target::Resource(resource),
        };
        info.name_from_field_selector(query);
        info
    }

    pub fn resource(&self) -> Option<&ResourcePath> {
        match &self.target {
            Target::Resource(resource) => Some(resource),
            Target::Other => None,
        }
    }

    /// May run for minutes: no deadline, and not counted among the requests in flight.
    pub fn is_long_running(&self) -> bool {
        self.verb == "watch"
            || self.resource().is_some_and(|resource| {
                matches!(
                    &*resource.subresource,
                    "log" | "exec" | "attach" | "portforward" | "proxy"
                )
            })
    }

    /// A list or watch of one object by name is authorised as that object.
    fn name_from_field_selector(&mut self, query: &Query) {
        if !matches!(self.verb, "list" | "watch" | "deletecollection") {
            return;
        }
        let (Target::Resource(resource), Some(selector)) =
            (&mut self.target, query.first("fieldSelector"))
        else {
            return;
        };
        if resource.name.is_empty()
            && let Some(name) = selector.split(',').find_map(|term| {
                term.strip_prefix("metadata.name==")
                    .or_else(|| term.strip_prefix("metadata.name="))
            })
        {
            name.clone_into(&mut resource.selected_name);
        }
    }
}

// === impl ResourcePath ===

impl ResourcePath {
    /// The resource, and whether the path had the legacy `watch/` prefix.
    fn parse(raw_path: &str) -> Option<(Self, bool)> {
        let mut parts = raw_path.trim_start_matches('/').split('/').peekable();
        let group = match parts.next()? {
            "api" => String::new(),
            "apis" => decode(parts.next()?),
            _ => return None,
        };
        let version = decode(parts.next()?);
        let watch_prefix = parts.peek() == Some(&"watch");
        if watch_prefix {
            parts.next();
        }
        let parts: Vec<String> = parts.map(decode).collect();
        let mut parts: &[String] = match parts.as_slice() {
            [init @ .., last] if last.is_empty() => init,
            all => all,
        };
        let mut path = Self {
            group,
            version,
            ..Self::default()
        };
        if let [first, namespace, more @ ..] = parts
            && first == "namespaces"
            && !namespace.is_empty()
        {
            namespace.clone_into(&mut path.namespace);
            let of_the_namespace_itself = matches!(
                more.first().map(String::as_str),
                None | Some("status" | "finalize")
            );
            if !of_the_namespace_itself {
                parts = more;
            }
        }
        let (resource, more) = parts.split_first()?;
        if resource.is_empty() {
            return None;
        }
        resource.clone_into(&mut path.resource);
        if let Some(name) = more.first() {
            name.clone_into(&mut path.name);
        }
        if let Some(subresource) = more.get(1) {
            subresource.clone_into(&mut path.subresource);
        }
        path.rest = more.get(2..).unwrap_or_default().join("/");
        Some((path, watch_prefix))
    }

    fn verb(&self, method: &Method, watch_prefix: bool, query: &Query) -> &'static str {
        let collection = self.name.is_empty();
        match *method {
            Method::GET | Method::HEAD if watch_prefix => "watch",
            Method::GET | Method::HEAD if collection && query.flag("watch") => "watch",
            Method::GET | Method::HEAD if collection => "list",
            Method::GET | Method::HEAD => "get",
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE if collection => "deletecollection",
            Method::DELETE => "delete",
            _ => "",
        }
    }

    /// The one object this is about, as authorisation sees it; empty when there is none, or many.
    pub fn object(&self) -> &str {
        if self.name.is_empty() {
            &self.selected_name
        } else {
            &self.name
        }
    }

    /// `group/version` as objects write it.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.clone()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }
}

fn decode(part: &str) -> String {
    query::percent_decode(part, false)
}

fn lower(method: &Method) -> &'static str {
    match *method {
        Method::GET => "get",
        Method::HEAD => "head",
        Method::POST => "post",
        Method::PUT => "put",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        Method::OPTIONS => "options",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(method: &Method, uri: &str) -> RequestInfo {
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        RequestInfo::parse(method, path, &Query::parse(query))
    }

    fn words(method: &Method, uri: &str) -> String {
        let info = parse(method, uri);
        match &info.target {
            Target::Other => format!("{} {}", info.verb, info.path),
            Target::Resource(r) => format!(
                "{} {}|{}|{}|{}|{}|{}|{}",
                info.verb,
                r.group,
                r.version,
                r.namespace,
                r.resource,
                r.name,
                r.subresource,
                r.rest
            ),
        }
    }

    #[test]
    fn paths_and_methods_become_verbs_on_resources() {
        for (method, uri, expect) in [
            (Method::GET, "/api/v1/pods", "list |v1||pods|||"),
            (Method::GET, "/api/v1/pods?watch=1", "watch |v1||pods|||"),
            (Method::GET, "/api/v1/pods?watch=false", "list |v1||pods|||"),
            (
                Method::GET,
                "/api/v1/namespaces/d/pods/p",
                "get |v1|d|pods|p||",
            ),
            // Upstream ignores ?watch on one object.
            (
                Method::GET,
                "/api/v1/namespaces/d/pods/p?watch=true",
                "get |v1|d|pods|p||",
            ),
            (
                Method::GET,
                "/api/v1/namespaces/d/pods/p/log?follow=true",
                "get |v1|d|pods|p|log|",
            ),
            (
                Method::POST,
                "/api/v1/namespaces/d/pods/p/proxy/a/b",
                "create |v1|d|pods|p|proxy|a/b",
            ),
            (Method::GET, "/api/v1/namespaces", "list |v1||namespaces|||"),
            (
                Method::GET,
                "/api/v1/namespaces/",
                "list |v1||namespaces|||",
            ),
            (
                Method::DELETE,
                "/api/v1/namespaces/d",
                "delete |v1|d|namespaces|d||",
            ),
            (
                Method::PUT,
                "/api/v1/namespaces/d/finalize",
                "update |v1|d|namespaces|d|finalize|",
            ),
            (
                Method::GET,
                "/apis/apps/v1/watch/deployments",
                "watch apps|v1||deployments|||",
            ),
            (
                Method::GET,
                "/api/v1/watch/namespaces/d/pods/p",
                "watch |v1|d|pods|p||",
            ),
            (
                Method::DELETE,
                "/apis/apps/v1/namespaces/d/deployments",
                "deletecollection apps|v1|d|deployments|||",
            ),
            (
                Method::PATCH,
                "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode",
                "patch rbac.authorization.k8s.io|v1||clusterroles|system:node||",
            ),
            (Method::GET, "/apis/apps/v1", "get /apis/apps/v1"),
            (Method::GET, "/apis/apps/v1/", "get /apis/apps/v1/"),
            (Method::GET, "/readyz/ping", "get /readyz/ping"),
        ] {
            assert_eq!(words(&method, uri), expect, "{method} {uri}");
        }
    }

    #[test]
    fn a_list_of_one_name_is_authorised_as_that_name() {
        let info = parse(
            &Method::GET,
            "/api/v1/pods?fieldSelector=metadata.name%3Dweb",
        );
        assert_eq!(info.resource().map(|r| &*r.selected_name), Some("web"));
    }

    #[test]
    fn watches_and_streams_have_no_deadline() {
        assert!(parse(&Method::GET, "/api/v1/pods?watch=true").is_long_running());
        assert!(parse(&Method::GET, "/api/v1/namespaces/d/pods/p/log").is_long_running());
        assert!(!parse(&Method::GET, "/api/v1/pods").is_long_running());
    }
}
