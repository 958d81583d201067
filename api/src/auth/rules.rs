//! One rule of a role: what it allows, what of another rule it covers, how messages spell it. Pure.

use std::fmt::Write as _;

use serde_json::Value;

use super::Attributes;

/// A `PolicyRule`.
#[derive(Clone, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub struct Rule {
    pub verbs: Vec<String>,
    pub groups: Vec<String>,
    pub resources: Vec<String>,
    /// Empty: every name.
    pub names: Vec<String>,
    pub urls: Vec<String>,
}

const ALL: &str = "*";

// === impl Rule ===

impl Rule {
    /// As a role's `rules` have it; what is no list of words counts as empty.
    pub fn from_value(rule: &Value) -> Self {
        let words = |key: &str| {
            let words = rule[key].as_array().into_iter().flatten();
            words.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        Self {
            verbs: words("verbs"),
            groups: words("apiGroups"),
            resources: words("resources"),
            names: words("resourceNames"),
            urls: words("nonResourceURLs"),
        }
    }

    /// `rules` of a role.
    pub fn all(role: &Value) -> Vec<Self> {
        let rules = role["rules"].as_array().into_iter().flatten();
        rules.map(Self::from_value).collect()
    }

    /// Everything, as `system:masters` may.
    pub fn everything() -> [Self; 2] {
        let all = || vec![ALL.to_owned()];
        [
            Self {
                verbs: all(),
                groups: all(),
                resources: all(),
                ..Self::default()
            },
            Self {
                verbs: all(),
                urls: all(),
                ..Self::default()
            },
        ]
    }

    pub fn to_value(&self) -> Value {
        let mut map = serde_json::Map::new();
        for (key, words) in [
            ("verbs", &self.verbs),
            ("apiGroups", &self.groups),
            ("resources", &self.resources),
            ("resourceNames", &self.names),
            ("nonResourceURLs", &self.urls),
        ] {
            if !words.is_empty() || key == "verbs" {
                map.insert(key.to_owned(), words.clone().into());
            }
        }
        map.into()
    }

    pub fn allows(&self, asked: &Attributes<'_>) -> bool {
        match asked {
            Attributes::Resource { verb, path } => {
                has(&self.verbs, verb)
                    && has(&self.groups, &path.group)
                    && self.names_resource(&path.resource, &path.subresource)
                    && (self.names.is_empty() || self.names.iter().any(|n| n == path.object()))
            }
            Attributes::NonResource { verb, path } => {
                has(&self.verbs, verb) && self.urls.iter().any(|url| url_covers(url, path))
            }
        }
    }

    fn names_resource(&self, resource: &str, subresource: &str) -> bool {
        self.resources
            .iter()
            .any(|word| match word.split_once('/') {
                _ if word == ALL => true,
                None => subresource.is_empty() && word == resource,
                Some((of, below)) => {
                    !subresource.is_empty() && below == subresource && (of == ALL || of == resource)
                }
            })
    }

    /// Does this rule allow all that `other` allows? `other` is one of [`Rule::pieces`].
    fn covers(&self, other: &Self) -> bool {
        let all = |have: &[String], wanted: &[String]| {
            have.iter().any(|word| word == ALL) || wanted.iter().all(|word| have.contains(word))
        };
        let resource = |wanted: &String| {
            let below = wanted.split_once('/').map(|(_, below)| below);
            self.resources.contains(wanted)
                || below.is_some_and(|below| self.resources.contains(&format!("*/{below}")))
        };
        all(&self.verbs, &other.verbs)
            && all(&self.groups, &other.groups)
            && (self.resources.iter().any(|word| word == ALL)
                || other.resources.iter().all(resource))
            && other
                .urls
                .iter()
                .all(|url| self.urls.iter().any(|own| url_covers(own, url)))
            && (self.names.is_empty() || !other.names.is_empty() && all(&self.names, &other.names))
    }

    /// One verb on one resource (or one of its names) or URL each.
    fn pieces(&self) -> Vec<Self> {
        let one = |word: &String| vec![word.clone()];
        let mut pieces = Vec::new();
        for verb in &self.verbs {
            for group in &self.groups {
                for resource in &self.resources {
                    let piece = Self {
                        verbs: one(verb),
                        groups: one(group),
                        resources: one(resource),
                        ..Self::default()
                    };
                    if self.names.is_empty() {
                        pieces.push(piece);
                        continue;
                    }
                    pieces.extend(self.names.iter().map(|name| Self {
                        names: one(name),
                        ..piece.clone()
                    }));
                }
            }
            pieces.extend(self.urls.iter().map(|url| Self {
                verbs: one(verb),
                urls: one(url),
                ..Self::default()
            }));
        }
        pieces
    }

    /// `{APIGroups:[""], Resources:["pods"], Verbs:["get" "list"]}`.
    pub fn spelled(&self) -> String {
        let mut parts = Vec::new();
        for (key, words) in [
            ("APIGroups", &self.groups),
            ("Resources", &self.resources),
            ("NonResourceURLs", &self.urls),
            ("ResourceNames", &self.names),
            ("Verbs", &self.verbs),
        ] {
            if !words.is_empty() {
                parts.push(format!("{key}:{}", quoted(words)));
            }
        }
        format!("{{{}}}", parts.join(", "))
    }
}

/// What of `wanted` nobody of `own` covers, put together again by verbs and sorted as messages have it.
pub fn missing(own: &[Rule], wanted: &[Rule]) -> Vec<Rule> {
    let mut missing: Vec<Rule> = Vec::new();
    let pieces = wanted.iter().flat_map(Rule::pieces);
    for piece in pieces.filter(|piece| !own.iter().any(|own| own.covers(piece))) {
        let same = missing.iter_mut().find(|rule| {
            rule.groups == piece.groups
                && rule.resources == piece.resources
                && rule.names == piece.names
                && rule.urls.is_empty()
                && piece.urls.is_empty()
        });
        match same {
            Some(rule) => rule.verbs.extend(piece.verbs),
            None => missing.push(piece),
        }
    }
    missing
}

/// As Go prints a list of strings with `%q`: `["a" "b"]`.
pub fn quoted(words: &[String]) -> String {
    let mut out = String::from("[");
    for (i, word) in words.iter().enumerate() {
        let space = if i == 0 { "" } else { " " };
        // Writing to a String cannot fail.
        let _ = write!(out, "{space}{word:?}");
    }
    out.push(']');
    out
}

fn has(words: &[String], wanted: &str) -> bool {
    words.iter().any(|word| word == ALL || word == wanted)
}

fn url_covers(rule: &str, path: &str) -> bool {
    rule == ALL || rule == path || {
        let prefix = rule.trim_end_matches('*');
        rule.len() > prefix.len() && path.starts_with(prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::ResourcePath;
    use serde_json::json;

    fn rule(verbs: &str, groups: &str, resources: &str, names: &str) -> Rule {
        let words = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<_>>();
        Rule {
            verbs: words(verbs),
            groups: words(groups),
            resources: words(resources),
            names: if names.is_empty() {
                Vec::new()
            } else {
                words(names)
            },
            urls: Vec::new(),
        }
    }

    #[test]
    fn a_rule_allows_what_upstreams_would() {
        // rule, question "verb group resource/subresource name", allowed
        let table = [
            (rule("get", "", "pods", ""), "get - pods a", true),
            (rule("get", "", "pods", ""), "list - pods -", false),
            (rule("get", "", "pods", ""), "get apps pods a", false),
            (rule("get", "", "pods", ""), "get - pods/log a", false),
            (rule("get", "", "pods/log", ""), "get - pods/log a", true),
            (rule("get", "", "pods/log", ""), "get - pods a", false),
            (
                rule("get", "", "*/scale", ""),
                "get - deployments/scale a",
                true,
            ),
            (rule("get", "", "*/scale", ""), "get - deployments a", false),
            (rule("get", "", "*", ""), "get - pods/log a", true),
            (rule("get", "", "pods", "a,b"), "get - pods b", true),
            (rule("get", "", "pods", "a,b"), "get - pods c", false),
            (rule("list", "", "pods", "a"), "list - pods -", false),
            (rule("*", "*", "*", ""), "impersonate - users bob", true),
        ];
        for (rule, question, expect) in table {
            let words: Vec<&str> = question
                .split(' ')
                .map(|word| if word == "-" { "" } else { word })
                .collect();
            let (resource, subresource) = words[2].split_once('/').unwrap_or((words[2], ""));
            let path = ResourcePath {
                group: words[1].to_owned(),
                resource: resource.to_owned(),
                subresource: subresource.to_owned(),
                name: words[3].to_owned(),
                ..ResourcePath::default()
            };
            let asked = Attributes::Resource {
                verb: words[0],
                path: &path,
            };
            assert_eq!(rule.allows(&asked), expect, "{} {question}", rule.spelled());
        }
    }

    #[test]
    fn urls_match_exactly_or_by_their_beginning() {
        let rule =
            Rule::from_value(&json!({"verbs": ["get"], "nonResourceURLs": ["/healthz", "/api/*"]}));
        for (path, expect) in [
            ("/healthz", true),
            ("/healthz/ping", false),
            ("/api/v1", true),
            ("/api", false),
            ("/apis", false),
        ] {
            let asked = Attributes::NonResource { verb: "get", path };
            assert_eq!(rule.allows(&asked), expect, "{path}");
        }
    }

    #[test]
    fn what_is_missing_is_spelled_like_upstream() {
        let own = [
            rule("get,list", "", "pods", ""),
            rule("*", "apps", "*/scale", ""),
        ];
        let wanted = [
            rule("get,delete,watch", "", "pods", ""),
            rule("get", "apps", "deployments/scale", ""),
        ];
        let missing: Vec<String> = missing(&own, &wanted).iter().map(Rule::spelled).collect();
        assert_eq!(
            missing,
            [r#"{APIGroups:[""], Resources:["pods"], Verbs:["delete" "watch"]}"#]
        );
        let named = [rule("get", "", "secrets", "a")];
        assert!(super::missing(&named, &[rule("get", "", "secrets", "a")]).is_empty());
        assert_eq!(
            super::missing(&named, &[rule("get", "", "secrets", "")]).len(),
            1
        );
        let all = Rule::everything();
        assert!(super::missing(&all, &all).is_empty());
        assert_eq!(super::missing(&own, &all).len(), 2);
    }
}
