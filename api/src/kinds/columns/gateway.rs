//! What `kubectl get` shows of the Gateway API: the printer columns of its CRDs.

use serde_json::Value;

use super::{AGE, NAME, age, at, list, name, text, wide};
use crate::kinds::Columns;

pub static GATEWAY_CLASS: Columns = Columns {
    definitions: &[
        NAME,
        text("Controller"),
        text("Accepted"),
        AGE,
        wide("Description"),
    ],
    cells: |object, now| {
        vec![
            name(object),
            at(object, "spec.controllerName").into(),
            condition(object, "Accepted").into(),
            age(object, now),
            at(object, "spec.description").into(),
        ]
    },
};

pub static GATEWAY: Columns = Columns {
    definitions: &[
        NAME,
        text("Class"),
        text("Address"),
        text("Programmed"),
        AGE,
    ],
    cells: |object, now| {
        let addresses = list(object, "status.addresses").iter();
        let addresses: Vec<&str> = addresses.map(|address| at(address, "value")).collect();
        vec![
            name(object),
            at(object, "spec.gatewayClassName").into(),
            addresses.join(",").into(),
            condition(object, "Programmed").into(),
            age(object, now),
        ]
    },
};

pub static HTTP_ROUTE: Columns = Columns {
    definitions: &[NAME, text("Hostnames"), AGE],
    cells: |object, now| {
        let hosts = list(object, "spec.hostnames");
        // As a CRD prints a list: as JSON.
        let hosts = if hosts.is_empty() {
            String::new()
        } else {
            Value::from(hosts).to_string()
        };
        vec![name(object), hosts.into(), age(object, now)]
    },
};

fn condition<'v>(object: &'v Value, kind: &str) -> &'v str {
    let conditions = list(object, "status.conditions").iter();
    let mut found = conditions.filter(|condition| condition["type"] == kind);
    found.next().map_or("", |condition| at(condition, "status"))
}
