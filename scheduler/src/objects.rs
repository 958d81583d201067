//! The objects as scheduling and controllers watch them: metadata, spec and status with only the fields that are read.
//!
//! Everything is built from k8s-openapi's types except metadata (without `managedFields`, the largest part of most
//! objects) and pods (of which there are the most: decoding and keeping all of a pod would be the main cost of this
//! crate). Never written back: writes are patches and typed new objects.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::apps::v1::{
    DeploymentSpec, DeploymentStatus, ReplicaSetSpec, ReplicaSetStatus,
};
use k8s_openapi::api::certificates::v1::CertificateSigningRequestStatus;
use k8s_openapi::api::coordination::v1::LeaseSpec;
use k8s_openapi::api::core::v1::{
    Affinity, ContainerPort, EndpointSubset, NamespaceSpec, NamespaceStatus, NodeSpec, NodeStatus,
    PodCondition, PodSchedulingGate, ResourceRequirements, ServiceSpec, ServiceStatus, Toleration,
    TopologySpreadConstraint,
};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort};
use k8s_openapi::api::networking::v1::{IngressClassSpec, IngressSpec};
use k8s_openapi::api::policy::v1::{PodDisruptionBudgetSpec, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use serde::Deserialize;
use serde_json::Value;
use types::routing::gateway_api::{
    GatewayClassSpec, GatewaySpec, HttpRouteSpec, ReferenceGrantSpec,
};

/// Namespace (empty for cluster-scoped objects) and name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub namespace: String,
    pub name: String,
}

/// `metadata` without `managedFields`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Meta {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub resource_version: String,
    pub generation: i64,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub owner_references: Vec<OwnerReference>,
    pub finalizers: Vec<String>,
    pub creation_timestamp: Option<Time>,
    pub deletion_timestamp: Option<Time>,
    pub deletion_grace_period_seconds: Option<i64>,
}

/// An object with the parts that are read.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Object<S, T> {
    pub metadata: Meta,
    #[serde(
        default = "S::default",
        bound(deserialize = "S: Default + Deserialize<'de>")
    )]
    pub spec: S,
    #[serde(
        default = "T::default",
        bound(deserialize = "T: Default + Deserialize<'de>")
    )]
    pub status: T,
}

/// A part of an object that is not read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
pub struct Unread {}

pub type Deployment = Object<DeploymentSpec, DeploymentStatus>;
pub type ReplicaSet = Object<ReplicaSetSpec, ReplicaSetStatus>;
pub type Pod = Object<PodSpec, PodStatus>;
pub type Node = Object<NodeSpec, NodeStatus>;
pub type Lease = Object<LeaseSpec, Unread>;
pub type Namespace = Object<NamespaceSpec, NamespaceStatus>;
pub type Service = Object<ServiceSpec, ServiceStatus>;
pub type Budget = Object<PodDisruptionBudgetSpec, PodDisruptionBudgetStatus>;
/// What routes of the outside are made of; their status is compared as it stands.
pub type Ingress = Object<IngressSpec, Value>;
pub type IngressClass = Object<IngressClassSpec, Unread>;
pub type GatewayClass = Object<GatewayClassSpec, Value>;
pub type Gateway = Object<GatewaySpec, Value>;
pub type HttpRoute = Object<HttpRouteSpec, Value>;
pub type ReferenceGrant = Object<ReferenceGrantSpec, Unread>;
/// A CertificateSigningRequest.
pub type Request = Object<Unread, CertificateSigningRequestStatus>;
/// Any object of which only metadata is read.
pub type Metadata = Object<Unread, Unread>;

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    pub node_name: String,
    pub scheduler_name: String,
    pub priority: i32,
    pub preemption_policy: Option<String>,
    pub hostname: String,
    pub subdomain: String,
    pub containers: Vec<Container>,
    pub init_containers: Vec<Container>,
    pub overhead: BTreeMap<String, Quantity>,
    pub resources: Option<ResourceRequirements>,
    pub node_selector: BTreeMap<String, String>,
    pub affinity: Option<Box<Affinity>>,
    pub tolerations: Vec<Toleration>,
    pub topology_spread_constraints: Vec<TopologySpreadConstraint>,
    pub scheduling_gates: Vec<PodSchedulingGate>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    pub ports: Vec<ContainerPort>,
    pub resources: Option<ResourceRequirements>,
    pub restart_policy: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    pub phase: String,
    pub reason: String,
    #[serde(rename = "podIP")]
    pub pod_ip: String,
    pub conditions: Vec<PodCondition>,
    pub container_statuses: Vec<ContainerStatus>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerStatus {
    pub restart_count: i32,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointSlice {
    pub metadata: Meta,
    pub address_type: String,
    pub endpoints: Vec<Endpoint>,
    pub ports: Vec<EndpointPort>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Endpoints {
    pub metadata: Meta,
    pub subsets: Vec<EndpointSubset>,
}

/// What an informer needs to know of an object.
pub trait Watched: serde::de::DeserializeOwned + Clone + Send + Sync + 'static {
    fn meta(&self) -> &Meta;
}

/// Where a kind is served: enough to build URLs, owner references and Events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resource {
    pub api_version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
}

