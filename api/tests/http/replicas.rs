//! Several API servers on one Postgres database, as clients see them; and Secrets at rest.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use api::Config;
use api::auth::User;
use futures::TryStreamExt as _;
use http::Method;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use serde_json::json;
use tokio::time::{Instant, timeout};

use crate::postgres_server::Server;
use crate::support::{Answer, CONFIGMAPS, World, configmap};

const DEADLINE: Duration = Duration::from_secs(30);
const ENDPOINTS: &str = "/api/v1/namespaces/default/endpoints/kubernetes";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?labelSelector=kubernetes.io/service-name=kubernetes";

async fn start(server: &Server, directory: &Path) -> World {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = Config {
        store: server.url().parse().expect("a place"),
        listen: ([127, 0, 0, 1], 0).into(),
        ..Config::at(directory.to_owned())
    };
    let handle = api::start(config).await.expect("starts");
    World { handle }
}

/// A cluster of two servers; `None` where Postgres is not installed.
async fn two() -> Option<(Server, [tempfile::TempDir; 2], World, World)> {
    let server = Server::start(&["fsync=off"])?;
    let directories = [0, 1].map(|_| tempfile::tempdir().expect("a directory"));
    // Both at once, on an empty database.
    let (a, b) = tokio::join!(
        start(&server, directories[0].path()),
        start(&server, directories[1].path())
    );
    Some((server, directories, a, b))
}

