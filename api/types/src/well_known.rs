//! Names with a meaning: labels, annotations, taints, reasons, field managers and ports that more than one part uses.
//! Never holds a name only one file needs.

/// The Kubernetes minor version this cluster speaks.
pub const KUBERNETES_MAJOR: &str = "1";
pub const KUBERNETES_MINOR: &str = "36";
/// `gitVersion` of `/version` and `kubeletVersion` of nodes.
pub const GIT_VERSION: &str = concat!("v1.36.2+coracle.", env!("CARGO_PKG_VERSION"));

/// Present on every node of ours, value `wasm`: a selector for workloads that need a Wasm runtime.
pub const LABEL_RUNTIME: &str = "coracle.dev/runtime";
pub const RUNTIME_WASM: &str = "wasm";

/// Pod annotation: how many requests one instance of an HTTP component may answer (`1` is a fresh instance per request).
pub const ANNOTATION_REUSE: &str = "coracle.dev/instance-reuse";
/// Service annotation, written by a controller: the real ports listeners got, `80=40123` or, where there are several nodes,
/// `80=40123@node-a`, when the wanted one could not be bound. On a Node, written by the node: `types::listeners::Report`.
pub const ANNOTATION_LISTENERS: &str = "coracle.dev/listeners";

/// Annotation of a pod that a node has by itself, and of which the API has a copy.
pub const ANNOTATION_MIRROR: &str = "kubernetes.io/config.mirror";

/// Node annotation, written by the node: where other nodes reach its tunnel, `192.0.2.7:15008`; or `relay` when it cannot be
/// dialled and is reached through the connections it keeps to the API servers.
pub const ANNOTATION_TUNNEL: &str = "coracle.dev/tunnel";
pub const TUNNEL_RELAY: &str = "relay";
/// The tunnel's usual port (HBONE's).
pub const TUNNEL_PORT: u16 = 15_008;

/// Where a node keeps its link to an API server and asks to be connected to another's: `…NAME/link`, `…NAME/connect`, as an
/// upgrade to this protocol; and the two ends of streams over a link.
pub const LINK_PATH: &str = "/coracle/v1/nodes/";
pub const LINK_PROTOCOL: &str = "coracle-link";
pub const LINK_ENDPOINT: &str = "endpoint";
pub const LINK_TUNNEL: &str = "tunnel";

/// What exec, attach and port-forward turn a connection into, beside WebSocket; and how protocols inside are agreed on.
pub const UPGRADE_SPDY: &str = "SPDY/3.1";
pub const HEADER_STREAM_PROTOCOL: &str = "x-stream-protocol-version";
pub const HEADER_ACCEPTED_PROTOCOLS: &str = "x-accepted-stream-protocol-versions";

/// `…http/ADDRESS:PORT/PATH` at a node's endpoint is sent on into the pod network; an answer with this header is the node's own
/// word that it could not be.
pub const PROXY_PATH: &str = "/podProxy/";
pub const HEADER_PROXY_FAILED: &str = "x-coracle-proxy-failed";

/// Node annotation, written by the node: where its Ingress and Gateway listeners really are, as JSON
/// ([`crate::routing::report::Report`]).
pub const ANNOTATION_INGRESS: &str = "coracle.dev/ingress";
/// `spec.controller` of IngressClasses, and `spec.controllerName` of GatewayClasses, that are ours.
pub const INGRESS_CONTROLLER: &str = "coracle.dev/ingress";
pub const GATEWAY_CONTROLLER: &str = "coracle.dev/gateway";
/// The IngressClass and the GatewayClass every cluster begins with.
pub const CLASS_CORACLE: &str = "coracle";
pub const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";

pub const LABEL_ZONE: &str = "topology.kubernetes.io/zone";
pub const LABEL_REGION: &str = "topology.kubernetes.io/region";
pub const LABEL_HOSTNAME: &str = "kubernetes.io/hostname";
pub const LABEL_OS: &str = "kubernetes.io/os";
pub const LABEL_ARCH: &str = "kubernetes.io/arch";
/// The address of the Services' range where pods find DNS: 10.96.0.10.
pub const DNS_ADDRESS: u32 = 10;
pub const LABEL_SERVICE_NAME: &str = "kubernetes.io/service-name";
pub const LABEL_MANAGED_BY_SLICE: &str = "endpointslice.kubernetes.io/managed-by";
pub const LABEL_NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";
pub const LABEL_POD_TEMPLATE_HASH: &str = "pod-template-hash";

pub const TAINT_NOT_READY: &str = "node.kubernetes.io/not-ready";
pub const TAINT_UNREACHABLE: &str = "node.kubernetes.io/unreachable";
pub const TAINT_UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
pub const TAINT_MEMORY_PRESSURE: &str = "node.kubernetes.io/memory-pressure";
pub const TAINT_DISK_PRESSURE: &str = "node.kubernetes.io/disk-pressure";
pub const TAINT_PID_PRESSURE: &str = "node.kubernetes.io/pid-pressure";

pub const NAMESPACE_DEFAULT: &str = "default";
pub const NAMESPACE_SYSTEM: &str = "kube-system";
pub const NAMESPACE_PUBLIC: &str = "kube-public";
pub const NAMESPACE_NODE_LEASE: &str = "kube-node-lease";

pub const DEFAULT_SCHEDULER: &str = "default-scheduler";
pub const CLUSTER_DOMAIN: &str = "cluster.local";

/// Field manager under which `up` applies its manifests.
pub const MANAGER_UP: &str = "coracle";

pub const GROUP_MASTERS: &str = "system:masters";
pub const GROUP_NODES: &str = "system:nodes";
/// Who signs a node's certificates: as a client, and of its endpoint.
pub const SIGNER_NODE_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
pub const SIGNER_NODE_SERVING: &str = "kubernetes.io/kubelet-serving";
pub const GROUP_AUTHENTICATED: &str = "system:authenticated";
pub const GROUP_UNAUTHENTICATED: &str = "system:unauthenticated";
pub const USER_ANONYMOUS: &str = "system:anonymous";
/// Common name of the certificate with which the API server calls a node's endpoint.
pub const USER_KUBELET_CLIENT: &str = "kube-apiserver-kubelet-client";
