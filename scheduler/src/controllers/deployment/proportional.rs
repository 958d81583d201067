//! Scaling a Deployment while a rollout is under way: every active set gets its share. Pure.
//!
//! Worked example: 10 replicas with maxSurge 3 stand at old 8 and new 5. Scaled to 20, the most becomes 23, so ten are
//! added: the larger set's share is 8·23/13 − 8 = 6, the other's 5·23/13 − 5 = 4: old 14, new 9.

use super::rolling::{Bounds, is_recreate};
use super::{Round, Set};

pub(super) fn scale(round: &mut Round<'_>) {
    let bounds = round.bounds;
    if let Some(only) = active_or_latest(round) {
        if round.sets[only].replicas != bounds.replicas || !round.sets[only].sized(bounds) {
            round.scale(only, bounds.replicas);
        }
        return;
    }
    if let Some(new) = round.new
        && saturated(&round.sets[new], bounds)
    {
        for index in round.old_by_age() {
            round.scale(index, 0);
        }
        return;
    }
    if !is_recreate(&round.deployment.spec) {
        share(round, bounds);
    }
}

/// The one set that is to be scaled, where there is one.
fn active_or_latest(round: &Round<'_>) -> Option<usize> {
    let active: Vec<usize> = (0..round.sets.len())
        .filter(|i| round.sets[*i].replicas > 0)
        .collect();
    match active.as_slice() {
        [] => round.new.or_else(|| round.old_by_age().last().copied()),
        [only] => Some(*only),
        _ => None,
    }
}

fn saturated(set: &Set, bounds: Bounds) -> bool {
    set.desired_annotation() == Some(bounds.replicas)
        && set.replicas == bounds.replicas
        && set.available == bounds.replicas
}

fn share(round: &mut Round<'_>, bounds: Bounds) {
    let allowed = if bounds.replicas > 0 {
        bounds.most()
    } else {
        0
    };
    let to_add = allowed - round.total();
    let mut order: Vec<usize> = (0..round.sets.len())
        .filter(|i| round.sets[*i].replicas > 0)
        .collect();
    // Growing favours newer sets of equal size, shrinking takes from older ones first.
    order.sort_by_key(|i| {
        let set = &round.sets[*i];
        let age = if to_add > 0 {
            -set.created
        } else {
            set.created
        };
        (-set.replicas, age)
    });
    let mut added = 0;
    let mut sizes = Vec::with_capacity(order.len());
    for index in &order {
        let share = proportion(&round.sets[*index], round, bounds, to_add, added);
        sizes.push(round.sets[*index].replicas + share);
        added += share;
    }
    // What rounding left over goes to the largest.
    if let Some(first) = sizes.first_mut() {
        *first = (*first + to_add - added).max(0);
    }
    for (index, size) in order.into_iter().zip(sizes) {
        round.scale(index, size);
    }
}

fn proportion(set: &Set, round: &Round<'_>, bounds: Bounds, to_add: i32, added: i32) -> i32 {
    if set.replicas == 0 || to_add == 0 || to_add == added {
        return 0;
    }
    let share = fraction(set, round, bounds);
    let allowed = to_add - added;
    if to_add > 0 {
        share.min(allowed)
    } else {
        share.max(allowed)
    }
}

fn fraction(set: &Set, round: &Round<'_>, bounds: Bounds) -> i32 {
    if bounds.replicas == 0 {
        return -set.replicas;
    }
    let before = set
        .most_annotation()
        .filter(|m| *m > 0)
        .or(round.deployment.status.replicas)
        .unwrap_or(0);
    if before == 0 {
        return 0;
    }
    let size = f64::from(set.replicas) * f64::from(bounds.most()) / f64::from(before);
    #[expect(clippy::cast_possible_truncation, reason = "a number of pods fits")]
    let size = size.round() as i32;
    size - set.replicas
}
