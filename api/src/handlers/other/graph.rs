//! The service graph: who calls whom, how much, how well and how safely. Each node knows what reached its pods; this adds
//! the nodes' pictures up. Nothing is kept here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt as _};
use http::StatusCode;
use http_body_util::{BodyExt as _, Limited};
use serde_json::{Map, Value, json};

use crate::handlers::Api;
use crate::handlers::reply::Reply;
use crate::status::Error;

pub(super) const PATH: &str = "/coracle/v1/graph";
/// Nodes asked at once.
const AT_ONCE: usize = 32;
/// How long one node may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Of one node's picture.
const MOST: usize = 2 << 20;
const BUCKETS: &str = "durationBuckets";
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
    let pictures = stream::iter(names)
        .map(|name| async move {
            let picture = tokio::time::timeout(PATIENCE, ask(api, &name)).await;
            let picture = picture.unwrap_or_else(|_| Err("it did not answer in time".to_owned()));
            (name, picture)
        })
        .buffer_unordered(AT_ONCE);
    // Added up as they come: what all nodes say at once could be much.
    let mut whole = Whole::default();
    let mut pictures = std::pin::pin!(pictures);
    while let Some((node, picture)) = pictures.next().await {
        whole.add(node, picture);
    }
    Ok(Reply::value(StatusCode::OK, &whole.finish()))
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

/// What the nodes that have answered saw. They are not trusted: what has no such form is passed over.
#[derive(Default)]
struct Whole {
    edges: BTreeMap<String, Edge>,
    told: Vec<String>,
    silent: BTreeMap<String, String>,
}

/// A sum, and what its buckets mean.
struct Edge {
    sum: Map<String, Value>,
    bounds: Arc<[u64]>,
}

// === impl Whole ===

impl Whole {
    fn add(&mut self, node: String, picture: Result<Value, String>) {
        let mut picture = match picture {
            Ok(Value::Object(picture)) => picture,
            Ok(_) => {
                let why = "it answered something that is no picture".to_owned();
                self.silent.insert(node, why);
                return;
            }
            Err(why) => {
                self.silent.insert(node, why);
                return;
            }
        };
        self.told.push(node);
        let bounds = picture.get("bucketBoundsMicroseconds").map(numbers);
        let bounds: Arc<[u64]> = bounds.unwrap_or_default().into();
        let Some(Value::Array(edges)) = picture.remove("edges") else {
            return;
        };
        for edge in edges {
            let Value::Object(edge) = edge else {
                continue;
            };
            let part = |name| edge.get(name).unwrap_or(&Value::Null);
            let key = format!(
                "{} {} {}",
                part("source"),
                part("destination"),
                part("security")
            );
            match self.edges.get_mut(&key) {
                Some(sum) => sum.add(&edge, &bounds),
                None => {
                    let bounds = Arc::clone(&bounds);
                    self.edges.insert(key, Edge { sum: edge, bounds });
                }
            }
        }
    }

    /// What was seen, and which nodes did not tell.
    fn finish(mut self) -> Value {
        self.told.sort_unstable();
        let silent = self.silent.into_iter();
        let silent: Vec<Value> = silent
            .map(|(node, why)| json!({ "node": node, "message": why }))
            .collect();
        let edges: Vec<Value> = self.edges.into_values().map(Edge::finish).collect();
        json!({
            "kind": "ServiceGraph",
            "apiVersion": "coracle.dev/v1",
            "nodes": self.told,
            "unavailable": silent,
            "edges": edges,
        })
    }
}

// === impl Edge ===

impl Edge {
    fn add(&mut self, more: &Map<String, Value>, bounds: &Arc<[u64]>) {
        for name in SUMS {
            let (a, b) = (self.sum.get(name), more.get(name));
            let whole = |value: Option<&Value>| value.map_or(Some(0), Value::as_u64);
            let sum = match (whole(a), whole(b)) {
                (Some(a), Some(b)) => json!(a.saturating_add(b)),
                _ => {
                    let number = |value: Option<&Value>| value.and_then(Value::as_f64);
                    json!(number(a).unwrap_or(0.0) + number(b).unwrap_or(0.0))
                }
            };
            if a.is_some() || b.is_some() {
                self.sum.insert(name.to_owned(), sum);
            }
        }
        // Who counts in other buckets cannot be added.
        if self.bounds != *bounds {
            return;
        }
        if let (Some(a), Some(b)) = (self.sum.get(BUCKETS), more.get(BUCKETS)) {
            let (a, b) = (numbers(a).into_iter(), numbers(b).into_iter());
            let added: Vec<u64> = a.zip(b).map(|(a, b)| a.saturating_add(b)).collect();
            self.sum.insert(BUCKETS.to_owned(), json!(added));
        }
    }

