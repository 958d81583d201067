//! What kubectl looks for in the documents.

use super::*;
use crate::codec::protobuf::wire::Reader;

fn get(path: &str, hash: Option<&str>, accept: &str) -> Response<Bytes> {
    let mut headers = HeaderMap::new();
    set(&mut headers, ACCEPT, accept);
    builtin()
        .respond(path, hash, &headers)
        .expect("the path is served")
        .expect("the format is served")
}

fn body(response: &Response<Bytes>) -> Value {
    serde_json::from_slice(response.body()).expect("the body is JSON")
}

/// Every `$ref` of a document leads somewhere.
fn check_references(document: &Value, at: &Value, prefix: &str) {
    match at {
        Value::Object(map) => {
            if let Some(Value::String(reference)) = map.get("$ref") {
                let name = reference
                    .strip_prefix(prefix)
                    .expect("a reference into this document");
                let pointer = format!(
                    "{}/{name}",
                    prefix.trim_start_matches('#').trim_end_matches('/')
                );
                assert!(
                    document.pointer(&pointer).is_some(),
                    "{reference} leads nowhere"
                );
            }
            map.values()
                .for_each(|value| check_references(document, value, prefix));
        }
        Value::Array(list) => list
            .iter()
            .for_each(|value| check_references(document, value, prefix)),
        _ => {}
    }
}

#[test]
fn the_index_leads_to_every_document_and_its_hash_is_right() {
    let index = body(&get("/openapi/v3", None, "application/json"));
    let paths = index["paths"].as_object().expect("a map");
    assert!(paths.contains_key("api/v1") && paths.contains_key("apis/apps/v1"));
    for entry in paths.values() {
        let url = entry["serverRelativeURL"].as_str().expect("a URL");
        let (path, hash) = url.split_once("?hash=").expect("a hash");
        let answer = get(path, Some(hash), "application/json");
        assert_eq!(answer.status(), StatusCode::OK, "{url}");
        assert_eq!(answer.headers()[CACHE_CONTROL], "public, immutable");
        let document = body(&answer);
        check_references(&document, &document, "#/components/schemas/");
    }
}

#[test]
fn a_wrong_hash_is_redirected_to_the_right_one() {
    let answer = get("/openapi/v3/apis/apps/v1", Some("BAD"), "application/json");
    assert_eq!(answer.status(), StatusCode::MOVED_PERMANENTLY);
    let location = answer.headers()[LOCATION].to_str().expect("text");
    assert!(
        location.starts_with("/openapi/v3/apis/apps/v1?hash="),
        "{location}"
    );
}

#[test]
fn the_patch_of_every_kind_takes_what_kubectl_verifies() {
    let document = body(&get("/openapi/v3/apis/apps/v1", None, "application/json"));
    let patch =
        &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    assert_eq!(
        patch["x-kubernetes-group-version-kind"],
        json!({"group": "apps", "version": "v1", "kind": "Deployment"})
    );
    let names: Vec<&str> = patch["parameters"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|p| p["name"].as_str())
        .collect();
    for name in ["dryRun", "fieldManager", "fieldValidation", "force"] {
        assert!(names.contains(&name), "no {name} in {names:?}");
    }
    assert_eq!(patch["operationId"], "patchAppsV1NamespacedDeployment");
}

#[test]
fn schemas_carry_patch_rules_and_descriptions() {
    let document = body(&get("/openapi/v3/api/v1", None, "application/json"));
    let schemas = &document["components"]["schemas"];
    let ports = &schemas["io.k8s.api.core.v1.Container"]["properties"]["ports"];
    assert_eq!(ports["x-kubernetes-patch-merge-key"], "containerPort");
    assert_eq!(ports["x-kubernetes-patch-strategy"], "merge");
    assert_eq!(
        ports["x-kubernetes-list-map-keys"],
        json!(["containerPort", "protocol"])
    );
    let pod = &schemas["io.k8s.api.core.v1.Pod"];
    assert!(pod["description"].is_string());
    assert!(pod["properties"]["spec"]["description"].is_string());
    assert_eq!(pod["x-kubernetes-group-version-kind"][0]["kind"], "Pod");
    let policy = &schemas["io.k8s.api.core.v1.Container"]["properties"]["imagePullPolicy"];
    assert_eq!(policy["enum"], json!(["Always", "IfNotPresent", "Never"]));
}

#[test]
fn every_served_kind_is_described() {
    for group in builtin().v3.values() {
        let (group, version) = (&*group.group, &*group.version);
        let texts = descriptions::of(&[(group, version)]);
        for kind in builtin().kinds.in_version(group, version) {
            let text = texts.definition(&kind.definition);
            assert!(text.is_some(), "{} has no description", kind.definition);
        }
    }
}

#[test]
fn the_v2_document_is_whole() {
    let document = body(&get("/openapi/v2", None, "application/json"));
    check_references(&document, &document, "#/definitions/");
    let paths = document["paths"].as_object().expect("a map");
    assert!(paths.contains_key("/api/v1/namespaces/{namespace}/pods/{name}/log"));
    assert!(paths.contains_key("/apis/rbac.authorization.k8s.io/v1/clusterroles"));
    assert!(document["definitions"]["io.k8s.api.apps.v1.Deployment"].is_object());
}

#[test]
fn the_v2_protobuf_holds_the_same_paths_and_definitions() {
    let accept = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
    let answer = get("/openapi/v2", None, accept);
    assert_eq!(answer.headers()[CONTENT_TYPE], V2_PROTOBUF);
    let json = body(&get("/openapi/v2", None, "application/json"));
    let mut reader = Reader::new(answer.body());
    let (mut paths, mut definitions) = (0, 0);
    while let Some((tag, wire)) = reader.field().expect("well-formed") {
        let count = |bytes: &[u8]| {
            let mut inner = Reader::new(bytes);
            let mut count = 0;
            while inner.field().expect("well-formed").is_some() {
                count += 1;
            }
            count
        };
        match tag {
            1 => assert_eq!(wire.text("swagger"), Ok("2.0")),
            8 => paths = count(wire.bytes("paths").expect("bytes")),
            9 => definitions = count(wire.bytes("definitions").expect("bytes")),
            _ => {}
        }
    }
    assert_eq!(Some(paths), json["paths"].as_object().map(Map::len));
    assert_eq!(
        Some(definitions),
        json["definitions"].as_object().map(Map::len)
    );
}

#[test]
fn a_known_tag_is_answered_without_a_body() {
    let first = get("/openapi/v2", None, "*/*");
    let mut headers = HeaderMap::new();
    headers.insert(IF_NONE_MATCH, first.headers()[ETAG].clone());
    let again = builtin()
        .respond("/openapi/v2", None, &headers)
        .expect("served");
    let again = again.expect("the format is served");
    assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
    assert!(again.body().is_empty());
}
