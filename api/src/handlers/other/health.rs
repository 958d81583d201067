//! `/healthz`, `/livez`, `/readyz`: `ok`, or which check fails. `?verbose`, `&exclude=`, and one check by its path.

use http::StatusCode;

use crate::handlers::Api;
use crate::handlers::reply::Reply;
use crate::request::Query;

struct Check {
    name: &'static str,
    /// Only readiness asks this.
    ready_only: bool,
    passes: fn(&Api) -> bool,
}

/// Upstream's names where the meaning is the same; `etcd` is the store.
const CHECKS: &[Check] = &[
    Check {
        name: "ping",
        ready_only: false,
        passes: |_| true,
    },
    Check {
        name: "log",
        ready_only: false,
        passes: |_| true,
    },
    Check {
        name: "etcd",
        ready_only: false,
        passes: |api| api.store.health().is_ok(),
    },
    Check {
        name: "informer-sync",
        ready_only: true,
        passes: |_| true,
    },
    Check {
        name: "poststarthook/bootstrap-system-objects",
        ready_only: false,
        passes: |api| api.cache.find("namespaces", "", "default").is_some(),
    },
    Check {
        name: "shutdown",
        ready_only: true,
        passes: |api| !api.stopping.is_cancelled(),
    },
];

/// `path` is `/readyz` or `/readyz/etcd`.
pub(super) fn serve(api: &Api, path: &str, query: &Query) -> Reply {
    let mut parts = path.trim_start_matches('/').splitn(2, '/');
    let endpoint = parts.next().unwrap_or_default();
    let asked = CHECKS
        .iter()
        .filter(|check| endpoint == "readyz" || !check.ready_only);
    if let Some(one) = parts.next() {
        let found = asked.into_iter().find(|check| check.name == one);
        return match found {
            None => Reply::no_page(),
            Some(check) if (check.passes)(api) => Reply::text(StatusCode::OK, "ok"),
            Some(_) => Reply::text(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal server error: check failed",
            ),
        };
    }
    let excluded: Vec<&str> = query.all("exclude").collect();
    let mut page = String::new();
    let mut healthy = true;
    for check in asked {
        if excluded.contains(&check.name) {
            page.push_str(&format!("[+]{} excluded: ok\n", check.name));
        } else if (check.passes)(api) {
            page.push_str(&format!("[+]{} ok\n", check.name));
        } else {
            healthy = false;
            page.push_str(&format!("[-]{} failed: reason withheld\n", check.name));
        }
    }
    match (healthy, query.has("verbose")) {
        (true, false) => Reply::text(StatusCode::OK, "ok"),
        (true, true) => {
            page.push_str(&format!("{endpoint} check passed\n"));
            Reply::text(StatusCode::OK, page)
        }
        (false, _) => {
            page.push_str(&format!("{endpoint} check failed\n"));
            Reply::text(StatusCode::INTERNAL_SERVER_ERROR, page)
        }
    }
}
