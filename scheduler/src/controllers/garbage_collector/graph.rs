//! Who owns whom, by uid. Pure: told of objects, answers with work.
//!
//! An owner that is only known from references is *virtual*: somebody has to ask the server whether it exists.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use crate::objects::{Key, Meta};

pub const FOREGROUND: &str = "foregroundDeletion";
pub const ORPHAN: &str = "orphan";
/// Owners remembered as gone; uids are never used again, so forgetting only costs a question.
const ABSENT: usize = 500;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Work {
    /// Look whether the object with this uid has to go.
    Delete(String),
    /// Let the dependents of the object with this uid go.
    Orphan(String),
}

/// What an object is and where.
#[derive(Clone, Debug)]
pub struct Identity {
    /// API version and kind.
    pub kind: Arc<(String, String)>,
    pub key: Key,
}

/// What the graph knows of an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Solid,
    Waiting,
    Absent,
    OtherNamespace,
    Unknown,
}

/// A copy of what is known of one object.
#[derive(Clone, Debug)]
pub struct View {
    pub identity: Identity,
    pub is_virtual: bool,
    pub deleting: bool,
    pub foreground: bool,
    pub dependents: Vec<String>,
    /// Some dependent is itself being deleted in the foreground.
    pub dependent_waits: bool,
}

struct Node {
    identity: Identity,
    owners: Vec<OwnerReference>,
    dependents: HashSet<String>,
    is_virtual: bool,
    deleting: bool,
    foreground: bool,
    orphan: bool,
}

#[derive(Default)]
pub struct Graph {
    nodes: HashMap<String, Node>,
    absent: HashSet<String>,
    absent_order: VecDeque<String>,
}

// === impl Graph ===

impl Graph {
    /// An object was added or changed.
    pub fn observe(&mut self, kind: &Arc<(String, String)>, meta: &Meta) -> Vec<Work> {
        let has = |finalizer: &str| meta.finalizers.iter().any(|f| f == finalizer);
        let deleting = meta.is_deleting();
        let (foreground, orphan) = (deleting && has(FOREGROUND), deleting && has(ORPHAN));
        let uid = &meta.uid;
        let before = self
            .nodes
            .get(uid)
            .map(|n| (n.owners.clone(), n.foreground, n.orphan, n.is_virtual));
        let (old_owners, was_foreground, was_orphan, was_virtual) =
            before.unwrap_or((Vec::new(), false, false, true));
        let mut work = Vec::new();
        self.unlink(uid, &old_owners, &meta.owner_references, &mut work);
        self.link(kind, meta, &mut work);
        let node = self.nodes.entry(uid.clone()).or_insert_with(|| Node {
            identity: Identity {
                kind: Arc::clone(kind),
                key: meta.key(),
            },
            owners: Vec::new(),
            dependents: HashSet::new(),
            is_virtual: false,
            deleting,
            foreground,
            orphan,
        });
        node.identity = Identity {
            kind: Arc::clone(kind),
            key: meta.key(),
        };
        node.owners.clone_from(&meta.owner_references);
        (node.deleting, node.foreground, node.orphan) = (deleting, foreground, orphan);
        node.is_virtual = false;
        if foreground && (!was_foreground || was_virtual) {
            work.extend(node.dependents.iter().cloned().map(Work::Delete));
            work.push(Work::Delete(uid.clone()));
        }
        if orphan && (!was_orphan || was_virtual) {
            work.push(Work::Orphan(uid.clone()));
        }
        if !was_virtual && !old_owners.is_empty() && old_owners != meta.owner_references {
            // It may have lost its last owner that exists, or no longer block one.
            work.push(Work::Delete(uid.clone()));
        }
        work
    }

