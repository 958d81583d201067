//! What a durable write costs: `cargo bench -p api --bench store [-- DIRECTORY]` creates objects of 2 KB in a new
//! SQLite store with 1, 8, 64 and 256 clients, and prints creates per second, what a create waits, the processor time it
//! takes, and when a watcher has it; then how long a start takes and what an object costs in memory.
//! Beside it: what the disk itself needs for one flush. The directory (default: a temporary one) decides which disk.
//!
//! The same on Postgres, where it is installed (a server of its own in `/tmp`, flushing as it does by default; its
//! processor time is not in the figure), by one API server and by two at once, as ratios to SQLite; and what a read of the
//! newest state waits.

#![expect(clippy::print_stdout, reason = "a bench prints")]

#[path = "../tests/support/postgres.rs"]
mod postgres_server;

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use api::store::memory::Memory;
use api::store::postgres::{Address, Postgres};
use api::store::sqlite::Sqlite;
use api::store::{Change, Draft, Expect, Index, Indexer, Key, Operation, Store};
use tokio::time::Instant;

/// Writes whose way to a watcher is measured.
const LATENCIES: usize = 200;
const BODY_BYTES: usize = 2_000;
const CLIENTS: [usize; 4] = [1, 8, 64, 256];
const RUN: Duration = Duration::from_secs(3);

fn main() -> Result<()> {
    let given = std::env::args().skip(1).find(|a| !a.starts_with("--"));
    let temporary = tempfile::tempdir()?;
    let directory = given.map_or_else(|| temporary.path().to_owned(), Into::into);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    flushes(&directory)?;
    runtime.block_on(async {
        let mut sqlite = Vec::new();
        for clients in CLIENTS {
            let path = directory.join(format!("bench-{clients}.db"));
            let begun = Instant::now();
            let store = Sqlite::open(&path, indexer()).await?;
            println!("a new store: {:.1?}", begun.elapsed());
            let store: Arc<dyn Store> = Arc::new(store);
            sqlite.push(creates("SQLite", &[store], clients).await?);
            start(&path).await?;
        }
        creates("memory", &[Arc::new(Memory::new())], 64).await?;
        for servers in [1, 2] {
            for (clients, sqlite) in CLIENTS.into_iter().zip(&sqlite) {
                let Some(server) = postgres_server::Server::start(&[]) else {
                    return Ok(());
                };
                let address = Address::parse(&server.url())?;
                let mut stores: Vec<Arc<dyn Store>> = Vec::new();
                for _ in 0..servers {
                    stores.push(Arc::new(Postgres::open(address.clone(), indexer()).await?));
                }
                let what = format!("Postgres, {servers} API servers");
                let rate = creates(&what, &stores, clients).await?;
                println!("  {:.2} × SQLite", rate / sqlite);
                for store in stores {
                    store.close().await;
                }
            }
        }
        Ok(())
    })
}

/// Appends of one page, each flushed.
fn flushes(directory: &Path) -> Result<()> {
    let mut file = tempfile::tempfile_in(directory).context("the directory must be writable")?;
    let begun = Instant::now();
    let mut count = 0u32;
    while begun.elapsed() < RUN / 3 {
        file.write_all(&[7; 4_096])?;
        file.sync_data()?;
        count += 1;
    }
    let each = begun.elapsed() / count;
    println!("one flushed append of 4 KB: {each:.0?}");
    Ok(())
}

/// Clients are spread over `stores`, which share their objects. Answers creates per second.
async fn creates(what: &str, stores: &[Arc<dyn Store>], clients: usize) -> Result<f64> {
    let store = &stores[0];
    let mut watcher = store.cache().watch("pods", 0)?;
    let published = tokio::spawn(async move {
        let mut events = 0u64;
        let mut buffer = Vec::new();
        while watcher.next_many(&mut buffer, 1_024).await > 0 {
            events += buffer.drain(..).len() as u64;
        }
        events
    });
    let cpu = processor_time()?;
    let begun = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for client in 0..clients {
        let store = Arc::clone(&stores[client % stores.len()]);
        tasks.spawn(async move {
            let mut waits = Vec::new();
            while begun.elapsed() < RUN {
                let name = format!("client-{client}-{}", waits.len());
                let asked = Instant::now();
                store.commit(vec![create(&name)]).await?;
                waits.push(asked.elapsed());
            }
            Ok::<_, api::store::Error>(waits)
        });
    }
    let mut waits = Vec::new();
    for done in tasks.join_all().await {
        waits.extend(done?);
    }
    let took = begun.elapsed();
    let cpu = processor_time()?.saturating_sub(cpu);
    waits.sort_unstable();
    let count = waits.len();
    let each = cpu / u32::try_from(count)?;
    let rate = count as f64 / took.as_secs_f64();
    println!(
        "{what}, {clients} clients: {rate:.0} creates/s, p50 {:.2?}, p99 {:.2?}, {each:.0?} of processor each",
        waits[count / 2],
        waits[count * 99 / 100],
    );
    latency(&**store).await?;
    newest(&**store).await?;
    let stats = store.cache().stats();
    store.close().await;
    let seen = published.await?;
    // The writes of `latency` are of another kind.
    let events = stats.revision - LATENCIES as u64;
    println!("  a watcher has seen {seen} of {events} events");
    Ok(rate)
}

