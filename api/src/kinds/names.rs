//! What is a valid name, label, key, port name or address: each rule answers with upstream's words. Pure.
//!
//! A rule is `fn(&str) -> Vec<String>`: one message per thing wrong, nothing when all is well.

use std::net::IpAddr;

/// One message per thing wrong with a text.
pub type Rule = fn(&str) -> Vec<String>;

const LABEL_EXPRESSION: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const LABEL_MAX: usize = 63;
const SUBDOMAIN_MAX: usize = 253;

/// DNS-1123 label: `my-name`.
pub fn dns_label(text: &str) -> Vec<String> {
    let mut wrong = longest(text, LABEL_MAX);
    if !is_label(text) && text.split('.').all(is_label) {
        wrong.push("must not contain dots".to_owned());
    } else if !is_label(text) {
        wrong.push(format!(
            "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end \
             with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '{LABEL_EXPRESSION}')"
        ));
    }
    wrong
}

/// DNS-1123 subdomain: `my-name.example`.
pub fn dns_subdomain(text: &str) -> Vec<String> {
    let mut wrong = longest(text, SUBDOMAIN_MAX);
    if !text.split('.').all(is_label) {
        wrong.push(format!(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start \
             and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
             '{LABEL_EXPRESSION}(\\.{LABEL_EXPRESSION})*')"
        ));
    }
    wrong
}

/// DNS-1035 label: starts with a letter.
pub fn dns_1035_label(text: &str) -> Vec<String> {
    let mut wrong = longest(text, LABEL_MAX);
    if !is_label(text) || !text.starts_with(|c: char| c.is_ascii_lowercase()) {
        wrong.push(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic \
             character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation \
             is '[a-z]([-a-z0-9]*[a-z0-9])?')"
                .to_owned(),
        );
    }
    wrong
}

/// Usable as one segment of a URL path.
pub fn path_segment(text: &str) -> Vec<String> {
    match text {
        "." => vec!["may not be '.'".to_owned()],
        ".." => vec!["may not be '..'".to_owned()],
        _ => ["/", "%"]
            .iter()
            .filter(|part| text.contains(**part))
            .map(|part| format!("may not contain '{part}'"))
            .collect(),
    }
}

