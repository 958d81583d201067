//! Rows of the named groups. Data, no code.

use super::{READ_WRITE, row, sub};
use crate::kinds::Kind;
use crate::kinds::Scope::{Cluster, Namespaced};
use crate::kinds::{
    autoscaling, batch, certificate, columns, endpoints, events, extension, lease, networking,
    policy, storage, workload,
};

pub(super) fn apiregistration() -> Vec<Kind> {
    vec![
        row(
            "apiregistration.k8s.io",
            "v1",
            "APIService",
            "apiservices",
            Cluster,
        )
        .strategy(&extension::API_SERVICE)
        .columns(&columns::policy::API_SERVICE)
        .categories(&["api-extensions"])
        .subresources(const { &[sub("status", "", "", "APIService", READ_WRITE)] })
        .unattended(
            "APIService is stored, but requests are not passed on to other API servers yet",
        ),
    ]
}

pub(super) fn apps() -> Vec<Kind> {
    vec![
        row(
            "apps",
            "v1",
            "ControllerRevision",
            "controllerrevisions",
            Namespaced,
        )
        .columns(&columns::workload::CONTROLLER_REVISION)
        .strategy(&workload::CONTROLLER_REVISION),
        row("apps", "v1", "DaemonSet", "daemonsets", Namespaced)
            .columns(&columns::workload::DAEMON_SET)
            .strategy(&workload::DAEMON_SET)
            .short(&["ds"])
            .categories(&["all"])
            .subresources(const { &[sub("status", "", "", "DaemonSet", READ_WRITE)] })
            .unattended("DaemonSet is stored, but no controller makes its pods yet"),
        row("apps", "v1", "Deployment", "deployments", Namespaced)
            .columns(&columns::workload::DEPLOYMENT)
            .strategy(&workload::DEPLOYMENT)
            .short(&["deploy"])
            .categories(&["all"])
            .subresources(
                const {
                    &[
                        sub("scale", "autoscaling", "v1", "Scale", READ_WRITE),
                        sub("status", "", "", "Deployment", READ_WRITE),
                    ]
                },
            ),
        row("apps", "v1", "ReplicaSet", "replicasets", Namespaced)
            .columns(&columns::workload::REPLICA_SET)
            .strategy(&workload::REPLICA_SET)
            .short(&["rs"])
            .categories(&["all"])
            .subresources(
                const {
                    &[
                        sub("scale", "autoscaling", "v1", "Scale", READ_WRITE),
                        sub("status", "", "", "ReplicaSet", READ_WRITE),
                    ]
                },
            ),
        row("apps", "v1", "StatefulSet", "statefulsets", Namespaced)
            .columns(&columns::workload::STATEFUL_SET)
            .strategy(&workload::STATEFUL_SET)
            .short(&["sts"])
            .categories(&["all"])
            .subresources(
                const {
                    &[
                        sub("scale", "autoscaling", "v1", "Scale", READ_WRITE),
                        sub("status", "", "", "StatefulSet", READ_WRITE),
                    ]
                },
            )
            .unattended("StatefulSet is stored, but no controller makes its pods yet"),
    ]
}

pub(super) fn events() -> Vec<Kind> {
    vec![
        row("events.k8s.io", "v1", "Event", "events", Namespaced)
            .columns(&columns::cluster::NEW_EVENT)
            .strategy(&events::NEW_EVENT)
            .stored_as("events", &events::NewEvents)
            .short(&["ev"]),
    ]
}

pub(super) fn authentication() -> Vec<Kind> {
    vec![
        row(
            "authentication.k8s.io",
            "v1",
            "SelfSubjectReview",
            "selfsubjectreviews",
            Cluster,
        )
        .verbs(&["create"]),
        row(
            "authentication.k8s.io",
            "v1",
            "TokenReview",
            "tokenreviews",
            Cluster,
        )
        .verbs(&["create"]),
    ]
}

