//! `nodes/NAME/proxy/PATH`: what a node's own endpoint answers: `metrics`, `healthz`, `graph`. Reads only.

use axum::body::Body;
use http::StatusCode;

use crate::handlers::Call;
use crate::handlers::reply::Reply;
use crate::kinds::strategy::Door;
use crate::status::Error;

/// What may be read so. Logs have a subresource of their own, with a check of its own.
const PATHS: [&str; 3] = ["metrics", "healthz", "graph"];

pub(super) async fn proxy(call: &Call<'_>, verb: &'static str) -> Result<Reply, Error> {
    let name = &call.path.name;
    call.registry(Door::Main, "", false).find(name)?;
    if verb != "get" {
        return Err(Error::method_not_allowed());
    }
    let path = call.path.rest.trim_end_matches('/');
    if !PATHS.contains(&path) {
        return Ok(Reply::no_page());
    }
    let response = call
        .api
        .nodes
        .get(call.api, name, &format!("/{path}"), "")
        .await?;
    let kind = match path {
        "graph" => "application/json",
        _ => "text/plain; version=0.0.4; charset=utf-8",
    };
    let status = response.status();
    let mut reply = Reply::stream(kind, Body::new(response.into_body()));
    reply.status = StatusCode::from_u16(status.as_u16()).unwrap_or(StatusCode::BAD_GATEWAY);
    Ok(reply)
}
