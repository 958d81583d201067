//! Pods mean what they mean in Kubernetes: reasons, restarts, limits, logs, volumes, probes.

use serde_json::Value;

use crate::harness::{Cluster, have, http_get, wait_for};

fn pod(name: &str, image: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec:\n  \
         terminationGracePeriodSeconds: 0\n  restartPolicy: Never\n  containers:\n  - name: main\n    \
         image: coracle.dev/guests/{image}\n{more}"
    )
}

/// Waits for a container state of this kind, returns its reason and message and the exit code.
fn state(cluster: &Cluster, name: &str, kind: &str) -> (String, String, i64) {
    cluster.wait(&format!("{name} to be {kind}"), &["pod", name], |pod| {
        let state = pod.pointer(&format!("/status/containerStatuses/0/state/{kind}"))?;
        let text = |key: &str| {
            state
                .get(key)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let code = state.get("exitCode").and_then(Value::as_i64).unwrap_or(0);
        (text("reason") != "ContainerCreating").then(|| (text("reason"), text("message"), code))
    })
}

#[test]
fn containers_end_with_the_reason_that_kubernetes_gives() {
    if !have("kubectl") {
        return;
    }
    let cluster = Cluster::start();
    cluster.apply(&pod("done", "show", ""));
    cluster.apply(&pod("fails", "crash", "    args: [return]\n"));
    cluster.apply(&pod("traps", "crash", "    args: [trap]\n"));
    cluster.apply(&pod(
        "eats",
        "hog",
        "    args: [memory]\n    resources: {limits: {memory: 32Mi}}\n",
    ));
    cluster.apply(&pod("modern", "once-p3", ""));
    assert_eq!(state(&cluster, "done", "terminated").0, "Completed");
    let (reason, _, code) = state(&cluster, "fails", "terminated");
    assert_eq!((reason.as_str(), code), ("Error", 1));
    let (reason, message, code) = state(&cluster, "traps", "terminated");
    assert_eq!(reason, "Error");
    assert!(
        code > 100 && message.contains("unreachable"),
        "{code} {message}"
    );
    let (reason, _, code) = state(&cluster, "eats", "terminated");
    assert_eq!((reason.as_str(), code), ("OOMKilled", 137));
    assert_eq!(state(&cluster, "modern", "terminated").0, "Completed");
    cluster.logs_with(&["modern"], "once, on WASI 0.3");
    assert!(cluster.kubectl(&["get", "pods"]).contains("Completed"));
    cluster.wait("its phase to say so", &["pod", "done"], |pod| {
        (pod.pointer("/status/phase").and_then(Value::as_str) == Some("Succeeded")).then_some(())
    });
}

#[test]
fn images_that_cannot_run_say_why() {
    if !have("kubectl") {
        return;
    }
    let cluster = Cluster::start();
    let text = cluster.path("text.wasm");
    std::fs::write(&text, "this is not wasm").expect("written");
    let manifest = |name: &str, image: &str, policy: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  containers:\n  - {{name: main, image: '{image}', imagePullPolicy: {policy}}}\n"
        )
    };
    cluster.apply(&manifest("never", "example.invalid/none:v1", "Never"));
    cluster.apply(&manifest("misspelt", "Not A Name", "Always"));
    cluster.apply(&manifest(
        "text",
        &format!("file://{}", text.display()),
        "Always",
    ));
    assert_eq!(state(&cluster, "never", "waiting").0, "ErrImageNeverPull");
    assert_eq!(state(&cluster, "misspelt", "waiting").0, "InvalidImageName");
    let message = cluster.wait("the reason of text", &["pod", "text"], |pod| {
        let waiting = pod.pointer("/status/containerStatuses/0/state/waiting")?;
        let message = waiting.get("message").and_then(Value::as_str)?;
        message.contains("WebAssembly").then(|| message.to_owned())
    });
    assert!(!message.is_empty());
    assert!(cluster.kubectl(&["get", "events"]).contains("Failed"));
}

#[test]
fn a_crashing_container_backs_off_and_keeps_its_last_words() {
    if !have("kubectl") {
        return;
    }
    let cluster = Cluster::start();
    cluster.apply(
        &pod("crashy", "crash", "    args: [return]\n")
            .replace("restartPolicy: Never", "restartPolicy: Always"),
    );
    cluster.wait("a back-off", &["pod", "crashy"], |pod| {
        let status = pod.pointer("/status/containerStatuses/0")?;
        let backing_off = status
            .pointer("/state/waiting/reason")
            .and_then(Value::as_str)
            == Some("CrashLoopBackOff");
        (backing_off && status["restartCount"].as_i64() >= Some(1)).then_some(())
    });
    let previous = cluster.kubectl(&["logs", "crashy", "--previous"]);
    assert!(
        previous.contains("about to end") && previous.contains("this line is on stderr"),
        "{previous}"
    );
    let stamped = cluster.kubectl(&["logs", "crashy", "--previous", "--timestamps", "--tail=1"]);
    assert_eq!(stamped.lines().count(), 1);
    assert!(
        stamped.starts_with("20") && stamped.contains('T'),
        "{stamped}"
    );
    assert!(
        cluster
            .kubectl(&["get", "events", "--field-selector", "reason=BackOff"])
            .contains("crashy")
    );
}