pub(super) fn authorization() -> Vec<Kind> {
    vec![
        row(
            "authorization.k8s.io",
            "v1",
            "LocalSubjectAccessReview",
            "localsubjectaccessreviews",
            Namespaced,
        )
        .verbs(&["create"]),
        row(
            "authorization.k8s.io",
            "v1",
            "SelfSubjectAccessReview",
            "selfsubjectaccessreviews",
            Cluster,
        )
        .verbs(&["create"]),
        row(
            "authorization.k8s.io",
            "v1",
            "SelfSubjectRulesReview",
            "selfsubjectrulesreviews",
            Cluster,
        )
        .verbs(&["create"]),
        row(
            "authorization.k8s.io",
            "v1",
            "SubjectAccessReview",
            "subjectaccessreviews",
            Cluster,
        )
        .verbs(&["create"]),
    ]
}

pub(super) fn autoscaling() -> Vec<Kind> {
    vec![
        row(
            "autoscaling",
            "v2",
            "HorizontalPodAutoscaler",
            "horizontalpodautoscalers",
            Namespaced,
        )
        .strategy(&autoscaling::HORIZONTAL_POD_AUTOSCALER)
        .columns(&columns::workload::HORIZONTAL_POD_AUTOSCALER)
        .short(&["hpa"])
        .categories(&["all"])
        .subresources(const { &[sub("status", "", "", "HorizontalPodAutoscaler", READ_WRITE)] })
        .unattended("HorizontalPodAutoscaler is stored, but no controller scales its target yet"),
        row(
            "autoscaling",
            "v1",
            "HorizontalPodAutoscaler",
            "horizontalpodautoscalers",
            Namespaced,
        )
        .strategy(&autoscaling::HORIZONTAL_POD_AUTOSCALER_V1)
        .columns(&columns::workload::HORIZONTAL_POD_AUTOSCALER_V1)
        .stored_as(
            "autoscaling/horizontalpodautoscalers",
            &autoscaling::Version1,
        )
        .short(&["hpa"])
        .categories(&["all"])
        .subresources(const { &[sub("status", "", "", "HorizontalPodAutoscaler", READ_WRITE)] })
        .unattended("HorizontalPodAutoscaler is stored, but no controller scales its target yet"),
    ]
}

pub(super) fn batch() -> Vec<Kind> {
    vec![
        row("batch", "v1", "CronJob", "cronjobs", Namespaced)
            .strategy(&batch::CRON_JOB)
            .columns(&columns::workload::CRON_JOB)
            .short(&["cj"])
            .categories(&["all"])
            .subresources(const { &[sub("status", "", "", "CronJob", READ_WRITE)] })
            .unattended("CronJob is stored, but no controller makes its Jobs yet"),
        row("batch", "v1", "Job", "jobs", Namespaced)
            .strategy(&batch::JOB)
            .columns(&columns::workload::JOB)
            .categories(&["all"])
            .subresources(const { &[sub("status", "", "", "Job", READ_WRITE)] })
            .unattended("Job is stored, but no controller makes its pods yet"),
    ]
}

pub(super) fn certificates() -> Vec<Kind> {
    vec![
        row(
            "certificates.k8s.io",
            "v1",
            "CertificateSigningRequest",
            "certificatesigningrequests",
            Cluster,
        )
        .strategy(&certificate::SIGNING_REQUEST)
        .columns(&columns::cluster::CERTIFICATE_SIGNING_REQUEST)
        .short(&["csr"])
        .subresources(
            const {
                &[
                    sub("approval", "", "", "CertificateSigningRequest", READ_WRITE),
                    sub("status", "", "", "CertificateSigningRequest", READ_WRITE),
                ]
            },
        ),
    ]
}