pub const PODS: Resource = core("Pod", "pods");
pub const NODES: Resource = core("Node", "nodes");
pub const SERVICES: Resource = core("Service", "services");
pub const ENDPOINTS: Resource = core("Endpoints", "endpoints");
pub const NAMESPACES: Resource = core("Namespace", "namespaces");
pub const SERVICE_ACCOUNTS: Resource = core("ServiceAccount", "serviceaccounts");
pub const SECRETS: Resource = core("Secret", "secrets");
pub const EVENTS: Resource = core("Event", "events");
pub const DEPLOYMENTS: Resource = apps("Deployment", "deployments");
pub const REPLICA_SETS: Resource = apps("ReplicaSet", "replicasets");
pub const ENDPOINT_SLICES: Resource = Resource {
    api_version: "discovery.k8s.io/v1",
    kind: "EndpointSlice",
    plural: "endpointslices",
};
pub const INGRESSES: Resource = networking("Ingress", "ingresses");
pub const INGRESS_CLASSES: Resource = networking("IngressClass", "ingressclasses");
pub const GATEWAY_CLASSES: Resource = gateway("GatewayClass", "gatewayclasses");
pub const GATEWAYS: Resource = gateway("Gateway", "gateways");
pub const HTTP_ROUTES: Resource = gateway("HTTPRoute", "httproutes");
pub const REFERENCE_GRANTS: Resource = gateway("ReferenceGrant", "referencegrants");
pub const LEASES: Resource = Resource {
    api_version: "coordination.k8s.io/v1",
    kind: "Lease",
    plural: "leases",
};

pub const BUDGETS: Resource = Resource {
    api_version: "policy/v1",
    kind: "PodDisruptionBudget",
    plural: "poddisruptionbudgets",
};

pub const REQUESTS: Resource = Resource {
    api_version: "certificates.k8s.io/v1",
    kind: "CertificateSigningRequest",
    plural: "certificatesigningrequests",
};

const fn core(kind: &'static str, plural: &'static str) -> Resource {
    Resource {
        api_version: "v1",
        kind,
        plural,
    }
}

const fn apps(kind: &'static str, plural: &'static str) -> Resource {
    Resource {
        api_version: "apps/v1",
        kind,
        plural,
    }
}

const fn networking(kind: &'static str, plural: &'static str) -> Resource {
    Resource {
        api_version: "networking.k8s.io/v1",
        kind,
        plural,
    }
}

const fn gateway(kind: &'static str, plural: &'static str) -> Resource {
    Resource {
        api_version: "gateway.networking.k8s.io/v1",
        kind,
        plural,
    }
}

