//! The query of a request: raw parameters, and the options each verb reads from them. Pure.

use crate::status::{Cause, Error};
use serde_json::{Value, json};

/// Decoded parameters in the order they came.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Query(Vec<(String, String)>);

/// `ListOptions`, for list, watch and deletecollection.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ListOptions {
    pub label_selector: String,
    pub field_selector: String,
    /// `None`: the most recent. `Some(0)`: any.
    pub resource_version: Option<u64>,
    pub version_match: VersionMatch,
    /// 0: no limit.
    pub limit: usize,
    pub continue_token: String,
    pub timeout_seconds: Option<u64>,
    pub bookmarks: bool,
    pub send_initial_events: Option<bool>,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum VersionMatch {
    #[default]
    Unset,
    Exact,
    NotOlderThan,
}

/// What create, update and patch read from the query.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct WriteOptions {
    pub dry_run: bool,
    /// Empty: derived from the User-Agent.
    pub field_manager: String,
    pub validation: FieldValidation,
    /// Patch only.
    pub force: bool,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum FieldValidation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

// === impl Query ===

impl Query {
    pub fn parse(raw: &str) -> Self {
        Self(
            raw.split('&')
                .filter(|pair| !pair.is_empty())
                .map(|pair| {
                    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (percent_decode(key, true), percent_decode(value, true))
                })
                .collect(),
        )
    }

    pub fn first(&self, key: &str) -> Option<&str> {
        let pair = self.0.iter().find(|(k, _)| k == key);
        pair.map(|(_, value)| value.as_str())
    }

    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(k, _)| k == key)
            .map(|(_, value)| value.as_str())
    }

    pub fn pairs(&self) -> &[(String, String)] {
        &self.0
    }

    pub fn has(&self, key: &str) -> bool {
        self.first(key).is_some()
    }

    /// As upstream reads booleans: present and neither `false` nor `0`.
    pub fn flag(&self, key: &str) -> bool {
        self.maybe_flag(key).unwrap_or(false)
    }

    pub fn maybe_flag(&self, key: &str) -> Option<bool> {
        self.first(key)
            .map(|value| !value.eq_ignore_ascii_case("false") && value != "0")
    }

    pub fn integer(&self, key: &str) -> Result<Option<i64>, Error> {
        match self.first(key) {
            None | Some("") => Ok(None),
            Some(text) => parse_i64(text).map(Some),
        }
    }

    pub fn list_options(&self, watch: bool) -> Result<ListOptions, Error> {
        let text = |key| self.first(key).unwrap_or_default().to_owned();
        let limit = self.integer("limit")?.unwrap_or(0);
        let timeout = self.integer("timeoutSeconds")?;
        let raw_version = self.first("resourceVersion").unwrap_or_default();
        let raw_match = self.first("resourceVersionMatch").unwrap_or_default();
        let options = ListOptions {
            label_selector: text("labelSelector"),
            field_selector: text("fieldSelector"),
            resource_version: None,
            version_match: match raw_match {
                "Exact" => VersionMatch::Exact,
                "NotOlderThan" => VersionMatch::NotOlderThan,
                _ => VersionMatch::Unset,
            },
            limit: usize::try_from(limit).unwrap_or(0),
            continue_token: text("continue"),
            timeout_seconds: timeout.and_then(|seconds| u64::try_from(seconds).ok()),
            bookmarks: self.flag("allowWatchBookmarks"),
            send_initial_events: self.maybe_flag("sendInitialEvents"),
        };
        let causes = options.causes(watch, raw_version, raw_match);
        if !causes.is_empty() {
            return Err(Error::invalid("meta.k8s.io", "ListOptions", "", causes));
        }
        Ok(ListOptions {
            resource_version: parse_resource_version(raw_version)?,
            ..options
        })
    }

    /// `options` is the Kind the complaint is about: `CreateOptions`, `UpdateOptions`, `PatchOptions`.
    pub fn write_options(&self, options: &str) -> Result<WriteOptions, Error> {
        let mut causes = Vec::new();
        let dry_run = dry_run(self.all("dryRun"), &mut causes);
        let validation = match self.first("fieldValidation").unwrap_or_default() {
            "" | "Warn" => FieldValidation::Warn,
            "Ignore" => FieldValidation::Ignore,
            "Strict" => FieldValidation::Strict,
            other => {
                let allowed = ["", "Ignore", "Strict", "Warn"];
                causes.push(Cause::not_supported(
                    "fieldValidation",
                    &json!(other),
                    &allowed,
                ));
                FieldValidation::Warn
            }
        };
        let field_manager = self.first("fieldManager").unwrap_or_default().to_owned();
        if field_manager.len() > 128 {
            causes.push(Cause::too_long("fieldManager", 128));
        } else if field_manager.chars().any(char::is_control) {
            causes.push(Cause::invalid(
                "fieldManager",
                &json!(field_manager),
                "should only contain printable characters",
            ));
        }
        if !causes.is_empty() {
            return Err(Error::invalid("meta.k8s.io", options, "", causes));
        }
        Ok(WriteOptions {
            dry_run,
            field_manager,
            validation,
            force: self.flag("force"),
        })
    }
}

