//! Tells the API where Services listen: `status.loadBalancer`, the annotation with replaced ports, and an Event when a
//! port was replaced. Level-triggered: compares what is with what the latest table shows, and patches the difference.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{LoadBalancerIngress, PortStatus, Service as Object};
use kube::api::{Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client, Resource};
use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::warn;
use types::well_known::ANNOTATION_LISTENERS;

use super::{Listening, Origin};
use crate::network::table::{Key, Service, Table};
use crate::network::vnet::Fabric;

const MANAGER: &str = "coracle-node";
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(1);

/// Reasons of Events and port statuses: users script against them.
const REASON_REPLACED: &str = "PortReplaced";
const REASON_UNAVAILABLE: &str = "PortUnavailable";

/// What the API should say of one Service.
#[derive(Clone, Debug, Default, PartialEq)]
struct Desired {
    /// `None`: leave the status alone.
    ingress: Option<Vec<LoadBalancerIngress>>,
    /// `80=40123,443=40124`
    replaced: Option<String>,
}

/// Runs until the network drains. A failed call is repeated after a second.
pub(super) async fn run(
    client: Client,
    fabric: Arc<Fabric>,
    mut listening: watch::Receiver<Arc<Vec<Listening>>>,
) {
    let mut tables = fabric.services.clone();
    let ip = reachable(fabric.config.service_address);
    let reporter = Reporter {
        controller: MANAGER.to_owned(),
        instance: Some(fabric.config.node_name.clone()),
    };
    let recorder = Recorder::new(client.clone(), reporter);
    // What was written to which version: the table shows our own patch only a little later.
    let mut written: HashMap<Key, (Option<String>, Desired)> = HashMap::new();
    let mut told: HashSet<(Key, u16, String)> = HashSet::new();
    loop {
        let table = Arc::clone(&tables.borrow_and_update());
        let open = Arc::clone(&listening.borrow_and_update());
        written.retain(|key, _| table.get(&key.namespace, &key.name).is_some());
        told.retain(|(key, ..)| table.get(&key.namespace, &key.name).is_some());
        let mut failed = false;
        for (service, desired) in differences(&table, &open, ip) {
            let version = service.object.metadata.resource_version.clone();
            let done = (version, desired);
            if written.get(&service.key) == Some(&done) {
                continue;
            }
            match write(&client, service, &done.1).await {
                Ok(()) => {
                    written.insert(service.key.clone(), done);
                }
                Err(error) => {
                    let (namespace, service) = (&service.key.namespace, &service.key.name);
                    warn!(%namespace, %service, %error, "Write of Service status failed");
                    failed = true;
                }
            }
        }
        tell(&recorder, &table, &open, &mut told).await;
        tokio::select! {
            biased;
            () = fabric.draining.cancelled() => return,
            () = fabric.stop.cancelled() => return,
            changed = tables.changed() => if changed.is_err() { return },
            changed = listening.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY), if failed => {}
        }
    }
}

/// Services whose object does not say what it should. Pure.
fn differences<'a>(
    table: &'a Table,
    open: &[Listening],
    ip: IpAddr,
) -> Vec<(&'a Arc<Service>, Desired)> {
    let mut by_service: HashMap<(&str, &str), Vec<&Listening>> = HashMap::new();
    for listening in open {
        by_service
            .entry((&listening.namespace, &listening.service))
            .or_default()
            .push(listening);
    }
    table
        .services()
        .filter(|service| service.object.metadata.deletion_timestamp.is_none())
        .filter_map(|service| {
            let key = (service.key.namespace.as_str(), service.key.name.as_str());
            let open = by_service.get(&key).map_or(&[][..], Vec::as_slice);
            let desired = desired(&service.object, open, ip)?;
            (desired != current(&service.object, &desired)).then_some((service, desired))
        })
        .collect()
}

/// `None` when nothing is known yet, or the Service is not ours to speak of.
fn desired(object: &Object, open: &[&Listening], ip: IpAddr) -> Option<Desired> {
    let spec = object.spec.as_ref()?;
    let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
    let exposed = matches!(kind, "LoadBalancer" | "NodePort");
    if exposed && open.is_empty() {
        return None;
    }
    let replaced: Vec<String> = open
        .iter()
        .filter(|l| l.problem.is_some())
        .filter_map(|l| Some(format!("{}={}", l.wanted, l.address?.port())))
        .collect();
    let ingress = if kind == "LoadBalancer" {
        if spec.load_balancer_class.is_some() {
            None
        } else {
            Some(ingress(open, ip))
        }
    } else {
        Some(Vec::new())
    };
    Some(Desired {
        ingress,
        replaced: (exposed && !replaced.is_empty()).then(|| replaced.join(",")),
    })
}