pub(super) fn networking() -> Vec<Kind> {
    vec![
        row("networking.k8s.io", "v1", "IngressClass", "ingressclasses", Cluster).strategy(&networking::INGRESS_CLASS).columns(&columns::network::INGRESS_CLASS),
        row("networking.k8s.io", "v1", "Ingress", "ingresses", Namespaced).strategy(&networking::INGRESS).columns(&columns::network::INGRESS).short(&["ing"]).subresources(const { &[sub("status", "", "", "Ingress", READ_WRITE)] }),
        row("networking.k8s.io", "v1", "IPAddress", "ipaddresses", Cluster).strategy(&networking::IP_ADDRESS).columns(&columns::network::IP_ADDRESS).short(&["ip"]),
        row("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies", Namespaced).strategy(&networking::NETWORK_POLICY).columns(&columns::network::NETWORK_POLICY).short(&["netpol"]),
        row("networking.k8s.io", "v1", "ServiceCIDR", "servicecidrs", Cluster).strategy(&networking::SERVICE_CIDR).columns(&columns::network::SERVICE_CIDR).subresources(const { &[sub("status", "", "", "ServiceCIDR", READ_WRITE)] }).unattended("ServiceCIDR is stored, but service addresses come from the range the server was started with"),
    ]
}

pub(super) fn policy() -> Vec<Kind> {
    vec![
        row(
            "policy",
            "v1",
            "PodDisruptionBudget",
            "poddisruptionbudgets",
            Namespaced,
        )
        .strategy(&policy::POD_DISRUPTION_BUDGET)
        .columns(&columns::workload::POD_DISRUPTION_BUDGET)
        .short(&["pdb"])
        .subresources(const { &[sub("status", "", "", "PodDisruptionBudget", READ_WRITE)] }),
    ]
}

pub(super) fn rbac() -> Vec<Kind> {
    vec![
        row(
            "rbac.authorization.k8s.io",
            "v1",
            "ClusterRoleBinding",
            "clusterrolebindings",
            Cluster,
        )
        .strategy(&policy::CLUSTER_ROLE_BINDING)
        .columns(&columns::policy::ROLE_BINDING),
        row(
            "rbac.authorization.k8s.io",
            "v1",
            "ClusterRole",
            "clusterroles",
            Cluster,
        )
        .strategy(&policy::CLUSTER_ROLE),
        row(
            "rbac.authorization.k8s.io",
            "v1",
            "RoleBinding",
            "rolebindings",
            Namespaced,
        )
        .strategy(&policy::ROLE_BINDING)
        .columns(&columns::policy::ROLE_BINDING),
        row(
            "rbac.authorization.k8s.io",
            "v1",
            "Role",
            "roles",
            Namespaced,
        )
        .strategy(&policy::ROLE),
    ]
}

pub(super) fn storage() -> Vec<Kind> {
    vec![
        row("storage.k8s.io", "v1", "CSIDriver", "csidrivers", Cluster)
            .strategy(&storage::CSI_DRIVER)
            .columns(&columns::storage::CSI_DRIVER)
            .unattended("CSIDriver is stored, but nodes do not speak to CSI drivers"),
        row("storage.k8s.io", "v1", "CSINode", "csinodes", Cluster)
            .strategy(&storage::CSI_NODE)
            .columns(&columns::storage::CSI_NODE)
            .unattended("CSINode is stored, but nodes do not speak to CSI drivers"),
        row(
            "storage.k8s.io",
            "v1",
            "CSIStorageCapacity",
            "csistoragecapacities",
            Namespaced,
        )
        .strategy(&storage::CSI_STORAGE_CAPACITY)
        .columns(&columns::storage::CSI_STORAGE_CAPACITY)
        .unattended("CSIStorageCapacity is stored, but the scheduler does not look at it yet"),
        row(
            "storage.k8s.io",
            "v1",
            "StorageClass",
            "storageclasses",
            Cluster,
        )
        .strategy(&storage::STORAGE_CLASS)
        .columns(&columns::storage::STORAGE_CLASS)
        .short(&["sc"])
        .unattended("StorageClass is stored, but nothing provisions volumes from it yet"),
        row(
            "storage.k8s.io",
            "v1",
            "VolumeAttachment",
            "volumeattachments",
            Cluster,
        )
        .strategy(&storage::VOLUME_ATTACHMENT)
        .columns(&columns::storage::VOLUME_ATTACHMENT)
        .subresources(const { &[sub("status", "", "", "VolumeAttachment", READ_WRITE)] })
        .unattended("VolumeAttachment is stored, but nothing attaches volumes yet"),
        row(
            "storage.k8s.io",
            "v1",
            "VolumeAttributesClass",
            "volumeattributesclasses",
            Cluster,
        )
        .strategy(&storage::VOLUME_ATTRIBUTES_CLASS)
        .columns(&columns::storage::VOLUME_ATTRIBUTES_CLASS)
        .short(&["vac"])
        .unattended("VolumeAttributesClass is stored, but nothing modifies volumes with it yet"),
    ]
}

