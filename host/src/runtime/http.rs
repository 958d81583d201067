//! `wasi:http/incoming-handler` 0.2: an instance per request, or a few that are used again. Owns the idle instances.
//!
//! The guest is first polled inside the caller's task: a small handler answers in that one poll, so nothing is spawned. Only
//! a guest that still works after its response has begun gets a task of its own.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use http::header::HOST;
use http::{HeaderValue, Request, Response};
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use wasmtime::Store;
use wasmtime_wasi_http::WasiHttpView;
use wasmtime_wasi_http::p2::bindings::Proxy;
use wasmtime_wasi_http::p2::bindings::http::types::{ErrorCode, Scheme};

use super::guest::{Guest, HTTP_HANDLES};
use super::limits::Metered;
use super::workload::{Permit, State};
use super::{Loaded, Reuse, Shared};
use crate::network::{Body, HttpError, HttpHandler, begun};

/// How long an instance waits for another request before it is dropped.
pub(super) const IDLE: Duration = Duration::from_secs(1);
/// How long a guest may go on after its response was taken or given up.
pub(super) const LINGER: Duration = Duration::from_secs(60);

type Answer = Result<Response<Body>, ErrorCode>;

/// Answers HTTP for one workload.
pub(super) struct Handler {
    state: Arc<State>,
    loaded: Arc<Loaded>,
    shared: Arc<Shared>,
    reuse: Reuse,
    // Locked to take or put back one instance; the last one used is taken first, so that the others grow old.
    idle: Mutex<Instances>,
}

#[derive(Default)]
struct Instances {
    idle: VecDeque<Idle>,
    /// A task ends old ones.
    reaped: bool,
}

/// An instance that may be used again.
struct Idle {
    instance: Instance,
    since: Instant,
}

struct Instance {
    store: Store<Guest>,
    proxy: Proxy,
    used: u32,
    _slot: OwnedSemaphorePermit,
}

/// Keeps the guest of a streaming response alive for as long as somebody reads it.
struct Read {
    body: Body,
    _read: DropGuard,
}

// === impl Handler ===

impl Handler {
    pub(super) fn new(
        state: Arc<State>,
        loaded: Arc<Loaded>,
        shared: Arc<Shared>,
        reuse: Option<Reuse>,
    ) -> Arc<Self> {
        Arc::new(Self {
            state,
            loaded,
            shared,
            reuse: reuse.unwrap_or(Reuse {
                requests: 1,
                concurrent: 1,
            }),
            idle: Mutex::default(),
        })
    }

    async fn serve(self: Arc<Self>, request: Request<Body>) -> Result<Response<Body>, HttpError> {
        let (request, permit) = self.state.enter(request).await?;
        let (sender, mut answer) = oneshot::channel();
        let mut guest = self
            .state
            .template
            .meter
            .run(Arc::clone(&self).call(request, sender, permit));
        match poll_fn(|cx| Poll::Ready(Pin::new(&mut guest).poll(cx))).await {
            Poll::Ready(result) => self.finished(result, answer.try_recv().ok()),
            Poll::Pending => self.serve_slowly(guest, answer).await,
        }
    }

    /// The rest of a request whose guest had to wait for something.
    async fn serve_slowly(
        self: Arc<Self>,
        mut guest: Metered<impl Future<Output = wasmtime::Result<()>> + Send + 'static>,
        mut answer: oneshot::Receiver<Answer>,
    ) -> Result<Response<Body>, HttpError> {
        let state = &self.state;
        let mut late = std::pin::pin!(tokio::time::sleep(state.timeout));
        let mut unset = false;
        loop {
            tokio::select! {
                biased;
                () = state.killed.cancelled() => {
                    return Err(HttpError::Guest(format!("{} was stopped", state.name())));
                }
                result = &mut guest => return self.finished(result, answer.try_recv().ok()),
                sent = &mut answer, if !unset => match sent {
                    Ok(Ok(response)) => {
                        let read = CancellationToken::new();
                        let body = Read::wrap(&read, response);
                        self.shared.tasks.spawn(Arc::clone(&self).linger(guest, read));
                        return Ok(body);
                    }
                    Ok(Err(code)) => return self.finished(Ok(()), Some(Err(code))),
                    // The guest dropped the outparam unset; it may still explain itself by trapping, in the time it has.
                    Err(_) => unset = true,
                },
                () = &mut late => {
                    let error = format!("no answer within {} s", state.timeout.as_secs());
                    let _ = state.report(wasmtime::Error::msg(error.clone()));
                    return Err(HttpError::Timeout(error));
                }
            }
        }
    }

    /// A guest that goes on after its response has begun.
    async fn linger(
        self: Arc<Self>,
        mut guest: Metered<impl Future<Output = wasmtime::Result<()>>>,
        read: CancellationToken,
    ) {
        let unread = async {
            read.cancelled().await;
            tokio::time::sleep(LINGER).await;
        };
        tokio::select! {
            biased;
            () = self.state.killed.cancelled() => {}
            result = &mut guest => if let Err(error) = result {
                let _ = self.state.report(error);
            },
            () = unread => {}
        }
    }

