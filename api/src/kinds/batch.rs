//! Jobs and CronJobs: how often a pod template is run to its end, and when.

use serde_json::{Value, json};

use super::path::{Path, put};
use super::pod::template_warnings;
use super::pod_spec::validate_template;
use super::pod_template::default_template;
use super::rules::Check::{NotNegative, OneOf, Required, With};
use super::rules::Literal::{Bool, Number, Text};
use super::rules::{Checks, Defaults, Rules, apply_defaults, check, unchanged};
use super::strategy::Door;
use super::{cron, label_selector};
use crate::object::Object;
use crate::status::Cause;

pub static JOB: Rules = Rules {
    default: |new| {
        default_template(new, &["spec", "template"]);
        if let Some(spec) = new.at_mut(&["spec"]) {
            default_job(spec);
        }
        let labels = new.at(&["spec", "template", "metadata", "labels"]).cloned();
        if let Some(labels) =
            labels.filter(|labels| labels.as_object().is_some_and(|map| !map.is_empty()))
        {
            new.set_default(&["metadata", "labels"], labels);
        }
    },
    status: "{}",
    allocates: true,
    allocate: |new, old, _| {
        if old.is_none() {
            generate_selector(new);
        }
        Ok(Vec::new())
    },
    validate: |new, old, door, causes| {
        if door == Door::Subresource("status") {
            return;
        }
        let spec = new.at(&["spec"]).unwrap_or(&Value::Null);
        validate_job(&Path::ROOT.key("spec"), spec, causes);
        validate_selector(new, causes);
        if let Some(old) = old {
            validate_update(new, old, causes);
        }
    },
    warnings: |new, _| {
        let spec = new
            .at(&["spec", "template", "spec"])
            .unwrap_or(&Value::Null);
        template_warnings(&Path::ROOT.key("spec.template.spec"), spec)
    },
    fields: &["status.successful"],
    field: |job, name| {
        let succeeded = job.i64_at(&["status", "succeeded"]).unwrap_or(0);
        (name == "status.successful").then(|| succeeded.to_string())
    },
    has_generation: true,
    orphans_by_default: true,
    ..Rules::NEW
};

pub static CRON_JOB: Rules = Rules {
    defaults: &[
        ("spec.concurrencyPolicy", Text("Allow")),
        ("spec.suspend", Bool(false)),
        ("spec.successfulJobsHistoryLimit", Number(3)),
        ("spec.failedJobsHistoryLimit", Number(1)),
    ],
    default: |new| {
        default_template(new, &["spec", "jobTemplate", "spec", "template"]);
        if let Some(spec) = new.at_mut(&["spec", "jobTemplate", "spec"]) {
            default_job(spec);
        }
    },
    status: "{}",
    checks: &[
        ("spec.schedule", Required),
        ("spec.schedule", With(schedule)),
        ("spec.timeZone", With(time_zone)),
        ("spec.startingDeadlineSeconds", NotNegative),
        (
            "spec.concurrencyPolicy",
            OneOf(&["Allow", "Forbid", "Replace"]),
        ),
        ("spec.successfulJobsHistoryLimit", NotNegative),
        ("spec.failedJobsHistoryLimit", NotNegative),
    ],
    validate: |new, _, door, causes| {
        if door == Door::Subresource("status") {
            return;
        }
        if new.name().len() > 52 {
            let why = "must be no more than 52 characters";
            causes.push(Cause::invalid("metadata.name", &new.name().into(), why));
        }
        let spec = new
            .at(&["spec", "jobTemplate", "spec"])
            .unwrap_or(&Value::Null);
        validate_job(&Path::ROOT.key("spec.jobTemplate.spec"), spec, causes);
    },
    has_generation: true,
    ..Rules::NEW
};

const SPEC: Defaults = &[
    ("parallelism", Number(1)),
    ("completionMode", Text("NonIndexed")),
    ("suspend", Bool(false)),
    (
        "podFailurePolicy?.rules[].onPodConditions[].status",
        Text("True"),
    ),
];

const SPEC_CHECKS: Checks = &[
    ("parallelism", NotNegative),
    ("completions", NotNegative),
    ("activeDeadlineSeconds", NotNegative),
    ("backoffLimit", NotNegative),
    ("backoffLimitPerIndex", NotNegative),
    ("maxFailedIndexes", NotNegative),
    ("ttlSecondsAfterFinished", NotNegative),
    ("completionMode", OneOf(&["Indexed", "NonIndexed"])),
    (
        "podReplacementPolicy",
        OneOf(&["Failed", "TerminatingOrFailed"]),
    ),
    ("template", Required),
];

const UID: &str = "batch.kubernetes.io/controller-uid";
const OLD_UID: &str = "controller-uid";
const NAME: &str = "batch.kubernetes.io/job-name";
const OLD_NAME: &str = "job-name";

