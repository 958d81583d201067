//! What requests to a pod's node have in common: which container is meant, how a value is written into a URL, and what the
//! node's refusal means to the client.

use std::time::Duration;

use http::Response;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use crate::handlers::Call;
use crate::object::Object;
use crate::status::{Error, Reason};

/// As much of a node's error as a client is shown.
const MAX_ERROR: usize = 64 * 1024;
const WAIT_FOR_ERROR: Duration = Duration::from_secs(10);

/// The container asked for, or the only one.
pub(super) fn container(call: &Call<'_>, pod: &Object) -> Result<String, Error> {
    let names = |list: &str| -> Vec<String> {
        pod.list_at(&["spec", list])
            .iter()
            .filter_map(|container| container["name"].as_str())
            .map(str::to_owned)
            .collect()
    };
    let containers = names("containers");
    let init = names("initContainers");
    let ephemeral = names("ephemeralContainers");
    let pod_name = &call.path.name;
    match call.query.first("container").unwrap_or_default() {
        "" => match containers.as_slice() {
            [only] => Ok(only.clone()),
            several => {
                let mut message = format!(
                    "a container name must be specified for pod {pod_name}, choose one of: [{}]",
                    several.join(" ")
                );
                if !init.is_empty() {
                    message.push_str(&format!(
                        " or one of the init containers: [{}]",
                        init.join(" ")
                    ));
                }
                Err(Error::bad_request(message))
            }
        },
        name => {
            let known = [&containers, &init, &ephemeral]
                .iter()
                .any(|list| list.iter().any(|n| n == name));
            if known {
                Ok(name.to_owned())
            } else {
                Err(Error::bad_request(format!(
                    "container {name} is not valid for pod {pod_name}"
                )))
            }
        }
    }
}

/// A node's answer that is no success, in its own words.
pub(super) async fn refusal(response: Response<Incoming>) -> Error {
    let status = response.status();
    let body = http_body_util::Limited::new(response.into_body(), MAX_ERROR);
    let text = match tokio::time::timeout(WAIT_FOR_ERROR, body.collect()).await {
        Ok(Ok(body)) => String::from_utf8_lossy(&body.to_bytes()).trim().to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("the node answered {status} and did not say why in time"),
    };
    let reason = match status.as_u16() {
        400 => Reason::BadRequest,
        403 => Reason::Forbidden,
        404 => Reason::NotFound,
        429 => Reason::TooManyRequests,
        501 => Reason::NotImplemented,
        503 => Reason::ServiceUnavailable,
        _ => Reason::InternalError,
    };
    Error::new(reason, text)
}

pub(super) fn escape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
