//! The counters as text for Prometheus, and as the edges of the service graph. Pure.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{BOUNDS, Flow, OUTSIDE};

/// Name, kind, help, and the value of one pair.
type Family = (&'static str, &'static str, &'static str, fn(&Flow) -> u64);

const CLASSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "none"];
const FAMILIES: [Family; 4] = [
    (
        "coracle_mesh_connections_total",
        "counter",
        "Connections opened between two workloads",
        |flow| flow.connections,
    ),
    (
        "coracle_mesh_open_connections",
        "gauge",
        "Connections open between two workloads",
        |flow| flow.open_connections,
    ),
    (
        "coracle_mesh_sent_bytes_total",
        "counter",
        "Bytes of bodies and streams from source to destination",
        |flow| flow.bytes_sent,
    ),
    (
        "coracle_mesh_received_bytes_total",
        "counter",
        "Bytes of bodies and streams from destination to source",
        |flow| flow.bytes_received,
    ),
];

/// Prometheus' text format 0.0.4. Names of workloads are Kubernetes names: nothing in them needs escaping.
pub(crate) fn prometheus(flows: &[Flow], left_out: u64) -> String {
    let mut out = String::new();
    // Writing into a String cannot fail.
    for (name, kind, help, value) in FAMILIES {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for flow in flows {
            let _ = writeln!(out, "{name}{{{}}} {}", labels(flow), value(flow));
        }
    }
    let name = "coracle_mesh_requests_total";
    let _ = writeln!(
        out,
        "# HELP {name} HTTP requests by class of the answer's status\n# TYPE {name} counter"
    );
    for flow in flows {
        for (class, count) in CLASSES.iter().zip(flow.answers) {
            if count > 0 {
                let labels = labels(flow);
                let _ = writeln!(out, "{name}{{{labels},response_class=\"{class}\"}} {count}");
            }
        }
    }
    let name = "coracle_mesh_request_duration_seconds";
    let _ = writeln!(
        out,
        "# HELP {name} Time to the head of the answer\n# TYPE {name} histogram"
    );
    for flow in flows.iter().filter(|flow| flow.requests > 0) {
        histogram(&mut out, name, flow);
    }
    let name = "coracle_mesh_left_out_total";
    let _ = writeln!(
        out,
        "# HELP {name} Requests and connections of pairs of workloads there was no room to count\n# TYPE {name} counter\n{name} {left_out}"
    );
    out
}

fn histogram(out: &mut String, name: &str, flow: &Flow) {
    let labels = labels(flow);
    let mut total = 0;
    for (at, count) in flow.buckets.iter().enumerate() {
        total += count;
        let bound = BOUNDS.get(at).map_or("+Inf".to_owned(), |micros| {
            format!(
                "{}",
                std::time::Duration::from_micros(*micros).as_secs_f64()
            )
        });
        let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {total}");
    }
    let sum = flow.duration.as_secs_f64();
    let _ = writeln!(out, "{name}_sum{{{labels}}} {sum}");
    let _ = writeln!(out, "{name}_count{{{labels}}} {total}");
}

fn labels(flow: &Flow) -> String {
    let (source_namespace, source) = split(&flow.source);
    let (namespace, destination) = split(&flow.destination);
    format!(
        "source_workload=\"{source}\",source_namespace=\"{source_namespace}\",destination_workload=\"{destination}\",\
         destination_namespace=\"{namespace}\",connection_security=\"{}\"",
        flow.security.as_str()
    )
}

/// Namespace and name; what is not in the cluster has no namespace.
fn split(workload: &str) -> (&str, &str) {
    workload.split_once('/').unwrap_or(("", workload))
}

/// What this node has seen, for whoever joins the nodes' pictures: sums can be added, buckets too.
pub(crate) fn graph(node: &str, flows: &[Flow]) -> Value {
    let edges: Vec<Value> = flows
        .iter()
        .map(|flow| {
            let end = |workload: &str| match workload {
                OUTSIDE => json!({ "outside": true }),
                workload => {
                    let (namespace, name) = split(workload);
                    json!({ "namespace": namespace, "workload": name })
                }
            };
            json!({
                "source": end(&flow.source),
                "destination": end(&flow.destination),
                "security": flow.security.as_str(),
                "connections": flow.connections,
                "openConnections": flow.open_connections,
                "requests": flow.requests,
                "errors": flow.errors,
                "requestsPerSecond": flow.rate,
                "durationSeconds": flow.duration.as_secs_f64(),
                "durationBuckets": flow.buckets,
                "sentBytes": flow.bytes_sent,
                "receivedBytes": flow.bytes_received,
            })
        })
        .collect();
    json!({ "node": node, "bucketBoundsMicroseconds": BOUNDS, "edges": edges })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{Security, Traffic};
    use super::*;

    fn flows() -> Vec<Flow> {
        let traffic = Traffic::default();
        let (web, outside) = (traffic.workload("shop/web"), traffic.workload(OUTSIDE));
        let pair = traffic.pair(&outside, &web, Security::Outside).unwrap();
        pair.answered(Some(200), Duration::from_micros(400));
        pair.answered(Some(500), Duration::from_millis(2));
        traffic.flows()
    }

    #[test]
    fn a_histogram_is_cumulative_and_ends_with_everything() {
        let text = prometheus(&flows(), 3);
        let labels = "source_workload=\"outside\",source_namespace=\"\",destination_workload=\"web\",\
                      destination_namespace=\"shop\",connection_security=\"outside\"";
        for line in [
            format!("coracle_mesh_request_duration_seconds_bucket{{{labels},le=\"0.00025\"}} 0"),
            format!("coracle_mesh_request_duration_seconds_bucket{{{labels},le=\"0.0005\"}} 1"),
            format!("coracle_mesh_request_duration_seconds_bucket{{{labels},le=\"0.0025\"}} 2"),
            format!("coracle_mesh_request_duration_seconds_bucket{{{labels},le=\"+Inf\"}} 2"),
            format!("coracle_mesh_request_duration_seconds_count{{{labels}}} 2"),
            format!("coracle_mesh_requests_total{{{labels},response_class=\"5xx\"}} 1"),
            "coracle_mesh_left_out_total 3".to_owned(),
        ] {
            assert!(text.contains(&line), "{line}\nin\n{text}");
        }
    }

    #[test]
    fn the_graph_names_both_ends() {
        let graph = graph("n1", &flows());
        assert_eq!(graph["edges"][0]["source"], json!({ "outside": true }));
        assert_eq!(
            graph["edges"][0]["destination"],
            json!({ "namespace": "shop", "workload": "web" })
        );
        assert_eq!(graph["edges"][0]["errors"], 1);
    }
}
