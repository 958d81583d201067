//! One suite over every store: the promises of `api::store`. What only a disk can do is in `store/disk.rs`, what several
//! servers do to one database in `store/replicas.rs`, random histories against a model in `store/model.rs`.

#![expect(
    clippy::unwrap_used,
    reason = "a test's helpers fail the test where they stand"
)]

#[path = "store/disk.rs"]
mod disk;
#[path = "store/model.rs"]
mod model;
#[path = "store/outages.rs"]
mod outages;
#[path = "support/postgres.rs"]
mod postgres_server;
#[path = "store/replicas.rs"]
mod replicas;
#[path = "store/sealed.rs"]
mod sealed;
#[path = "store/world.rs"]
mod world;

use std::sync::Arc;
use std::time::Duration;

use api::cache::{Cache, Config, Interest, Watcher};
use api::store::memory::Memory;
use api::store::postgres::{self as database, Postgres};
use api::store::sqlite::{Options, Sqlite};
use api::store::{
    Change, Draft, Error, Expect, Index, Indexer, Key, Limits, Operation, Revision, Store, Stored,
};
use tokio::time::{Instant, timeout};

use world::{DEADLINE, World, bytes, delete, draft, index, indexer, names, next, pod, put};

macro_rules! over_every_store {
    ($($(#[doc = $doc:literal])* $name:ident $config:expr;)*) => {
        mod memory {
            use super::*;
            $(#[tokio::test] async fn $name() { super::$name(World::memory($config).await).await })*
        }
        mod sqlite {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(World::sqlite($config).await).await })*
        }
        mod postgres {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                if let Some(world) = World::postgres($config).await {
                    super::$name(world).await
                }
            })*
        }
    };
}

over_every_store! {
    revisions_have_no_gaps_and_a_failed_commit_takes_none Config::default();
    a_commit_happens_as_a_whole_or_not_at_all Config::default();
    an_expectation_that_does_not_hold_is_a_conflict_that_shows_what_is_there Config::default();
    later_operations_of_a_commit_see_the_earlier_ones Config::default();
    readers_get_the_finished_bytes_in_the_order_of_keys Config::default();
    a_list_goes_on_behind_its_last_item Config::default();
    what_a_commit_answered_is_readable_and_offered_to_watchers_in_order Config::default();
    a_watch_begins_after_the_revision_asked_for Config::default();
    a_watcher_is_only_woken_by_what_it_wants Config::default();
    a_watcher_that_does_not_keep_up_is_ended_cleanly
        Config { watcher_queue: 3, ..Config::default() };
    progress_is_told_when_everything_was_taken Config::default();
    compaction_forgets_history_and_never_state Config::default();
    concurrent_writers_each_get_their_own_answer Config::default();
    waiting_for_a_revision_ends_when_it_is_there_or_at_the_deadline Config::default();
    after_closing_reads_go_on_and_writes_and_watches_end Config::default();
    ten_thousand_changes_are_read_back_at_any_revision Config::default();
}

async fn revisions_have_no_gaps_and_a_failed_commit_takes_none(w: World) {
    assert_eq!(w.cache().revision(), 0);
    assert_eq!(w.put(&pod("a"), Expect::Absent, "1").await.unwrap(), 1);
    w.put(&pod("a"), Expect::Absent, "1").await.unwrap_err();
    assert_eq!(w.put(&pod("b"), Expect::Absent, "1").await.unwrap(), 2);
    w.delete(&pod("c"), Expect::Any).await.unwrap_err();
    assert_eq!(w.delete(&pod("a"), Expect::At(1)).await.unwrap(), 3);
    assert!(w.store.commit(Vec::new()).await.unwrap().is_empty());
    assert_eq!(w.put(&pod("a"), Expect::Absent, "2").await.unwrap(), 4);
    assert_eq!(w.cache().revision(), 4);
    let again = w.cache().get(&pod("a")).unwrap();
    assert_eq!((again.created, again.revision), (4, 4));
}

