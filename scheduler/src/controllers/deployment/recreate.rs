//! The recreate strategy: all old pods end before the first new one starts. Pure.

use super::{Round, Running};

/// Shrinks the old sets to nothing; true if that changed something, and then the new set has to wait.
pub(super) fn shrink_old(round: &mut Round<'_>) -> bool {
    let mut changed = false;
    for index in round.old_by_age() {
        if round.sets[index].replicas > 0 {
            round.scale(index, 0);
            changed = true;
        }
    }
    changed
}

/// Is any pod left of an old set, even one that is only terminating?
pub(super) fn old_pods_run(round: &Round<'_>, running: &Running) -> bool {
    let new = round.new.map(|i| round.sets[i].uid.as_str());
    let old_counts = round.old_by_age().iter().any(|i| round.sets[*i].actual > 0);
    old_counts
        || running
            .iter()
            .any(|(uid, count)| Some(uid.as_str()) != new && *count > 0)
}
