//! The compiled table: which request goes where. Immutable once built; matching reads nothing else.
//!
//! Order of precedence: routes before default backends; the more specific host; then the path (exact, regular expression,
//! prefix, longer ones first); then method, headers, query parameters; then the older object. The first that matches wins.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use ipnet::IpNet;
use regex::Regex;

use super::Key;
use super::origin::Origin;
use super::path::{PathChange, PathRule};

/// What is served on each port.
#[derive(Clone, Debug, Default)]
pub struct Table {
    pub doors: BTreeMap<u16, Arc<Door>>,
}

/// One port.
#[derive(Debug, Default)]
pub struct Door {
    pub tls: bool,
    pub(super) routes: HostMap,
    pub(super) fallbacks: HostMap,
    /// By name of the server as clients ask for it; the first for a name wins.
    pub(super) certificates: Vec<Shown>,
    /// A request whose server name and `Host` lead to different listeners is answered 421.
    pub(super) scopes: Vec<HostPattern>,
}

/// A certificate, and for whom.
#[derive(Clone, Debug)]
pub(super) struct Shown {
    pub(super) host: HostPattern,
    /// As a route's.
    pub(super) deep: bool,
    pub(super) secret: Key,
}

/// Lower case.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum HostPattern {
    Any,
    Exact(String),
    /// `*.example.com`, without the `*.`
    Wildcard(String),
}

/// Routes by the host they are for, each list in the order of precedence.
#[derive(Debug, Default)]
pub(super) struct HostMap {
    exact: HashMap<String, Vec<Arc<Route>>>,
    wildcard: HashMap<String, Vec<Arc<Route>>>,
    any: Vec<Arc<Route>>,
}

#[derive(Clone, Debug)]
pub struct Route {
    pub path: PathRule,
    pub method: Option<Method>,
    pub headers: Vec<(HeaderName, TextRule)>,
    pub query: Vec<(String, TextRule)>,
    /// A wildcard stands for any number of labels (Gateway API), not for exactly one (Ingress).
    pub(super) deep: bool,
    /// Hosts that a more specific listener of the same Gateway takes for itself.
    pub(super) not_for: Arc<Vec<HostPattern>>,
    pub action: Arc<Action>,
}

#[derive(Clone, Debug)]
pub enum TextRule {
    Exact(String),
    Regex(Regex),
}

/// What is done with a request that matched.
#[derive(Clone, Debug)]
pub struct Action {
    pub origin: Arc<Origin>,
    pub filters: Vec<Filter>,
    pub backends: Vec<Backend>,
    pub policy: Policy,
}

/// One of several places a request may go to.
#[derive(Clone, Debug)]
pub struct Backend {
    pub target: Target,
    pub weight: u32,
    pub filters: Vec<Filter>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Target {
    Service {
        key: Key,
        port: PortRef,
    },
    /// Nothing to send to, and what to answer: a reference that cannot be followed.
    Broken {
        code: StatusCode,
        why: String,
    },
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PortRef {
    Number(u16),
    Name(String),
}

#[derive(Clone, Debug)]
pub enum Filter {
    RequestHeaders(HeaderChange),
    ResponseHeaders(HeaderChange),
    Redirect(Redirect),
    /// To a fixed place.
    RedirectTo {
        location: HeaderValue,
        code: StatusCode,
    },
    /// To the same place by https, unless the client speaks it already.
    ToHttps,
    Rewrite {
        host: Option<HeaderValue>,
        path: Option<PathChange>,
    },
    Mirror {
        target: Target,
        /// Of a million.
        share: u32,
    },
}

#[derive(Clone, Debug, Default)]
pub struct HeaderChange {
    pub set: Vec<(HeaderName, HeaderValue)>,
    pub add: Vec<(HeaderName, HeaderValue)>,
    pub remove: Vec<HeaderName>,
}

#[derive(Clone, Debug)]
pub struct Redirect {
    pub scheme: Option<String>,
    pub host: Option<String>,
    pub path: Option<PathChange>,
    pub port: Option<u16>,
    pub code: StatusCode,
}

/// How long one step may take.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Patience {
    /// What the node takes for everybody.
    #[default]
    OfNode,
    Within(Duration),
    /// The author of the route wants no bound of its own for it.
    Endless,
}

/// Bounds of one route. `None` is the node's default.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Largest request body; 0 is without bound.
    pub body_limit: Option<u64>,
    /// Until the backend's answer begins, and between two pieces of it.
    pub read_timeout: Patience,
    /// Between two pieces of the request's body.
    pub send_timeout: Option<Duration>,
    /// The whole exchange.
    pub total_timeout: Option<Duration>,
    /// Clients by address; empty is everybody.
    pub allow: Vec<IpNet>,
    pub deny: Vec<IpNet>,
    /// `X-Forwarded-Prefix`
    pub forwarded_prefix: Option<HeaderValue>,
}

