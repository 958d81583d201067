//! What `kubectl explain` prints: the descriptions k8s-openapi carries. Says for each group and version which Rust types
//! are its roots, and nothing else about them; collected when a document is built, then dropped.

use k8s_openapi::schemars::SchemaGenerator;
use k8s_openapi::schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

/// Schemas by definition name, of which only the descriptions are used.
pub(super) struct Descriptions {
    definitions: Map<String, Value>,
}

// === impl Descriptions ===

impl Descriptions {
    /// Of a definition: `io.k8s.api.core.v1.Pod`.
    pub(super) fn definition(&self, name: &str) -> Option<&str> {
        let known = self.definitions.get(name);
        let known = known.and_then(|found| found.get("description")?.as_str());
        known.or_else(|| {
            let (package, kind) = name.rsplit_once('.')?;
            let mut own = GATEWAY_API.iter();
            let found = own.find(|(name, _)| *name == kind)?;
            package
                .starts_with("io.k8s.networking.gateway.")
                .then_some(found.1)
        })
    }

    pub(super) fn field(&self, definition: &str, field: &str) -> Option<&str> {
        let properties = self.definitions.get(definition)?.get("properties")?;
        properties.get(field)?.get("description")?.as_str()
    }
}

/// Of kinds k8s-openapi does not know.
const GATEWAY_API: &[(&str, &str)] = &[
    (
        "Gateway",
        "Gateway represents an instance of service-traffic handling infrastructure: ports and host names that routes attach to.",
    ),
    (
        "GatewayClass",
        "GatewayClass describes a class of Gateways available to the user, and which controller serves them.",
    ),
    (
        "HTTPRoute",
        "HTTPRoute matches HTTP requests by host name, path, header, query parameter or method, changes them, and forwards them to Services.",
    ),
    (
        "ReferenceGrant",
        "ReferenceGrant lets kinds of resources in other namespaces refer to kinds of resources in this one.",
    ),
];

/// Descriptions of everything the kinds of these groups and versions reach.
pub(super) fn of(versions: &[(&str, &str)]) -> Descriptions {
    let mut generator = SchemaSettings::openapi3().into_generator();
    common(&mut generator);
    for version in versions {
        let found = ROOTS.iter().find(|(root, _)| root == version);
        if let Some((_, add)) = found {
            add(&mut generator);
        }
    }
    Descriptions {
        definitions: generator.take_definitions(false),
    }
}

/// A group and version, and what adds its types to a generator.
type Root = ((&'static str, &'static str), fn(&mut SchemaGenerator));

macro_rules! roots {
    ($($group:literal $version:literal $module:path { $($kind:ident)+ })+) => {
        const ROOTS: &[Root] = &[$((($group, $version), |generator| {
            use $module as types;
            $(generator.subschema_for::<types::$kind>();)+
        })),+];
    };
}

fn common(generator: &mut SchemaGenerator) {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1;
    generator.subschema_for::<v1::DeleteOptions>();
    generator.subschema_for::<v1::Status>();
    generator.subschema_for::<v1::APIResourceList>();
    generator.subschema_for::<v1::MicroTime>();
    generator.subschema_for::<k8s_openapi::api::autoscaling::v1::Scale>();
    generator.subschema_for::<k8s_openapi::apimachinery::pkg::util::intstr::IntOrString>();
    generator.subschema_for::<k8s_openapi::apimachinery::pkg::api::resource::Quantity>();
}

roots! {
    "" "v1" k8s_openapi::api::core::v1 {
        Binding ComponentStatus ConfigMap Endpoints Event LimitRange Namespace Node PersistentVolume
        PersistentVolumeClaim Pod PodTemplate ReplicationController ResourceQuota Secret Service ServiceAccount
    }
    "apps" "v1" k8s_openapi::api::apps::v1 {
        ControllerRevision DaemonSet Deployment ReplicaSet StatefulSet
    }
    "batch" "v1" k8s_openapi::api::batch::v1 { CronJob Job }
    "autoscaling" "v1" k8s_openapi::api::autoscaling::v1 { HorizontalPodAutoscaler Scale }
    "autoscaling" "v2" k8s_openapi::api::autoscaling::v2 { HorizontalPodAutoscaler }
    "events.k8s.io" "v1" k8s_openapi::api::events::v1 { Event }
    "authentication.k8s.io" "v1" k8s_openapi::api::authentication::v1 {
        SelfSubjectReview TokenRequest TokenReview
    }
    "authorization.k8s.io" "v1" k8s_openapi::api::authorization::v1 {
        LocalSubjectAccessReview SelfSubjectAccessReview SelfSubjectRulesReview SubjectAccessReview
    }
    "certificates.k8s.io" "v1" k8s_openapi::api::certificates::v1 { CertificateSigningRequest }
    "networking.k8s.io" "v1" k8s_openapi::api::networking::v1 {
        IPAddress Ingress IngressClass NetworkPolicy ServiceCIDR
    }
    "policy" "v1" k8s_openapi::api::policy::v1 { Eviction PodDisruptionBudget }
    "rbac.authorization.k8s.io" "v1" k8s_openapi::api::rbac::v1 {
        ClusterRole ClusterRoleBinding Role RoleBinding
    }
    "storage.k8s.io" "v1" k8s_openapi::api::storage::v1 {
        CSIDriver CSINode CSIStorageCapacity StorageClass VolumeAttachment VolumeAttributesClass
    }
    "admissionregistration.k8s.io" "v1" k8s_openapi::api::admissionregistration::v1 {
        MutatingAdmissionPolicy MutatingAdmissionPolicyBinding MutatingWebhookConfiguration ValidatingAdmissionPolicy
        ValidatingAdmissionPolicyBinding ValidatingWebhookConfiguration
    }
    "apiextensions.k8s.io" "v1" k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 {
        CustomResourceDefinition
    }
    "apiregistration.k8s.io" "v1" k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1 { APIService }
    "scheduling.k8s.io" "v1" k8s_openapi::api::scheduling::v1 { PriorityClass }
    "coordination.k8s.io" "v1" k8s_openapi::api::coordination::v1 { Lease }
    "node.k8s.io" "v1" k8s_openapi::api::node::v1 { RuntimeClass }
    "discovery.k8s.io" "v1" k8s_openapi::api::discovery::v1 { EndpointSlice }
    "resource.k8s.io" "v1" k8s_openapi::api::resource::v1 {
        DeviceClass ResourceClaim ResourceClaimTemplate ResourceSlice
    }
    "flowcontrol.apiserver.k8s.io" "v1" k8s_openapi::api::flowcontrol::v1 { FlowSchema PriorityLevelConfiguration }
}