async fn a_commit_happens_as_a_whole_or_not_at_all(w: World) {
    w.put(&pod("c"), Expect::Absent, "1").await.unwrap();
    let operations = vec![
        put(&pod("a"), Expect::Absent, "1"),
        put(&pod("b"), Expect::Absent, "1"),
        put(&pod("c"), Expect::Absent, "2"),
    ];
    let error = w.store.commit(operations).await.unwrap_err();
    let Error::Conflict { operation, key, .. } = error else {
        panic!("{error}");
    };
    assert_eq!((operation, key), (2, pod("c")));
    assert_eq!(names(w.cache().snapshot("pods").iter()), ["pods/default/c"]);
    let operations = vec![
        put(&pod("a"), Expect::Absent, "1"),
        delete(&pod("c"), Expect::Any),
        put(&Key::new("nodes", "", "n"), Expect::Any, "1"),
    ];
    let done = w.store.commit(operations).await.unwrap();
    let revisions: Vec<_> = done.iter().map(|o| o.revision).collect();
    assert_eq!(revisions, [2, 3, 4]);
    assert_eq!(names(w.cache().snapshot("pods").iter()), ["pods/default/a"]);
    assert_eq!(names(w.cache().snapshot("nodes").iter()), ["nodes/n"]);
}

async fn an_expectation_that_does_not_hold_is_a_conflict_that_shows_what_is_there(w: World) {
    w.put(&pod("a"), Expect::Absent, "1").await.unwrap();
    let absent = [
        put(&pod("x"), Expect::At(1), "2"),
        delete(&pod("x"), Expect::Absent),
        delete(&pod("x"), Expect::At(1)),
        delete(&pod("x"), Expect::Any),
    ];
    let present = [
        put(&pod("a"), Expect::Absent, "2"),
        put(&pod("a"), Expect::At(7), "2"),
        delete(&pod("a"), Expect::Absent),
        delete(&pod("a"), Expect::At(7)),
    ];
    for (operation, there) in absent
        .map(|o| (o, None))
        .into_iter()
        .chain(present.map(|o| (o, Some(1))))
    {
        let what = format!("{operation:?}");
        match w.store.commit(vec![operation]).await {
            Err(Error::Conflict { found, .. }) => {
                assert_eq!(found.map(|f| f.revision), there, "{what}");
            }
            other => panic!("{what}: {other:?}"),
        }
    }
    w.put(&pod("a"), Expect::At(1), "2").await.unwrap();
    w.put(&pod("a"), Expect::Any, "3").await.unwrap();
    w.put(&pod("x"), Expect::Any, "4").await.unwrap();
    w.delete(&pod("x"), Expect::Any).await.unwrap();
    w.delete(&pod("a"), Expect::At(3)).await.unwrap();
    assert!(w.cache().snapshot("pods").is_empty());
}

async fn later_operations_of_a_commit_see_the_earlier_ones(w: World) {
    let operations = vec![
        put(&pod("a"), Expect::Absent, "1"),
        put(&pod("a"), Expect::At(1), "2"),
        delete(&pod("a"), Expect::At(2)),
        put(&pod("a"), Expect::Absent, "3"),
    ];
    let done = w.store.commit(operations).await.unwrap();
    assert_eq!(done[1].created, 1);
    let a = w.cache().get(&pod("a")).unwrap();
    assert_eq!((a.created, a.revision), (4, 4));
    assert_eq!(a.bytes, bytes("3", 4));
    let at = w.cache().snapshot_at("pods", 2).unwrap();
    assert_eq!(at.get("default", "a").unwrap().bytes, bytes("2", 2));
}

