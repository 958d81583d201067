//! What clients outside were answered by Ingress and Gateway: a counter by route and status code. Never blocks a request for
//! more than a map lookup.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use types::routing::Key;
use types::routing::origin::{Origin, RouteKind};

/// Routes remembered; later ones are counted together.
const ROUTES: usize = 10_000;
const OTHER: &str = "other";

#[derive(Default)]
pub(crate) struct Answers {
    routes: RwLock<HashMap<Key, Codes>>,
    /// Of those beyond.
    others: Codes,
    /// Of requests no route was found for.
    none: Codes,
}

/// An Ingress and an HTTPRoute may have one name.
type Codes = RwLock<Vec<(Option<RouteKind>, u16, AtomicU64)>>;

// === impl Answers ===

impl Answers {
    pub(crate) fn add(&self, origin: Option<&Origin>, code: u16) {
        let Some(Origin { kind, about }) = origin else {
            return add(&self.none, None, code);
        };
        {
            let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(codes) = routes.get(about) {
                return add(codes, Some(*kind), code);
            }
            if routes.len() >= ROUTES {
                return add(&self.others, Some(*kind), code);
            }
        }
        let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
        add(routes.entry(about.clone()).or_default(), Some(*kind), code);
    }

    /// Prometheus' text format 0.0.4. Names of routes are Kubernetes names: nothing in them needs escaping.
    pub(crate) fn prometheus(&self) -> String {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        let mut lines = Vec::new();
        tell(&mut lines, ("", ""), &self.none);
        tell(&mut lines, ("", OTHER), &self.others);
        for (key, codes) in routes.iter() {
            tell(&mut lines, (&key.namespace, &key.name), codes);
        }
        lines.sort_unstable();
        let name = "coracle_ingress_requests_total";
        let mut out = String::new();
        // Writing into a String cannot fail.
        let _ = writeln!(
            out,
            "# HELP {name} Answers to clients outside by route and status code\n# TYPE {name} counter"
        );
        for line in lines {
            let _ = writeln!(out, "{name}{{{line}");
        }
        out
    }
}

fn tell(lines: &mut Vec<String>, (namespace, name): (&str, &str), codes: &Codes) {
    let codes = codes.read().unwrap_or_else(PoisonError::into_inner);
    for (kind, code, count) in codes.iter() {
        let kind = kind.map_or_else(String::new, |kind| kind.to_string());
        let count = count.load(Ordering::Relaxed);
        lines.push(format!(
            "kind=\"{kind}\",namespace=\"{namespace}\",name=\"{name}\",code=\"{code}\"}} {count}"
        ));
    }
}

fn add(codes: &Codes, kind: Option<RouteKind>, code: u16) {
    let is_it = |known: &(Option<RouteKind>, u16, AtomicU64)| (known.0, known.1) == (kind, code);
    {
        let codes = codes.read().unwrap_or_else(PoisonError::into_inner);
        if let Some((.., count)) = codes.iter().find(|known| is_it(known)) {
            count.fetch_add(1, Ordering::Relaxed);
            return;
        }
    }
    let mut codes = codes.write().unwrap_or_else(PoisonError::into_inner);
    match codes.iter().find(|known| is_it(known)) {
        Some((.., count)) => {
            count.fetch_add(1, Ordering::Relaxed);
        }
        None => codes.push((kind, code, AtomicU64::new(1))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_by_route_and_code() {
        let answers = Answers::default();
        let of = |kind| Origin {
            kind,
            about: Key {
                namespace: "shop".to_owned(),
                name: "web".to_owned(),
            },
        };
        for (kind, code) in [
            (RouteKind::Ingress, 200),
            (RouteKind::Ingress, 504),
            (RouteKind::HttpRoute, 200),
            (RouteKind::Ingress, 200),
        ] {
            answers.add(Some(&of(kind)), code);
        }
        answers.add(None, 404);
        let text = answers.prometheus();
        let lines: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(
            lines,
            [
                r#"coracle_ingress_requests_total{kind="",namespace="",name="",code="404"} 1"#,
                r#"coracle_ingress_requests_total{kind="HTTPRoute",namespace="shop",name="web",code="200"} 1"#,
                r#"coracle_ingress_requests_total{kind="Ingress",namespace="shop",name="web",code="200"} 2"#,
                r#"coracle_ingress_requests_total{kind="Ingress",namespace="shop",name="web",code="504"} 1"#,
            ]
        );
    }
}
