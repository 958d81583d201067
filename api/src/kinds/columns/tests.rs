//! Cells of objects as `kubectl get -o wide` would show them.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kinds::table;

/// The cells of an object given as YAML, joined by ` | `; it was made five minutes ago.
fn line(group: &str, plural: &str, text: &str) -> String {
    let now: Timestamp = "2026-01-01T00:05:00Z".parse().expect("a time");
    let mut object: Value = serde_norway::from_str(text).expect("valid YAML");
    object["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
    let mut rows = table().all().iter().filter(|kind| kind.group == group);
    let columns = rows
        .find(|kind| kind.plural == plural)
        .expect("served")
        .columns;
    let cells = (columns.cells)(&object, now);
    assert_eq!(
        cells.len(),
        columns.definitions.len(),
        "one cell per column"
    );
    let texts: Vec<String> = cells
        .iter()
        .map(|cell| {
            cell.as_str()
                .map_or_else(|| cell.to_string(), str::to_owned)
        })
        .collect();
    texts.join(" | ")
}

fn pod(rest: &str) -> String {
    line("", "pods", &format!("{{metadata: {{name: p}}, {rest}}}"))
}

#[test]
fn every_kind_has_as_many_cells_as_columns() {
    for kind in table().all() {
        let cells = (kind.columns.cells)(&json!({"metadata": {}}), Timestamp::UNIX_EPOCH);
        assert_eq!(
            cells.len(),
            kind.columns.definitions.len(),
            "{}",
            kind.resource()
        );
    }
}

#[test]
fn a_running_pod() {
    assert_eq!(
        pod(
            "spec: {nodeName: n, containers: [{name: a}, {name: b}]}, status: {phase: Running, podIP: 10.0.0.1, containerStatuses: [\
             {name: a, ready: true, restartCount: 2, state: {running: {}}, lastState: {terminated: {finishedAt: '2026-01-01T00:00:00Z'}}}, \
             {name: b, ready: false, restartCount: 0, state: {running: {}}}]}"
        ),
        "p | 1/2 | Running | 2 (5m ago) | 5m | 10.0.0.1 | n | <none> | <none>"
    );
}

#[test]
fn a_pod_in_trouble_says_why() {
    let cases = [
        (
            "spec: {containers: [{name: a}]}, status: {phase: Pending}",
            "0/1 | Pending | 0",
        ),
        (
            "spec: {containers: [{name: a}]}, status: {phase: Running, containerStatuses: [{name: a, restartCount: 4, state: {waiting: {reason: CrashLoopBackOff}}}]}",
            "0/1 | CrashLoopBackOff | 4",
        ),
        (
            "spec: {containers: [{name: a}]}, status: {phase: Succeeded, containerStatuses: [{name: a, restartCount: 0, state: {terminated: {exitCode: 0, reason: Completed}}}]}",
            "0/1 | Completed | 0",
        ),
        (
            "spec: {containers: [{name: a}]}, status: {phase: Failed, containerStatuses: [{name: a, restartCount: 0, state: {terminated: {exitCode: 3}}}]}",
            "0/1 | ExitCode:3 | 0",
        ),
        (
            "spec: {containers: [{name: a}], initContainers: [{name: i}, {name: j}]}, status: {phase: Pending, initContainerStatuses: [{name: i, restartCount: 0, state: {running: {}}}, {name: j, restartCount: 0, state: {waiting: {reason: PodInitializing}}}]}",
            "0/1 | Init:0/2 | 0",
        ),
        (
            "spec: {containers: [{name: a}], initContainers: [{name: i}]}, status: {phase: Pending, initContainerStatuses: [{name: i, restartCount: 1, state: {waiting: {reason: CrashLoopBackOff}}}]}",
            "0/1 | Init:CrashLoopBackOff | 1",
        ),
        (
            "spec: {containers: [{name: a}]}, status: {phase: Failed, reason: Evicted}",
            "0/1 | Evicted | 0",
        ),
    ];
    for (rest, expected) in cases {
        let shown = pod(rest);
        assert!(
            shown.starts_with(&format!("p | {expected} |")),
            "{shown} is not {expected}"
        );
    }
    let going = line(
        "",
        "pods",
        "{metadata: {name: p, deletionTimestamp: '2026-01-01T00:00:00Z'}, spec: {containers: [{name: a}]}, status: {phase: Running}}",
    );
    assert!(going.contains("| Terminating |"), "{going}");
}

#[test]
fn a_sidecar_counts_as_a_container() {
    let shown = pod(
        "spec: {containers: [{name: a}], initContainers: [{name: s, restartPolicy: Always}]}, status: {phase: Running, \
         initContainerStatuses: [{name: s, ready: true, started: true, restartCount: 1, state: {running: {}}}], \
         containerStatuses: [{name: a, ready: true, restartCount: 0, state: {running: {}}}]}",
    );
    assert!(shown.starts_with("p | 2/2 | Running | 1 |"), "{shown}");
}

#[test]
fn workloads() {
    let template = "template: {spec: {containers: [{name: c, image: x:1}, {name: d, image: y}]}}, selector: {matchLabels: {a: b}}";
    assert_eq!(
        line(
            "apps",
            "deployments",
            &format!(
                "{{metadata: {{name: d}}, spec: {{replicas: 3, {template}}}, status: {{readyReplicas: 1, updatedReplicas: 2, availableReplicas: 1}}}}"
            )
        ),
        "d | 1/3 | 2 | 1 | 5m | c,d | x:1,y | a=b"
    );
    assert_eq!(
        line(
            "apps",
            "replicasets",
            &format!(
                "{{metadata: {{name: r}}, spec: {{replicas: 3, {template}}}, status: {{replicas: 2}}}}"
            )
        ),
        "r | 3 | 2 | 0 | 5m | c,d | x:1,y | a=b"
    );
    assert_eq!(
        line(
            "batch",
            "jobs",
            &format!(
                "{{metadata: {{name: j}}, spec: {{completions: 1, {template}}}, status: {{startTime: '2026-01-01T00:00:05Z'}}}}"
            )
        ),
        "j | Running | 0/1 | 4m55s | 5m | c,d | x:1,y | a=b"
    );
    assert_eq!(
        line(
            "autoscaling",
            "horizontalpodautoscalers",
            "{metadata: {name: h}, spec: {scaleTargetRef: {kind: Deployment, name: d}, minReplicas: 1, maxReplicas: 5, metrics: [{type: Resource, resource: {name: cpu, target: {averageUtilization: 80}}}]}}"
        ),
        "h | Deployment/d | cpu: <unknown>/80% | 1 | 5 | 0 | 5m"
    );
}

#[test]
fn services() {
    let service = |spec: &str| {
        line(
            "",
            "services",
            &format!("{{metadata: {{name: s}}, {spec}}}"),
        )
    };
    assert_eq!(
        service(
            "spec: {type: ClusterIP, clusterIP: 10.96.0.1, ports: [{port: 443, protocol: TCP}]}"
        ),
        "s | ClusterIP | 10.96.0.1 | <none> | 443/TCP | 5m | <none>"
    );
    assert_eq!(
        service(
            "spec: {type: LoadBalancer, clusterIP: 10.96.0.2, selector: {app: x}, ports: [{port: 80, nodePort: 30001, protocol: TCP}]}"
        ),
        "s | LoadBalancer | 10.96.0.2 | <pending> | 80:30001/TCP | 5m | app=x"
    );
    assert_eq!(
        service(
            "spec: {type: LoadBalancer, clusterIP: 10.96.0.2, ports: []}, status: {loadBalancer: {ingress: [{ip: 127.0.0.1}]}}"
        ),
        "s | LoadBalancer | 10.96.0.2 | 127.0.0.1 | <none> | 5m | <none>"
    );
    assert_eq!(
        service("spec: {type: ExternalName, externalName: example.com}"),
        "s | ExternalName | <none> | example.com | <none> | 5m | <none>"
    );
}

#[test]
fn endpoints() {
    assert_eq!(
        line(
            "",
            "endpoints",
            "{metadata: {name: e}, subsets: [{addresses: [{ip: 1.1.1.1}, {ip: 1.1.1.2}], ports: [{port: 80}, {port: 81}]}]}"
        ),
        "e | 1.1.1.1:80,1.1.1.2:80,1.1.1.1:81 + 1 more... | 5m"
    );
    assert_eq!(
        line(
            "discovery.k8s.io",
            "endpointslices",
            "{metadata: {name: e}, addressType: IPv4, ports: [{port: 80}], endpoints: []}"
        ),
        "e | IPv4 | 80 | <unset> | 5m"
    );
}

#[test]
fn nodes() {
    assert_eq!(
        line(
            "",
            "nodes",
            "{metadata: {name: n, labels: {node-role.kubernetes.io/control-plane: ''}}, spec: {unschedulable: true}, status: {conditions: [{type: Ready, status: 'True'}], addresses: [{type: InternalIP, address: 10.0.0.1}], nodeInfo: {kubeletVersion: v1.36.2, osImage: Linux}}}"
        ),
        "n | Ready,SchedulingDisabled | control-plane | 5m | v1.36.2 | 10.0.0.1 | <none> | Linux | <unknown> | <unknown>"
    );
}

#[test]
fn events() {
    let old = "{metadata: {name: e}, type: Normal, reason: R, message: ' m ', count: 3, firstTimestamp: '2026-01-01T00:00:00Z', lastTimestamp: '2026-01-01T00:04:00Z', source: {component: k, host: h}, involvedObject: {kind: Pod, name: p, fieldPath: f}}";
    assert_eq!(
        line("", "events", old),
        "60s | Normal | R | pod/p | f | k, h | m | 5m | 3 | e"
    );
    let new = "{metadata: {name: e}, type: Warning, reason: R, note: m, eventTime: '2026-01-01T00:03:00.000000Z', reportingController: c, regarding: {kind: Node, name: n}}";
    assert_eq!(
        line("events.k8s.io", "events", new),
        "2m | Warning | R | node/n |  | c | m | 2m | 1 | e"
    );
}

#[test]
fn furniture() {
    assert_eq!(
        line(
            "",
            "secrets",
            "{metadata: {name: s}, type: Opaque, data: {a: b, c: d}}"
        ),
        "s | Opaque | 2 | 5m"
    );
    assert_eq!(
        line("", "configmaps", "{metadata: {name: c}}"),
        "c | 0 | 5m"
    );
    assert_eq!(
        line("", "limitranges", "{metadata: {name: l}}"),
        "l | 2026-01-01T00:00:00Z"
    );
    assert_eq!(
        line(
            "rbac.authorization.k8s.io",
            "rolebindings",
            "{metadata: {name: r}, roleRef: {kind: Role, name: x}, subjects: [{kind: ServiceAccount, namespace: n, name: s}, {kind: User, name: u}]}"
        ),
        "r | Role/x | 5m | u |  | n/s"
    );
    assert_eq!(
        line(
            "",
            "persistentvolumeclaims",
            "{metadata: {name: c}, spec: {storageClassName: fast, volumeMode: Filesystem}, status: {phase: Pending}}"
        ),
        "c | Pending |  |  |  | fast | <unset> | 5m | Filesystem"
    );
    assert_eq!(
        line(
            "networking.k8s.io",
            "ipaddresses",
            "{metadata: {name: 10.96.0.1}, spec: {parentRef: {resource: services, namespace: default, name: kubernetes}}}"
        ),
        "10.96.0.1 | services/default/kubernetes"
    );
}
