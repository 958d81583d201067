//! Whole objects through the compiler, and requests through the table that comes of them.

mod unsupported;

use std::sync::Arc;

use http::{HeaderMap, Method};
use serde_json::{Value, json};

use super::table::{Asked, Filter, Route, Target};
use super::{Compiled, Key, Secret, World, compile};

fn object<T: serde::de::DeserializeOwned>(value: Value) -> Arc<T> {
    Arc::new(serde_json::from_value(value).unwrap())
}

fn classes() -> World {
    World {
        ingress_classes: vec![object(json!({
            "metadata": {"name": "coracle"}, "spec": {"controller": "coracle.dev/ingress"}}))],
        gateway_classes: vec![object(json!({
            "metadata": {"name": "coracle"}, "spec": {"controllerName": "coracle.dev/gateway"}}))],
        ..World::default()
    }
}

/// `(name, seconds of age, spec)`, each spec with `ingressClassName: coracle`.
fn with_ingresses(ingresses: &[(&str, u32, Value)]) -> World {
    let mut world = classes();
    for (name, created, spec) in ingresses {
        let mut spec = spec.clone();
        spec["ingressClassName"] = "coracle".into();
        let metadata = json!({"name": name, "namespace": "shop",
            "creationTimestamp": format!("2026-01-01T00:00:{created:02}Z")});
        world
            .ingresses
            .push(object(json!({"metadata": metadata, "spec": spec})));
    }
    world
}

fn path(path: &str, kind: &str, service: &str) -> Value {
    json!({"path": path, "pathType": kind, "backend": {"service": {"name": service, "port": {"number": 80}}}})
}

fn backend(service: &str) -> Value {
    json!({"service": {"name": service, "port": {"name": "http"}}})
}

fn rule(host: &str, paths: &[Value]) -> Value {
    json!({"host": host, "http": {"paths": paths}})
}

fn find(compiled: &Compiled, port: u16, host: &str, path: &str) -> Option<Arc<Route>> {
    let (method, headers) = (Method::GET, HeaderMap::new());
    let asked = Asked {
        host,
        path,
        query: "",
        method: &method,
        headers: &headers,
    };
    compiled.table.doors.get(&port)?.find(&asked).cloned()
}

/// The Service a request goes to; empty for none.
fn goes(compiled: &Compiled, host: &str, path: &str) -> String {
    goes_at(compiled, 80, host, path)
}

fn goes_at(compiled: &Compiled, port: u16, host: &str, path: &str) -> String {
    let Some(route) = find(compiled, port, host, path) else {
        return String::new();
    };
    match route.action.backends.first().map(|b| &b.target) {
        Some(Target::Service { key, .. }) => key.name.clone(),
        Some(Target::Broken { code, .. }) => code.to_string(),
        None => "none".to_owned(),
    }
}

fn reasons(compiled: &Compiled) -> Vec<&'static str> {
    compiled.problems.iter().map(|p| p.reason).collect()
}

#[test]
fn the_more_specific_host_and_path_win() {
    let world = with_ingresses(&[(
        "a",
        1,
        json!({"rules": [
            rule("foo.example.com", &[path("/", "Prefix", "root"), path("/aaa", "Prefix", "aaa"),
                path("/aaa/bbb", "Prefix", "bbb"), path("/aaa", "Exact", "exact")]),
            rule("*.example.com", &[path("/", "Prefix", "wild")]),
            {"http": {"paths": [path("/any", "ImplementationSpecific", "any")]}},
        ]}),
    )]);
    let compiled = compile(&world);
    let cases = [
        ("foo.example.com", "/", "root"),
        ("foo.example.com", "/aaa", "exact"),
        ("foo.example.com", "/aaa/", "aaa"),
        ("foo.example.com", "/aaa/bbb/c", "bbb"),
        ("foo.example.com", "/aaa/bbbc", "aaa"),
        ("bar.example.com", "/any", "wild"),
        ("a.bar.example.com", "/any", "any"),
        ("example.com", "/any/x", "any"),
        ("example.com", "/other", ""),
    ];
    for (host, path, expected) in cases {
        assert_eq!(goes(&compiled, host, path), expected, "{host}{path}");
    }
}

