//! What every cluster begins with, and keeps: four namespaces, the Service `default/kubernetes` and where it leads, system
//! PriorityClasses, the ServiceCIDR, the bootstrap roles, a copy of the CA in each namespace, and the forgetting of old Events.
//!
//! All of it goes through the registry like anybody's write, as the user `system:apiserver`.

mod replicas;
mod roles;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use types::error::chain;
use types::well_known::{
    CLASS_CORACLE, DNS_ADDRESS, GATEWAY_CONTROLLER, GATEWAY_GROUP, GROUP_MASTERS,
    INGRESS_CONTROLLER, LABEL_SERVICE_NAME, NAMESPACE_DEFAULT, NAMESPACE_NODE_LEASE,
    NAMESPACE_PUBLIC, NAMESPACE_SYSTEM,
};

use crate::auth::User;
use crate::cache::Interest;
use crate::handlers::{self, Api};
use crate::kinds::Kind;
use crate::kinds::strategy::Door;
use crate::object::Object;
use crate::pki::Pki;
use crate::registry::delete::DeleteOptions;
use crate::registry::{Change, Registry};
use crate::status::{Error, Reason};

pub(crate) use replicas::{Replica, names_of_servers};
pub(crate) use roles::keep_aggregated;

const MANAGER: &str = "kube-apiserver";
const ROOT_CA: &str = "kube-root-ca.crt";
const KUBERNETES: &str = "kubernetes";
const KUBE_DNS: &str = "kube-dns";
/// Events older than this are forgotten…
const EVENT_TTL: Duration = Duration::from_secs(3_600);
/// …by somebody who looks this often.
const REAP_EVERY: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_secs(5);

/// Makes what is missing and corrects where the API itself is found. Before the first request.
pub(crate) async fn place(api: &Api, pki: &Pki, service: Ipv4Addr) -> Result<(), Error> {
    let namespaces = [
        NAMESPACE_DEFAULT,
        NAMESPACE_SYSTEM,
        NAMESPACE_PUBLIC,
        NAMESPACE_NODE_LEASE,
    ];
    // Together, so that they share the store's flushes.
    futures::future::try_join_all(namespaces.map(|name| namespace(api, name, pki))).await?;
    roles::place(api).await?;
    for (name, value, description) in [
        (
            "system-node-critical",
            2_000_001_000,
            "Used for system critical pods that must not be moved from their current node.",
        ),
        (
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
    ] {
        let class = json!({
            "metadata": { "name": name }, "value": value, "description": description,
        });
        ensure(
            api,
            "scheduling.k8s.io",
            "priorityclasses",
            "",
            class,
            false,
        )
        .await?;
    }
    let cidr = api.settings.service_cidr.to_string();
    let range = json!({ "metadata": { "name": KUBERNETES }, "spec": { "cidrs": [cidr] } });
    ensure(api, "networking.k8s.io", "servicecidrs", "", range, false).await?;
    ingress_classes(api).await?;
    dns(api).await;
    service_and_endpoints(api, service).await
}

/// The classes Ingresses and Gateways are served under. Our own is the default one; names that an administrator claims
/// for us, such as `nginx`, are not.
async fn ingress_classes(api: &Api) -> Result<(), Error> {
    let claimed = api.settings.ingress_classes.iter().map(String::as_str);
    for name in std::iter::once(CLASS_CORACLE).chain(claimed) {
        let mut class = json!({
            "metadata": { "name": name },
            "spec": { "controller": INGRESS_CONTROLLER },
        });
        if name == CLASS_CORACLE {
            class["metadata"]["annotations"] =
                json!({ "ingressclass.kubernetes.io/is-default-class": "true" });
        }
        ensure(api, "networking.k8s.io", "ingressclasses", "", class, false).await?;
    }
    let class = json!({
        "metadata": { "name": CLASS_CORACLE },
        "spec": {
            "controllerName": GATEWAY_CONTROLLER,
            "description": "Served by every node of the cluster",
        },
    });
    ensure(api, GATEWAY_GROUP, "gatewayclasses", "", class, false).await
}

/// Every node answers DNS at this address itself: the Service leads nowhere, it keeps the address and gives it the name
/// that users know. A cluster where somebody else has the address does without.
async fn dns(api: &Api) {
    let range = api.settings.service_cidr;
    let address = u32::from(range.network()).checked_add(DNS_ADDRESS);
    let Some(address) = address.map(Ipv4Addr::from).filter(|ip| range.contains(ip)) else {
        return;
    };
    let port = |name: &str, protocol: &str| json!({ "name": name, "protocol": protocol, "port": 53, "targetPort": 53 });
    let labels = json!({ "k8s-app": KUBE_DNS, "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS" });
    let object = json!({
        "metadata": { "name": KUBE_DNS, "labels": labels },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": address.to_string(),
            "clusterIPs": [address.to_string()],
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "sessionAffinity": "None",
            "ports": [port("dns", "UDP"), port("dns-tcp", "TCP")],
        },
    });
    if let Err(error) = ensure(api, "", "services", NAMESPACE_SYSTEM, object, false).await {
        tracing::warn!(%address, error = %chain(&error), "There is no Service kube-system/kube-dns");
    }
}

