//! What decides about every request: who sends it and whether they may. Owns the indexes; the decisions themselves are pure
//! functions over them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::HeaderMap;
use jiff::Timestamp;
use serde_json::Value;
use types::well_known::GROUP_MASTERS;

use super::graph::Graph;
use super::live::{Live, Reading};
use super::node::{self, Verdict};
use super::rbac::Tables;
use super::tokens::{ISSUER, Tokens};
use super::{Attributes, Decision, User, accounts, bootstrap_tokens, impersonation};
use crate::cache::Cache;
use crate::handlers::Api;
use crate::request::{RequestInfo, ResourcePath, Target};
use crate::status::Error;

/// One per server.
pub struct Access {
    cache: Arc<Cache>,
    tokens: Tokens,
    rbac: Live<Tables>,
    graph: Live<Graph>,
    /// Requests refused so far.
    refused: AtomicU64,
}

/// How often the indexes take in changes when nobody asks them anything.
const REFRESH: Duration = Duration::from_secs(1);

// === impl Access ===

impl Access {
    pub fn new(cache: &Arc<Cache>, tokens: Tokens) -> Self {
        Self {
            cache: Arc::clone(cache),
            tokens,
            rbac: Live::new(Arc::clone(cache)),
            graph: Live::new(Arc::clone(cache)),
            refused: AtomicU64::new(0),
        }
    }

    /// The user of a request: what the connection said, or the bearer token, then impersonation. Unknown credentials are
    /// refused, not ignored.
    pub fn authenticate(
        &self,
        connection: Option<&User>,
        headers: &HeaderMap,
        now: Timestamp,
    ) -> Result<User, Error> {
        let user = match connection {
            Some(user) if user.has_expired(now) => return Err(Error::unauthorized()),
            Some(user) => user.clone(),
            None => match headers.get(http::header::AUTHORIZATION) {
                Some(value) if !value.is_empty() => value
                    .to_str()
                    .ok()
                    .and_then(bearer)
                    .and_then(|token| self.bearer(token, now))
                    .ok_or_else(Error::unauthorized)?,
                _ => User::anonymous(),
            },
        };
        impersonation::apply(user, headers, |user, path| {
            let asked = Attributes::Resource {
                verb: "impersonate",
                path,
            };
            self.authorise_attributes(user, &asked)
        })
    }

    /// Whose token for the API this is.
    fn bearer(&self, token: &str, now: Timestamp) -> Option<User> {
        let (user, _) = self.review(token, &[ISSUER], now)?;
        Some(user)
    }

    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// Whose token this is, and for which of `audiences` (or the API's own) it was made.
    pub fn review(
        &self,
        token: &str,
        audiences: &[&str],
        now: Timestamp,
    ) -> Option<(User, Vec<String>)> {
        let wanted = if audiences.is_empty() {
            &[ISSUER]
        } else {
            audiences
        };
        if let Some(claims) = self.tokens.verify(token) {
            let own = claims.audiences.iter();
            let shared: Vec<String> = own
                .filter(|audience| wanted.contains(&&***audience))
                .cloned()
                .collect();
            let good = !shared.is_empty()
                && claims.is_current(now.as_second())
                && accounts::holds(&self.cache, &claims, now);
            return good.then(|| (claims.user(), shared));
        }
        // A bootstrap token is for the API alone.
        if !wanted.contains(&ISSUER) {
            return None;
        }
        let user = bootstrap_tokens::authenticate(&self.cache, token, now)?;
        Some((user, vec![ISSUER.to_owned()]))
    }

    /// May `user` do this? `explain`: say why also when they may.
    pub fn decide(&self, user: &User, asked: &Attributes<'_>, explain: bool) -> Decision {
        if user.is_in(GROUP_MASTERS) {
            return Decision::allowed(String::new());
        }
        let mut reason = String::new();
        if let Some(node) = user.node() {
            let decision = self.decide_for_node(node, asked);
            if decision.allowed {
                return decision;
            }
            reason = decision.reason;
        }
        let mut decision = self.rbac.read().decide(user, asked, explain);
        if !decision.allowed && !reason.is_empty() {
            if !decision.reason.is_empty() {
                reason.push('\n');
                reason.push_str(&decision.reason);
            }
            decision.reason = reason;
        }
        decision
    }

