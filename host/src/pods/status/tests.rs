//! States and the status they become.

use std::time::Duration;

use super::*;
use crate::pods::lifecycle::{self, Event, Failure, Rules};

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + seconds).expect("in range")
}

fn pod() -> Pod {
    serde_json::from_value(serde_json::json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "u1", "generation": 1},
        "spec": {"containers": [{"name": "app", "image": "example.com/web:1"}], "restartPolicy": "Always"}}))
    .expect("the test's pod is well formed")
}

fn facts() -> Facts {
    Facts {
        host_ip: "127.0.0.1".to_owned(),
        pod_ip: Some("100.64.0.2".to_owned()),
        image_ids: vec!["example.com/web@sha256:00".to_owned()],
        refusal: None,
    }
}

fn after(pod: &Pod, events: Vec<Event>) -> State {
    let (state, _) = lifecycle::new(Rules::of(pod), at(0));
    events
        .into_iter()
        .fold(state, |state, event| lifecycle::next(state, event, at(0)).0)
}

fn shown(events: Vec<Event>, now: i64) -> PodStatus {
    let pod = pod();
    status(
        &pod,
        &after(&pod, events),
        &facts(),
        &PodStatus::default(),
        at(now),
    )
}

fn waiting(status: &PodStatus) -> (String, String) {
    let container = &status.container_statuses.as_ref().expect("containers")[0];
    let waiting = container
        .state
        .as_ref()
        .and_then(|state| state.waiting.clone())
        .expect("waiting");
    (
        waiting.reason.unwrap_or_default(),
        waiting.message.unwrap_or_default(),
    )
}

fn condition<'a>(status: &'a PodStatus, type_: &str) -> &'a PodCondition {
    let mut conditions = status.conditions.iter().flatten();
    conditions
        .find(|condition| condition.type_ == type_)
        .expect("the condition is set")
}

#[test]
fn a_running_pod_is_ready_with_all_conditions() {
    let status = shown(
        vec![Event::Prepared, Event::Pulled(0), Event::Started(0)],
        0,
    );
    assert_eq!(status.phase.as_deref(), Some("Running"));
    for type_ in [
        "PodReadyToStartContainers",
        "Initialized",
        "Ready",
        "ContainersReady",
        "PodScheduled",
    ] {
        assert_eq!(condition(&status, type_).status, "True", "{type_}");
    }
    let container = &status.container_statuses.as_ref().expect("containers")[0];
    assert!(container.ready);
    assert_eq!(container.restart_count, 0);
    assert_eq!(status.pod_ip.as_deref(), Some("100.64.0.2"));
    assert_eq!(status.qos_class.as_deref(), Some("BestEffort"));
}

#[test]
fn a_pull_that_failed_shows_the_error_and_then_the_wait() {
    let trouble = Trouble {
        reason: "ErrImagePull",
        message: "no such image".to_owned(),
    };
    let events = vec![Event::Prepared, Event::PullFailed(0, trouble)];
    let status = shown(events.clone(), 0);
    assert_eq!(status.phase.as_deref(), Some("Pending"));
    assert_eq!(
        waiting(&status),
        ("ErrImagePull".to_owned(), "no such image".to_owned())
    );
    let (reason, message) = waiting(&shown(events, 5));
    assert_eq!(reason, "ImagePullBackOff");
    assert_eq!(
        message,
        "Back-off pulling image \"example.com/web:1\": ErrImagePull: no such image"
    );
}

fn exit(code: i32, reason: &'static str) -> Event {
    Event::Exited {
        container: 0,
        code,
        reason,
        message: String::new(),
    }
}

#[test]
fn a_crash_loop_keeps_the_last_exit() {
    let start = || [Event::Pulled(0), Event::Started(0)];
    let mut events = vec![Event::Prepared];
    events.extend(start());
    events.push(exit(137, "OOMKilled"));
    events.extend(start());
    events.push(exit(1, "Error"));
    let status = shown(events, 0);
    assert_eq!(status.phase.as_deref(), Some("Running"));
    let (reason, message) = waiting(&status);
    assert_eq!(reason, "CrashLoopBackOff");
    assert!(message.starts_with("back-off 10s restarting failed container=app"));
    let container = &status.container_statuses.as_ref().expect("containers")[0];
    assert_eq!(container.restart_count, 1);
    let last = container
        .last_state
        .as_ref()
        .and_then(|state| state.terminated.as_ref())
        .expect("an exit");
    assert_eq!((last.exit_code, last.reason.as_deref()), (1, Some("Error")));
    assert_eq!(
        condition(&status, "Ready").reason.as_deref(),
        Some("ContainersNotReady")
    );
}

#[test]
fn a_refused_pod_is_failed_with_its_reason() {
    let failure = Failure {
        reason: "Unsupported".to_owned(),
        message: "spec.hostNetwork: not supported".to_owned(),
    };
    let status = shown(vec![Event::Fail(failure), Event::Released], 0);
    assert_eq!(status.phase.as_deref(), Some("Failed"));
    assert_eq!(status.reason.as_deref(), Some("Unsupported"));
}

#[test]
fn a_pod_being_deleted_is_not_ready_while_it_still_runs() {
    let delete = Event::DeleteRequested {
        grace: Duration::from_secs(30),
    };
    let status = shown(
        vec![Event::Prepared, Event::Pulled(0), Event::Started(0), delete],
        0,
    );
    assert_eq!(status.phase.as_deref(), Some("Running"));
    assert_eq!(condition(&status, "Ready").status, "False");
}

#[test]
fn transition_times_stay_while_nothing_changes() {
    let pod = pod();
    let state = after(
        &pod,
        vec![Event::Prepared, Event::Pulled(0), Event::Started(0)],
    );
    let first = status(&pod, &state, &facts(), &PodStatus::default(), at(0));
    let second = status(&pod, &state, &facts(), &first, at(60));
    assert_eq!(first, second);
}

#[test]
fn what_a_status_says_is_recalled() {
    let mut pod = pod();
    let state = after(
        &pod,
        vec![Event::Prepared, Event::Pulled(0), Event::Started(0)],
    );
    pod.status = Some(status(&pod, &state, &facts(), &PodStatus::default(), at(0)));
    let memory = &recall(&pod)[0];
    assert!(memory.was_running);
    assert_eq!(memory.instances, 1);
}

#[test]
fn durations_read_as_go_prints_them() {
    assert_eq!(duration(Duration::from_secs(10)), "10s");
    assert_eq!(duration(Duration::from_secs(80)), "1m20s");
    assert_eq!(duration(Duration::from_secs(300)), "5m0s");
}
