//! A second node beside the one of `up`, and what is kept apart: two processes on one directory.

use std::process::{Child, Output, Stdio};

use serde_json::Value;

use crate::harness::{Cluster, binary, have, wait_for};

/// Ended with the test.
struct Node(Child);

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn server(cluster: &Cluster) -> String {
    let config = std::fs::read_to_string(cluster.kubeconfig()).expect("a kubeconfig");
    let line = config
        .lines()
        .find_map(|l| l.trim().strip_prefix("server: "));
    line.expect("it names the server").to_owned()
}

fn token(cluster: &Cluster) -> String {
    let token = binary()
        .args(["token", "create", "--kubeconfig"])
        .arg(cluster.kubeconfig())
        .output()
        .expect("the binary can be started");
    assert!(token.status.success(), "{token:?}");
    String::from_utf8_lossy(&token.stdout).trim().to_owned()
}

fn said(output: &Output) -> String {
    assert!(!output.status.success(), "it should have failed");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_node_joins_the_cluster_of_up_and_their_pods_reach_each_other() {
    if !have("kubectl") {
        return;
    }
    let cluster = Cluster::with(&["--node-name", "first"]);
    let token = token(&cluster);
    let server = server(&cluster);
    let join = |directory: &str| {
        let mut command = binary();
        command
            .args([
                "node",
                "--node-name",
                "second",
                "--port",
                "0",
                "--tunnel-port",
                "0",
            ])
            .args([
                "--shutdown-grace-period",
                "0",
                "--server",
                &server,
                "--token",
                &token,
                "--data-dir",
            ])
            .arg(cluster.path(directory))
            .stdin(Stdio::null());
        command
    };
    // The directory of `up` is taken.
    let refused = said(&join("data").output().expect("started"));
    let owner = format!("({})", cluster.process_id());
    assert!(
        refused.contains("is in use by another coracle process") && refused.contains(&owner),
        "{refused}"
    );

    let log = std::fs::File::create(cluster.path("node.log")).expect("a log file");
    let node = join("second").stderr(log).spawn().expect("started");
    let node = Node(node);
    let logged = || std::fs::read_to_string(cluster.path("node.log")).unwrap_or_default();
    cluster.wait("the second node to be ready", &["node", "second"], |node| {
        let conditions = node.pointer("/status/conditions")?.as_array()?;
        let ready = |c: &&Value| c["type"] == "Ready" && c["status"] == "True";
        conditions.iter().find(ready).map(|_| ())
    });
    let refused = said(&join("second").output().expect("started"));
    assert!(refused.contains(&format!("({})", node.0.id())), "{refused}");

    for (name, host) in [("one", "first"), ("two", "second")] {
        cluster.apply(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec:\n  nodeName: {host}\n  containers:\n  \
             - name: main\n    image: coracle.dev/guests/echo\n    env: [{{name: PORT, value: '7000'}}]\n    \
             readinessProbe: {{tcpSocket: {{port: 7000}}, periodSeconds: 1}}\n---\n\
             apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  selector: {{app: {name}}}\n  ports: [{{port: 7, targetPort: 7000}}]\n"
        ));
        cluster.kubectl(&[
            "wait",
            "--for=condition=Ready",
            &format!("pod/{name}"),
            "--timeout=60s",
        ]);
    }
    // From each node to the other's pod.
    for (client, host, to) in [("there", "first", "two"), ("back", "second", "one")] {
        cluster.apply(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {client}}}\nspec:\n  nodeName: {host}\n  restartPolicy: OnFailure\n  containers:\n  \
             - {{name: main, image: coracle.dev/guests/dial, args: ['{to}:7', hello]}}\n"
        ));
        let answer = wait_for(&format!("{client} to reach {to}: {}", logged()), || {
            let output = cluster.try_kubectl(&["logs", client]);
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            text.contains("hello").then_some(text)
        });
        assert!(answer.contains("connected to 10.96."), "{answer}");
    }
}

/// `coracle server` as it is without `--store`, and its other spelling: one process, one file, elected by Lease.
#[test]
fn a_server_on_its_own_file_is_killed_and_goes_on_where_it_was() {
    if !have("kubectl") {
        return;
    }
    for store in ["", "sqlite:"] {
        let directory = tempfile::tempdir().expect("a directory");
        let place = format!("{store}{}", directory.path().join("own.db").display());
        let mut cluster = match store {
            "" => Cluster::server(&[]),
            _ => Cluster::server(&["--store", &place]),
        };
        let server = server(&cluster);
        let log = std::fs::File::create(cluster.path("node.log")).expect("a log file");
        let mut node = binary();
        node.args(["node", "--node-name", "only", "--port", "0"])
            .args(["--tunnel-port", "0", "--shutdown-grace-period", "0"])
            .args(["--server", &server, "--token", &token(&cluster)])
            .arg("--data-dir")
            .arg(cluster.path("node"))
            .stdin(Stdio::null())
            .stderr(log);
        let _node = Node(node.spawn().expect("started"));
        let available = |cluster: &Cluster, name: &str| {
            let what = format!("deployment {name} on {place:?}");
            cluster.wait(&what, &["deployment", name], |deployment| {
                (deployment["status"]["availableReplicas"] == 2).then_some(())
            });
        };
        cluster.apply(&deployment("before"));
        available(&cluster, "before");
        let pods = |cluster: &Cluster| {
            cluster.kubectl(&[
                "get",
                "pods",
                "-l",
                "app=before",
                "-o",
                "jsonpath={.items[*].metadata.uid}",
            ])
        };
        let were = pods(&cluster);
        cluster.kill();
        cluster.start_again();
        assert_eq!(pods(&cluster), were, "what was acknowledged is there");
        // Scheduled, controlled and run, by the one who leads now.
        cluster.apply(&deployment("after"));
        available(&cluster, "after");
        available(&cluster, "before");
        assert_eq!(pods(&cluster), were, "no pod was replaced");
        let lease = "leases/kube-scheduler";
        let holder = "jsonpath={.spec.holderIdentity}";
        let holder = cluster.kubectl(&["get", "-n", "kube-system", lease, "-o", holder]);
        assert!(cluster.log().contains(&holder), "{holder}");
    }
}

fn deployment(name: &str) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}}}\nspec:\n  replicas: 2\n  \
         selector: {{matchLabels: {{app: {name}}}}}\n  template:\n    metadata: {{labels: {{app: {name}}}}}\n    \
         spec: {{containers: [{{name: main, image: coracle.dev/guests/hello-http}}]}}\n"
    )
}
