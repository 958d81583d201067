//! RBAC: which rules a user has, by roles and bindings. An index that is kept as they change; pure otherwise.
//!
//! A question looks up the bindings of the user's name and groups, then their roles; nothing is parsed.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;
use types::well_known::GROUP_MASTERS;

use super::live::Derived;
use super::rules::Rule;
use super::{Attributes, Decision, User};
use crate::store::{Key, Stored};

pub const GROUP: &str = "rbac.authorization.k8s.io";
pub const CLUSTER_ROLES: &str = "rbac.authorization.k8s.io/clusterroles";
pub const ROLES: &str = "rbac.authorization.k8s.io/roles";
pub const CLUSTER_ROLE_BINDINGS: &str = "rbac.authorization.k8s.io/clusterrolebindings";
pub const ROLE_BINDINGS: &str = "rbac.authorization.k8s.io/rolebindings";

/// By name.
type Roles = HashMap<Box<str>, Arc<[Rule]>>;

/// Roles and bindings, by what questions come with.
#[derive(Default)]
pub struct Tables {
    /// By namespace (empty: ClusterRoles) and name.
    roles: HashMap<Box<str>, Roles>,
    /// So that a change can take out what there was.
    bindings: HashMap<(Arc<str>, Arc<str>), Arc<Binding>>,
    /// Service accounts are users here.
    users: HashMap<Box<str>, Grants>,
    groups: HashMap<Box<str>, Grants>,
}

/// The bindings of one subject.
#[derive(Default)]
struct Grants {
    everywhere: Vec<Arc<Binding>>,
    /// By namespace.
    within: HashMap<Arc<str>, Vec<Arc<Binding>>>,
}

struct Binding {
    /// Empty: everywhere.
    namespace: Arc<str>,
    name: Arc<str>,
    role: RoleRef,
    subjects: Vec<Subject>,
}

/// The role a binding gives.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RoleRef {
    /// Empty: a ClusterRole.
    pub namespace: String,
    pub name: String,
}

struct Subject {
    user: bool,
    /// As the user or group is called.
    name: Box<str>,
    /// `User "bob"`, `ServiceAccount "a/default"`.
    spelled: Box<str>,
}

// === impl Tables ===

impl Tables {
    pub fn decide(&self, user: &User, asked: &Attributes<'_>, explain: bool) -> Decision {
        let namespace = asked.namespace();
        let mut missing = Vec::new();
        for (binding, subject) in self.bindings_of(user, namespace) {
            match self.rules(&binding.role) {
                Some(rules) if rules.iter().any(|rule| rule.allows(asked)) => {
                    let reason = if explain {
                        format!("RBAC: allowed by {}", binding.spelled(subject))
                    } else {
                        String::new()
                    };
                    return Decision::allowed(reason);
                }
                Some(_) => {}
                None => note(&mut missing, &binding.role),
            }
        }
        Decision::denied(aggregate(&missing).map_or_else(String::new, |all| format!("RBAC: {all}")))
    }

    /// Every rule `user` has in `namespace` (empty: at the cluster scope), and what could not be looked up.
    pub fn rules_of(&self, user: &User, namespace: &str) -> (Vec<Rule>, Vec<String>) {
        let (mut rules, mut missing) = (Vec::new(), Vec::new());
        if user.is_in(GROUP_MASTERS) {
            rules.extend(Rule::everything());
        }
        for (binding, _) in self.bindings_of(user, namespace) {
            match self.rules(&binding.role) {
                Some(found) => rules.extend(found.iter().cloned()),
                None => note(&mut missing, &binding.role),
            }
        }
        (rules, missing)
    }

    pub fn rules(&self, role: &RoleRef) -> Option<&Arc<[Rule]>> {
        self.roles.get(&*role.namespace)?.get(&*role.name)
    }

    /// Those for everywhere first, as upstream looks.
    fn bindings_of<'a>(
        &'a self,
        user: &'a User,
        namespace: &'a str,
    ) -> impl Iterator<Item = (&'a Binding, &'a Subject)> {
        let subjects = || {
            let own = self
                .users
                .get(&*user.name)
                .map(|grants| (grants, &*user.name, true));
            let groups = user.groups.iter().filter_map(|group| {
                let grants = self.groups.get(&**group)?;
                Some((grants, &**group, false))
            });
            own.into_iter().chain(groups)
        };
        let everywhere = subjects().flat_map(|(grants, name, user)| {
            grants
                .everywhere
                .iter()
                .map(move |binding| (binding, name, user))
        });
        let within = subjects().flat_map(move |(grants, name, user)| {
            let within = (!namespace.is_empty())
                .then(|| grants.within.get(namespace))
                .flatten();
            within
                .into_iter()
                .flatten()
                .map(move |binding| (binding, name, user))
        });
        everywhere
            .chain(within)
            .filter_map(|(binding, name, user)| {
                let mut subjects = binding.subjects.iter();
                let subject =
                    subjects.find(|subject| subject.user == user && *subject.name == *name)?;
                Some((&**binding, subject))
            })
    }

    fn put_binding(&mut self, key: &Key, binding: &Value) {
        let binding = Arc::new(Binding::read(key, binding));
        for subject in &binding.subjects {
            let table = if subject.user {
                &mut self.users
            } else {
                &mut self.groups
            };
            let grants = table.entry(subject.name.clone()).or_default();
            grants.of(&binding.namespace).push(Arc::clone(&binding));
        }
        let at = (Arc::clone(&key.namespace), Arc::clone(&key.name));
        self.bindings.insert(at, binding);
    }

    fn remove_binding(&mut self, key: &Key) {
        let at = (Arc::clone(&key.namespace), Arc::clone(&key.name));
        let Some(binding) = self.bindings.remove(&at) else {
            return;
        };
        for subject in &binding.subjects {
            let table = if subject.user {
                &mut self.users
            } else {
                &mut self.groups
            };
            let Some(grants) = table.get_mut(&subject.name) else {
                continue;
            };
            grants
                .of(&binding.namespace)
                .retain(|other| !Arc::ptr_eq(other, &binding));
            grants.within.retain(|_, bindings| !bindings.is_empty());
            if grants.everywhere.is_empty() && grants.within.is_empty() {
                table.remove(&subject.name);
            }
        }
    }
}