async fn readers_get_the_finished_bytes_in_the_order_of_keys(w: World) {
    for (namespace, name) in [
        ("b", "z"),
        ("a", "2"),
        ("b", "a"),
        ("a", "10"),
        ("a-b", "q"),
    ] {
        let key = Key::new("pods", namespace, name);
        w.put(&key, Expect::Absent, name).await.unwrap();
    }
    let snapshot = w.cache().snapshot("pods");
    assert_eq!(
        names(snapshot.iter()),
        [
            "pods/a/10",
            "pods/a/2",
            "pods/a-b/q",
            "pods/b/a",
            "pods/b/z"
        ]
    );
    assert_eq!(names(snapshot.in_namespace("a")), ["pods/a/10", "pods/a/2"]);
    assert_eq!(names(snapshot.in_namespace("c")), [""; 0]);
    assert_eq!(snapshot.get("b", "a").unwrap().bytes, bytes("a", 3));
    assert_eq!(snapshot.revision, 5);
    let last = w
        .store
        .commit(vec![delete(&Key::new("pods", "b", "z"), Expect::Any)]);
    assert_eq!(last.await.unwrap()[0].bytes, bytes("gone", 6));
    assert_eq!(snapshot.len(), 5, "a snapshot stays as it is");
    assert!(w.cache().find("pods", "b", "z").is_none());
    assert!(w.cache().snapshot("never").is_empty());
}

async fn a_list_goes_on_behind_its_last_item(w: World) {
    for (namespace, name) in [("a", "1"), ("a", "3"), ("b", "1"), ("b", "2"), ("c", "1")] {
        let key = Key::new("pods", namespace, name);
        w.put(&key, Expect::Absent, "x").await.unwrap();
    }
    let all = w.cache().snapshot("pods");
    assert_eq!(names(all.page(None, None)).len(), 5);
    let rest = all.page(None, Some(("a", "2")));
    assert_eq!(
        names(rest),
        ["pods/a/3", "pods/b/1", "pods/b/2", "pods/c/1"]
    );
    let rest = all.page(None, Some(("b", "2")));
    assert_eq!(names(rest), ["pods/c/1"]);
    let rest = all.page(Some("b"), Some(("b", "1")));
    assert_eq!(names(rest), ["pods/b/2"]);
    assert_eq!(names(all.page(Some("b"), None)), ["pods/b/1", "pods/b/2"]);
    assert_eq!(names(all.page(Some("b"), Some(("c", "0")))), [""; 0]);
}

async fn what_a_commit_answered_is_readable_and_offered_to_watchers_in_order(w: World) {
    let mut first = w.cache().watch("pods", 0).unwrap();
    let mut second = w.cache().watch("pods", 0).unwrap();
    for i in 1..=20u64 {
        let body = i.to_string();
        let revision = w.put(&pod("a"), Expect::Any, &body).await.unwrap();
        assert_eq!(w.cache().get(&pod("a")).unwrap().revision, revision);
        let event = first.try_next().expect("the watcher has been offered it");
        assert_eq!((event.revision, event.deleted), (i, false));
        assert_eq!(event.previous.as_ref().map_or(0, |p| p.revision), i - 1);
    }
    w.delete(&pod("a"), Expect::Any).await.unwrap();
    assert!(first.try_next().unwrap().deleted);
    let mut events = Vec::new();
    while events.len() < 21 {
        assert!(
            timeout(DEADLINE, second.next_many(&mut events, 6))
                .await
                .unwrap()
                <= 6
        );
    }
    let revisions: Vec<_> = events.iter().map(|e| e.revision).collect();
    assert_eq!(revisions, (1..=21).collect::<Vec<_>>());
    let (last, before) = (&events[20], &events[19]);
    assert_eq!(last.object.bytes, bytes("gone", 21));
    assert_eq!(last.previous.as_ref().unwrap().bytes, before.object.bytes);
}

