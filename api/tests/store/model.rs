//! Random histories, done to a store and to the simplest thing that could be right: a list of all states. Every
//! read and every watch of the store must agree with it, before and after restarts.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// Objects by key: body, created, revision.
type State = BTreeMap<Key, (String, Revision, Revision)>;

/// `states[r]` is how things were at revision `r`; `events[r - 1]` is what made it so.
struct Model {
    states: Vec<State>,
    events: Vec<(Key, String, bool)>,
    horizon: Revision,
}

#[derive(Clone, Debug)]
enum Step {
    Commit(Vec<Change>),
    /// Per cent of all revisions.
    Compact(u64),
    Reopen,
}

#[derive(Clone, Debug)]
struct Change {
    key: usize,
    body: u8,
    delete: bool,
    expect: Expectation,
}

#[derive(Clone, Copy, Debug)]
enum Expectation {
    Absent,
    Current,
    Stale,
    Any,
}

// === impl Model ===

impl Model {
    fn new() -> Self {
        Self {
            states: vec![State::new()],
            events: Vec::new(),
            horizon: 0,
        }
    }

    fn revision(&self) -> Revision {
        self.events.len() as Revision
    }

    fn now(&self) -> &State {
        &self.states[self.events.len()]
    }

    /// Does all of it, or says which operation does not hold.
    fn commit(&mut self, operations: &[Operation]) -> Result<Vec<Revision>, usize> {
        let before = self.events.len();
        for (position, operation) in operations.iter().enumerate() {
            let mut state = self.now().clone();
            let found = state.get(&operation.key).cloned();
            let (draft, deleted) = match &operation.change {
                api::store::Change::Put(draft) => (draft, false),
                api::store::Change::Delete(draft) => (draft, true),
            };
            let holds = match operation.expect {
                Expect::Absent => found.is_none() && !deleted,
                Expect::At(revision) => found.as_ref().is_some_and(|f| f.2 == revision),
                Expect::Any => found.is_some() || !deleted,
            };
            if !holds {
                self.events.truncate(before);
                self.states.truncate(before + 1);
                return Err(position);
            }
            let revision = self.revision() + 1;
            let body = draft.index.field("body").unwrap().to_owned();
            if deleted {
                state.remove(&operation.key);
            } else {
                let created = found.map_or(revision, |f| f.1);
                state.insert(operation.key.clone(), (body.clone(), created, revision));
            }
            self.events.push((operation.key.clone(), body, deleted));
            self.states.push(state);
        }
        Ok((before as Revision + 1..=self.revision()).collect())
    }

    /// The operations a step stands for, given how things are.
    fn operations(&self, changes: &[Change]) -> Vec<Operation> {
        let operation = |change: &Change| {
            let key = keys().swap_remove(change.key);
            let current = self.now().get(&key).map_or(0, |found| found.2);
            let expect = match change.expect {
                Expectation::Absent => Expect::Absent,
                Expectation::Current => Expect::At(current),
                Expectation::Stale => Expect::At(current.saturating_sub(1)),
                Expectation::Any => Expect::Any,
            };
            if change.delete {
                delete(&key, expect)
            } else {
                put(&key, expect, &format!("b{}", change.body))
            }
        };
        changes.iter().map(operation).collect()
    }
}

fn keys() -> Vec<Key> {
    let mut keys = Vec::new();
    for (resource, namespace) in [("pods", "x"), ("pods", "y"), ("nodes", "")] {
        for name in ["a", "b"] {
            keys.push(Key::new(resource, namespace, name));
        }
    }
    keys
}

/// Every readable state, and a watch from every readable revision.
fn compare(cache: &Arc<Cache>, model: &Model) {
    assert_eq!(cache.revision(), model.revision());
    for resource in ["pods", "nodes"] {
        for (state, revision) in model.states.iter().zip(0..) {
            if revision < model.horizon {
                assert!(matches!(
                    cache.snapshot_at(resource, revision),
                    Err(Error::Compacted { .. })
                ));
                assert!(cache.watch(resource, revision).is_err());
                continue;
            }
            let snapshot = cache.snapshot_at(resource, revision).unwrap();
            assert_eq!(snapshot.revision, revision);
            same(
                &snapshot.iter().cloned().collect::<Vec<_>>(),
                state,
                resource,
            );
            watched(cache, model, resource, revision);
        }
        let newest: Vec<_> = cache.snapshot(resource).iter().cloned().collect();
        same(&newest, model.now(), resource);
    }
    for key in keys() {
        let found = cache.get(&key).map(|object| object.revision);
        assert_eq!(found, model.now().get(&key).map(|expected| expected.2));
    }
}

fn same(found: &[Arc<Stored>], expected: &State, resource: &str) {
    let expected = expected
        .iter()
        .filter(|(key, _)| &*key.resource == resource);
    let mut count = 0;
    for ((key, (body, created, revision)), object) in expected.zip(found) {
        count += 1;
        assert_eq!((&object.key, object.revision), (key, *revision));
        assert_eq!(object.created, *created, "{key}");
        assert_eq!(object.bytes, bytes(body, *revision));
        assert_eq!(object.index, index(body));
    }
    assert_eq!(count, found.len());
}

