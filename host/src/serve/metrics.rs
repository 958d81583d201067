//! What this node's containers use and say to one another, as Prometheus text; kubelet's and cAdvisor's names where they have one.

use std::fmt::Write;
use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use crate::network::Network;
use crate::pods::known::{Known, Sample};

/// Name, kind, help, and the value of one container.
type Family = (&'static str, &'static str, &'static str, fn(&Sample) -> f64);

const NANOS: f64 = 1e9;

#[expect(clippy::cast_precision_loss, reason = "Prometheus values are floats")]
const FAMILIES: [Family; 6] = [
    (
        "container_cpu_usage_seconds_total",
        "counter",
        "CPU time used inside the guest, in seconds",
        |sample| sample.usage.cpu_nanos as f64 / NANOS,
    ),
    (
        "container_memory_working_set_bytes",
        "gauge",
        "Linear memories and tables of the guest, in bytes",
        |sample| sample.usage.memory_bytes as f64,
    ),
    (
        "container_cpu_cfs_throttled_periods_total",
        "counter",
        "Times the guest had to wait for its CPU limit",
        |sample| sample.usage.throttled as f64,
    ),
    (
        "container_cpu_cfs_throttled_seconds_total",
        "counter",
        "Time the guest had to wait for its CPU limit, in seconds",
        |sample| sample.usage.throttled_nanos as f64 / NANOS,
    ),
    (
        "coracle_container_requests_total",
        "counter",
        "HTTP requests the guest took",
        |sample| sample.usage.requests as f64,
    ),
    (
        "coracle_container_failed_requests_total",
        "counter",
        "HTTP requests the guest failed",
        |sample| sample.usage.failed_requests as f64,
    ),
];

pub(super) async fn metrics(State((known, network)): State<(Known, Arc<Network>)>) -> Response {
    let mut text = text(known.count(), &known.samples());
    text.push_str(&network.metrics());
    (
        [(
            header::CONTENT_TYPE,
            "text/plain; version=0.0.4; charset=utf-8",
        )],
        text,
    )
        .into_response()
}

fn text(pods: usize, samples: &[Sample]) -> String {
    let mut out = String::new();
    // Writing into a String cannot fail.
    let _ = writeln!(
        out,
        "# HELP kubelet_running_pods Pods on this node\n# TYPE kubelet_running_pods gauge"
    );
    let _ = writeln!(out, "kubelet_running_pods {pods}");
    let _ = writeln!(
        out,
        "# HELP kubelet_running_containers Containers running on this node"
    );
    let _ = writeln!(
        out,
        "# TYPE kubelet_running_containers gauge\nkubelet_running_containers {}",
        samples.len()
    );
    for (name, kind, help, value) in FAMILIES {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for sample in samples {
            let (namespace, pod, container) = (&sample.namespace, &sample.pod, &sample.container);
            let labels =
                format!("container=\"{container}\",namespace=\"{namespace}\",pod=\"{pod}\"");
            let _ = writeln!(out, "{name}{{{labels}}} {}", value(sample));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Usage;

    #[test]
    fn every_family_has_a_line_per_container() {
        let sample = Sample {
            namespace: "default".to_owned(),
            pod: "web".to_owned(),
            container: "app".to_owned(),
            usage: Usage {
                cpu_nanos: 1_500_000_000,
                ..Usage::default()
            },
        };
        let text = text(1, &[sample]);
        assert!(text.contains(
            "container_cpu_usage_seconds_total{container=\"app\",namespace=\"default\",pod=\"web\"} 1.5\n"
        ));
        assert_eq!(text.matches("container=\"app\"").count(), FAMILIES.len());
    }
}
