//! The network as a whole, with guests that are closures: what they see, what clients outside see. No wasm here.

mod api;
mod calls;
mod claims;
mod datagrams;
mod dns;
mod elsewhere;
mod memory;
mod names;
mod observe;
mod places;
mod policy;
mod rim;
mod sockets;
mod tls;

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

use super::table::{Key, Loads, Service, Slice, Table};
use super::{
    Body, Config, HttpError, HttpHandler, Network, PodIdentity, PodNetwork, Ports, Serving, serve,
};

/// An HTTP guest: a function.
pub(crate) struct Guest<F>(pub(crate) F);

impl<F, R> HttpHandler for Guest<F>
where
    F: Fn(Request<Body>) -> R + Send + Sync + 'static,
    R: Future<Output = Result<Response<Body>, HttpError>> + Send + 'static,
{
    fn handle(
        self: Arc<Self>,
        request: Request<Body>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Body>, HttpError>> + Send>> {
        Box::pin((self.0)(request))
    }
}

pub(crate) fn network() -> Network {
    Network::new(Config::default()).unwrap()
}

pub(crate) fn pod(network: &Network, name: &str) -> Arc<PodNetwork> {
    let identity = PodIdentity {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        ..PodIdentity::default()
    };
    network.attach_pod(identity).unwrap()
}

/// A pod that answers every request with its name, what it was asked and whom for.
pub(crate) fn web(network: &Network, name: &str) -> (Arc<PodNetwork>, Serving) {
    let pod = pod(network, name);
    let name = name.to_owned();
    let guest = Guest(move |request: Request<Body>| {
        let name = name.clone();
        async move {
            let host = request.headers().get("host").cloned();
            let host = host.map_or_else(String::new, |h| h.to_str().unwrap().to_owned());
            let path = request.uri().path().to_owned();
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let body = String::from_utf8_lossy(&body).into_owned();
            let text = format!("{name} {host} {path} {body}");
            Ok(Response::new(serve::full(text.trim_end().to_owned())))
        }
    });
    let serving = pod.serve_http(Ports::All, Arc::new(guest)).unwrap();
    (pod, serving)
}

/// Puts a Service of namespace `shop` into the table, as the index would.
pub(crate) fn publish(
    network: &Network,
    name: &str,
    spec: Value,
    ports: Value,
    pods: &[&PodNetwork],
) {
    let addresses: Vec<String> = pods.iter().map(|pod| pod.address().to_string()).collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    behind(network, ("shop", name), spec, ports, &addresses);
}

/// As [`publish`], for any namespace and any addresses.
pub(crate) fn behind(
    network: &Network,
    (namespace, name): (&str, &str),
    spec: Value,
    ports: Value,
    addresses: &[&str],
) {
    let endpoints: Vec<Value> = addresses
        .iter()
        .map(|address| json!({"addresses": [address]}))
        .collect();
    let metadata = json!({"name": name, "namespace": namespace, "uid": name,
        "labels": {"kubernetes.io/service-name": name}});
    let slice = json!({"addressType": "IPv4", "metadata": metadata, "ports": ports, "endpoints": endpoints});
    let slice = serde_json::from_value(slice).unwrap();
    sliced(network, (namespace, name), spec, &slice);
}

/// As [`behind`], with an EndpointSlice that may say more.
pub(crate) fn sliced(
    network: &Network,
    (namespace, name): (&str, &str),
    spec: Value,
    slice: &EndpointSlice,
) {
    let metadata = json!({"name": name, "namespace": namespace, "uid": name});
    let object = json!({"metadata": metadata, "spec": spec});
    let slice = Slice::parse(slice).unwrap();
    let key = Key {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    };
    let object = Arc::new(serde_json::from_value(object).unwrap());
    network.tables.send_modify(|table| {
        let mut next = Table::clone(table);
        next.complete = true;
        next.insert(Service::build(
            key,
            object,
            &[&slice],
            &mut Loads::new(Arc::clone(&network.fabric.nodes)),
            None,
        ));
        *table = Arc::new(next);
    });
}

/// The Service `hello`, 10.96.0.7:80 → 8080.
pub(crate) fn hello(network: &Network, pods: &[&PodNetwork]) {
    let spec = json!({"clusterIP": "10.96.0.7", "ports": [{"port": 80}]});
    publish(network, "hello", spec, json!([{"port": 8080}]), pods);
}

pub(crate) fn get(uri: &str) -> Request<Body> {
    Request::get(uri).body(serve::empty()).unwrap()
}

pub(crate) fn post(uri: &str, body: &'static str) -> Request<Body> {
    Request::post(uri)
        .body(serve::full(Bytes::from(body)))
        .unwrap()
}

pub(crate) async fn text(response: Response<Body>) -> String {
    let body = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}

pub(crate) async fn ask(from: &PodNetwork, uri: &str) -> Result<String, HttpError> {
    Ok(text(from.http(get(uri)).await?).await)
}
