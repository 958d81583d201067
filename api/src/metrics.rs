//! Counters of the API server, as Prometheus text. Bounded: labels come from known kinds only.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::cache::Cache;
use crate::kinds::{self, Kind};
use crate::request::RequestInfo;

/// Upper bounds in seconds of upstream's request duration histogram (a part of them).
const BUCKETS: [f64; 12] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 1.0, 2.0, 5.0, 15.0, 60.0,
];
/// More label sets than all kinds, verbs and codes make; what comes after is counted without labels.
const MOST_SERIES: usize = 8_192;

#[derive(Default)]
pub struct Metrics {
    /// By hash of the labels; held for one addition.
    requests: Mutex<BTreeMap<u64, Series>>,
    inflight: Arc<AtomicI64>,
    long_running: Arc<AtomicI64>,
    watches: Arc<AtomicI64>,
    watch_events: AtomicU64,
}

struct Series {
    labels: String,
    code: u16,
    count: u64,
    seconds: f64,
    buckets: [u64; BUCKETS.len()],
}

/// What a request names, in this server's own words: a client's text is in no label, however it was answered.
#[derive(Hash)]
struct Known {
    group: &'static str,
    version: &'static str,
    resource: &'static str,
    subresource: &'static str,
    scope: &'static str,
}

/// Counts one thing that is going on, until dropped.
pub(crate) struct Open(Arc<AtomicI64>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

// === impl Metrics ===

impl Metrics {
    pub(crate) fn begin(&self, long_running: bool) -> Open {
        let gauge = if long_running {
            &self.long_running
        } else {
            &self.inflight
        };
        open(gauge)
    }

    pub(crate) fn watch(&self, _kind: &Kind) -> Open {
        open(&self.watches)
    }

    pub(crate) fn watched(&self, events: u64) {
        self.watch_events.fetch_add(events, Relaxed);
    }

    pub(crate) fn end(&self, info: &RequestInfo, code: u16, took: Duration) {
        let known = Known::find(info);
        let key = {
            let mut hasher = DefaultHasher::new();
            (info.verb, code, &known).hash(&mut hasher);
            hasher.finish()
        };
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let key = if requests.len() < MOST_SERIES || requests.contains_key(&key) {
            key
        } else {
            0
        };
        let series = requests.entry(key).or_insert_with(|| Series {
            labels: if key == 0 {
                String::new()
            } else {
                labels(info.verb, known.as_ref())
            },
            code,
            count: 0,
            seconds: 0.0,
            buckets: [0; BUCKETS.len()],
        });
        series.count += 1;
        let seconds = took.as_secs_f64();
        series.seconds += seconds;
        for (bucket, bound) in series.buckets.iter_mut().zip(BUCKETS) {
            *bucket += u64::from(seconds <= bound);
        }
    }

    /// The whole page.
    pub(crate) fn render(&self, cache: &Cache) -> String {
        let mut page = String::with_capacity(16 * 1024);
        self.render_requests(&mut page);
        let gauges = [
            ("apiserver_current_inflight_requests", &self.inflight),
            ("apiserver_longrunning_requests", &self.long_running),
            ("apiserver_registered_watchers", &self.watches),
        ];
        for (name, gauge) in gauges {
            head(&mut page, name, "gauge");
            line(&mut page, name, "", gauge.load(Relaxed).max(0));
        }
        let name = "apiserver_watch_events_total";
        head(&mut page, name, "counter");
        line(&mut page, name, "", self.watch_events.load(Relaxed));
        let stats = cache.stats();
        let name = "apiserver_storage_objects";
        head(&mut page, name, "gauge");
        for (resource, objects, _) in &stats.resources {
            let (group, plural) = resource.rsplit_once('/').unwrap_or(("", resource));
            let labels = format!("group=\"{group}\",resource=\"{plural}\"");
            line(&mut page, name, &labels, *objects);
        }
        for (name, value) in [
            ("coracle_store_revision", stats.revision),
            ("coracle_store_horizon", stats.horizon),
            ("coracle_slow_watchers_total", stats.slow_watchers),
        ] {
            head(&mut page, name, "gauge");
            line(&mut page, name, "", value);
        }
        page
    }

    fn render_requests(&self, page: &mut String) {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        head(page, "apiserver_request_total", "counter");
        for series in requests.values() {
            let labels = format!("{}code=\"{}\"", series.labels, series.code);
            line(page, "apiserver_request_total", &labels, series.count);
        }
        let name = "apiserver_request_duration_seconds";
        head(page, name, "histogram");
        for series in requests.values() {
            let labels = format!("{}code=\"{}\"", series.labels, series.code);
            for (count, bound) in series.buckets.iter().zip(BUCKETS) {
                let bucket = format!("{labels},le=\"{bound}\"");
                line(page, &format!("{name}_bucket"), &bucket, *count);
            }
            let bucket = format!("{labels},le=\"+Inf\"");
            line(page, &format!("{name}_bucket"), &bucket, series.count);
            line(page, &format!("{name}_sum"), &labels, series.seconds);
            line(page, &format!("{name}_count"), &labels, series.count);
        }
    }
}

fn open(gauge: &Arc<AtomicI64>) -> Open {
    gauge.fetch_add(1, Relaxed);
    Open(Arc::clone(gauge))
}

// === impl Known ===

impl Known {
    /// `None` when no kind, or a kind nobody serves, is asked for.
    fn find(info: &RequestInfo) -> Option<Self> {
        let path = info.resource()?;
        let kind = kinds::table().find(&path.group, &path.version, &path.resource)?;
        let subresource = match &*path.subresource {
            "" => "",
            name => kind.subresource(name).map_or("unknown", |sub| sub.name),
        };
        Some(Self {
            group: &kind.group,
            version: &kind.version,
            resource: &kind.plural,
            subresource,
            scope: match (path.name.is_empty(), path.namespace.is_empty()) {
                (false, _) => "resource",
                (true, false) => "namespace",
                (true, true) => "cluster",
            },
        })
    }
}

/// `verb="get",group="apps",…,`.
fn labels(verb: &str, known: Option<&Known>) -> String {
    let mut labels = format!("verb=\"{}\",", verb.to_uppercase());
    if let Some(known) = known {
        for (key, value) in [
            ("group", known.group),
            ("version", known.version),
            ("resource", known.resource),
            ("subresource", known.subresource),
            ("scope", known.scope),
        ] {
            let _ = write!(labels, "{key}=\"{value}\",");
        }
    }
    labels
}

fn head(page: &mut String, name: &str, kind: &str) {
    let _ = writeln!(page, "# TYPE {name} {kind}");
}

fn line(page: &mut String, name: &str, labels: &str, value: impl std::fmt::Display) {
    let _ = if labels.is_empty() {
        writeln!(page, "{name} {value}")
    } else {
        writeln!(page, "{name}{{{labels}}} {value}")
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Query;
    use http::Method;

    #[test]
    fn requests_are_counted_by_verb_resource_and_code() {
        let metrics = Metrics::default();
        let info = RequestInfo::parse(
            &Method::GET,
            "/apis/apps/v1/namespaces/d/deployments/x",
            &Query::default(),
        );
        metrics.end(&info, 200, Duration::from_millis(3));
        metrics.end(&info, 200, Duration::from_millis(30));
        let page = metrics.render(&Cache::new(crate::cache::Config::default()));
        let labels = r#"verb="GET",group="apps",version="v1",resource="deployments",subresource="",scope="resource",code="200""#;
        assert!(
            page.contains(&format!("apiserver_request_total{{{labels}}} 2\n")),
            "{page}"
        );
        assert!(
            page.contains(&format!("_bucket{{{labels},le=\"0.005\"}} 1\n")),
            "{page}"
        );
    }

    #[test]
    fn a_clients_text_is_in_no_label() {
        let metrics = Metrics::default();
        let text = "z".repeat(65_536);
        for path in [
            format!("/api/v1/{text}"),
            format!("/apis/{text}/v1/pods"),
            format!("/apis/apps/{text}/deployments/x"),
            format!("/api/v1/namespaces/d/pods/x/{text}"),
        ] {
            let info = RequestInfo::parse(&Method::GET, &path, &Query::default());
            for code in [200, 403, 404] {
                metrics.end(&info, code, Duration::ZERO);
            }
        }
        let page = metrics.render(&Cache::new(crate::cache::Config::default()));
        assert!(!page.contains("zzz"));
        assert!(page.contains(r#"resource="pods",subresource="unknown""#));
    }
}
