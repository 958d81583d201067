//! HTTPRoutes: where they attach, their rules as routes of the table, and what is said of each parent.

use std::sync::Arc;
use std::time::Duration;

use http::header::{HeaderName, HeaderValue};
use http::{Method, StatusCode};
use regex::Regex;

use super::gateway_api::{
    HeaderModifier, HttpHeader, HttpRoute, HttpRouteFilter, HttpRouteMatch, HttpRouteRule,
    NamedMatch, ObjectReference, ParentReference, PathModifier, RequestMirror, RequestRedirect,
};
use super::grants::{allows, is_granted};
use super::listener::Ours;
use super::origin::{Origin, RouteKind};
use super::path::{PathChange, PathRule};
use super::status::{Fact, ParentStatus, RouteStatus};
use super::table::{
    Action, Backend, Filter, HeaderChange, HostPattern, Patience, Policy, PortRef, Redirect, Route,
    Target, TextRule,
};
use super::{Compiled, Doors, Key, World};
use crate::well_known::GATEWAY_GROUP;

/// A rule, ready for any listener.
struct Rule {
    matches: Vec<Route>,
}

/// What is wrong with a route beyond one parent.
#[derive(Default)]
struct Findings {
    /// First reference that cannot be followed: reason and message.
    references: Option<(&'static str, String)>,
    /// What rules ask for that is not supported.
    unsupported: Vec<String>,
    rules: usize,
    /// Rules that serve nothing because of it.
    lost: usize,
}

/// Attaches a route to every listener that takes it.
pub(super) fn attach(
    world: &World,
    route: &HttpRoute,
    gateways: &mut [Ours<'_>],
    doors: &mut Doors,
    out: &mut Compiled,
) -> RouteStatus {
    let mut findings = Findings::default();
    let mut rules: Option<Vec<Rule>> = None;
    let mut status = RouteStatus {
        key: route.metadata.key(),
        generation: route.metadata.generation,
        parents: Vec::new(),
    };
    for parent in &route.spec.parent_refs {
        let Some(gateway) = find(gateways, parent, &route.metadata.namespace) else {
            continue;
        };
        let rules = rules.get_or_insert_with(|| {
            let compile = |rule| compile(world, route, rule, &mut findings);
            route.spec.rules.iter().filter_map(compile).collect()
        });
        let accepted = to_gateway(world, route, parent, gateway, rules, doors);
        status.parents.push(ParentStatus {
            parent: parent.clone(),
            conditions: findings.conditions(accepted),
        });
    }
    for text in findings.unsupported {
        out.problems.push(super::Problem {
            kind: "HTTPRoute",
            about: route.metadata.key(),
            reason: super::reason::UNSUPPORTED,
            message: text,
        });
    }
    status
}

fn find<'a, 'g>(
    gateways: &'a mut [Ours<'g>],
    parent: &ParentReference,
    own: &str,
) -> Option<&'a mut Ours<'g>> {
    let group = parent.group.as_deref().unwrap_or(GATEWAY_GROUP);
    let kind = parent.kind.as_deref().unwrap_or("Gateway");
    if group != GATEWAY_GROUP || kind != "Gateway" {
        return None;
    }
    let namespace = parent.namespace.as_deref().unwrap_or(own);
    gateways.iter_mut().find(|ours| {
        let meta = &ours.gateway.metadata;
        meta.namespace == namespace && meta.name == parent.name
    })
}

/// Attaches the route to one Gateway and says whether that worked.
fn to_gateway(
    world: &World,
    route: &HttpRoute,
    parent: &ParentReference,
    ours: &mut Ours<'_>,
    rules: &[Rule],
    doors: &mut Doors,
) -> Fact {
    let no = |reason, message: &str| Fact::new("Accepted", false, reason, message.to_owned());
    let own = ours.gateway.metadata.namespace.as_str();
    let (mut meant, mut allowed, mut attached) = (false, false, false);
    for listener in &mut ours.listeners {
        let named = parent.section_name.as_deref();
        let port = parent.port.is_none_or(|port| port == listener.spec.port);
        if named.is_some_and(|name| name != listener.spec.name) || !port {
            continue;
        }
        meant = true;
        let routes = listener.spec.allowed_routes.as_ref();
        let namespace = &route.metadata.namespace;
        if !listener.takes_routes() || !allows(world, routes, own, namespace) {
            continue;
        }
        allowed = true;
        let hosts = hosts(&route.spec.hostnames, &listener.host);
        if hosts.is_empty() {
            continue;
        }
        attached = true;
        listener.attached += 1;
        if !listener.serves() {
            continue;
        }
        let Some(door) = doors.open(listener.port, listener.tls) else {
            continue;
        };
        for rule in rules {
            for one in &rule.matches {
                let mut one = one.clone();
                one.not_for = Arc::clone(&listener.not_for);
                let one = Arc::new(one);
                for host in &hosts {
                    door.routes.add(host, Arc::clone(&one));
                }
            }
        }
    }
    match (meant, allowed, attached) {
        (false, ..) => no("NoMatchingParent", "the Gateway has no such listener"),
        (_, false, _) => no(
            "NotAllowedByListeners",
            "no listener takes routes of this namespace and kind",
        ),
        (.., false) => no(
            "NoMatchingListenerHostname",
            "no listener has a hostname in common with the route",
        ),
        _ => Fact::new("Accepted", true, "Accepted", String::new()),
    }
}

fn hosts(names: &[String], listener: &HostPattern) -> Vec<HostPattern> {
    if names.is_empty() {
        return vec![listener.clone()];
    }
    let parsed = names.iter().map(|name| HostPattern::parse(Some(name)));
    parsed
        .filter_map(|host| host.intersection(listener))
        .collect()
}

/// `None` when nothing of the rule can be used.
fn compile(
    world: &World,
    route: &HttpRoute,
    rule: &HttpRouteRule,
    findings: &mut Findings,
) -> Option<Rule> {
    findings.rules += 1;
    let mut filters = Vec::new();
    let mut broken = None;
    for filter in &rule.filters {
        match self::filter(world, route, filter, findings) {
            Ok(filter) => filters.push(filter),
            Err(why) => broken = Some(why),
        }
    }
    let mut backends = Vec::new();
    for backend in &rule.backend_refs {
        let mut target = self::target(world, route, &backend.target, findings);
        let mut own = Vec::new();
        for filter in &backend.filters {
            match self::filter(world, route, filter, findings) {
                Ok(filter @ (Filter::RequestHeaders(_) | Filter::ResponseHeaders(_))) => {
                    own.push(filter);
                }
                Ok(_) => broken = Some(format!("filter {} of a backend", filter.type_)),
                Err(why) => broken = Some(why),
            }
        }
        if let Some(why) = &broken {
            target = error(why.clone());
        }
        let weight = u32::try_from(backend.weight.unwrap_or(1)).unwrap_or(0);
        backends.push(Backend {
            target,
            weight,
            filters: own,
        });
    }
    let policy = match timeouts(rule) {
        Ok(policy) => policy,
        Err(why) => {
            broken = Some(why);
            Policy::default()
        }
    };
    let failed = broken.is_some();
    if let Some(why) = broken {
        // A filter that cannot be applied must not be skipped: its requests fail.
        findings.unsupported.push(format!("{why} is not supported"));
        filters.clear();
        backends = vec![Backend {
            target: error(why),
            weight: 1,
            filters: Vec::new(),
        }];
    }
    let action = Arc::new(Action {
        origin: Arc::new(Origin {
            kind: RouteKind::HttpRoute,
            about: route.metadata.key(),
        }),
        filters,
        backends,
        policy,
    });
    let everything = [HttpRouteMatch::default()];
    let wanted = if rule.matches.is_empty() {
        &everything[..]
    } else {
        &rule.matches
    };
    let mut matches = Vec::new();
    for one in wanted {
        match matcher(one, &action) {
            Ok(route) => matches.push(route),
            Err(why) => findings.unsupported.push(why),
        }
    }
    findings.lost += usize::from(failed || matches.is_empty());
    (!matches.is_empty()).then_some(Rule { matches })
}

fn error(why: String) -> Target {
    Target::Broken {
        code: StatusCode::INTERNAL_SERVER_ERROR,
        why,
    }
}

fn matcher(one: &HttpRouteMatch, action: &Arc<Action>) -> Result<Route, String> {
    let path = one.path.as_ref();
    let value = path.and_then(|path| path.value.as_deref()).unwrap_or("/");
    let kind = path.and_then(|path| path.type_.as_deref());
    let rule = match kind.unwrap_or("PathPrefix") {
        "Exact" => PathRule::exact(value),
        "PathPrefix" => PathRule::prefix(value),
        "RegularExpression" => PathRule::Regex(whole(value)?),
        other => return Err(format!("path match of type {other:?} is not supported")),
    };
    let mut route = Route::new(rule, Arc::clone(action));
    route.deep = true;
    if let Some(method) = &one.method {
        let method = Method::from_bytes(method.as_bytes());
        route.method = Some(method.map_err(|error| error.to_string())?);
    }
    for header in &one.headers {
        let name = HeaderName::from_bytes(header.name.as_bytes());
        let name = name.map_err(|error| format!("header {:?}: {error}", header.name))?;
        // Of entries with equal names the first counts.
        if route.headers.iter().all(|(known, _)| *known != name) {
            route.headers.push((name, text_rule(header)?));
        }
    }
    for parameter in &one.query_params {
        if route
            .query
            .iter()
            .all(|(known, _)| *known != parameter.name)
        {
            route
                .query
                .push((parameter.name.clone(), text_rule(parameter)?));
        }
    }
    Ok(route)
}

/// An expression for all of a text, as other implementations have it.
fn whole(text: &str) -> Result<Regex, String> {
    Regex::new(&format!("^(?:{text})$"))
        .map_err(|error| format!("{text:?} is no regular expression: {error}"))
}

fn text_rule(one: &NamedMatch) -> Result<TextRule, String> {
    match one.type_.as_deref().unwrap_or("Exact") {
        "Exact" => Ok(TextRule::Exact(one.value.clone())),
        "RegularExpression" => Ok(TextRule::Regex(whole(&one.value)?)),
        other => Err(format!("match of type {other:?} is not supported")),
    }
}

fn target(
    world: &World,
    route: &HttpRoute,
    reference: &ObjectReference,
    findings: &mut Findings,
) -> Target {
    let mut broken = |reason, why: String| {
        findings.references.get_or_insert((reason, why.clone()));
        error(why)
    };
    let kind = reference.kind.as_deref().unwrap_or("Service");
    let group = reference.group.as_deref().unwrap_or_default();
    if kind != "Service" || !group.is_empty() {
        let why = format!(
            "backend {kind} {:?} of group {group:?}: only Services are supported",
            reference.name
        );
        return broken("InvalidKind", why);
    }
    let own = &route.metadata.namespace;
    let namespace = reference.namespace.as_deref().unwrap_or(own);
    let key = Key::new(namespace, &reference.name);
    if !is_granted(world, ("HTTPRoute", own), ("Service", &key)) {
        let why = format!(
            "no ReferenceGrant in namespace {namespace:?} lets HTTPRoutes of {own:?} use Service {key}"
        );
        return broken("RefNotPermitted", why);
    }
    let Some(port) = reference.port.and_then(|port| u16::try_from(port).ok()) else {
        return broken(
            "UnsupportedValue",
            format!("backend Service {key} needs a port"),
        );
    };
    let port = PortRef::Number(port);
    // As the Gateway API advises: whoever may write a Service could lead a route to what it may not reach itself.
    if world.external_names.contains(&key) {
        let why = format!("Service {key} is an ExternalName, which no route may lead to");
        return broken("UnsupportedValue", why);
    }
    if let Some(why) = world.service_problem(&key, &port) {
        return broken("BackendNotFound", why);
    }
    Target::Service { key, port }
}

fn filter(
    world: &World,
    route: &HttpRoute,
    filter: &HttpRouteFilter,
    findings: &mut Findings,
) -> Result<Filter, String> {
    let missing = || format!("filter {} without its field", filter.type_);
    match filter.type_.as_str() {
        "RequestHeaderModifier" => {
            let change = filter
                .request_header_modifier
                .as_ref()
                .ok_or_else(missing)?;
            Ok(Filter::RequestHeaders(headers(change)?))
        }
        "ResponseHeaderModifier" => {
            let change = filter
                .response_header_modifier
                .as_ref()
                .ok_or_else(missing)?;
            Ok(Filter::ResponseHeaders(headers(change)?))
        }
        "RequestRedirect" => {
            let to = filter.request_redirect.as_ref().ok_or_else(missing)?;
            Ok(Filter::Redirect(redirect(to)?))
        }
        "URLRewrite" => {
            let to = filter.url_rewrite.as_ref().ok_or_else(missing)?;
            let host = to.hostname.as_deref().map(HeaderValue::from_str);
            Ok(Filter::Rewrite {
                host: host.transpose().map_err(|error| error.to_string())?,
                path: to.path.as_ref().map(path_change).transpose()?,
            })
        }
        "RequestMirror" => {
            let mirror = filter.request_mirror.as_ref().ok_or_else(missing)?;
            let target = target(world, route, &mirror.backend_ref, findings);
            let share = share(mirror);
            Ok(Filter::Mirror { target, share })
        }
        other => Err(format!("filter {other:?}")),
    }
}

/// Of a million requests, how many are mirrored.
fn share(mirror: &RequestMirror) -> u32 {
    const ALL: i64 = 1_000_000;
    let share = match (&mirror.fraction, mirror.percent) {
        (Some(fraction), _) => {
            let of = i64::from(fraction.denominator.unwrap_or(100)).max(1);
            i64::from(fraction.numerator) * ALL / of
        }
        (None, Some(percent)) => i64::from(percent) * ALL / 100,
        (None, None) => ALL,
    };
    u32::try_from(share.clamp(0, ALL)).unwrap_or_default()
}

fn headers(change: &HeaderModifier) -> Result<HeaderChange, String> {
    let name = |text: &str| {
        HeaderName::from_bytes(text.as_bytes()).map_err(|error| format!("header {text:?}: {error}"))
    };
    let pair = |header: &HttpHeader| {
        let value = HeaderValue::from_str(&header.value);
        let value = value.map_err(|error| format!("header {:?}: {error}", header.name))?;
        Ok::<_, String>((name(&header.name)?, value))
    };
    Ok(HeaderChange {
        set: change.set.iter().map(pair).collect::<Result<_, _>>()?,
        add: change.add.iter().map(pair).collect::<Result<_, _>>()?,
        remove: change
            .remove
            .iter()
            .map(|text| name(text))
            .collect::<Result<_, _>>()?,
    })
}

fn redirect(to: &RequestRedirect) -> Result<Redirect, String> {
    let code = to.status_code.unwrap_or(302);
    let known = u16::try_from(code).ok().map(StatusCode::from_u16);
    let known = known
        .and_then(Result::ok)
        .filter(StatusCode::is_redirection);
    let code = known.ok_or_else(|| format!("redirect with code {code}"))?;
    Ok(Redirect {
        scheme: to.scheme.clone(),
        host: to.hostname.clone(),
        path: to.path.as_ref().map(path_change).transpose()?,
        port: to.port.and_then(|port| u16::try_from(port).ok()),
        code,
    })
}

fn path_change(path: &PathModifier) -> Result<PathChange, String> {
    match (
        path.type_.as_str(),
        &path.replace_full_path,
        &path.replace_prefix_match,
    ) {
        ("ReplaceFullPath", Some(full), _) => Ok(PathChange::Full(full.clone())),
        ("ReplacePrefixMatch", _, Some(prefix)) => Ok(PathChange::Prefix(prefix.clone())),
        (other, ..) => Err(format!("path modifier {other:?}")),
    }
}

fn timeouts(rule: &HttpRouteRule) -> Result<Policy, String> {
    let Some(wanted) = &rule.timeouts else {
        return Ok(Policy::default());
    };
    let parse = |text: &Option<String>| {
        let parsed = text
            .as_deref()
            .map(|text| duration(text).ok_or_else(|| format!("timeout {text:?}")));
        parsed.transpose()
    };
    let (request, backend) = (parse(&wanted.request)?, parse(&wanted.backend_request)?);
    let said = request.into_iter().chain(backend);
    // Zero switches a timeout off.
    let total = said.clone().filter(|said| !said.is_zero()).min();
    Ok(Policy {
        total_timeout: total,
        // Who says how long an exchange may take, or that it may take for ever, has said it of its silent times too.
        read_timeout: match said.count() {
            0 => Patience::OfNode,
            _ => Patience::Endless,
        },
        ..Policy::default()
    })
}

/// `1h30m`, `500ms`: at most four numbers of up to five digits with units h, m, s, ms.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut millis = 0u64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let units = [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)];
        let (unit, factor) = units.into_iter().find(|(unit, _)| rest.starts_with(unit))?;
        rest = &rest[unit.len()..];
        millis = millis.checked_add(number.checked_mul(factor)?)?;
    }
    (!text.is_empty()).then(|| Duration::from_millis(millis))
}

// === impl Findings ===

impl Findings {
    fn conditions(&self, accepted: Fact) -> Vec<Fact> {
        let mut conditions = Vec::new();
        let message = self.unsupported.join("; ");
        if !self.unsupported.is_empty() && accepted.status {
            if self.lost >= self.rules {
                conditions.push(Fact::new("Accepted", false, "UnsupportedValue", message));
            } else {
                conditions.push(accepted);
                let partly = Fact::new("PartiallyInvalid", true, "UnsupportedValue", message);
                conditions.push(partly);
            }
        } else {
            conditions.push(accepted);
        }
        conditions.push(match &self.references {
            Some((reason, message)) => Fact::new("ResolvedRefs", false, reason, message.clone()),
            None => Fact::new("ResolvedRefs", true, "ResolvedRefs", String::new()),
        });
        conditions
    }
}