#[test]
fn ingresses_of_one_host_are_merged_and_the_older_keeps_a_path() {
    let world = with_ingresses(&[
        (
            "young",
            9,
            json!({"rules": [rule("h", &[path("/a", "Prefix", "young"), path("/b", "Prefix", "b")])]}),
        ),
        (
            "old",
            1,
            json!({"rules": [rule("h", &[path("/a", "Prefix", "old")])]}),
        ),
    ]);
    let compiled = compile(&world);
    assert_eq!(goes(&compiled, "h", "/a"), "old");
    assert_eq!(goes(&compiled, "h", "/b"), "b");
    assert_eq!(reasons(&compiled), ["PathConflict"]);
    assert_eq!(compiled.problems[0].about, Key::new("shop", "young"));
}

#[test]
fn default_backends_come_after_every_rule() {
    let world = with_ingresses(&[
        (
            "a",
            1,
            json!({"defaultBackend": backend("of-a"), "rules": [rule("h", &[path("/a", "Prefix", "a")])]}),
        ),
        ("b", 2, json!({"defaultBackend": backend("of-all")})),
        (
            "c",
            3,
            json!({"rules": [{"http": {"paths": [path("/c", "Prefix", "c")]}}]}),
        ),
    ]);
    let compiled = compile(&world);
    assert_eq!(goes(&compiled, "h", "/a"), "a");
    assert_eq!(goes(&compiled, "h", "/c"), "c");
    assert_eq!(goes(&compiled, "h", "/x"), "of-a");
    assert_eq!(goes(&compiled, "other", "/x"), "of-all");
}

#[test]
fn other_classes_are_left_alone_and_missing_ones_told() {
    let mut world = with_ingresses(&[(
        "a",
        1,
        json!({"rules": [rule("h", &[path("/", "Prefix", "a")])]}),
    )]);
    let mut other = world.ingresses[0].as_ref().clone();
    other.spec.ingress_class_name = Some("nginx".to_owned());
    world.ingresses = vec![Arc::new(other)];
    assert_eq!(reasons(&compile(&world)), ["IngressClassNotFound"]);
    world.ingress_classes.push(object(
        json!({"metadata": {"name": "nginx"}, "spec": {"controller": "k8s.io/ingress-nginx"}}),
    ));
    let compiled = compile(&world);
    assert!(compiled.problems.is_empty() && compiled.table.doors.is_empty());
}

#[test]
fn tls_opens_the_second_door_and_redirects_to_it() {
    let spec = json!({"tls": [{"hosts": ["h", "*.w"], "secretName": "s"}],
        "rules": [rule("h", &[path("/", "Prefix", "a")]), rule("plain", &[path("/", "Prefix", "b")])]});
    let mut world = with_ingresses(&[("a", 1, spec)]);
    assert_eq!(reasons(&compile(&world)), ["InvalidCertificate"]);
    world.secrets.insert(Key::new("shop", "s"), Secret::Good);
    let compiled = compile(&world);
    assert!(compiled.problems.is_empty());
    assert_eq!(goes_at(&compiled, 443, "h", "/"), "a");
    let redirects = |host| {
        let route = find(&compiled, 80, host, "/").unwrap();
        route
            .action
            .filters
            .iter()
            .any(|f| matches!(f, Filter::ToHttps))
    };
    assert!(redirects("h") && !redirects("plain"));
    let door = &compiled.table.doors[&443];
    assert_eq!(
        door.certificate(Some("X.w")).next(),
        Some(&Key::new("shop", "s"))
    );
    assert_eq!(door.certificate(Some("a.x.w")).next(), None);
    assert_eq!(door.certificate(None).next(), None);
}

