//! The lifecycle, in examples and against a tiny model that only knows what is under way.

use proptest::prelude::*;

use super::rules::RestartPolicy;
use super::*;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + seconds).expect("in range")
}

fn rules(roles: &[Role], restart: RestartPolicy) -> Rules {
    Rules {
        containers: roles
            .iter()
            .map(|role| ContainerRules {
                role: *role,
                restart: match role {
                    Role::Sidecar => RestartPolicy::Always,
                    Role::Ephemeral => RestartPolicy::Never,
                    Role::Init if restart == RestartPolicy::Always => RestartPolicy::OnFailure,
                    _ => restart,
                },
                startup_probe: false,
                readiness_probe: false,
            })
            .collect(),
        grace: Duration::from_secs(30),
        active_deadline: None,
    }
}

fn exit(container: usize, code: i32) -> Event {
    Event::Exited {
        container,
        code,
        reason: if code == 0 { "Completed" } else { "Error" },
        message: String::new(),
    }
}

/// Feeds `events` one second apart and returns the state with the last effects.
fn play(rules: Rules, events: Vec<Event>) -> (State, Vec<Effect>) {
    let mut now = 0;
    events
        .into_iter()
        .fold(new(rules, at(0)), |(state, _), event| {
            now += 1;
            next(state, event, at(now))
        })
}

fn running(container: usize) -> Vec<Event> {
    vec![Event::Pulled(container), Event::Started(container)]
}

#[test]
fn a_plain_pod_is_prepared_pulled_started_and_ready() {
    let (state, effects) = new(rules(&[Role::Main], RestartPolicy::Always), at(0));
    assert_eq!(effects, [Effect::Prepare]);
    let (state, effects) = next(state, Event::Prepared, at(0));
    assert_eq!(effects, [Effect::Pull(0)]);
    let (state, effects) = next(state, Event::Pulled(0), at(0));
    assert_eq!(effects, [Effect::Start(0)]);
    let (state, effects) = next(state, Event::Started(0), at(0));
    assert!(effects.is_empty());
    assert!(matches!(
        state.containers[0].phase,
        Phase::Running {
            started: true,
            ready: true,
            ..
        }
    ));
    assert_eq!(state.wake_at(), None, "an idle pod needs no timer");
}

#[test]
fn init_containers_run_one_after_the_other_and_sidecars_beside_them() {
    let roles = [Role::Init, Role::Sidecar, Role::Init, Role::Main];
    let mut events = vec![Event::Prepared];
    events.extend(running(0));
    let (state, effects) = play(rules(&roles, RestartPolicy::Always), events.clone());
    assert!(effects.is_empty());
    let (state, effects) = next(state, exit(0, 0), at(5));
    assert_eq!(effects, [Effect::Pull(1)]);
    let (state, _) = next(state, Event::Pulled(1), at(5));
    let (state, effects) = next(state, Event::Started(1), at(5));
    assert_eq!(
        effects,
        [Effect::Pull(2)],
        "a started sidecar lets the next one begin"
    );
    let (state, _) = next(state, Event::Pulled(2), at(5));
    let (state, _) = next(state, Event::Started(2), at(5));
    let (state, effects) = next(state, exit(2, 0), at(6));
    assert_eq!(effects, [Effect::Pull(3)]);
    assert!(state.initialized);
}

#[test]
fn a_failing_init_container_of_a_pod_that_never_restarts_ends_it() {
    let mut events = vec![Event::Prepared];
    events.extend(running(0));
    events.push(exit(0, 1));
    let (state, effects) = play(
        rules(&[Role::Init, Role::Main], RestartPolicy::Never),
        events,
    );
    assert_eq!(effects, [Effect::Release]);
    assert!(!state.initialized);
    assert_eq!(state.containers[1].phase, Phase::Waiting);
}

#[test]
fn the_first_restart_is_at_once_and_the_second_waits_ten_seconds() {
    let mut events = vec![Event::Prepared];
    events.extend(running(0));
    events.push(exit(0, 1));
    let (state, effects) = play(rules(&[Role::Main], RestartPolicy::Always), events);
    assert_eq!(effects, [Effect::Pull(0)]);
    let (state, _) = next(state, Event::Pulled(0), at(5));
    let (state, _) = next(state, Event::Started(0), at(5));
    assert_eq!(state.containers[0].instances, 2);
    let (state, effects) = next(state, exit(0, 1), at(6));
    assert_eq!(effects, [Effect::BackOff(0)]);
    assert_eq!(state.wake_at(), Some(at(16)));
    let (state, effects) = next(state, Event::Woke, at(15));
    assert!(effects.is_empty());
    let (_, effects) = next(state, Event::Woke, at(16));
    assert_eq!(effects, [Effect::Pull(0)]);
}