/// A label or annotation key: `name` or `prefix.example/name`.
pub fn qualified_name(text: &str) -> Vec<String> {
    const NAME: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
         alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
         '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
    let mut wrong = Vec::new();
    let name = match text.split_once('/') {
        None => text,
        Some((_, name)) if name.contains('/') => {
            return vec![format!(
                "a valid label key {NAME} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
        Some(("", name)) => {
            wrong.push("prefix part must be non-empty".to_owned());
            name
        }
        Some((prefix, name)) => {
            let bad = dns_subdomain(prefix);
            wrong.extend(bad.into_iter().map(|why| format!("prefix part {why}")));
            name
        }
    };
    if name.is_empty() {
        wrong.push("name part must be non-empty".to_owned());
    } else if let Some(why) = longest_label(name).pop() {
        wrong.push(format!("name part {why}"));
    }
    if !is_name_part(name) {
        wrong.push(format!("name part {NAME}"));
    }
    wrong
}

/// The value of a label.
pub fn label_value(text: &str) -> Vec<String> {
    let mut wrong = longest_label(text);
    if !text.is_empty() && !is_name_part(text) {
        wrong.push(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start \
             and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for \
             validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
                .to_owned(),
        );
    }
    wrong
}

/// A key of a ConfigMap or Secret: a file name.
pub fn config_key(text: &str) -> Vec<String> {
    let mut wrong = longest(text, SUBDOMAIN_MAX);
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if text.is_empty() || !text.chars().all(allowed) {
        wrong.push(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or \
             'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
                .to_owned(),
        );
    }
    match text {
        "." => wrong.push("must not be '.'".to_owned()),
        ".." => wrong.push("must not be '..'".to_owned()),
        _ if text.starts_with("..") => wrong.push("must not start with '..'".to_owned()),
        _ => {}
    }
    wrong
}

/// An environment variable's name: printable ASCII but `=`.
pub fn env_name(text: &str) -> Vec<String> {
    let fine = |c: char| (' '..='~').contains(&c) && c != '=';
    if !text.is_empty() && text.chars().all(fine) {
        return Vec::new();
    }
    vec![
        "a valid environment variable name must consist only of printable ASCII characters other than '='"
            .to_owned(),
    ]
}

/// A port's name inside a container or a named target port (IANA service name).
pub fn port_name(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > 15 {
        wrong.push("must be no more than 15 characters".to_owned());
    }
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if !text.chars().all(allowed) {
        wrong.push(
            "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned(),
        );
    }
    if !text.contains(|c: char| c.is_ascii_lowercase()) {
        wrong.push("must contain at least one letter (a-z)".to_owned());
    }
    if text.contains("--") {
        wrong.push("must not contain consecutive hyphens".to_owned());
    }
    if text.starts_with('-') || text.ends_with('-') {
        wrong.push("must not begin or end with a hyphen".to_owned());
    }
    wrong
}

pub fn ip(text: &str) -> Vec<String> {
    if text.parse::<IpAddr>().is_ok() {
        return Vec::new();
    }
    vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned()]
}

pub fn cidr(text: &str) -> Vec<String> {
    if text.parse::<ipnet::IpNet>().is_ok() {
        return Vec::new();
    }
    vec!["must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)".to_owned()]
}

/// An address that may be somebody's: not one with a meaning of its own.
pub fn ip_of_somebody(text: &str) -> Vec<String> {
    let Ok(ip) = text.parse::<IpAddr>() else {
        return ip(text);
    };
    let (unspecified, loopback) = (ip.is_unspecified(), ip.is_loopback());
    let (link_local, local_multicast) = match ip {
        IpAddr::V4(ip) => (ip.is_link_local(), ip.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(ip) => (
            ip.is_unicast_link_local(),
            ip.segments()[0] & 0xff0f == 0xff02,
        ),
    };
    [
        (unspecified, "may not be unspecified (0.0.0.0 or ::)"),
        (
            loopback,
            "may not be in the loopback range (127.0.0.0/8, ::1/128)",
        ),
        (
            link_local,
            "may not be in the link-local range (169.254.0.0/16, fe80::/10)",
        ),
        (
            local_multicast,
            "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)",
        ),
    ]
    .into_iter()
    .filter(|(wrong, _)| *wrong)
    .map(|(_, why)| why.to_owned())
    .collect()
}

/// A path that stays below where it is mounted.
pub fn no_backsteps(text: &str) -> Vec<String> {
    if text.split('/').any(|part| part == "..") {
        return vec!["must not contain '..'".to_owned()];
    }
    Vec::new()
}

/// A relative path without `..`.
pub fn relative_path(text: &str) -> Vec<String> {
    if text.starts_with('/') {
        return vec!["must be a relative path".to_owned()];
    }
    no_backsteps(text)
}

/// `25%`.
pub fn percent(text: &str) -> Vec<String> {
    let digits = text.strip_suffix('%').unwrap_or_default();
    if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
        return Vec::new();
    }
    vec![
        "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for \
         validation is '[0-9]+%')"
            .to_owned(),
    ]
}

fn longest(text: &str, limit: usize) -> Vec<String> {
    if text.len() > limit {
        return vec![format!("must be no more than {limit} characters")];
    }
    Vec::new()
}

/// Upstream counts label keys and values in bytes, names in characters (both count bytes in truth).
fn longest_label(text: &str) -> Vec<String> {
    if text.len() > LABEL_MAX {
        return vec![format!("must be no more than {LABEL_MAX} bytes")];
    }
    Vec::new()
}

fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let edge = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    bytes.first().is_some_and(edge)
        && bytes.last().is_some_and(edge)
        && bytes.iter().all(|b| edge(b) || *b == b'-')
}

fn is_name_part(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_judged_as_upstream_judges_them() {
        let cases: &[(Rule, &str, bool)] = &[
            (dns_label, "a-1", true),
            (dns_label, "a.b", false),
            (dns_label, "-a", false),
            (dns_subdomain, "a.b-c.d", true),
            (dns_subdomain, "Bad_Name", false),
            (dns_subdomain, "a..b", false),
            (dns_1035_label, "1a", false),
            (dns_1035_label, "a1", true),
            (path_segment, "system:node", true),
            (path_segment, "a/b", false),
            (qualified_name, "app.kubernetes.io/name", true),
            (qualified_name, "a/b/c", false),
            (qualified_name, "/x", false),
            (qualified_name, "a_", false),
            (label_value, "", true),
            (label_value, "a b", false),
            (config_key, ".dockerconfigjson", true),
            (config_key, "..", false),
            (env_name, "MY-VAR.x", true),
            (env_name, "a=b", false),
            (port_name, "http-2", true),
            (port_name, "80", false),
            (port_name, "a-very-long-port-name", false),
            (ip, "10.0.0.1", true),
            (ip, "10.0.0", false),
            (percent, "25%", true),
            (percent, "%", false),
        ];
        for (rule, text, fine) in cases {
            assert_eq!(rule(text).is_empty(), *fine, "{text}: {:?}", rule(text));
        }
    }

    #[test]
    fn a_bad_subdomain_is_described_in_upstream_words() {
        assert_eq!(
            dns_subdomain("Bad_Name"),
            [
                "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must \
                 start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
                 '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
            ]
        );
    }
}
