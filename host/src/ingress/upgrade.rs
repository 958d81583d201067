//! WebSocket and every other `Upgrade`: the request goes to the backend on a connection of its own, and when both ends agree
//! that connection and the client's are joined. Never looks at what flows then.

use std::sync::Arc;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;

use super::serve::Connection;
use crate::idle::{Activity, Stalled};
use crate::network::gate::Target;
use crate::network::{Body, HttpError, SocketError, empty_body, from_wire};

/// What the client wants to become.
pub(super) struct Wanted {
    protocol: HeaderValue,
    client: OnUpgrade,
}

/// Takes the wish out of a request of HTTP/1.1; HTTP/2 has no such thing.
pub(super) fn wanted(request: &mut Request<Incoming>) -> Option<Wanted> {
    Some(Wanted {
        protocol: protocol(request.headers())?,
        client: hyper::upgrade::on(request),
    })
}

/// h2c is HTTP/2 in another way, past whoever looks at requests: where it is offered the request is answered as it stands.
fn protocol(headers: &HeaderMap) -> Option<HeaderValue> {
    let names = |name: HeaderName, wanted: &str| {
        headers.get_all(name).iter().any(|value| {
            let mut names = value.as_bytes().split(|byte| *byte == b',');
            names.any(|name| name.trim_ascii().eq_ignore_ascii_case(wanted.as_bytes()))
        })
    };
    let asks = names(header::CONNECTION, "upgrade") && !names(header::UPGRADE, "h2c");
    headers.get(header::UPGRADE).filter(|_| asks).cloned()
}

/// Asks the backend. 101 joins the two connections; any other answer is passed on.
pub(super) async fn run(
    connection: &Arc<Connection>,
    target: &Target,
    mut request: Request<Body>,
    wanted: Wanted,
) -> Result<Response<Body>, HttpError> {
    let gate = &connection.shared.gate;
    let stream = gate
        .connect(connection.peer, target, connection.local)
        .await
        .map_err(explain)?;
    let failed = |error: hyper::Error| HttpError::Connect(error.to_string());
    let io = TokioIo::new(stream.into_io());
    let (mut sender, served) = hyper::client::conn::http1::handshake(io)
        .await
        .map_err(failed)?;
    gate.spawn(async move {
        // What went wrong is told by the request or its body.
        drop(served.with_upgrades().await);
    });
    let headers = request.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, wanted.protocol);
    let mut response = sender.send_request(request).await.map_err(failed)?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(response.map(|body| hold(body, sender)));
    }
    let backend = hyper::upgrade::on(&mut response);
    join(connection, wanted.client, backend);
    let (parts, _) = response.into_parts();
    Ok(Response::from_parts(parts, empty_body()))
}

/// The sender must outlive the body, or hyper closes the connection under it.
fn hold(body: Incoming, sender: hyper::client::conn::http1::SendRequest<Body>) -> Body {
    from_wire(body)
        .map_frame(move |frame| {
            let _held = &sender;
            frame
        })
        .boxed_unsync()
}

/// Copies both ways in a task of its own, which holds the client's place among the connections.
fn join(connection: &Arc<Connection>, client: OnUpgrade, backend: OnUpgrade) {
    let limits = connection.shared.config.limits;
    let place = connection.shared.gate.place(connection.peer.ip());
    let closing = connection.closing.clone();
    connection.shared.gate.spawn(async move {
        // Without a place both ends are dropped, which closes them.
        let Some(_place) = place else { return };
        let Ok((client, backend)) = tokio::try_join!(client, backend) else {
            return;
        };
        let activity = Arc::new(Activity::new());
        let watched = |io| Stalled::watched(TokioIo::new(io), limits.send, &activity);
        let (mut client, mut backend) = (watched(client), watched(backend));
        tokio::select! {
            biased;
            () = closing.cancelled() => {}
            () = activity.quiet(limits.upgraded) => {}
            // How it ended is the two ends' business.
            _ = copy_bidirectional(&mut client, &mut backend) => {}
        }
    });
}

fn explain(error: SocketError) -> HttpError {
    match error {
        SocketError::Refused | SocketError::Unreachable | SocketError::TooMany => {
            HttpError::NotReached(error.to_string())
        }
        SocketError::Denied => HttpError::Forbidden(error.to_string()),
        SocketError::TimedOut => HttpError::Timeout(error.to_string()),
        other => HttpError::Connect(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_upgrade_becomes_http2() {
        let wanted = |connection: &'static str, upgrades: &[&'static str]| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONNECTION, HeaderValue::from_static(connection));
            for upgrade in upgrades {
                headers.append(header::UPGRADE, HeaderValue::from_static(upgrade));
            }
            protocol(&headers)
        };
        let websocket = Some(HeaderValue::from_static("websocket"));
        assert_eq!(wanted("keep-alive, Upgrade", &["websocket"]), websocket);
        assert_eq!(wanted("keep-alive", &["websocket"]), None);
        for upgrades in [
            &["H2C"][..],
            &["h2c, x"],
            &["x,\th2c"],
            &["websocket", "h2c"],
            &[],
        ] {
            assert_eq!(wanted("upgrade", upgrades), None, "{upgrades:?}");
        }
    }
}
