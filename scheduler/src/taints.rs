//! Which tolerations tolerate which taints. Pure; read by scheduling and by eviction.

use k8s_openapi::api::core::v1::{Taint, Toleration};

pub const NO_SCHEDULE: &str = "NoSchedule";
pub const PREFER_NO_SCHEDULE: &str = "PreferNoSchedule";
pub const NO_EXECUTE: &str = "NoExecute";

pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let empty = |text: &Option<String>| text.as_deref().unwrap_or_default().to_owned();
    let effect = empty(&toleration.effect);
    if !effect.is_empty() && effect != taint.effect {
        return false;
    }
    let key = empty(&toleration.key);
    if !key.is_empty() && key != taint.key {
        return false;
    }
    let (wanted, value) = (empty(&toleration.value), empty(&taint.value));
    match toleration.operator.as_deref().unwrap_or("Equal") {
        "" | "Equal" => wanted == value,
        "Exists" => true,
        "Lt" => numbers(&value, &wanted).is_some_and(|(taint, limit)| taint < limit),
        "Gt" => numbers(&value, &wanted).is_some_and(|(taint, limit)| taint > limit),
        _ => false,
    }
}

fn numbers(a: &str, b: &str) -> Option<(i64, i64)> {
    Some((a.parse().ok()?, b.parse().ok()?))
}

/// The first taint with one of the effects that nothing tolerates.
pub fn untolerated<'a>(
    taints: &'a [Taint],
    tolerations: &[Toleration],
    effects: &[&str],
) -> Option<&'a Taint> {
    taints
        .iter()
        .filter(|t| effects.contains(&t.effect.as_str()))
        .find(|taint| !tolerations.iter().any(|t| tolerates(t, taint)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_toleration_matches_as_upstream_documents() {
        let taint = |key: &str, value: &str, effect: &str| Taint {
            key: key.to_owned(),
            value: Some(value.to_owned()),
            effect: effect.to_owned(),
            time_added: None,
        };
        let toleration =
            |json| -> Toleration { serde_json::from_value(json).expect("a toleration") };
        let everything = toleration(serde_json::json!({"operator": "Exists"}));
        let gpu =
            toleration(serde_json::json!({"key": "gpu", "value": "yes", "effect": "NoSchedule"}));
        assert!(tolerates(&everything, &taint("a", "b", NO_EXECUTE)));
        assert!(tolerates(&gpu, &taint("gpu", "yes", NO_SCHEDULE)));
        assert!(!tolerates(&gpu, &taint("gpu", "no", NO_SCHEDULE)));
        assert!(!tolerates(&gpu, &taint("gpu", "yes", NO_EXECUTE)));
        let taints = [
            taint("gpu", "yes", NO_SCHEDULE),
            taint("soft", "", PREFER_NO_SCHEDULE),
        ];
        assert!(untolerated(&taints, &[gpu], &[NO_SCHEDULE, NO_EXECUTE]).is_none());
        assert!(untolerated(&taints, &[], &[NO_SCHEDULE]).is_some());
    }
}