pub(super) fn admissionregistration() -> Vec<Kind> {
    vec![
        row("admissionregistration.k8s.io", "v1", "MutatingAdmissionPolicy", "mutatingadmissionpolicies", Cluster).strategy(&extension::MUTATING_POLICY).columns(&columns::policy::MUTATING_POLICY).categories(&["api-extensions"]).unattended("MutatingAdmissionPolicy is stored, but admission does not evaluate it yet"),
        row("admissionregistration.k8s.io", "v1", "MutatingAdmissionPolicyBinding", "mutatingadmissionpolicybindings", Cluster).strategy(&extension::POLICY_BINDING).columns(&columns::policy::POLICY_BINDING).categories(&["api-extensions"]).unattended("MutatingAdmissionPolicyBinding is stored, but admission does not evaluate its policy yet"),
        row("admissionregistration.k8s.io", "v1", "MutatingWebhookConfiguration", "mutatingwebhookconfigurations", Cluster).strategy(&extension::MUTATING_WEBHOOKS).columns(&columns::policy::WEBHOOK_CONFIGURATION).categories(&["api-extensions"]).unattended("MutatingWebhookConfiguration is stored, but admission does not call its webhooks yet"),
        row("admissionregistration.k8s.io", "v1", "ValidatingAdmissionPolicy", "validatingadmissionpolicies", Cluster).strategy(&extension::POLICY).columns(&columns::policy::VALIDATING_POLICY).categories(&["api-extensions"]).subresources(const { &[sub("status", "", "", "ValidatingAdmissionPolicy", READ_WRITE)] }).unattended("ValidatingAdmissionPolicy is stored, but admission does not evaluate it yet"),
        row("admissionregistration.k8s.io", "v1", "ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings", Cluster).strategy(&extension::POLICY_BINDING).columns(&columns::policy::POLICY_BINDING).categories(&["api-extensions"]).unattended("ValidatingAdmissionPolicyBinding is stored, but admission does not evaluate its policy yet"),
        row("admissionregistration.k8s.io", "v1", "ValidatingWebhookConfiguration", "validatingwebhookconfigurations", Cluster).strategy(&extension::VALIDATING_WEBHOOKS).columns(&columns::policy::WEBHOOK_CONFIGURATION).categories(&["api-extensions"]).unattended("ValidatingWebhookConfiguration is stored, but admission does not call its webhooks yet"),
    ]
}

pub(super) fn apiextensions() -> Vec<Kind> {
    vec![
        row(
            "apiextensions.k8s.io",
            "v1",
            "CustomResourceDefinition",
            "customresourcedefinitions",
            Cluster,
        )
        .strategy(&extension::CUSTOM_RESOURCE_DEFINITION)
        .short(&["crd", "crds"])
        .categories(&["api-extensions"])
        .subresources(
            const {
                &[sub(
                    "status",
                    "",
                    "",
                    "CustomResourceDefinition",
                    READ_WRITE,
                )]
            },
        )
        .unattended(
            "CustomResourceDefinition is stored, but its custom resources are not served yet",
        ),
    ]
}