async fn a_watch_begins_after_the_revision_asked_for(w: World) {
    for body in ["1", "2", "3"] {
        w.put(&pod("a"), Expect::Any, body).await.unwrap();
        let other = Key::new("nodes", "", "n");
        w.put(&other, Expect::Any, body).await.unwrap();
    }
    let mut late = w.cache().watch("pods", 1).unwrap();
    let mut future = w.cache().watch("pods", 7).unwrap();
    assert_eq!(next(&mut late).await.unwrap(), "3+pods/default/a=2");
    w.put(&pod("b"), Expect::Any, "4").await.unwrap();
    w.put(&pod("c"), Expect::Any, "5").await.unwrap();
    assert_eq!(next(&mut late).await.unwrap(), "5+pods/default/a=3");
    assert_eq!(next(&mut late).await.unwrap(), "7+pods/default/b=4");
    assert_eq!(next(&mut late).await.unwrap(), "8+pods/default/c=5");
    assert_eq!(next(&mut future).await.unwrap(), "8+pods/default/c=5");
    let mut never = w.cache().watch("configmaps", 0).unwrap();
    assert!(never.try_next().is_none());
}

async fn a_watcher_is_only_woken_by_what_it_wants(w: World) {
    let cache = w.cache();
    let on = |body: &str| Interest {
        field: Some(("body", body.into())),
        ..Interest::default()
    };
    let named = Interest {
        name: Some("a".into()),
        ..Interest::in_namespace("y")
    };
    let mut in_y = cache
        .watch_for("pods", 0, Interest::in_namespace("y"))
        .unwrap();
    let mut named = cache.watch_for("pods", 0, named).unwrap();
    let mut on_2 = cache.watch_for("pods", 0, on("2")).unwrap();
    for (namespace, name, body) in [("x", "a", "1"), ("y", "b", "2"), ("y", "a", "1")] {
        let key = Key::new("pods", namespace, name);
        w.put(&key, Expect::Absent, body).await.unwrap();
    }
    let b = Key::new("pods", "y", "b");
    w.put(&b, Expect::Any, "3").await.unwrap();
    w.put(&b, Expect::Any, "4").await.unwrap();
    for expected in [
        "2+pods/y/b=2",
        "3+pods/y/a=1",
        "4+pods/y/b=3",
        "5+pods/y/b=4",
    ] {
        assert_eq!(next(&mut in_y).await.unwrap(), expected);
    }
    assert_eq!(next(&mut named).await.unwrap(), "3+pods/y/a=1");
    assert_eq!(next(&mut on_2).await.unwrap(), "2+pods/y/b=2");
    let left = next(&mut on_2).await.unwrap();
    assert_eq!(left, "4+pods/y/b=3", "who leaves the selector is told");
    for watcher in [&mut in_y, &mut named, &mut on_2] {
        assert!(watcher.try_next().is_none());
        assert_eq!(watcher.progress(), Some(5), "others' changes are progress");
    }
}

async fn a_watcher_that_does_not_keep_up_is_ended_cleanly(w: World) {
    let mut slow = w.cache().watch("pods", 0).unwrap();
    let mut quick = w.cache().watch("pods", 0).unwrap();
    for i in 1..=6u64 {
        w.put(&pod("a"), Expect::Any, "x").await.unwrap();
        assert_eq!(quick.try_next().unwrap().revision, i);
    }
    for expected in [
        "1+pods/default/a=x",
        "2+pods/default/a=x",
        "3+pods/default/a=x",
    ] {
        assert_eq!(slow.progress(), None);
        assert_eq!(next(&mut slow).await.unwrap(), expected);
    }
    assert_eq!(slow.progress(), None, "it has missed changes");
    assert_eq!(next(&mut slow).await, None);
    let mut resumed = w.cache().watch("pods", 3).unwrap();
    assert_eq!(next(&mut resumed).await.unwrap(), "4+pods/default/a=x");
    let stats = w.cache().stats();
    assert_eq!(stats.slow_watchers, 1);
    assert_eq!(stats.resources, [("pods".into(), 1, 2)]);
    drop((quick, resumed));
    assert_eq!(w.cache().stats().resources, [("pods".into(), 1, 0)]);
}