/// What matching looks at.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Lower case, without port.
    pub host: &'a str,
    /// As [`super::path`] compares it.
    pub path: &'a str,
    pub query: &'a str,
    pub method: &'a Method,
    pub headers: &'a HeaderMap,
}

// === impl HostPattern ===

impl HostPattern {
    /// Of a hostname field; `None` and empty are any host.
    pub fn parse(text: Option<&str>) -> Self {
        let text = text.unwrap_or_default().to_ascii_lowercase();
        match text.strip_prefix("*.") {
            _ if text.is_empty() || text == "*" => Self::Any,
            Some(suffix) => Self::Wildcard(suffix.to_owned()),
            None => Self::Exact(text),
        }
    }

    /// Does a host match, a wildcard standing for one label or more?
    pub fn matches(&self, host: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(name) => name == host,
            Self::Wildcard(suffix) => host
                .strip_suffix(suffix.as_str())
                .and_then(|rest| rest.strip_suffix('.'))
                .is_some_and(|label| !label.is_empty()),
        }
    }

    /// As server certificates match: a wildcard is one label.
    pub fn matches_name(&self, host: &str) -> bool {
        match self {
            Self::Wildcard(suffix) => host
                .split_once('.')
                .is_some_and(|(label, rest)| !label.is_empty() && rest == suffix),
            _ => self.matches(host),
        }
    }

    /// Hosts that both match, as the more specific one of the two; `None` when there are none.
    pub fn intersection(&self, other: &Self) -> Option<Self> {
        match (self, other) {
            (Self::Any, other) | (other, Self::Any) => Some(other.clone()),
            (Self::Exact(a), b) => b.matches(a).then(|| self.clone()),
            (a, Self::Exact(b)) => a.matches(b).then(|| other.clone()),
            (Self::Wildcard(a), Self::Wildcard(b)) => {
                let below = |inner: &str, outer: &str| {
                    inner == outer
                        || inner
                            .strip_suffix(outer)
                            .is_some_and(|rest| rest.ends_with('.'))
                };
                if below(a, b) {
                    Some(self.clone())
                } else if below(b, a) {
                    Some(other.clone())
                } else {
                    None
                }
            }
        }
    }

    /// Is every host of `self` one of `other`'s, and not the other way around?
    pub fn is_within(&self, other: &Self) -> bool {
        self != other && self.intersection(other).as_ref() == Some(self)
    }

    /// The greater, the more specific.
    pub fn rank(&self) -> (u8, usize) {
        match self {
            Self::Any => (0, 0),
            Self::Wildcard(suffix) => (1, suffix.len()),
            Self::Exact(name) => (2, name.len()),
        }
    }
}

impl std::fmt::Display for HostPattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Exact(name) => f.write_str(name),
            Self::Wildcard(suffix) => write!(f, "*.{suffix}"),
        }
    }
}

// === impl HostMap ===

impl HostMap {
    pub(super) fn add(&mut self, host: &HostPattern, route: Arc<Route>) {
        match host {
            HostPattern::Any => self.any.push(route),
            HostPattern::Exact(name) => self.exact.entry(name.clone()).or_default().push(route),
            HostPattern::Wildcard(suffix) => {
                self.wildcard.entry(suffix.clone()).or_default().push(route);
            }
        }
    }

    /// Routes were added from the oldest object to the newest: sorting is stable and keeps that.
    pub(super) fn sort(&mut self) {
        let lists = self.exact.values_mut().chain(self.wildcard.values_mut());
        for list in lists.chain(std::iter::once(&mut self.any)) {
            list.sort_by_key(|route| route.precedence());
        }
    }

    fn find(&self, asked: &Asked<'_>) -> Option<&Arc<Route>> {
        if let Some(found) = first(self.exact.get(asked.host), asked, |_| true) {
            return Some(found);
        }
        if !self.wildcard.is_empty() {
            let mut rest = asked.host;
            let mut labels = 0;
            while let Some((label, suffix)) = rest.split_once('.') {
                labels += 1;
                rest = suffix;
                if label.is_empty() {
                    break;
                }
                let found = first(self.wildcard.get(suffix), asked, |route| {
                    labels == 1 || route.deep
                });
                if found.is_some() {
                    return found;
                }
            }
        }
        first(Some(&self.any), asked, |_| true)
    }
}

fn first<'a>(
    routes: Option<&'a Vec<Arc<Route>>>,
    asked: &Asked<'_>,
    applies: impl Fn(&Route) -> bool,
) -> Option<&'a Arc<Route>> {
    let mut routes = routes?.iter();
    routes.find(|route| applies(route) && route.matches(asked))
}

