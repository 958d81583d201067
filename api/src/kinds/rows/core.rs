//! Rows of the core group. Data, no code.

use super::{CREATE, PROXY, READ_WRITE, STREAM, row, sub};
use crate::kinds::Scope::{Cluster, Namespaced};
use crate::kinds::{
    Kind, Subresource, columns, config, endpoints, events, namespace, node, pod, policy, service,
    storage, workload,
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
    let mut rows = bindings_to_nodes();
    rows.extend(volumes_to_services());
    rows
}

fn bindings_to_nodes() -> Vec<Kind> {
    vec![
        row("", "v1", "Binding", "bindings", Namespaced).verbs(&["create"]),
        row("", "v1", "ComponentStatus", "componentstatuses", Cluster)
            .columns(&columns::cluster::COMPONENT_STATUS)
            .verbs(&["get", "list"])
            .short(&["cs"]),
        row("", "v1", "ConfigMap", "configmaps", Namespaced)
            .columns(&columns::cluster::CONFIG_MAP)
            .strategy(&config::CONFIG_MAP)
            .short(&["cm"]),
        row("", "v1", "Endpoints", "endpoints", Namespaced)
            .columns(&columns::network::ENDPOINTS)
            .strategy(&endpoints::ENDPOINTS)
            .short(&["ep"]),
        row("", "v1", "Event", "events", Namespaced)
            .columns(&columns::cluster::EVENT)
            .strategy(&events::EVENT)
            .short(&["ev"]),
        row("", "v1", "LimitRange", "limitranges", Namespaced)
            .strategy(&policy::LIMIT_RANGE)
            .short(&["limits"])
            .unattended("LimitRange is stored, but admission does not apply it yet"),
        row("", "v1", "Namespace", "namespaces", Cluster)
            .columns(&columns::cluster::NAMESPACE)
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
            .columns(&columns::cluster::NODE)
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
    ]
}

fn volumes_to_services() -> Vec<Kind> {
    vec![
        row(
            "",
            "v1",
            "PersistentVolumeClaim",
            "persistentvolumeclaims",
            Namespaced,
        )
        .strategy(&storage::PERSISTENT_VOLUME_CLAIM)
        .columns(&columns::storage::PERSISTENT_VOLUME_CLAIM)
        .short(&["pvc"])
        .subresources(const { &[sub("status", "", "", "PersistentVolumeClaim", READ_WRITE)] })
        .unattended("PersistentVolumeClaim is stored, but no controller binds it yet"),
        row("", "v1", "PersistentVolume", "persistentvolumes", Cluster)
            .strategy(&storage::PERSISTENT_VOLUME)
            .columns(&columns::storage::PERSISTENT_VOLUME)
            .short(&["pv"])
            .subresources(const { &[sub("status", "", "", "PersistentVolume", READ_WRITE)] })
            .unattended("PersistentVolume is stored, but no controller binds it yet"),
        row("", "v1", "Pod", "pods", Namespaced)
            .columns(&columns::pod::POD)
            .strategy(&pod::POD)
            .short(&["po"])
            .categories(&["all"])
            .subresources(POD_SUBRESOURCES),
        row("", "v1", "PodTemplate", "podtemplates", Namespaced)
            .columns(&columns::pod::POD_TEMPLATE)
            .strategy(&workload::POD_TEMPLATE),
        row(
            "",
            "v1",
            "ReplicationController",
            "replicationcontrollers",
            Namespaced,
        )
        .columns(&columns::workload::REPLICATION_CONTROLLER)
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
            .strategy(&policy::RESOURCE_QUOTA)
            .columns(&columns::policy::RESOURCE_QUOTA)
            .short(&["quota"])
            .subresources(const { &[sub("status", "", "", "ResourceQuota", READ_WRITE)] })
            .unattended("ResourceQuota is stored, but admission does not charge against it yet"),
        row("", "v1", "Secret", "secrets", Namespaced)
            .columns(&columns::cluster::SECRET)
            .strategy(&config::SECRET),
        row("", "v1", "ServiceAccount", "serviceaccounts", Namespaced)
            .columns(&columns::NAME_AND_AGE)
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
            .columns(&columns::network::SERVICE)
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
