//! Annotations of Ingresses that are understood, under `nginx.ingress.kubernetes.io/` and under `coracle.dev/`: a table.
//! What is not understood is said; what would leave a door open if it were ignored refuses the Ingress.

use std::collections::BTreeMap;
use std::time::Duration;

use http::StatusCode;
use http::header::HeaderValue;
use ipnet::IpNet;

use super::table::{Patience, Policy};

const PREFIXES: [&str; 2] = ["nginx.ingress.kubernetes.io/", "coracle.dev/"];

/// What an Ingress asks for in annotations.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// `/$2`
    pub rewrite_target: Option<String>,
    pub use_regex: bool,
    pub app_root: Option<String>,
    pub redirect: Option<(HeaderValue, StatusCode)>,
    redirect_code: Option<StatusCode>,
    /// Requests by http go to https where the host has TLS.
    pub ssl_redirect: Option<bool>,
    /// …and where it has none: something in front of us ends TLS.
    pub force_ssl_redirect: bool,
    pub aliases: Vec<String>,
    /// The Host backends see.
    pub upstream_host: Option<HeaderValue>,
    pub policy: Policy,
    /// Annotations that are not followed, and why.
    pub unsupported: Vec<String>,
    /// Why the Ingress is not served at all.
    pub refused: Option<String>,
}

type Set = fn(&mut Options, &str) -> Result<(), String>;

/// Each annotation and what it does.
const KNOWN: &[(&str, Set)] = &[
    ("allowlist-source-range", |o, v| {
        networks(&mut o.policy.allow, v)
    }),
    ("app-root", |o, v| {
        if !v.starts_with('/') {
            return Err("must begin with /".to_owned());
        }
        o.app_root = Some(v.to_owned());
        Ok(())
    }),
    ("backend-protocol", |_, v| {
        match v.to_ascii_uppercase().as_str() {
            "HTTP" | "AUTO_HTTP" => Ok(()),
            _ => Err("backends are spoken to in HTTP".to_owned()),
        }
    }),
    ("denylist-source-range", |o, v| {
        networks(&mut o.policy.deny, v)
    }),
    ("force-ssl-redirect", |o, v| {
        o.force_ssl_redirect = boolean(v)?;
        Ok(())
    }),
    ("permanent-redirect", |o, v| {
        redirect(o, v, StatusCode::MOVED_PERMANENTLY)
    }),
    ("permanent-redirect-code", |o, v| {
        let code = v
            .parse()
            .ok()
            .and_then(|code| StatusCode::from_u16(code).ok());
        let code = code.filter(StatusCode::is_redirection);
        o.redirect_code = Some(code.ok_or("must be a 3xx code")?);
        Ok(())
    }),
    ("proxy-body-size", |o, v| {
        o.policy.body_limit = Some(size(v)?);
        Ok(())
    }),
    ("proxy-read-timeout", |o, v| {
        o.policy.read_timeout = Patience::Within(seconds(v)?);
        Ok(())
    }),
    ("proxy-send-timeout", |o, v| {
        o.policy.send_timeout = Some(seconds(v)?);
        Ok(())
    }),
    ("rewrite-target", |o, v| {
        o.rewrite_target = Some(v.to_owned());
        Ok(())
    }),
    ("server-alias", |o, v| {
        let names = v.split(',').map(str::trim).filter(|name| !name.is_empty());
        o.aliases.extend(names.map(str::to_ascii_lowercase));
        if o.aliases.iter().any(|name| name.starts_with('~')) {
            o.aliases.retain(|name| !name.starts_with('~'));
            return Err("regular expressions are not supported here".to_owned());
        }
        Ok(())
    }),
    ("ssl-redirect", |o, v| {
        o.ssl_redirect = Some(boolean(v)?);
        Ok(())
    }),
    ("temporal-redirect", |o, v| {
        redirect(o, v, StatusCode::FOUND)
    }),
    ("upstream-vhost", |o, v| {
        o.upstream_host = Some(HeaderValue::from_str(v).map_err(|error| error.to_string())?);
        Ok(())
    }),
    ("use-regex", |o, v| {
        o.use_regex = boolean(v)?;
        Ok(())
    }),
    ("whitelist-source-range", |o, v| {
        networks(&mut o.policy.allow, v)
    }),
    ("x-forwarded-prefix", |o, v| {
        o.policy.forwarded_prefix =
            Some(HeaderValue::from_str(v).map_err(|error| error.to_string())?);
        Ok(())
    }),
];

/// Ignoring one of these would let in whom the author meant to keep out.
const GUARDS: &[&str] = &[
    "auth-keepalive",
    "auth-realm",
    "auth-secret",
    "auth-tls-secret",
    "auth-tls-verify-client",
    "auth-type",
    "auth-url",
    "enable-global-auth",
    "enable-modsecurity",
    "satisfy",
];

/// Guards of access whose value must be understood, or nobody gets in.
const STRICT: &[&str] = &[
    "allowlist-source-range",
    "denylist-source-range",
    "whitelist-source-range",
];