/// A namespace and what every namespace has. The controller that makes `default` ServiceAccounts would be a moment late
/// for pods that are applied at once.
async fn namespace(api: &Api, name: &str, pki: &Pki) -> Result<(), Error> {
    let object = json!({ "metadata": { "name": name } });
    ensure(api, "", "namespaces", "", object, false).await?;
    let account = json!({ "metadata": { "name": "default" } });
    ensure(api, "", "serviceaccounts", name, account, false).await?;
    root_certificate(api, name, pki.ca_pem()).await
}

async fn service_and_endpoints(api: &Api, service: Ipv4Addr) -> Result<(), Error> {
    let target = api.settings.advertised;
    let object = json!({
        "metadata": { "name": KUBERNETES, "labels": { "component": "apiserver", "provider": KUBERNETES } },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": service.to_string(),
            "clusterIPs": [service.to_string()],
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "sessionAffinity": "None",
            "ports": [{ "name": "https", "protocol": "TCP", "port": 443, "targetPort": target.port() }],
        },
    });
    ensure(api, "", "services", NAMESPACE_DEFAULT, object, false).await?;
    if api.store.is_shared() {
        // Several servers: `replicas` says where they are.
        return Ok(());
    }
    // Differs from Kubernetes: the endpoint may be a loopback address, because that is where this server listens by
    // default and the pods' network leads there.
    let endpoints = json!({
        "metadata": { "name": KUBERNETES, "labels": { "endpointslice.kubernetes.io/skip-mirror": "true" } },
        "subsets": [{
            "addresses": [{ "ip": target.ip().to_string() }],
            "ports": [{ "name": "https", "port": target.port(), "protocol": "TCP" }],
        }],
    });
    ensure(api, "", "endpoints", NAMESPACE_DEFAULT, endpoints, true).await?;
    let slice = json!({
        "metadata": { "name": KUBERNETES, "labels": { (LABEL_SERVICE_NAME): KUBERNETES } },
        "addressType": if target.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": [{ "addresses": [target.ip().to_string()], "conditions": { "ready": true } }],
        "ports": [{ "name": "https", "port": target.port(), "protocol": "TCP" }],
    });
    ensure(
        api,
        "discovery.k8s.io",
        "endpointslices",
        NAMESPACE_DEFAULT,
        slice,
        true,
    )
    .await
}

/// Creates the object; where it exists already, `correct` sets everything but metadata to what is wanted.
async fn ensure(
    api: &Api,
    group: &str,
    plural: &str,
    namespace: &str,
    wanted: Value,
    correct: bool,
) -> Result<(), Error> {
    let kind = api
        .kinds
        .find(group, "v1", plural)
        .ok_or_else(|| Error::internal(format!("there is no kind {plural} to begin with")))?;
    let wanted = Object::new(wanted)
        .map_err(|_| Error::internal(format!("{plural} to begin with must be objects")))?;
    let user = user();
    let mut registry = registry(api, kind, namespace, &user);
    let name = wanted.name().to_owned();
    if registry.find(&name).is_ok() && !correct {
        return Ok(());
    }
    let written = registry
        .update(&name, "update", true, &mut |old| {
            let mut new = match old {
                Some(old) => old.clone(),
                None => wanted.clone(),
            };
            for (key, value) in wanted.map() {
                if key != "metadata" {
                    new.set(&[key], value.clone());
                }
            }
            Ok(Change { new, owned: false })
        })
        .await;
    match written {
        Err(error) if error.reason == Reason::AlreadyExists => Ok(()),
        written => written.map(|_| ()),
    }
}

