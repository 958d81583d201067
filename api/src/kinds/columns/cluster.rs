//! Nodes, namespaces, events, configuration and other furniture of a cluster, in one line.

use jiff::SignedDuration;
use serde_json::Value;

use super::{
    AGE, NAME, NONE, UNKNOWN, age, at, at_or, column, count, find, human, list, map, name, number,
    since, text, wide,
};
use crate::kinds::Columns;

pub static NODE: Columns = Columns {
    definitions: &[
        NAME,
        text("Status"),
        text("Roles"),
        AGE,
        text("Version"),
        wide("Internal-IP"),
        wide("External-IP"),
        wide("OS-Image"),
        wide("Kernel-Version"),
        wide("Container-Runtime"),
    ],
    cells: |object, now| {
        vec![
            name(object),
            node_status(object).into(),
            node_roles(object).into(),
            age(object, now),
            at(object, "status.nodeInfo.kubeletVersion").into(),
            node_address(object, "InternalIP"),
            node_address(object, "ExternalIP"),
            at_or(object, "status.nodeInfo.osImage", UNKNOWN),
            at_or(object, "status.nodeInfo.kernelVersion", UNKNOWN),
            at_or(object, "status.nodeInfo.containerRuntimeVersion", UNKNOWN),
        ]
    },
};

pub static NAMESPACE: Columns = Columns {
    definitions: &[NAME, text("Status"), AGE],
    cells: |object, now| {
        vec![
            name(object),
            at(object, "status.phase").into(),
            age(object, now),
        ]
    },
};

pub static EVENT: Columns = Columns {
    definitions: &[
        text("Last Seen"),
        text("Type"),
        text("Reason"),
        text("Object"),
        wide("Subobject"),
        wide("Source"),
        text("Message"),
        wide("First Seen"),
        column("Count", "integer", 1),
        wide("Name"),
    ],
    cells: |object, now| event(object, &CORE_EVENT, now),
};

pub static NEW_EVENT: Columns = Columns {
    definitions: EVENT.definitions,
    cells: |object, now| event(object, &NEW_EVENT_FIELDS, now),
};

pub static SECRET: Columns = Columns {
    definitions: &[NAME, text("Type"), number("Data"), AGE],
    cells: |object, now| {
        let data = map(object, "data").map_or(0, |data| data.len());
        vec![
            name(object),
            at(object, "type").into(),
            data.into(),
            age(object, now),
        ]
    },
};

pub static CONFIG_MAP: Columns = Columns {
    definitions: &[NAME, number("Data"), AGE],
    cells: |object, now| {
        let of = |key: &str| map(object, key).map_or(0, |data| data.len());
        vec![
            name(object),
            (of("data") + of("binaryData")).into(),
            age(object, now),
        ]
    },
};

pub static COMPONENT_STATUS: Columns = Columns {
    definitions: &[NAME, text("Status"), text("Message"), text("Error")],
    cells: |object, _| {
        let conditions = list(object, "conditions").iter();
        let healthy = conditions
            .clone()
            .find(|condition| condition["type"] == "Healthy");
        let healthy = healthy.unwrap_or(&Value::Null);
        let status = match at(healthy, "status") {
            "True" => "Healthy",
            "False" => "Unhealthy",
            _ => "Unknown",
        };
        vec![
            name(object),
            status.into(),
            at(healthy, "message").into(),
            at(healthy, "error").into(),
        ]
    },
};

pub static LEASE: Columns = Columns {
    definitions: &[NAME, text("Holder"), AGE],
    cells: |object, now| {
        vec![
            name(object),
            at(object, "spec.holderIdentity").into(),
            age(object, now),
        ]
    },
};

pub static PRIORITY_CLASS: Columns = Columns {
    definitions: &[
        NAME,
        number("Value"),
        column("Global-Default", "boolean", 0),
        AGE,
        text("PreemptionPolicy"),
    ],
    cells: |object, now| {
        vec![
            name(object),
            count(object, "value").into(),
            (object["globalDefault"] == true).into(),
            age(object, now),
            at(object, "preemptionPolicy").into(),
        ]
    },
};

pub static RUNTIME_CLASS: Columns = Columns {
    definitions: &[NAME, text("Handler"), AGE],
    cells: |object, now| vec![name(object), at(object, "handler").into(), age(object, now)],
};

