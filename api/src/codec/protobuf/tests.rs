//! The codec against objects of our own, and against upstream's golden files where that folder is present.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::*;

/// Where upstream's golden objects and its whole table are: the folder that `CORACLE_UPSTREAM_DATA` names, or
/// `shared/k8s` beside the repository. They are no part of it; without them, [`what_is_written_stays_as_it_was`] stands
/// for what was proved with them.
fn golden_dir() -> Option<PathBuf> {
    let named = std::env::var_os("CORACLE_UPSTREAM_DATA").map(PathBuf::from);
    if let Some(dir) = &named {
        assert!(dir.join("golden").is_dir(), "{}: no golden/", dir.display());
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let beside = || {
        root.ancestors()
            .map(|dir| dir.join("shared/k8s"))
            .find(|dir| dir.join("golden").is_dir())
    };
    let found = named.or_else(beside);
    if found.is_none() {
        eprintln!("skipped: CORACLE_UPSTREAM_DATA names no folder of upstream's golden objects");
    }
    found
}

/// The whole of upstream's table, old versions included, in the form of `facts/protobuf.txt`.
fn whole_table(dir: &Path) -> Table {
    let text = std::fs::read_to_string(dir.join("protobuf-1.36.json")).expect("the table is there");
    let messages: Value = serde_json::from_str(&text).expect("the table is JSON");
    let messages = messages.as_object().expect("a map of messages");
    let mut out = String::from("# whole\n");
    out += "apimachinery.pkg.apis.meta.v1.WatchEvent\n\t1 type . s\n\t2 object . *RawExtension\n";
    for (name, rows) in messages {
        let name = short(name);
        // These have JSON of their own and are elements, not messages.
        if element_text(&format!("k8s.io/{name}"), messages).starts_with('*') {
            continue;
        }
        out += &format!("{name}\n");
        for row in rows.as_array().expect("a list of rows") {
            out += &row_text(row, messages);
        }
    }
    Table::parse(out.leak()).expect("the table reads")
}

fn short(go_name: &str) -> String {
    go_name
        .strip_prefix("k8s.io/")
        .unwrap_or(go_name)
        .replace('/', ".")
}

fn row_text(row: &Value, messages: &serde_json::Map<String, Value>) -> String {
    let shape = match row[3].as_str().expect("a shape") {
        "" => ".",
        "list" | "NAMEDlist" => "[",
        _ => "{",
    };
    let element = match &row[4] {
        Value::String(name) => element_text(name, messages),
        wrapped if wrapped[0] == "LISTWRAP" => "list".to_owned(),
        named => match &named[2] {
            Value::String(name) => element_text(name, messages),
            pair => element_text(
                &format!(
                    "{}.{}",
                    pair[0].as_str().expect("a package"),
                    pair[1].as_str().expect("a name")
                ),
                messages,
            ),
        },
    };
    // A named type that is listed with its bare element.
    let element = match (&row[4], element.strip_prefix('=')) {
        (Value::Array(named), Some(bare)) if !bare.contains("v1.") => {
            let package = named[0].as_str().expect("a package");
            element_text(&format!("{package}.{bare}"), messages)
        }
        _ => element,
    };
    let mut flags = String::new();
    for (at, flag) in [(5, 'p'), (6, 'o'), (7, 'i')] {
        if row[at] == true {
            flags.push(flag);
        }
    }
    let name = row[1]
        .as_str()
        .filter(|name| !name.is_empty())
        .unwrap_or("-");
    format!("\t{} {name} {shape} {element} {flags}\n", row[0])
}

fn element_text(go_name: &str, messages: &serde_json::Map<String, Value>) -> String {
    let last = go_name.rsplit('.').next().unwrap_or(go_name);
    match last {
        "string" | "UID" | "NodeName" => "s",
        "int32" | "int64" => "i",
        "bool" => "b",
        "float64" => "f",
        "bytes" => "y",
        "Quantity" => "q",
        "IntOrString" => "o",
        "Time" => "t",
        "MicroTime" => "m",
        "Duration" => "s",
        "RawExtension" | "FieldsV1" => return format!("*{last}"),
        "JSON"
        | "JSONSchemaPropsOrArray"
        | "JSONSchemaPropsOrBool"
        | "JSONSchemaPropsOrStringArray" => return format!("*{last}"),
        _ if messages.contains_key(go_name) => return format!("={}", short(go_name)),
        _ => return "s".to_owned(),
    }
    .to_owned()
}

/// `apps.v1.Deployment` → the definition's name; kinds that no group has are meta types.
fn definition(table: &Table, stem: &str) -> Option<String> {
    let (rest, kind) = stem.rsplit_once('.')?;
    let (group, version) = rest.rsplit_once('.')?;
    let package = match group {
        "internal.apiserver.k8s.io" => "apiserverinternal",
        _ => group.split('.').next()?,
    };
    [
        format!("io.k8s.api.{package}.{version}.{kind}"),
        format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}"),
    ]
    .into_iter()
    .find(|name| table.find(name).is_some())
}

