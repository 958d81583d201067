//! A worker's acting half: each effect of the lifecycle becomes an operation, whose outcome comes back to the worker.

use std::sync::Arc;
use std::time::Duration;

use futures::future::{AbortHandle, Abortable, BoxFuture};
use k8s_openapi::api::core::v1::{Container, Pod};
use kube::Api;
use tokio::time::Instant;
use types::error::chain;

use super::{Outcome, Worker};
use crate::images::{Credentials, Policy};
use crate::network::PodNetwork;
use crate::pods::context::{Context, now};
use crate::pods::events::Severity;
use crate::pods::exec::Beside;
use crate::pods::lifecycle::{Effect, Event, Why};
use crate::pods::logs::{Log, Options, Reader};
use crate::pods::start::{Job, container, start};
use crate::pods::tell::At;
use crate::pods::volumes::directory;
use crate::pods::{hooks, publish, sandbox};
use crate::runtime::{Exit, ExitCause, LogSink, LogStream, Running};

/// Followers and the termination message wait this long for the last lines.
const LAST_LINES: Duration = Duration::from_secs(1);
/// A termination message taken from the log.
const MESSAGE_LINES: u64 = 80;
const MESSAGE_BYTES: usize = 2_048;

impl Worker {
    /// Begins what the effect asks for; returns events that follow at once.
    pub(super) fn perform(&mut self, effect: Effect) -> Vec<Event> {
        match effect {
            Effect::Prepare => return self.prepare(),
            Effect::Pull(index) => self.pull(index),
            Effect::Start(index) => self.start(index),
            Effect::Stop {
                container,
                grace,
                why,
            } => self.stop(container, grace, why),
            Effect::Abandon(index) => {
                if let Some(operation) = self.slots[index].operation.take() {
                    operation.abort();
                }
            }
            Effect::Release => return self.release(),
            Effect::Finalize => self.finalize_after(Duration::ZERO),
            Effect::BackOff(index) => {
                self.tell(index, |teller, at| teller.back_off(at, &self.pod));
            }
        }
        Vec::new()
    }

    /// An operation of one container that can be abandoned; its outcome counts only if it was not.
    fn operate(&mut self, index: usize, operation: impl Future<Output = Outcome> + Send + 'static) {
        let (handle, registration) = AbortHandle::new_pair();
        self.slots[index].operation = Some(handle);
        let operation = Abortable::new(operation, registration);
        self.operations.push(Box::pin(async move {
            operation.await.unwrap_or(Outcome::Nothing)
        }));
    }

    fn prepare(&mut self) -> Vec<Event> {
        if self.refused {
            return Vec::new();
        }
        if self.network.is_none() {
            match self
                .context
                .network
                .attach_pod(sandbox::identity(&self.pod))
            {
                Ok(network) => {
                    self.facts.pod_ip = Some(network.address().to_string());
                    self.network = Some(network);
                }
                Err(error) => {
                    let message = format!("Failed to create pod sandbox: {error}");
                    self.teller
                        .pod(Severity::Warning, "FailedCreatePodSandBox", message);
                    return vec![Event::PrepareFailed];
                }
            }
        }
        let around = self.context.surroundings(self.facts.pod_ip.clone());
        let making =
            sandbox::make_volumes(Arc::clone(&self.context), Arc::clone(&self.pod), around);
        let (handle, registration) = AbortHandle::new_pair();
        self.preparing = Some(handle);
        let making = Abortable::new(making, registration);
        self.operations.push(Box::pin(async move {
            match making.await {
                Ok(made) => Outcome::Prepared(made),
                Err(_) => Outcome::Nothing,
            }
        }));
        Vec::new()
    }

    fn pull(&mut self, index: usize) {
        let Some(spec) = container(&self.pod, index) else {
            return;
        };
        let image = spec.image.clone().unwrap_or_default();
        let policy = Policy::named(spec.image_pull_policy.as_deref(), &image);
        let (context, pod) = (Arc::clone(&self.context), Arc::clone(&self.pod));
        let at_hand = context.images.is_at_hand(&image);
        if policy != Policy::Never && !at_hand {
            self.tell(index, |teller, at| teller.pulling(at));
        }
        self.operate(index, async move {
            let credentials = if at_hand {
                Credentials::default()
            } else {
                credentials(&context, &pod).await
            };
            Outcome::Pulled(
                index,
                context.images.ensure(&image, policy, &credentials).await,
            )
        });
    }

    fn start(&mut self, index: usize) {
        let slot = &self.slots[index];
        let (Some(image), Some(network), Some(directories)) =
            (&slot.image, &self.network, &self.directories)
        else {
            return;
        };
        let job = Job {
            context: Arc::clone(&self.context),
            pod: Arc::clone(&self.pod),
            record: Arc::clone(&self.record),
            container: index,
            instance: self.state().containers[index].instances,
            image: Arc::clone(image),
            network: Arc::clone(network),
            directories: Arc::clone(directories),
            remembered: Arc::clone(&slot.remembered),
        };
        self.operate(index, async move {
            Outcome::Started(index, Box::new(start(job).await))
        });
    }

