//! Asking a container something, over its own network or by a command beside it: probes and lifecycle hooks. Acts; what an
//! answer means is decided elsewhere.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, ExecAction, HTTPGetAction, LifecycleHandler, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::context::Context;
use super::exec::{Beside, ExecError};
use super::probes::{self, Answer};
use crate::network::{HttpProbe, PodNetwork};

/// A start is held up by its hook until the hook is done or the pod is deleted, as upstream. Nobody waits longer than a day.
pub(super) const POST_START: Duration = Duration::from_secs(24 * 60 * 60);
/// Who asks.
const PROBE: &str = "kube-probe/1.36";
const LIFECYCLE: &str = "kube-lifecycle/1.36";

/// One question of a probe.
pub(super) async fn ask(
    context: &Context,
    network: &PodNetwork,
    container: &Container,
    beside: &Beside,
    probe: &Probe,
) -> Answer {
    let timeout = probes::timeout(probe);
    let answer = |asked: Result<(), String>| match asked {
        Ok(()) => Answer::Well,
        Err(text) => Answer::Badly(text),
    };
    if let Some(get) = &probe.http_get {
        let Some(request) = request(container, get, PROBE) else {
            return Answer::Unknown(no_port(&get.port));
        };
        let asked = context.network.probe_http(network, &request, timeout).await;
        answer(asked.and_then(|response| match response.status {
            200..400 => Ok(()),
            status => Err(format!("HTTP probe failed with statuscode: {status}")),
        }))
    } else if let Some(tcp) = &probe.tcp_socket {
        match port(container, &tcp.port) {
            Some(port) => answer(context.network.probe_tcp(network, port, timeout).await),
            None => Answer::Unknown(no_port(&tcp.port)),
        }
    } else if let Some(action) = &probe.exec {
        match exec(context, beside, action, timeout).await {
            Ok((0, _)) => Answer::Well,
            Ok((_, output)) => Answer::Badly(output),
            Err(error @ ExecError::TimedOut { .. }) => Answer::Badly(error.to_string()),
            // The command did not run: that says nothing of the container.
            Err(error) => Answer::Unknown(error.to_string()),
        }
    } else {
        // Refused when the pod arrived.
        Answer::Unknown("this kind of probe is not supported by this node yet".to_owned())
    }
}

/// A lifecycle hook: a request, a connection, a command or a pause, within `limit`.
pub(super) async fn run(
    context: &Context,
    network: &PodNetwork,
    container: &Container,
    beside: &Beside,
    hook: &LifecycleHandler,
    limit: Duration,
) -> Result<(), String> {
    if let Some(sleep) = &hook.sleep {
        let pause = Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0));
        tokio::time::sleep(pause.min(limit)).await;
        return Ok(());
    }
    if let Some(get) = &hook.http_get {
        let request = request(container, get, LIFECYCLE).ok_or_else(|| no_port(&get.port))?;
        // That there is an answer counts, not what it is.
        let asked = context.network.probe_http(network, &request, limit).await;
        return asked.map(drop);
    }
    if let Some(tcp) = &hook.tcp_socket {
        let port = port(container, &tcp.port).ok_or_else(|| no_port(&tcp.port))?;
        return context.network.probe_tcp(network, port, limit).await;
    }
    if let Some(action) = &hook.exec {
        let command = action.command.iter().flatten();
        let command = command.cloned().collect::<Vec<_>>().join(" ");
        return match exec(context, beside, action, limit).await {
            Ok((0, _)) => Ok(()),
            Ok((code, output)) => Err(format!("command '{command}' exited with {code}: {output}")),
            Err(error) => Err(error.to_string()),
        };
    }
    Err("this kind of hook is not supported by this node yet".to_owned())
}

async fn exec(
    context: &Context,
    beside: &Beside,
    action: &ExecAction,
    limit: Duration,
) -> Result<(i32, String), ExecError> {
    let shelf = context.known.shelf().ok_or(ExecError::NoToolbox {
        what: "a command in a container",
    })?;
    let command = action.command.as_deref().unwrap_or_default();
    shelf.run(beside, command, limit).await
}

/// `None`: there is no such port.
fn request(container: &Container, get: &HTTPGetAction, agent: &str) -> Option<HttpProbe> {
    let port = port(container, &get.port)?;
    let headers = get.http_headers.iter().flatten();
    let mut headers: Vec<(String, String)> = headers
        .map(|header| (header.name.clone(), header.value.clone()))
        .collect();
    for (name, value) in [("User-Agent", agent), ("Accept", "*/*")] {
        if !headers
            .iter()
            .any(|(known, _)| known.eq_ignore_ascii_case(name))
        {
            headers.push((name.to_owned(), value.to_owned()));
        }
    }
    Some(HttpProbe {
        port,
        path: get.path.clone().unwrap_or_else(|| "/".to_owned()),
        host: get.host.clone().filter(|host| !host.is_empty()),
        https: get.scheme.as_deref() == Some("HTTPS"),
        headers,
    })
}

/// A number, or the name of one of the container's ports.
fn port(container: &Container, port: &IntOrString) -> Option<u16> {
    match port {
        IntOrString::Int(number) => u16::try_from(*number).ok().filter(|port| *port > 0),
        IntOrString::String(name) => {
            let named = container
                .ports
                .iter()
                .flatten()
                .find(|port| port.name.as_deref() == Some(name));
            match named {
                Some(port) => u16::try_from(port.container_port).ok(),
                None => name.parse().ok(),
            }
        }
    }
}

fn no_port(port: &IntOrString) -> String {
    match port {
        IntOrString::Int(number) => format!("invalid port number: {number}"),
        IntOrString::String(name) => format!("couldn't find port: {name}"),
    }
}
