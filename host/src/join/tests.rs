//! Joining a real API server over TLS: tokens, certificates, renewal.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Node, Secret};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::core::ObjectMeta;
use serde_json::json;

use super::*;

const PATIENCE: Duration = Duration::from_secs(30);

/// An API server with a token for nodes.
pub(crate) struct Cluster {
    pub(crate) api: api::Handle,
    pub(crate) admin: Client,
    pub(crate) token: String,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let api = api::start(api::Config::in_memory()).await;
        let api = api.expect("the API server starts");
        let admin = Client::new(api.router_as(api::auth::User::admin()), "default");
        let data = BTreeMap::from([
            ("token-id", "abcdef"),
            ("token-secret", "0123456789abcdef"),
            ("usage-bootstrap-authentication", "true"),
            (
                "auth-extra-groups",
                "system:bootstrappers:kubeadm:default-node-token",
            ),
        ]);
        let data = data.into_iter();
        let data = data.map(|(key, value)| (key.to_owned(), ByteString(value.into())));
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some("bootstrap-token-abcdef".to_owned()),
                ..ObjectMeta::default()
            },
            type_: Some("bootstrap.kubernetes.io/token".to_owned()),
            data: Some(data.collect()),
            ..Secret::default()
        };
        let secrets: Api<Secret> = Api::namespaced(admin.clone(), "kube-system");
        let created = secrets.create(&PostParams::default(), &secret).await;
        created.expect("the token is stored");
        let ca = tls::certificates(api.pki().ca_pem().as_bytes(), "CA").expect("a CA");
        let token = format!("{}.abcdef.0123456789abcdef", ca_hash(&ca[0]));
        Self { api, admin, token }
    }

    pub(crate) fn config(&self, name: &str, directory: &Path) -> Config {
        Config {
            servers: vec![self.api.local_addr().into()],
            token: Some(self.token.parse().expect("a token")),
            node_name: name.to_owned(),
            data_dir: directory.to_owned(),
            node_ip: Some([127, 0, 0, 1].into()),
            lifetime: None,
        }
    }
}

async fn in_time(config: Config) -> Result<Joined, Error> {
    let joined = tokio::time::timeout(PATIENCE, join(config)).await;
    joined.expect("joined in time")
}