#[test]
fn backends_that_are_no_services_are_refused() {
    let spec = json!({"defaultBackend": {"resource": {"kind": "Bucket", "name": "b"}}});
    let mut world = with_ingresses(&[
        ("a", 1, spec),
        (
            "b",
            2,
            json!({"rules": [rule("h", &[path("/", "Prefix", "gone")])]}),
        ),
    ]);
    world.services = Some([(Key::new("shop", "web"), vec![("http".to_owned(), 80)])].into());
    let compiled = compile(&world);
    assert_eq!(
        reasons(&compiled),
        ["ResourceBackendNotSupported", "BackendNotFound"]
    );
    assert_eq!(goes(&compiled, "x", "/"), "503 Service Unavailable");
    // A name of something outside has every number for a port.
    let mut elsewhere = with_ingresses(&[(
        "a",
        1,
        json!({"rules": [rule("h", &[path("/", "Prefix", "gone")])]}),
    )]);
    elsewhere.services = Some([(Key::new("shop", "gone"), Vec::new())].into());
    assert_eq!(reasons(&compile(&elsewhere)), ["BackendNotFound"]);
    elsewhere.external_names = [Key::new("shop", "gone")].into();
    assert!(reasons(&compile(&elsewhere)).is_empty());
}

fn gateway(listeners: Value) -> Value {
    json!({"metadata": {"name": "edge", "namespace": "infra"},
        "spec": {"gatewayClassName": "coracle", "listeners": listeners}})
}

fn route(name: &str, namespace: &str, spec: Value) -> Value {
    let mut spec = spec;
    if spec["parentRefs"].is_null() {
        spec["parentRefs"] = json!([{"name": "edge", "namespace": "infra"}]);
    }
    json!({"metadata": {"name": name, "namespace": namespace}, "spec": spec})
}

fn gateways(listeners: Value, routes: &[Value]) -> World {
    World {
        gateways: vec![object(gateway(listeners))],
        routes: routes.iter().cloned().map(object).collect(),
        ..classes()
    }
}

fn refs(name: &str) -> Value {
    json!([{"name": name, "port": 80}])
}

/// `Type=Status Reason` of a route's first parent.
fn said(compiled: &Compiled, route: usize) -> Vec<String> {
    let facts = &compiled.routes[route].parents[0].conditions;
    let text = |f: &super::Fact| format!("{}={} {}", f.type_, f.status, f.reason);
    facts.iter().map(text).collect()
}

#[test]
fn listeners_of_one_port_keep_apart() {
    let open = json!({"namespaces": {"from": "All"}});
    let listeners = json!([
        {"name": "any", "port": 80, "protocol": "HTTP", "allowedRoutes": open},
        {"name": "wild", "port": 80, "protocol": "HTTP", "hostname": "*.example.com", "allowedRoutes": open},
        {"name": "one", "port": 80, "protocol": "HTTP", "hostname": "one.example.com", "allowedRoutes": open},
    ]);
    let at = |section: &str, service: &str| {
        route(
            service,
            "shop",
            json!({"parentRefs": [{"name": "edge", "namespace": "infra", "sectionName": section}],
            "rules": [{"matches": [{"path": {"value": format!("/{service}")}}], "backendRefs": refs(service)}]}),
        )
    };
    let compiled = compile(&gateways(
        listeners,
        &[at("any", "a"), at("wild", "w"), at("one", "o")],
    ));
    assert_eq!(goes(&compiled, "x", "/a"), "a");
    assert_eq!(goes(&compiled, "two.sub.example.com", "/w"), "w");
    assert_eq!(goes(&compiled, "one.example.com", "/o"), "o");
    assert_eq!(goes(&compiled, "one.example.com", "/w"), "");
    assert_eq!(goes(&compiled, "two.example.com", "/a"), "");
    let attached: Vec<i32> = compiled.gateways[0]
        .listeners
        .iter()
        .map(|l| l.attached_routes)
        .collect();
    assert_eq!(attached, [1, 1, 1]);
}

