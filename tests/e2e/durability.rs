//! What was acknowledged is there after `kill -9`, and one directory has one owner.

use std::process::Command;

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

/// A small file system of its own, where this machine lets us mount one.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(at: std::path::PathBuf, size: &str) -> Option<Self> {
        std::fs::create_dir_all(&at).expect("a directory");
        let options = format!("size={size},mode=0700");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(&at)
            .output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self(at));
        }
        assert!(
            std::env::var_os("CORACLE_REQUIRE_TOOLS").is_none(),
            "a tmpfs cannot be mounted, and tools are required"
        );
        println!("skipped: a tmpfs cannot be mounted here");
        None
    }

    fn grow(&self, size: &str) {
        let done = Command::new("mount")
            .args(["-o", &format!("remount,size={size}")])
            .arg(&self.0)
            .status();
        assert!(done.expect("mount runs").success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_refuses_writes_while_reads_go_on() {
    if !have("kubectl") {
        return;
    }
    let mut cluster = Cluster::stopped();
    let Some(disk) = SmallDisk::mount(cluster.data_dir(), "48m") else {
        return;
    };
    cluster.start_again();
    let payload = cluster.path("payload");
    std::fs::write(&payload, "x".repeat(900_000)).expect("written");
    let from = format!("--from-file=payload={}", payload.display());
    let mut acknowledged = Vec::new();
    let refusal = (0..200).find_map(|n| {
        let name = format!("big-{n}");
        let output = cluster.try_kubectl(&["create", "configmap", &name, &from]);
        if output.status.success() {
            acknowledged.push(name);
            return None;
        }
        Some(String::from_utf8_lossy(&output.stderr).into_owned())
    });
    let refusal = refusal.expect("48 MB do not hold 180 MB");
    assert!(refusal.contains("full"), "{refusal}");
    assert!(!acknowledged.is_empty());
    for name in &acknowledged {
        assert!(
            cluster.get(&["cm", name]).is_some(),
            "{name} can still be read"
        );
    }
    cluster.kill();
    disk.grow("200m");
    cluster.start_again();
    for name in &acknowledged {
        assert!(
            cluster.get(&["cm", name]).is_some(),
            "{name} was acknowledged and is gone"
        );
    }
    cluster.kubectl(&["create", "configmap", "again", "--from-literal=a=b"]);
    cluster.kill();
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