async fn progress_is_told_when_everything_was_taken(w: World) {
    w.put(&pod("a"), Expect::Any, "1").await.unwrap();
    let mut watcher = w.cache().watch("pods", 0).unwrap();
    let future = w.cache().watch("pods", 9).unwrap();
    assert_eq!(watcher.progress(), None);
    watcher.try_next().unwrap();
    assert_eq!(watcher.progress(), Some(1));
    let other = Key::new("nodes", "", "n");
    w.put(&other, Expect::Any, "1").await.unwrap();
    assert_eq!(watcher.progress(), Some(2));
    w.put(&pod("a"), Expect::Any, "2").await.unwrap();
    assert_eq!(watcher.progress(), None);
    assert_eq!(future.progress(), None, "it has not come to its beginning");
}

async fn compaction_forgets_history_and_never_state(w: World) {
    for i in 1..=10 {
        w.put(&pod("a"), Expect::Any, &i.to_string()).await.unwrap();
    }
    w.store.compact(6).await.unwrap();
    w.store.compact(2).await.unwrap();
    let compacted = |error: Option<Error>, asked| match error {
        Some(Error::Compacted { requested, oldest }) => {
            assert_eq!((requested, oldest), (asked, 6));
        }
        other => panic!("{other:?}"),
    };
    compacted(w.cache().watch("pods", 5).err(), 5);
    compacted(w.cache().snapshot_at("pods", 5).err(), 5);
    compacted(w.cache().watch("never", 5).err(), 5);
    let at = w.cache().snapshot_at("pods", 6).unwrap();
    assert_eq!(at.get("default", "a").unwrap().bytes, bytes("6", 6));
    let mut watcher = w.cache().watch("pods", 6).unwrap();
    assert_eq!(next(&mut watcher).await.unwrap(), "7+pods/default/a=7");
    assert_eq!(w.cache().get(&pod("a")).unwrap().bytes, bytes("10", 10));
    w.store.compact(99).await.unwrap();
    assert_eq!(w.cache().stats().horizon, 10);
    assert_eq!(w.cache().stats().event_bytes, 0);
    assert_eq!(w.cache().snapshot_at("pods", 10).unwrap().len(), 1);
}

async fn concurrent_writers_each_get_their_own_answer(w: World) {
    let mut tasks = tokio::task::JoinSet::new();
    for client in 0..32 {
        let store = Arc::clone(&w.store);
        tasks.spawn(async move {
            let own = pod(&format!("own-{client}"));
            let mut won = 0;
            for i in 0..10 {
                let answer = store
                    .commit(vec![put(&own, Expect::Any, "x")])
                    .await
                    .unwrap();
                assert_eq!(answer[0].key, own);
                let race = pod(&format!("race-{i}"));
                match store.commit(vec![put(&race, Expect::Absent, "x")]).await {
                    Ok(_) => won += 1,
                    Err(Error::Conflict { found, .. }) => {
                        let winner = found.expect("who lost is shown who won");
                        let seen = store.cache().get(&race).expect("and can read it");
                        assert_eq!(winner.revision, seen.revision);
                    }
                    Err(other) => panic!("{other}"),
                }
            }
            won
        });
    }
    let won: i32 = tasks.join_all().await.into_iter().sum();
    assert_eq!(won, 10, "each race has one winner");
    assert_eq!(w.cache().revision(), 330);
    assert_eq!(w.cache().snapshot("pods").len(), 42);
}

async fn waiting_for_a_revision_ends_when_it_is_there_or_at_the_deadline(w: World) {
    let soon = Instant::now() + Duration::from_millis(20);
    assert_eq!(w.cache().wait_for(1, soon).await, Err(0));
    let cache = Arc::clone(w.cache());
    let waiting = tokio::spawn(async move { cache.wait_for(2, Instant::now() + DEADLINE).await });
    w.put(&pod("a"), Expect::Any, "1").await.unwrap();
    w.put(&pod("a"), Expect::Any, "2").await.unwrap();
    assert_eq!(waiting.await.unwrap(), Ok(()));
    assert_eq!(w.cache().wait_for(2, soon).await, Ok(()));
}