    /// What the caller gets from a guest that has returned.
    fn finished(
        &self,
        result: wasmtime::Result<()>,
        answer: Option<Answer>,
    ) -> Result<Response<Body>, HttpError> {
        match (result, answer) {
            // A trap after the response: what was written is sent, the body ends short.
            (Err(error), Some(Ok(response))) => {
                let _ = self.state.report(error);
                Ok(response.map(begun))
            }
            (Ok(()), Some(Ok(response))) => Ok(response.map(begun)),
            (Err(error), _) => Err(self.state.report(error)),
            (Ok(()), Some(Err(code))) => Err(self.state.report(wasmtime::Error::msg(format!(
                "the guest answered with {code:?}"
            )))),
            (Ok(()), None) => Err(self
                .state
                .report(wasmtime::Error::msg("the guest returned without an answer"))),
        }
    }

    /// One request in one instance, from instantiation to drop.
    async fn call(
        self: Arc<Self>,
        mut request: Request<Body>,
        answer: oneshot::Sender<Answer>,
        permit: Permit,
    ) -> wasmtime::Result<()> {
        let mut instance = match self.take_idle() {
            Some(instance) => instance,
            None => self.instantiate().await?,
        };
        // HTTP/1.0 and calls made inside the node may lack one; the guest's interface does not.
        if request.uri().authority().is_none() && !request.headers().contains_key(HOST) {
            request
                .headers_mut()
                .insert(HOST, HeaderValue::from_static("localhost"));
        }
        let store = &mut instance.store;
        store.data_mut().set_hops(&request);
        let incoming = store
            .data_mut()
            .http()
            .new_incoming_request(Scheme::Http, request)?;
        let out = store.data_mut().http().new_response_outparam(answer)?;
        instance
            .proxy
            .wasi_http_incoming_handler()
            .call_handle(store, incoming, out)
            .await?;
        instance.used += 1;
        if instance.used < self.reuse.requests {
            self.put_back(instance);
        }
        drop(permit);
        Ok(())
    }

    async fn instantiate(&self) -> wasmtime::Result<Instance> {
        let Loaded::Http02(pre, _) = &*self.loaded else {
            return Err(wasmtime::Error::msg("not a wasi:http 0.2 component"));
        };
        let lane = self.shared.lane(self.loaded.flavor())?;
        let slot = match Arc::clone(&lane.slots).try_acquire_owned() {
            Ok(slot) => slot,
            Err(_) => self.state.queue(Arc::clone(&lane.slots)).await?,
        };
        let mut store = self.state.template.store(lane, HTTP_HANDLES);
        let proxy = pre.instantiate_async(&mut store).await?;
        Ok(Instance {
            store,
            proxy,
            used: 0,
            _slot: slot,
        })
    }

    /// Makes one instance and drops it: what cannot even start is told before the first request.
    pub(super) async fn rehearse(self: Arc<Self>) {
        let attempt = async { self.instantiate().await.map(drop) };
        let attempt = self.state.template.meter.run(attempt);
        tokio::select! {
            biased;
            () = self.state.killed.cancelled() => {}
            result = attempt => if let Err(error) = result {
                self.state.end(super::command::exit(Err(error), &self.state.template.meter));
            },
        }
    }

    fn take_idle(&self) -> Option<Instance> {
        if self.reuse.requests <= 1 {
            return None;
        }
        let mut instances = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        instances.idle.pop_back().map(|idle| idle.instance)
    }

    fn put_back(self: &Arc<Self>, instance: Instance) {
        if self.state.killed.is_cancelled() {
            return;
        }
        let mut instances = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        instances.idle.push_back(Idle {
            instance,
            since: Instant::now(),
        });
        if !std::mem::replace(&mut instances.reaped, true) {
            let killed = self.state.killed.clone();
            self.shared.tasks.spawn(reap(Arc::downgrade(self), killed));
        }
    }
}

/// Drops instances nobody used for [`IDLE`], all of them when the workload is over; ends when none is left.
async fn reap(handler: std::sync::Weak<Handler>, killed: CancellationToken) {
    loop {
        let _ = killed.run_until_cancelled(tokio::time::sleep(IDLE)).await;
        let Some(handler) = handler.upgrade() else {
            return;
        };
        let dead = killed.is_cancelled();
        let now = Instant::now();
        let mut old = Vec::new();
        let mut instances = handler.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let is_old = |idle: &Idle| dead || now.duration_since(idle.since) >= IDLE;
        while instances.idle.front().is_some_and(is_old) {
            old.extend(instances.idle.pop_front());
        }
        let empty = instances.idle.is_empty();
        instances.reaped = !empty;
        drop(instances);
        // Stores are dropped outside the lock.
        drop(old);
        if empty {
            return;
        }
    }
}

impl HttpHandler for Handler {
    fn handle(
        self: Arc<Self>,
        request: Request<Body>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Body>, HttpError>> + Send>> {
        Box::pin(self.serve(request))
    }
}

// === impl Read ===

impl Read {
    fn wrap(read: &CancellationToken, response: Response<Body>) -> Response<Body> {
        let guard = read.clone().drop_guard();
        response.map(|body| Read { body, _read: guard }.boxed_unsync())
    }
}

impl http_body::Body for Read {
    type Data = bytes::Bytes;
    type Error = wasmtime_wasi_http::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}
