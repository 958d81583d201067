//! The main job: one command, and `Hello World!` at the address it prints.

use crate::harness::{Cluster, binary, have, http_get, wait_for};

/// The address that the table gives for a service.
pub(crate) fn address(greeting: &str, service: &str) -> String {
    let line = greeting
        .lines()
        .find(|line| line.contains(service) && line.contains("http://"));
    let line = line.unwrap_or_else(|| panic!("no address for {service} in:\n{greeting}"));
    // `http://127.0.0.1:40861/ (port 80 is taken on 127.0.0.1)`
    let rest = line.split("http://").nth(1).unwrap_or_default();
    rest.split('/').next().unwrap_or_default().to_owned()
}

#[test]
fn up_serves_hello_world_and_the_load_generator_counts() {
    if !have("kubectl") {
        return;
    }
    let mut cluster = Cluster::with(&["manifests/helloserver"]);
    let address = address(&cluster.greeting, "hellosvc");
    let (status, body) = wait_for("an answer of hellosvc", || http_get(&address, "/"));
    assert_eq!((status, body.trim()), (200, "Hello World!"));

    let pod = cluster.pod_of("app=loadgenerator");
    // It may have started before the server was ready; from then on nothing fails.
    wait_for(
        "the load generator to count successes and no new failures",
        || {
            let log = cluster.kubectl(&["logs", &pod]);
            let reports: Vec<_> = log
                .lines()
                .filter_map(|line| line.strip_prefix("http://hellosvc:80/: "))
                .collect();
            let failed = |report: &&str| report.split(", ").nth(1).map(str::to_owned);
            let last_two = reports.len().checked_sub(2).map(|at| &reports[at..])?;
            (!last_two[1].starts_with("0 ") && failed(&last_two[0]) == failed(&last_two[1]))
                .then_some(())
        },
    );
    assert_eq!(cluster.interrupt(), Some(0), "Ctrl-C drains and ends well");

    cluster.start_again();
    let address = self::address(&cluster.greeting, "hellosvc");
    let (_, body) = wait_for("an answer after the restart", || http_get(&address, "/"));
    assert_eq!(body.trim(), "Hello World!");
}

#[test]
fn a_job_for_ci_ends_by_itself_and_says_what_was_missing() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut up = binary();
    up.args([
        "up",
        "--listen",
        "127.0.0.1:0",
        "--exit-when-ready",
        "--data-dir",
    ])
    .arg(dir.path().join("a"));
    let output = up.arg("manifests/helloserver").output().expect("it runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(String::from_utf8_lossy(&output.stdout).contains("1/1 ready"));

    let manifest = dir.path().join("bad.yaml");
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: lost}\nspec:\n  containers:\n  - {name: a, image: 'no.such/image:v1', imagePullPolicy: Never}\n";
    std::fs::write(&manifest, text).expect("written");
    let mut up = binary();
    up.args([
        "up",
        "--listen",
        "127.0.0.1:0",
        "--exit-when-ready",
        "--timeout",
        "5s",
        "--data-dir",
    ])
    .arg(dir.path().join("b"));
    let output = up.arg(&manifest).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("pod/lost") && said.contains("ErrImageNeverPull"),
        "{said}"
    );
}