#[test]
fn routes_are_told_why_they_do_not_attach() {
    let listeners = json!([
        {"name": "same", "port": 80, "protocol": "HTTP", "hostname": "*.example.com"},
        {"name": "chosen", "port": 8080, "protocol": "HTTP", "hostname": "b.com",
            "allowedRoutes": {"namespaces": {"from": "Selector", "selector": {"matchLabels": {"edge": "yes"}}}}},
    ]);
    let to = |section: Value, hosts: Value| {
        let parent = json!([{"name": "edge", "namespace": "infra", "sectionName": section}]);
        json!({"parentRefs": parent, "hostnames": hosts, "rules": [{"backendRefs": refs("web")}]})
    };
    let mut world = gateways(
        listeners,
        &[
            route("a", "infra", to("none".into(), json!([]))),
            route("b", "infra", to(Value::Null, json!(["other.com"]))),
            route("e", "infra", to(Value::Null, json!(["x.example.com"]))),
            route("c", "shop", to("same".into(), json!([]))),
            route("d", "shop", to("chosen".into(), json!([]))),
        ],
    );
    world.namespaces.insert(
        "shop".to_owned(),
        [("edge".to_owned(), "yes".to_owned())].into(),
    );
    let compiled = compile(&world);
    let expected = [
        "Accepted=false NoMatchingParent",
        "Accepted=false NoMatchingListenerHostname",
        "Accepted=true Accepted",
        "Accepted=false NotAllowedByListeners",
        "Accepted=true Accepted",
    ];
    for (at, expected) in expected.iter().enumerate() {
        assert_eq!(said(&compiled, at)[0], *expected, "route {at}");
    }
    assert_eq!(goes_at(&compiled, 8080, "b.com", "/"), "web");
}

#[test]
fn references_across_namespaces_need_a_grant() {
    let cert = json!([{"name": "cert", "namespace": "certs"}]);
    let listeners = json!([{"name": "tls", "port": 443, "protocol": "HTTPS", "tls": {"certificateRefs": cert},
        "allowedRoutes": {"namespaces": {"from": "All"}}}]);
    let backends = json!([{"name": "web", "namespace": "other", "port": 80}]);
    let mut world = gateways(
        listeners,
        &[route(
            "r",
            "shop",
            json!({"rules": [{"backendRefs": backends}]}),
        )],
    );
    world
        .secrets
        .insert(Key::new("certs", "cert"), Secret::Good);
    let compiled = compile(&world);
    let reason = |compiled: &Compiled| {
        let facts = &compiled.gateways[0].listeners[0].conditions;
        facts
            .iter()
            .find(|f| f.type_ == "ResolvedRefs")
            .unwrap()
            .reason
    };
    assert_eq!(reason(&compiled), "RefNotPermitted");
    assert_eq!(said(&compiled, 0)[1], "ResolvedRefs=false RefNotPermitted");
    assert_eq!(goes_at(&compiled, 443, "h", "/"), "");
    let grant = |namespace: &str, from: (&str, &str), to: &str| {
        object(
            json!({"metadata": {"name": "g", "namespace": namespace}, "spec": {
            "from": [{"group": "gateway.networking.k8s.io", "kind": from.0, "namespace": from.1}],
            "to": [{"group": "", "kind": to}]}}),
        )
    };
    world.grants = vec![
        grant("certs", ("Gateway", "infra"), "Secret"),
        grant("other", ("HTTPRoute", "shop"), "Service"),
    ];
    let compiled = compile(&world);
    assert_eq!(reason(&compiled), "ResolvedRefs");
    assert_eq!(goes_at(&compiled, 443, "h", "/"), "web");
}

