//! `log`: the node's own answer, streamed through. The API server keeps no logs.

use std::time::Duration;

use axum::body::Body;
use http_body_util::BodyExt as _;

use crate::handlers::Call;
use crate::handlers::reply::Reply;
use crate::kinds::strategy::Door;
use crate::object::Object;
use crate::status::{Cause, Error, Reason};

/// Parameters a node understands.
const PASSED: [&str; 8] = [
    "follow",
    "previous",
    "sinceSeconds",
    "sinceTime",
    "timestamps",
    "tailLines",
    "limitBytes",
    "stream",
];
/// As much of a node's error as a client is shown.
const MAX_ERROR: usize = 64 * 1024;
const WAIT_FOR_ERROR: Duration = Duration::from_secs(10);

pub(super) async fn log(call: &Call<'_>) -> Result<Reply, Error> {
    let registry = call.registry(Door::Main, "", false);
    let stored = registry.find(&call.path.name)?;
    let pod = registry.read(&stored)?;
    check(call)?;
    let container = container(call, &pod)?;
    let node = pod.str_at(&["spec", "nodeName"]).unwrap_or_default();
    if node.is_empty() {
        return Ok(Reply::stream("text/plain", Body::empty()));
    }
    let path = format!(
        "/containerLogs/{}/{}/{container}",
        call.namespace(),
        call.path.name
    );
    let query: Vec<String> = call
        .query
        .pairs()
        .iter()
        .filter(|(key, _)| PASSED.contains(&key.as_str()))
        .map(|(key, value)| format!("{key}={}", escape(value)))
        .collect();
    let response = call
        .api
        .nodes
        .get(call.api, node, &path, &query.join("&"))
        .await?;
    let status = response.status();
    if status.is_success() {
        let body = Body::new(response.into_body());
        return Ok(Reply::stream("text/plain", body));
    }
    let body = http_body_util::Limited::new(response.into_body(), MAX_ERROR);
    let text = match tokio::time::timeout(WAIT_FOR_ERROR, body.collect()).await {
        Ok(Ok(body)) => String::from_utf8_lossy(&body.to_bytes()).trim().to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("the node answered {status} and did not say why in time"),
    };
    let reason = match status.as_u16() {
        400 => Reason::BadRequest,
        404 => Reason::NotFound,
        501 => Reason::NotImplemented,
        503 => Reason::ServiceUnavailable,
        _ => Reason::InternalError,
    };
    Err(Error::new(reason, text))
}

/// Numbers that make no sense are refused before the node is asked.
fn check(call: &Call<'_>) -> Result<(), Error> {
    let mut causes = Vec::new();
    for (key, least) in [("tailLines", 0), ("sinceSeconds", 1), ("limitBytes", 1)] {
        if let Some(number) = call.query.integer(key)?
            && number < least
        {
            let why = if least == 0 {
                "must be greater than or equal to 0"
            } else {
                "must be greater than 0"
            };
            causes.push(Cause::invalid(key, &number.into(), why));
        }
    }
    if call.query.has("sinceSeconds") && call.query.has("sinceTime") {
        let why = "at most one of `sinceTime` or `sinceSeconds` may be specified";
        causes.push(Cause::forbidden("", why));
    }
    if causes.is_empty() {
        return Ok(());
    }
    Err(Error::invalid("", "PodLogOptions", &call.path.name, causes))
}

/// The container asked for, or the only one.
fn container(call: &Call<'_>, pod: &Object) -> Result<String, Error> {
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

fn escape(value: &str) -> String {
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