    /// Quantiles instead of buckets, which nobody reads.
    fn finish(mut self) -> Value {
        let buckets = self.sum.remove(BUCKETS).as_ref().map(numbers);
        let buckets = buckets.unwrap_or_default();
        for (name, part) in [("p50Seconds", 0.5), ("p99Seconds", 0.99)] {
            match quantile(&buckets, &self.bounds, part) {
                Some(Quantile::Is(seconds)) => {
                    self.sum.insert(name.to_owned(), json!(seconds));
                }
                Some(Quantile::AtLeast(seconds)) => {
                    self.sum.insert(format!("{name}AtLeast"), json!(seconds));
                }
                None => {}
            }
        }
        self.sum.into()
    }
}

/// A list of counts; what is none counts as zero.
fn numbers(list: &Value) -> Vec<u64> {
    let list = list.as_array().into_iter().flatten();
    list.map(|number| number.as_u64().unwrap_or(0)).collect()
}

#[derive(Debug, PartialEq)]
enum Quantile {
    Is(f64),
    /// Beyond the last bound nothing is known but that.
    AtLeast(f64),
}

/// By linear interpolation within the bucket, as Prometheus estimates; `None` without requests.
#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn quantile(buckets: &[u64], bounds: &[u64], part: f64) -> Option<Quantile> {
    let total = buckets.iter().fold(0u64, |sum, n| sum.saturating_add(*n));
    let last = *bounds.last()?;
    if total == 0 {
        return None;
    }
    let wanted = total as f64 * part;
    let mut below = 0.0;
    for (at, count) in buckets.iter().enumerate() {
        let count = *count as f64;
        if below + count >= wanted && count > 0.0 {
            let below_it = |at: usize| bounds.get(at).copied().unwrap_or(last);
            let low = at.checked_sub(1).map_or(0, below_it) as f64;
            let Some(high) = bounds.get(at) else {
                return Some(Quantile::AtLeast(low / 1e6));
            };
            let micros = low + (*high as f64 - low) * ((wanted - below) / count);
            return Some(Quantile::Is(micros / 1e6));
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

    fn join(pictures: Vec<(&str, Result<Value, String>)>) -> Value {
        let mut whole = Whole::default();
        for (node, picture) in pictures {
            whole.add(node.to_owned(), picture);
        }
        whole.finish()
    }

    #[test]
    fn one_nodes_nonsense_spoils_nobody_elses_picture() {
        let good = json!({"bucketBoundsMicroseconds": [1000, 2000], "edges": [edge(3, [0, 3, 0])]});
        let alone = join(vec![("good", Ok(good.clone()))]);
        for bad in [
            json!({"edges": [edge(3, [0, 3, 0])]}),
            json!({"bucketBoundsMicroseconds": [], "edges": [edge(3, [u64::MAX, u64::MAX, 1])]}),
            json!({"bucketBoundsMicroseconds": "x", "edges": ["x", 1, null, [], {}]}),
            json!({"bucketBoundsMicroseconds": [1], "edges": [{"durationBuckets": {"a": 1}, "requests": "x"}]}),
            json!({"edges": "x"}),
            json!("x"),
            json!(null),
        ] {
            let bad_first = vec![("bad", Ok(bad.clone())), ("good", Ok(good.clone()))];
            let bad_last = vec![("good", Ok(good.clone())), ("bad", Ok(bad.clone()))];
            for pictures in [bad_first, bad_last, vec![("bad", Ok(bad.clone()))]] {
                join(pictures);
            }
            let both = join(vec![("good", Ok(good.clone())), ("bad", Ok(bad.clone()))]);
            let edges = both["edges"].as_array().expect("edges");
            let edge = edges
                .iter()
                .find(|edge| edge["source"]["workload"] == "web");
            let edge = edge.expect("the good one's");
            assert_eq!(edge["p50Seconds"], alone["edges"][0]["p50Seconds"], "{bad}");
        }
        let most = json!({"bucketBoundsMicroseconds": [1000, 2000],
            "edges": [edge(u64::MAX, [u64::MAX; 3])]});
        let both = join(vec![("a", Ok(most.clone())), ("b", Ok(most))]);
        assert_eq!(both["edges"][0]["requests"], json!(u64::MAX));
    }

    #[test]
    fn what_two_nodes_saw_adds_up_and_who_is_silent_is_named() {
        let picture =
            |edge: Value| json!({"bucketBoundsMicroseconds": [1000, 2000], "edges": [edge]});
        let graph = join(vec![
            ("n2", Ok(picture(edge(3, [0, 3, 0])))),
            ("n1", Ok(picture(edge(1, [1, 0, 0])))),
            ("n3", Err("it did not answer in time".to_owned())),
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
        let slow = quantile(&[0, 0, 5], &[1000, 2000], 0.5);
        assert_eq!(slow, Some(Quantile::AtLeast(0.002)));
        let picture =
            json!({"bucketBoundsMicroseconds": [1000, 2000], "edges": [edge(5, [3, 0, 2])]});
        let graph = join(vec![("n1", Ok(picture))]);
        assert_eq!(graph["edges"][0]["p99SecondsAtLeast"], 0.002);
        assert_eq!(graph["edges"][0]["p99Seconds"], Value::Null);
        assert!(graph["edges"][0]["p50Seconds"].is_number());
        assert_eq!(quantile(&[0, 0, 0], &[1000, 2000], 0.5), None);
    }
}
