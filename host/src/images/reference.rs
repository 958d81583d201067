//! Image names: parsed, completed and checked as container tools do. Pure.

use std::fmt;

/// `registry/repository[:tag][@digest]`, complete: `nginx` is `docker.io/library/nginx:latest`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct Reference {
    /// Host and perhaps port: `ghcr.io`, `localhost:5000`.
    pub(crate) registry: String,
    pub(crate) repository: String,
    pub(crate) tag: Option<String>,
    /// `sha256:…`
    pub(crate) digest: Option<String>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum Error {
    #[error("invalid reference format")]
    Format,
    #[error("invalid reference format: repository name must be lowercase")]
    Uppercase,
}

const DEFAULT_REGISTRY: &str = "docker.io";

impl Reference {
    pub(crate) fn parse(text: &str) -> Result<Reference, Error> {
        let mut reference = Reference::parse_bare(text)?;
        if reference.tag.is_none() && reference.digest.is_none() {
            reference.tag = Some("latest".to_owned());
        }
        Ok(reference)
    }

    /// Without the default tag, so that a mirror entry can mean every tag.
    pub(crate) fn parse_bare(text: &str) -> Result<Reference, Error> {
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (text, None),
        };
        if digest.is_some_and(|digest| !is_digest(digest)) {
            return Err(Error::Format);
        }
        let (name, tag) = match name.rsplit_once(':') {
            // A colon before the last slash belongs to the registry's port.
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (name, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(Error::Format);
        }
        let (registry, repository) = match name.split_once('/') {
            Some((first, rest)) if is_registry(first) => (first, rest.to_owned()),
            _ if name.contains('/') => (DEFAULT_REGISTRY, name.to_owned()),
            _ => (DEFAULT_REGISTRY, format!("library/{name}")),
        };
        if repository.chars().any(|letter| letter.is_ascii_uppercase()) {
            return Err(Error::Uppercase);
        }
        if !repository.split('/').all(is_component) {
            return Err(Error::Format);
        }
        Ok(Reference {
            registry: registry.to_owned(),
            repository,
            tag: tag.map(str::to_owned),
            digest: digest.map(str::to_owned),
        })
    }

    /// `registry/repository`.
    pub(crate) fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// Plain HTTP is spoken to this machine only.
    pub(crate) fn is_local(&self) -> bool {
        let host = self
            .registry
            .rsplit_once(':')
            .map_or(self.registry.as_str(), |(host, _)| host);
        host == "localhost"
            || host == "[::1]"
            || host
                .parse::<std::net::Ipv4Addr>()
                .is_ok_and(|ip| ip.is_loopback())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

fn is_registry(first: &str) -> bool {
    let allowed = |letter: char| {
        letter.is_ascii_alphanumeric() || matches!(letter, '.' | '-' | ':' | '[' | ']')
    };
    (first == "localhost" || first.contains(['.', ':'])) && first.chars().all(allowed)
}

/// Lower-case letters and digits, separated by `.`, `_`, `__` or dashes.
fn is_component(text: &str) -> bool {
    let edge = |letter: Option<char>| {
        letter.is_some_and(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit())
    };
    let allowed = |letter: char| {
        letter.is_ascii_lowercase() || letter.is_ascii_digit() || matches!(letter, '.' | '_' | '-')
    };
    edge(text.chars().next()) && edge(text.chars().next_back()) && text.chars().all(allowed)
}

fn is_tag(text: &str) -> bool {
    let word = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    (1..=128).contains(&text.len())
        && text.chars().next().is_some_and(word)
        && text
            .chars()
            .all(|letter| word(letter) || matches!(letter, '.' | '-'))
}

fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.chars().all(|digit| digit.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, complete: &str) {
        assert_eq!(
            Reference::parse(text).map(|reference| reference.to_string()),
            Ok(complete.to_owned())
        );
    }

    #[test]
    fn names_are_completed() {
        check("nginx", "docker.io/library/nginx:latest");
        check("user/app:1.2", "docker.io/user/app:1.2");
        check("localhost:5000/app", "localhost:5000/app:latest");
        check(
            "gcr.io/google-samples/istio/helloserver:v0.0.1",
            "gcr.io/google-samples/istio/helloserver:v0.0.1",
        );
        let digest = format!("sha256:{}", "a".repeat(64));
        check(
            &format!("ghcr.io/a/b@{digest}"),
            &format!("ghcr.io/a/b@{digest}"),
        );
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            ":",
            "a b",
            "a//b",
            "-a",
            "a:",
            "a@sha256:12",
            "ghcr.io/",
        ] {
            assert_eq!(Reference::parse(text), Err(Error::Format), "{text:?}");
        }
        assert_eq!(Reference::parse("Nginx"), Err(Error::Uppercase));
    }

    #[test]
    fn only_this_machine_is_spoken_to_in_the_clear() {
        let local = |text| Reference::parse(text).expect("a name").is_local();
        assert!(local("localhost:5000/a") && local("127.0.0.1:5000/a") && local("localhost/a"));
        assert!(!local("ghcr.io/a/b") && !local("localhost.example.com/a"));
    }
}
