//! Ingress and Gateway on every host: endpoints elsewhere, certificates that are replaced, and where status says they answer.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;

use crate::cluster::{Cluster, NODES, address};
use crate::lab::wait_for;
use crate::{load, shared};

const PLAIN: &str = "plain.example";
const SECURE: &str = "secure.example";
const ROUTED: &str = "routed.example";
const GATEWAY: u16 = 8088;

/// One endpoint, on h2.
const WORKLOADS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: front, labels: {app: web}}
spec: {nodeName: h2, containers: [{name: main, image: coracle.dev/guests/hello-http}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: front}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8000}]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: plain, namespace: front}
spec:
  rules:
  - host: plain.example
    http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {name: http}}}}]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: secure, namespace: front}
spec:
  tls: [{hosts: [secure.example], secretName: secure}]
  rules:
  - host: secure.example
    http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: door, namespace: front}
spec: {gatewayClassName: coracle, listeners: [{name: http, port: 8088, protocol: HTTP}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: routed, namespace: front}
spec:
  parentRefs: [{name: door}]
  hostnames: [routed.example]
  rules: [{backendRefs: [{name: web, port: 80}]}]
";

/// A certificate and its key.
struct Pair {
    certificate: String,
    key: String,
}

impl Pair {
    fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(vec![SECURE.to_owned()]).expect("made");
        Self {
            certificate: made.cert.pem(),
            key: made.signing_key.serialize_pem(),
        }
    }

    /// The Secret `secure`.
    fn put(&self, cluster: &Cluster) {
        let indent = |pem: &str| pem.trim().replace('\n', "\n    ");
        let (certificate, key) = (indent(&self.certificate), indent(&self.key));
        cluster.lab.apply(&format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: secure, namespace: front}}\n\
             type: kubernetes.io/tls\nstringData:\n  tls.crt: |\n    {certificate}\n  tls.key: |\n    {key}\n"
        ));
    }
}