fn ingress(open: &[&Listening], ip: IpAddr) -> Vec<LoadBalancerIngress> {
    let balanced: Vec<_> = open
        .iter()
        .filter(|l| l.origin == Origin::LoadBalancer)
        .collect();
    if balanced.iter().all(|l| l.address.is_none()) {
        return Vec::new();
    }
    let status = |l: &Listening| PortStatus {
        error: l.problem.as_ref().map(|_| {
            let reason = l.address.map_or(REASON_UNAVAILABLE, |_| REASON_REPLACED);
            format!("coracle.dev/{reason}")
        }),
        port: i32::from(l.port),
        protocol: l.protocol.to_owned(),
    };
    vec![LoadBalancerIngress {
        hostname: None,
        ip: Some(ip.to_string()),
        ip_mode: Some("Proxy".to_owned()),
        ports: Some(balanced.into_iter().map(|l| status(l)).collect()),
    }]
}

/// What the object says, as far as `desired` speaks of it.
fn current(object: &Object, desired: &Desired) -> Desired {
    let ingress = object
        .status
        .as_ref()
        .and_then(|status| status.load_balancer.as_ref()?.ingress.clone());
    Desired {
        ingress: desired
            .ingress
            .as_ref()
            .map(|_| ingress.unwrap_or_default()),
        replaced: annotation(object).map(str::to_owned),
    }
}

fn annotation(object: &Object) -> Option<&str> {
    let annotations = object.metadata.annotations.as_ref()?;
    annotations.get(ANNOTATION_LISTENERS).map(String::as_str)
}

/// Wanted port → the port it was replaced by, as the object says.
pub(super) fn replaced_ports(object: &Object) -> BTreeMap<u16, u16> {
    annotation(object)
        .unwrap_or_default()
        .split(',')
        .filter_map(|pair| {
            let (wanted, got) = pair.split_once('=')?;
            Some((wanted.parse().ok()?, got.parse().ok()?))
        })
        .collect()
}

async fn write(client: &Client, service: &Service, desired: &Desired) -> Result<(), String> {
    let object = &service.object;
    let api: Api<Object> = Api::namespaced(client.clone(), &service.key.namespace);
    let name = &service.key.name;
    let params = PatchParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PatchParams::default()
    };
    // The uid makes it a conflict when the Service is another one by now.
    let uid = &object.metadata.uid;
    let now = current(object, desired);
    if now.replaced != desired.replaced {
        let annotations = json!({ANNOTATION_LISTENERS: desired.replaced});
        let patch = json!({"metadata": {"uid": uid, "annotations": annotations}});
        call(api.patch(name, &params, &Patch::Merge(patch))).await?;
    }
    if now.ingress != desired.ingress {
        let ingress = match desired.ingress.as_deref() {
            None | Some([]) => Value::Null,
            Some(ingress) => serde_json::to_value(ingress).map_err(|error| error.to_string())?,
        };
        let patch = json!({
            "metadata": {"uid": uid},
            "status": {"loadBalancer": {"ingress": ingress}},
        });
        call(api.patch_status(name, &params, &Patch::Merge(patch))).await?;
    }
    Ok(())
}

async fn call<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<(), String> {
    match tokio::time::timeout(CALL_TIMEOUT, request).await {
        Ok(Ok(_)) => Ok(()),
        // Deleted meanwhile: nothing to say any more.
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {CALL_TIMEOUT:?}")),
    }
}

/// One Event for each problem, once.
async fn tell(
    recorder: &Recorder,
    table: &Table,
    open: &[Listening],
    told: &mut HashSet<(Key, u16, String)>,
) {
    for listening in open {
        let (Some(problem), Some(service)) = (
            &listening.problem,
            table.get(&listening.namespace, &listening.service),
        ) else {
            continue;
        };
        let what = (service.key.clone(), listening.wanted, problem.clone());
        if !told.insert(what) {
            continue;
        }
        let (reason, note) = match listening.address {
            Some(address) => (
                REASON_REPLACED,
                format!(
                    "Listening on {address} instead of port {}: {problem}",
                    listening.wanted
                ),
            ),
            None => (
                REASON_UNAVAILABLE,
                format!("Not listening on port {}: {problem}", listening.wanted),
            ),
        };
        let event = Event {
            type_: EventType::Warning,
            reason: reason.to_owned(),
            note: Some(note),
            action: "Listen".to_owned(),
            secondary: None,
        };
        let about = service.object.object_ref(&());
        let sent = recorder.publish(&event, &about);
        // An Event is a courtesy: the annotation says the same and is repeated until it is written.
        match tokio::time::timeout(CALL_TIMEOUT, sent).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => warn!(%error, "Event was not written"),
            Err(_) => warn!("Event was not written in time"),
        }
    }
}

/// An address clients can use: for "all addresses", the one this machine would talk to others from.
fn reachable(ip: IpAddr) -> IpAddr {
    if !ip.is_unspecified() {
        return ip;
    }
    // Connecting a UDP socket sends nothing; it only asks the routing table.
    let routed = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("192.0.2.1:9")?;
        socket.local_addr()
    });
    routed.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |local| local.ip())
}
