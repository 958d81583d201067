//! `log`: the node's own answer, streamed through. The API server keeps no logs.

use axum::body::Body;

use super::node;
use crate::handlers::Call;
use crate::handlers::reply::Reply;
use crate::kinds::strategy::Door;
use crate::status::{Cause, Error};

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

pub(super) async fn log(call: &Call<'_>) -> Result<Reply, Error> {
    let registry = call.registry(Door::Main, "", false);
    let stored = registry.find(&call.path.name)?;
    let pod = registry.read(&stored)?;
    check(call)?;
    let container = node::container(call, &pod)?;
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
        .map(|(key, value)| format!("{key}={}", node::escape(value)))
        .collect();
    let response = call
        .api
        .nodes
        .get(call.api, node, &path, &query.join("&"))
        .await?;
    if response.status().is_success() {
        let body = Body::new(response.into_body());
        return Ok(Reply::stream("text/plain", body));
    }
    Err(node::refusal(response).await)
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