    /// Owners that are not owners any more.
    fn unlink(
        &mut self,
        uid: &str,
        old: &[OwnerReference],
        new: &[OwnerReference],
        work: &mut Vec<Work>,
    ) {
        for owner in old {
            let blocks_still = new.iter().any(|n| {
                n.uid == owner.uid && n.block_owner_deletion == owner.block_owner_deletion
            });
            if blocks_still {
                continue;
            }
            let Some(node) = self.nodes.get_mut(&owner.uid) else {
                continue;
            };
            if node.foreground {
                work.push(Work::Delete(owner.uid.clone()));
            }
            if !new.iter().any(|n| n.uid == owner.uid) {
                node.dependents.remove(uid);
                self.drop_unused(&owner.uid);
            }
        }
    }

    fn link(&mut self, kind: &Arc<(String, String)>, meta: &Meta, work: &mut Vec<Work>) {
        for owner in &meta.owner_references {
            if self.absent.contains(&owner.uid) {
                work.push(Work::Delete(meta.uid.clone()));
            }
            let node = self.nodes.entry(owner.uid.clone()).or_insert_with(|| {
                work.push(Work::Delete(owner.uid.clone()));
                Node {
                    identity: Identity {
                        kind: if kind.0 == owner.api_version && kind.1 == owner.kind {
                            Arc::clone(kind)
                        } else {
                            Arc::new((owner.api_version.clone(), owner.kind.clone()))
                        },
                        key: Key::new(&meta.namespace, &owner.name),
                    },
                    owners: Vec::new(),
                    dependents: HashSet::new(),
                    is_virtual: true,
                    deleting: false,
                    foreground: false,
                    orphan: false,
                }
            });
            node.dependents.insert(meta.uid.clone());
            if node.foreground && !meta.is_deleting() {
                work.push(Work::Delete(meta.uid.clone()));
            }
        }
    }

    /// An object is gone: its dependents lose an owner, and an owner that waited may go on.
    pub fn remove(&mut self, uid: &str) -> Vec<Work> {
        let mut work = Vec::new();
        let Some(node) = self.nodes.remove(uid) else {
            return work;
        };
        if !node.dependents.is_empty() {
            self.remember_absent(uid);
        }
        work.extend(node.dependents.iter().cloned().map(Work::Delete));
        for owner in &node.owners {
            if let Some(node) = self.nodes.get_mut(&owner.uid) {
                node.dependents.remove(uid);
                if node.foreground {
                    work.push(Work::Delete(owner.uid.clone()));
                }
            }
            self.drop_unused(&owner.uid);
        }
        work
    }

    /// A virtual owner without dependents is nobody.
    fn drop_unused(&mut self, uid: &str) {
        if self
            .nodes
            .get(uid)
            .is_some_and(|n| n.is_virtual && n.dependents.is_empty())
        {
            self.nodes.remove(uid);
        }
    }

    pub fn remember_absent(&mut self, uid: &str) {
        if self.absent.insert(uid.to_owned()) {
            self.absent_order.push_back(uid.to_owned());
        }
        while self.absent_order.len() > ABSENT {
            if let Some(oldest) = self.absent_order.pop_front() {
                self.absent.remove(&oldest);
            }
        }
    }

    pub fn view(&self, uid: &str) -> Option<View> {
        let node = self.nodes.get(uid)?;
        Some(View {
            identity: node.identity.clone(),
            is_virtual: node.is_virtual,
            deleting: node.deleting,
            foreground: node.foreground,
            dependents: node.dependents.iter().cloned().collect(),
            dependent_waits: node
                .dependents
                .iter()
                .any(|d| self.nodes.get(d).is_some_and(|n| n.foreground)),
        })
    }

    /// What an owner is to a dependent in that namespace.
    pub fn judge(&self, owner: &str, namespace: &str) -> Verdict {
        if self.absent.contains(owner) {
            return Verdict::Absent;
        }
        let Some(node) = self.nodes.get(owner).filter(|n| !n.is_virtual) else {
            return Verdict::Unknown;
        };
        let at = &node.identity.key.namespace;
        if !at.is_empty() && at != namespace {
            return Verdict::OtherNamespace;
        }
        if node.foreground {
            Verdict::Waiting
        } else {
            Verdict::Solid
        }
    }

