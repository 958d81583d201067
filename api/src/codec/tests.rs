//! What decoding says about good and bad bodies.

use proptest::prelude::*;
use serde_json::{Map, json};

use super::*;
use crate::schema::{Type, builtin};

fn decode_as(
    api_version: &str,
    kind: &str,
    media_type: &str,
    body: &str,
) -> Result<Decoded, Error> {
    let gvk = GroupVersionKind::parse(api_version, kind);
    let ty = builtin().kind(&gvk).expect("a built-in kind");
    decode(media_type, body.as_bytes(), builtin(), ty, &gvk)
}

fn message(api_version: &str, kind: &str, body: &str) -> String {
    let error = decode_as(api_version, kind, JSON, body).expect_err("the body is bad");
    assert_eq!(error.reason, Reason::BadRequest);
    error.message
}

fn value(api_version: &str, kind: &str, body: &Value) -> Value {
    let decoded = decode_as(api_version, kind, JSON, &body.to_string()).expect("the body is good");
    assert!(decoded.strict.is_empty(), "{:?}", decoded.strict);
    decoded.object.into_value()
}

#[test]
fn unknown_fields_are_pruned_and_named_in_document_order() {
    let body = r#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a","foo":1},"data":{"x":"y"},"bogus":{}}"#;
    let decoded = decode_as("v1", "ConfigMap", JSON, body).expect("only strict findings");
    let expected = ["unknown field \"metadata.foo\"", "unknown field \"bogus\""];
    assert_eq!(decoded.strict, expected);
    assert_eq!(decoded.object.at(&["bogus"]), None);
    let gvk = GroupVersionKind::parse("v1", "ConfigMap");
    let error = strict_error(&gvk, &decoded.strict).expect("there are findings");
    assert_eq!(
        error.message,
        "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: unknown field \"metadata.foo\", unknown field \"bogus\""
    );
}

#[test]
fn duplicate_keys_are_found_in_structs_and_maps() {
    let body = r#"{"metadata":{"name":"a","name":"b"},"data":{"a":"1","a":"2"}}"#;
    let decoded = decode_as("v1", "ConfigMap", JSON, body).expect("only strict findings");
    let expected = [
        "duplicate field \"metadata.name\"",
        "duplicate field \"data.a\"",
    ];
    assert_eq!(decoded.strict, expected);
    assert_eq!(decoded.object.name(), "b");
}

#[test]
fn paths_of_unknown_fields_name_the_item() {
    let body = r#"{"spec":{"containers":[{"name":"a"},{"name":"b","imagee":"x"}]}}"#;
    let decoded = decode_as("v1", "Pod", JSON, body).expect("only strict findings");
    assert_eq!(
        decoded.strict,
        ["unknown field \"spec.containers[1].imagee\""]
    );
}

