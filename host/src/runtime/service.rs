//! `wasi:http/handler` 0.3: a few instances, each answering several requests at once. Owns the workers.
//!
//! A worker is a task with one store. It takes calls until it has had its number, is idle for a second, traps, or lets one of
//! its calls wait in vain; the dispatcher prefers the youngest worker with room, so that the others can end.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures::stream::{FuturesUnordered, StreamExt};
use http::header::HOST;
use http::{HeaderValue, Request, Response};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;
use wasmtime::component::Accessor;
use wasmtime_wasi_http::p3;
use wasmtime_wasi_http::p3::bindings::Service;
use wasmtime_wasi_http::{Error, WasiHttpView};

use super::guest::{Guest, HTTP_HANDLES, PROCESS_HANDLES};
use super::http::{IDLE, LINGER};
use super::workload::{Permit, State};
use super::{Loaded, Reuse, Shared};
use crate::network::{Body, HttpError, HttpHandler, begun_within};

/// As `wasmtime serve`: requests one instance answers in its life, and at once.
const REUSE: Reuse = Reuse {
    requests: 128,
    concurrent: 16,
};

/// How often an instance's turn may come before an answer is sent without any of its body.
const TURNS: usize = 4;

type Answer = Result<Response<Body>, HttpError>;

/// Handles an instance needs for each call, if it answers very many at once.
const CALL_HANDLES: usize = 16;

/// Answers HTTP for one workload.
pub(super) struct Handler {
    state: Arc<State>,
    loaded: Arc<Loaded>,
    shared: Arc<Shared>,
    reuse: Reuse,
    // Locked to choose a worker and hand it a call, never while awaiting.
    workers: Mutex<Vec<Worker>>,
}

/// A worker as the dispatcher sees it.
struct Worker {
    calls: mpsc::Sender<Call>,
    load: Arc<Load>,
    accepted: u32,
}

#[derive(Default)]
struct Load {
    /// Calls sent and not yet answered.
    inside: AtomicU32,
    /// Answers whose body is still read.
    reading: AtomicU32,
    retired: AtomicBool,
    retiring: Notify,
}

struct Call {
    request: Request<Body>,
    answer: oneshot::Sender<Answer>,
    _load: Counted,
    _permit: Permit,
}

/// Counts a call until it is dropped.
struct Counted(Arc<Load>);

/// A call nobody waits for any more: its worker takes no others, and ends. Disarmed by the answer.
struct Abandoned(Option<Arc<Load>>);

/// A body with its right to be worked on.
struct Read {
    body: Body,
    load: Arc<Load>,
    _permit: Permit,
}

// === impl Handler ===

impl Handler {
    pub(super) fn new(
        state: Arc<State>,
        loaded: Arc<Loaded>,
        shared: Arc<Shared>,
        reuse: Option<Reuse>,
    ) -> Arc<Self> {
        let reuse = reuse.unwrap_or(REUSE);
        Arc::new(Self {
            state,
            loaded,
            shared,
            reuse: Reuse {
                requests: reuse.requests.max(1),
                concurrent: reuse.concurrent.clamp(1, 1_024),
            },
            workers: Mutex::new(Vec::new()),
        })
    }

    async fn serve(self: Arc<Self>, request: Request<Body>) -> Answer {
        let (mut request, permit) = self.state.enter(request).await?;
        if request.uri().authority().is_none() && !request.headers().contains_key(HOST) {
            request
                .headers_mut()
                .insert(HOST, HeaderValue::from_static("localhost"));
        }
        set_authority(&mut request);
        let (sender, answer) = oneshot::channel();
        let mut abandoned = Abandoned(Some(self.dispatch(request, sender, permit)));
        let state = &self.state;
        tokio::select! {
            biased;
            answer = answer => {
                abandoned.0 = None;
                answer.unwrap_or_else(|_| {
                    Err(HttpError::Guest(format!("{}: the instance ended", state.name())))
                })
            }
            () = state.killed.cancelled() => {
                Err(HttpError::Guest(format!("{} was stopped", state.name())))
            }
            () = tokio::time::sleep(state.timeout) => {
                let error = format!("no answer within {} s", state.timeout.as_secs());
                let _ = state.report(wasmtime::Error::msg(error.clone()));
                Err(HttpError::Timeout(error))
            }
        }
    }

