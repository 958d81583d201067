//! GatewayClasses, Gateways, HTTPRoutes and ReferenceGrants: the defaults and main rules of their CRDs.

use serde_json::{Value, json};

use super::Conversion;
use super::names;
use super::path::Path;
use super::rules::Check::{
    Between, Immutable, Name, NotNegative, OneOf, Positive, Required, Unique, With,
};
use super::rules::Literal::{Number, Text};
use super::rules::{Check, Rules, check};
use super::strategy::Door;
use crate::object::Object;
use crate::status::Cause;

const GROUP: &str = "gateway.networking.k8s.io";

pub static GATEWAY_CLASS: Rules = Rules {
    status: r#"{"conditions":[{"type":"Accepted","status":"Unknown","message":"Waiting for controller","reason":"Pending","lastTransitionTime":"1970-01-01T00:00:00Z"}]}"#,
    checks: &[
        ("spec.controllerName", Required),
        ("spec.controllerName", With(domain_path)),
        ("spec.controllerName", Immutable),
        ("spec.parametersRef.kind", Required),
        ("spec.parametersRef.name", Required),
    ],
    has_generation: true,
    ..Rules::NEW
};

pub static GATEWAY: Rules = Rules {
    status: r#"{"conditions":[{"type":"Accepted","status":"Unknown","reason":"Pending","message":"Waiting for controller","lastTransitionTime":"1970-01-01T00:00:00Z"},{"type":"Programmed","status":"Unknown","reason":"Pending","message":"Waiting for controller","lastTransitionTime":"1970-01-01T00:00:00Z"}]}"#,
    defaults: &[
        ("spec.addresses[].type", Text("IPAddress")),
        (
            "spec.listeners[].allowedRoutes.namespaces.from",
            Text("Same"),
        ),
        ("spec.listeners[].allowedRoutes.kinds[].group", Text(GROUP)),
        ("spec.listeners[].tls?.mode", Text("Terminate")),
        ("spec.listeners[].tls?.certificateRefs[].group", Text("")),
        (
            "spec.listeners[].tls?.certificateRefs[].kind",
            Text("Secret"),
        ),
    ],
    checks: &[
        ("spec.gatewayClassName", Required),
        ("spec.listeners", Required),
        ("spec.listeners", Unique("name")),
        ("spec.listeners[].name", Required),
        ("spec.listeners[].name", Name(names::dns_subdomain)),
        ("spec.listeners[].port", Between(1, 65535)),
        ("spec.listeners[].protocol", Required),
        ("spec.listeners[].hostname", With(hostname)),
        ("spec.listeners[]", With(listener)),
        ("spec.addresses[].type", Required),
    ],
    validate: |new, _, door, causes| {
        if door == Door::Main {
            distinct_listeners(new, causes);
            at_most(new, "listeners", 64, causes);
            at_most(new, "addresses", 16, causes);
        }
    },
    has_generation: true,
    ..Rules::NEW
};