impl Derived for Tables {
    const RESOURCES: &'static [&'static str] =
        &[CLUSTER_ROLES, ROLES, CLUSTER_ROLE_BINDINGS, ROLE_BINDINGS];

    fn apply(&mut self, key: &Key, _old: Option<&Stored>, new: Option<&Stored>) {
        let new: Option<Value> =
            new.map(|new| serde_json::from_slice(&new.bytes).unwrap_or_default());
        if matches!(&*key.resource, CLUSTER_ROLES | ROLES) {
            match new {
                Some(role) => {
                    let roles = self.roles.entry((&*key.namespace).into()).or_default();
                    roles.insert((&*key.name).into(), Rule::all(&role).into());
                }
                None => {
                    if let Some(roles) = self.roles.get_mut(&*key.namespace) {
                        roles.remove(&*key.name);
                    }
                }
            }
            return;
        }
        self.remove_binding(key);
        if let Some(binding) = new {
            self.put_binding(key, &binding);
        }
    }
}

// === impl Grants ===

impl Grants {
    fn of(&mut self, namespace: &Arc<str>) -> &mut Vec<Arc<Binding>> {
        if namespace.is_empty() {
            &mut self.everywhere
        } else {
            self.within.entry(Arc::clone(namespace)).or_default()
        }
    }
}

// === impl Binding ===

impl Binding {
    fn read(key: &Key, binding: &Value) -> Self {
        let subjects = binding["subjects"].as_array().into_iter().flatten();
        Self {
            namespace: Arc::clone(&key.namespace),
            name: Arc::clone(&key.name),
            role: RoleRef::of(binding, &key.namespace),
            subjects: subjects
                .filter_map(|subject| Subject::read(subject, &key.namespace))
                .collect(),
        }
    }

    /// `RoleBinding "b/default" of Role "r" to User "bob"`.
    fn spelled(&self, subject: &Subject) -> String {
        let role = if self.role.namespace.is_empty() {
            "ClusterRole"
        } else {
            "Role"
        };
        let (name, to) = (&self.role.name, &subject.spelled);
        if self.namespace.is_empty() {
            return format!(
                "ClusterRoleBinding {:?} of {role} {name:?} to {to}",
                &*self.name
            );
        }
        let binding = format!("{}/{}", self.name, self.namespace);
        format!("RoleBinding {binding:?} of {role} {name:?} to {to}")
    }
}

impl RoleRef {
    /// The role of a binding that lives in `namespace`.
    pub fn of(binding: &Value, namespace: &str) -> Self {
        let of_cluster = binding["roleRef"]["kind"] == "ClusterRole";
        Self {
            namespace: if of_cluster {
                String::new()
            } else {
                namespace.to_owned()
            },
            name: binding["roleRef"]["name"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
        }
    }
}

impl Subject {
    fn read(subject: &Value, namespace: &str) -> Option<Self> {
        let name = subject["name"].as_str()?;
        let kind = subject["kind"].as_str()?;
        Some(match kind {
            "ServiceAccount" => {
                let own = subject["namespace"].as_str().filter(|own| !own.is_empty());
                let namespace = own.unwrap_or(namespace);
                Self {
                    user: true,
                    name: format!("system:serviceaccount:{namespace}:{name}").into(),
                    spelled: format!("ServiceAccount {:?}", format!("{name}/{namespace}")).into(),
                }
            }
            "User" | "Group" => Self {
                user: kind == "User",
                name: name.into(),
                spelled: format!("{kind} {name:?}").into(),
            },
            _ => return None,
        })
    }
}

fn note(missing: &mut Vec<String>, role: &RoleRef) {
    let kind = if role.namespace.is_empty() {
        "clusterrole"
    } else {
        "role"
    };
    let text = format!("{kind}.{GROUP} {:?} not found", role.name);
    if !missing.contains(&text) {
        missing.push(text);
    }
}

/// As upstream joins errors: one as it is, several in brackets.
pub fn aggregate(errors: &[String]) -> Option<String> {
    match errors {
        [] => None,
        [one] => Some(one.clone()),
        many => Some(format!("[{}]", many.join(", "))),
    }
}

#[cfg(test)]
mod tests;