/// One completion at a time unless the job says otherwise; a job with parallelism alone is a work queue.
fn default_job(spec: &mut Value) {
    if !spec.is_object() {
        return;
    }
    if spec["completions"].is_null() && spec["parallelism"].is_null() {
        put(spec, "completions", 1);
    }
    apply_defaults(spec, SPEC);
    if spec["backoffLimit"].is_null() {
        // Limits per index count; the limit of the whole job does not.
        let limit = if spec["backoffLimitPerIndex"].is_null() {
            6
        } else {
            i64::from(i32::MAX)
        };
        put(spec, "backoffLimit", limit);
    }
    let policy = if spec["podFailurePolicy"].is_null() {
        "TerminatingOrFailed"
    } else {
        "Failed"
    };
    apply_defaults(spec, &[("podReplacementPolicy", Text(policy))]);
}

/// A job finds its pods by its own uid, unless it says it does that by hand. Only once it has a uid: in `allocate`.
fn generate_selector(new: &mut Object) {
    if new.bool_at(&["spec", "manualSelector"]) || new.uid().is_empty() {
        return;
    }
    let (uid, name) = (new.uid().to_owned(), new.name().to_owned());
    for (key, value) in [
        (UID, &uid),
        (OLD_UID, &uid),
        (NAME, &name),
        (OLD_NAME, &name),
    ] {
        let path = ["spec", "template", "metadata", "labels", key];
        new.set(&path, value.as_str().into());
    }
    if new.at(&["spec", "selector"]).is_none_or(Value::is_null) {
        new.set(&["spec", "selector"], json!({"matchLabels": {UID: uid}}));
    }
}

/// Selector and labels, once the generic path has given the job its uid.
fn validate_selector(new: &Object, causes: &mut Vec<Cause>) {
    let Some(selector) = new
        .at(&["spec", "selector"])
        .filter(|selector| !selector.is_null())
    else {
        if new.bool_at(&["spec", "manualSelector"]) {
            causes.push(Cause::required("spec.selector", ""));
        }
        return;
    };
    let spec = Path::ROOT.key("spec");
    label_selector::check(&spec.key("selector"), selector, causes);
    let labels = new
        .at(&["spec", "template", "metadata", "labels"])
        .unwrap_or(&Value::Null);
    if !label_selector::matches(selector, labels) {
        let why = "`selector` does not match template `labels`";
        causes.push(Cause::invalid("spec.template.metadata.labels", labels, why));
    }
    let uid = new.uid();
    if !new.bool_at(&["spec", "manualSelector"])
        && !uid.is_empty()
        && labels[UID] != uid
        && labels[OLD_UID] != uid
    {
        let why = "`selector` not auto-generated";
        causes.push(Cause::invalid("spec.selector", selector, why));
    }
}

fn validate_job(path: &Path<'_>, spec: &Value, causes: &mut Vec<Cause>) {
    check(SPEC_CHECKS, path, spec, causes);
    let indexed = spec["completionMode"] == "Indexed";
    if indexed && spec["completions"].is_null() {
        let why = "when completion mode is Indexed";
        causes.push(Cause::required(path.key("completions"), why));
    }
    if !indexed && !spec["backoffLimitPerIndex"].is_null() {
        let why = "requires indexed completion mode";
        causes.push(Cause::invalid(
            path.key("backoffLimitPerIndex"),
            &spec["backoffLimitPerIndex"],
            why,
        ));
    }
    validate_template(&path.key("template"), &spec["template"], true, causes);
}

fn validate_update(new: &Object, old: &Object, causes: &mut Vec<Cause>) {
    let indexed = new.str_at(&["spec", "completionMode"]) == Some("Indexed");
    let suspended = old.bool_at(&["spec", "suspend"]);
    for key in [
        "selector",
        "completionMode",
        "podFailurePolicy",
        "backoffLimitPerIndex",
        "managedBy",
        "successPolicy",
    ] {
        unchanged(
            &format!("spec.{key}"),
            new.at(&["spec", key]),
            old.at(&["spec", key]),
            causes,
        );
    }
    if !indexed {
        unchanged(
            "spec.completions",
            new.at(&["spec", "completions"]),
            old.at(&["spec", "completions"]),
            causes,
        );
    }
    // Scheduling directives of a job that has not started may still change.
    let template = |job: &Object| {
        let mut template = job.at(&["spec", "template"]).cloned().unwrap_or_default();
        if suspended && let Some(spec) = template.get_mut("spec").and_then(Value::as_object_mut) {
            for key in ["nodeSelector", "tolerations", "affinity", "schedulingGates"] {
                spec.remove(key);
            }
        }
        if suspended
            && let Some(metadata) = template.get_mut("metadata").and_then(Value::as_object_mut)
        {
            metadata.remove("annotations");
        }
        template
    };
    unchanged(
        "spec.template",
        Some(&template(new)),
        Some(&template(old)),
        causes,
    );
}