fn user() -> User {
    User::authenticated("system:apiserver", &[GROUP_MASTERS])
}

fn registry<'a>(api: &'a Api, kind: &'a Kind, namespace: &'a str, user: &'a User) -> Registry<'a> {
    Registry {
        api,
        kind,
        door: Door::Main,
        namespace,
        user,
        manager: MANAGER,
        dry_run: false,
        trusted: true,
        now: handlers::now(),
        warnings: Vec::new(),
    }
}

async fn root_certificate(api: &Api, namespace: &str, ca: &str) -> Result<(), Error> {
    let object = json!({
        "metadata": {
            "name": ROOT_CA,
            "annotations": { "kubernetes.io/description":
                "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters." },
        },
        "data": { "ca.crt": ca },
    });
    ensure(api, "", "configmaps", namespace, object, true).await
}

/// Keeps the CA in every namespace until the server stops: a new namespace gets it, and what is deleted or changed is put
/// back. Level-triggered: an event only says which namespace to look at.
pub(crate) async fn keep_root_certificates(api: Arc<Api>, ca: String) {
    loop {
        let round = watch_root_certificates(&api, &ca);
        tokio::select! {
            biased;
            () = api.stopping.cancelled() => return,
            result = round => if let Err(error) = result {
                tracing::warn!(error = %chain(&error), "Could not keep the CA in every namespace");
            }
        }
        // A slow or broken watch: everything is looked at again.
        tokio::select! {
            biased;
            () = api.stopping.cancelled() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

async fn watch_root_certificates(api: &Api, ca: &str) -> Result<(), Error> {
    let snapshot = api.cache.snapshot("namespaces");
    let after = snapshot.revision;
    let interest = Interest {
        name: Some(Arc::from(ROOT_CA)),
        ..Interest::default()
    };
    let mut namespaces = api.cache.watch("namespaces", after)?;
    let mut copies = api.cache.watch_for("configmaps", after, interest)?;
    for namespace in snapshot.iter() {
        keep_root_certificate(api, &namespace.key.name, ca).await?;
    }
    loop {
        let namespace = tokio::select! {
            event = namespaces.next() => event.map(|event| Arc::clone(&event.object.key.name)),
            event = copies.next() => event.map(|event| Arc::clone(&event.object.key.namespace)),
        };
        let Some(namespace) = namespace else {
            return Ok(());
        };
        keep_root_certificate(api, &namespace, ca).await?;
    }
}

async fn keep_root_certificate(api: &Api, namespace: &str, ca: &str) -> Result<(), Error> {
    let Some(stored) = api.cache.find("namespaces", "", namespace) else {
        return Ok(());
    };
    if stored.index.field("status.phase") == Some("Terminating") {
        return Ok(());
    }
    match root_certificate(api, namespace, ca).await {
        // The namespace went away in between.
        Err(error) if matches!(error.reason, Reason::NotFound | Reason::Forbidden) => Ok(()),
        done => done,
    }
}

/// Deletes Events an hour after they were last written.
pub(crate) async fn reap_events(api: Arc<Api>) {
    let Some(kind) = api.kinds.find("", "v1", "events") else {
        return;
    };
    let user = user();
    loop {
        tokio::select! {
            biased;
            () = api.stopping.cancelled() => return,
            () = tokio::time::sleep(REAP_EVERY) => {}
        }
        for old in api.cache.older_than(&kind.storage, EVENT_TTL) {
            if api.stopping.is_cancelled() {
                return;
            }
            let options = DeleteOptions {
                resource_version: Some(old.revision.to_string()),
                ..DeleteOptions::default()
            };
            let mut registry = registry(&api, kind, &old.key.namespace, &user);
            match registry.delete(&old.key.name, &options).await {
                Ok(_) => {}
                // Written or deleted meanwhile: it is not old any longer.
                Err(error) if matches!(error.reason, Reason::NotFound | Reason::Conflict) => {}
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "Could not forget an old Event");
                    break;
                }
            }
        }
    }
}
