//! Rows of the core group. Data, no code.

use super::{CREATE, PROXY, READ_WRITE, STREAM, row, sub};
use crate::kinds::Scope::{Cluster, Namespaced};
use crate::kinds::{
    Kind, Subresource, config, endpoints, events, namespace, node, pod, service, workload,
};

const POD_SUBRESOURCES: &[Subresource] = &[
    sub("attach", "", "", "PodAttachOptions", STREAM),
    sub("binding", "", "", "Binding", CREATE),
    sub("ephemeralcontainers", "", "", "Pod", READ_WRITE),
    sub("eviction", "policy", "v1", "Eviction", CREATE),
    sub("exec", "", "", "PodExecOptions", STREAM),
    sub("log", "", "", "Pod", &["get"]),
    sub("portforward", "", "", "PodPortForwardOptions", STREAM),
    sub("proxy", "", "", "PodProxyOptions", PROXY),
    sub("resize", "", "", "Pod", READ_WRITE),
    sub("status", "", "", "Pod", READ_WRITE),
];

pub(super) fn core() -> Vec<Kind> {
    vec![
        row("", "v1", "Binding", "bindings", Namespaced).verbs(&["create"]),
        row("", "v1", "ComponentStatus", "componentstatuses", Cluster)
            .verbs(&["get", "list"])
            .short(&["cs"]),
        row("", "v1", "ConfigMap", "configmaps", Namespaced)
            .strategy(&config::CONFIG_MAP)
            .short(&["cm"]),
        row("", "v1", "Endpoints", "endpoints", Namespaced)
            .strategy(&endpoints::ENDPOINTS)
            .short(&["ep"]),
        row("", "v1", "Event", "events", Namespaced)
            .strategy(&events::EVENT)
            .short(&["ev"]),
        row("", "v1", "LimitRange", "limitranges", Namespaced)
            .short(&["limits"])
            .unattended("LimitRange is stored, but admission does not apply it yet"),
        row("", "v1", "Namespace", "namespaces", Cluster)
            .strategy(&namespace::NAMESPACE)
            .verbs(&[
                "create", "delete", "get", "list", "patch", "update", "watch",
            ])
            .short(&["ns"])
            .subresources(
                const {
                    &[
                        sub("finalize", "", "", "Namespace", &["update"]),
                        sub("status", "", "", "Namespace", READ_WRITE),
                    ]
                },
            ),
        row("", "v1", "Node", "nodes", Cluster)
            .strategy(&node::NODE)
            .short(&["no"])
            .subresources(
                const {
                    &[
                        sub("proxy", "", "", "NodeProxyOptions", PROXY),
                        sub("status", "", "", "Node", READ_WRITE),
                    ]
                },
            ),
        row(
            "",
            "v1",
            "PersistentVolumeClaim",
            "persistentvolumeclaims",
            Namespaced,
        )
        .short(&["pvc"])
        .subresources(const { &[sub("status", "", "", "PersistentVolumeClaim", READ_WRITE)] })
        .unattended("PersistentVolumeClaim is stored, but no controller binds it yet"),
        row("", "v1", "PersistentVolume", "persistentvolumes", Cluster)
            .short(&["pv"])
            .subresources(const { &[sub("status", "", "", "PersistentVolume", READ_WRITE)] })
            .unattended("PersistentVolume is stored, but no controller binds it yet"),
        row("", "v1", "Pod", "pods", Namespaced)
            .strategy(&pod::POD)
            .short(&["po"])
            .categories(&["all"])
            .subresources(POD_SUBRESOURCES),
        row("", "v1", "PodTemplate", "podtemplates", Namespaced).strategy(&workload::POD_TEMPLATE),
        row(
            "",
            "v1",
            "ReplicationController",
            "replicationcontrollers",
            Namespaced,
        )
        .strategy(&workload::REPLICATION_CONTROLLER)
        .short(&["rc"])
        .categories(&["all"])
        .subresources(
            const {
                &[
                    sub("scale", "autoscaling", "v1", "Scale", READ_WRITE),
                    sub("status", "", "", "ReplicationController", READ_WRITE),
                ]
            },
        )
        .unattended("ReplicationController is stored, but no controller makes its pods yet"),
        row("", "v1", "ResourceQuota", "resourcequotas", Namespaced)
            .short(&["quota"])
            .subresources(const { &[sub("status", "", "", "ResourceQuota", READ_WRITE)] })
            .unattended("ResourceQuota is stored, but admission does not charge against it yet"),
        row("", "v1", "Secret", "secrets", Namespaced).strategy(&config::SECRET),
        row("", "v1", "ServiceAccount", "serviceaccounts", Namespaced)
            .strategy(&config::SERVICE_ACCOUNT)
            .short(&["sa"])
            .subresources(
                const {
                    &[sub(
                        "token",
                        "authentication.k8s.io",
                        "v1",
                        "TokenRequest",
                        CREATE,
                    )]
                },
            ),
        row("", "v1", "Service", "services", Namespaced)
            .strategy(&service::SERVICE)
            .short(&["svc"])
            .categories(&["all"])
            .subresources(
                const {
                    &[
                        sub("proxy", "", "", "ServiceProxyOptions", PROXY),
                        sub("status", "", "", "Service", READ_WRITE),
                    ]
                },
            ),
    ]
}