fn schedule(path: &Path<'_>, value: &Value, causes: &mut Vec<Cause>) {
    let text = value.as_str().unwrap_or_default();
    if let Err(why) = cron::parse(text) {
        causes.push(Cause::invalid(path, value, &why));
    } else if text.contains("TZ") {
        let why = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
        causes.push(Cause::invalid(path, value, why));
    }
}

fn time_zone(path: &Path<'_>, value: &Value, causes: &mut Vec<Cause>) {
    let name = value.as_str().unwrap_or_default();
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '_' | '-' | '+');
    if name.is_empty() {
        causes.push(Cause::invalid(
            path,
            value,
            "timeZone must be nil or non-empty string",
        ));
    } else if name.eq_ignore_ascii_case("Local") {
        let why =
            "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones";
        causes.push(Cause::invalid(path, value, why));
    } else if !name.chars().all(known) {
        causes.push(Cause::invalid(
            path,
            value,
            &format!("unknown time zone {name}"),
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::strategy::Strategy as _;
    use crate::kinds::testing::{World, check, check_update, defaulted};

    fn job(extra: &str) -> String {
        format!(
            "metadata: {{name: j}}\nspec: {{template: {{spec: {{restartPolicy: Never, containers: [{{name: c, image: x}}]}}}}, {extra}}}"
        )
    }

    #[test]
    fn a_job_runs_once_and_finds_its_pods_by_uid() {
        let made = defaulted("jobs", &job(""));
        let spec = &made["spec"];
        assert_eq!(spec["completions"], 1);
        assert_eq!(spec["parallelism"], 1);
        assert_eq!(spec["backoffLimit"], 6);
        assert_eq!(spec["suspend"], false);
        assert_eq!(spec["completionMode"], "NonIndexed");
        assert_eq!(spec["podReplacementPolicy"], "TerminatingOrFailed");
        let mut made = Object::new(made).expect("an object");
        made.set(&["metadata", "uid"], "u".into());
        JOB.allocate(&mut made, None, &World::new())
            .expect("allocated");
        assert_eq!(
            made.at(&["spec", "selector"]),
            Some(&json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u"}}))
        );
        assert_eq!(
            made.at(&["spec", "template", "metadata", "labels"]),
            Some(&json!({
                "batch.kubernetes.io/controller-uid": "u", "controller-uid": "u",
                "batch.kubernetes.io/job-name": "j", "job-name": "j",
            }))
        );
        let queue = defaulted("jobs", &job("parallelism: 3"));
        assert_eq!(queue["spec"]["completions"], Value::Null);
    }

    #[test]
    fn a_job_ends() {
        check("jobs", &job(""), &[]);
        check(
            "jobs",
            "{metadata: {name: j}, spec: {parallelism: -1, completionMode: Indexed, template: {spec: {containers: [{name: c, image: x}]}}}}",
            &[
                "spec.parallelism: Invalid value: -1: must be greater than or equal to 0",
                "spec.completions: Required value: when completion mode is Indexed",
                "spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\"",
            ],
        );
    }

    #[test]
    fn a_job_in_work_keeps_its_template() {
        check_update(
            "jobs",
            &job(""),
            &job("parallelism: 2, completions: 1"),
            &[],
        );
        check_update(
            "jobs",
            &job(""),
            &job("completions: 2"),
            &["spec.completions: Invalid value: 2: field is immutable"],
        );
    }

    #[test]
    fn a_cron_job_has_a_schedule() {
        let cron = |schedule: &str| {
            format!(
                "{{metadata: {{name: c}}, spec: {{schedule: '{schedule}', jobTemplate: {{spec: {{template: {{spec: {{restartPolicy: Never, containers: [{{name: c, image: x}}]}}}}}}}}}}}}"
            )
        };
        let made = defaulted("cronjobs", &cron("*/5 * * * *"));
        assert_eq!(made["spec"]["concurrencyPolicy"], "Allow");
        assert_eq!(made["spec"]["successfulJobsHistoryLimit"], 3);
        assert_eq!(made["spec"]["failedJobsHistoryLimit"], 1);
        assert_eq!(made["spec"]["jobTemplate"]["spec"]["backoffLimit"], 6);
        check("cronjobs", &cron("@daily"), &[]);
        check(
            "cronjobs",
            &cron("* * *"),
            &[
                "spec.schedule: Invalid value: \"* * *\": expected exactly 5 fields, found 3: [* * *]",
            ],
        );
        check(
            "cronjobs",
            &cron("61 * * * *"),
            &[
                "spec.schedule: Invalid value: \"61 * * * *\": end of range (61) above maximum (59): 61",
            ],
        );
    }
}
