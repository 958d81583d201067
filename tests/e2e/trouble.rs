//! Bad input from clients: a clear word, and nothing stops.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use crate::harness::{Cluster, have};

#[test]
fn an_invalid_object_names_every_field_that_is_wrong() {
    if !have("kubectl") {
        return;
    }
    let cluster = Cluster::start();
    let manifest = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: Bad_Name}\nspec:\n  selector: {matchLabels: {app: a}}\n  \
        template: {metadata: {labels: {app: b}}, spec: {containers: [{name: x}]}}\n";
    let said = cluster.kubectl_with_failing(&["create", "-f", "-"], manifest);
    for wanted in [
        "metadata.name",
        "spec.template.metadata.labels",
        "spec.template.spec.containers[0].image",
        "is invalid",
    ] {
        assert!(said.contains(wanted), "{wanted} is missing in {said}");
    }
    let said = cluster.kubectl_fails(&["get", "pods", "-l", "a=b=c"]);
    assert!(
        said.to_lowercase().contains("selector") || said.contains("parse"),
        "{said}"
    );
    let warned = cluster.kubectl_with(
        &["apply", "-f", "-"],
        "apiVersion: batch/v1\nkind: Job\nmetadata: {name: later}\nspec: {template: {spec: {restartPolicy: Never, containers: [{name: a, image: b}]}}}\n",
    );
    assert!(
        warned.contains("Warning:"),
        "a kind without a controller says so: {warned}"
    );
}

#[test]
fn garbage_on_the_wire_stops_nothing() {
    if !have("kubectl") {
        return;
    }
    let cluster = Cluster::start();
    let server = cluster.kubectl(&[
        "config",
        "view",
        "-o",
        "jsonpath={.clusters[0].cluster.server}",
    ]);
    let address = server.trim_start_matches("https://").to_owned();
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0; 4096],
        b"\x16\x03\x01\xff\xff",
        b"",
    ] {
        let mut stream = TcpStream::connect(&address).expect("the API listens");
        stream
            .set_read_timeout(Some(std::time::Duration::from_secs(2)))
            .expect("a time-out can be set");
        let _ = stream.write_all(garbage);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read(&mut [0; 64]);
    }
    cluster.kubectl(&["get", "nodes"]);
    assert!(
        cluster
            .kubectl_fails(&["get", "--raw", "/no/such/path"])
            .contains("could not find")
    );
}
