//! The mirror map: sends an image name somewhere else before anything is looked up. Pure.
//!
//! ```text
//! gcr.io/google-samples/istio/helloserver:v0.0.1 = ghcr.io/me/hello:1      exactly this image
//! gcr.io/google-samples/istio/helloserver        = ghcr.io/me/hello        every tag of it; the tag is kept
//! gcr.io/google-samples/*                        = registry.local/wasm/*   everything below, the rest is kept
//! docker.io/*                                    = /srv/wasm/*             files below a directory
//! example.com/app                                = file:///srv/app.wasm
//! ```
//! The longest entry that matches wins; an entry with a tag before one without.

use std::path::PathBuf;

use super::reference::{self, Reference};

#[derive(Clone, Debug, Default)]
pub(crate) struct Mirrors {
    entries: Vec<(Pattern, String)>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Pattern {
    /// With its tag or digest.
    Image(String),
    /// Any tag.
    Name(String),
    /// Ends in `/` or is empty.
    Below(String),
}

/// Where to get an image.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Target {
    Registry(Reference),
    /// A file, or a directory in which the file for `name` (`istio/helloserver`) is looked for.
    Path {
        path: PathBuf,
        name: String,
    },
}

#[derive(Debug, thiserror::Error)]
#[error("mirror {entry:?}: {why}")]
pub(crate) struct Error {
    entry: String,
    why: String,
}

impl Mirrors {
    /// `entries` are (from, to), as in the example above.
    pub(crate) fn new(entries: &[(String, String)]) -> Result<Mirrors, Error> {
        let mut parsed = Vec::new();
        for (from, to) in entries {
            let wrong = |why: String| Error {
                entry: format!("{from}={to}"),
                why,
            };
            if to.is_empty() {
                return Err(wrong("the target is empty".to_owned()));
            }
            let pattern = Pattern::parse(from).map_err(|error| wrong(error.to_string()))?;
            if to.contains('*') && !matches!(pattern, Pattern::Below(_)) {
                return Err(wrong(
                    "a target with * needs a name that ends in *".to_owned(),
                ));
            }
            parsed.push((pattern, to.clone()));
        }
        Ok(Mirrors { entries: parsed })
    }

    /// What `image` (as a pod names it) stands for. A pod may name a file of the node itself: `file:///srv/app.wasm`.
    pub(crate) fn resolve(&self, image: &str) -> Result<Target, reference::Error> {
        if let Some(path) = as_path(image) {
            return Ok(Target::Path {
                path,
                name: String::new(),
            });
        }
        let wanted = Reference::parse(image)?;
        let best = self
            .entries
            .iter()
            .filter_map(|(pattern, to)| Some((pattern.rank(&wanted)?, pattern, to)))
            .max_by_key(|(rank, ..)| *rank);
        match best {
            Some((_, pattern, to)) => pattern.send(&wanted, to),
            None => Ok(Target::Registry(wanted)),
        }
    }

    /// Is there an entry for this image?
    pub(crate) fn names(&self, image: &str) -> bool {
        Reference::parse(image).is_ok_and(|wanted| {
            self.entries
                .iter()
                .any(|(pattern, _)| pattern.rank(&wanted).is_some())
        })
    }
}

impl Pattern {
    fn parse(from: &str) -> Result<Pattern, reference::Error> {
        if let Some(prefix) = from.strip_suffix('*') {
            if prefix.is_empty() || prefix.ends_with('/') {
                return Ok(Pattern::Below(prefix.to_owned()));
            }
            return Err(reference::Error::Format);
        }
        if from.ends_with('/') {
            return Ok(Pattern::Below(from.to_owned()));
        }
        let reference = Reference::parse_bare(from)?;
        if reference.tag.is_none() && reference.digest.is_none() {
            return Ok(Pattern::Name(reference.name()));
        }
        Ok(Pattern::Image(reference.to_string()))
    }

    /// How well it fits; `None` when it does not.
    fn rank(&self, wanted: &Reference) -> Option<(u8, usize)> {
        match self {
            Pattern::Image(image) => (*image == wanted.to_string()).then_some((2, 0)),
            Pattern::Name(name) => (*name == wanted.name()).then_some((1, 0)),
            Pattern::Below(prefix) => wanted
                .name()
                .starts_with(prefix.as_str())
                .then_some((0, prefix.len())),
        }
    }