    /// Hands the call to a worker, a new one if none has room.
    fn dispatch(
        self: &Arc<Self>,
        request: Request<Body>,
        answer: oneshot::Sender<Answer>,
        permit: Permit,
    ) -> Arc<Load> {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        workers.retain(|worker| {
            worker.accepted < self.reuse.requests
                && !worker.calls.is_closed()
                && !worker.load.retired.load(Ordering::Relaxed)
        });
        let call = |load: &Arc<Load>, request, answer, permit| {
            load.inside.fetch_add(1, Ordering::Relaxed);
            Call {
                request,
                answer,
                _load: Counted(Arc::clone(load)),
                _permit: permit,
            }
        };
        let (mut request, mut answer, mut permit) = (request, answer, permit);
        for worker in workers.iter_mut().rev() {
            if worker.load.inside.load(Ordering::Relaxed) >= self.reuse.concurrent {
                continue;
            }
            match worker
                .calls
                .try_send(call(&worker.load, request, answer, permit))
            {
                Ok(()) => {
                    worker.accepted += 1;
                    return Arc::clone(&worker.load);
                }
                Err(
                    mpsc::error::TrySendError::Closed(back) | mpsc::error::TrySendError::Full(back),
                ) => {
                    (request, answer, permit) = (back.request, back.answer, back._permit);
                }
            }
        }
        let (calls, receiver) = mpsc::channel(self.reuse.concurrent as usize);
        let load = Arc::new(Load::default());
        // The channel is new and has room for one.
        let _ = calls.try_send(call(&load, request, answer, permit));
        let work = Arc::clone(self).work(receiver, Arc::clone(&load));
        self.shared
            .tasks
            .spawn(Arc::clone(self).supervise(work, Arc::clone(&load)));
        workers.push(Worker {
            calls,
            load: Arc::clone(&load),
            accepted: 1,
        });
        load
    }

    /// A worker's task: metered, and gone when the workload is.
    async fn supervise(
        self: Arc<Self>,
        work: impl Future<Output = wasmtime::Result<()>> + Send + 'static,
        load: Arc<Load>,
    ) {
        let work = self.state.template.meter.run(work);
        // A guest that never gives its thread back by itself does not see that it is retired.
        let overdue = async {
            load.retiring.notified().await;
            tokio::time::sleep(LINGER * 2).await;
        };
        tokio::select! {
            biased;
            () = self.state.killed.cancelled() => {}
            result = work => if let Err(error) = result {
                let _ = self.state.report(error);
            },
            () = overdue => {}
        }
    }

    async fn work(
        self: Arc<Self>,
        mut calls: mpsc::Receiver<Call>,
        load: Arc<Load>,
    ) -> wasmtime::Result<()> {
        let Loaded::Http03(pre) = &*self.loaded else {
            return Err(wasmtime::Error::msg("not a wasi:http 0.3 component"));
        };
        let lane = self.shared.lane(self.loaded.flavor())?;
        let _slot = self.state.queue(Arc::clone(&lane.slots)).await?;
        let mut store = self.state.template.store(lane, self.handles());
        let service = pre.instantiate_async(&mut store).await?;
        let most = self.reuse.requests;
        store
            .run_concurrent(async |accessor| {
                work(accessor, &service, &mut calls, &load, most).await
            })
            .await?
    }

    fn handles(&self) -> usize {
        let calls = self.reuse.concurrent as usize;
        (calls * CALL_HANDLES).clamp(HTTP_HANDLES, PROCESS_HANDLES)
    }

    /// Makes one instance and drops it: what cannot even start is told before the first request.
    pub(super) async fn rehearse(self: Arc<Self>) {
        let (calls, receiver) = mpsc::channel(1);
        drop(calls);
        let attempt = Arc::clone(&self).work(receiver, Arc::default());
        let attempt = self.state.template.meter.run(attempt);
        tokio::select! {
            biased;
            () = self.state.killed.cancelled() => {}
            result = attempt => if let Err(error) = result {
                self.state.end(super::command::exit(Err(error), &self.state.template.meter));
            },
        }
    }
}