#[test]
fn sidecars_stop_after_the_main_containers_in_reverse_order() {
    let mut events = vec![Event::Prepared];
    for container in 0..3 {
        events.extend(running(container));
    }
    events.push(exit(2, 0));
    let roles = [Role::Sidecar, Role::Sidecar, Role::Main];
    let (state, effects) = play(rules(&roles, RestartPolicy::OnFailure), events);
    let stop = |container| Effect::Stop {
        container,
        grace: Duration::from_secs(30),
        why: Why::PodEnds,
    };
    assert_eq!(effects, [stop(1)]);
    let (state, effects) = next(state, exit(1, 137), at(8));
    assert_eq!(
        effects.len(),
        1,
        "the other sidecar, with what is left of the grace"
    );
    assert!(matches!(effects[0], Effect::Stop { container: 0, .. }));
    let (_, effects) = next(state, exit(0, 137), at(8));
    assert_eq!(effects, [Effect::Release]);
}

#[test]
fn deleting_twice_is_the_same_as_once_and_a_shorter_grace_wins() {
    let mut events = vec![Event::Prepared];
    events.extend(running(0));
    let (state, _) = play(rules(&[Role::Main], RestartPolicy::Always), events);
    let ask = |grace| Event::DeleteRequested {
        grace: Duration::from_secs(grace),
    };
    let (state, effects) = next(state, ask(30), at(10));
    assert_eq!(effects.len(), 1);
    let (state, effects) = next(state, ask(30), at(10));
    assert!(effects.is_empty());
    let (state, effects) = next(state, ask(0), at(11));
    assert_eq!(
        effects,
        [Effect::Stop {
            container: 0,
            grace: Duration::ZERO,
            why: Why::PodEnds
        }]
    );
    let (state, effects) = next(state, exit(0, 137), at(11));
    assert_eq!(effects, [Effect::Release]);
    let (_, effects) = next(state, Event::Released, at(11));
    assert_eq!(effects, [Effect::Finalize]);
}

#[test]
fn a_pod_deleted_while_pulling_never_starts() {
    let (state, _) = play(
        rules(&[Role::Main], RestartPolicy::Always),
        vec![Event::Prepared],
    );
    let (state, effects) = next(
        state,
        Event::DeleteRequested {
            grace: Duration::from_secs(30),
        },
        at(2),
    );
    assert_eq!(effects, [Effect::Abandon(0), Effect::Release]);
    let (_, effects) = next(state, Event::Pulled(0), at(2));
    assert!(effects.is_empty());
}

#[test]
fn the_active_deadline_fails_the_pod() {
    let mut limited = rules(&[Role::Main], RestartPolicy::Always);
    limited.active_deadline = Some(Duration::from_secs(5));
    let mut events = vec![Event::Prepared];
    events.extend(running(0));
    let (state, _) = play(limited, events);
    assert_eq!(state.wake_at(), Some(at(5)));
    let (state, effects) = next(state, Event::Woke, at(5));
    assert_eq!(effects.len(), 1);
    assert_eq!(state.failure.expect("failed").reason, "DeadlineExceeded");
}

#[test]
fn after_a_restart_of_the_node_running_containers_come_back_as_restarts() {
    let memory = |was_running| Memory {
        instances: 1,
        last: None,
        was_running,
    };
    let always = rules(&[Role::Main], RestartPolicy::Always);
    let (state, effects) = resume(always, vec![memory(true)], at(0), at(100));
    assert_eq!(effects, [Effect::Prepare]);
    assert_eq!(
        state.containers[0].last.as_ref().expect("an exit").code,
        137
    );
    let never = rules(&[Role::Main], RestartPolicy::Never);
    let (state, effects) = resume(never, vec![memory(true)], at(0), at(100));
    assert_eq!(
        effects,
        [Effect::Release],
        "a container that may not restart has ended with its process"
    );
    assert!(matches!(state.containers[0].phase, Phase::Exited(_)));
}