    fn stop(&mut self, index: usize, grace: Duration, why: Why) {
        let again = self.slots[index].operation.take();
        let first = again.is_none();
        if let Some(operation) = again {
            operation.abort();
        }
        if first {
            self.tell(index, |teller, at| teller.killing(at, why));
        }
        let slot = &mut self.slots[index];
        slot.probes = None;
        let (Some(running), Some(network)) = (slot.running.clone(), self.network.clone()) else {
            return;
        };
        let serving = slot.serving.take();
        let beside = self.beside(index);
        let (context, pod) = (Arc::clone(&self.context), Arc::clone(&self.pod));
        let teller = self.teller.clone();
        self.operate(index, async move {
            let until = Instant::now() + grace;
            let left = || until.saturating_duration_since(Instant::now());
            if first
                && let (Some(spec), Some(beside)) = (container(&pod, index), beside)
                && let Err(error) = pre_stop(&context, &network, spec, &beside, left()).await
            {
                teller.pre_stop_failed(&At::of(&pod, index, spec), &error);
            }
            if serving.is_some() {
                tokio::time::sleep(context.drain.min(left() / 2)).await;
            }
            drop(serving);
            match left() {
                Duration::ZERO => running.kill(),
                left => running.stop(left),
            }
            Outcome::Nothing
        });
    }

    /// The address goes at once; the volumes in the background, if there are any.
    fn release(&mut self) -> Vec<Event> {
        if let Some(preparing) = self.preparing.take() {
            preparing.abort();
        }
        if let Some(network) = self.network.take() {
            self.context.network.detach_pod(&network);
        }
        self.upkeep_at = None;
        let had_volumes = self
            .directories
            .take()
            .is_none_or(|directories| !directories.is_empty());
        if !had_volumes {
            return vec![Event::Released];
        }
        let directory = self.context.pod_directory(&self.record.uid);
        self.operations.push(Box::pin(async move {
            let removed = tokio::task::spawn_blocking(move || directory::remove(&directory)).await;
            if let Ok(Err(error)) = removed {
                tracing::warn!(error = %chain(&error), "Failed to remove a pod's volumes");
            }
            Outcome::Event(Event::Released)
        }));
        Vec::new()
    }

    pub(super) fn finalize_after(&mut self, wait: Duration) {
        let (context, pod) = (Arc::clone(&self.context), Arc::clone(&self.pod));
        self.operations.push(Box::pin(async move {
            tokio::time::sleep(wait).await;
            Outcome::Finalized(publish::delete(&context, &pod).await)
        }));
    }

    /// Where a command of this container runs, while it does.
    fn beside(&self, index: usize) -> Option<Beside> {
        Some(Beside {
            record: Arc::clone(&self.record),
            container: container(&self.pod, index)?.name.clone(),
            running: self.slots.get(index)?.running.clone()?,
        })
    }

    /// Asks every probe that is due.
    pub(super) fn ask_probes(&mut self) {
        let now = now();
        for index in 0..self.slots.len() {
            let Some(probes) = &mut self.slots[index].probes else {
                continue;
            };
            let instance = self
                .state
                .as_ref()
                .map_or(0, |state| state.containers[index].instances);
            for kind in probes.due(now) {
                let (Some(network), Some(beside)) = (self.network.clone(), self.beside(index))
                else {
                    continue;
                };
                let (context, pod) = (Arc::clone(&self.context), Arc::clone(&self.pod));
                self.operations.push(Box::pin(async move {
                    let probe =
                        container(&pod, index).and_then(|spec| Some((spec, kind.of(spec)?)));
                    let Some((spec, probe)) = probe else {
                        return Outcome::Nothing;
                    };
                    Outcome::Probed {
                        container: index,
                        instance,
                        kind,
                        answer: hooks::ask(&context, &network, spec, &beside, probe).await,
                    }
                }));
            }
        }
    }

    /// Brings live volumes up to date and measures limited ones.
    pub(super) fn upkeep(&mut self) {
        self.upkeep_at = None;
        if self.network.is_none() || self.directories.is_none() {
            return;
        }
        let around = self.context.surroundings(self.facts.pod_ip.clone());
        let (context, pod) = (Arc::clone(&self.context), Arc::clone(&self.pod));
        self.operations.push(Box::pin(async move {
            // What is missing for the moment leaves the volume as it is, as upstream does.
            if let Err(why) =
                sandbox::make_volumes(Arc::clone(&context), Arc::clone(&pod), around).await
            {
                tracing::debug!(error = %why, "Left volumes as they are");
            }
            Outcome::Kept(sandbox::outgrown(context, pod).await)
        }));
    }