    fn send(&self, wanted: &Reference, to: &str) -> Result<Target, reference::Error> {
        let rest = match self {
            Pattern::Below(prefix) => wanted.name()[prefix.len()..].to_owned(),
            _ => String::new(),
        };
        if let Some(path) = as_path(to.trim_end_matches('*')) {
            let name = if rest.is_empty() {
                wanted.repository.clone()
            } else {
                rest
            };
            return Ok(Target::Path { path, name });
        }
        let text = match (to.contains('*'), to.ends_with('/')) {
            (true, _) => to.replace('*', &rest),
            (_, true) => format!("{to}{rest}"),
            _ => to.to_owned(),
        };
        let mut target = Reference::parse_bare(&text)?;
        if target.tag.is_none() && target.digest.is_none() {
            target.tag = wanted.tag.clone();
            target.digest = match self {
                // Another repository has other digests; the same path below a mirror has the same.
                Pattern::Below(_) => wanted.digest.clone(),
                _ => None,
            };
            if target.tag.is_none() && target.digest.is_none() {
                target.tag = Some("latest".to_owned());
            }
        }
        Ok(Target::Registry(target))
    }
}

fn as_path(text: &str) -> Option<PathBuf> {
    if let Some(path) = text.strip_prefix("file://") {
        return Some(PathBuf::from(path));
    }
    let like_a_path = text.starts_with('/') || text.starts_with("./") || text.starts_with("../");
    like_a_path.then(|| PathBuf::from(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(entries: &[(&str, &str)], image: &str) -> String {
        let entries: Vec<(String, String)> = entries
            .iter()
            .map(|(from, to)| ((*from).to_owned(), (*to).to_owned()))
            .collect();
        match Mirrors::new(&entries)
            .expect("the test's entries are well formed")
            .resolve(image)
            .expect("a name")
        {
            Target::Registry(reference) => reference.to_string(),
            Target::Path { path, name } => format!("{} [{name}]", path.display()),
        }
    }

    #[test]
    fn an_image_nobody_mirrors_is_itself() {
        assert_eq!(resolve(&[], "nginx"), "docker.io/library/nginx:latest");
        assert_eq!(resolve(&[], "file:///srv/a.wasm"), "/srv/a.wasm []");
    }

    #[test]
    fn exact_before_name_before_prefix_and_the_longest_prefix() {
        let entries = [
            ("gcr.io/*", "one.example/*"),
            ("gcr.io/a/*", "two.example/*"),
            ("gcr.io/a/b", "three.example/b"),
            ("gcr.io/a/b:v1", "four.example/b:v9"),
        ];
        assert_eq!(resolve(&entries, "gcr.io/a/b:v1"), "four.example/b:v9");
        assert_eq!(resolve(&entries, "gcr.io/a/b:v2"), "three.example/b:v2");
        assert_eq!(resolve(&entries, "gcr.io/a/c:v2"), "two.example/c:v2");
        assert_eq!(resolve(&entries, "gcr.io/x/y"), "one.example/x/y:latest");
    }

    #[test]
    fn short_names_are_completed_on_both_sides() {
        assert_eq!(
            resolve(
                &[("nginx", "example.com/wasm/nginx")],
                "docker.io/library/nginx:1"
            ),
            "example.com/wasm/nginx:1"
        );
    }

    #[test]
    fn directories_get_the_rest_of_the_name() {
        assert_eq!(
            resolve(
                &[("gcr.io/samples/*", "/srv/wasm/*")],
                "gcr.io/samples/a/b:1"
            ),
            "/srv/wasm/ [a/b]"
        );
        assert_eq!(
            resolve(
                &[("gcr.io/samples/a", "file:///srv/a.wasm")],
                "gcr.io/samples/a"
            ),
            "/srv/a.wasm [samples/a]"
        );
    }

    #[test]
    fn entries_that_make_no_sense_are_named() {
        let entry = |from: &str, to: &str| Mirrors::new(&[(from.to_owned(), to.to_owned())]);
        assert!(entry("gcr.io/a*", "b").is_err());
        assert!(entry("a", "b/*").is_err());
        assert!(
            entry("a", "")
                .expect_err("refused")
                .to_string()
                .contains("\"a=\"")
        );
    }
}
