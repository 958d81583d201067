//! Which resources the server serves: for the controllers that work on all of them.
//!
//! Owns the last answer of the discovery endpoints. Never watches: who needs it fresh asks for a refresh.

use std::sync::{Arc, PoisonError, RwLock};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{APIGroupList, APIResourceList};

use crate::write::{Error, Writer};

/// One resource in the version its group prefers.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Served {
    pub api_version: String,
    pub kind: String,
    pub plural: String,
    pub namespaced: bool,
    pub verbs: Vec<String>,
    /// Has the subresource `scale`.
    pub scalable: bool,
}

#[derive(Default)]
pub struct Catalog {
    /// Replaced as a whole. Short sections only.
    known: RwLock<Arc<Vec<Served>>>,
}

// === impl Catalog ===

impl Catalog {
    pub fn known(&self) -> Arc<Vec<Served>> {
        Arc::clone(&self.known.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The resource of a kind; another version of the same group will do.
    pub fn find(&self, api_version: &str, kind: &str) -> Option<Served> {
        let known = self.known();
        let mut same_kind = known.iter().filter(|s| s.kind == kind);
        let exact = known
            .iter()
            .find(|s| s.kind == kind && s.api_version == api_version);
        exact
            .or_else(|| same_kind.find(|s| group(&s.api_version) == group(api_version)))
            .cloned()
    }

    /// Asks the server again. Errors: when any of the documents cannot be had; what was known stays.
    pub async fn refresh(&self, writer: &Writer) -> Result<Arc<Vec<Served>>, Error> {
        let groups: APIGroupList = writer.get("/apis".to_owned()).await?;
        let mut versions = vec!["v1".to_owned()];
        versions.extend(groups.groups.into_iter().filter_map(|g| {
            g.preferred_version
                .or_else(|| g.versions.into_iter().next())
                .map(|v| v.group_version)
        }));
        let mut served = Vec::new();
        for version in versions {
            let root = if version.contains('/') {
                "/apis"
            } else {
                "/api"
            };
            let list: APIResourceList = writer.get(format!("{root}/{version}")).await?;
            let scalable: Vec<String> = list
                .resources
                .iter()
                .filter_map(|r| r.name.strip_suffix("/scale").map(str::to_owned))
                .collect();
            served.extend(
                list.resources
                    .into_iter()
                    .filter(|r| !r.name.contains('/'))
                    .map(|r| Served {
                        api_version: version.clone(),
                        kind: r.kind,
                        scalable: scalable.contains(&r.name),
                        plural: r.name,
                        namespaced: r.namespaced,
                        verbs: r.verbs,
                    }),
            );
        }
        let served = Arc::new(served);
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&served);
        Ok(served)
    }
}

// === impl Served ===

impl Served {
    pub fn can(&self, verbs: &[&str]) -> bool {
        verbs.iter().all(|v| self.verbs.iter().any(|own| own == v))
    }

    /// `deployments.apps`, or `pods.` in the core group: how upstream names resources in conditions.
    pub fn dotted(&self) -> String {
        format!("{}.{}", self.plural, group(&self.api_version))
    }
}

pub fn group(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_of_the_group_is_found() {
        let catalog = Catalog::default();
        *catalog.known.write().expect("not poisoned") = Arc::new(vec![Served {
            api_version: "apps/v1".to_owned(),
            kind: "Deployment".to_owned(),
            plural: "deployments".to_owned(),
            namespaced: true,
            verbs: vec!["list".to_owned()],
            scalable: true,
        }]);
        assert!(catalog.find("apps/v1beta1", "Deployment").is_some());
        assert!(catalog.find("v1", "Deployment").is_none());
    }
}