    /// The process ends: containers are asked to, then made to end. The API is not told; the next process goes on.
    pub(super) async fn stop_all(&mut self, grace: Duration) {
        let grace = grace.min(self.state().rules.grace);
        let mut stopping = Vec::new();
        for slot in &mut self.slots {
            if let Some(operation) = slot.operation.take() {
                operation.abort();
            }
            slot.serving = None;
            if let Some(running) = slot.running.take() {
                if grace.is_zero() {
                    running.kill()
                } else {
                    running.stop(grace)
                }
                stopping.push(running);
            }
        }
        let all = futures::future::join_all(stopping.iter().map(|running| running.wait()));
        let _ = tokio::time::timeout(grace + LAST_LINES, all).await;
        for running in &stopping {
            running.kill();
        }
        // The waits close the logs.
        while let Some(outcome) =
            futures::FutureExt::now_or_never(futures::StreamExt::next(&mut self.operations))
        {
            if outcome.is_none() {
                break;
            }
        }
    }

    /// The object is gone: so are the logs and what is known of the pod.
    pub(super) async fn forget(self) {
        self.context.known.remove(&self.record);
        let logs = self.record.log_directory.clone();
        let pod = self.context.pod_directory(&self.record.uid);
        let removed = tokio::task::spawn_blocking(move || {
            directory::remove(&logs).and_then(|()| directory::remove(&pod))
        });
        if let Ok(Err(error)) = removed.await {
            tracing::warn!(uid = %self.record.uid, error = %chain(&error), "Failed to remove what a pod left behind");
        }
    }
}

/// The pull secrets that exist; one that does not is left out, as upstream does.
async fn credentials(context: &Context, pod: &Pod) -> Credentials {
    let mut credentials = Credentials::default();
    let secrets = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.image_pull_secrets.as_ref());
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    for reference in secrets.into_iter().flatten() {
        let api: Api<k8s_openapi::api::core::v1::Secret> =
            Api::namespaced(context.client.clone(), namespace);
        match api.get_opt(&reference.name).await {
            Ok(Some(secret)) => {
                if let Err(why) = credentials.add(&secret) {
                    tracing::warn!(secret = %reference.name, %why, "Left out a pull secret");
                }
            }
            Ok(None) => tracing::debug!(secret = %reference.name, "A pull secret does not exist"),
            Err(error) => {
                tracing::warn!(secret = %reference.name, error = %chain(&error), "Failed to fetch a pull secret")
            }
        }
    }
    credentials
}

async fn pre_stop(
    context: &Context,
    network: &PodNetwork,
    spec: &Container,
    beside: &Beside,
    left: Duration,
) -> Result<(), String> {
    let hook = spec
        .lifecycle
        .as_ref()
        .and_then(|lifecycle| lifecycle.pre_stop.as_ref());
    let Some(hook) = hook.filter(|_| !left.is_zero()) else {
        return Ok(());
    };
    tokio::time::timeout(left, hooks::run(context, network, spec, beside, hook, left))
        .await
        .unwrap_or_else(|_| Err(format!("not done within {}s", left.as_secs())))
}

/// The end of an instance, with its log closed and its last words.
pub(super) fn wait(
    index: usize,
    running: Arc<Running>,
    log: Arc<Log>,
    fall_back: bool,
) -> BoxFuture<'static, Outcome> {
    Box::pin(async move {
        let exit = running.wait().await;
        // So that `kubectl logs` shows it too.
        if matches!(exit.cause, ExitCause::Trapped | ExitCause::OutOfMemory)
            && !exit.message.is_empty()
        {
            log.write(
                LogStream::Stderr,
                format!("coracle: {}\n", exit.message).as_bytes(),
            );
        }
        log.close();
        // Who hears that it ended finds its last lines.
        let mut progress = log.progress();
        let written = progress.wait_for(|progress| progress.closed);
        let _ = tokio::time::timeout(LAST_LINES, written).await;
        let mut message = exit.message.clone();
        if fall_back && exit.code != 0 && message.is_empty() {
            message = last_words(&log).await;
        }
        Outcome::Event(Event::Exited {
            container: index,
            code: exit.code,
            reason: reason(&exit),
            message,
        })
    })
}

fn reason(exit: &Exit) -> &'static str {
    match (exit.cause, exit.code) {
        (ExitCause::OutOfMemory, _) => "OOMKilled",
        (_, 0) => "Completed",
        _ => "Error",
    }
}

async fn last_words(log: &Arc<Log>) -> String {
    let path = log.path().to_owned();
    let read = tokio::task::spawn_blocking(move || {
        let options = Options {
            tail: Some(MESSAGE_LINES),
            ..Options::default()
        };
        Reader::open(&path, &options)?.step()
    });
    let bytes = read.await.ok().and_then(Result::ok).unwrap_or_default();
    let start = bytes.len().saturating_sub(MESSAGE_BYTES);
    String::from_utf8_lossy(&bytes[start..]).into_owned()
}
