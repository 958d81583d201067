//! `exec`, `attach`, `portforward`: a connection of the client's that becomes one of the pod's node. Who may is asked here once
//! more, because a WebSocket begins with a GET; what is said then is between client and node.

use crate::handlers::reply::Reply;
use crate::handlers::{Call, surely};
use crate::kinds::strategy::Door;
use crate::request::{RequestInfo, Target};
use crate::status::Error;
use crate::streams::{self, Wanted};

use super::node;

/// The client's word for a stream, and the kubelet's.
const STREAMS: [(&str, &str); 4] = [
    ("stdin", "input"),
    ("stdout", "output"),
    ("stderr", "error"),
    ("tty", "tty"),
];

pub(super) async fn stream(call: &Call<'_>) -> Result<Reply, Error> {
    may_create(call).await?;
    let registry = call.registry(Door::Main, "", false);
    let stored = registry.find(&call.path.name)?;
    let pod = registry.read(&stored)?;
    let (namespace, name) = (call.namespace(), &call.path.name);
    let query = |key: &str, value: &str| format!("{key}={}", node::escape(value));
    let (path, query) = match &*call.path.subresource {
        "portforward" => {
            let ports = call.query.all("ports").map(|ports| query("port", ports));
            let path = format!("/portForward/{namespace}/{name}");
            (path, ports.collect::<Vec<_>>())
        }
        what => {
            let container = node::container(call, &pod)?;
            let wanted = STREAMS.iter().filter(|(key, _)| call.query.flag(key));
            let streams = wanted.map(|(_, key)| query(key, "1"));
            let command = call.query.all("command");
            let command = command.map(|word| query("command", word));
            let path = format!("/{what}/{namespace}/{name}/{container}");
            (path, streams.chain(command).collect())
        }
    };
    let node = pod.str_at(&["spec", "nodeName"]).unwrap_or_default();
    if node.is_empty() {
        let why = format!("pod {name} does not have a host assigned");
        return Err(Error::bad_request(why));
    }
    let wanted = Wanted::of(call.parts).ok_or_else(|| {
        Error::bad_request("Upgrade request required: a stream needs a connection over HTTP/1.1")
    })?;
    let target = format!("{path}?{}", query.join("&"));
    match streams::open(call.api, node, &target, wanted).await? {
        Ok(reply) => Ok(reply),
        Err(response) => Err(node::refusal(response).await),
    }
}

/// Whoever may only read may not begin a stream by a GET: as upstream since 1.35.
async fn may_create(call: &Call<'_>) -> Result<(), Error> {
    let info = RequestInfo {
        path: call.parts.uri.path().to_owned(),
        target: Target::Resource(call.path.clone()),
        verb: "create",
    };
    surely(call.api, || call.api.access.authorise(call.user, &info)).await
}
