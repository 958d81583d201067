//! What a bad pod spec is told, through the Pod's own rules.

use crate::kinds::testing::check;

/// A pod whose spec is `rest`.
fn pod(rest: &str, expected: &[&str]) {
    let text = format!("metadata: {{name: p, namespace: default}}\nspec: {rest}");
    check("pods", &text, expected);
}

#[test]
fn a_good_pod_has_nothing_wrong() {
    pod(
        "{containers: [{name: c, image: x, ports: [{name: http, containerPort: 80}], volumeMounts: [{name: v, mountPath: /v}], \
         env: [{name: A, value: b}, {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}], \
         readinessProbe: {httpGet: {port: http}}}], volumes: [{name: v}], tolerations: [{operator: Exists}]}",
        &[],
    );
}

#[test]
fn containers_need_names_and_images() {
    pod("{}", &["spec.containers: Required value"]);
    pod(
        "{containers: [{name: a}, {name: a, image: ' x'}, {image: y}]}",
        &[
            "spec.containers[0].image: Required value",
            "spec.containers[1].name: Duplicate value: \"a\"",
            "spec.containers[1].image: Invalid value: \" x\": must not have leading or trailing whitespace",
            "spec.containers[2].name: Required value",
        ],
    );
}

#[test]
fn ports_and_environment_are_checked() {
    pod(
        "{containers: [{name: a, image: x, ports: [{containerPort: 0}, {containerPort: 70000, protocol: X}], \
         env: [{name: 'a=b'}, {name: V, value: x, valueFrom: {configMapKeyRef: {name: m, key: k}}}, {name: F, valueFrom: {fieldRef: {fieldPath: spec.x}}}], \
         envFrom: [{}]}]}",
        &[
            "spec.containers[0].ports[0].containerPort: Required value",
            "spec.containers[0].ports[1].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
            "spec.containers[0].ports[1].protocol: Unsupported value: \"X\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
            "spec.containers[0].env[0].name: Invalid value: \"a=b\": a valid environment variable name must consist only of printable ASCII characters other than '='",
            "spec.containers[0].env[1].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty",
            "spec.containers[0].env[2].valueFrom.fieldRef.fieldPath: Unsupported value: \"spec.x\": supported values: \"metadata.name\", \"metadata.namespace\", \"metadata.uid\", \"spec.nodeName\", \"spec.serviceAccountName\", \"status.hostIP\", \"status.hostIPs\", \"status.podIP\", \"status.podIPs\"",
            "spec.containers[0].envFrom[0]: Invalid value: \"\": must specify one of: `configMapRef` or `secretRef`",
        ],
    );
}

#[test]
fn volumes_and_mounts_are_checked() {
    pod(
        "{containers: [{name: a, image: x, volumeMounts: [{name: nope, mountPath: /a}, {name: v, mountPath: /a, subPath: ../b}]}], \
         volumes: [{name: v}, {name: v}, {name: w, configMap: {items: [{key: k}]}, emptyDir: {}}]}",
        &[
            "spec.volumes[1].name: Duplicate value: \"v\"",
            "spec.volumes[2].emptyDir: Forbidden: may not specify more than 1 volume type",
            "spec.volumes[2].configMap.name: Required value",
            "spec.volumes[2].configMap.items[0].path: Required value",
            "spec.containers[0].volumeMounts[0].name: Not found: \"nope\"",
            "spec.containers[0].volumeMounts[1].mountPath: Invalid value: \"/a\": must be unique",
            "spec.containers[0].volumeMounts[1].subPath: Invalid value: \"../b\": must not contain '..'",
        ],
    );
}

#[test]
fn probes_and_resources_are_checked() {
    pod(
        "{containers: [{name: a, image: x, livenessProbe: {successThreshold: 2}, readinessProbe: {periodSeconds: -1, httpGet: {port: 0}}, \
         resources: {requests: {cpu: 2}, limits: {cpu: 1}}}]}",
        &[
            "spec.containers[0].resources.requests: Invalid value: 2: must be less than or equal to cpu limit of 1",
            "spec.containers[0].readinessProbe.httpGet.port: Invalid value: 0: must be between 1 and 65535, inclusive",
            "spec.containers[0].readinessProbe.periodSeconds: Invalid value: -1: must be greater than or equal to 0",
            "spec.containers[0].livenessProbe: Required value: must specify a handler type",
            "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
        ],
    );
}

#[test]
fn policies_tolerations_and_affinities_are_checked() {
    pod(
        "{containers: [{name: a, image: x}], restartPolicy: Sometimes, dnsPolicy: None, \
         tolerations: [{key: k, operator: Exists, value: v}, {value: x}], \
         affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: []}}}}",
        &[
            "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\"",
            "spec.dnsConfig: Required value: must provide at least one DNS nameserver when `dnsPolicy` is None",
            "spec.tolerations[0].operator: Invalid value: {\"key\":\"k\",\"operator\":\"Exists\",\"value\":\"v\"}: value must be empty when `operator` is 'Exists'",
            "spec.tolerations[1].operator: Invalid value: \"\": operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms: Required value: must have at least one node selector term",
        ],
    );
}
