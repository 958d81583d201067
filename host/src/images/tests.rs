//! Images against files, what is bundled, and a registry of ours on this machine.

use std::collections::BTreeMap;

use axum::Router;
use axum::extract::{Path as UrlPath, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::*;

const WASM: &[u8] = b"\0asm\x0d\0\x01\0";

fn open(directory: &Path, mirrors: &[(&str, &str)], bundled: &[(&str, &'static [u8])]) -> Images {
    let own = |(a, b): &(&str, &str)| ((*a).to_owned(), (*b).to_owned());
    let mirrors: Vec<(String, String)> = mirrors.iter().map(own).collect();
    let bundled: Vec<(String, &'static [u8])> = bundled
        .iter()
        .map(|(name, bytes)| ((*name).to_owned(), *bytes))
        .collect();
    Images::open(&directory.join("images"), &mirrors, &bundled).expect("opens")
}

async fn ensure(
    images: &Images,
    image: &str,
    policy: Policy,
) -> Result<(Arc<Image>, Origin), Error> {
    images.ensure(image, policy, &Credentials::default()).await
}

#[tokio::test]
async fn a_bundled_image_is_present_whatever_the_policy() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let images = open(
        directory.path(),
        &[("gcr.io/samples/hello:v1", "coracle.dev/hello")],
        &[("coracle.dev/hello", WASM)],
    );
    for policy in [Policy::Always, Policy::IfNotPresent, Policy::Never] {
        let (image, origin) = ensure(&images, "gcr.io/samples/hello:v1", policy)
            .await
            .expect("present");
        assert_eq!(origin, Origin::Present);
        assert!(image.id.starts_with("coracle.dev/hello@sha256:"));
        assert_eq!(images.bytes(&image).await.expect("bytes"), WASM);
    }
    assert!(images.is_at_hand("gcr.io/samples/hello:v1"));
}

#[tokio::test]
async fn files_and_directories_are_read_again_when_they_change() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("hello.wasm");
    std::fs::write(&file, WASM).expect("written");
    let to = format!("{}/*", directory.path().display());
    let images = open(directory.path(), &[("example.com/team/*", &to)], &[]);
    let (first, _) = ensure(&images, "example.com/team/deep/hello:1", Policy::Always)
        .await
        .expect("found");
    std::fs::write(&file, [WASM, b"more"].concat()).expect("written");
    assert!(
        images.bytes(&first).await.is_err(),
        "never other bytes than the digest says"
    );
    let (second, _) = ensure(&images, "example.com/team/deep/hello:1", Policy::Always)
        .await
        .expect("found");
    assert_ne!(first.digest, second.digest);
    let missing = ensure(&images, "example.com/team/other", Policy::Always)
        .await
        .expect_err("missing");
    assert_eq!(missing.reason(), "ErrImagePull");
    assert!(missing.to_string().contains("no such file"), "{missing}");
}

#[tokio::test]
async fn a_file_that_is_not_wasm_says_so() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("app.wasm");
    std::fs::write(&file, b"#!/bin/sh").expect("written");
    let images = open(directory.path(), &[], &[]);
    let error = ensure(
        &images,
        &format!("file://{}", file.display()),
        Policy::Always,
    )
    .await
    .expect_err("refused");
    assert!(
        error.to_string().contains("is not a WebAssembly binary"),
        "{error}"
    );
}

#[tokio::test]
async fn names_and_policies_have_their_reasons() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let images = open(directory.path(), &[], &[]);
    let reason = async |image: &str| {
        ensure(&images, image, Policy::Never)
            .await
            .expect_err("refused")
            .reason()
    };
    assert_eq!(reason("No Good").await, "InvalidImageName");
    assert_eq!(reason("example.com/app").await, "ErrImageNeverPull");
    assert_eq!(Policy::named(None, "a:latest"), Policy::Always);
}

/// A registry that serves what it is given: path → (media type, body).
#[derive(Clone, Default)]
struct Shelf {
    items: Arc<BTreeMap<String, (String, Vec<u8>)>>,
    asked: Arc<Mutex<Vec<String>>>,
}

