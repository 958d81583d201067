//! Workloads in one line: how many replicas are wanted, there, ready; of which containers and images.

use jiff::Timestamp;
use serde_json::Value;

use super::{
    AGE, NAME, NONE, UNSET, age, at, at_or, boolean, containers, count, find, has_condition, human,
    is_deleting, labels, list, map, name, number, parse, shown, since, text, wide,
};
use crate::kinds::autoscaling::Version1;
use crate::kinds::{Columns, Conversion as _, label_selector};
use crate::object::Object;

pub static DEPLOYMENT: Columns = Columns {
    definitions: &[
        NAME,
        text("Ready"),
        number("Up-to-date"),
        number("Available"),
        AGE,
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ],
    cells: |object, now| {
        let [names, images] = containers(object, "spec.template");
        vec![
            name(object),
            ready_of(object).into(),
            count(object, "status.updatedReplicas").into(),
            count(object, "status.availableReplicas").into(),
            age(object, now),
            names,
            images,
            selector(object),
        ]
    },
};

pub static REPLICA_SET: Columns = Columns {
    definitions: &[
        NAME,
        number("Desired"),
        number("Current"),
        number("Ready"),
        AGE,
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ],
    cells: |object, now| replicas(object, now, selector(object)),
};

pub static REPLICATION_CONTROLLER: Columns = Columns {
    definitions: REPLICA_SET.definitions,
    cells: |object, now| replicas(object, now, labels(map(object, "spec.selector")).into()),
};

pub static STATEFUL_SET: Columns = Columns {
    definitions: &[NAME, text("Ready"), AGE, wide("Containers"), wide("Images")],
    cells: |object, now| {
        let [names, images] = containers(object, "spec.template");
        vec![
            name(object),
            ready_of(object).into(),
            age(object, now),
            names,
            images,
        ]
    },
};

pub static DAEMON_SET: Columns = Columns {
    definitions: &[
        NAME,
        number("Desired"),
        number("Current"),
        number("Ready"),
        number("Up-to-date"),
        number("Available"),
        text("Node Selector"),
        AGE,
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ],
    cells: |object, now| {
        let [names, images] = containers(object, "spec.template");
        vec![
            name(object),
            count(object, "status.desiredNumberScheduled").into(),
            count(object, "status.currentNumberScheduled").into(),
            count(object, "status.numberReady").into(),
            count(object, "status.updatedNumberScheduled").into(),
            count(object, "status.numberAvailable").into(),
            labels(map(object, "spec.template.spec.nodeSelector")).into(),
            age(object, now),
            names,
            images,
            selector(object),
        ]
    },
};

pub static JOB: Columns = Columns {
    definitions: &[
        NAME,
        text("Status"),
        text("Completions"),
        text("Duration"),
        AGE,
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ],
    cells: |object, now| {
        let [names, images] = containers(object, "spec.template");
        vec![
            name(object),
            job_status(object).into(),
            completions(object).into(),
            job_duration(object, now).into(),
            age(object, now),
            names,
            images,
            selector(object),
        ]
    },
};

pub static CRON_JOB: Columns = Columns {
    definitions: &[
        NAME,
        text("Schedule"),
        text("Timezone"),
        text("Suspend"),
        number("Active"),
        text("Last Schedule"),
        AGE,
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ],
    cells: |object, now| {
        let [names, images] = containers(object, "spec.jobTemplate.spec.template");
        let last = find(object, "status.lastScheduleTime");
        let last = if last.is_null() {
            NONE.to_owned()
        } else {
            since(last, now)
        };
        vec![
            name(object),
            at(object, "spec.schedule").into(),
            at_or(object, "spec.timeZone", NONE),
            boolean(find(object, "spec.suspend")).into(),
            list(object, "status.active").len().into(),
            last.into(),
            age(object, now),
            names,
            images,
            label_selector::format(find(object, "spec.jobTemplate.spec.selector")).into(),
        ]
    },
};

pub static HORIZONTAL_POD_AUTOSCALER: Columns = Columns {
    definitions: &[
        NAME,
        text("Reference"),
        text("Targets"),
        text("MinPods"),
        number("MaxPods"),
        number("Replicas"),
        AGE,
    ],
    cells: |object, now| {
        let target = find(object, "spec.scaleTargetRef");
        let least = shown(find(object, "spec.minReplicas"));
        vec![
            name(object),
            format!("{}/{}", at(target, "kind"), at(target, "name")).into(),
            targets(object).into(),
            if least.is_empty() {
                UNSET.into()
            } else {
                least.into()
            },
            count(object, "spec.maxReplicas").into(),
            count(object, "status.currentReplicas").into(),
            age(object, now),
        ]
    },
};

/// autoscaling/v1 shows what its stored form shows.
pub static HORIZONTAL_POD_AUTOSCALER_V1: Columns = Columns {
    definitions: HORIZONTAL_POD_AUTOSCALER.definitions,
    cells: |object, now| {
        let stored = Object::new(object.clone()).map(|object| Version1.store(object).into_value());
        let stored = stored.unwrap_or_else(|not_an_object| not_an_object);
        (HORIZONTAL_POD_AUTOSCALER.cells)(&stored, now)
    },
};