fn ports(slices: &Answer) -> Vec<u64> {
    let slices = slices.json();
    let items = slices["items"].as_array().expect("a list");
    let mut ports: Vec<_> = items
        .iter()
        .map(|slice| slice["ports"][0]["port"].as_u64().expect("a port"))
        .collect();
    ports.sort_unstable();
    ports
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_are_one_cluster() {
    let Some((_server, _directories, a, b)) = two().await else {
        return;
    };
    let (first, second) = (a.handle.pki(), b.handle.pki());
    assert_eq!(first.ca_pem(), second.ca_pem());
    assert_eq!(first.service_account_key(), second.service_account_key());

    // What one acknowledged, the other shows, changes and deletes, however soon it is asked.
    for round in 0..10 {
        let name = format!("m{round}");
        let uri = format!("{CONFIGMAPS}/{name}");
        a.post(CONFIGMAPS, &configmap(&name)).await.expect(201);
        b.get(&uri).await.expect(200);
        let listed = a.get(CONFIGMAPS).await.expect(200).json();
        let revision = listed["metadata"]["resourceVersion"].as_str();
        let revision = revision.expect("a revision");
        let again = format!("{CONFIGMAPS}?resourceVersion={revision}&resourceVersionMatch=Exact");
        assert_eq!(
            b.get(&again).await.expect(200).json()["items"],
            listed["items"]
        );
        let patch = json!({ "data": { "a": "2" } });
        b.patch(&uri, "merge", &patch).await.expect(200);
        a.delete(&uri, &json!({})).await.expect(200);
        b.get(&uri).await.expect(404);
        b.post(
            "/api/v1/namespaces",
            &json!({ "metadata": { "name": &name } }),
        )
        .await
        .expect(201);
        let inside = format!("/api/v1/namespaces/{name}/configmaps");
        a.post(&inside, &configmap("x")).await.expect(201);
    }
    // Pages of one list may come from different servers.
    for name in ["p1", "p2", "p3"] {
        b.post(CONFIGMAPS, &configmap(name)).await.expect(201);
    }
    let page = b
        .get(&format!("{CONFIGMAPS}?limit=2"))
        .await
        .expect(200)
        .json();
    let token = page["metadata"]["continue"].as_str().expect("more");
    let rest = a
        .get(&format!("{CONFIGMAPS}?continue={token}&limit=500"))
        .await;
    let count = |list: &serde_json::Value| list["items"].as_array().map_or(0, Vec::len);
    assert_eq!(
        count(&page) + count(&rest.expect(200).json()),
        4,
        "and the CA"
    );
    // Only one of them gets an address.
    let service = |name: &str| json!({ "metadata": { "name": name }, "spec": { "clusterIP": "10.96.0.77", "ports": [{ "port": 80 }] } });
    let services = "/api/v1/namespaces/default/services";
    let (one, two) = (service("one"), service("two"));
    let (one, two) = tokio::join!(a.post(services, &one), b.post(services, &two));
    let mut answers = [one.status.as_u16(), two.status.as_u16()];
    answers.sort_unstable();
    assert_eq!(answers, [201, 422]);
    a.get("/apis/internal").await.expect(404);
    let everything = a.get("/api/v1/secrets").await.expect(200).text;
    assert!(
        !everything.contains("PRIVATE"),
        "the material is nobody's to read"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_server_allows_is_allowed_at_the_other_at_once() {
    let Some((_server, _directories, a, b)) = two().await else {
        return;
    };
    let bindings = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
    for round in 0..10 {
        let name = format!("user-{round}");
        let user = User::authenticated(&name, &[]);
        let binding = json!({
            "metadata": { "name": name },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view" },
            "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name }],
        });
        b.ask(&user, Method::GET, CONFIGMAPS, None)
            .await
            .expect(403);
        a.post(bindings, &binding).await.expect(201);
        b.ask(&user, Method::GET, CONFIGMAPS, None)
            .await
            .expect(200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_leads_to_the_servers_that_are_alive() {
    let Some((_server, _directories, a, b)) = two().await else {
        return;
    };
    let [first, second] = [&a, &b].map(|w| u64::from(w.handle.local_addr().port()));
    let mut both = [first, second];
    both.sort_unstable();
    let begun = Instant::now();
    // Whoever came first learns of the other in its next round.
    while ports(&a.get(SLICES).await.expect(200)) != both {
        assert!(begun.elapsed() < DEADLINE, "both are listed");
        tokio::task::yield_now().await;
    }
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases?labelSelector=apiserver.kubernetes.io/identity=kube-apiserver";
    let leases = b.get(leases).await.expect(200).json();
    assert_eq!(leases["items"].as_array().map(Vec::len), Some(2));
    a.handle.shutdown().await;
    assert_eq!(ports(&b.get(SLICES).await.expect(200)), [second]);
    let endpoints = b.get(ENDPOINTS).await.expect(200).json();
    let subsets = endpoints["subsets"].as_array().expect("subsets");
    assert_eq!(subsets.len(), 1);
    assert_eq!(subsets[0]["ports"][0]["port"], second);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_goes_on_at_the_other_server() {
    let Some((_server, _directories, a, b)) = two().await else {
        return;
    };
    // The kubeconfig of one, and only the address changed: certificates are good at both.
    let client = |url: String| {
        let kubeconfig = Kubeconfig::read_from(a.handle.kubeconfig()).expect("a kubeconfig");
        async move {
            let options = KubeConfigOptions::default();
            let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await;
            let mut config = config.expect("a configuration");
            config.cluster_url = url.parse().expect("a URL");
            Api::<ConfigMap>::default_namespaced(Client::try_from(config).expect("a client"))
        }
    };
    let at_a = client(a.handle.url()).await;
    let at_b = client(b.handle.url()).await;
    let mut seen = Vec::new();
    let follow = async |maps: &Api<ConfigMap>, after: &str, until: &str, seen: &mut Vec<String>| {
        let watching = maps.watch(&WatchParams::default(), after).await;
        let mut watching = Box::pin(watching.expect("a watch"));
        let mut revision = after.to_owned();
        while let Ok(Some(event)) = timeout(DEADLINE, watching.try_next())
            .await
            .expect("in time")
        {
            if let WatchEvent::Added(map) = event {
                let name = map.metadata.name.expect("a name");
                revision = map.metadata.resource_version.expect("a revision");
                seen.push(name.clone());
                if name == until {
                    break;
                }
            }
        }
        revision
    };
    for name in ["1", "2"] {
        b.post(CONFIGMAPS, &configmap(name)).await.expect(201);
    }
    let revision = follow(&at_a, "0", "2", &mut seen).await;
    b.post(CONFIGMAPS, &configmap("3")).await.expect(201);
    a.handle.shutdown().await;
    b.post(CONFIGMAPS, &configmap("4")).await.expect(201);
    follow(&at_b, &revision, "4", &mut seen).await;
    seen.retain(|name| name != "kube-root-ca.crt");
    assert_eq!(seen, ["1", "2", "3", "4"], "nothing twice, nothing missed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_the_database_fails_no_request() {
    let Some((mut server, _directories, a, b)) = two().await else {
        return;
    };
    let working = async |world: &World, who: &str, rounds: usize| {
        for round in 0..rounds {
            let name = format!("{who}-{round}");
            world.post(CONFIGMAPS, &configmap(&name)).await.expect(201);
            let uri = format!("{CONFIGMAPS}/{name}");
            world.get(&uri).await.expect(200);
        }
    };
    working(&a, "before", 5).await;
    let crash = tokio::task::spawn_blocking(move || {
        server.crash();
        server
    });
    let (server, (), ()) = tokio::join!(crash, working(&a, "a", 60), working(&b, "b", 60));
    working(&b, "after", 5).await;
    a.get("/readyz").await.expect(200);
    drop(server);
}

#[tokio::test]
async fn secrets_are_sealed_when_there_is_a_key() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let directory = tempfile::tempdir().expect("a directory");
    let keys = directory.path().join("keys");
    let write = |mode: u32, line: &str| {
        drop(std::fs::remove_file(&keys));
        let mut options = std::fs::OpenOptions::new();
        let file = options.write(true).create_new(true).mode(mode).open(&keys);
        std::io::Write::write_all(&mut file.expect("a file"), line.as_bytes()).expect("written");
    };
    let config = Config {
        encryption_keys: Some(keys.clone()),
        ..Config::at(directory.path().to_owned())
    };
    write(0o600, "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\n");
    let handle = api::start(config.clone()).await.expect("starts");
    let world = World { handle };
    let secret = json!({ "metadata": { "name": "s" }, "stringData": { "k": "correct-horse" } });
    let secrets = "/api/v1/namespaces/default/secrets";
    world.post(secrets, &secret).await.expect(201);
    let read = world
        .send(Method::GET, &format!("{secrets}/s"), "", "")
        .await;
    assert_eq!(read.expect(200).json()["data"]["k"], "Y29ycmVjdC1ob3JzZQ==");
    world.handle.shutdown().await;
    let file = std::fs::read(directory.path().join("state.db")).expect("there");
    let found = |text: &[u8]| file.windows(text.len()).any(|window| window == text);
    assert!(!found(b"Y29ycmVjdC1ob3JzZQ==") && !found(b"correct-horse"));
    assert!(found(b"kube-root-ca.crt"), "the search works");

    write(0o644, "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\n");
    let error = api::start(config.clone()).await.err().expect("refused");
    assert!(matches!(error, api::server::Error::Keys(_)), "{error:?}");
    write(0o600, "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=\n");
    let error = api::start(config).await.err().expect("refused");
    let source = std::error::Error::source(&error).expect("the store says why");
    let said = source.to_string();
    assert!(
        said.contains("1 stored states of objects (such as secrets/default/s) are sealed"),
        "{said}"
    );
}

/// Is the text in any file of the directory?
fn is_in_files(directory: &Path, text: &str) -> bool {
    let files = std::fs::read_dir(directory).expect("there").flatten();
    let files = files.filter(|file| file.file_name().to_string_lossy().starts_with("state.db"));
    files.into_iter().any(|file| {
        let bytes = std::fs::read(file.path()).expect("a file");
        bytes.windows(text.len()).any(|w| w == text.as_bytes())
    })
}

/// Is the text in any value of the tables?
async fn is_in_tables(server: &Server, text: &str) -> bool {
    use sqlx::{Connection as _, Executor as _, Row as _};
    let mut admin = sqlx::PgConnection::connect(&server.admin_url())
        .await
        .expect("connected");
    let rows = "SELECT value FROM coracle.objects \
        UNION ALL SELECT previous FROM coracle.history WHERE previous IS NOT NULL \
        UNION ALL SELECT last FROM coracle.history WHERE last IS NOT NULL";
    let rows = admin.fetch_all(rows).await.expect("rows");
    rows.iter().any(|row| {
        let bytes: Vec<u8> = row.get(0);
        bytes.windows(text.len()).any(|w| w == text.as_bytes())
    })
}

const SECRETS: &str = "/api/v1/namespaces/default/secrets";
/// `correct-horse`, as the API writes it.
const ENCODED: &str = "Y29ycmVjdC1ob3JzZQ==";

/// Starts with these keys (each a byte), lets `then` look, and stops.
async fn with_keys<T>(config: &Config, keys: &[u8], then: impl AsyncFnOnce(&World) -> T) -> T {
    let path = config.data_dir.as_ref().expect("a directory").join("keys");
    drop(std::fs::remove_file(&path));
    let lines = keys.iter().map(|key| match key {
        1 => "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\n",
        _ => "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=\n",
    });
    let mut file = std::fs::OpenOptions::new();
    let file = file.write(true).create_new(true).mode(0o600).open(&path);
    let lines: String = lines.collect();
    std::io::Write::write_all(&mut file.expect("a file"), lines.as_bytes()).expect("written");
    let config = Config {
        encryption_keys: (!keys.is_empty()).then_some(path),
        ..config.clone()
    };
    let handle = api::start(config).await.expect("starts");
    let world = World { handle };
    let told = then(&world).await;
    world.handle.shutdown().await;
    told
}

async fn the_secret(world: &World) -> String {
    let read = world.get(&format!("{SECRETS}/s")).await.expect(200).json();
    read["data"]["k"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_given_later_seals_what_is_there_and_can_be_changed() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let secret = json!({ "metadata": { "name": "s" }, "stringData": { "k": "correct-horse" } });
    let directory = tempfile::tempdir().expect("a directory");
    let mut stores = vec![(Config::at(directory.path().to_owned()), None)];
    if let Some(server) = Server::start(&["fsync=off"]) {
        let config = Config {
            store: server.url().parse().expect("a place"),
            listen: ([127, 0, 0, 1], 0).into(),
            ..Config::at(directory.path().join("shared"))
        };
        std::fs::create_dir(directory.path().join("shared")).expect("made");
        stores.push((config, Some(server)));
    }
    for (config, server) in &stores {
        let found = async |text: &str| match server {
            Some(server) => is_in_tables(server, text).await,
            None => is_in_files(directory.path(), text),
        };
        let create = async |world: &World| {
            world.post(SECRETS, &secret).await.expect(201);
            world.handle.pki().ca_pem().to_owned()
        };
        let authority = with_keys(config, &[], create).await;
        assert!(found(ENCODED).await);
        // Of one server the authority is in files of its own.
        assert_eq!(found("PRIVATE KEY").await, server.is_some());
        for keys in [&[1][..], &[2, 1], &[2]] {
            let read = with_keys(config, keys, async |world: &World| {
                let same = world.handle.pki().ca_pem() == authority;
                (the_secret(world).await, same)
            });
            assert_eq!(read.await, (ENCODED.to_owned(), true), "{keys:?}");
            assert!(!found(ENCODED).await, "{keys:?}");
            assert!(!found("PRIVATE KEY").await, "{keys:?}");
        }
    }
}