    fn decide_for_node(&self, name: &str, asked: &Attributes<'_>) -> Decision {
        let verdict = node::decide(name, asked, &self.graph.read(), |volume| {
            let stored = self.cache.find("persistentvolumes", "", volume)?;
            let volume: Value = serde_json::from_slice(&stored.bytes).ok()?;
            let claim = |key: &str| Some(volume["spec"]["claimRef"][key].as_str()?.to_owned());
            Some((claim("namespace")?, claim("name")?))
        });
        match verdict {
            Verdict::Decided(decision) => decision,
            Verdict::ByRules => {
                let rbac = self.rbac.read();
                let rules = rbac.rules(&node::role());
                let may = rules.is_some_and(|rules| rules.iter().any(|rule| rule.allows(asked)));
                Decision {
                    allowed: may,
                    reason: String::new(),
                }
            }
        }
    }

    pub fn allows(&self, user: &User, asked: &Attributes<'_>) -> bool {
        self.decide(user, asked, false).allowed
    }

    /// `verb` on one object, as admission asks.
    pub fn allows_on(
        &self,
        user: &User,
        verb: &str,
        group: &str,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> bool {
        let path = ResourcePath {
            namespace: namespace.to_owned(),
            group: group.to_owned(),
            version: "*".to_owned(),
            resource: resource.to_owned(),
            name: name.to_owned(),
            ..ResourcePath::default()
        };
        self.allows(user, &Attributes::Resource { verb, path: &path })
    }

    /// How many requests authorisation has refused.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    pub fn rbac(&self) -> Reading<'_, Tables> {
        self.rbac.read()
    }

    /// Refuses with upstream's sentence.
    pub fn authorise(&self, user: &User, info: &RequestInfo) -> Result<(), Error> {
        let asked = match &info.target {
            Target::Resource(path) => Attributes::Resource {
                verb: info.verb,
                path,
            },
            Target::Other => Attributes::NonResource {
                verb: if info.verb == "head" {
                    "get"
                } else {
                    info.verb
                },
                path: &info.path,
            },
        };
        self.authorise_attributes(user, &asked)
    }

    pub(crate) fn authorise_attributes(
        &self,
        user: &User,
        asked: &Attributes<'_>,
    ) -> Result<(), Error> {
        let decision = self.decide(user, asked, false);
        if decision.allowed {
            return Ok(());
        }
        self.refused.fetch_add(1, Ordering::Relaxed);
        let refusal = refusal(user, asked, &decision.reason);
        tracing::debug!(error = %refusal, "Refused a request");
        Err(refusal)
    }

    fn refresh(&self) {
        self.rbac.refresh();
        self.graph.refresh();
    }
}

/// Keeps the indexes near the newest state until the server stops, so that a question after a quiet night is as quick as
/// any other.
pub(crate) async fn keep(api: Arc<Api>) {
    loop {
        tokio::select! {
            biased;
            () = api.stopping.cancelled() => return,
            () = tokio::time::sleep(REFRESH) => api.access.refresh(),
        }
    }
}

/// `Bearer TOKEN`.
fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.trim().split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

fn refusal(user: &User, asked: &Attributes<'_>, reason: &str) -> Error {
    let because = if reason.is_empty() {
        String::new()
    } else {
        format!(": {reason}")
    };
    match asked {
        Attributes::NonResource { verb, path } => {
            let why = format!("User {:?} cannot {verb} path {path:?}{because}", user.name);
            Error::forbidden("", "", "", &why)
        }
        Attributes::Resource { verb, path } => {
            let resource = match &*path.subresource {
                "" => path.resource.clone(),
                subresource => format!("{}/{subresource}", path.resource),
            };
            let place = if path.namespace.is_empty() {
                "at the cluster scope".to_owned()
            } else {
                format!("in the namespace {:?}", path.namespace)
            };
            let why = format!(
                "User {:?} cannot {verb} resource {resource:?} in API group {:?} {place}{because}",
                user.name, path.group
            );
            Error::forbidden(&path.group, &path.resource, path.object(), &why)
        }
    }
}

#[cfg(test)]
mod tests;