pub static POD_DISRUPTION_BUDGET: Columns = Columns {
    definitions: &[
        NAME,
        text("Min Available"),
        text("Max Unavailable"),
        number("Allowed Disruptions"),
        AGE,
    ],
    cells: |object, now| {
        let amount = |path: &str| match shown(find(object, path)) {
            none if none.is_empty() => "N/A".to_owned(),
            amount => amount,
        };
        vec![
            name(object),
            amount("spec.minAvailable").into(),
            amount("spec.maxUnavailable").into(),
            count(object, "status.disruptionsAllowed").into(),
            age(object, now),
        ]
    },
};

pub static CONTROLLER_REVISION: Columns = Columns {
    definitions: &[NAME, text("Controller"), number("Revision"), AGE],
    cells: |object, now| {
        let owners = list(object, "metadata.ownerReferences");
        let controller = owners.iter().find(|owner| owner["controller"] == true);
        let controller = controller.map_or(NONE.to_owned(), |owner| {
            let kind = at(owner, "kind").to_lowercase();
            match at(owner, "apiVersion").split_once('/') {
                Some((group, _)) => format!("{kind}.{group}/{}", at(owner, "name")),
                None => format!("{kind}/{}", at(owner, "name")),
            }
        });
        vec![
            name(object),
            controller.into(),
            count(object, "revision").into(),
            age(object, now),
        ]
    },
};

fn selector(object: &Value) -> Value {
    label_selector::format(find(object, "spec.selector")).into()
}

fn ready_of(object: &Value) -> String {
    format!(
        "{}/{}",
        count(object, "status.readyReplicas"),
        count(object, "spec.replicas")
    )
}

fn replicas(object: &Value, now: Timestamp, selector: Value) -> Vec<Value> {
    let [names, images] = containers(object, "spec.template");
    vec![
        name(object),
        count(object, "spec.replicas").into(),
        count(object, "status.replicas").into(),
        count(object, "status.readyReplicas").into(),
        age(object, now),
        names,
        images,
        selector,
    ]
}

fn job_status(job: &Value) -> &'static str {
    let has = |kind: &str| has_condition(job, kind);
    if has("Complete") {
        "Complete"
    } else if has("Failed") {
        "Failed"
    } else if is_deleting(job) {
        "Terminating"
    } else if has("Suspended") {
        "Suspended"
    } else if has("FailureTarget") {
        "FailureTarget"
    } else if has("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    }
}

fn completions(job: &Value) -> String {
    let succeeded = count(job, "status.succeeded");
    match (
        find(job, "spec.completions").as_i64(),
        count(job, "spec.parallelism"),
    ) {
        (Some(wanted), _) => format!("{succeeded}/{wanted}"),
        (None, many) if many > 1 => format!("{succeeded}/1 of {many}"),
        (None, _) => format!("{succeeded}/1"),
    }
}

fn job_duration(job: &Value, now: Timestamp) -> String {
    let Some(start) = parse(find(job, "status.startTime")) else {
        return String::new();
    };
    let end = parse(find(job, "status.completionTime")).unwrap_or(now);
    human(end.duration_since(start))
}

/// `cpu: 10%/80%`, `memory: <unknown>/1Gi`: the first two metrics and how many more.
fn targets(autoscaler: &Value) -> String {
    let current = list(autoscaler, "status.currentMetrics");
    let metrics = list(autoscaler, "spec.metrics");
    let texts: Vec<String> = metrics
        .iter()
        .enumerate()
        .map(|(i, spec)| target(spec, current.get(i)))
        .collect();
    if texts.is_empty() {
        return NONE.to_owned();
    }
    let shown = texts[..texts.len().min(2)].join(", ");
    match texts.len().saturating_sub(2) {
        0 => shown,
        more => format!("{shown} + {more} more..."),
    }
}

fn target(spec: &Value, status: Option<&Value>) -> String {
    let source = match at(spec, "type") {
        "Resource" => "resource",
        "ContainerResource" => "containerResource",
        "Pods" => "pods",
        "Object" => "object",
        "External" => "external",
        _ => return "<unknown type>".to_owned(),
    };
    let metric = &spec[source];
    let current = |key: &str| {
        let value = status.map_or(&Value::Null, |status| &status[source]["current"][key]);
        match shown(value) {
            none if none.is_empty() => "<unknown>".to_owned(),
            value => value,
        }
    };
    let wanted = |key: &str| shown(&metric["target"][key]);
    let prefix = match source {
        "resource" | "containerResource" => format!("{}: ", at(metric, "name")),
        _ => String::new(),
    };
    if !metric["target"]["averageUtilization"].is_null() {
        let now = match current("averageUtilization").as_str() {
            "<unknown>" => "<unknown>".to_owned(),
            percent => format!("{percent}%"),
        };
        return format!("{prefix}{now}/{}%", wanted("averageUtilization"));
    }
    if !metric["target"]["averageValue"].is_null() {
        let mark = if matches!(source, "object" | "external") {
            " (avg)"
        } else {
            ""
        };
        return format!(
            "{prefix}{}/{}{mark}",
            current("averageValue"),
            wanted("averageValue")
        );
    }
    format!("{prefix}{}/{}", current("value"), wanted("value"))
}
