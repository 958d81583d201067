//! Label selectors inside objects (`spec.selector`): whether one is well formed and whether labels match it. Pure.
//!
//! Selectors in queries are another thing (`crate::selector`).

use serde_json::Value;

use super::names;
use super::path::Path;
use crate::status::Cause;

/// Every label key and value of a map.
pub fn check_labels(path: &Path<'_>, labels: &Value, causes: &mut Vec<Cause>) {
    for (key, value) in labels.as_object().into_iter().flatten() {
        check_key(path, key, causes);
        for why in names::label_value(value.as_str().unwrap_or_default()) {
            causes.push(Cause::invalid(path, value, &why));
        }
    }
}

/// A `metav1.LabelSelector`.
pub fn check(path: &Path<'_>, selector: &Value, causes: &mut Vec<Cause>) {
    check_labels(&path.key("matchLabels"), &selector["matchLabels"], causes);
    let expressions = path.key("matchExpressions");
    let list = selector["matchExpressions"].as_array();
    for (i, expression) in list.into_iter().flatten().enumerate() {
        check_expression(&expressions.index(i), expression, causes);
    }
}

fn check_expression(path: &Path<'_>, expression: &Value, causes: &mut Vec<Cause>) {
    let values: &[Value] = expression["values"].as_array().map_or(&[], Vec::as_slice);
    let values_path = path.key("values");
    match expression["operator"].as_str().unwrap_or_default() {
        "In" | "NotIn" if values.is_empty() => causes.push(Cause::required(
            values_path,
            "must be specified when `operator` is 'In' or 'NotIn'",
        )),
        "Exists" | "DoesNotExist" if !values.is_empty() => causes.push(Cause::forbidden(
            values_path,
            "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
        )),
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        other => causes.push(Cause::invalid(
            path.key("operator"),
            &other.into(),
            "not a valid selector operator",
        )),
    }
    let key = expression["key"].as_str().unwrap_or_default();
    check_key(&path.key("key"), key, causes);
    for (i, value) in values.iter().enumerate() {
        for why in names::label_value(value.as_str().unwrap_or_default()) {
            causes.push(Cause::invalid(values_path.index(i), value, &why));
        }
    }
}

fn check_key(path: &Path<'_>, key: &str, causes: &mut Vec<Cause>) {
    for why in names::qualified_name(key) {
        causes.push(Cause::invalid(path, &key.into(), &why));
    }
}

/// Nothing to match: such a selector matches everything, which most kinds refuse.
pub fn is_empty(selector: &Value) -> bool {
    let none = |key: &str| match &selector[key] {
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => true,
    };
    none("matchLabels") && none("matchExpressions")
}

/// Whether a map of labels satisfies a selector.
pub fn matches(selector: &Value, labels: &Value) -> bool {
    let label = |key: &str| labels.get(key).and_then(Value::as_str);
    let mut equal = selector["matchLabels"].as_object().into_iter().flatten();
    let mut rules = selector["matchExpressions"]
        .as_array()
        .into_iter()
        .flatten();
    equal.all(|(key, value)| label(key) == value.as_str())
        && rules.all(|rule| {
            let found = label(rule["key"].as_str().unwrap_or_default());
            let listed = || {
                let values = rule["values"].as_array();
                values.into_iter().flatten().any(|v| v.as_str() == found)
            };
            match rule["operator"].as_str().unwrap_or_default() {
                "In" => found.is_some() && listed(),
                "NotIn" => found.is_none() || !listed(),
                "Exists" => found.is_some(),
                "DoesNotExist" => found.is_none(),
                _ => false,
            }
        })
}

/// As `kubectl get -o wide` prints it: `a=b,c in (d,e),!f`; `<none>` when empty.
pub fn format(selector: &Value) -> String {
    let mut parts: Vec<(String, String)> = Vec::new();
    for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
        let value = value.as_str().unwrap_or_default();
        parts.push((key.clone(), format!("{key}={value}")));
    }
    for rule in selector["matchExpressions"]
        .as_array()
        .into_iter()
        .flatten()
    {
        let key = rule["key"].as_str().unwrap_or_default();
        let mut values: Vec<&str> = rule["values"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        values.sort_unstable();
        let values = values.join(",");
        let text = match rule["operator"].as_str().unwrap_or_default() {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        };
        parts.push((key.to_owned(), text));
    }
    if parts.is_empty() {
        return "<none>".to_owned();
    }
    parts.sort();
    let texts: Vec<String> = parts.into_iter().map(|(_, text)| text).collect();
    texts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_selector_matches_when_all_its_parts_do() {
        let selector = json!({
            "matchLabels": {"a": "1"},
            "matchExpressions": [
                {"key": "b", "operator": "In", "values": ["2", "3"]},
                {"key": "c", "operator": "DoesNotExist"},
            ],
        });
        assert!(matches(&selector, &json!({"a": "1", "b": "3"})));
        assert!(!matches(&selector, &json!({"a": "1", "b": "4"})));
        assert!(!matches(&selector, &json!({"a": "1", "b": "2", "c": ""})));
        assert!(matches(&json!({}), &json!({"x": "y"})));
        assert_eq!(format(&selector), "a=1,b in (2,3),!c");
    }

    #[test]
    fn a_malformed_selector_is_described_field_by_field() {
        let selector = json!({"matchLabels": {"a/b/c": "x y"}, "matchExpressions": [{"key": "k", "operator": "In"}]});
        let mut causes = Vec::new();
        check(
            &Path::ROOT.key("spec").key("selector"),
            &selector,
            &mut causes,
        );
        let fields: Vec<_> = causes.iter().map(|cause| cause.field.as_str()).collect();
        assert_eq!(
            fields,
            [
                "spec.selector.matchLabels",
                "spec.selector.matchLabels",
                "spec.selector.matchExpressions[0].values"
            ]
        );
    }
}
