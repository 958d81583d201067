//! Ingresses: whose they are, their rules, default backends and certificates. Several Ingresses of one host are merged; the
//! older one has what both claim.

use std::collections::HashMap;
use std::sync::Arc;

use http::StatusCode;
use k8s_openapi::api::networking::v1::{HTTPIngressPath, IngressBackend};
use regex::Regex;

use super::annotations::Options;
use super::gateway_api::Ingress;
use super::origin::{Origin, RouteKind};
use super::path::{PathChange, PathRule};
use super::table::{Action, Backend, Filter, HostPattern, Policy, PortRef, Route, Shown, Target};
use super::{Compiled, Doors, HTTP, HTTPS, Key, Problem, World, reason};

const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";

/// Host, path and its type → whose.
type Claims = HashMap<(HostPattern, String), Key>;

pub(super) fn compile(world: &World, doors: &mut Doors, out: &mut Compiled) {
    let classes = world.own_classes();
    for class in &world.ingress_classes {
        let name = class.metadata.name.as_str();
        if class.spec.parameters.is_some() && classes.contains(name) {
            out.problems.push(Problem {
                kind: "IngressClass",
                about: class.metadata.key(),
                reason: reason::PARAMETERS,
                message: "spec.parameters is not supported and has no effect".to_owned(),
            });
        }
    }
    let mut ours: Vec<&Arc<Ingress>> = Vec::new();
    for ingress in &world.ingresses {
        let Some(class) = class(ingress) else {
            out.orphans.push(("Ingress", ingress.metadata.key()));
            continue;
        };
        if classes.contains(class) {
            ours.push(ingress);
        } else if !world
            .ingress_classes
            .iter()
            .any(|c| c.metadata.name == class)
        {
            let message = format!(
                "no IngressClass {class:?} exists, so nobody serves this Ingress; make one with spec.controller {:?}, or start the server with --ingress-class {class}",
                crate::well_known::INGRESS_CONTROLLER
            );
            tell(out, ingress, reason::CLASS, message);
            out.orphans.push(("Ingress", ingress.metadata.key()));
        }
    }
    if ours.is_empty() {
        return;
    }
    ours.sort_by_key(|ingress| ingress.metadata.age());
    let encrypted = ours.iter().any(|ingress| has_tls(ingress));
    let mut claims = Claims::new();
    doors.open(HTTP, false);
    for ingress in &ours {
        let mut ports = vec![HTTP];
        if has_tls(ingress) {
            ports.push(HTTPS);
        }
        out.ingresses.push((ingress.metadata.key(), ports));
        One::new(world, ingress, out).compile(doors, encrypted, &mut claims);
    }
    // Default backends of Ingresses without rules are for everybody before those of Ingresses that have rules.
    ours.sort_by_key(|ingress| ingress.spec.rules.as_ref().is_some_and(|r| !r.is_empty()));
    for ingress in ours {
        One::new(world, ingress, &mut Compiled::default()).fallback(doors, encrypted);
    }
}

fn class(ingress: &Ingress) -> Option<&str> {
    let annotation = || {
        let annotations = &ingress.metadata.annotations;
        annotations.get(CLASS_ANNOTATION).map(String::as_str)
    };
    ingress
        .spec
        .ingress_class_name
        .as_deref()
        .or_else(annotation)
}

fn has_tls(ingress: &Ingress) -> bool {
    ingress.spec.tls.as_ref().is_some_and(|tls| !tls.is_empty())
}

fn tell(out: &mut Compiled, ingress: &Ingress, reason: &'static str, message: String) {
    let problem = Problem {
        kind: "Ingress",
        about: ingress.metadata.key(),
        reason,
        message,
    };
    if !out.problems.contains(&problem) {
        out.problems.push(problem);
    }
}

/// One Ingress on its way into the table.
struct One<'a> {
    world: &'a World,
    ingress: &'a Ingress,
    options: Options,
    out: &'a mut Compiled,
    origin: Arc<Origin>,
}

// === impl One ===

impl<'a> One<'a> {
    fn new(world: &'a World, ingress: &'a Ingress, out: &'a mut Compiled) -> Self {
        Self {
            world,
            ingress,
            options: Options::parse(&ingress.metadata.annotations),
            out,
            origin: Arc::new(Origin {
                kind: RouteKind::Ingress,
                about: ingress.metadata.key(),
            }),
        }
    }

    fn tell(&mut self, reason: &'static str, message: String) {
        tell(self.out, self.ingress, reason, message);
    }