pub static HTTP_ROUTE: Rules = Rules {
    defaults: &[
        ("spec.parentRefs[].group", Text(GROUP)),
        ("spec.parentRefs[].kind", Text("Gateway")),
        ("spec.rules[].matches[].path.type", Text("PathPrefix")),
        ("spec.rules[].matches[].path.value", Text("/")),
        ("spec.rules[].matches[].headers[].type", Text("Exact")),
        ("spec.rules[].matches[].queryParams[].type", Text("Exact")),
        ("spec.rules[].backendRefs[].group", Text("")),
        ("spec.rules[].backendRefs[].kind", Text("Service")),
        ("spec.rules[].backendRefs[].weight", Number(1)),
        (
            "spec.rules[].filters[].requestRedirect?.statusCode",
            Number(302),
        ),
        (
            "spec.rules[].filters[].requestMirror?.backendRef.group",
            Text(""),
        ),
        (
            "spec.rules[].filters[].requestMirror?.backendRef.kind",
            Text("Service"),
        ),
        (
            "spec.rules[].filters[].requestMirror?.fraction?.denominator",
            Number(100),
        ),
        (
            "spec.rules[].backendRefs[].filters[].requestRedirect?.statusCode",
            Number(302),
        ),
        (
            "spec.rules[].backendRefs[].filters[].requestMirror?.backendRef.group",
            Text(""),
        ),
        (
            "spec.rules[].backendRefs[].filters[].requestMirror?.backendRef.kind",
            Text("Service"),
        ),
        (
            "spec.rules[].backendRefs[].filters[].requestMirror?.fraction?.denominator",
            Number(100),
        ),
    ],
    default: |new| {
        let everything = || json!([{"path": {"type": "PathPrefix", "value": "/"}}]);
        let mut rules = new.at(&["spec", "rules"]).cloned().unwrap_or_default();
        if rules.is_null() {
            rules = json!([{}]);
        }
        for rule in rules.as_array_mut().into_iter().flatten() {
            if rule["matches"].is_null() && rule.is_object() {
                rule["matches"] = everything();
            }
        }
        if new.at(&["spec"]).is_some() {
            new.set(&["spec", "rules"], rules);
        }
    },
    checks: &[
        ("spec.parentRefs[].name", Required),
        ("spec.parentRefs[].port", Between(1, 65535)),
        ("spec.hostnames[]", With(hostname)),
        ("spec.rules[]", With(rule)),
        ("spec.rules[].matches[].path", With(path)),
        ("spec.rules[].matches[].headers[].name", With(header_name)),
        ("spec.rules[].matches[].queryParams[].name", Required),
        ("spec.rules[].filters", With(filters)),
        ("spec.rules[].backendRefs[]", With(backend)),
        ("spec.rules[].backendRefs[].weight", Between(0, 1_000_000)),
        ("spec.rules[].backendRefs[].filters", With(filters)),
        ("spec.rules[].timeouts.request", With(duration)),
        ("spec.rules[].timeouts.backendRequest", With(duration)),
    ],
    validate: |new, _, door, causes| {
        if door == Door::Main {
            at_most(new, "rules", 16, causes);
            at_most(new, "hostnames", 16, causes);
            at_most(new, "parentRefs", 32, causes);
        }
    },
    has_generation: true,
    ..Rules::NEW
};

pub static REFERENCE_GRANT: Rules = Rules {
    checks: &[
        ("spec.from", Required),
        ("spec.from[].kind", Required),
        ("spec.from[].namespace", Required),
        ("spec.from[].namespace", Name(names::dns_label)),
        ("spec.to", Required),
        ("spec.to[].kind", Required),
    ],
    ..Rules::NEW
};

/// `v1beta1` has the same fields as `v1`.
pub struct BetaGrants;

impl Conversion for BetaGrants {
    fn store(&self, object: Object) -> Object {
        renamed(object, "gateway.networking.k8s.io/v1")
    }

    fn serve(&self, object: Object) -> Object {
        renamed(object, "gateway.networking.k8s.io/v1beta1")
    }
}

fn renamed(mut object: Object, version: &str) -> Object {
    object.set(&["apiVersion"], version.into());
    object
}

fn at_most(object: &Object, key: &str, most: usize, causes: &mut Vec<Cause>) {
    let count = object.list_at(&["spec", key]).len();
    if count > most {
        let field = format!("spec.{key}");
        let why = format!("must have at most {most} items");
        causes.push(Cause::invalid(field, &count.into(), &why));
    }
}

/// A host name, or `*.` and a domain.
fn hostname(path: &Path<'_>, value: &Value, causes: &mut Vec<Cause>) {
    let text = value.as_str().unwrap_or_default();
    if text.parse::<std::net::IpAddr>().is_ok() {
        causes.push(Cause::invalid(
            path,
            value,
            "must be a DNS name, not an IP address",
        ));
        return;
    }
    for why in names::dns_subdomain(text.strip_prefix("*.").unwrap_or(text)) {
        causes.push(Cause::invalid(path, value, &why));
    }
}

/// `example.com/controller`.
fn domain_path(path: &Path<'_>, value: &Value, causes: &mut Vec<Cause>) {
    let text = value.as_str().unwrap_or_default();
    let (domain, rest) = text.split_once('/').unwrap_or((text, ""));
    if rest.is_empty() || !names::dns_subdomain(domain).is_empty() {
        let why = "must be a domain-prefixed path (such as \"acme.io/foo\")";
        causes.push(Cause::invalid(path, value, why));
    }
}

fn listener(path: &Path<'_>, listener: &Value, causes: &mut Vec<Cause>) {
    let tls = &listener["tls"];
    match listener["protocol"].as_str() {
        Some("HTTP" | "TCP" | "UDP") if !tls.is_null() => {
            let why = "tls must not be specified for protocols ['HTTP', 'TCP', 'UDP']";
            causes.push(Cause::invalid(path, &"".into(), why));
        }
        Some("HTTPS") => {
            if tls["mode"].as_str().is_some_and(|mode| mode != "Terminate") {
                let why = "tls mode must be Terminate for protocol HTTPS";
                causes.push(Cause::invalid(path, &"".into(), why));
            }
            let none = |key: &str| match &tls[key] {
                Value::Array(items) => items.is_empty(),
                Value::Object(map) => map.is_empty(),
                _ => true,
            };
            if none("certificateRefs") && none("options") {
                let why = "certificateRefs or options must be specified when mode is Terminate";
                causes.push(Cause::invalid(path.key("tls"), &"".into(), why));
            }
        }
        Some("TCP" | "UDP") if listener["hostname"].as_str().is_some_and(|h| !h.is_empty()) => {
            let why = "hostname must not be specified for protocols ['TCP', 'UDP']";
            causes.push(Cause::invalid(path, &"".into(), why));
        }
        _ => {}
    }
}

