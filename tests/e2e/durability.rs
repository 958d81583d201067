//! What was acknowledged is there after `kill -9`, and one directory has one owner.

use crate::harness::{Cluster, binary, have, http_get, wait_for};

#[test]
fn everything_acknowledged_survives_a_kill() {
    if !have("kubectl") {
        return;
    }
    let mut cluster = Cluster::with(&["manifests/helloserver"]);
    let before = cluster.get(&["svc", "hellosvc"]).expect("applied");
    for round in 0..3 {
        let mut last = None;
        for n in 0..5 {
            let name = format!("cm-{round}-{n}");
            cluster.kubectl(&["create", "configmap", &name, "--from-literal=a=b"]);
            last = Some(name);
        }
        cluster.kill();
        cluster.start_again();
        let last = last.expect("one was created");
        assert!(
            cluster.get(&["cm", &last]).is_some(),
            "{last} was acknowledged and is gone"
        );
    }
    let after = cluster.get(&["svc", "hellosvc"]).expect("still there");
    assert_eq!(before["metadata"]["uid"], after["metadata"]["uid"]);
    assert_eq!(before["spec"]["clusterIP"], after["spec"]["clusterIP"]);
    let address = crate::main_job::address(&cluster.greeting, "hellosvc");
    let (_, body) = wait_for("the pods to come back", || http_get(&address, "/"));
    assert_eq!(body.trim(), "Hello World!");
}

#[test]
fn a_second_instance_and_a_bad_directory_are_refused_with_one_line() {
    if !have("kubectl") {
        return;
    }
    let cluster = Cluster::start();
    let output = binary()
        .args(["up", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(cluster.data_dir())
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.lines()
            .any(|line| line.contains("in use by another process")),
        "{said}"
    );

    let file = cluster.path("a-file");
    std::fs::write(&file, "").expect("written");
    let output = binary()
        .args(["up", "--data-dir"])
        .arg(file.join("data"))
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && said.starts_with("coracle: could not use the data directory"),
        "{said}"
    );

    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("bound").to_string();
    let output = binary()
        .args(["up", "--listen", &address, "--data-dir"])
        .arg(cluster.path("other"))
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.lines()
            .any(|line| line.contains(&address) && line.contains("in use")),
        "{said}"
    );
}

#[test]
fn a_manifest_that_cannot_be_read_changes_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let good = dir.path().join("a.yaml");
    let bad = dir.path().join("b.yaml");
    std::fs::write(
        &good,
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n",
    )
    .expect("written");
    std::fs::write(&bad, "apiVersion: v1\nkind: [\n").expect("written");
    let output = binary()
        .args(["up", "--data-dir"])
        .arg(dir.path().join("data"))
        .arg(&good)
        .arg(&bad)
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said.contains("b.yaml") && said.contains("cannot be read"),
        "{said}"
    );
}