    fn compile(mut self, doors: &mut Doors, encrypted: bool, claims: &mut Claims) {
        for text in std::mem::take(&mut self.options.unsupported) {
            self.tell(reason::ANNOTATION, text);
        }
        if let Some(why) = &self.options.refused {
            let message =
                format!("answered with 503, because it could not be guarded as asked: {why}");
            self.tell(reason::REFUSED, message);
        }
        self.certificates(doors);
        let rules = self.ingress.spec.rules.iter().flatten();
        for rule in rules {
            let host = HostPattern::parse(rule.host.as_deref());
            let paths = rule.http.iter().flat_map(|http| &http.paths);
            let paths: Vec<&HTTPIngressPath> = paths.collect();
            let mut hosts = vec![host.clone()];
            hosts.extend(
                self.options
                    .aliases
                    .iter()
                    .map(|a| HostPattern::parse(Some(a))),
            );
            for path in &paths {
                self.path(doors, encrypted, &hosts, path, claims);
            }
            if let Some(root) = self.options.app_root.clone() {
                self.app_root(doors, encrypted, &hosts, &root);
            }
            if paths.is_empty() && self.ingress.spec.default_backend.is_none() {
                let message =
                    format!("the rule for host {host} has no path and there is no default backend");
                self.tell(reason::BACKEND, message);
            }
        }
        if let Some(backend) = &self.ingress.spec.default_backend {
            // For its problems; the routes come later.
            self.target(backend);
        }
    }

    fn path(
        &mut self,
        doors: &mut Doors,
        encrypted: bool,
        hosts: &[HostPattern],
        path: &HTTPIngressPath,
        claims: &mut Claims,
    ) {
        let text = path.path.as_deref().unwrap_or("/");
        let Some(rule) = self.rule(text, &path.path_type) else {
            return;
        };
        let target = self.target(&path.backend);
        for host in hosts {
            let same = match &rule {
                PathRule::Exact(path) => format!("={path}"),
                PathRule::Prefix(path) => format!("^{path}"),
                PathRule::Regex(regex) => format!("~{regex}"),
            };
            let own = self.ingress.metadata.key();
            let owner = claims
                .entry((host.clone(), same))
                .or_insert_with(|| own.clone());
            if *owner != own {
                let message = format!(
                    "path {text:?} of host {host} is already claimed by Ingress {owner}, which is older"
                );
                self.tell(reason::CONFLICT, message);
                continue;
            }
            let action = self.action(host, target.clone());
            let route = Arc::new(Route::new(rule.clone(), action));
            each(doors, encrypted, |door| {
                door.routes.add(host, Arc::clone(&route))
            });
        }
    }

    fn rule(&mut self, text: &str, kind: &str) -> Option<PathRule> {
        let text = if text.is_empty() { "/" } else { text };
        if !self.options.is_regex() {
            return Some(match kind {
                "Exact" => PathRule::exact(text),
                _ => PathRule::prefix(text),
            });
        }
        // As nginx has it: every path of such an Ingress is an expression, anchored at its beginning, without case.
        match Regex::new(&format!("(?i)^{text}")) {
            Ok(regex) => Some(PathRule::Regex(regex)),
            Err(error) => {
                self.tell(
                    reason::PATH,
                    format!("path {text:?} is no regular expression: {error}"),
                );
                None
            }
        }
    }

    fn app_root(&mut self, doors: &mut Doors, encrypted: bool, hosts: &[HostPattern], root: &str) {
        let Ok(location) = root.parse() else {
            self.tell(reason::ANNOTATION, format!("app-root {root:?} is no path"));
            return;
        };
        let action = Arc::new(Action {
            origin: Arc::clone(&self.origin),
            filters: vec![Filter::RedirectTo {
                location,
                code: StatusCode::FOUND,
            }],
            backends: Vec::new(),
            policy: Policy::default(),
        });
        let route = Arc::new(Route::new(PathRule::exact("/"), action));
        for host in hosts {
            each(doors, encrypted, |door| {
                door.routes.add(host, Arc::clone(&route))
            });
        }
    }

    /// The default backend: for the hosts of the Ingress, then for everybody.
    fn fallback(mut self, doors: &mut Doors, encrypted: bool) {
        let Some(backend) = &self.ingress.spec.default_backend else {
            return;
        };
        let target = self.target(backend);
        let rules = self.ingress.spec.rules.iter().flatten();
        let mut hosts: Vec<HostPattern> = rules
            .map(|r| HostPattern::parse(r.host.as_deref()))
            .collect();
        hosts.push(HostPattern::Any);
        for host in hosts {
            let action = self.action(&host, target.clone());
            let route = Arc::new(Route::new(PathRule::prefix("/"), action));
            each(doors, encrypted, |door| {
                door.fallbacks.add(&host, Arc::clone(&route))
            });
        }
    }

