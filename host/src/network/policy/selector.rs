//! Label selectors, as policies use them. PURE.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

use crate::network::namespaces::Labels;

/// All of it must hold; an empty one selects everything.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Selector {
    labels: Vec<(String, String)>,
    expressions: Vec<(String, Operator)>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Operator {
    In(Vec<String>),
    /// Also when there is no such label.
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
}

// === impl Selector ===

impl Selector {
    /// `Err` names an operator that is none.
    pub(crate) fn parse(selector: &LabelSelector) -> Result<Self, String> {
        let labels = selector.match_labels.iter().flatten();
        let expressions = selector.match_expressions.iter().flatten();
        Ok(Self {
            labels: labels
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
            expressions: expressions.map(expression).collect::<Result<_, _>>()?,
        })
    }

    pub(crate) fn matches(&self, labels: &Labels) -> bool {
        self.labels
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
            && self
                .expressions
                .iter()
                .all(|(key, operator)| operator.holds(labels.get(key)))
    }
}

fn expression(requirement: &LabelSelectorRequirement) -> Result<(String, Operator), String> {
    let values = || requirement.values.clone().unwrap_or_default();
    let operator = match requirement.operator.as_str() {
        "In" => Operator::In(values()),
        "NotIn" => Operator::NotIn(values()),
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::DoesNotExist,
        other => return Err(format!("operator {other:?} of a label selector")),
    };
    Ok((requirement.key.clone(), operator))
}

// === impl Operator ===

impl Operator {
    fn holds(&self, value: Option<&String>) -> bool {
        match self {
            Self::In(values) => value.is_some_and(|value| values.contains(value)),
            Self::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
            Self::Exists => value.is_some(),
            Self::DoesNotExist => value.is_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selectors_select_as_in_kubernetes() {
        let labels = Labels::from([("app".to_owned(), "web".to_owned())]);
        let expression = |key: &str, operator: &str, values: &[&str]| json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
        for (selector, expected) in [
            (json!({}), true),
            (json!({"matchLabels": {"app": "web"}}), true),
            (json!({"matchLabels": {"app": "db"}}), false),
            (json!({"matchLabels": {"app": "web", "tier": "1"}}), false),
            (expression("app", "In", &["db", "web"]), true),
            (expression("app", "In", &["db"]), false),
            (expression("tier", "In", &["1"]), false),
            (expression("app", "NotIn", &["web"]), false),
            (expression("tier", "NotIn", &["1"]), true),
            (expression("app", "Exists", &[]), true),
            (expression("tier", "Exists", &[]), false),
            (expression("tier", "DoesNotExist", &[]), true),
            (expression("app", "DoesNotExist", &[]), false),
        ] {
            let parsed = Selector::parse(&serde_json::from_value(selector.clone()).unwrap());
            assert_eq!(parsed.unwrap().matches(&labels), expected, "{selector}");
        }
        let wrong = serde_json::from_value(expression("app", "Near", &[])).unwrap();
        assert!(Selector::parse(&wrong).unwrap_err().contains("\"Near\""));
    }
}