async fn after_closing_reads_go_on_and_writes_and_watches_end(w: World) {
    w.put(&pod("a"), Expect::Any, "1").await.unwrap();
    let mut watcher = w.cache().watch("pods", 0).unwrap();
    w.store.health().unwrap();
    w.store.close().await;
    w.store.close().await;
    assert_eq!(next(&mut watcher).await.unwrap(), "1+pods/default/a=1");
    assert_eq!(next(&mut watcher).await, None);
    let error = w.put(&pod("b"), Expect::Any, "1").await.unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)), "{error}");
    assert!(w.store.health().is_err());
    assert_eq!(w.cache().get(&pod("a")).unwrap().bytes, bytes("1", 1));
}

async fn ten_thousand_changes_are_read_back_at_any_revision(w: World) {
    // Object `i` is put by revision `i + 1`; from revision 5001 on they are deleted in the same order.
    for chunk in (0..5_000).collect::<Vec<_>>().chunks(500) {
        let puts = chunk
            .iter()
            .map(|i| put(&pod(&format!("{i:04}")), Expect::Absent, "x"));
        w.store.commit(puts.collect()).await.unwrap();
    }
    for chunk in (0..5_000).collect::<Vec<_>>().chunks(500) {
        let deletes = chunk
            .iter()
            .map(|i| delete(&pod(&format!("{i:04}")), Expect::Any));
        w.store.commit(deletes.collect()).await.unwrap();
    }
    for revision in (0..=10_000usize).step_by(613).chain([5_000, 10_000]) {
        let at = w.cache().snapshot_at("pods", revision as Revision).unwrap();
        let expected = revision.min(5_000)..revision.max(5_000);
        let (first, last) = match revision {
            0..=5_000 => (0, revision),
            _ => (expected.end - 5_000, 5_000),
        };
        assert_eq!(at.len(), last - first, "at {revision}");
        let name = at.iter().next().map(|o| o.key.name.to_string());
        assert_eq!(name, (first < last).then(|| format!("{first:04}")));
    }
}

#[tokio::test(start_paused = true)]
async fn old_objects_are_found_by_their_last_write() {
    let w = World::memory(Config::default()).await;
    w.put(&pod("a"), Expect::Absent, "1").await.unwrap();
    w.put(&pod("b"), Expect::Absent, "1").await.unwrap();
    tokio::time::advance(Duration::from_secs(1_800)).await;
    w.put(&pod("a"), Expect::Any, "2").await.unwrap();
    tokio::time::advance(Duration::from_secs(1_801)).await;
    let hour = Duration::from_secs(3_600);
    assert_eq!(
        names(&w.cache().older_than("pods", hour)),
        ["pods/default/b"]
    );
    tokio::time::advance(Duration::from_secs(1_800)).await;
    let old = w.cache().older_than("pods", hour);
    assert_eq!(names(&old), ["pods/default/a", "pods/default/b"]);
}

#[tokio::test(start_paused = true)]
async fn history_is_kept_by_age_count_and_size() {
    let w = World::memory(Config {
        at_least: 10,
        max_bytes: 100_000,
        ..Config::default()
    })
    .await;
    for i in 0..100 {
        w.put(&pod("a"), Expect::Any, &i.to_string()).await.unwrap();
    }
    assert_eq!(w.cache().stats().horizon, 0, "young history is kept");
    tokio::time::advance(Duration::from_secs(400)).await;
    w.put(&pod("a"), Expect::Any, "x").await.unwrap();
    let horizon = w.cache().stats().horizon;
    assert_eq!(horizon, 91, "old history goes, except for ten revisions");
    let big = "x".repeat(30_000);
    for _ in 0..5 {
        w.put(&pod("a"), Expect::Any, &big).await.unwrap();
    }
    let stats = w.cache().stats();
    assert!(stats.event_bytes <= 100_000, "{stats:?}");
    assert!(w.cache().watch("pods", 103).is_ok(), "{stats:?}");
}
