//! What objects ask for that is not done: what is said of it, and what is served in spite of it.

use super::*;

#[test]
fn what_is_not_supported_fails_its_requests_and_says_so() {
    let rules = json!([
        {"matches": [{"path": {"value": "/x"}}], "filters": [{"type": "ExtensionRef"}], "backendRefs": refs("web")},
        {"backendRefs": refs("web")},
    ]);
    let listeners = json!([
        {"name": "web", "port": 80, "protocol": "HTTP"},
        {"name": "raw", "port": 81, "protocol": "TCP"},
    ]);
    let compiled = compile(&gateways(
        listeners,
        &[route("r", "infra", json!({"rules": rules}))],
    ));
    assert_eq!(
        said(&compiled, 0)[1],
        "PartiallyInvalid=true UnsupportedValue"
    );
    assert_eq!(goes(&compiled, "h", "/x"), "500 Internal Server Error");
    assert_eq!(goes(&compiled, "h", "/"), "web");
    assert_eq!(
        compiled.gateways[0].conditions[0].reason,
        "ListenersNotValid"
    );
    assert_eq!(
        compiled.gateways[0].listeners[1].conditions[0].reason,
        "UnsupportedProtocol"
    );
}

#[test]
fn what_a_gateway_or_a_class_asks_for_in_vain_is_said() {
    let spec = json!({"rules": [{"backendRefs": refs("web")}]});
    let listeners = json!([{"name": "web", "port": 80, "protocol": "HTTP"}]);
    let with = |field: &str, value: Value| {
        let mut gateway = gateway(listeners.clone());
        gateway["spec"][field] = value;
        let world = World {
            gateways: vec![object(gateway)],
            ..gateways(listeners.clone(), &[route("r", "infra", spec.clone())])
        };
        compile(&world)
    };
    let parameters = json!({"group": "x", "kind": "Size", "name": "small"});
    let refused = with("infrastructure", json!({"parametersRef": parameters}));
    let says =
        |fact: &crate::routing::Fact| format!("{}={} {}", fact.type_, fact.status, fact.reason);
    let said: Vec<_> = refused.gateways[0].conditions.iter().map(says).collect();
    assert_eq!(
        said,
        [
            "Accepted=false InvalidParameters",
            "Programmed=false Invalid"
        ]
    );
    assert_eq!(goes(&refused, "h", "/"), "");
    assert!(refused.table.doors.is_empty());
    for (field, value, told) in [
        ("infrastructure", json!({"labels": {"a": "b"}}), true),
        ("infrastructure", json!({}), false),
        (
            "allowedListeners",
            json!({"namespaces": {"from": "Same"}}),
            true,
        ),
        (
            "allowedListeners",
            json!({"namespaces": {"from": "None"}}),
            false,
        ),
    ] {
        let compiled = with(field, value);
        assert_eq!(reasons(&compiled) == ["UnsupportedValue"], told, "{field}");
        assert_eq!(goes(&compiled, "h", "/"), "web", "{field}");
    }
    let options = json!([{"name": "tls", "port": 443, "protocol": "HTTPS", "tls":
        {"certificateRefs": [{"name": "cert"}], "options": {"example.com/least-tls": "1.3"}}}]);
    let mut world = gateways(options, &[route("r", "infra", spec.clone())]);
    world
        .secrets
        .insert(Key::new("infra", "cert"), Secret::Good);
    let compiled = compile(&world);
    let accepted = &compiled.gateways[0].listeners[0].conditions[0];
    assert_eq!(says(accepted), "Accepted=false UnsupportedValue");
    assert_eq!(goes_at(&compiled, 443, "h", "/"), "");
    let world = World {
        ingress_classes: vec![object(json!({"metadata": {"name": "c"}, "spec":
            {"controller": "coracle.dev/ingress", "parameters": {"kind": "Size", "name": "small"}}}))],
        ..World::default()
    };
    assert_eq!(reasons(&compile(&world)), ["InvalidParameters"]);
}

#[test]
fn a_route_is_refused_only_when_nothing_of_it_is_left() {
    let bad = json!({"path": {"type": "RegularExpression", "value": "("}});
    let good = |path: &str| json!({"path": {"value": path}});
    let filter = json!([{"type": "ExtensionRef"}]);
    let rule = |matches: Value| json!({"matches": matches, "backendRefs": refs("web")});
    let broken =
        json!({"matches": [bad, good("/x")], "filters": filter, "backendRefs": refs("web")});
    let partly = "PartiallyInvalid=true UnsupportedValue";
    let refused = "Accepted=false UnsupportedValue";
    for (rules, expected) in [
        (
            json!([
                rule(json!([bad, bad, good("/a")])),
                rule(json!([good("/b")]))
            ]),
            partly,
        ),
        (json!([broken, rule(json!([good("/b")]))]), partly),
        (json!([rule(json!([bad, good("/a")]))]), partly),
        (
            json!([rule(json!([bad])), rule(json!([good("/b")]))]),
            partly,
        ),
        (json!([rule(json!([bad, bad])), broken]), refused),
    ] {
        let listeners = json!([{"name": "web", "port": 80, "protocol": "HTTP"}]);
        let spec = json!({"rules": rules});
        let compiled = compile(&gateways(listeners, &[route("r", "infra", spec)]));
        let said = said(&compiled, 0);
        assert!(
            said.iter().any(|fact| fact == expected),
            "{rules}: {said:?}"
        );
        let accepted = said.iter().any(|fact| fact == "Accepted=true Accepted");
        assert_eq!(accepted, expected == partly, "{rules}: {said:?}");
    }
}

#[test]
fn a_secret_that_nodes_cannot_use_is_named_with_what_is_wrong_with_it() {
    let tls = json!([{"name": "tls", "port": 443, "protocol": "HTTPS",
        "tls": {"certificateRefs": [{"name": "mixed", "namespace": "infra"}]}}]);
    let ingress = json!({"tls": [{"hosts": ["h"], "secretName": "mixed"}]});
    let mut world = World {
        ingresses: with_ingresses(&[("a", 1, ingress)]).ingresses,
        ..gateways(tls, &[])
    };
    let bad = Secret::Bad("cannot be used for TLS: keys do not match".to_owned());
    for namespace in ["infra", "shop"] {
        let key = Key::new(namespace, "mixed");
        world.secrets.insert(key, bad.clone());
    }
    let compiled = compile(&world);
    let facts = &compiled.gateways[0].listeners[0].conditions;
    let resolved = facts.iter().find(|f| f.type_ == "ResolvedRefs").unwrap();
    assert_eq!(
        (resolved.reason, &*resolved.message),
        (
            "InvalidCertificateRef",
            "Secret infra/mixed cannot be used for TLS: keys do not match"
        )
    );
    assert_eq!(reasons(&compiled), ["InvalidCertificate"]);
    assert!(
        compiled.problems[0]
            .message
            .starts_with("Secret shop/mixed cannot be used for TLS: keys do not match; ")
    );
}