// === impl Options ===

impl Options {
    /// Where both prefixes say something, `coracle.dev/` counts.
    pub fn parse(annotations: &BTreeMap<String, String>) -> Self {
        let mut options = Self::default();
        let mut found: BTreeMap<&str, (&str, &str)> = BTreeMap::new();
        for prefix in PREFIXES {
            for (full, value) in annotations {
                if let Some(name) = full.strip_prefix(prefix) {
                    found.insert(name, (full, value.trim()));
                }
            }
        }
        for (name, (full, value)) in found {
            let known = KNOWN.iter().find(|(known, _)| *known == name);
            let result = match known {
                Some((_, set)) => set(&mut options, value),
                None => Err("is not supported and has no effect".to_owned()),
            };
            let Err(why) = result else { continue };
            if GUARDS.contains(&name) && value != "false" || STRICT.contains(&name) {
                options.refused = Some(format!("annotation {full}: {why}"));
            }
            options
                .unsupported
                .push(format!("annotation {full}: {value:?}: {why}"));
        }
        if let (Some((_, code)), Some(wanted)) = (&mut options.redirect, options.redirect_code) {
            *code = wanted;
        }
        options
    }

    /// Paths of this Ingress are regular expressions.
    pub fn is_regex(&self) -> bool {
        self.use_regex || self.rewrite_target.is_some()
    }
}

fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("must be true or false".to_owned()),
    }
}

/// nginx's seconds, or a number with `s`.
fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.strip_suffix('s').unwrap_or(text);
    match number.parse::<u32>() {
        Ok(0) | Err(_) => Err("must be a positive number of seconds".to_owned()),
        Ok(seconds) => Ok(Duration::from_secs(seconds.into())),
    }
}

/// nginx's sizes: `8m`, `512k`, `1g`, bytes; 0 is without bound.
fn size(text: &str) -> Result<u64, String> {
    let wrong = || "must be a size such as 8m".to_owned();
    let lower = text.to_ascii_lowercase();
    let (number, unit) = match lower.char_indices().last() {
        Some((at, 'k')) => (&lower[..at], 1 << 10),
        Some((at, 'm')) => (&lower[..at], 1 << 20),
        Some((at, 'g')) => (&lower[..at], 1 << 30),
        _ => (lower.as_str(), 1),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(unit).ok_or_else(wrong)
}

fn networks(into: &mut Vec<IpNet>, text: &str) -> Result<(), String> {
    for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let network = part
            .parse()
            .or_else(|_| part.parse::<std::net::IpAddr>().map(IpNet::from));
        into.push(network.map_err(|_| format!("{part:?} is no network"))?);
    }
    if into.is_empty() {
        return Err("names no network".to_owned());
    }
    Ok(())
}

fn redirect(options: &mut Options, url: &str, code: StatusCode) -> Result<(), String> {
    let location = HeaderValue::from_str(url).map_err(|error| error.to_string())?;
    // A temporary redirect is the stronger wish, as in nginx.
    if options.redirect.is_none() || code == StatusCode::FOUND {
        options.redirect = Some((location, code));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Options {
        let map = pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Options::parse(&map.collect())
    }

    #[test]
    fn both_prefixes_are_understood_and_ours_counts() {
        let options = parse(&[
            ("nginx.ingress.kubernetes.io/proxy-body-size", "8m"),
            ("coracle.dev/proxy-body-size", "1k"),
            ("nginx.ingress.kubernetes.io/proxy-read-timeout", "120"),
            (
                "nginx.ingress.kubernetes.io/permanent-redirect",
                "https://a/",
            ),
            ("nginx.ingress.kubernetes.io/permanent-redirect-code", "308"),
            ("cert-manager.io/issuer", "x"),
        ]);
        assert_eq!(options.policy.body_limit, Some(1024));
        let two_minutes = Patience::Within(Duration::from_secs(120));
        assert_eq!(options.policy.read_timeout, two_minutes);
        let (_, code) = options.redirect.unwrap();
        assert_eq!(code, StatusCode::PERMANENT_REDIRECT);
        assert!(options.unsupported.is_empty(), "{:?}", options.unsupported);
    }

    #[test]
    fn what_is_not_followed_is_said_and_guards_keep_the_door_shut() {
        let options = parse(&[("nginx.ingress.kubernetes.io/configuration-snippet", "x")]);
        assert_eq!(options.unsupported.len(), 1);
        assert!(options.refused.is_none());
        assert!(
            parse(&[("nginx.ingress.kubernetes.io/auth-url", "http://x")])
                .refused
                .is_some()
        );
        assert!(
            parse(&[("nginx.ingress.kubernetes.io/whitelist-source-range", "x")])
                .refused
                .is_some()
        );
        let options = parse(&[(
            "coracle.dev/whitelist-source-range",
            "10.0.0.0/8, 192.0.2.1",
        )]);
        assert_eq!(options.policy.allow.len(), 2);
    }
}
