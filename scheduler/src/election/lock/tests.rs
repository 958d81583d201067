//! Two locks on one server that keeps a single Lease, in paused time.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use http::{Method, Response, StatusCode};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

use super::*;

/// One Lease, as the API server keeps it.
#[derive(Default)]
struct Server {
    lease: Mutex<Option<Value>>,
}

impl Server {
    fn answer(&self, method: &Method, body: &[u8]) -> (StatusCode, Value) {
        let mut lease = self.lease.lock().unwrap_or_else(PoisonError::into_inner);
        if *method == Method::GET {
            return match &*lease {
                Some(lease) => (StatusCode::OK, lease.clone()),
                None => (StatusCode::NOT_FOUND, status(404, "NotFound")),
            };
        }
        let mut new: Value = serde_json::from_slice(body).expect("a lease");
        let version = |lease: &Value| lease["metadata"]["resourceVersion"].clone();
        let known = lease.as_ref().map_or(Value::Null, version);
        if version(&new) != known {
            return (StatusCode::CONFLICT, status(409, "Conflict"));
        }
        let next = known.as_str().and_then(|v| v.parse().ok()).unwrap_or(0) + 1;
        new["metadata"]["resourceVersion"] = json!(next.to_string());
        *lease = Some(new.clone());
        (StatusCode::OK, new)
    }

    fn holder(&self) -> String {
        let lease = self.lease.lock().unwrap_or_else(PoisonError::into_inner);
        let holder = lease
            .as_ref()
            .and_then(|lease| lease["spec"]["holderIdentity"].as_str());
        holder.unwrap_or_default().to_owned()
    }
}

fn status(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": reason})
}

fn client(server: &Arc<Server>, cut: &Arc<AtomicBool>) -> Client {
    let (server, cut) = (Arc::clone(server), Arc::clone(cut));
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let (server, cut) = (Arc::clone(&server), Arc::clone(&cut));
        async move {
            if cut.load(Ordering::Relaxed) {
                pending::<()>().await;
            }
            let method = request.method().clone();
            let body = request
                .into_body()
                .collect_bytes()
                .await
                .expect("the body is in memory");
            let (code, answer) = server.answer(&method, &body);
            let answer = Response::builder()
                .status(code)
                .body(Body::from(answer.to_string().into_bytes()))
                .expect("well formed");
            Ok::<_, Infallible>(answer)
        }
    });
    Client::new(service, "default")
}

struct Replica {
    cut: Arc<AtomicBool>,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<()>,
    leads: Arc<AtomicBool>,
}

/// `acting` counts those that lead at this moment.
fn replica(name: &str, server: &Arc<Server>, acting: &Arc<AtomicUsize>) -> Replica {
    let (cut, shutdown) = (Arc::new(AtomicBool::new(false)), CancellationToken::new());
    let leads = Arc::new(AtomicBool::new(false));
    let (recorder, _) = events::channel();
    let lock = Lock {
        name: "kube-scheduler",
        identity: name.to_owned(),
        writer: Writer::new(client(server, &cut), "kube-scheduler"),
        recorder,
        leases: Arc::new(Store::new(LEASES.url(""))),
    };
    let (acting, flag) = (Arc::clone(acting), Arc::clone(&leads));
    let task = tokio::spawn(run(lock, shutdown.clone(), move |term| {
        let (over, fence) = (term.over.clone(), term.fence.clone());
        let (acting, flag) = (Arc::clone(&acting), Arc::clone(&flag));
        term.tasks.spawn(async move {
            assert_eq!(
                acting.fetch_add(1, Ordering::Relaxed),
                0,
                "nobody else acts"
            );
            flag.store(true, Ordering::Relaxed);
            tokio::select! {
                () = over.cancelled() => {}
                () = fence.closed() => {}
            }
            flag.store(false, Ordering::Relaxed);
            acting.fetch_sub(1, Ordering::Relaxed);
        });
    }));
    Replica {
        cut,
        shutdown,
        task,
        leads,
    }
}

/// Virtual seconds until the replica leads.
async fn until_leading(replica: &Replica) -> u64 {
    let began = Instant::now();
    while !replica.leads.load(Ordering::Relaxed) {
        assert!(began.elapsed() < Duration::from_secs(60), "it never leads");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    began.elapsed().as_secs()
}

#[tokio::test(start_paused = true)]
async fn who_is_cut_off_stops_before_another_begins() {
    let (server, acting) = (Arc::new(Server::default()), Arc::new(AtomicUsize::new(0)));
    let first = replica("first", &server, &acting);
    until_leading(&first).await;
    let second = replica("second", &server, &acting);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(first.leads.load(Ordering::Relaxed), "it renews");
    first.cut.store(true, Ordering::Relaxed);
    let waited = until_leading(&second).await;
    assert!((12..=22).contains(&waited), "{waited} s");
    assert!(!first.leads.load(Ordering::Relaxed));
    assert_eq!(server.holder(), "second");
    first.cut.store(false, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!first.leads.load(Ordering::Relaxed), "it follows");
    for replica in [first, second] {
        replica.shutdown.cancel();
        replica.task.await.expect("it ends");
    }
    assert_eq!(acting.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn who_ends_in_good_order_keeps_nobody_waiting() {
    let (server, acting) = (Arc::new(Server::default()), Arc::new(AtomicUsize::new(0)));
    let first = replica("first", &server, &acting);
    until_leading(&first).await;
    let second = replica("second", &server, &acting);
    tokio::time::sleep(Duration::from_secs(10)).await;
    first.shutdown.cancel();
    first.task.await.expect("it ends");
    assert_eq!(server.holder(), "");
    let waited = until_leading(&second).await;
    assert!(waited <= 5, "{waited} s");
    second.shutdown.cancel();
    second.task.await.expect("it ends");
}