#[test]
fn logs_are_followed_bounded_and_dated() {
    use std::io::{BufRead as _, BufReader};
    if !have("kubectl") {
        return;
    }
    let cluster = Cluster::start();
    let more = "    ports: [{containerPort: 8080}]\n";
    cluster.apply(&pod("talks", "misbehave", more));
    cluster.kubectl(&[
        "wait",
        "pod/talks",
        "--for=condition=Ready",
        "--timeout=60s",
    ]);
    cluster.kubectl(&[
        "expose",
        "pod",
        "talks",
        "--type=NodePort",
        "--port=80",
        "--target-port=8080",
    ]);
    let service = cluster.get(&["svc", "talks"]).expect("exposed");
    let port = service
        .pointer("/spec/ports/0/nodePort")
        .and_then(Value::as_u64)
        .expect("a node port");
    let say = |lines: u32| {
        let address = format!("127.0.0.1:{port}");
        wait_for("the guest to log", || {
            http_get(&address, &format!("/log/{lines}")).filter(|(status, _)| *status == 200)
        });
    };
    say(100);
    assert_eq!(
        cluster.logs_with(&["talks"], "line 99").lines().count(),
        100
    );
    assert_eq!(
        cluster.kubectl(&["logs", "talks", "--tail=3"]),
        "line 97\nline 98\nline 99\n"
    );
    assert_eq!(
        cluster.kubectl(&["logs", "talks", "--limit-bytes=7"]),
        "line 0\n"
    );
    assert_eq!(
        cluster
            .kubectl(&["logs", "talks", "--since=1h"])
            .lines()
            .count(),
        100
    );

    let mut follow = cluster.kubectl_spawn(&["logs", "-f", "talks", "--tail=1"]);
    let mut lines = BufReader::new(follow.stdout.take().expect("piped")).lines();
    let mut next = || lines.next().expect("a line").expect("text");
    assert_eq!(next(), "line 99");
    say(2);
    assert_eq!((next(), next()), ("line 0".to_owned(), "line 1".to_owned()));
    follow.kill().expect("it runs");
    follow.wait().expect("it ends");
}

#[test]
fn containers_get_their_environment_and_their_volumes() {
    if !have("kubectl") {
        return;
    }
    let cluster = Cluster::start();
    cluster.kubectl(&[
        "create",
        "configmap",
        "settings",
        "--from-literal=colour=green",
    ]);
    cluster.kubectl(&[
        "create",
        "secret",
        "generic",
        "key",
        "--from-literal=password=hunter2",
    ]);
    cluster.apply(
        "apiVersion: v1
kind: Pod
metadata: {name: given, labels: {app: given}}
spec:
  restartPolicy: Never
  initContainers:
  - name: first
    image: coracle.dev/guests/show
    env: [{name: POD_NAME, value: from-init}, {name: WRITE_FILE, value: /scratch/note}]
    volumeMounts: [{name: scratch, mountPath: /scratch}]
  containers:
  - name: main
    image: coracle.dev/guests/show
    args: [one, $(COLOUR)]
    resources: {limits: {memory: 64Mi}}
    env:
    - {name: COLOUR, valueFrom: {configMapKeyRef: {name: settings, key: colour}}}
    - {name: PASSWORD, valueFrom: {secretKeyRef: {name: key, key: password}}}
    - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: LIMIT, valueFrom: {resourceFieldRef: {resource: limits.memory}}}
    - {name: GREETING, value: hello $(COLOUR)}
    - {name: SHOW_DIRS, value: '/config:/secret:/scratch:/labels'}
    envFrom: [{configMapRef: {name: settings}, prefix: CM_}]
    volumeMounts:
    - {name: config, mountPath: /config}
    - {name: secret, mountPath: /secret, readOnly: true}
    - {name: scratch, mountPath: /scratch}
    - {name: labels, mountPath: /labels}
  volumes:
  - {name: config, configMap: {name: settings}}
  - {name: secret, secret: {secretName: key}}
  - {name: scratch, emptyDir: {}}
  - {name: labels, downwardAPI: {items: [{path: app, fieldRef: {fieldPath: 'metadata.labels[''app'']'}}]}}
",
    );
    assert_eq!(state(&cluster, "given", "terminated").0, "Completed");
    let log = cluster.logs_with(&["given", "-c", "main"], "file /secret/password");
    for line in [
        "args [\"one\", \"green\"]",
        "env COLOUR=green",
        "env PASSWORD=hunter2",
        "env POD_NAME=given",
        "env LIMIT=67108864",
        "env GREETING=hello green",
        "env CM_colour=green",
        "file /config/colour \"green\"",
        "file /secret/password \"hunter2\"",
        "file /scratch/note \"from-init\"",
        "file /labels/app \"given\"",
    ] {
        assert!(log.contains(line), "{line} is missing in\n{log}");
    }
}