#[test]
fn matches_have_the_precedence_of_the_specification() {
    let one =
        |matched: Value, service: &str| json!({"matches": [matched], "backendRefs": refs(service)});
    let rules = json!([
        one(json!({}), "all"),
        one(
            json!({"path": {"value": "/a"}, "headers": [{"name": "X", "value": "1"}]}),
            "header"
        ),
        one(json!({"path": {"value": "/a"}}), "prefix"),
        one(json!({"path": {"type": "Exact", "value": "/a"}}), "exact"),
        one(json!({"path": {"value": "/a"}, "method": "PUT"}), "method"),
        one(
            json!({"path": {"value": "/a"}, "queryParams": [{"name": "q", "type": "RegularExpression", "value": "[0-9]+"}]}),
            "query"
        ),
        one(
            json!({"path": {"type": "RegularExpression", "value": "/r/[a-z]+"}}),
            "regex"
        ),
    ]);
    let listeners = json!([{"name": "web", "port": 80, "protocol": "HTTP"}]);
    let compiled = compile(&gateways(
        listeners,
        &[route("r", "infra", json!({"rules": rules}))],
    ));
    let ask = |method: Method, path: &str, query: &str, header: bool| {
        let mut headers = HeaderMap::new();
        if header {
            headers.insert("x", "1".parse().unwrap());
        }
        let asked = Asked {
            host: "h",
            path,
            query,
            method: &method,
            headers: &headers,
        };
        let route = compiled.table.doors[&80].find(&asked).unwrap();
        match &route.action.backends[0].target {
            Target::Service { key, .. } => key.name.clone(),
            other => format!("{other:?}"),
        }
    };
    assert_eq!(ask(Method::GET, "/x", "", true), "all");
    assert_eq!(ask(Method::PUT, "/a", "", true), "exact");
    assert_eq!(ask(Method::PUT, "/a/b", "q=1", true), "method");
    assert_eq!(ask(Method::GET, "/a/b", "q=1", true), "header");
    assert_eq!(ask(Method::GET, "/a/b", "q=1", false), "query");
    assert_eq!(ask(Method::GET, "/a/b", "q=x", false), "prefix");
    assert_eq!(ask(Method::GET, "/r/abc", "", false), "regex");
    assert_eq!(ask(Method::GET, "/r/abc1", "", false), "all");
}

#[test]
fn a_connection_for_one_listener_does_not_serve_another() {
    let tls = |name: &str, host: &str| {
        json!({"name": name, "port": 443, "protocol": "HTTPS", "hostname": host,
        "tls": {"certificateRefs": [{"name": "cert"}]}})
    };
    let listeners = json!([tls("a", "a.com"), tls("b", "*.b.com")]);
    let mut world = gateways(listeners, &[]);
    world
        .secrets
        .insert(Key::new("infra", "cert"), Secret::Good);
    let compiled = compile(&world);
    let door = &compiled.table.doors[&443];
    assert!(!door.is_misdirected("a.com", "a.com"));
    assert!(!door.is_misdirected("x.b.com", "y.b.com"));
    assert!(door.is_misdirected("a.com", "x.b.com"));
    // A wildcard of a listener stands for any number of labels, as its routes have it.
    let cert = Key::new("infra", "cert");
    for name in ["a.com", "x.b.com", "x.y.b.com"] {
        assert_eq!(door.certificate(Some(name)).next(), Some(&cert), "{name}");
    }
    assert_eq!(door.certificate(Some("b.com")).next(), None);
}

#[test]
fn a_route_leads_to_no_external_name() {
    let listeners = json!([{"name": "web", "port": 80, "protocol": "HTTP",
        "allowedRoutes": {"namespaces": {"from": "All"}}}]);
    let rules = json!({"rules": [{"backendRefs": refs("out")}]});
    let mut world = gateways(listeners, &[route("r", "shop", rules)]);
    world.services = Some([(Key::new("shop", "out"), vec![(String::new(), 80)])].into());
    world.external_names = [Key::new("shop", "out")].into();
    let said = said(&compile(&world), 0);
    assert!(
        said.contains(&"ResolvedRefs=false UnsupportedValue".to_owned()),
        "{said:?}"
    );
}
