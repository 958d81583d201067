//! Rules about other objects in one line: roles, quotas, webhooks, admission policies, flow control, API services.

use serde_json::Value;

use super::{
    AGE, NAME, NONE, UNSET, age, at, column, count, find, list, map, name, number, shown, text,
    wide,
};
use crate::kinds::Columns;

pub static ROLE_BINDING: Columns = Columns {
    definitions: &[
        NAME,
        text("Role"),
        AGE,
        wide("Users"),
        wide("Groups"),
        wide("ServiceAccounts"),
    ],
    cells: |object, now| {
        let subjects = |kind: &str| {
            let found = list(object, "subjects")
                .iter()
                .filter(|subject| subject["kind"] == kind);
            let texts: Vec<String> = found
                .map(|subject| match at(subject, "namespace") {
                    namespace if kind == "ServiceAccount" => {
                        format!("{namespace}/{}", at(subject, "name"))
                    }
                    _ => at(subject, "name").to_owned(),
                })
                .collect();
            Value::from(texts.join(", "))
        };
        let role = &object["roleRef"];
        vec![
            name(object),
            format!("{}/{}", at(role, "kind"), at(role, "name")).into(),
            age(object, now),
            subjects("User"),
            subjects("Group"),
            subjects("ServiceAccount"),
        ]
    },
};

pub static RESOURCE_QUOTA: Columns = Columns {
    definitions: &[NAME, text("Request"), text("Limit"), AGE],
    cells: |object, now| {
        let hard = map(object, "status.hard").or_else(|| map(object, "spec.hard"));
        let used = find(object, "status.used");
        let (mut requests, mut limits) = (Vec::new(), Vec::new());
        for (resource, amount) in hard.into_iter().flatten() {
            let used = match shown(&used[resource]) {
                none if none.is_empty() => "0".to_owned(),
                used => used,
            };
            let text = format!("{resource}: {used}/{}", shown(amount));
            if resource.starts_with("limits.") {
                &mut limits
            } else {
                &mut requests
            }
            .push(text);
        }
        requests.sort();
        limits.sort();
        vec![
            name(object),
            requests.join(", ").into(),
            limits.join(", ").into(),
            age(object, now),
        ]
    },
};

pub static WEBHOOK_CONFIGURATION: Columns = Columns {
    definitions: &[NAME, number("Webhooks"), AGE],
    cells: |object, now| {
        vec![
            name(object),
            list(object, "webhooks").len().into(),
            age(object, now),
        ]
    },
};

pub static VALIDATING_POLICY: Columns = Columns {
    definitions: &[NAME, number("Validations"), text("ParamKind"), AGE],
    cells: |object, now| {
        vec![
            name(object),
            list(object, "spec.validations").len().into(),
            parameter_kind(object).into(),
            age(object, now),
        ]
    },
};

pub static MUTATING_POLICY: Columns = Columns {
    definitions: &[NAME, number("Mutations"), text("ParamKind"), AGE],
    cells: |object, now| {
        vec![
            name(object),
            list(object, "spec.mutations").len().into(),
            parameter_kind(object).into(),
            age(object, now),
        ]
    },
};

pub static POLICY_BINDING: Columns = Columns {
    definitions: &[NAME, text("PolicyName"), text("ParamRef"), AGE],
    cells: |object, now| {
        let parameter = find(object, "spec.paramRef");
        let text = match (at(parameter, "name"), at(parameter, "namespace")) {
            _ if parameter.is_null() => UNSET.to_owned(),
            ("", _) => "*/*".to_owned(),
            (name, "") => format!("*/{name}"),
            (name, namespace) => format!("{namespace}/{name}"),
        };
        vec![
            name(object),
            at(object, "spec.policyName").into(),
            text.into(),
            age(object, now),
        ]
    },
};