#[test]
fn an_ephemeral_container_starts_at_once_and_only_once_and_nobody_waits_for_it() {
    let rules_of = |roles: &[Role]| rules(roles, RestartPolicy::Always);
    let roles = [Role::Init, Role::Main, Role::Ephemeral];
    let (state, _) = new(rules_of(&roles[..2]), at(0));
    let (state, effects) = next(state, Event::Prepared, at(0));
    assert_eq!(effects, [Effect::Pull(0)]);
    let (state, effects) = next(state, Event::Grown(rules_of(&roles)), at(1));
    assert_eq!(
        effects,
        [Effect::Pull(2)],
        "though the pod is not initialized"
    );
    let (state, _) = next(state, Event::Pulled(2), at(1));
    let (state, _) = next(state, Event::Started(2), at(1));
    let (state, effects) = next(state, exit(2, 1), at(2));
    assert!(effects.is_empty());
    assert!(matches!(state.containers[2].phase, Phase::Exited(_)));
    let memory = Memory {
        instances: 1,
        last: None,
        was_running: true,
    };
    let memories = vec![Memory::default(), Memory::default(), memory];
    let (state, _) = resume(rules_of(&roles), memories, at(0), at(9));
    assert!(matches!(state.containers[2].phase, Phase::Exited(_)));
}

/// What the outside world does next.
#[derive(Clone, Debug)]
enum Step {
    /// Answer the `n`th thing under way; well or badly.
    Answer(usize, bool),
    Crash(usize, i32),
    Readiness(usize, bool),
    Unhealthy(usize),
    Replace(usize),
    Stale(usize),
    Pass(i64),
    Delete(u64),
    Fail,
    Remove,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0..4usize, prop::bool::weighted(0.8)).prop_map(|(n, well)| Step::Answer(n, well)),
        4 => (0..4usize, prop_oneof![Just(0), Just(1), Just(137)]).prop_map(|(n, code)| Step::Crash(n, code)),
        2 => (0..4usize, any::<bool>()).prop_map(|(n, ready)| Step::Readiness(n, ready)),
        1 => (0..4usize).prop_map(Step::Unhealthy),
        1 => (0..4usize).prop_map(Step::Replace),
        2 => (0..4usize).prop_map(Step::Stale),
        4 => (0..400i64).prop_map(Step::Pass),
        1 => (0..40u64).prop_map(Step::Delete),
        1 => Just(Step::Fail),
        1 => Just(Step::Remove),
    ]
}

/// The model: which operations are under way, which instances live. It knows nothing of phases.
#[derive(Default)]
struct World {
    preparing: bool,
    releasing: bool,
    pulling: Vec<usize>,
    starting: Vec<usize>,
    alive: Vec<usize>,
    ran: Vec<usize>,
    stopping: Vec<usize>,
    asked_to_delete: bool,
    released: bool,
    finalized: bool,
    ending: bool,
}

impl World {
    fn perform(&mut self, effects: Vec<Effect>, rules: &Rules) {
        for effect in effects {
            match effect {
                Effect::Prepare => {
                    assert!(
                        !self.preparing && !self.ending,
                        "prepares once at a time, never at the end"
                    );
                    self.preparing = true;
                }
                Effect::Pull(n) | Effect::Start(n) => {
                    assert!(!self.alive.contains(&n), "two instances of container {n}");
                    assert!(
                        !self.pulling.contains(&n) && !self.starting.contains(&n),
                        "busy already"
                    );
                    assert!(!self.ending, "nothing begins in a pod that ends");
                    assert!(
                        rules.containers[n].restart != RestartPolicy::Never
                            || !self.ran.contains(&n),
                        "Never means never"
                    );
                    if matches!(effect, Effect::Pull(_)) {
                        self.pulling.push(n);
                    } else {
                        self.starting.push(n);
                    }
                }
                Effect::Stop { container, .. } => {
                    assert!(self.alive.contains(&container), "stops what runs");
                    self.stopping.push(container);
                }
                Effect::Abandon(n) => {
                    self.pulling.retain(|other| *other != n);
                    self.starting.retain(|other| *other != n);
                }
                Effect::Release => {
                    assert!(self.alive.is_empty(), "released under a running container");
                    assert!(!self.releasing && !self.released);
                    self.releasing = true;
                    self.preparing = false;
                }
                Effect::Finalize => {
                    assert!(self.released && self.asked_to_delete && !self.finalized);
                    self.finalized = true;
                }
                Effect::BackOff(_) => {}
            }
        }
    }

