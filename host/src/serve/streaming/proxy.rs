//! `/podProxy/http/ADDRESS:PORT/PATH`: any request of the API server's, sent on into the pod network as the node's own, and
//! the answer as it comes; an upgrade too. What could not be sent on is marked, so that nobody takes it for the pod's word.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, Version, header};
use axum::response::{IntoResponse as _, Response};
use http_body_util::BodyExt as _;
use hyper::client::conn::http1;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;
use tokio::time::timeout;
use types::well_known::{HEADER_PROXY_FAILED, PROXY_PATH};

use super::{BEGIN, IDLE, PROXIED, Streaming};
use crate::idle::{Activity, Stalled};
use crate::network::strip_hop_by_hop;

const CONNECT: Duration = Duration::from_secs(10);
/// For a pod to answer, and to take what it is sent.
const ANSWER: Duration = Duration::from_secs(600);

pub(super) async fn proxy(State(streaming): State<Streaming>, request: Request) -> Response {
    match send(&streaming, request).await {
        Ok(response) => response,
        Err((status, why)) => {
            let failed = [(HEADER_PROXY_FAILED, HeaderValue::from_static("true"))];
            (status, failed, why).into_response()
        }
    }
}

type Failed = (StatusCode, String);

async fn send(streaming: &Streaming, mut request: Request) -> Result<Response, Failed> {
    let (address, uri) = target(request.uri()).map_err(|why| (StatusCode::BAD_REQUEST, why))?;
    let failed = |why: String| (StatusCode::SERVICE_UNAVAILABLE, why);
    let place = Arc::clone(&streaming.proxied).try_acquire_owned();
    let place = place.map_err(|_| {
        let why = format!("this node passes on {PROXIED} answers already");
        (StatusCode::TOO_MANY_REQUESTS, why)
    })?;
    let upgrade = wanted(&mut request);
    strip_hop_by_hop(request.headers_mut());
    if let Some((protocol, _)) = &upgrade {
        let headers = request.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, protocol.clone());
    }
    *request.uri_mut() = uri;
    *request.version_mut() = Version::HTTP_11;
    let dialled = timeout(CONNECT, streaming.network.dial(address)).await;
    let stream = match dialled {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(failed(format!("dial tcp {address}: connect: {error}"))),
        Err(_) => return Err(failed(format!("dial tcp {address}: i/o timeout"))),
    };
    let broken = |error: hyper::Error| failed(format!("{address}: {error}"));
    let io = TokioIo::new(stream.into_io());
    let (mut sender, connection) = http1::handshake::<_, Body>(io).await.map_err(broken)?;
    let stop = streaming.stop.clone();
    streaming.tasks.spawn(async move {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            // What went wrong is told by the request or its body.
            _ = connection.with_upgrades() => {}
        }
    });
    let answered = timeout(ANSWER, sender.send_request(request)).await;
    let Ok(answered) = answered else {
        return Err(failed(format!("{address}: no answer within {ANSWER:?}")));
    };
    let mut response = answered.map_err(broken)?;
    // Only we say that.
    response.headers_mut().remove(HEADER_PROXY_FAILED);
    if response.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some((_, client)) = upgrade
    {
        let pod = hyper::upgrade::on(&mut response);
        join(streaming, client, pod)?;
        let (parts, _) = response.into_parts();
        return Ok(Response::from_parts(parts, Body::empty()));
    }
    strip_hop_by_hop(response.headers_mut());
    // The sender must outlive the body, or hyper closes the connection under it.
    Ok(response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            let _held = (&sender, &place);
            frame
        }))
    }))
}

/// Pure: whom the path is for, and what of it is for them.
fn target(uri: &Uri) -> Result<(SocketAddr, Uri), String> {
    let rest = uri.path().strip_prefix(PROXY_PATH).unwrap_or_default();
    let (scheme, rest) = rest.split_once('/').unwrap_or_default();
    if scheme != "http" {
        return Err(format!(
            "{scheme:?} is not spoken by this node as a proxy; http is"
        ));
    }
    let (authority, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    let address = authority
        .parse()
        .map_err(|error| format!("{authority:?}: {error}"))?;
    let path = match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let path: PathAndQuery = path.parse().map_err(|error| format!("{path:?}: {error}"))?;
    Ok((address, Uri::from(path)))
}

/// Takes the wish for an upgrade out of a request.
fn wanted(request: &mut Request) -> Option<(HeaderValue, OnUpgrade)> {
    let asks = |headers: &HeaderMap| {
        let names = headers.get_all(header::CONNECTION).iter();
        let mut names = names
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','));
        names.any(|name| name.trim().eq_ignore_ascii_case("upgrade"))
    };
    if !asks(request.headers()) {
        return None;
    }
    let protocol = request.headers().get(header::UPGRADE)?.clone();
    Some((protocol, request.extensions_mut().remove()?))
}

/// The API server's connection and the pod's become one.
fn join(streaming: &Streaming, client: OnUpgrade, pod: OnUpgrade) -> Result<(), Failed> {
    let slot = Arc::clone(&streaming.slots).try_acquire_owned();
    let slot = slot.map_err(|_| {
        let why = "this node serves as many streams as it may".to_owned();
        (StatusCode::TOO_MANY_REQUESTS, why)
    })?;
    let stop = streaming.stop.clone();
    streaming.tasks.spawn(async move {
        let _slot = slot;
        let both = timeout(BEGIN, async { tokio::try_join!(client, pod) });
        let Ok(Ok((client, pod))) = both.await else {
            return;
        };
        let activity = Arc::new(Activity::new());
        let watched = |io| Stalled::watched(TokioIo::new(io), ANSWER, &activity);
        let (mut client, mut pod) = (watched(client), watched(pod));
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = activity.quiet(IDLE) => {}
            // How it ended is the two ends' business.
            _ = copy_bidirectional(&mut client, &mut pod) => {}
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_an_address_and_what_is_for_it() {
        let read = |text: &str| target(&text.parse().expect("a path"));
        let (address, uri) = read("/podProxy/http/100.64.0.2:8080/a%2Fb/?x=%20").expect("read");
        assert_eq!(address, "100.64.0.2:8080".parse().expect("an address"));
        assert_eq!(uri.to_string(), "/a%2Fb/?x=%20");
        let (address, uri) = read("/podProxy/http/[::1]:80").expect("read");
        assert_eq!((address.port(), uri.to_string().as_str()), (80, "/"));
        for wrong in ["/podProxy/https/100.64.0.2:80/", "/podProxy/http/web:80/"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
