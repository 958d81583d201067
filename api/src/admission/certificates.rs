//! CertificateSigningRequests: who asked is written down by the server, some subjects are refused, and approving and
//! signing need permission for the signer.

use serde_json::{Value, json};
use types::well_known::GROUP_MASTERS;

use super::{Attributes, Plugin};
use crate::certificates::request::Request;
use crate::certificates::{API_CLIENT, GROUP, PLURAL, REMOTE_ADDRESS};
use crate::kinds::strategy::{Door, Lookup};
use crate::object::Object;
use crate::registry;
use crate::status::Error;

/// Who asked, and when conditions changed.
pub(super) struct Requester;
/// CertificateSubjectRestriction.
pub(super) struct SubjectRestriction;
/// CertificateApproval.
pub(super) struct Approval;
/// CertificateSigning.
pub(super) struct Signing;

fn concerns(attributes: &Attributes<'_>, door: Door<'_>) -> bool {
    attributes.door == door && attributes.kind.group == GROUP && attributes.kind.plural == PLURAL
}

impl Plugin for Requester {
    fn mutate(
        &self,
        attributes: &Attributes<'_>,
        new: &mut Object,
        lookup: &dyn Lookup,
    ) -> Result<(), Error> {
        if attributes.kind.group != GROUP || attributes.kind.plural != PLURAL {
            return Ok(());
        }
        let Some(old) = attributes.old else {
            let user = attributes.user;
            for key in ["username", "uid", "groups", "extra"] {
                new.remove(&["spec", key]);
            }
            new.set(&["spec", "username"], json!(user.name));
            new.set(&["spec", "groups"], json!(user.groups));
            if !user.uid.is_empty() {
                new.set(&["spec", "uid"], json!(user.uid));
            }
            let mut extra = user.extra.clone();
            extra.remove(REMOTE_ADDRESS);
            if let Some(address) = user.address {
                extra.insert(REMOTE_ADDRESS.to_owned(), vec![address.to_string()]);
            }
            if !extra.is_empty() {
                new.set(&["spec", "extra"], json!(extra));
            }
            return Ok(());
        };
        let now = json!(registry::time(lookup.now()));
        let before = old.list_at(&["status", "conditions"]);
        let conditions = new
            .at_mut(&["status", "conditions"])
            .and_then(Value::as_array_mut);
        for condition in conditions.into_iter().flatten() {
            let old = before.iter().find(|old| old["type"] == condition["type"]);
            if condition["lastUpdateTime"].is_null() {
                condition["lastUpdateTime"] = now.clone();
            }
            if condition["lastTransitionTime"].is_null() {
                let same = old.filter(|old| old["status"] == condition["status"]);
                condition["lastTransitionTime"] = match same {
                    Some(old) if !old["lastTransitionTime"].is_null() => {
                        old["lastTransitionTime"].clone()
                    }
                    _ => now.clone(),
                };
            }
        }
        Ok(())
    }
}

impl Plugin for SubjectRestriction {
    fn validate(
        &self,
        attributes: &Attributes<'_>,
        new: &Object,
        _lookup: &dyn Lookup,
    ) -> Result<(), Error> {
        if !concerns(attributes, Door::Main)
            || !attributes.is_create()
            || new.str_at(&["spec", "signerName"]) != Some(API_CLIENT)
        {
            return Ok(());
        }
        // One that cannot be read was refused by the kind's own rules.
        let request = Request::parse(new.str_at(&["spec", "request"]).unwrap_or_default());
        let masters = request.is_ok_and(|request| {
            let mut groups = request.organizations.iter();
            groups.any(|group| group == GROUP_MASTERS)
        });
        if masters {
            return Err(attributes.forbidden(&format!(
                "use of {API_CLIENT} signer with {GROUP_MASTERS} group is not allowed"
            )));
        }
        Ok(())
    }
}

impl Plugin for Approval {
    fn validate(
        &self,
        attributes: &Attributes<'_>,
        new: &Object,
        _lookup: &dyn Lookup,
    ) -> Result<(), Error> {
        if !concerns(attributes, Door::Subresource("approval")) {
            return Ok(());
        }
        permitted(attributes, new, "approve")
    }
}

impl Plugin for Signing {
    fn validate(
        &self,
        attributes: &Attributes<'_>,
        new: &Object,
        _lookup: &dyn Lookup,
    ) -> Result<(), Error> {
        let same = |path: &[&str]| {
            attributes
                .old
                .is_some_and(|old| old.at(path) == new.at(path))
        };
        if !concerns(attributes, Door::Subresource("status"))
            || same(&["status", "certificate"]) && same(&["status", "conditions"])
        {
            return Ok(());
        }
        permitted(attributes, new, "sign")
    }
}

/// `verb` on the signer's name, or on all of its domain: `kubernetes.io/*`.
fn permitted(attributes: &Attributes<'_>, csr: &Object, verb: &str) -> Result<(), Error> {
    let signer = csr.str_at(&["spec", "signerName"]).unwrap_or_default();
    let domain = signer.split('/').next().unwrap_or_default();
    let may = |name: &str| {
        let (access, user) = (attributes.access, attributes.user);
        access.allows_on(user, verb, GROUP, "signers", "", name)
    };
    if may(signer) || may(&format!("{domain}/*")) {
        return Ok(());
    }
    Err(attributes.forbidden(&format!(
        "user not permitted to {verb} requests with signerName {signer:?}"
    )))
}
