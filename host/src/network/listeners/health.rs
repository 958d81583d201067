//! `healthCheckNodePort`: tells a load balancer whether this node has ready endpoints of a Service, as upstream's proxy
//! does and in its words. Owns nothing; answers from the latest table.

use std::convert::Infallible;
use std::sync::Arc;

use http::header::{CONTENT_TYPE, HeaderName, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::idle::Stalled;
use crate::network::table::{Key, Table};
use crate::network::vnet::Fabric;

const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// Answers one connection until it ends or `closing`.
pub(super) async fn serve(
    fabric: &Arc<Fabric>,
    socket: TcpStream,
    key: &Key,
    closing: CancellationToken,
) {
    let service = service_fn(|_: Request<Incoming>| {
        let answer = answer(&fabric.services.borrow(), key);
        async move { Ok::<_, Infallible>(answer) }
    });
    let patience = fabric.config.limits.header_timeout;
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(patience);
    let io = TokioIo::new(Stalled::new(socket, patience));
    let mut connection = std::pin::pin!(builder.serve_connection(io, service));
    tokio::select! {
        // What fails here is the client's connection.
        _ = connection.as_mut() => return,
        () = closing.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    drop(connection.await);
}

/// 200 while there are local endpoints, else 503; any path.
fn answer(table: &Table, key: &Key) -> Response<Full<Bytes>> {
    let service = table.get(&key.namespace, &key.name);
    let local = service.map_or(0, |service| service.local_ready());
    let body = json!({
        "service": {"namespace": key.namespace, "name": key.name},
        "localEndpoints": local,
        "serviceProxyHealthy": true,
    });
    let body = serde_json::to_vec_pretty(&body).unwrap_or_default();
    let mut response = Response::new(Full::new(Bytes::from(body)));
    if local == 0 {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(WEIGHT, HeaderValue::from(local));
    response
}
