//! Certificates asked for through the API: joining, renewing, approving by hand.

use std::time::Duration;

use api::auth::User;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use kube::api::WatchEvent;
use rcgen::{CertificateParams, DnType, KeyPair};
use serde_json::{Value, json};

use crate::support::World;

pub(crate) const CSRS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";

pub(crate) fn csr(name: &str, signer: &str, subject: (&str, &str), dns: &[&str]) -> Value {
    let names: Vec<String> = dns.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("names");
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, subject.1);
    params
        .distinguished_name
        .push(DnType::CommonName, subject.0);
    let key = KeyPair::generate().expect("a key");
    let request = params.serialize_request(&key).expect("a request");
    let usage = if signer.ends_with("serving") {
        "server auth"
    } else {
        "client auth"
    };
    json!({"metadata": {"name": name}, "spec": {
        "request": STANDARD.encode(request.pem().expect("PEM")),
        "signerName": signer, "usages": ["digital signature", usage],
        "username": "system:admin", "groups": ["system:masters"],
    }})
}

/// The request once `done` says so of it.
pub(crate) async fn wait(world: &World, name: &str, done: impl Fn(&Value) -> bool) -> Value {
    use futures::TryStreamExt as _;
    let uri = format!("{CSRS}?watch=1&fieldSelector=metadata.name%3D{name}&timeoutSeconds=20");
    let request = http::Request::get(uri).body(Vec::new()).expect("a request");
    let client = world.client();
    let events = client
        .request_events::<Value>(request)
        .await
        .expect("a watch");
    let mut events = std::pin::pin!(events);
    let wait = async {
        while let Some(event) = events.try_next().await.expect("an event") {
            if let WatchEvent::Added(csr) | WatchEvent::Modified(csr) = event
                && done(&csr)
            {
                return csr;
            }
        }
        panic!("the watch ended");
    };
    tokio::time::timeout(Duration::from_secs(20), wait)
        .await
        .expect("in time")
}

pub(crate) fn signed(csr: &Value) -> bool {
    csr["status"]["certificate"].is_string()
}

fn user_of(csr: &Value) -> User {
    let pem = csr["status"]["certificate"]
        .as_str()
        .expect("a certificate");
    let pem = STANDARD.decode(pem).expect("base 64");
    use rustls_pki_types::pem::PemObject as _;
    let der = rustls_pki_types::CertificateDer::from_pem_slice(&pem).expect("PEM");
    User::from_certificate(&der).expect("names somebody")
}

#[tokio::test]
async fn a_node_joins_by_a_bootstrap_token_and_renews_by_itself() {
    let world = World::start().await;
    let bootstrap = User::authenticated("system:bootstrap:abcdef", &["system:bootstrappers"]);
    let signer = "kubernetes.io/kube-apiserver-client-kubelet";
    let n1 = ("system:node:n1", "system:nodes");
    let ask = csr("join", signer, n1, &[]);
    let made = world
        .ask(&bootstrap, Method::POST, CSRS, Some(&ask))
        .await
        .expect(201)
        .json();
    assert_eq!(
        made["spec"]["username"], "system:bootstrap:abcdef",
        "whatever it says"
    );
    let done = wait(&world, "join", signed).await;
    assert_eq!(done["status"]["conditions"][0]["reason"], "AutoApproved");
    let node = user_of(&done);
    assert_eq!(node.name, "system:node:n1");
    assert_eq!(node.node(), Some("n1"));
    let ask = csr("renew", signer, n1, &[]);
    world
        .ask(&node, Method::POST, CSRS, Some(&ask))
        .await
        .expect(201);
    wait(&world, "renew", signed).await;
    // Its serving certificate, for its name.
    let ask = csr("serve", "kubernetes.io/kubelet-serving", n1, &["n1"]);
    world
        .ask(&node, Method::POST, CSRS, Some(&ask))
        .await
        .expect(201);
    wait(&world, "serve", signed).await;
}

#[tokio::test]
async fn a_users_certificate_waits_for_somebody_who_may_approve() {
    let world = World::start().await;
    let signer = "kubernetes.io/kube-apiserver-client";
    let masters = csr("m", signer, ("eve", "system:masters"), &[]);
    let refused = world.post(CSRS, &masters).await.expect(403);
    assert_eq!(
        refused.message(),
        r#"certificatesigningrequests.certificates.k8s.io "m" is forbidden: use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed"#
    );
    let ask = csr("bob", signer, ("bob", "dev"), &[]);
    let mut made = world.post(CSRS, &ask).await.expect(201).json();
    made["status"]["conditions"] =
        json!([{"type": "Approved", "status": "True", "reason": "KubectlApprove"}]);
    let approval = format!("{CSRS}/bob/approval");
    // May write approvals, but not of this signer.
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let role = json!({"metadata": {"name": "approver"}, "rules": [
        {"verbs": ["update"], "apiGroups": ["certificates.k8s.io"], "resources": ["certificatesigningrequests/approval"]}]});
    world
        .post(&format!("{rbac}/clusterroles"), &role)
        .await
        .expect(201);
    let binding = json!({"metadata": {"name": "approver"}, "subjects": [{"kind": "User", "name": "ann"}],
        "roleRef": {"kind": "ClusterRole", "name": "approver"}});
    world
        .post(&format!("{rbac}/clusterrolebindings"), &binding)
        .await
        .expect(201);
    let ann = User::authenticated("ann", &[]);
    let refused = world
        .ask(&ann, Method::PUT, &approval, Some(&made))
        .await
        .expect(403);
    assert_eq!(
        refused.message(),
        r#"certificatesigningrequests.certificates.k8s.io "bob" is forbidden: user not permitted to approve requests with signerName "kubernetes.io/kube-apiserver-client""#
    );
    let binding = json!({"metadata": {"name": "approver-2"}, "subjects": [{"kind": "User", "name": "ann"}],
        "roleRef": {"kind": "ClusterRole", "name": "system:certificates.k8s.io:kube-apiserver-client-approver"}});
    world
        .post(&format!("{rbac}/clusterrolebindings"), &binding)
        .await
        .expect(201);
    let approved = world
        .ask(&ann, Method::PUT, &approval, Some(&made))
        .await
        .expect(200)
        .json();
    assert!(approved["status"]["conditions"][0]["lastUpdateTime"].is_string());
    let done = wait(&world, "bob", signed).await;
    let user = user_of(&done);
    assert_eq!((&*user.name, &*user.groups[0]), ("bob", "dev"));
}