/// `All` is the only value; anything else is a cause.
pub fn dry_run<'a>(values: impl Iterator<Item = &'a str>, causes: &mut Vec<Cause>) -> bool {
    let values: Vec<&str> = values.filter(|value| !value.is_empty()).collect();
    if values.iter().any(|value| *value != "All") {
        causes.push(Cause::not_supported("dryRun", &json!(values), &["All"]));
    }
    !values.is_empty()
}

// === impl ListOptions ===

impl ListOptions {
    fn causes(&self, watch: bool, raw_version: &str, raw_match: &str) -> Vec<Cause> {
        let mut causes = Vec::new();
        let field = "resourceVersionMatch";
        let forbidden = |why: &str| Cause::forbidden(field, why);
        match self.send_initial_events {
            Some(_) if !watch => causes.push(Cause::forbidden(
                "sendInitialEvents",
                "sendInitialEvents is forbidden for list",
            )),
            Some(_) if self.version_match != VersionMatch::NotOlderThan => causes.push(forbidden(
                "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            )),
            None if watch && !raw_match.is_empty() => causes.push(forbidden(
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            )),
            _ => {}
        }
        if watch || raw_match.is_empty() {
            return causes;
        }
        if raw_version.is_empty() {
            causes.push(forbidden(
                "resourceVersionMatch is forbidden unless resourceVersion is provided",
            ));
        }
        if !self.continue_token.is_empty() {
            causes.push(forbidden(
                "resourceVersionMatch is forbidden when continue is provided",
            ));
        }
        if self.version_match == VersionMatch::Unset {
            let allowed = ["Exact", "NotOlderThan"];
            causes.push(Cause::not_supported(field, &json!(raw_match), &allowed));
        }
        if self.version_match == VersionMatch::Exact && raw_version == "0" {
            causes.push(forbidden(
                "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
            ));
        }
        causes
    }
}

/// Empty is `None`.
pub fn parse_resource_version(text: &str) -> Result<Option<u64>, Error> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        let value = Value::String(text.to_owned());
        Error::bad_request(format!(
            "invalid resource version: resourceVersion: Invalid value: {value}: strconv.ParseUint: parsing {value}: invalid syntax"
        ))
    })
}

fn parse_i64(text: &str) -> Result<i64, Error> {
    text.parse().map_err(|_| {
        Error::bad_request(format!(
            "strconv.ParseInt: parsing {text:?}: invalid syntax"
        ))
    })
}

/// Decodes `%41`, and `+` in queries; what is not an escape stays as it is, invalid UTF-8 is replaced.
pub fn percent_decode(text: &str, plus_is_space: bool) -> String {
    let escaped = text.contains('%') || (plus_is_space && text.contains('+'));
    if !escaped {
        return text.to_owned();
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        match bytes[i] {
            b'%' => match bytes.get(i + 1..i + 3).and_then(hex) {
                Some(byte) => {
                    out.push(byte);
                    i += 2;
                }
                None => out.push(b'%'),
            },
            b'+' if plus_is_space => out.push(b' '),
            byte => out.push(byte),
        }
        i += 1;
    }
    match String::from_utf8(out) {
        Ok(text) => text,
        Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
    }
}

fn hex(pair: &[u8]) -> Option<u8> {
    let digit = |byte: u8| (byte as char).to_digit(16);
    let value = digit(pair[0])? * 16 + digit(pair[1])?;
    u8::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list_error(query: &str, watch: bool) -> String {
        Query::parse(query)
            .list_options(watch)
            .expect_err("refused")
            .message
    }

    #[test]
    fn escapes_are_decoded_and_broken_ones_kept() {
        assert_eq!(percent_decode("a%2Fb%zz+c%", true), "a/b%zz c%");
        assert_eq!(percent_decode("a+b", false), "a+b");
        assert_eq!(Query::parse("x=a%26b&y&x=2").all("x").count(), 2);
    }

    #[test]
    fn wrong_list_options_are_refused_in_upstream_words() {
        assert_eq!(
            list_error("limit=abc", false),
            r#"strconv.ParseInt: parsing "abc": invalid syntax"#
        );
        assert_eq!(
            list_error("resourceVersion=abc", false),
            r#"invalid resource version: resourceVersion: Invalid value: "abc": strconv.ParseUint: parsing "abc": invalid syntax"#
        );
        assert_eq!(
            list_error("resourceVersionMatch=Exact", false),
            r#"ListOptions.meta.k8s.io "" is invalid: resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided"#
        );
        assert_eq!(
            list_error("sendInitialEvents=true", true),
            r#"ListOptions.meta.k8s.io "" is invalid: resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"#
        );
    }

    #[test]
    fn wrong_write_options_are_refused_in_upstream_words() {
        let refuse = |query: &str| {
            let error = Query::parse(query).write_options("CreateOptions");
            error.expect_err("refused").message
        };
        assert_eq!(
            refuse("fieldValidation=Foo"),
            r#"CreateOptions.meta.k8s.io "" is invalid: fieldValidation: Unsupported value: "Foo": supported values: "", "Ignore", "Strict", "Warn""#
        );
        assert_eq!(
            refuse("dryRun=Foo"),
            r#"CreateOptions.meta.k8s.io "" is invalid: dryRun: Unsupported value: ["Foo"]: supported values: "All""#
        );
    }
}
