//! Events: one stored form (core/v1), served by two groups. Field names differ, nothing is lost either way.

use super::Conversion;
use super::rules::Check::{Required, RequiredWith};
use super::rules::{Rules, text_at};
use crate::object::Object;
use crate::status::Cause;

const NAMESPACES_OF_THE_CLUSTER: [&str; 2] = ["default", "kube-system"];

pub static EVENT: Rules = Rules {
    validate: |new, _, _, causes| namespace("involvedObject", new, causes),
    fields: &[
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ],
    field: |event, name| {
        (name == "source").then(|| match text_at(event, "source.component") {
            none if none.is_empty() => text_at(event, "reportingComponent"),
            component => component,
        })
    },
    create_on_update: true,
    ..Rules::NEW
};

pub static NEW_EVENT: Rules = Rules {
    checks: &[
        ("eventTime", Required),
        ("reportingController", RequiredWith("must not be empty")),
        ("reportingInstance", Required),
        ("action", Required),
        ("reason", Required),
        ("type", Required),
    ],
    validate: |new, _, _, causes| namespace("regarding", new, causes),
    fields: &[
        "regarding.kind",
        "regarding.namespace",
        "regarding.name",
        "regarding.uid",
        "regarding.apiVersion",
        "regarding.resourceVersion",
        "regarding.fieldPath",
        "reason",
        "reportingController",
        "source",
        "type",
    ],
    create_on_update: true,
    ..Rules::NEW
};

/// An event stands in the namespace of what it is about; in `default` when that has none.
fn namespace(about: &str, new: &Object, causes: &mut Vec<Cause>) {
    let field = format!("{about}.namespace");
    let of = new.str_at(&[about, "namespace"]).unwrap_or_default();
    let fine = match of {
        "" => NAMESPACES_OF_THE_CLUSTER.contains(&new.namespace()),
        of => of == new.namespace(),
    };
    if !fine {
        let why = "does not match event.namespace";
        causes.push(Cause::invalid(field, &of.into(), why));
    }
}

/// `events.k8s.io/v1` in terms of the stored `v1` form.
pub struct NewEvents;

/// events.k8s.io's name and core's.
const FIELDS: &[(&str, &str)] = &[
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

// === impl NewEvents ===

impl Conversion for NewEvents {
    fn store(&self, mut object: Object) -> Object {
        object.set(&["apiVersion"], "v1".into());
        for (new, core) in FIELDS {
            rename(&mut object, new, core);
        }
        object
    }

    fn serve(&self, mut object: Object) -> Object {
        object.set(&["apiVersion"], "events.k8s.io/v1".into());
        for (new, core) in FIELDS {
            rename(&mut object, core, new);
        }
        object
    }

    fn field<'a>(&self, label: &'a str) -> &'a str {
        match label {
            "regarding.kind" => "involvedObject.kind",
            "regarding.namespace" => "involvedObject.namespace",
            "regarding.name" => "involvedObject.name",
            "regarding.uid" => "involvedObject.uid",
            "regarding.apiVersion" => "involvedObject.apiVersion",
            "regarding.resourceVersion" => "involvedObject.resourceVersion",
            "regarding.fieldPath" => "involvedObject.fieldPath",
            "reportingController" => "reportingComponent",
            other => other,
        }
    }
}

fn rename(object: &mut Object, from: &str, to: &str) {
    if let Some(value) = object.map_mut().remove(from) {
        object.map_mut().insert(to.to_owned(), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_event_survives_the_way_to_the_stored_form_and_back() {
        let new = json!({
            "kind": "Event", "apiVersion": "events.k8s.io/v1", "metadata": {"name": "e"},
            "regarding": {"kind": "Pod", "name": "p"}, "note": "n", "reason": "R",
            "reportingController": "c", "deprecatedCount": 2,
        });
        let new = Object::new(new).expect("an object");
        let stored = NewEvents.store(new.clone());
        assert_eq!(stored.str_at(&["involvedObject", "name"]), Some("p"));
        assert_eq!(stored.str_at(&["message"]), Some("n"));
        assert_eq!(stored.str_at(&["apiVersion"]), Some("v1"));
        assert_eq!(NewEvents.serve(stored), new);
        assert_eq!(NewEvents.field("regarding.uid"), "involvedObject.uid");
    }
}
