//! Resource lists in objects: `requests`, `limits`, `capacity`. Amounts are `types::quantity`. Pure.

use serde_json::{Map, Value};
use types::quantity::Quantity;

use super::names;
use super::path::Path;
use crate::status::Cause;

/// Of amounts and counts; upstream's words.
pub const NOT_NEGATIVE: &str = "must be greater than or equal to 0";

/// The amount a JSON value says, text or number.
pub fn parse(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => number.to_string().parse().ok(),
        _ => None,
    }
}

/// A quantity that is not negative.
pub fn check(path: &Path<'_>, value: &Value, causes: &mut Vec<Cause>) {
    match parse(value) {
        None => causes.push(Cause::invalid(
            path,
            value,
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        )),
        Some(amount) if amount.is_negative() => {
            causes.push(Cause::invalid(path, value, NOT_NEGATIVE));
        }
        Some(_) => {}
    }
}

/// A container's `resources` (claims aside), which stands at `path`.
pub fn check_requirements(path: &Path<'_>, resources: &Value, causes: &mut Vec<Cause>) {
    let limits = resources["limits"].as_object();
    let requests = resources["requests"].as_object();
    let limits_path = path.key("limits");
    for (name, amount) in limits.into_iter().flatten() {
        let at = limits_path.entry(name);
        check_container_resource(&limits_path, &at, name, amount, causes);
    }
    let requests_path = path.key("requests");
    for (name, amount) in requests.into_iter().flatten() {
        let at = requests_path.entry(name);
        check_container_resource(&requests_path, &at, name, amount, causes);
        let limit = limits.and_then(|limits| limits.get(name));
        check_against_limit(path, name, amount, limit, causes);
    }
}

fn check_against_limit(
    path: &Path<'_>,
    name: &str,
    request: &Value,
    limit: Option<&Value>,
    causes: &mut Vec<Cause>,
) {
    let requests = path.key("requests");
    let Some(limit_value) = limit else {
        if !may_overcommit(name) {
            let why = "Limit must be set for non overcommitable resources";
            causes.push(Cause::required(path.key("limits"), why));
        }
        return;
    };
    let (Some(request_amount), Some(limit_amount)) = (parse(request), parse(limit_value)) else {
        return;
    };
    let shown = limit_value
        .as_str()
        .map_or_else(|| limit_value.to_string(), str::to_owned);
    if request_amount > limit_amount {
        let why = format!("must be less than or equal to {name} limit of {shown}");
        causes.push(Cause::invalid(requests, request, &why));
    } else if !may_overcommit(name) && request_amount != limit_amount {
        let why = format!("must be equal to {name} limit of {shown}");
        causes.push(Cause::invalid(requests, request, &why));
    }
}

/// Native resources but huge pages may be promised more often than they exist.
fn may_overcommit(name: &str) -> bool {
    !name.contains('/') && !name.starts_with("hugepages-")
}

fn check_container_resource(
    list: &Path<'_>,
    at: &Path<'_>,
    name: &str,
    amount: &Value,
    causes: &mut Vec<Cause>,
) {
    let name_value = Value::from(name);
    for why in names::qualified_name(name) {
        causes.push(Cause::invalid(list, &name_value, &why));
    }
    let standard =
        matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
    if !name.contains('/') && !standard {
        causes.push(Cause::invalid(
            at,
            &name_value,
            "must be a standard resource for containers",
        ));
    }
    check(at, amount, causes);
    let Some(parsed) = parse(amount) else { return };
    if name.contains('/') && !parsed.is_integer() {
        causes.push(Cause::invalid(at, amount, "must be an integer"));
    }
    if name == "cpu" && !parsed.is_milli_precise() {
        causes.push(Cause::invalid(
            at,
            amount,
            "must be specified in whole millicores",
        ));
    }
}

/// The texts of a resource list whose keys `keep` wants, added up over several lists.
pub fn sum<'a>(lists: impl Iterator<Item = &'a Value>, keep: &str) -> Quantity {
    lists
        .filter_map(|list| list.get(keep).and_then(parse))
        .fold(Quantity::ZERO, |total, amount| total + amount)
}

/// A limit without a request is its request.
pub fn default_requests(resources: &mut Map<String, Value>) {
    let Some(Value::Object(limits)) = resources.get("limits").cloned() else {
        return;
    };
    if limits.is_empty() {
        return;
    }
    let requests = resources
        .entry("requests")
        .or_insert_with(|| Value::Object(Map::new()));
    if requests.is_null() {
        *requests = Value::Object(Map::new());
    }
    if let Value::Object(requests) = requests {
        for (name, amount) in limits {
            requests.entry(name).or_insert(amount);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn requests_may_not_exceed_limits_nor_be_nonsense() {
        let resources = json!({
            "requests": {"cpu": "2", "memory": "1Gi", "bananas": "1", "acme.io/gpu": "1"},
            "limits": {"cpu": "500m", "memory": "1Gi", "acme.io/gpu": "500m"},
        });
        let mut causes = Vec::new();
        check_requirements(&Path::ROOT.key("resources"), &resources, &mut causes);
        let mut lines: Vec<_> = causes
            .iter()
            .map(|cause| format!("{}: {}", cause.field, cause.message))
            .collect();
        lines.sort();
        assert_eq!(
            lines,
            [
                "resources.limits[acme.io/gpu]: Invalid value: \"500m\": must be an integer",
                "resources.requests: Invalid value: \"1\": must be less than or equal to acme.io/gpu limit of 500m",
                "resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 500m",
                "resources.requests[bananas]: Invalid value: \"bananas\": must be a standard resource for containers",
            ]
        );
    }

    #[test]
    fn a_limit_without_a_request_is_its_request() {
        let mut resources =
            json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}});
        default_requests(resources.as_object_mut().expect("an object"));
        assert_eq!(
            resources["requests"],
            json!({"cpu": "500m", "memory": "1Gi"})
        );
    }
}