fn distinct_listeners(gateway: &Object, causes: &mut Vec<Cause>) {
    let listeners = gateway.list_at(&["spec", "listeners"]);
    let same = |a: &Value, b: &Value| {
        a["port"] == b["port"]
            && a["protocol"] == b["protocol"]
            && a["hostname"].as_str().unwrap_or_default()
                == b["hostname"].as_str().unwrap_or_default()
    };
    let twice = listeners
        .iter()
        .enumerate()
        .any(|(at, one)| listeners[..at].iter().any(|other| same(one, other)));
    if twice {
        let why = "Combination of port, protocol and hostname must be unique for each listener";
        causes.push(Cause::invalid("spec.listeners", &"".into(), why));
    }
}

fn path(path: &Path<'_>, matched: &Value, causes: &mut Vec<Cause>) {
    let kind = matched["type"].as_str().unwrap_or("PathPrefix");
    let text = matched["value"].as_str().unwrap_or("/");
    if kind == "RegularExpression" {
        return;
    }
    let mut wrong = |why: &str| {
        causes.push(Cause::invalid(path, &text.into(), why));
    };
    if !text.starts_with('/') {
        wrong(
            "value must be an absolute path and start with '/' when type one of ['Exact', 'PathPrefix']",
        );
    }
    for part in ["//", "/./", "/../", "%2f", "%2F", "#"] {
        if text.contains(part) {
            wrong(&format!(
                "must not contain '{part}' when type one of ['Exact', 'PathPrefix']"
            ));
        }
    }
    if text.ends_with("/..") || text.ends_with("/.") {
        wrong("must not end with '/..' or '/.' when type one of ['Exact', 'PathPrefix']");
    }
}

fn header_name(path: &Path<'_>, value: &Value, causes: &mut Vec<Cause>) {
    let text = value.as_str().unwrap_or_default();
    if text.is_empty() || http::HeaderName::from_bytes(text.as_bytes()).is_err() {
        causes.push(Cause::invalid(
            path,
            value,
            "must be a valid HTTP header name",
        ));
    }
}

fn items<'v>(value: &'v Value, key: &str) -> &'v [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

fn rule(path: &Path<'_>, rule: &Value, causes: &mut Vec<Cause>) {
    let filters = items(rule, "filters");
    let redirects = filters.iter().any(|f| f["type"] == "RequestRedirect");
    if redirects && !items(rule, "backendRefs").is_empty() {
        let why = "RequestRedirect filter must not be used together with backendRefs";
        causes.push(Cause::invalid(path, &"".into(), why));
    }
    let of_backends = items(rule, "backendRefs");
    let of_backends = of_backends.iter().flat_map(|b| items(b, "filters"));
    let replaces_prefix = filters.iter().chain(of_backends).any(|filter| {
        ["requestRedirect", "urlRewrite"]
            .iter()
            .any(|key| filter[*key]["path"]["type"] == "ReplacePrefixMatch")
    });
    let matches = items(rule, "matches");
    let prefix = |m: &Value| matches!(m["path"]["type"].as_str(), None | Some("PathPrefix"));
    if replaces_prefix && (matches.len() != 1 || !matches.iter().all(prefix)) {
        let why = "When using a filter with path.replacePrefixMatch, exactly one PathPrefix match must be specified";
        causes.push(Cause::invalid(path, &"".into(), why));
    }
    if matches.len() > 64 {
        let why = "must have at most 64 items";
        causes.push(Cause::invalid(
            path.key("matches"),
            &matches.len().into(),
            why,
        ));
    }
}