/// A GET that trusts these certificates and no other; and which of them was shown.
fn get_tls(at: SocketAddr, trusted: &[&Pair]) -> io::Result<(usize, u16, String)> {
    let ders: Vec<CertificateDer> = trusted
        .iter()
        .map(|pair| CertificateDer::from_pem_slice(pair.certificate.as_bytes()).expect("PEM"))
        .collect();
    let mut roots = RootCertStore::empty();
    for der in &ders {
        roots.add(der.clone()).expect("a certificate");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the versions are there")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(SECURE).expect("a name");
    let client = ClientConnection::new(Arc::new(config), name).expect("a configuration");
    let patience = Duration::from_secs(10);
    let stream = TcpStream::connect_timeout(&at, patience)?;
    stream.set_read_timeout(Some(patience))?;
    let mut stream = StreamOwned::new(client, stream);
    let (status, body) = shared::http_get(&mut stream, SECURE, "/")?;
    let shown = stream.conn.peer_certificates().unwrap_or_default();
    let which = ders.iter().position(|der| shown.first() == Some(der));
    Ok((which.expect("it was verified"), status, body))
}

pub(crate) fn works(cluster: &Cluster) {
    let (first, second) = (Pair::new(), Pair::new());
    cluster.lab.make_namespace("front", "");
    cluster.lab.apply(WORKLOADS);
    first.put(cluster);
    let in_hub = |work: &(dyn Fn() + Sync)| cluster.lab.inside("hub", work);
    in_hub(&|| {
        for (node, number) in NODES {
            for (port, host) in [(80, PLAIN), (GATEWAY, ROUTED)] {
                let at = address(number, port);
                wait_for(&format!("{host} at {node}"), || {
                    let answer = load::ask(at, host, "/").ok()?;
                    (answer == (200, "Hello World!\n".to_owned())).then_some(())
                });
                let (status, _) = load::ask(at, "elsewhere.example", "/").expect("it answers");
                assert_eq!(status, 404, "nobody's name at {node}:{port}");
            }
            let (status, _) = load::ask(address(number, 80), SECURE, "/").expect("it answers");
            assert_eq!(status, 308, "to https at {node}");
            wait_for(&format!("{SECURE} at {node}"), || {
                let (_, status, body) = get_tls(address(number, 443), &[&first]).ok()?;
                ((status, body.as_str()) == (200, "Hello World!\n")).then_some(())
            });
        }
    });

    // Replaced while it is used: no connection fails, and soon every host shows the new one.
    second.put(cluster);
    in_hub(&|| {
        for (node, number) in NODES {
            wait_for(&format!("the new certificate at {node}"), || {
                let answer = get_tls(address(number, 443), &[&first, &second]);
                let (which, status, _) = answer.expect("one of the two is shown");
                assert_eq!(status, 200, "{node}");
                (which == 1).then_some(())
            });
        }
    });

    passes_policies(cluster);

    for (kind, name) in OBJECTS {
        cluster.lab.wait(
            &format!("the addresses of all hosts in {kind} {name}"),
            &["-n", "front", kind, name],
            |object| {
                let found = addresses(object);
                let has = |number: u8| found.contains(&format!("192.0.2.{number}"));
                NODES.iter().all(|(_, number)| has(*number)).then_some(())
            },
        );
    }
}

/// The endpoint is shut to everybody, then open to what charts call the ingress controller: through the host it is on, and
/// through the others.
fn passes_policies(cluster: &Cluster) {
    let answers = |expected: u16| {
        cluster.lab.inside("hub", || {
            for (node, number) in NODES {
                for (port, host) in [(80, PLAIN), (GATEWAY, ROUTED)] {
                    wait_for(&format!("{expected} for {host} at {node}"), || {
                        let (status, _) = load::ask(address(number, port), host, "/").ok()?;
                        (status == expected).then_some(())
                    });
                }
            }
        });
    };
    let policy = |name: &str, ingress: &str| {
        cluster.lab.apply(&format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: front}}\n\
             spec: {{podSelector: {{}}, policyTypes: [Ingress], ingress: [{ingress}]}}\n"
        ));
    };
    policy("deny", "");
    answers(403);
    policy(
        "controller",
        "{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: ingress-nginx}}}]}",
    );
    answers(200);
    let delete = [
        "delete",
        "-n",
        "front",
        "networkpolicy",
        "deny",
        "controller",
    ];
    cluster.lab.kubectl(&delete);
}

const OBJECTS: [(&str, &str); 3] = [
    ("ingress", "plain"),
    ("ingress", "secure"),
    ("gateway", "door"),
];

/// Where status says it answers.
fn addresses(object: &Value) -> Vec<String> {
    let texts = |path: &str, field: &str| {
        let all = object.pointer(path).and_then(Value::as_array);
        let all = all.into_iter().flatten();
        let texts = all.filter_map(|one| Some(one[field].as_str()?.to_owned()));
        texts.collect::<Vec<_>>()
    };
    let mut found = texts("/status/loadBalancer/ingress", "ip");
    found.extend(texts("/status/addresses", "value"));
    found
}

/// That host is gone: status names the others only, and they serve.
pub(crate) fn leaves_out(cluster: &Cluster, gone: &str) {
    for (kind, name) in OBJECTS {
        cluster.lab.wait(
            &format!("{kind} {name} without {gone}"),
            &["-n", "front", kind, name],
            |object| {
                let found = addresses(object);
                let right = NODES.iter().all(|(node, number)| {
                    found.contains(&format!("192.0.2.{number}")) == (*node != gone)
                });
                right.then_some(())
            },
        );
    }
    cluster.lab.inside("hub", || {
        for (node, number) in NODES.iter().filter(|(node, _)| *node != gone) {
            let answer = load::ask(address(*number, 80), PLAIN, "/");
            assert_eq!(answer, Ok((200, "Hello World!\n".to_owned())), "{node}");
        }
    });
}