async fn serves(joined: &Joined) {
    let mut serving = joined.serving.clone();
    let serving = serving.wait_for(|serving| *serving);
    let serving = tokio::time::timeout(PATIENCE, serving).await;
    serving.expect("in time").expect("the renewal runs");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_joins_with_a_token_and_comes_back_without_one() {
    let cluster = Cluster::start().await;
    let directory = tempfile::tempdir().expect("a directory");
    let joined = in_time(cluster.config("n1", directory.path())).await;
    let joined = joined.expect("joined");
    assert!(!*joined.serving.borrow(), "the Node has no address yet");
    let nodes: Api<Node> = Api::all(joined.client());
    let node = Node {
        metadata: ObjectMeta {
            name: Some("n1".to_owned()),
            ..ObjectMeta::default()
        },
        ..Node::default()
    };
    let created = nodes.create(&PostParams::default(), &node).await;
    created.expect("a node makes its own object");
    let status = json!({"status": {"addresses": [
        {"type": "InternalIP", "address": "127.0.0.1"}, {"type": "Hostname", "address": "n1"}]}});
    let (params, patch) = (PatchParams::default(), Patch::Merge(status));
    let patched = nodes.patch_status("n1", &params, &patch).await;
    patched.expect("and writes its status");
    serves(&joined).await;
    for file in ["ca.crt", "kubelet-client.pem", "kubelet-server.pem"] {
        let file = directory.path().join("pki").join(file);
        let mode = std::fs::metadata(&file)
            .expect("written")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{}", file.display());
    }
    joined.shutdown().await;
    let again = Config {
        token: None,
        ..cluster.config("n1", directory.path())
    };
    let joined = in_time(again).await.expect("joined again");
    assert!(*joined.serving.borrow(), "everything is there");
    let nodes: Api<Node> = Api::all(joined.client());
    nodes.get("n1").await.expect("known to the server");
    let other = Config {
        token: None,
        ..cluster.config("n2", directory.path())
    };
    let error = in_time(other).await.err().expect("another node");
    assert!(matches!(error, Error::OtherNode { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_refused_with_what_to_do_next() {
    let cluster = Cluster::start().await;
    let directory = tempfile::tempdir().expect("a directory");
    let with = |token: Option<String>| Config {
        token: token.map(|token| token.parse().expect("a token")),
        ..cluster.config("n1", directory.path())
    };
    let other = format!("{}.abcdef.0123456789abcdef", "0f".repeat(32));
    let text = async |token| {
        in_time(with(token))
            .await
            .err()
            .expect("refused")
            .to_string()
    };
    let error = text(Some(other)).await;
    assert!(error.contains("another cluster"), "{error}");
    let wrong = cluster
        .token
        .replace("0123456789abcdef", "fedcba9876543210");
    let error = text(Some(wrong)).await;
    assert!(error.contains("coracle token create"), "{error}");
    let error = text(None).await;
    assert!(error.contains("coracle token create"), "{error}");
    let nowhere = Config {
        servers: Vec::new(),
        ..with(None)
    };
    let error = in_time(nowhere).await.err().expect("refused");
    assert!(matches!(error, Error::NoServer), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_whose_life_is_nearly_over_is_renewed_while_the_node_runs() {
    let cluster = Cluster::start().await;
    let directory = tempfile::tempdir().expect("a directory");
    let joined = in_time(cluster.config("n1", directory.path())).await;
    joined.expect("joined").shutdown().await;
    let file = directory.path().join("pki/kubelet-client.pem");
    // One that began a while ago and ends in a minute.
    let wanted = request::Wanted {
        role: Role::Client,
        node_name: "n1",
        address: None,
        lifetime: None,
    };
    let (key, csr) = request::make(&wanted).expect("made");
    let (_, csr) = x509_parser::pem::parse_x509_pem(&csr.spec.request.0).expect("PEM");
    let then = now() - Duration::from_secs(940);
    let usages = ["digital signature", "client auth"];
    let lifetime = Duration::from_secs(1000);
    let pki = cluster.api.pki();
    let old = pki
        .sign(&csr.contents, &usages, lifetime, then)
        .expect("signed");
    let old = format!("{old}{}", key.serialize_pem());
    files::write_private(&file, old.as_bytes()).expect("written");
    let config = Config {
        token: None,
        ..cluster.config("n1", directory.path())
    };
    let joined = in_time(config).await.expect("joined");
    let renewed = async {
        loop {
            let pem = std::fs::read_to_string(&file).expect("always there");
            if pem != old {
                return Leaf::read(&file, &pem).expect("a certificate");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let leaf = tokio::time::timeout(PATIENCE, renewed)
        .await
        .expect("renewed");
    assert!(leaf.ends > now() + Duration::from_secs(86_400));
    let nodes: Api<Node> = Api::all(joined.client());
    let missing = nodes.get_opt("n1").await.expect("the new one is good");
    assert!(missing.is_none());
    // Expired, and no token: the message says what to do.
    joined.shutdown().await;
    let then = now() - Duration::from_secs(2000);
    let old = pki
        .sign(&csr.contents, &usages, lifetime, then)
        .expect("signed");
    let old = format!("{old}{}", key.serialize_pem());
    files::write_private(&file, old.as_bytes()).expect("written");
    let config = Config {
        token: None,
        ..cluster.config("n1", directory.path())
    };
    let error = in_time(config).await.err().expect("refused");
    assert!(
        error.to_string().contains("coracle token create"),
        "{error}"
    );
    let config = cluster.config("n1", directory.path());
    in_time(config).await.expect("with a token it joins again");
}

#[test]
fn renewal_is_due_late_in_a_certificates_life() {
    let at = |second| Timestamp::from_second(second).expect("in range");
    let leaf = Leaf {
        common_name: String::new(),
        begins: at(1000),
        ends: at(2000),
        names: Vec::new(),
        addresses: Vec::new(),
    };
    assert_eq!(leaf.renew_at(0.7), at(1700));
    assert_eq!(leaf.renew_at(0.9), at(1900));
    // Too late, and not by retrying: it is said what to do.
    let path = Path::new("/node/pki/client.pem");
    assert!(renew::expired(Role::Client, path, &leaf, at(1999)).is_none());
    assert!(renew::expired(Role::Server, path, &leaf, at(2000)).is_none());
    let error = renew::expired(Role::Client, path, &leaf, at(2000)).expect("it has ended");
    let error = error.to_string();
    assert!(error.contains("coracle token create") && error.contains("/node/pki/client.pem"));
}