    /// Dependents that keep a foreground deletion waiting.
    pub fn blocking(&self, uid: &str) -> Vec<String> {
        let Some(node) = self.nodes.get(uid) else {
            return Vec::new();
        };
        node.dependents
            .iter()
            .filter(|d| {
                self.nodes.get(*d).is_some_and(|n| {
                    n.owners
                        .iter()
                        .any(|o| o.uid == uid && o.block_owner_deletion == Some(true))
                })
            })
            .cloned()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind() -> Arc<(String, String)> {
        Arc::new(("v1".to_owned(), "ConfigMap".to_owned()))
    }

    fn meta(uid: &str, owners: &[&str], finalizers: &[&str]) -> Meta {
        let mut meta = Meta {
            name: uid.to_owned(),
            namespace: "a".to_owned(),
            uid: uid.to_owned(),
            finalizers: finalizers.iter().map(|f| (*f).to_owned()).collect(),
            ..Meta::default()
        };
        meta.owner_references = owners
            .iter()
            .map(|uid| OwnerReference {
                uid: (*uid).to_owned(),
                name: (*uid).to_owned(),
                block_owner_deletion: Some(true),
                ..OwnerReference::default()
            })
            .collect();
        if !finalizers.is_empty() {
            meta.deletion_timestamp =
                serde_json::from_value(serde_json::json!("2026-01-01T00:00:00Z")).ok();
        }
        meta
    }

    #[test]
    fn an_owner_that_goes_wakes_its_dependents() {
        let mut graph = Graph::default();
        assert!(graph.observe(&kind(), &meta("owner", &[], &[])).is_empty());
        assert!(
            graph
                .observe(&kind(), &meta("child", &["owner"], &[]))
                .is_empty()
        );
        assert_eq!(graph.judge("owner", "a"), Verdict::Solid);
        assert_eq!(graph.judge("owner", "b"), Verdict::OtherNamespace);
        assert_eq!(
            graph.remove("owner"),
            vec![Work::Delete("child".to_owned())]
        );
        assert_eq!(graph.judge("owner", "a"), Verdict::Absent);
    }

    #[test]
    fn an_unknown_owner_is_asked_for() {
        let mut graph = Graph::default();
        let work = graph.observe(&kind(), &meta("child", &["ghost"], &[]));
        assert_eq!(work, vec![Work::Delete("ghost".to_owned())]);
        assert_eq!(graph.judge("ghost", "a"), Verdict::Unknown);
        // The server does not know it either.
        assert_eq!(
            graph.remove("ghost"),
            vec![Work::Delete("child".to_owned())]
        );
    }

    #[test]
    fn a_foreground_deletion_waits_for_its_dependents() {
        let mut graph = Graph::default();
        graph.observe(&kind(), &meta("owner", &[], &[]));
        graph.observe(&kind(), &meta("child", &["owner"], &[]));
        let work = graph.observe(&kind(), &meta("owner", &[], &[FOREGROUND]));
        assert!(work.contains(&Work::Delete("child".to_owned())));
        assert_eq!(graph.blocking("owner"), vec!["child".to_owned()]);
        assert_eq!(graph.judge("owner", "a"), Verdict::Waiting);
        assert_eq!(
            graph.remove("child"),
            vec![Work::Delete("owner".to_owned())]
        );
        assert!(graph.blocking("owner").is_empty());
    }

    #[test]
    fn orphaning_is_work_once() {
        let mut graph = Graph::default();
        graph.observe(&kind(), &meta("owner", &[], &[]));
        let orphaned = meta("owner", &[], &[ORPHAN]);
        assert_eq!(
            graph.observe(&kind(), &orphaned),
            vec![Work::Orphan("owner".to_owned())]
        );
        assert!(graph.observe(&kind(), &orphaned).is_empty());
    }
}