// === impl Door ===

impl Door {
    pub fn find(&self, asked: &Asked<'_>) -> Option<&Arc<Route>> {
        self.routes
            .find(asked)
            .or_else(|| self.fallbacks.find(asked))
    }

    /// The Secret for a server name: exact names first, then wildcards, then what is for everybody.
    pub fn certificate(&self, name: Option<&str>) -> impl Iterator<Item = &Key> {
        let name = name.unwrap_or_default().to_ascii_lowercase();
        let is_for = |shown: &&Shown| match shown.deep {
            true => shown.host.matches(&name),
            false => shown.host.matches_name(&name),
        };
        let mut found: Vec<&Shown> = self.certificates.iter().filter(is_for).collect();
        found.sort_by_key(|shown| Reverse(shown.host.rank()));
        found.into_iter().map(|shown| &shown.secret)
    }

    /// Was a TLS connection for `name` opened to another listener than the one that serves `host`? Then the client reuses
    /// a connection it should not.
    pub fn is_misdirected(&self, name: &str, host: &str) -> bool {
        let scope = |host: &str| {
            let matching = self.scopes.iter().filter(|scope| scope.matches(host));
            matching.max_by_key(|scope| scope.rank())
        };
        !self.scopes.is_empty() && scope(name) != scope(host)
    }

    pub(super) fn finish(&mut self) {
        self.routes.sort();
        self.fallbacks.sort();
    }
}

// === impl Route ===

impl Route {
    /// Matches every path; for the rest see the fields.
    pub(super) fn new(path: PathRule, action: Arc<Action>) -> Self {
        Self {
            path,
            method: None,
            headers: Vec::new(),
            query: Vec::new(),
            deep: false,
            not_for: Arc::default(),
            action,
        }
    }

    fn matches(&self, asked: &Asked<'_>) -> bool {
        self.path.matches(asked.path)
            && self.method.as_ref().is_none_or(|m| m == asked.method)
            && self.headers.iter().all(|(name, rule)| {
                // Several lines of one header are one list.
                let values: Vec<&str> = asked
                    .headers
                    .get_all(name)
                    .iter()
                    .filter_map(|value| value.to_str().ok())
                    .collect();
                !values.is_empty() && rule.matches(&values.join(","))
            })
            && self.query.iter().all(|(name, rule)| {
                query_value(asked.query, name).is_some_and(|value| rule.matches(&value))
            })
            && !self.not_for.iter().any(|scope| scope.matches(asked.host))
    }

    fn precedence(&self) -> impl Ord + use<> {
        let (kind, length) = match &self.path {
            PathRule::Exact(path) => (0, path.chars().count()),
            PathRule::Regex(path) => (1, path.as_str().chars().count()),
            PathRule::Prefix(path) => (2, path.chars().count()),
        };
        (
            kind,
            Reverse(length),
            self.method.is_none(),
            Reverse(self.headers.len()),
            Reverse(self.query.len()),
        )
    }
}

// === impl TextRule ===

impl TextRule {
    fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => exact == text,
            Self::Regex(regex) => regex.is_match(text),
        }
    }
}

/// The first value of a query parameter, decoded.
fn query_value(query: &str, name: &str) -> Option<String> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(key) == name).then(|| decode(value))
    })
}

/// `a+b%20c` → `a b c`
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digits = text.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(if bytes[at] == b'+' { b' ' } else { bytes[at] });
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_intersect_in_the_more_specific_one() {
        let of = |a: &str, b: &str| {
            let both = HostPattern::parse(Some(a)).intersection(&HostPattern::parse(Some(b)));
            both.map(|host| host.to_string())
        };
        assert_eq!(of("", "a.com").as_deref(), Some("a.com"));
        assert_eq!(
            of("*.example.com", "test.example.com").as_deref(),
            Some("test.example.com")
        );
        assert_eq!(
            of("*.example.com", "*.b.example.com").as_deref(),
            Some("*.b.example.com")
        );
        assert_eq!(of("*.example.com", "example.com"), None);
        assert_eq!(of("*.example.com", "*.badexample.com"), None);
        assert_eq!(of("a.com", "b.com"), None);
        let wild = HostPattern::parse(Some("*.example.com"));
        assert!(wild.matches("a.b.example.com") && !wild.matches_name("a.b.example.com"));
    }

    #[test]
    fn query_parameters_are_decoded() {
        assert_eq!(query_value("a=1&b=x%20y+z", "b").as_deref(), Some("x y z"));
        assert_eq!(query_value("a=%zz&b", "a").as_deref(), Some("%zz"));
        assert_eq!(query_value("a=1", "b"), None);
    }
}