pub static FLOW_SCHEMA: Columns = Columns {
    definitions: &[
        NAME,
        text("PriorityLevel"),
        number("MatchingPrecedence"),
        text("DistinguisherMethod"),
        AGE,
        text("MissingPL"),
    ],
    cells: |object, now| {
        let method = at(object, "spec.distinguisherMethod.type");
        let conditions = list(object, "status.conditions").iter();
        let dangling = conditions
            .clone()
            .find(|condition| condition["type"] == "Dangling");
        vec![
            name(object),
            at(object, "spec.priorityLevelConfiguration.name").into(),
            count(object, "spec.matchingPrecedence").into(),
            if method.is_empty() { NONE } else { method }.into(),
            age(object, now),
            dangling
                .map_or("?", |condition| at(condition, "status"))
                .into(),
        ]
    },
};

pub static PRIORITY_LEVEL: Columns = Columns {
    definitions: &[
        NAME,
        text("Type"),
        text("NominalConcurrencyShares"),
        text("Queues"),
        text("HandSize"),
        text("QueueLengthLimit"),
        AGE,
    ],
    cells: |object, now| {
        let cell = |path: &str| match shown(find(object, path)) {
            none if none.is_empty() => Value::from(NONE),
            found => found.into(),
        };
        let side = if at(object, "spec.type") == "Exempt" {
            "exempt"
        } else {
            "limited"
        };
        let queuing = "spec.limited.limitResponse.queuing";
        vec![
            name(object),
            at(object, "spec.type").into(),
            cell(&format!("spec.{side}.nominalConcurrencyShares")),
            cell(&format!("{queuing}.queues")),
            cell(&format!("{queuing}.handSize")),
            cell(&format!("{queuing}.queueLengthLimit")),
            age(object, now),
        ]
    },
};

pub static API_SERVICE: Columns = Columns {
    definitions: &[NAME, text("Service"), text("Available"), AGE],
    cells: |object, now| {
        let service = find(object, "spec.service");
        let text = match at(service, "name") {
            "" => "Local".to_owned(),
            name => format!("{}/{name}", at(service, "namespace")),
        };
        let conditions = list(object, "status.conditions").iter();
        let available = conditions
            .clone()
            .find(|condition| condition["type"] == "Available");
        let available = available.map_or("Unknown".to_owned(), |condition| {
            match (at(condition, "status"), at(condition, "reason")) {
                ("True", _) => "True".to_owned(),
                (status, reason) => format!("{status} ({reason})"),
            }
        });
        vec![
            name(object),
            text.into(),
            available.into(),
            age(object, now),
        ]
    },
};

pub static RESOURCE_CLAIM: Columns = Columns {
    definitions: &[NAME, text("State"), AGE],
    cells: |object, now| {
        let mut states = Vec::new();
        if !object["metadata"]["deletionTimestamp"].is_null() {
            states.push("deleted");
        }
        let allocated = !find(object, "status.allocation").is_null();
        states.push(if allocated { "allocated" } else { "pending" });
        if !list(object, "status.reservedFor").is_empty() {
            states.push("reserved");
        }
        vec![name(object), states.join(",").into(), age(object, now)]
    },
};

pub static RESOURCE_SLICE: Columns = Columns {
    definitions: &[
        NAME,
        text("Node"),
        text("Driver"),
        text("Pool"),
        column("Age", "string", 0),
    ],
    cells: |object, now| {
        let node = match at(object, "spec.nodeName") {
            "" if object["spec"]["allNodes"] == true => "<all>",
            "" => NONE,
            node => node,
        };
        vec![
            name(object),
            node.into(),
            at(object, "spec.driver").into(),
            at(object, "spec.pool.name").into(),
            age(object, now),
        ]
    },
};

fn parameter_kind(object: &Value) -> String {
    let kind = find(object, "spec.paramKind");
    if kind.is_null() {
        return UNSET.to_owned();
    }
    format!("{}/{}", at(kind, "apiVersion"), at(kind, "kind"))
}