#[test]
fn a_wrong_type_is_named_as_go_names_it() {
    assert_eq!(
        message(
            "v1",
            "ConfigMap",
            r#"{"kind":"ConfigMap","apiVersion":"v1","data":{"a":1}}"#
        ),
        "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: json: cannot unmarshal number into Go struct field ConfigMap.data of type string"
    );
    assert_eq!(
        message("apps/v1", "Deployment", r#"{"spec":{"replicas":"3"}}"#),
        "Deployment in version \"v1\" cannot be handled as a Deployment: json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32"
    );
    assert_eq!(
        message(
            "v1",
            "Pod",
            r#"{"spec":{"containers":[{"env":[{"name":"A","value":1}]}]}}"#
        ),
        "Pod in version \"v1\" cannot be handled as a Pod: json: cannot unmarshal number into Go struct field EnvVar.spec.containers.env.value of type string"
    );
    assert_eq!(
        message("v1", "Pod", r#"{"spec":{"containers":{}}}"#),
        "Pod in version \"v1\" cannot be handled as a Pod: json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container"
    );
    assert_eq!(
        message("apps/v1", "Deployment", r#"{"spec":{"replicas":1.5}}"#),
        "Deployment in version \"v1\" cannot be handled as a Deployment: json: cannot unmarshal number 1.5 into Go struct field DeploymentSpec.spec.replicas of type int32"
    );
}

#[test]
fn types_with_their_own_decoder_complain_in_their_own_words() {
    let body = r#"{"spec":{"containers":[{"resources":{"limits":{"cpu":"lots"}}}]}}"#;
    assert!(message("v1", "Pod", body).ends_with(
        "cannot be handled as a Pod: quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
    ));
    assert!(
        message("v1", "Secret", r#"{"data":{"a":"?"}}"#)
            .ends_with("illegal base64 data at input byte 0")
    );
    assert!(
        message("v1", "Pod", r#"{"metadata":{"creationTimestamp":"now"}}"#).contains(
            "parsing time \"now\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"now\" as \"2006\""
        )
    );
}

#[test]
fn bodies_that_are_no_objects_are_unrecognized() {
    assert_eq!(
        message("v1", "ConfigMap", "not json"),
        "the object provided is unrecognized (must be of type ConfigMap): couldn't get version/kind; json parse error: invalid character 'o' in literal null (expecting 'u') (6e6f74206a736f6e)"
    );
    assert!(message("v1", "ConfigMap", "").ends_with("unexpected end of JSON input (<empty>)"));
    assert!(message("v1", "ConfigMap", "[]").contains("cannot unmarshal array into Go value"));
    assert!(
        message("v1", "ConfigMap", r#"{"kind":1}"#)
            .contains("cannot unmarshal number into Go struct field .kind of type string")
    );
}

#[test]
fn another_kind_or_version_is_refused() {
    assert_eq!(
        message("v1", "ConfigMap", r#"{"kind":"Secret","apiVersion":"v1"}"#),
        "Secret in version \"v1\" cannot be handled as a ConfigMap: converting (v1.Secret) to (core.ConfigMap): unknown conversion"
    );
    assert!(
        message("v1", "ConfigMap", r#"{"kind":"Nope","apiVersion":"v1"}"#)
            .contains("no kind \"Nope\" is registered for version \"v1\"")
    );
    assert_eq!(
        message(
            "apps/v1",
            "Deployment",
            r#"{"kind":"Deployment","apiVersion":"apps/v1beta1"}"#
        ),
        "the API version in the data (apps/v1beta1) does not match the expected API version (apps/v1)"
    );
}

#[test]
fn a_body_without_kind_gets_the_one_of_its_path() {
    let object = value("apps/v1", "Deployment", &json!({"metadata": {"name": "a"}}));
    assert_eq!(object["apiVersion"], "apps/v1");
    assert_eq!(object["kind"], "Deployment");
}

#[test]
fn delete_options_come_under_any_version() {
    let body =
        r#"{"kind":"DeleteOptions","apiVersion":"apps/v1","propagationPolicy":"Background"}"#;
    let decoded = decode_as("v1", "DeleteOptions", JSON, body).expect("any version is fine");
    assert_eq!(
        decoded.object.str_at(&["propagationPolicy"]),
        Some("Background")
    );
}

#[test]
fn the_canonical_form_is_what_a_go_round_trip_gives() {
    let pod = value(
        "v1",
        "Pod",
        &json!({
            "metadata": {"name": "p", "creationTimestamp": null, "labels": {"a": null}, "annotations": {}},
            "spec": {
                "hostNetwork": false,
                "volumes": [],
                "terminationGracePeriodSeconds": 0,
                "containers": [{
                    "name": "c",
                    "image": "",
                    "resources": {"requests": {"cpu": 0.5, "memory": "1024Mi"}},
                    "livenessProbe": {},
                }],
            },
        }),
    );
    let expected = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", "labels": {"a": ""}},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "c",
                "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}},
                "livenessProbe": {},
            }],
        },
    });
    assert_eq!(pod, expected);
}

#[test]
fn completing_writes_what_go_always_writes() {
    let gvk = GroupVersionKind::parse("v1", "Pod");
    let ty = builtin().kind(&gvk).expect("a built-in kind");
    let mut pod = json!({
        "spec": {"containers": [{"name": "c", "env": [{"name": "A", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}}]}]},
        "status": {"containerStatuses": [{"name": "c"}]},
    });
    complete(builtin(), ty, &mut pod);
    let container = &pod["spec"]["containers"][0];
    assert_eq!(container["resources"], json!({}));
    let source = &container["env"][0]["valueFrom"]["resourceFieldRef"];
    assert_eq!(source["divisor"], "0");
    let status = &pod["status"]["containerStatuses"][0];
    assert_eq!(status["restartCount"], 0);
    assert_eq!(status["ready"], false);
    assert_eq!(pod["metadata"], json!({}));
}

#[test]
fn yaml_is_read_like_json() {
    let body = "kind: Service\nspec:\n  ports:\n  - port: 80\n    targetPort: web\n    bogus: 1\n  selector: {app: web}\n";
    let decoded = decode_as("v1", "Service", YAML, body).expect("good YAML");
    assert_eq!(decoded.strict, ["unknown field \"spec.ports[0].bogus\""]);
    let ports = decoded.object.at(&["spec", "ports"]);
    assert_eq!(ports, Some(&json!([{"port": 80, "targetPort": "web"}])));
}

#[test]
fn an_apply_configuration_keeps_what_was_written() {
    let gvk = GroupVersionKind::parse("v1", "Pod");
    let ty = builtin().kind(&gvk).expect("a built-in kind");
    let body = "apiVersion: v1\nkind: Pod\nspec:\n  hostNetwork: false\n  nodeName: null\n";
    let decoded = decode_apply(body.as_bytes(), builtin(), ty, &gvk).expect("good YAML");
    let spec = decoded.object.at(&["spec"]);
    assert_eq!(spec, Some(&json!({"hostNetwork": false, "nodeName": null})));
}

#[test]
fn the_result_of_a_patch_is_checked_like_a_body() {
    let gvk = GroupVersionKind::parse("apps/v1", "Deployment");
    let ty = builtin().kind(&gvk).expect("a built-in kind");
    let good = conform(builtin(), ty, json!({"spec": {"replicas": 2, "x": 1}})).expect("good");
    assert_eq!(good.value, json!({"spec": {"replicas": 2}}));
    assert_eq!(good.strict, ["unknown field \"spec.x\""]);
    let bad = conform(builtin(), ty, json!({"spec": {"replicas": "2"}}));
    assert_eq!(
        bad.expect_err("a string is no number"),
        "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32"
    );
}

#[test]
fn an_unknown_format_lists_what_is_accepted() {
    let error = decode_as("v1", "ConfigMap", "text/foo", "x").expect_err("no such format");
    assert_eq!(error.reason, Reason::UnsupportedMediaType);
    assert_eq!(
        error.message,
        "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml, application/vnd.kubernetes.protobuf"
    );
}

#[test]
fn nesting_is_bounded() {
    let body = format!("{{\"data\":{}", "[".repeat(100_000));
    assert!(decode_as("v1", "ConfigMap", JSON, &body).is_err());
}

/// Any tree that fits `ty`, a few fields at each level. No empty lists and maps: protobuf cannot say them.
fn tree(schema: &'static Schema, ty: TypeId, depth: u32) -> BoxedStrategy<Value> {
    match schema.get(ty) {
        Type::Struct(body) if depth > 0 && !body.fields.is_empty() => {
            let names: Vec<_> = body.fields.keys().cloned().collect();
            let most = names.len().min(4);
            proptest::sample::subsequence(names, 0..=most)
                .prop_flat_map(move |names| {
                    let fields: Vec<_> = names
                        .iter()
                        .map(|name| tree(schema, body.fields[name].ty, depth - 1))
                        .collect();
                    (Just(names), fields)
                })
                .prop_map(|(names, values)| {
                    names
                        .iter()
                        .map(ToString::to_string)
                        .zip(values)
                        .collect::<Map<_, _>>()
                        .into()
                })
                .boxed()
        }
        Type::Struct(_) => Just(json!({})).boxed(),
        Type::Map { value, .. } => {
            proptest::collection::btree_map("[a-c]", tree(schema, *value, depth), 1..3)
                .prop_map(|map| map.into_iter().collect::<Map<_, _>>().into())
                .boxed()
        }
        Type::List { item, .. } => proptest::collection::vec(tree(schema, *item, depth), 1..3)
            .prop_map(Value::Array)
            .boxed(),
        Type::String | Type::IntOrString => "[a-z]{0,3}".prop_map(Value::String).boxed(),
        Type::Integer { .. } => (-3i32..3).prop_map(Value::from).boxed(),
        Type::Number => Just(json!(0.5)).boxed(),
        Type::Boolean => any::<bool>().prop_map(Value::Bool).boxed(),
        Type::Bytes => Just(json!("AAE=")).boxed(),
        Type::Quantity => {
            prop_oneof![Just(json!(0.25)), Just(json!("1024Mi")), Just(json!("0"))].boxed()
        }
        Type::Time | Type::MicroTime => Just(json!("2026-11-23T10:00:00.25+01:00")).boxed(),
        Type::Any => Just(json!({"a": [1, null]})).boxed(),
    }
}

fn any_of(api_version: &str, kind: &str) -> (TypeId, BoxedStrategy<Value>) {
    let gvk = GroupVersionKind::parse(api_version, kind);
    let ty = builtin().kind(&gvk).expect("a built-in kind");
    (ty, tree(builtin(), ty, 6))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_canonical_form_of_a_canonical_form_is_itself(pod in any_of("v1", "Pod").1) {
        let ty = any_of("v1", "Pod").0;
        let once = conform(builtin(), ty, pod).expect("it fits its type");
        prop_assert!(once.strict.is_empty());
        let mut completed = once.value.clone();
        complete(builtin(), ty, &mut completed);
        let mut again = completed.clone();
        canonicalize(builtin(), ty, &mut again);
        prop_assert_eq!(&again, &completed);
        let back = conform(builtin(), ty, completed).expect("still fits");
        prop_assert_eq!(back.value, settled(once.value));
    }

    #[test]
    fn protobuf_says_the_same_as_json(pod in any_of("v1", "Pod").1) {
        let (ty, gvk) = (any_of("v1", "Pod").0, GroupVersionKind::parse("v1", "Pod"));
        let mut pod = conform(builtin(), ty, pod).expect("it fits its type").value;
        pod["apiVersion"] = "v1".into();
        pod["kind"] = "Pod".into();
        let bytes = protobuf::encode("io.k8s.api.core.v1.Pod", &pod).expect("a pod has a protobuf form");
        let from_protobuf = decode(PROTOBUF, &bytes, builtin(), ty, &gvk).expect("readable");
        complete(builtin(), ty, &mut pod);
        let from_json = decode(JSON, pod.to_string().as_bytes(), builtin(), ty, &gvk).expect("readable");
        prop_assert_eq!(from_protobuf.object, from_json.object);
    }
}

/// Non-pointer zeros that `complete` wrote come back from a body; the empty structs around them do not.
fn settled(value: Value) -> Value {
    let (ty, mut value) = (any_of("v1", "Pod").0, value);
    complete(builtin(), ty, &mut value);
    conform(builtin(), ty, value)
        .expect("it fits its type")
        .value
}

#[test]
fn yaml_bombs_are_refused_and_ordinary_texts_are_not() {
    let bomb = format!(
        "a: &x {}\nb: [{}]\n",
        "y".repeat(100_000),
        "*x, ".repeat(1_000)
    );
    let nested = "{a: ".repeat(2_000);
    for body in [bomb, nested] {
        let error = Yaml::checked(body.as_bytes()).err().expect("a bomb");
        assert!(
            error.message.contains("too many aliases"),
            "{}",
            error.message
        );
    }
    let cron = "schedule: '*/5 * * * *'\ntext: |\n  a *bold* word, {{ .Values.x }}\n".repeat(500);
    assert!(Yaml::checked(cron.as_bytes()).is_ok());
}
