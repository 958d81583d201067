//! Nobody gives away what they do not have: the rules of a role, and of the role a binding leads to, must be covered by the
//! writer's own, unless they may `escalate` the role or `bind` it.

use super::{Attributes, Plugin};
use crate::auth::rbac::{GROUP, RoleRef};
use crate::auth::rules::{self, Rule};
use crate::kinds::strategy::{Door, Lookup};
use crate::object::Object;
use crate::status::Error;
use types::well_known::GROUP_MASTERS;

pub(super) struct Escalation;

impl Plugin for Escalation {
    fn validate(
        &self,
        attributes: &Attributes<'_>,
        new: &Object,
        _lookup: &dyn Lookup,
    ) -> Result<(), Error> {
        let concerned = attributes.kind.group == GROUP && attributes.door == Door::Main;
        if !concerned || attributes.user.is_in(GROUP_MASTERS) {
            return Ok(());
        }
        if attributes
            .old
            .is_some_and(|old| differ_for_collection_only(new, old))
        {
            return Ok(());
        }
        match &*attributes.kind.plural {
            "clusterroles" | "roles" => role(attributes, new),
            "clusterrolebindings" | "rolebindings" => binding(attributes, new),
            _ => Ok(()),
        }
    }
}

/// The garbage collector's changes are anybody's who may write.
fn differ_for_collection_only(new: &Object, old: &Object) -> bool {
    let plain = |object: &Object| {
        let mut object = object.clone();
        for key in [
            "ownerReferences",
            "finalizers",
            "managedFields",
            "resourceVersion",
        ] {
            object.remove(&["metadata", key]);
        }
        object
    };
    plain(new) == plain(old)
}

fn role(attributes: &Attributes<'_>, new: &Object) -> Result<(), Error> {
    // A name that is still to be made is no name.
    let name = if attributes.is_create() {
        ""
    } else {
        attributes.name
    };
    if may(
        attributes,
        "escalate",
        &attributes.kind.plural,
        attributes.namespace,
        name,
    ) {
        return Ok(());
    }
    covered(attributes, &Rule::all(new.value()))?;
    let aggregates = |object: &Object| {
        object
            .at(&["aggregationRule"])
            .is_some_and(|rule| !rule.is_null())
    };
    if (aggregates(new) || attributes.old.is_some_and(aggregates))
        && covered(attributes, &Rule::everything()).is_err()
    {
        let why = "must have cluster-admin privileges to use the aggregationRule";
        return Err(attributes.forbidden(why));
    }
    Ok(())
}

fn binding(attributes: &Attributes<'_>, new: &Object) -> Result<(), Error> {
    let role = RoleRef::of(new.value(), attributes.namespace);
    let plural = if role.namespace.is_empty() {
        "clusterroles"
    } else {
        "roles"
    };
    if may(attributes, "bind", plural, attributes.namespace, &role.name) {
        return Ok(());
    }
    let rules = attributes.access.rbac().rules(&role).cloned();
    let rules = rules.ok_or_else(|| Error::not_found(GROUP, plural, &role.name))?;
    covered(attributes, &rules)
}

fn may(attributes: &Attributes<'_>, verb: &str, plural: &str, namespace: &str, name: &str) -> bool {
    let (access, user) = (attributes.access, attributes.user);
    access.allows_on(user, verb, GROUP, plural, namespace, name)
}

fn covered(attributes: &Attributes<'_>, wanted: &[Rule]) -> Result<(), Error> {
    let user = attributes.user;
    let (own, errors) = attributes
        .access
        .rbac()
        .rules_of(user, attributes.namespace);
    let missing = rules::missing(&own, wanted);
    if missing.is_empty() {
        return Ok(());
    }
    let mut spelled: Vec<String> = missing.iter().map(Rule::spelled).collect();
    spelled.sort();
    let mut why = format!(
        "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        rules::quoted(&user.groups),
        spelled.join("\n")
    );
    if !errors.is_empty() {
        why.push_str(&format!("; resolution errors: [{}]", errors.join(" ")));
    }
    Err(attributes.forbidden(&why))
}