fn watched(cache: &Arc<Cache>, model: &Model, resource: &str, after: Revision) {
    let mut watcher = cache.watch(resource, after).unwrap();
    let skip = usize::try_from(after).unwrap();
    for (i, (key, body, deleted)) in model.events.iter().enumerate().skip(skip) {
        if &*key.resource != resource {
            continue;
        }
        let event = watcher.try_next().expect("no change is left out");
        let revision = i as Revision + 1;
        assert_eq!((event.revision, &event.object.key), (revision, key));
        assert_eq!(event.deleted, *deleted);
        assert_eq!(event.object.bytes, bytes(body, revision));
        let before = model.states[i].get(key);
        let previous = event.previous.as_ref();
        assert_eq!(previous.map(|p| p.revision), before.map(|b| b.2));
        if let (Some(previous), Some((body, _, at))) = (previous, before) {
            assert_eq!(previous.bytes, bytes(body, *at));
        }
    }
    assert!(watcher.try_next().is_none());
    assert_eq!(watcher.progress(), Some(model.revision()));
}

/// Does `steps` to a store and to a model. `reopen` may close the store and open it again.
async fn run<F: Future<Output = World>>(
    steps: Vec<Step>,
    mut reopen: impl FnMut(Option<World>) -> F,
) {
    let mut world = reopen(None).await;
    let mut model = Model::new();
    let mut live = world.cache().watch("pods", 0).unwrap();
    let mut seen = 0;
    for step in steps {
        match step {
            Step::Commit(changes) => {
                let operations = model.operations(&changes);
                let expected = model.commit(&operations);
                match (world.store.commit(operations).await, expected) {
                    (Ok(done), Ok(revisions)) => {
                        let done: Vec<_> = done.iter().map(|object| object.revision).collect();
                        assert_eq!(done, revisions);
                    }
                    (Err(Error::Conflict { operation, .. }), Err(expected)) => {
                        assert_eq!(operation, expected);
                    }
                    (done, expected) => panic!("{done:?} instead of {expected:?}"),
                }
            }
            Step::Compact(percent) => {
                let through = model.revision() * percent / 100;
                world.store.compact(through).await.unwrap();
                model.horizon = model.horizon.max(through);
            }
            Step::Reopen => {
                world = reopen(Some(world)).await;
                // A file may remember more than it has to.
                model.horizon = world.cache().stats().horizon;
                live = world.cache().watch("pods", model.revision()).unwrap();
                seen = model.events.len();
            }
        }
        for (key, body, deleted) in &model.events[seen..] {
            seen += 1;
            if &*key.resource == "pods" {
                let mark = if *deleted { "-" } else { "+" };
                let expected = format!("{seen}{mark}{key}={body}");
                assert_eq!(next(&mut live).await.unwrap(), expected);
            }
        }
        compare(world.cache(), &model);
    }
    world.store.close().await;
}

fn steps(most: usize) -> impl Strategy<Value = Vec<Step>> {
    let expect = prop_oneof![
        1 => Just(Expectation::Absent),
        1 => Just(Expectation::Current),
        1 => Just(Expectation::Stale),
        3 => Just(Expectation::Any),
    ];
    let change = (0..6usize, any::<u8>(), prop::bool::weighted(0.3), expect).prop_map(
        |(key, body, delete, expect)| Change {
            key,
            body,
            delete,
            expect,
        },
    );
    let step = prop_oneof![
        12 => prop::collection::vec(change, 1..4).prop_map(Step::Commit),
        1 => (0..=100u64).prop_map(Step::Compact),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..most)
}

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_memory_store_is_the_model(steps in steps(40)) {
        runtime().block_on(run(steps, |world| async {
            match world {
                Some(world) => world,
                None => World::memory(Config::default()).await,
            }
        }));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_sqlite_store_is_the_model(steps in steps(25)) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        runtime().block_on(run(steps, |world| async {
            if let Some(world) = world {
                world.store.close().await;
            }
            World {
                store: Arc::new(Sqlite::open(&path, indexer()).await.unwrap()),
                _directory: None,
                _server: None,
            }
        }));
    }
}

#[test]
fn the_postgres_store_is_the_model() {
    let Some(server) = postgres_server::Server::start(&["fsync=off"]) else {
        return;
    };
    let cases = ProptestConfig {
        cases: 12,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let mut runner = proptest::test_runner::TestRunner::new(cases);
    let ran = runner.run(&steps(25), |steps| {
        runtime().block_on(async {
            replicas::empty(&server).await;
            run(steps, |world| async {
                if let Some(world) = world {
                    world.store.close().await;
                }
                replicas::open(&server).await
            })
            .await;
        });
        Ok(())
    });
    ran.unwrap();
}