/// Takes calls while it may, and returns when the guest has nothing left to do. An error is a trap: the store is lost.
async fn work(
    accessor: &Accessor<Guest>,
    service: &Service,
    calls: &mut mpsc::Receiver<Call>,
    load: &Load,
    most: u32,
) -> wasmtime::Result<()> {
    let handle = *service.wasi_http_handler().func_handle().func();
    let mut running = FuturesUnordered::new();
    let mut accepted = 0;
    let mut open = true;
    let mut since = Instant::now();
    loop {
        let quiet = running.is_empty();
        let retired = load.retired.load(Ordering::Relaxed);
        if retired {
            // What was sent before is still answered.
            calls.close();
        }
        // Whoever waits in vain, or is slow after the last answer, has LINGER; an idle instance IDLE.
        let patience = if quiet && open { IDLE } else { LINGER };
        tokio::select! {
            biased;
            Some(result) = running.next(), if !quiet => {
                result?;
                since = Instant::now();
            }
            call = next(accessor, handle, calls), if open => match call {
                // Its caller has left.
                Some(call) if call.answer.is_closed() => {}
                Some(call) => {
                    accepted += 1;
                    since = Instant::now();
                    if accepted >= most {
                        calls.close();
                    }
                    running.push(answer(accessor, service, call));
                }
                None => open = false,
            },
            () = poll_fn(|cx| accessor.poll_no_interesting_tasks(cx)), if quiet && !open => {
                return Ok(());
            }
            () = tokio::time::sleep_until(since + patience) => {
                if quiet && !retired && load.reading.load(Ordering::Relaxed) > 0 {
                    since = Instant::now();
                } else if patience == IDLE {
                    // What was sent meanwhile is still received, then the channel is at its end.
                    calls.close();
                    since = Instant::now();
                } else if retired || quiet {
                    return Ok(());
                } else {
                    since = Instant::now();
                }
            }
        }
    }
}

async fn next(
    accessor: &Accessor<Guest>,
    handle: wasmtime::component::Func,
    calls: &mut mpsc::Receiver<Call>,
) -> Option<Call> {
    poll_fn(|cx| accessor.poll_ready_for_concurrent_call(handle, cx)).await;
    calls.recv().await
}

/// One call inside the store. The answer may be refused: then its caller has gone.
async fn answer(accessor: &Accessor<Guest>, service: &Service, call: Call) -> wasmtime::Result<()> {
    let Call {
        request,
        answer,
        _load: counted,
        _permit: permit,
    } = call;
    let (request, sent) = accessor.with(|mut access| {
        access.data_mut().set_hops(&request);
        let view = access.data_mut().http();
        let (request, sent) = p3::Request::from_http(view.hooks, request);
        let sent: Pin<Box<dyn Future<Output = Result<(), Error>> + Send>> = Box::pin(sent);
        view.table.push(request).map(|request| (request, sent))
    })?;
    let result = match service
        .wasi_http_handler()
        .call_handle(accessor, request)
        .await?
    {
        Ok(response) => {
            let response = accessor.with(|mut access| {
                let response = access.data_mut().http().table.delete(response)?;
                response.into_http(&mut access, sent)
            })?;
            let load = Arc::clone(&counted.0);
            load.reading.fetch_add(1, Ordering::Relaxed);
            let (head, body) = response.into_parts();
            let body = Read {
                body,
                load,
                _permit: permit,
            };
            // The guest writes its body after it has returned.
            let body = begun_within(TURNS, body.boxed_unsync()).await;
            Ok(Response::from_parts(head, body))
        }
        Err(code) => Err(HttpError::Guest(format!(
            "the guest answered with {code:?}"
        ))),
    };
    let _ = answer.send(result);
    Ok(())
}

/// Guests of 0.3 read the authority from the request, not from a header.
fn set_authority(request: &mut Request<Body>) {
    if request.uri().authority().is_some() {
        return;
    }
    let host = request.headers().get(HOST).cloned();
    let Some(Ok(authority)) = host
        .as_ref()
        .map(|host| http::uri::Authority::try_from(host.as_bytes()))
    else {
        return;
    };
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.scheme = Some(http::uri::Scheme::HTTP);
    parts.authority = Some(authority);
    if parts.path_and_query.is_none() {
        parts.path_and_query = Some(http::uri::PathAndQuery::from_static("/"));
    }
    if let Ok(uri) = http::Uri::from_parts(parts) {
        *request.uri_mut() = uri;
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

impl Load {
    fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
        self.retiring.notify_one();
    }
}

impl Drop for Abandoned {
    fn drop(&mut self) {
        if let Some(load) = self.0.take() {
            load.retire();
        }
    }
}

impl Drop for Read {
    fn drop(&mut self) {
        self.load.reading.fetch_sub(1, Ordering::Relaxed);
    }
}

impl http_body::Body for Read {
    type Data = bytes::Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::Relaxed);
    }
}