pub static CERTIFICATE_SIGNING_REQUEST: Columns = Columns {
    definitions: &[
        NAME,
        AGE,
        text("SignerName"),
        text("Requestor"),
        text("RequestedDuration"),
        text("Condition"),
    ],
    cells: |object, now| {
        let seconds = find(object, "spec.expirationSeconds").as_i64();
        let duration = seconds.map_or(NONE.to_owned(), |seconds| {
            human(SignedDuration::from_secs(seconds))
        });
        vec![
            name(object),
            age(object, now),
            at_or(object, "spec.signerName", NONE),
            at(object, "spec.username").into(),
            duration.into(),
            request_status(object).into(),
        ]
    },
};

fn node_status(node: &Value) -> String {
    let conditions = list(node, "status.conditions").iter();
    let ready = conditions
        .clone()
        .find(|condition| condition["type"] == "Ready");
    let word = match ready.map(|ready| at(ready, "status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    };
    if node["spec"]["unschedulable"] == true {
        return format!("{word},SchedulingDisabled");
    }
    word.to_owned()
}

fn node_roles(node: &Value) -> String {
    let labels = map(node, "metadata.labels").into_iter().flatten();
    let mut roles: Vec<&str> = labels
        .filter_map(
            |(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
                Some(role) => Some(role),
                None if key == "kubernetes.io/role" => value.as_str(),
                None => None,
            },
        )
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    roles.dedup();
    if roles.is_empty() {
        NONE.to_owned()
    } else {
        roles.join(",")
    }
}

fn node_address(node: &Value, kind: &str) -> Value {
    let addresses = list(node, "status.addresses").iter();
    let found = addresses.clone().find(|address| address["type"] == kind);
    found.map_or(NONE.into(), |address| at(address, "address").into())
}

/// Where the two versions of events keep the same thing.
struct EventFields {
    about: &'static str,
    message: &'static str,
    source: &'static str,
    first: &'static str,
    last: &'static str,
    count: &'static str,
    reporter: &'static str,
}

const CORE_EVENT: EventFields = EventFields {
    about: "involvedObject",
    message: "message",
    source: "source",
    first: "firstTimestamp",
    last: "lastTimestamp",
    count: "count",
    reporter: "reportingComponent",
};
const NEW_EVENT_FIELDS: EventFields = EventFields {
    about: "regarding",
    message: "note",
    source: "deprecatedSource",
    first: "deprecatedFirstTimestamp",
    last: "deprecatedLastTimestamp",
    count: "deprecatedCount",
    reporter: "reportingController",
};

fn event(event: &Value, fields: &EventFields, now: jiff::Timestamp) -> Vec<Value> {
    let either = |first: &str, second: &str| {
        let key = if event[first].is_null() {
            second
        } else {
            first
        };
        since(&event[key], now)
    };
    let first = either(fields.first, "eventTime");
    let series = &event["series"];
    let (last, times) = if series.is_null() {
        let last = if event[fields.last].is_null() {
            first.clone()
        } else {
            since(&event[fields.last], now)
        };
        (last, count(event, fields.count).max(1))
    } else {
        (
            since(&series["lastObservedTime"], now),
            count(series, "count"),
        )
    };
    let about = &event[fields.about];
    let kind = at(about, "kind").to_lowercase();
    let object = match at(about, "name") {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    vec![
        last.into(),
        at(event, "type").into(),
        at(event, "reason").into(),
        object.into(),
        at(about, "fieldPath").into(),
        event_source(event, fields).into(),
        at(event, fields.message).trim().into(),
        first.into(),
        times.into(),
        name(event),
    ]
}

fn event_source(event: &Value, fields: &EventFields) -> String {
    let source = &event[fields.source];
    let or = |first: &str, second: &str| {
        if first.is_empty() {
            second.to_owned()
        } else {
            first.to_owned()
        }
    };
    let component = or(at(source, "component"), at(event, fields.reporter));
    let host = or(at(source, "host"), at(event, "reportingInstance"));
    if host.is_empty() {
        component
    } else {
        format!("{component}, {host}")
    }
}

/// `Pending`, `Approved`, `Denied`, with `,Failed` and `,Issued` where they apply.
fn request_status(request: &Value) -> String {
    let conditions = list(request, "status.conditions").iter();
    let has = |kind: &str| {
        conditions
            .clone()
            .any(|condition| condition["type"] == kind)
    };
    let mut status = match (has("Approved"), has("Denied")) {
        (_, true) => "Denied",
        (true, false) => "Approved",
        (false, false) => "Pending",
    }
    .to_owned();
    if has("Failed") {
        status.push_str(",Failed");
    }
    if !at(request, "status.certificate").is_empty() {
        status.push_str(",Issued");
    }
    status
}