/// The URL of a collection; an empty namespace means all namespaces or a cluster-scoped kind.
pub fn collection_url(api_version: &str, plural: &str, namespace: &str) -> String {
    let root = if api_version.contains('/') {
        "/apis"
    } else {
        "/api"
    };
    if namespace.is_empty() {
        format!("{root}/{api_version}/{plural}")
    } else {
        format!("{root}/{api_version}/namespaces/{namespace}/{plural}")
    }
}

// === impl Key ===

impl Key {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{}", self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

// === impl Meta ===

impl Meta {
    pub fn key(&self) -> Key {
        Key::new(&self.namespace, &self.name)
    }

    /// The store's revision of this version; 0 when the server sent none.
    pub fn revision(&self) -> u64 {
        self.resource_version.parse().unwrap_or(0)
    }

    /// The owner that controls this object.
    pub fn controller(&self) -> Option<&OwnerReference> {
        self.owner_references
            .iter()
            .find(|o| o.controller == Some(true))
    }

    pub fn is_deleting(&self) -> bool {
        self.deletion_timestamp.is_some()
    }

    pub fn created_at(&self) -> i64 {
        self.creation_timestamp
            .as_ref()
            .map_or(0, |t| t.0.as_second())
    }
}

// === impl Resource ===

impl Resource {
    pub fn url(&self, namespace: &str) -> String {
        collection_url(self.api_version, self.plural, namespace)
    }

    /// The reference that makes `owner`, an object of this kind, the controller of another.
    pub fn controller_reference(&self, owner: &Meta) -> OwnerReference {
        OwnerReference {
            api_version: self.api_version.to_owned(),
            kind: self.kind.to_owned(),
            name: owner.name.clone(),
            uid: owner.uid.clone(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }
    }
}

// === impl Object ===

impl<S, T> Watched for Object<S, T>
where
    S: serde::de::DeserializeOwned + Default + Clone + Send + Sync + 'static,
    T: serde::de::DeserializeOwned + Default + Clone + Send + Sync + 'static,
{
    fn meta(&self) -> &Meta {
        &self.metadata
    }
}

impl Watched for EndpointSlice {
    fn meta(&self) -> &Meta {
        &self.metadata
    }
}

impl Watched for Endpoints {
    fn meta(&self) -> &Meta {
        &self.metadata
    }
}

// === impl Pod ===

impl Pod {
    /// Phase `Succeeded` or `Failed`: it will never run again.
    pub fn is_terminal(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }

    /// Neither finished nor being deleted: it counts towards its controller's replicas.
    pub fn is_active(&self) -> bool {
        !self.is_terminal() && !self.metadata.is_deleting()
    }

    pub fn condition(&self, type_: &str) -> Option<&PodCondition> {
        self.status.conditions.iter().find(|c| c.type_ == type_)
    }

    pub fn is_ready(&self) -> bool {
        self.condition("Ready").is_some_and(|c| c.status == "True")
    }

    /// Seconds since the epoch at which it became ready.
    pub fn ready_since(&self) -> Option<i64> {
        let ready = self.condition("Ready").filter(|c| c.status == "True")?;
        Some(
            ready
                .last_transition_time
                .as_ref()
                .map_or(0, |t| t.0.as_second()),
        )
    }

    pub fn containers(&self) -> impl Iterator<Item = &Container> {
        self.spec
            .init_containers
            .iter()
            .chain(&self.spec.containers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_follow_the_groups() {
        assert_eq!(PODS.url("a"), "/api/v1/namespaces/a/pods");
        assert_eq!(NODES.url(""), "/api/v1/nodes");
        assert_eq!(DEPLOYMENTS.url(""), "/apis/apps/v1/deployments");
    }

    #[test]
    fn absent_parts_are_empty_parts() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "a", "managedFields": [{"manager": "x"}]},
            "spec": {"containers": [{"name": "c", "image": "i"}]}
        }))
        .expect("a pod");
        assert_eq!(pod.spec.containers.len(), 1);
        assert!(pod.is_active() && !pod.is_ready());
    }
}