/// What a read waits until it is sure to see everything.
async fn newest(store: &dyn Store) -> Result<()> {
    let mut waits = Vec::new();
    for _ in 0..200 {
        let asked = Instant::now();
        let Some(newest) = store.newest() else {
            return Ok(());
        };
        newest.await?;
        waits.push(asked.elapsed());
    }
    waits.sort_unstable();
    let (p50, p99) = (waits[100], waits[198]);
    println!("  a read of the newest state waits: p50 {p50:.0?}, p99 {p99:.0?}");
    Ok(())
}

/// From the call of a write to the event in a watcher's hands, and from the answer.
async fn latency(store: &dyn Store) -> Result<()> {
    let mut watcher = store.cache().watch("nodes", store.cache().revision())?;
    let watching = tokio::spawn(async move {
        let mut seen = Vec::new();
        while seen.len() < LATENCIES && watcher.next().await.is_some() {
            seen.push(Instant::now());
        }
        seen
    });
    let mut times = Vec::new();
    for i in 0..LATENCIES {
        let mut create = create(&format!("n{i}"));
        create.key.resource = "nodes".into();
        let asked = Instant::now();
        store.commit(vec![create]).await?;
        times.push((asked, Instant::now()));
    }
    let seen = watching.await?;
    let mut whole: Vec<_> = times.iter().zip(&seen).map(|(t, s)| *s - t.0).collect();
    let mut after: Vec<_> = times
        .iter()
        .zip(&seen)
        .map(|(t, s)| s.saturating_duration_since(t.1))
        .collect();
    whole.sort_unstable();
    after.sort_unstable();
    println!(
        "  write → watcher: p50 {:.0?}, p99 {:.0?}; behind the writer's answer: p50 {:.0?}, p99 {:.0?}",
        whole[100], whole[198], after[100], after[198]
    );
    Ok(())
}

/// Opening a store of that many objects.
async fn start(path: &Path) -> Result<()> {
    let before = resident_bytes()?;
    let begun = Instant::now();
    let store = Sqlite::open(path, indexer()).await?;
    let took = begun.elapsed();
    let objects = store.cache().snapshot("pods").len();
    let grown = resident_bytes()?.saturating_sub(before);
    println!(
        "  start with {objects} objects: {took:.0?}; resident + {} bytes each; file {} bytes each",
        grown / objects as u64,
        std::fs::metadata(path)?.len() / objects as u64,
    );
    let begun = Instant::now();
    let mut list = Vec::new();
    for object in store.cache().snapshot("pods").iter().take(10_000) {
        list.extend_from_slice(&object.bytes);
    }
    println!(
        "  a list of {} objects copied into one buffer: {:.1?}",
        objects.min(10_000),
        begun.elapsed()
    );
    store.close().await;
    Ok(())
}

fn create(name: &str) -> Operation {
    let head = format!(
        "{{\"kind\":\"Pod\",\"apiVersion\":\"v1\",\"metadata\":{{\"name\":\"{name}\",\"namespace\":\"default\",\"resourceVersion\":\""
    );
    let tail = format!("\"}},\"filler\":\"{}\"}}", "x".repeat(BODY_BYTES - 150));
    Operation {
        key: Key::new("pods", "default", name),
        expect: Expect::Absent,
        change: Change::Put(Draft {
            head: head.into(),
            tail: tail.into(),
            index: index(),
        }),
    }
}

fn index() -> Index {
    Index {
        uid: "b1946ac9-2d4f-4c5e-9f3f-6a0f0f6f0f6f".into(),
        labels: Box::new([("app".into(), "bench".into())]),
        fields: Box::new([
            ("spec.nodeName", "n1".into()),
            ("status.phase", "Running".into()),
        ]),
    }
}

fn indexer() -> Indexer {
    Arc::new(|_, bytes| {
        let parsed: Result<serde_json::Value, _> = serde_json::from_slice(bytes);
        assert!(parsed.is_ok(), "what was stored is JSON");
        index()
    })
}

/// User and system time of this process.
fn processor_time() -> Result<Duration> {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF)?;
    let time = |t: nix::sys::time::TimeVal| {
        let micros = t.tv_sec() * 1_000_000 + t.tv_usec();
        Duration::from_micros(micros.unsigned_abs())
    };
    Ok(time(usage.user_time()) + time(usage.system_time()))
}

fn resident_bytes() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let kib = line.and_then(|l| l.trim().strip_suffix(" kB"));
    Ok(kib.context("VmRSS in /proc/self/status")?.parse::<u64>()? * 1_024)
}
