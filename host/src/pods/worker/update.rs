//! What a newer version of the pod's object means for its worker.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};

use super::{QUIET_UPKEEP, Slot, UPKEEP, Worker};
use crate::pods::context::now;
use crate::pods::events::Severity;
use crate::pods::lifecycle::{self, Deletion, Event, Failure, Rules};
use crate::pods::start::container;
use crate::pods::{publish, sandbox, status, volumes};

/// How long a pod has that is being deleted, from when this process hears of it: the time stamp is another machine's, and a
/// clock that is ahead must cost no pod its grace.
pub(super) fn deletion_grace(pod: &Pod) -> Option<Duration> {
    pod.metadata.deletion_timestamp.as_ref()?;
    let whole = pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
    Some(lifecycle::grace(whole))
}

/// What is left of it, of a deletion that an earlier process may have begun to carry out.
pub(super) fn grace_left(pod: &Pod, now: Timestamp) -> Option<Duration> {
    let whole = deletion_grace(pod)?;
    let deadline = pod.metadata.deletion_timestamp.as_ref()?.0;
    let left = Duration::try_from(deadline.duration_since(now)).unwrap_or_default();
    // The timestamp is cut to whole seconds: what is left may be a second short of what was promised.
    Some(whole.min(left.saturating_add(Duration::from_secs(1))))
}

/// Upstream's words for what a node that shuts down does to pods, and refuses.
const TERMINATED: [&str; 2] = [
    status::TERMINATED,
    "Pod was terminated in response to imminent node shutdown.",
];
const REJECTED: [&str; 2] = [
    "NodeShutdown",
    "Pod was rejected as the node is shutting down.",
];

impl Worker {
    /// The node shuts down.
    pub(super) fn leave(&mut self, grace: Duration) {
        let begun = self.published.start_time.is_some() || self.state().initialized;
        let [reason, message] = if begun { TERMINATED } else { REJECTED };
        if !self.state().is_ended() {
            self.teller
                .pod(Severity::Normal, reason, message.to_owned());
        }
        let failure = Failure {
            reason: reason.to_owned(),
            message: message.to_owned(),
        };
        self.step(Event::Leave { failure, grace });
    }

    /// The pod is over, and the API knows.
    pub(super) fn is_done(&self) -> bool {
        let told = self.dirty.is_none() && !self.publishing && self.retry_at.is_none();
        // What is deleted is told by its removal, unless somebody holds it.
        let removed = self.state().deletion != Deletion::Requested || self.is_held();
        self.state().is_over() && told && removed
    }

    /// Deleted, the object stays until somebody takes his finalizer away.
    pub(super) fn is_held(&self) -> bool {
        let finalizers = self.pod.metadata.finalizers.as_ref();
        finalizers.is_some_and(|finalizers| !finalizers.is_empty())
    }

    pub(super) fn update(&mut self, pod: Arc<Pod>) {
        let old = std::mem::replace(&mut self.pod, pod);
        let deletion = |pod: &Pod| {
            (
                pod.metadata.deletion_timestamp.clone(),
                pod.metadata.deletion_grace_period_seconds,
            )
        };
        if deletion(&old) != deletion(&self.pod)
            && let Some(grace) = deletion_grace(&self.pod)
        {
            self.step(Event::DeleteRequested { grace });
        }
        for index in 0..self.slots.len() {
            let image = |pod: &Pod| container(pod, index).and_then(|spec| spec.image.clone());
            if image(&old) != image(&self.pod) {
                self.step(Event::Replaced(index));
            }
        }
        self.grow();
        self.adopt_conditions();
        self.notice_contradiction();
        let changed = old.metadata.generation != self.pod.metadata.generation
            || old.metadata.labels != self.pod.metadata.labels
            || old.metadata.annotations != self.pod.metadata.annotations;
        if changed && self.upkeep_at.is_some() {
            self.upkeep_at = Some(now());
        }
        if changed {
            self.dirty.get_or_insert_with(now);
        }
    }

    /// Ephemeral containers were added.
    fn grow(&mut self) {
        let rules = Rules::of(&self.pod);
        if rules.containers.len() <= self.slots.len() || self.refused {
            return;
        }
        for index in self.slots.len()..rules.containers.len() {
            let name = container(&self.pod, index).map(|spec| spec.name.clone());
            self.record.add(name.unwrap_or_default());
            self.slots.push(Slot::default());
            self.facts.image_ids.push(String::new());
        }
        self.step(Event::Grown(rules));
    }

    /// While nothing was heard of this node, its pods were marked as not ready. It knows better: what the API says since
    /// the last write here is taken for what is published, so that it is written again.
    fn notice_contradiction(&mut self) {
        let revision = publish::revision(&self.pod);
        if self.publishing || revision <= self.published_at {
            return;
        }
        let ready = |status: &PodStatus| {
            let conditions = status.conditions.iter().flatten();
            conditions.clone().find(|c| c.type_ == "Ready").cloned()
        };
        let theirs = self.pod.status.as_ref().and_then(ready);
        let ours = ready(&self.published);
        let (Some(theirs), Some(ours)) = (theirs, ours) else {
            return;
        };
        if theirs.status != ours.status {
            let conditions = self.published.conditions.get_or_insert_default();
            conditions.retain(|c| c.type_ != "Ready");
            conditions.push(theirs);
            self.dirty.get_or_insert_with(now);
        }
    }

    pub(super) fn schedule_upkeep(&mut self) {
        let mounted = volumes::mounted(&self.pod);
        let mut live = mounted
            .iter()
            .filter(|volume| volumes::is_live(volume))
            .peekable();
        let limited = !sandbox::size_limits(&self.pod).is_empty();
        let quiet = live.peek().map(|_| QUIET_UPKEEP);
        let busy = limited || live.any(|volume| !volumes::tokens::is_quiet(volume));
        let after = if busy { Some(UPKEEP) } else { quiet };
        self.upkeep_at = after.map(|after| now().saturating_add(after).unwrap_or(Timestamp::MAX));
    }

    /// Conditions of others (readiness gates) may decide whether the pod is ready.
    fn adopt_conditions(&mut self) {
        let theirs: Vec<_> = self
            .pod
            .status
            .iter()
            .flat_map(|status| status.conditions.iter().flatten())
            .filter(|condition| !publish::is_own(&condition.type_))
            .cloned()
            .collect();
        let conditions = self.published.conditions.get_or_insert_default();
        let known = conditions
            .iter()
            .filter(|condition| !publish::is_own(&condition.type_));
        if known.ne(theirs.iter()) {
            conditions.retain(|condition| publish::is_own(&condition.type_));
            conditions.extend(theirs);
            self.dirty.get_or_insert_with(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_ahead_costs_a_pod_no_grace() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"metadata": {
            "name": "p",
            "deletionTimestamp": "2026-01-01T00:00:30Z",
            "deletionGracePeriodSeconds": 30,
        }}))
        .expect("a pod");
        let seconds = Duration::from_secs;
        assert_eq!(deletion_grace(&pod), Some(seconds(30)));
        assert_eq!(deletion_grace(&Pod::default()), None);
        // What another process has begun goes on where it was.
        let at = |text: &str| text.parse::<Timestamp>().expect("a time");
        for (now, left) in [
            ("2026-01-01T00:00:00Z", 30),
            ("2026-01-01T00:00:20Z", 11),
            ("2026-01-01T00:01:00Z", 1),
            ("2025-12-31T00:00:00Z", 30),
        ] {
            assert_eq!(grace_left(&pod, at(now)), Some(seconds(left)), "{now}");
        }
    }
}
