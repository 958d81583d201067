//! The arithmetic of a rolling update: how many more new pods, how many fewer old ones. Pure.
//!
//! Worked example: 10 replicas, maxSurge 25 % and maxUnavailable 25 %. Surge rounds up to 3, unavailable down to 2, so
//! there are never more than 13 pods nor fewer than 8 available ones. A new template: the new set gets 3 (13 in all), the
//! old one shrinks to 8. When two new pods are available, 10 are, 2 more than needed: the old one shrinks to 6, and the
//! new one may grow by 2. So it goes on until the old one is empty.

use k8s_openapi::api::apps::v1::{DeploymentSpec, RollingUpdateDeployment};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Round, Set};
use crate::controllers::amount::scaled;

/// Both bounds in pods, resolved from numbers or percentages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    pub(super) replicas: i32,
    pub(super) surge: i32,
    pub(super) unavailable: i32,
}

// === impl Bounds ===

impl Bounds {
    pub(super) fn of(spec: &DeploymentSpec) -> Self {
        let replicas = spec.replicas.unwrap_or(1).max(0);
        if is_recreate(spec) {
            return Self {
                replicas,
                surge: 0,
                unavailable: 0,
            };
        }
        let quarter = IntOrString::String("25%".to_owned());
        let (surge, unavailable) = match spec
            .strategy
            .as_ref()
            .and_then(|s| s.rolling_update.as_ref())
        {
            Some(RollingUpdateDeployment {
                max_surge,
                max_unavailable,
            }) => (
                max_surge.as_ref().unwrap_or(&quarter),
                max_unavailable.as_ref().unwrap_or(&quarter),
            ),
            None => (&quarter, &quarter),
        };
        let surge = scaled(surge, replicas, true).max(0);
        let mut unavailable = scaled(unavailable, replicas, false).max(0);
        if surge == 0 && unavailable == 0 {
            // Both zero is refused by validation, but percentages can round to it: then nothing would ever move.
            unavailable = 1;
        }
        Self {
            replicas,
            surge,
            unavailable: unavailable.min(replicas),
        }
    }

    /// The most pods there may be.
    pub(super) fn most(self) -> i32 {
        self.replicas.saturating_add(self.surge)
    }

    /// The fewest available pods there may be.
    pub(super) fn least_available(self) -> i32 {
        self.replicas - self.unavailable
    }
}

pub(super) fn is_recreate(spec: &DeploymentSpec) -> bool {
    spec.strategy.as_ref().and_then(|s| s.type_.as_deref()) == Some("Recreate")
}

/// How large the new set should be now, given what all sets want together.
pub(super) fn new_size(bounds: Bounds, new: i32, total: i32) -> i32 {
    if new >= bounds.replicas {
        return bounds.replicas;
    }
    let room = bounds.most() - total;
    if room <= 0 {
        return new;
    }
    new + room.min(bounds.replicas - new)
}

/// One step: grow the new set if there is room, otherwise shrink the old ones as far as availability allows.
pub(super) fn step(round: &mut Round<'_>) {
    let bounds = round.bounds;
    let Some(new) = round.new else { return };
    let size = new_size(bounds, round.sets[new].replicas, round.total());
    if size != round.sets[new].replicas {
        return round.scale(new, size);
    }
    shrink_old(round, new);
}

fn shrink_old(round: &mut Round<'_>, new: usize) {
    let bounds = round.bounds;
    let old = round.old_by_age();
    let old_total: i32 = old.iter().map(|i| round.sets[*i].replicas).sum();
    if old_total == 0 {
        return;
    }
    // New pods that are not available yet must not be paid for with old ones that are.
    let new_unavailable = round.sets[new].replicas - round.sets[new].available;
    let most_fewer = round.total() - bounds.least_available() - new_unavailable;
    if most_fewer <= 0 {
        return;
    }
    let unhealthy = drop_unhealthy(&round.sets, &old, most_fewer);
    for (index, size) in unhealthy {
        round.scale(index, size);
    }
    let available: i32 = round.sets.iter().map(|s| s.available).sum();
    let mut spare = available - bounds.least_available();
    for index in old {
        if spare <= 0 {
            break;
        }
        let size = round.sets[index].replicas;
        let fewer = size.min(spare);
        if fewer > 0 {
            round.scale(index, size - fewer);
            spare -= fewer;
        }
    }
}

/// Old pods that are not available anyway go first, at most `most_fewer` of them.
fn drop_unhealthy(sets: &[Set], old: &[usize], most_fewer: i32) -> Vec<(usize, i32)> {
    let mut dropped = 0;
    let mut sizes = Vec::new();
    for index in old {
        let set = &sets[*index];
        let unhealthy = set.replicas - set.available;
        if dropped >= most_fewer {
            break;
        }
        if set.replicas == 0 || unhealthy <= 0 {
            continue;
        }
        let fewer = unhealthy.min(most_fewer - dropped);
        sizes.push((*index, set.replicas - fewer));
        dropped += fewer;
    }
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(replicas: i32, surge: serde_json::Value, unavailable: serde_json::Value) -> Bounds {
        let spec: DeploymentSpec = serde_json::from_value(serde_json::json!({
            "replicas": replicas, "selector": {}, "template": {},
            "strategy": {"rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}
        }))
        .expect("a spec");
        Bounds::of(&spec)
    }

    #[test]
    fn percentages_round_towards_safety() {
        let b = bounds(10, "25%".into(), "25%".into());
        assert_eq!((b.surge, b.unavailable), (3, 2));
        let b = bounds(1, "0%".into(), "25%".into());
        assert_eq!((b.surge, b.unavailable), (0, 1));
        let b = bounds(2, 1.into(), 9.into());
        assert_eq!((b.most(), b.least_available()), (3, 0));
    }

    #[test]
    fn the_new_set_grows_into_the_room_there_is() {
        let b = bounds(10, "25%".into(), "25%".into());
        assert_eq!(new_size(b, 0, 10), 3);
        assert_eq!(new_size(b, 3, 13), 3);
        assert_eq!(new_size(b, 12, 12), 10);
    }
}