pub(super) fn scheduling() -> Vec<Kind> {
    vec![
        row(
            "scheduling.k8s.io",
            "v1",
            "PriorityClass",
            "priorityclasses",
            Cluster,
        )
        .strategy(&policy::PRIORITY_CLASS)
        .columns(&columns::cluster::PRIORITY_CLASS)
        .short(&["pc"]),
    ]
}

pub(super) fn coordination() -> Vec<Kind> {
    vec![
        row("coordination.k8s.io", "v1", "Lease", "leases", Namespaced)
            .columns(&columns::cluster::LEASE)
            .strategy(&lease::LEASE),
    ]
}

pub(super) fn node() -> Vec<Kind> {
    vec![
        row(
            "node.k8s.io",
            "v1",
            "RuntimeClass",
            "runtimeclasses",
            Cluster,
        )
        .strategy(&policy::RUNTIME_CLASS)
        .columns(&columns::cluster::RUNTIME_CLASS)
        .unattended("RuntimeClass is stored, but nodes do not choose a sandbox by it yet"),
    ]
}

pub(super) fn discovery() -> Vec<Kind> {
    vec![
        row(
            "discovery.k8s.io",
            "v1",
            "EndpointSlice",
            "endpointslices",
            Namespaced,
        )
        .columns(&columns::network::ENDPOINT_SLICE)
        .strategy(&endpoints::ENDPOINT_SLICE),
    ]
}

pub(super) fn resource() -> Vec<Kind> {
    vec![
        row(
            "resource.k8s.io",
            "v1",
            "DeviceClass",
            "deviceclasses",
            Cluster,
        )
        .strategy(&extension::DEVICE_CLASS)
        .columns(&columns::NAME_AND_AGE)
        .unattended("DeviceClass is stored, but nothing allocates devices yet"),
        row(
            "resource.k8s.io",
            "v1",
            "ResourceClaim",
            "resourceclaims",
            Namespaced,
        )
        .strategy(&extension::RESOURCE_CLAIM)
        .columns(&columns::policy::RESOURCE_CLAIM)
        .subresources(const { &[sub("status", "", "", "ResourceClaim", READ_WRITE)] })
        .unattended("ResourceClaim is stored, but nothing allocates devices yet"),
        row(
            "resource.k8s.io",
            "v1",
            "ResourceClaimTemplate",
            "resourceclaimtemplates",
            Namespaced,
        )
        .strategy(&extension::RESOURCE_CLAIM_TEMPLATE)
        .columns(&columns::NAME_AND_AGE)
        .unattended("ResourceClaimTemplate is stored, but nothing allocates devices yet"),
        row(
            "resource.k8s.io",
            "v1",
            "ResourceSlice",
            "resourceslices",
            Cluster,
        )
        .strategy(&extension::RESOURCE_SLICE)
        .columns(&columns::policy::RESOURCE_SLICE)
        .unattended("ResourceSlice is stored, but nothing allocates devices yet"),
    ]
}

pub(super) fn flow_control() -> Vec<Kind> {
    vec![
        row(
            "flowcontrol.apiserver.k8s.io",
            "v1",
            "FlowSchema",
            "flowschemas",
            Cluster,
        )
        .strategy(&extension::FLOW_SCHEMA)
        .columns(&columns::policy::FLOW_SCHEMA)
        .subresources(const { &[sub("status", "", "", "FlowSchema", READ_WRITE)] })
        .unattended("FlowSchema is stored, but requests are not sorted by it yet"),
        row(
            "flowcontrol.apiserver.k8s.io",
            "v1",
            "PriorityLevelConfiguration",
            "prioritylevelconfigurations",
            Cluster,
        )
        .strategy(&extension::PRIORITY_LEVEL)
        .columns(&columns::policy::PRIORITY_LEVEL)
        .subresources(
            const {
                &[sub(
                    "status",
                    "",
                    "",
                    "PriorityLevelConfiguration",
                    READ_WRITE,
                )]
            },
        )
        .unattended("PriorityLevelConfiguration is stored, but requests are not limited by it yet"),
    ]
}
