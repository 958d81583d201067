//! Manifests written for the image busybox: what their scripts print, and how they end.

use crate::harness::{Cluster, have};

fn pod(name: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  \
         restartPolicy: Never\n  containers:\n  - name: main\n    image: busybox:1.36\n{more}"
    )
}

/// How the pod's container ended.
fn ended(cluster: &Cluster, name: &str) -> i64 {
    cluster.wait(&format!("{name} to end"), &["pod", name], |pod| {
        pod.pointer("/status/containerStatuses/0/state/terminated/exitCode")?
            .as_i64()
    })
}

const SCRIPT: &str = r#"    command: [sh, -c]
    args:
    - |
      set -eu
      cd /work
      for i in 1 2 3; do echo "line $i" >> log; done
      grep -c line log
      sed 's/line/Line/' log | tail -n 1
      yes | head -n 2 | tr y n
      tar cf - log | tar tf -
      [ -f log ] && ls / | tr '\n' ' '; echo
      cat <<EOF
      $((6 * 7)) ${HOSTNAME} $(pwd)
      EOF
      trap 'echo bye' EXIT
      exit 3
    volumeMounts: [{name: work, mountPath: /work}]
  volumes: [{name: work, emptyDir: {}}]
"#;

#[test]
fn scripts_for_busybox_print_and_end_as_they_should() {
    if !have("kubectl") {
        return;
    }
    let cluster = Cluster::start();
    cluster.apply(&pod("script", SCRIPT));
    // As `kubectl run --image=busybox -- …` has it: no command, only arguments.
    cluster.apply(&pod("args", "    args: [echo, hello, world]\n"));
    cluster.apply(&pod("missing", "    command: [/bin/nope]\n"));
    cluster.apply(&pod("untrue", "    command: [/bin/false]\n"));

    assert_eq!(ended(&cluster, "script"), 3);
    let said = cluster.kubectl(&["logs", "script"]);
    let expected = "3\nLine 3\nn\nn\nlog\nvar work \n42 script /work\nbye\n";
    assert_eq!(said, expected);
    assert_eq!(ended(&cluster, "args"), 0);
    assert_eq!(cluster.kubectl(&["logs", "args"]), "hello world\n");
    assert_eq!(ended(&cluster, "missing"), 127);
    assert_eq!(ended(&cluster, "untrue"), 1);
}

#[test]
fn the_manifest_for_busybox_does_what_it_says() {
    if !have("kubectl") {
        return;
    }
    let cluster = Cluster::with(&["manifests/busybox"]);
    cluster.logs_with(&["counter", "-c", "init-web"], "Address: 10.96.");
    cluster.logs_with(&["counter", "-c", "count-log"], "\n1: ");
    cluster.logs_with(&["counter", "-c", "ask"], "web says: ");
}