const FILTER: &[(&str, Check)] = &[
    ("requestHeaderModifier.set[].name", With(header_name)),
    ("requestHeaderModifier.add[].name", With(header_name)),
    ("responseHeaderModifier.set[].name", With(header_name)),
    ("responseHeaderModifier.add[].name", With(header_name)),
    ("requestRedirect.scheme", OneOf(&["http", "https"])),
    ("requestRedirect.port", Between(1, 65535)),
    ("requestRedirect.hostname", With(hostname)),
    ("requestMirror.backendRef", With(backend)),
    ("requestMirror.percent", Between(0, 100)),
    ("requestMirror.fraction.numerator", NotNegative),
    ("requestMirror.fraction.denominator", Positive),
    ("requestMirror", With(mirror)),
];

/// One way to say how much, and not more than all.
fn mirror(path: &Path<'_>, mirror: &Value, causes: &mut Vec<Cause>) {
    let fraction = &mirror["fraction"];
    if !fraction.is_null() && !mirror["percent"].is_null() {
        let why = "Only one of percent or fraction may be specified in HTTPRequestMirrorFilter";
        causes.push(Cause::invalid(path, &"".into(), why));
    }
    let of = fraction["denominator"].as_i64().unwrap_or(100);
    if fraction["numerator"].as_i64().is_some_and(|part| part > of) {
        let why = "numerator must be less than or equal to denominator";
        causes.push(Cause::invalid(path.key("fraction"), &"".into(), why));
    }
}

/// Each filter has the field of its type and no other, and what may stand there once stands there once.
fn filters(path: &Path<'_>, filters: &Value, causes: &mut Vec<Cause>) {
    const FIELDS: [(&str, &str); 7] = [
        ("RequestHeaderModifier", "requestHeaderModifier"),
        ("ResponseHeaderModifier", "responseHeaderModifier"),
        ("RequestMirror", "requestMirror"),
        ("RequestRedirect", "requestRedirect"),
        ("URLRewrite", "urlRewrite"),
        ("CORS", "cors"),
        ("ExtensionRef", "extensionRef"),
    ];
    let all = filters.as_array().map_or(&[][..], Vec::as_slice);
    for (at, filter) in all.iter().enumerate() {
        let path = path.index(at);
        let kind = filter["type"].as_str().unwrap_or_default();
        for (name, field) in FIELDS {
            match (name == kind, filter[field].is_null()) {
                (true, true) => {
                    let why = format!("filter.{field} must be specified for {name} filter.type");
                    causes.push(Cause::invalid(path, &"".into(), &why));
                }
                (false, false) => {
                    let why =
                        format!("filter.{field} must be nil if the filter.type is not {name}");
                    causes.push(Cause::invalid(path, &"".into(), &why));
                }
                _ => {}
            }
        }
        check(FILTER, &path, filter, causes);
        let code = filter["requestRedirect"]["statusCode"].as_i64();
        if let Some(code) = code
            && !matches!(code, 301 | 302 | 303 | 307 | 308)
        {
            let why = "supported values: 301, 302, 303, 307, 308";
            causes.push(Cause::invalid(path, &code.into(), why));
        }
    }
    let count = |kind: &str| all.iter().filter(|f| f["type"] == kind).count();
    for kind in [
        "RequestHeaderModifier",
        "ResponseHeaderModifier",
        "RequestRedirect",
        "URLRewrite",
    ] {
        if count(kind) > 1 {
            let why = format!("{kind} filter cannot be repeated");
            causes.push(Cause::invalid(path, &"".into(), &why));
        }
    }
    if count("RequestRedirect") > 0 && count("URLRewrite") > 0 {
        let why = "May specify either httpRouteFilterRequestRedirect or httpRouteFilterRequestRewrite, but not both";
        causes.push(Cause::invalid(path, &"".into(), why));
    }
}

fn backend(path: &Path<'_>, backend: &Value, causes: &mut Vec<Cause>) {
    check(&[("name", Required)], path, backend, causes);
    let is_service = backend["kind"].as_str().unwrap_or("Service") == "Service"
        && backend["group"].as_str().unwrap_or_default().is_empty();
    if is_service && backend["port"].is_null() {
        causes.push(Cause::invalid(
            path,
            &"".into(),
            "Must have port for Service reference",
        ));
    }
    check(&[("port", Between(1, 65535))], path, backend, causes);
}

