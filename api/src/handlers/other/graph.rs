//! The service graph: who calls whom, how much, how well and how safely. Each node knows what reached its pods; this adds
//! the nodes' pictures up. Nothing is kept here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt as _};
use http::StatusCode;
use http_body_util::{BodyExt as _, Limited};
use serde_json::{Value, json};

use crate::handlers::Api;
use crate::handlers::reply::Reply;
use crate::status::Error;

pub(super) const PATH: &str = "/coracle/v1/graph";
/// Nodes asked at once.
const AT_ONCE: usize = 32;
/// How long one node may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Of one node's picture.
const MOST: usize = 32 << 20;
/// Sums of counters: what can be added.
const SUMS: [&str; 8] = [
    "connections",
    "openConnections",
    "requests",
    "errors",
    "requestsPerSecond",
    "durationSeconds",
    "sentBytes",
    "receivedBytes",
];

pub(super) async fn serve(api: &Arc<Api>) -> Result<Reply, Error> {
    let nodes = api.cache.snapshot("nodes");
    let names: Vec<String> = nodes.iter().map(|node| node.key.name.to_string()).collect();
    let pictures: Vec<(String, Result<Value, String>)> = stream::iter(names)
        .map(|name| async move {
            let picture = tokio::time::timeout(PATIENCE, ask(api, &name)).await;
            let picture = picture.unwrap_or_else(|_| Err("it did not answer in time".to_owned()));
            (name, picture)
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    Ok(Reply::value(StatusCode::OK, &join(pictures)))
}

async fn ask(api: &Api, node: &str) -> Result<Value, String> {
    let response = api.nodes.get(api, node, "/graph", "").await;
    let response = response.map_err(|error| error.message)?;
    let status = response.status();
    if !status.is_success() {
        return Err(format!("it answered {status}"));
    }
    let body = Limited::new(response.into_body(), MOST).collect().await;
    let body = body.map_err(|error| error.to_string())?.to_bytes();
    serde_json::from_slice(&body).map_err(|error| error.to_string())
}

/// Adds up what the nodes have seen, and says which did not tell. Pure.
fn join(mut pictures: Vec<(String, Result<Value, String>)>) -> Value {
    pictures.sort_by(|a, b| a.0.cmp(&b.0));
    let mut edges: BTreeMap<String, Value> = BTreeMap::new();
    let (mut told, mut silent) = (Vec::new(), Vec::new());
    let mut bounds = Vec::new();
    for (node, picture) in pictures {
        let mut picture = match picture {
            Ok(picture) => picture,
            Err(why) => {
                silent.push(json!({ "node": node, "message": why }));
                continue;
            }
        };
        told.push(node);
        if let Value::Array(known) = picture["bucketBoundsMicroseconds"].take() {
            bounds = known;
        }
        let Value::Array(more) = picture["edges"].take() else {
            continue;
        };
        for edge in more {
            let key = format!(
                "{} {} {}",
                edge["source"], edge["destination"], edge["security"]
            );
            match edges.get_mut(&key) {
                Some(sum) => add(sum, &edge),
                None => {
                    edges.insert(key, edge);
                }
            }
        }
    }
    let edges: Vec<Value> = edges
        .into_values()
        .map(|edge| finish(edge, &bounds))
        .collect();
    json!({
        "kind": "ServiceGraph",
        "apiVersion": "coracle.dev/v1",
        "nodes": told,
        "unavailable": silent,
        "edges": edges,
    })
}

fn add(sum: &mut Value, edge: &Value) {
    for name in SUMS {
        let (a, b) = (&sum[name], &edge[name]);
        sum[name] = match (a.as_u64(), b.as_u64()) {
            (Some(a), Some(b)) => json!(a.saturating_add(b)),
            _ => json!(a.as_f64().unwrap_or(0.0) + b.as_f64().unwrap_or(0.0)),
        };
    }
    if let (Some(a), Some(b)) = (
        sum["durationBuckets"].as_array(),
        edge["durationBuckets"].as_array(),
    ) {
        let added: Vec<u64> = a
            .iter()
            .zip(b)
            .map(|(a, b)| a.as_u64().unwrap_or(0) + b.as_u64().unwrap_or(0))
            .collect();
        sum["durationBuckets"] = json!(added);
    }
}

/// Quantiles instead of buckets, which nobody reads.
fn finish(mut edge: Value, bounds: &[Value]) -> Value {
    let buckets: Vec<u64> = edge["durationBuckets"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|count| count.as_u64().unwrap_or(0))
        .collect();
    let bounds: Vec<u64> = bounds.iter().filter_map(Value::as_u64).collect();
    if let Some(fields) = edge.as_object_mut() {
        fields.remove("durationBuckets");
        for (name, part) in [("p50Seconds", 0.5), ("p99Seconds", 0.99)] {
            if let Some(seconds) = quantile(&buckets, &bounds, part) {
                fields.insert(name.to_owned(), json!(seconds));
            }
        }
    }
    edge
}

/// By linear interpolation within the bucket, as Prometheus estimates; `None` without requests.
#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn quantile(buckets: &[u64], bounds: &[u64], part: f64) -> Option<f64> {
    let total: u64 = buckets.iter().sum();
    if total == 0 {
        return None;
    }
    let wanted = total as f64 * part;
    let mut below = 0.0;
    for (at, count) in buckets.iter().enumerate() {
        let count = *count as f64;
        if below + count >= wanted && count > 0.0 {
            let low = at
                .checked_sub(1)
                .map_or(0, |at| bounds[at.min(bounds.len() - 1)]) as f64;
            // Beyond the last bound nothing is known but that.
            let high = bounds.get(at).map_or(low, |bound| *bound as f64);
            let micros = low + (high - low) * ((wanted - below) / count);
            return Some(micros / 1e6);
        }
        below += count;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(requests: u64, buckets: [u64; 3]) -> Value {
        json!({
            "source": {"namespace": "shop", "workload": "web"},
            "destination": {"namespace": "shop", "workload": "db"},
            "security": "mutual_tls", "requests": requests, "errors": 1, "requestsPerSecond": 0.5,
            "durationBuckets": buckets,
        })
    }

    #[test]
    fn what_two_nodes_saw_adds_up_and_who_is_silent_is_named() {
        let picture =
            |edge: Value| json!({"bucketBoundsMicroseconds": [1000, 2000], "edges": [edge]});
        let graph = join(vec![
            ("n2".to_owned(), Ok(picture(edge(3, [0, 3, 0])))),
            ("n1".to_owned(), Ok(picture(edge(1, [1, 0, 0])))),
            ("n3".to_owned(), Err("it did not answer in time".to_owned())),
        ]);
        assert_eq!(graph["nodes"], json!(["n1", "n2"]));
        assert_eq!(graph["unavailable"][0]["node"], "n3");
        let edges = graph["edges"].as_array().expect("edges");
        assert_eq!(edges.len(), 1);
        assert_eq!(
            (&edges[0]["requests"], &edges[0]["errors"]),
            (&json!(4), &json!(2))
        );
        assert_eq!(edges[0]["requestsPerSecond"], 1.0);
        let p50 = edges[0]["p50Seconds"].as_f64().expect("a quantile");
        assert!((p50 - 0.001_333).abs() < 0.000_01, "{p50}");
    }

    #[test]
    fn beyond_the_last_bound_the_bound_is_all_that_is_known() {
        assert_eq!(quantile(&[0, 0, 5], &[1000, 2000], 0.5), Some(0.002));
        assert_eq!(quantile(&[0, 0, 0], &[1000, 2000], 0.5), None);
    }
}