fn check(table: &Table, name: &str, pb: &[u8], json: &Value) -> Result<(), String> {
    let envelope = Envelope::parse(pb)?;
    let mut object = envelope.decode_with(table, name)?;
    for (key, text) in [
        ("apiVersion", &envelope.api_version),
        ("kind", &envelope.kind),
    ] {
        if !text.is_empty() {
            object[key] = text.as_str().into();
        }
    }
    if object != *json {
        return Err(format!("decoded\n{object:#}\ninstead of\n{json:#}"));
    }
    let again = encode_with(table, name, &object)?;
    if again != pb {
        return Err("encoding the decoded object gives other bytes".to_owned());
    }
    Ok(())
}

fn golden_files(dir: &Path) -> Vec<(String, Vec<u8>, Value)> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir.join("golden")).expect("the folder is there") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|e| e == "pb") {
            let stem = path.file_stem().and_then(|s| s.to_str()).expect("a name");
            let pb = std::fs::read(&path).expect("readable");
            let text = std::fs::read(path.with_extension("json")).expect("its JSON");
            let mut json: Value = serde_json::from_slice(&text).expect("JSON");
            // An empty struct behind no pointer says nothing, and `decode` leaves it away.
            if json["spec"] == json!({}) {
                json.as_object_mut().expect("an object").remove("spec");
            }
            files.push((stem.to_owned(), pb, json));
        }
    }
    files.sort_by(|a, b| a.0.cmp(&b.0));
    files
}

#[test]
fn every_golden_object_decodes_to_its_json_and_back_to_its_bytes() {
    let Some(dir) = golden_dir() else { return };
    let table = whole_table(&dir);
    let mut failed = Vec::new();
    let files = golden_files(&dir);
    for (stem, pb, json) in &files {
        let outcome = definition(&table, stem)
            .ok_or_else(|| "no message".to_owned())
            .and_then(|name| check(&table, &name, pb, json));
        if let Err(error) = outcome {
            failed.push(format!("{stem}: {error}"));
        }
    }
    assert!(
        failed.is_empty(),
        "{} of {}:\n{}",
        failed.len(),
        files.len(),
        failed.join("\n")
    );
}

#[test]
fn our_table_agrees_with_every_golden_object_it_knows() {
    let Some(dir) = golden_dir() else { return };
    let table = Table::builtin();
    let mut known = 0;
    for (stem, pb, json) in golden_files(&dir) {
        if let Some(name) = definition(table, &stem) {
            known += 1;
            let outcome = check(table, &name, &pb, &json);
            assert_eq!(outcome, Ok(()), "{stem}");
        }
    }
    assert!(
        known > 50,
        "only {known} kinds of the golden files are known"
    );
}

/// One line per served kind: the bytes of an object with a value in every field, as they were when the codec agreed with
/// every golden object of upstream's.
const GOLDEN: &str = include_str!("golden.txt");

#[test]
fn what_is_written_stays_as_it_was() {
    let mut lines =
        String::from("# Definition, length and SHA-256 of an object with every field.\n");
    for (definition, bytes, object) in full_objects() {
        let hash: String = <sha2::Sha256 as sha2::Digest>::digest(&bytes)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        lines += &format!("{definition} {} {hash}\n", bytes.len());
        let envelope = Envelope::parse(&bytes).expect("what was written can be read");
        let read = envelope.decode(&definition).expect("and decoded");
        assert_eq!(read, object, "{definition}");
    }
    let changed: Vec<_> = lines
        .lines()
        .filter(|line| !GOLDEN.lines().any(|known| known == *line))
        .collect();
    let count = |text: &str| text.lines().count();
    assert!(
        changed.is_empty() && count(&lines) == count(GOLDEN),
        "golden.txt has {} lines and not {}; if upstream's golden objects still agree, these belong into it:\n{}",
        count(GOLDEN),
        count(&lines),
        changed.join("\n")
    );
}

/// Of every served kind that has a protobuf form, and of its list.
fn full_objects() -> Vec<(String, Vec<u8>, Value)> {
    let mut kinds: Vec<_> = builtin()
        .kinds()
        .map(|(_, ty)| builtin().name(ty))
        .collect();
    kinds.sort_unstable();
    kinds.dedup();
    kinds
        .into_iter()
        .filter_map(|definition| {
            let object = full::of(definition)?;
            let bytes = encode(definition, &object).expect("it fits the table it was made from");
            Some((definition.to_owned(), bytes, object))
        })
        .collect()
}