    fn action(&self, host: &HostPattern, target: Target) -> Arc<Action> {
        let options = &self.options;
        let mut filters = Vec::new();
        let redirect = match host {
            _ if options.force_ssl_redirect => true,
            _ => options.ssl_redirect.unwrap_or(true) && self.is_encrypted(host),
        };
        if redirect {
            filters.push(Filter::ToHttps);
        }
        if let Some((location, code)) = &options.redirect {
            filters.push(Filter::RedirectTo {
                location: location.clone(),
                code: *code,
            });
        }
        let path = options
            .rewrite_target
            .as_deref()
            .map(|t| PathChange::Groups(groups(t)));
        if path.is_some() || options.upstream_host.is_some() {
            filters.push(Filter::Rewrite {
                host: options.upstream_host.clone(),
                path,
            });
        }
        let target = match &options.refused {
            Some(why) => Target::Broken {
                code: StatusCode::SERVICE_UNAVAILABLE,
                why: why.clone(),
            },
            None => target,
        };
        Arc::new(Action {
            origin: Arc::clone(&self.origin),
            filters,
            backends: vec![Backend {
                target,
                weight: 1,
                filters: Vec::new(),
            }],
            policy: options.policy.clone(),
        })
    }

    /// Has the host TLS of its own here?
    fn is_encrypted(&self, host: &HostPattern) -> bool {
        self.ingress.spec.tls.iter().flatten().any(|tls| {
            let mut hosts = tls.hosts.iter().flatten().peekable();
            hosts.peek().is_none()
                || hosts.any(|name| {
                    HostPattern::parse(Some(name)).intersection(host).as_ref() == Some(host)
                })
        })
    }

    fn target(&mut self, backend: &IngressBackend) -> Target {
        let broken = |why: String| Target::Broken {
            code: StatusCode::SERVICE_UNAVAILABLE,
            why,
        };
        let Some(service) = &backend.service else {
            let resource = backend.resource.clone().unwrap_or_default();
            let why = format!(
                "backend {} {:?} is no Service",
                resource.kind, resource.name
            );
            self.tell(
                reason::RESOURCE,
                format!("{why}; only Services are supported"),
            );
            return broken(why);
        };
        let port = service.port.clone().unwrap_or_default();
        let port = match (port.name.filter(|name| !name.is_empty()), port.number) {
            (Some(name), _) => PortRef::Name(name),
            (None, number) => {
                PortRef::Number(number.and_then(|n| u16::try_from(n).ok()).unwrap_or(0))
            }
        };
        let key = Key::new(&self.ingress.metadata.namespace, &service.name);
        if let Some(why) = self.world.service_problem(&key, &port) {
            self.tell(reason::BACKEND, why);
        }
        Target::Service { key, port }
    }

    fn certificates(&mut self, doors: &mut Doors) {
        if !has_tls(self.ingress) {
            return;
        }
        if doors.open(HTTPS, true).is_none() {
            self.tell(
                reason::PORT,
                format!("port {HTTPS} is taken by something without TLS"),
            );
        }
        for tls in self.ingress.spec.tls.iter().flatten() {
            let Some(name) = tls.secret_name.as_deref().filter(|name| !name.is_empty()) else {
                let message =
                    "a tls entry names no Secret; a self-signed certificate is shown".to_owned();
                self.tell(reason::SECRET, message);
                continue;
            };
            let key = Key::new(&self.ingress.metadata.namespace, name);
            if let Some(why) = self.world.secret_problem(&key) {
                self.tell(
                    reason::SECRET,
                    format!("{why}; a self-signed certificate is shown"),
                );
            }
            self.out.secrets.insert(key.clone());
            let named = tls
                .hosts
                .iter()
                .flatten()
                .map(|host| HostPattern::parse(Some(host)));
            let mut hosts: Vec<HostPattern> = named.collect();
            if hosts.is_empty() {
                let rules = self.ingress.spec.rules.iter().flatten();
                hosts = rules
                    .map(|rule| HostPattern::parse(rule.host.as_deref()))
                    .collect();
                hosts.push(HostPattern::Any);
            }
            if let Some(door) = doors.open(HTTPS, true) {
                for host in hosts {
                    door.certificates.push(Shown {
                        host,
                        deep: false,
                        secret: key.clone(),
                    });
                }
            }
        }
    }
}

/// Routes of Ingresses are the same at both ports.
fn each(doors: &mut Doors, encrypted: bool, add: impl Fn(&mut super::table::Door)) {
    if let Some(door) = doors.open(HTTP, false) {
        add(door);
    }
    if encrypted && let Some(door) = doors.open(HTTPS, true) {
        add(door);
    }
}

/// nginx's `/$2` as the regex crate wants it: `/${2}`.
fn groups(target: &str) -> String {
    let mut out = String::with_capacity(target.len() + 4);
    let mut chars = target.chars().peekable();
    while let Some(letter) = chars.next() {
        if letter != '$' {
            out.push(letter);
            continue;
        }
        let mut digits = String::new();
        while let Some(digit) = chars.next_if(char::is_ascii_digit) {
            digits.push(digit);
        }
        if digits.is_empty() {
            out.push_str("$$");
        } else {
            out.push_str("${");
            out.push_str(&digits);
            out.push('}');
        }
    }
    out
}