    /// The event that answers something under way.
    fn answer(&mut self, n: usize, well: bool) -> Option<Event> {
        let trouble = || Trouble {
            reason: "ErrImagePull",
            message: String::new(),
        };
        if self.preparing {
            self.preparing = false;
            return Some(if well {
                Event::Prepared
            } else {
                Event::PrepareFailed
            });
        }
        if self.releasing {
            self.releasing = false;
            self.released = true;
            return Some(Event::Released);
        }
        if !self.pulling.is_empty() {
            let container = self.pulling.remove(n % self.pulling.len());
            return Some(if well {
                Event::Pulled(container)
            } else {
                Event::PullFailed(container, trouble())
            });
        }
        if !self.starting.is_empty() {
            let container = self.starting.remove(n % self.starting.len());
            if !well {
                return Some(Event::StartFailed(container, trouble()));
            }
            self.alive.push(container);
            self.ran.push(container);
            return Some(Event::Started(container));
        }
        let container = *self.stopping.first()?;
        self.end(container);
        Some(exit(container, 137))
    }

    fn end(&mut self, container: usize) {
        self.alive.retain(|other| *other != container);
        self.stopping.retain(|other| *other != container);
    }
}

fn event(step: Step, world: &mut World, now: &mut i64, containers: usize) -> Option<Event> {
    match step {
        Step::Answer(n, well) => world.answer(n, well),
        Step::Crash(n, code) => {
            let container = *world.alive.get(n)?;
            world.end(container);
            Some(exit(container, code))
        }
        Step::Readiness(n, ready) => Some(Event::Readiness(n % containers, ready)),
        Step::Unhealthy(n) => Some(Event::Unhealthy {
            container: n % containers,
            why: Why::Liveness,
            grace: Duration::from_secs(30),
        }),
        Step::Replace(n) => Some(Event::Replaced(n % containers)),
        Step::Stale(n) => {
            let container = n % containers;
            let idle = !world.pulling.contains(&container) && !world.starting.contains(&container);
            idle.then_some(Event::Pulled(container))
        }
        Step::Pass(seconds) => {
            *now += seconds;
            Some(Event::Woke)
        }
        Step::Delete(grace) => {
            world.asked_to_delete = true;
            Some(Event::DeleteRequested {
                grace: Duration::from_secs(grace),
            })
        }
        Step::Fail => Some(Event::Fail(Failure {
            reason: "Evicted".to_owned(),
            message: String::new(),
        })),
        Step::Remove => None,
    }
}

fn roles() -> impl Strategy<Value = Vec<Role>> {
    (0..2usize, 0..2usize, 1..3usize, 0..2usize).prop_map(|(init, sidecars, main, ephemeral)| {
        let mut roles = vec![Role::Init; init];
        roles.extend(vec![Role::Sidecar; sidecars]);
        roles.extend(vec![Role::Main; main]);
        roles.extend(vec![Role::Ephemeral; ephemeral]);
        roles
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_effects_make_sense_and_a_deleted_pod_ends(
        roles in roles(),
        policy in prop_oneof![Just(RestartPolicy::Always), Just(RestartPolicy::OnFailure), Just(RestartPolicy::Never)],
        steps in prop::collection::vec(step(), 0..80),
    ) {
        let rules = rules(&roles, policy);
        let mut world = World::default();
        let mut now = 0;
        let (mut state, effects) = new(rules.clone(), at(now));
        world.perform(effects, &rules);
        let mut started: Vec<u32> = vec![0; roles.len()];
        for step in steps {
            let Some(event) = event(step, &mut world, &mut now, roles.len()) else { continue };
            let never = |index: usize| rules.containers[index].restart == RestartPolicy::Never;
            if matches!(event, Event::Replaced(index) if never(index)) { continue }
            let effects;
            (state, effects) = next(state, event, at(now));
            world.ending = !matches!(state.stage, Stage::Preparing { .. } | Stage::Active);
            world.perform(effects, &rules);
            for (before, container) in started.iter_mut().zip(&state.containers) {
                prop_assert!(container.instances >= *before, "instances only grow");
                *before = container.instances;
            }
            for (index, container) in state.containers.iter().enumerate() {
                prop_assert_eq!(container.is_running(), world.alive.contains(&index));
            }
        }
        world.asked_to_delete = true;
        let mut event = Event::DeleteRequested { grace: Duration::ZERO };
        for _ in 0..20 {
            let effects;
            (state, effects) = next(state, event, at(now));
            world.ending = true;
            world.perform(effects, &rules);
            match world.answer(0, true) {
                Some(answer) => event = answer,
                None => break,
            }
        }
        prop_assert!(state.is_over(), "{state:?}");
        prop_assert!(world.finalized);
    }
}
