//! The engine on real sockets, with guests that are closures.

mod connections;
mod gateways;
mod requests;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::sign::CertifiedKey;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use types::routing::table::Table;
use types::routing::{Key, Secret, World, compile};

use super::{Config, Limits, Live, Shared, certificates, listeners};
use crate::network::tests as guests;
use crate::network::{Network, PodNetwork};

const DEADLINE: Duration = Duration::from_secs(10);

/// A network, the engine on free ports, and the objects it serves.
struct Rig {
    network: Network,
    shared: Arc<Shared>,
    live: watch::Sender<Arc<Live>>,
    world: World,
    certificates: HashMap<Key, Arc<CertifiedKey>>,
}

fn object<T: serde::de::DeserializeOwned>(value: Value) -> Arc<T> {
    Arc::new(serde_json::from_value(value).unwrap())
}

impl Rig {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Config)) -> Self {
        Self::on(guests::network(), change)
    }

    fn on(network: Network, change: impl FnOnce(&mut Config)) -> Self {
        let (live, seen) = watch::channel(Arc::new(Live {
            table: Table::default(),
            certificates: HashMap::new(),
        }));
        let mut config = Config::default();
        config.http.set_port(0);
        config.https.set_port(0);
        change(&mut config);
        let gate = network.gate();
        let shared = Arc::new(Shared {
            gate: gate.clone(),
            config,
            live: seen,
            listening: watch::Sender::new(Arc::default()),
            mirrors: Arc::new(Semaphore::new(1)),
            fallback: certificates::self_signed().unwrap(),
        });
        gate.spawn(listeners::run(Arc::clone(&shared), None));
        let world = World {
            ingress_classes: vec![object(
                json!({"metadata": {"name": "coracle"}, "spec": {"controller": "coracle.dev/ingress"}}),
            )],
            gateway_classes: vec![object(
                json!({"metadata": {"name": "coracle"}, "spec": {"controllerName": "coracle.dev/gateway"}}),
            )],
            ..World::default()
        };
        Self {
            network,
            shared,
            live,
            world,
            certificates: HashMap::new(),
        }
    }

    fn limits(change: impl FnOnce(&mut Limits)) -> Self {
        Self::with(|config| change(&mut config.limits))
    }

    /// A Service of namespace `shop` at port 80.
    fn service(&self, name: &str, pods: &[&PodNetwork]) {
        let spec = json!({"clusterIP": "10.96.0.7", "ports": [{"name": "http", "port": 80}]});
        let ports = json!([{"name": "http", "port": 8080}]);
        guests::publish(&self.network, name, spec, ports, pods);
    }

    /// Everything of `host` to the Service of that name.
    fn ingress(&mut self, host: &str, service: &str, annotations: Value) {
        self.ingress_at(host, "/", service, annotations, Value::Null);
    }

    fn ingress_at(
        &mut self,
        host: &str,
        path: &str,
        service: &str,
        annotations: Value,
        tls: Value,
    ) {
        let name = format!("i{}", self.world.ingresses.len());
        let backend = json!({"service": {"name": service, "port": {"name": "http"}}});
        let paths =
            json!([{"path": path, "pathType": "ImplementationSpecific", "backend": backend}]);
        let annotations: BTreeMap<String, String> = annotations
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, value)| {
                (
                    format!("coracle.dev/{key}"),
                    value.as_str().unwrap().to_owned(),
                )
            })
            .collect();
        self.world.ingresses.push(object(json!({
            "metadata": {"name": name, "namespace": "shop", "annotations": annotations},
            "spec": {"ingressClassName": "coracle", "tls": tls,
                "rules": [{"host": host, "http": {"paths": paths}}]},
        })));
    }

    /// Puts everything in force and says where a port is.
    async fn at(&mut self, port: u16) -> SocketAddr {
        self.world.secrets = self
            .certificates
            .keys()
            .map(|key| (key.clone(), Secret::Good))
            .collect();
        let compiled = compile(&self.world);
        self.live.send_replace(Arc::new(Live {
            table: compiled.table,
            certificates: self.certificates.clone(),
        }));
        let mut listening = self.shared.listening.subscribe();
        let open = listening.wait_for(|all| all.iter().any(|l| l.port == port));
        let open = tokio::time::timeout(DEADLINE, open).await.unwrap().unwrap();
        let found = open.iter().find(|l| l.port == port).unwrap();
        found.address.unwrap()
    }

    async fn http(&mut self) -> SocketAddr {
        self.at(80).await
    }
}

/// Sends bytes and reads until the other end closes.
async fn curl(address: SocketAddr, request: &str) -> String {
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(request.as_bytes()).await.unwrap();
    rest(&mut socket).await
}

async fn rest(socket: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let read = socket.read_to_end(&mut answer);
    // A reset after an answer is no failure.
    drop(tokio::time::timeout(DEADLINE, read).await.unwrap());
    String::from_utf8_lossy(&answer).into_owned()
}

fn get(host: &str, path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
}

fn status(answer: &str) -> &str {
    answer.get(9..12).unwrap_or("none")
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}