async fn serve(
    State(shelf): State<Shelf>,
    method: Method,
    UrlPath(path): UrlPath<String>,
) -> Response {
    shelf
        .asked
        .lock()
        .expect("not poisoned")
        .push(format!("{method} {path}"));
    let Some((media_type, body)) = shelf.items.get(&path) else {
        let error = serde_json::json!({"errors": [{"code": "MANIFEST_UNKNOWN", "message": "unknown", "detail": {}}]});
        return (StatusCode::NOT_FOUND, error.to_string()).into_response();
    };
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, media_type.parse().expect("a header"));
    headers.insert(
        "docker-content-digest",
        store::digest(body).parse().expect("a header"),
    );
    (headers, body.clone()).into_response()
}

/// Artifacts by name: config media type, config, layers by media type.
struct Artifact {
    name: &'static str,
    config: (&'static str, Vec<u8>),
    layers: Vec<(&'static str, Vec<u8>)>,
}

async fn registry(artifacts: Vec<Artifact>) -> (String, Shelf) {
    let mut items = BTreeMap::new();
    for artifact in artifacts {
        let describe = |media_type: &str, bytes: &[u8]| serde_json::json!({"mediaType": media_type, "digest": store::digest(bytes), "size": bytes.len()});
        let blobs = artifact.layers.iter().chain([&artifact.config]);
        for (media_type, bytes) in blobs {
            let path = format!("{}/blobs/{}", artifact.name, store::digest(bytes));
            items.insert(path, ((*media_type).to_owned(), bytes.clone()));
        }
        let layers: Vec<_> = artifact
            .layers
            .iter()
            .map(|(media_type, bytes)| describe(media_type, bytes))
            .collect();
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": media_type,
            "config": describe(artifact.config.0, &artifact.config.1), "layers": layers});
        let path = format!("{}/manifests/1", artifact.name);
        items.insert(
            path,
            (media_type.to_owned(), manifest.to_string().into_bytes()),
        );
    }
    let shelf = Shelf {
        items: Arc::new(items),
        ..Shelf::default()
    };
    let router = Router::new()
        .route("/v2/", axum::routing::get(|| async { "{}" }))
        .route("/v2/{*path}", axum::routing::any(serve))
        .with_state(shelf.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move { axum::serve(listener, router).await });
    (address.to_string(), shelf)
}