/// `^([0-9]{1,5}(h|m|s|ms)){1,4}$`
fn duration(path: &Path<'_>, value: &Value, causes: &mut Vec<Cause>) {
    let text = value.as_str().unwrap_or_default();
    let mut rest = text;
    let mut parts = 0;
    let fine = loop {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        if !(1..=5).contains(&digits) {
            break false;
        }
        rest = &rest[digits..];
        let unit = ["ms", "h", "m", "s"]
            .into_iter()
            .find(|unit| rest.starts_with(unit));
        let Some(unit) = unit else { break false };
        rest = &rest[unit.len()..];
        parts += 1;
        if rest.is_empty() {
            break parts <= 4;
        }
    };
    if !fine {
        let why = "must be a duration such as 10s, 1h30m or 500ms";
        causes.push(Cause::invalid(path, value, why));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::kinds::testing::{check, defaulted};

    #[test]
    fn a_route_is_for_everything_and_to_services_unless_it_says_otherwise() {
        let made = defaulted(
            "httproutes",
            "{metadata: {name: r}, spec: {parentRefs: [{name: g}], rules: [{backendRefs: [{name: s, port: 80}]}]}}",
        );
        assert_eq!(
            made["spec"],
            json!({
                "parentRefs": [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "g"}],
                "rules": [{
                    "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
                    "backendRefs": [{"group": "", "kind": "Service", "name": "s", "port": 80, "weight": 1}],
                }],
            })
        );
    }

    #[test]
    fn routes_are_refused_for_what_cannot_be_meant() {
        check(
            "httproutes",
            "{metadata: {name: r}, spec: {hostnames: [1.2.3.4], rules: [{matches: [{path: {type: Exact, value: x}}], filters: [{type: URLRewrite}], backendRefs: [{name: s}], timeouts: {request: 5x}}]}}",
            &[
                "spec.hostnames[0]: Invalid value: \"1.2.3.4\": must be a DNS name, not an IP address",
                "spec.rules[0].matches[0].path: Invalid value: \"x\": value must be an absolute path and start with '/' when type one of ['Exact', 'PathPrefix']",
                "spec.rules[0].filters[0]: Invalid value: \"\": filter.urlRewrite must be specified for URLRewrite filter.type",
                "spec.rules[0].backendRefs[0]: Invalid value: \"\": Must have port for Service reference",
                "spec.rules[0].timeouts.request: Invalid value: \"5x\": must be a duration such as 10s, 1h30m or 500ms",
            ],
        );
    }

    #[test]
    fn the_numbers_of_filters_are_within_bounds_on_rules_and_on_backends() {
        let mirror = |numbers: &str| {
            format!(
                "{{type: RequestMirror, requestMirror: {{backendRef: {{name: m, port: 80}}, {numbers}}}}}"
            )
        };
        let mut filters: Vec<String> = [
            "percent: -1",
            "fraction: {numerator: -1}",
            "fraction: {numerator: 1, denominator: 0}",
            "percent: 5, fraction: {numerator: 1}",
        ]
        .map(mirror)
        .into();
        filters.push("{type: RequestRedirect, requestRedirect: {statusCode: 70000}}".to_owned());
        let wrong = |at: &str| {
            [
                "[0].requestMirror.percent: Invalid value: -1: must be between 0 and 100, inclusive",
                "[1].requestMirror.fraction.numerator: Invalid value: -1: must be greater than or equal to 0",
                "[2].requestMirror.fraction.denominator: Invalid value: 0: must be greater than zero",
                "[2].requestMirror.fraction: Invalid value: \"\": numerator must be less than or equal to denominator",
                "[3].requestMirror: Invalid value: \"\": Only one of percent or fraction may be specified in HTTPRequestMirrorFilter",
                "[4]: Invalid value: 70000: supported values: 301, 302, 303, 307, 308",
            ]
            .map(|text| format!("{at}.filters{text}"))
        };
        let filters = filters.join(", ");
        for (rule, at) in [
            (format!("{{filters: [{filters}]}}"), "spec.rules[0]"),
            (
                format!("{{backendRefs: [{{name: s, port: 80, filters: [{filters}]}}]}}"),
                "spec.rules[0].backendRefs[0]",
            ),
        ] {
            let wrong = wrong(at);
            let expected: Vec<&str> = wrong.iter().map(String::as_str).collect();
            check(
                "httproutes",
                &format!("{{metadata: {{name: r}}, spec: {{rules: [{rule}]}}}}"),
                &expected,
            );
        }
    }

    #[test]
    fn listeners_differ_and_bring_certificates() {
        check(
            "gateways",
            "{metadata: {name: g}, spec: {gatewayClassName: coracle, listeners: [{name: a, port: 80, protocol: HTTP}, {name: b, port: 80, protocol: HTTP}, {name: c, port: 443, protocol: HTTPS, tls: {mode: Terminate}}]}}",
            &[
                "spec.listeners[2].tls: Invalid value: \"\": certificateRefs or options must be specified when mode is Terminate",
                "spec.listeners: Invalid value: \"\": Combination of port, protocol and hostname must be unique for each listener",
            ],
        );
    }
}
