//! Events: one stored form (core/v1), served by two groups. Field names differ, nothing is lost either way.

use super::Conversion;
use crate::object::Object;

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
