//! Label and field selectors: parsed once per request, then matched against the index of stored objects. Pure.
//!
//! The words of the errors are upstream's (`labels.Parse`, `fields.ParseSelector`).

mod labels;

use crate::status::Error;
use crate::store::Stored;

pub use labels::{Requirement, parse as parse_labels};

/// Both selectors of one request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<FieldTerm>,
}

/// `spec.nodeName=n1` or `!=`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FieldTerm {
    pub field: String,
    pub equal: bool,
    pub value: String,
}

// === impl Selector ===

impl Selector {
    /// `resolve` turns a field label of the request into its stored name, or `None` when this kind has no such field.
    pub fn parse(
        labels: &str,
        fields: &str,
        resolve: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, Error> {
        let labels = labels::parse(labels).map_err(Error::bad_request)?;
        let mut terms = Vec::new();
        for mut term in parse_fields(fields)? {
            term.field = resolve(&term.field).ok_or_else(|| {
                Error::bad_request(format!("field label not supported: {}", term.field))
            })?;
            terms.push(term);
        }
        Ok(Self {
            labels,
            fields: terms,
        })
    }

    pub fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub fn matches(&self, stored: &Stored) -> bool {
        let label = |key: &str| {
            let labels = &stored.index.labels;
            labels
                .iter()
                .find(|(k, _)| **k == *key)
                .map(|(_, value)| &**value)
        };
        self.fields.iter().all(|term| term.matches(stored))
            && self
                .labels
                .iter()
                .all(|requirement| requirement.matches(label(requirement.key())))
    }

    /// The only name that can match, where the fields say so.
    pub fn only_name(&self) -> Option<&str> {
        self.exact("metadata.name")
    }

    /// The only namespace that can match, where the fields say so.
    pub fn only_namespace(&self) -> Option<&str> {
        self.exact("metadata.namespace")
    }

    /// The only value of `field` that can match, where the fields say so.
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.fields
            .iter()
            .find(|term| term.equal && term.field == field)
            .map(|term| &*term.value)
    }
}

// === impl FieldTerm ===

impl FieldTerm {
    fn matches(&self, stored: &Stored) -> bool {
        let value: &str = match &*self.field {
            "metadata.name" => &stored.key.name,
            "metadata.namespace" => &stored.key.namespace,
            field => stored
                .index
                .fields
                .iter()
                .find(|(name, _)| *name == field)
                .map_or("", |(_, value)| value),
        };
        (value == self.value) == self.equal
    }
}

/// Terms joined by commas; a backslash keeps a comma, `=` or backslash from ending the value.
pub fn parse_fields(text: &str) -> Result<Vec<FieldTerm>, Error> {
    split_terms(text)
        .into_iter()
        .filter(|part| !part.is_empty())
        .map(|part| {
            parse_term(part).ok_or_else(|| {
                Error::bad_request(format!(
                    "invalid selector: '{text}'; can't understand '{part}'"
                ))
            })
        })
        .collect()
}

fn split_terms(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut escaped) = (Vec::new(), 0, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn parse_term(part: &str) -> Option<FieldTerm> {
    let at = part.char_indices().find_map(|(at, _)| {
        ["!=", "==", "="]
            .into_iter()
            .find(|operator| part[at..].starts_with(operator))
            .map(|operator| (at, operator))
    });
    let (at, operator) = at?;
    Some(FieldTerm {
        field: part[..at].to_owned(),
        equal: operator != "!=",
        value: unescape(&part[at + operator.len()..])?,
    })
}

fn unescape(value: &str) -> Option<String> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next()? {
                kept @ ('\\' | ',' | '=') => out.push(kept),
                _ => return None,
            },
            ',' | '=' => return None,
            c => out.push(c),
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::{Index, Key};

    fn stored() -> Stored {
        let pair = |k: &str, v: &str| (Box::from(k), Box::from(v));
        Stored {
            key: Key {
                resource: Arc::from("pods"),
                namespace: Arc::from("default"),
                name: Arc::from("web-1"),
            },
            revision: 7,
            created: 7,
            bytes: bytes::Bytes::from_static(b"{}"),
            index: Index {
                uid: Box::from("u"),
                labels: Box::from([pair("app", "web"), pair("tier", "2")]),
                fields: Box::from([("spec.nodeName", Box::from("n1"))]),
            },
        }
    }

    fn matches(labels: &str, fields: &str) -> bool {
        Selector::parse(labels, fields, |field| Some(field.to_owned()))
            .expect("parses")
            .matches(&stored())
    }

    #[test]
    fn labels_select_as_upstream() {
        for (selector, expect) in [
            ("", true),
            ("app=web", true),
            ("app==web,tier", true),
            ("app!=web", false),
            ("missing!=web", true),
            ("app in (api, web)", true),
            ("app notin (api)", true),
            ("missing notin (api)", true),
            ("!missing", true),
            ("!app", false),
            ("tier>1", true),
            ("tier<1", false),
            ("missing", false),
            ("app=", false),
            ("app in (web),tier notin (2)", false),
        ] {
            assert_eq!(matches(selector, ""), expect, "{selector}");
        }
    }

    #[test]
    fn fields_select_by_name_namespace_and_what_the_kind_offers() {
        for (selector, expect) in [
            ("metadata.name=web-1", true),
            ("metadata.name==web-1,metadata.namespace!=kube-system", true),
            ("spec.nodeName=n1", true),
            ("spec.nodeName!=n1", false),
            ("status.phase=", true),
            ("status.phase!=Failed", true),
        ] {
            assert_eq!(matches("", selector), expect, "{selector}");
        }
    }

    #[test]
    fn what_cannot_be_understood_is_refused_in_upstream_words() {
        let refuse = |labels: &str, fields: &str| {
            Selector::parse(labels, fields, |field| {
                (field == "metadata.name").then(|| field.to_owned())
            })
            .expect_err("refused")
            .message
        };
        assert_eq!(
            refuse("==", ""),
            "found '==', expected: !, identifier, or 'end of string'"
        );
        assert_eq!(refuse("", "foo=bar"), "field label not supported: foo");
        assert_eq!(
            refuse("", "foo"),
            "invalid selector: 'foo'; can't understand 'foo'"
        );
        assert_eq!(refuse("a,", ""), "found '', expected: identifier after ','");
        assert_eq!(
            refuse("a b", ""),
            "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"
        );
        assert!(refuse("a=b c", "").starts_with("found 'c', expected: ',' or 'end of string'"));
        assert!(
            refuse("-a=b", "")
                .starts_with("unable to parse requirement: <nil>: Invalid value: \"-a\"")
        );
    }
}