#[test]
fn every_served_kind_has_a_protobuf_form() {
    let table = Table::builtin();
    assert!(table.names().count() > 500);
    for (gvk, ty) in builtin().kinds() {
        // Upstream serves these as CRDs, which have none either.
        if gvk.group == types::well_known::GATEWAY_GROUP {
            continue;
        }
        assert!(knows(builtin().name(ty)), "{gvk:?} has no protobuf form");
    }
}

/// The same pod as bytes and as JSON: what `kubectl create` sends for a small pod.
#[test]
fn a_small_pod_reads_as_it_was_written() {
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web", "labels": {"b": "2", "a": "1"}, "creationTimestamp": "2026-11-23T09:00:00Z"},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "restartPolicy": "Always",
            "containers": [{
                "name": "c",
                "image": "example/web:1",
                "command": ["run", ""],
                "resources": {"limits": {"cpu": "500m"}},
                "readinessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 5},
                "ports": [{"name": "http", "containerPort": 8080}],
            }],
            "volumes": [{"name": "v", "configMap": {"name": "settings", "defaultMode": 420}}],
        },
    });
    let bytes = encode("io.k8s.api.core.v1.Pod", &pod).expect("a pod has a protobuf form");
    assert!(bytes.starts_with(b"k8s\0\x0a\x09\x0a\x02v1\x12\x03Pod\x12"));
    let (gvk, mut decoded) = decode(&bytes).expect("what was written can be read");
    decoded["apiVersion"] = gvk.api_version().into();
    decoded["kind"] = gvk.kind.into();
    assert_eq!(decoded, pod);
}

#[test]
fn an_explicit_zero_behind_a_pointer_survives() {
    let scaled = json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replicas": 0}});
    let bytes = encode("io.k8s.api.apps.v1.Deployment", &scaled).expect("a known kind");
    let (_, decoded) = decode(&bytes).expect("readable");
    assert_eq!(decoded["spec"]["replicas"], 0);
}

#[test]
fn broken_bytes_are_an_error_and_never_a_panic() {
    let pod = json!({"metadata": {"name": "web"}, "spec": {"containers": [{"name": "c"}]}});
    let bytes = encode("io.k8s.api.core.v1.Pod", &pod).expect("a known kind");
    for cut in 0..bytes.len() {
        let _ = Envelope::parse(&bytes[..cut]).and_then(|e| e.decode("io.k8s.api.core.v1.Pod"));
    }
    let mut state: u64 = 7;
    for _ in 0..2_000 {
        let mut broken = bytes.clone();
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let at = 4 + (state >> 33) as usize % (broken.len() - 4);
        broken[at] = (state >> 56) as u8;
        let _ = Envelope::parse(&broken).and_then(|e| e.decode("io.k8s.api.core.v1.Pod"));
    }
    assert!(decode(b"{}").is_err_and(|e| e.contains("does not appear to be a protobuf message")));
}

#[test]
fn a_watch_frame_has_its_length_in_front() {
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}});
    let frame = encode_watch_event("ADDED", "io.k8s.api.core.v1.ConfigMap", &object);
    let frame = frame.expect("a known kind");
    let length = u32::from_be_bytes(frame[..4].try_into().expect("four bytes"));
    assert_eq!(length as usize, frame.len() - 4);
}

/// Written down by hand from the tags: these bytes must never change.
#[test]
fn a_config_map_has_these_bytes() {
    let object = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "v"}, "immutable": false,
    });
    let mut expected = b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09ConfigMap".to_vec();
    // ObjectMeta: name, then the empty generateName, namespace, selfLink, uid and resourceVersion, generation 0 and an
    // empty creationTimestamp.
    let meta = b"\x0a\x01a\x12\0\x1a\0\x22\0\x2a\0\x32\0\x38\0\x42\0";
    let mut raw = vec![0x0a, u8::try_from(meta.len()).expect("short")];
    raw.extend_from_slice(meta);
    raw.extend_from_slice(b"\x12\x06\x0a\x01k\x12\x01v\x20\0");
    expected.extend_from_slice(&[0x12, u8::try_from(raw.len()).expect("short")]);
    expected.extend_from_slice(&raw);
    expected.extend_from_slice(b"\x1a\0\x22\0");
    assert_eq!(
        encode("io.k8s.api.core.v1.ConfigMap", &object),
        Ok(expected)
    );
}