fn install_tls() {
    // The registry client makes its TLS side even when it speaks in the clear. A second install is refused: fine.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

fn image_config(os: &str, entrypoint: &str) -> (&'static str, Vec<u8>) {
    let config = serde_json::json!({"os": os, "architecture": "amd64", "config": {"Entrypoint": [entrypoint]}});
    (
        "application/vnd.oci.image.config.v1+json",
        config.to_string().into_bytes(),
    )
}

#[tokio::test]
async fn every_layout_in_use_is_pulled_from_a_registry() {
    install_tls();
    let tar = archive::tests::tar(&[("app.wasm", WASM)]);
    let (address, _) = registry(vec![
        Artifact {
            name: "cncf",
            config: ("application/vnd.wasm.config.v0+json", b"{}".to_vec()),
            layers: vec![("application/wasm", WASM.to_vec())],
        },
        Artifact {
            name: "runwasi",
            config: image_config("wasip1", "/app.wasm"),
            layers: vec![(
                "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm",
                WASM.to_vec(),
            )],
        },
        Artifact {
            name: "scratch",
            config: image_config("linux", "/app.wasm"),
            layers: vec![("application/vnd.oci.image.layer.v1.tar", tar)],
        },
    ])
    .await;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let images = open(directory.path(), &[], &[]);
    for name in ["cncf", "runwasi", "scratch"] {
        let (image, origin) = ensure(
            &images,
            &format!("{address}/{name}:1"),
            Policy::IfNotPresent,
        )
        .await
        .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(matches!(origin, Origin::Pulled(_)));
        assert_eq!(images.bytes(&image).await.expect("bytes"), WASM, "{name}");
    }
}

#[tokio::test]
async fn a_linux_container_points_to_the_mirror_map() {
    install_tls();
    let (address, _) = registry(vec![Artifact {
        name: "nginx",
        config: image_config("linux", "/usr/sbin/nginx"),
        layers: vec![("application/vnd.oci.image.layer.v1.tar+gzip", vec![0; 10])],
    }])
    .await;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let images = open(directory.path(), &[], &[]);
    let error = ensure(&images, &format!("{address}/nginx:1"), Policy::Always)
        .await
        .expect_err("refused");
    let text = error.to_string();
    assert!(
        text.contains("Linux container image (linux/amd64)") && text.contains("--mirror"),
        "{text}"
    );
    let missing = ensure(&images, &format!("{address}/none:1"), Policy::Always)
        .await
        .expect_err("missing");
    assert!(missing.to_string().ends_with("not found"), "{missing}");
}

#[tokio::test]
async fn pulls_of_one_name_at_once_ask_the_registry_once() {
    install_tls();
    let (address, shelf) = registry(vec![Artifact {
        name: "hello",
        config: ("application/vnd.wasm.config.v0+json", b"{}".to_vec()),
        layers: vec![("application/wasm", WASM.to_vec())],
    }])
    .await;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let images = open(directory.path(), &[], &[]);
    let image = format!("{address}/hello:1");
    let pulls = (0..20).map(|_| ensure(&images, &image, Policy::Always));
    for pulled in futures::future::join_all(pulls).await {
        pulled.expect("pulled");
    }
    let blobs = shelf
        .asked
        .lock()
        .expect("not poisoned")
        .iter()
        .filter(|asked| asked.contains("/blobs/"))
        .count();
    assert_eq!(blobs, 1);
    shelf.asked.lock().expect("not poisoned").clear();
    let (_, origin) = ensure(&images, &image, Policy::IfNotPresent)
        .await
        .expect("present");
    assert_eq!(origin, Origin::Present);
    ensure(&images, &image, Policy::Always)
        .await
        .expect("still the same");
    let asked = shelf.asked.lock().expect("not poisoned").clone();
    assert!(
        asked.iter().all(|asked| !asked.contains("/blobs/")),
        "an unchanged image is not fetched again: {asked:?}"
    );
}

#[tokio::test]
async fn a_file_that_is_no_regular_file_or_too_large_is_not_read() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let images = open(directory.path(), &[], &[]);
    let pipe = directory.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("made");
    let huge = directory.path().join("huge.wasm");
    let file = std::fs::File::create(&huge).expect("made");
    file.set_len(LARGEST + 1).expect("sparse");
    let cases = [
        (Path::new("/dev/zero"), "not a regular file"),
        (&pipe, "not a regular file"),
        (&huge, "larger than 512 MiB"),
    ];
    for (path, why) in cases {
        let image = format!("file://{}", path.display());
        let refused = ensure(&images, &image, Policy::Always);
        let refused = tokio::time::timeout(Duration::from_secs(10), refused).await;
        let error = refused.expect("no waiting").expect_err("refused");
        assert!(error.to_string().contains(why), "{error}");
    }
}

#[tokio::test]
async fn a_layer_longer_than_its_manifest_says_is_cut_off() {
    install_tls();
    let wasm = [WASM, &[0; 5000]].concat();
    let manifest = serde_json::json!({"schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.wasm.config.v0+json", "digest": store::digest(b"{}"), "size": 2},
        "layers": [{"mediaType": "application/wasm", "digest": store::digest(&wasm), "size": 100}]});
    let (address, shelf) = registry(vec![Artifact {
        name: "liar",
        config: ("application/vnd.wasm.config.v0+json", b"{}".to_vec()),
        layers: vec![("application/wasm", wasm)],
    }])
    .await;
    drop(shelf);
    let reference = Reference::parse(&format!("{address}/liar:1")).expect("a reference");
    let layers: oci_client::manifest::OciImageManifest =
        serde_json::from_value(manifest).expect("a manifest");
    let error = Registry::new()
        .layer(&reference, &layers.layers[0])
        .await
        .expect_err("refused");
    assert!(matches!(error, registry::Error::TooLarge(_)), "{error}");
}