#[test]
fn a_missing_reference_keeps_the_container_from_starting() {
    if !have("kubectl") {
        return;
    }
    let cluster = Cluster::start();
    let env = "    env: [{name: A, valueFrom: {configMapKeyRef: {name: later, key: a}}}]\n";
    cluster.apply(&pod("waits", "show", env));
    let (reason, message, _) = state(&cluster, "waits", "waiting");
    assert_eq!(reason, "CreateContainerConfigError");
    assert!(
        message.contains("configmap \"later\" not found"),
        "{message}"
    );
    cluster.kubectl(&["create", "configmap", "later", "--from-literal=a=1"]);
    assert_eq!(state(&cluster, "waits", "terminated").0, "Completed");
}

#[test]
fn what_is_not_there_yet_is_named() {
    if !have("kubectl") {
        return;
    }
    let cluster = Cluster::start();
    let port = "    ports: [{containerPort: 80, hostPort: 80}]\n";
    cluster.apply(&pod("hosted", "hello-http", port));
    let message = cluster.wait("the pod to fail", &["pod", "hosted"], |pod| {
        let status = pod.get("status")?;
        let failed = status.get("phase").and_then(Value::as_str) == Some("Failed");
        failed.then(|| {
            status
                .get("message")
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        })
    });
    assert!(message.contains("ports[0].hostPort"), "{message}");
    let refused = cluster.kubectl_fails(&["top", "pods"]);
    assert!(refused.contains("not available"), "{refused}");
}

#[test]
fn probes_decide_about_traffic_and_life() {
    if !have("kubectl") {
        return;
    }
    let cluster = Cluster::start();
    cluster.kubectl(&["create", "configmap", "switch", "--from-literal=ready=yes"]);
    let more = "    ports: [{containerPort: 8080}]
    readinessProbe: {httpGet: {path: /file/switch/ready, port: 8080}, periodSeconds: 1, failureThreshold: 1}
    volumeMounts: [{name: switch, mountPath: /switch}]
  volumes: [{name: switch, configMap: {name: switch}}]
";
    cluster.apply(&pod("probed", "misbehave", more));
    cluster.kubectl(&[
        "wait",
        "pod/probed",
        "--for=condition=Ready",
        "--timeout=60s",
    ]);
    cluster.kubectl(&[
        "patch",
        "cm/switch",
        "--type=json",
        "-p",
        r#"[{"op":"remove","path":"/data/ready"}]"#,
    ]);
    cluster.kubectl(&[
        "wait",
        "pod/probed",
        "--for=condition=Ready=false",
        "--timeout=90s",
    ]);
    assert!(
        cluster
            .kubectl(&["get", "events", "--field-selector", "reason=Unhealthy"])
            .contains("probed")
    );

    let dying = "    livenessProbe: {httpGet: {path: /status/500, port: 8080}, periodSeconds: 1, failureThreshold: 2}\n";
    cluster.apply(
        &pod("dying", "misbehave", dying).replace("restartPolicy: Never", "restartPolicy: Always"),
    );
    cluster.wait("liveness to restart it", &["pod", "dying"], |pod| {
        (pod.pointer("/status/containerStatuses/0/restartCount")?
            .as_i64()?
            >= 1)
            .then_some(())
    });
}

#[test]
fn one_guest_that_misbehaves_harms_no_other() {
    if !have("kubectl") {
        return;
    }
    let cluster = Cluster::with(&["manifests/helloserver"]);
    let address = crate::main_job::address(&cluster.greeting, "hellosvc");
    for (name, arg) in [("spinner", "cpu"), ("flood", "log"), ("sockets", "sockets")] {
        let limits =
            format!("    args: [{arg}]\n    resources: {{limits: {{cpu: 200m, memory: 64Mi}}}}\n");
        cluster.apply(&pod(name, "hog", &limits));
        cluster.wait(&format!("{name} to run"), &["pod", name], |pod| {
            pod.pointer("/status/containerStatuses/0/state/running")
                .map(|_| ())
        });
    }
    for _ in 0..50 {
        let (status, _) = wait_for("hellosvc to answer beside its noisy neighbours", || {
            http_get(&address, "/")
        });
        assert_eq!(status, 200);
    }
    cluster.logs_with(&["sockets"], "refused after");
    cluster.kubectl(&[
        "delete",
        "pod",
        "spinner",
        "flood",
        "sockets",
        "--timeout=60s",
    ]);
}
