//! `kubectl exec`, `attach`, `run -i`, `cp` and `debug`: a shell beside guests that have none.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::harness::{Cluster, have};

const WEB: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {colour: red}
---
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  terminationGracePeriodSeconds: 0
  volumes:
  - {name: conf, configMap: {name: settings}}
  - {name: work, emptyDir: {}}
  containers:
  - name: main
    image: coracle.dev/guests/hello-http
    env: [{name: GREETING, value: hello}]
    volumeMounts: [{name: conf, mountPath: /etc/conf}, {name: work, mountPath: /work}]
    readinessProbe: {exec: {command: [cat, /etc/conf/colour]}, periodSeconds: 1}
";

fn web() -> Cluster {
    let cluster = Cluster::start();
    cluster.apply(WEB);
    cluster.kubectl(&["wait", "pod/web", "--for=condition=Ready", "--timeout=60s"]);
    cluster
}

#[test]
fn a_command_runs_in_the_pods_own_sandbox() {
    if !have("kubectl") {
        return;
    }
    let cluster = web();
    let environment = cluster.kubectl(&["exec", "web", "--", "env"]);
    for line in ["GREETING=hello", "HOSTNAME=web", "KUBERNETES_SERVICE_HOST="] {
        assert!(environment.contains(line), "{line} in {environment}");
    }
    let colour = cluster.kubectl(&["exec", "web", "-c", "main", "--", "cat", "/etc/conf/colour"]);
    assert_eq!(colour, "red");
    let resolver = cluster.kubectl(&["exec", "web", "--", "cat", "/etc/resolv.conf"]);
    assert!(
        resolver.starts_with("search default.svc.cluster.local"),
        "{resolver}"
    );
    let failed = cluster.try_kubectl(&["exec", "web", "--", "sh", "-c", "exit 3"]);
    assert_eq!(failed.status.code(), Some(3));
    let said = String::from_utf8_lossy(&failed.stderr);
    assert_eq!(said, "command terminated with exit code 3\n");
    let missing = cluster.try_kubectl(&["exec", "web", "--", "nginx", "-t"]);
    assert_eq!(missing.status.code(), Some(1));
    let said = String::from_utf8_lossy(&missing.stderr);
    assert!(
        said.contains("exec: \"nginx\": executable file not found in $PATH"),
        "{said}"
    );
    let sent = cluster.kubectl_with(&["exec", "-i", "web", "--", "cat"], "hi\nthere\n");
    assert_eq!(sent, "hi\nthere\n");
    let much = "a line of text to be counted\n".repeat(40_000);
    let counted = cluster.kubectl_with(&["exec", "-i", "web", "--", "cat"], &much);
    assert_eq!(counted.len(), much.len());
}

#[test]
fn a_person_at_a_terminal_has_a_shell() {
    if !have("kubectl") || !have("script") {
        return;
    }
    let cluster = web();
    // `script` gives kubectl a terminal; its own input is what a person types.
    let mut script = Command::new("script")
        .args(["-qec", "kubectl exec -it web -- sh", "/dev/null"])
        .env("KUBECONFIG", cluster.kubeconfig())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("script starts");
    let mut keys = script.stdin.take().expect("piped");
    keys.write_all(b"echo $((6 * 7)) $TERM\nexit 5\n")
        .expect("typed");
    let output = script.wait_with_output().expect("the shell ends");
    drop(keys);
    let seen = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(seen.contains("42 xterm\r\n"), "{seen:?}");
    assert_eq!(output.status.code(), Some(5), "{seen:?}");
}

#[test]
fn a_pod_is_run_talked_to_and_removed() {
    if !have("kubectl") {
        return;
    }
    let cluster = Cluster::start();
    let run = [
        "run",
        "talk",
        "--rm",
        "-i",
        "--restart=Never",
        "--image=busybox",
        "--quiet",
        "--",
        "sh",
        "-c",
        "read line; echo you said $line",
    ];
    let said = cluster.kubectl_with(&run, "hello\n");
    assert!(said.contains("you said hello\n"), "{said}");
    assert!(cluster.get(&["pod", "talk"]).is_none());
    cluster.kubectl(&[
        "run",
        "lasting",
        "-i",
        "--attach=false",
        "--restart=Never",
        "--image=busybox",
        "--",
        "cat",
    ]);
    cluster.kubectl(&[
        "wait",
        "pod/lasting",
        "--for=condition=Ready",
        "--timeout=60s",
    ]);
    let said = cluster.kubectl_with(&["attach", "-i", "lasting"], "anybody?\n");
    assert!(said.contains("anybody?\n"), "{said}");
    cluster.logs_with(&["lasting"], "anybody?");
}

#[test]
fn files_are_copied_both_ways() {
    if !have("kubectl") {
        return;
    }
    let cluster = web();
    let (there, back) = (cluster.path("there"), cluster.path("back"));
    let text = "some text\n".repeat(10_000);
    std::fs::write(&there, &text).expect("written");
    let path = there.display().to_string();
    cluster.kubectl(&["cp", &path, "web:/work/copy"]);
    let path = back.display().to_string();
    cluster.kubectl(&["cp", "web:/work/copy", &path]);
    assert_eq!(std::fs::read_to_string(&back).expect("copied"), text);
}

#[test]
fn a_running_pod_is_looked_at_by_a_container_that_comes_later() {
    if !have("kubectl") {
        return;
    }
    let cluster = web();
    let said = cluster.kubectl_with(
        &[
            "debug",
            "web",
            "-i",
            "--image=busybox",
            "--target=main",
            "-c",
            "look",
            "--",
            "sh",
            "-c",
            "read line; echo $line from $HOSTNAME",
        ],
        "greetings\n",
    );
    assert!(said.contains("greetings from web\n"), "{said}");
    let pod = cluster.get(&["pod", "web"]).expect("there");
    assert_eq!(
        pod.pointer("/status/phase")
            .and_then(|phase| phase.as_str()),
        Some("Running")
    );
}
