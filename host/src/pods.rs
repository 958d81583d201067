//! Pods: one worker task per pod UID, all fed by one watch. Routes what the API says to the workers; nothing else.
//!
//! [`lifecycle`] decides, [`worker`] acts, [`status`] says it in Kubernetes' words. Nothing here knows wasmtime.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::runtime::{WatchStreamExt, watcher};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

mod backoff;
pub(crate) mod context;
mod downward;
mod environment;
mod ephemeral;
pub(crate) mod events;
pub(crate) mod exec;
mod hooks;
pub(crate) mod known;
mod lifecycle;
pub(crate) mod logs;
mod objects;
mod probes;
mod publish;
mod refusal;
mod sandbox;
mod start;
mod status;
mod tell;
pub(crate) mod toolbox;
mod volumes;
mod worker;

use context::Context;
use types::error::chain;

/// Routes watch events to workers. Owned by one task: [`Pods::run`].
pub(crate) struct Pods {
    context: Arc<Context>,
    workers: HashMap<String, watch::Sender<Arc<Pod>>>,
    tasks: TaskTracker,
    end: End,
    /// The uids of a list that is being read, if one is.
    listed: Option<HashSet<String>>,
    /// Told once, when the pods of the API are all known.
    synced: watch::Sender<bool>,
}

/// How pods end with the process. Cheap to clone.
#[derive(Clone)]
pub(crate) struct End {
    /// The node goes away for good: pods fail, the API hears of it, and nothing new is begun. Bounded by `stop`.
    pub(crate) leaving: CancellationToken,
    /// How long containers may take then.
    pub(crate) leaving_grace: Duration,
    /// The process ends: containers are stopped and nothing is written, so that the next process finds the pods as they were.
    pub(crate) stop: CancellationToken,
    /// How long containers may take then.
    pub(crate) grace: Duration,
}

impl Pods {
    pub(crate) fn new(context: Arc<Context>, end: End) -> Pods {
        Pods {
            context,
            workers: HashMap::new(),
            tasks: TaskTracker::new(),
            end,
            listed: None,
            synced: watch::Sender::new(false),
        }
    }

    /// Becomes true when every pod the API has for this node has a worker.
    pub(crate) fn synced(&self) -> watch::Receiver<bool> {
        self.synced.subscribe()
    }

    /// Until one of the tokens is cancelled and every worker is done with its pod.
    pub(crate) async fn run(mut self) {
        let api: Api<Pod> = Api::all(self.context.client.clone());
        let config =
            watcher::Config::default().fields(&format!("spec.nodeName={}", self.context.node_name));
        let watch = watcher(api, config)
            .modify(|pod| {
                pod.metadata.managed_fields = None;
            })
            .default_backoff();
        let mut watch = std::pin::pin!(watch);
        let (leaving, tasks) = (self.end.leaving.clone(), self.tasks.clone());
        let mut left = std::pin::pin!(async move {
            leaving.cancelled_owned().await;
            tasks.close();
            tasks.wait().await;
        });
        loop {
            let event = tokio::select! {
                biased;
                () = self.end.stop.cancelled() => break,
                () = &mut left => break,
                event = watch.try_next() => event,
            };
            match event {
                Ok(Some(event)) => self.heard(event).await,
                // The watcher begins again by itself, with backoff.
                Ok(None) => break,
                Err(error) => tracing::warn!(error = %chain(&error), "Failed to watch pods"),
            }
        }
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn heard(&mut self, event: watcher::Event<Pod>) {
        match event {
            watcher::Event::Init => self.listed = Some(HashSet::new()),
            watcher::Event::InitApply(pod) => {
                if let (Some(listed), Some(uid)) = (&mut self.listed, &pod.metadata.uid) {
                    listed.insert(uid.clone());
                }
                self.applied(pod);
            }
            watcher::Event::InitDone => {
                if let Some(listed) = self.listed.take() {
                    // Dropping the sender tells the worker that its pod is gone.
                    self.workers.retain(|uid, _| listed.contains(uid));
                    if !*self.synced.borrow() {
                        self.sweep(&listed).await;
                    }
                }
                self.synced.send_replace(true);
            }
            watcher::Event::Apply(pod) => self.applied(pod),
            watcher::Event::Delete(pod) => {
                if let Some(uid) = &pod.metadata.uid {
                    self.workers.remove(uid);
                }
            }
        }
    }

    fn applied(&mut self, mut pod: Pod) {
        ephemeral::adopt(&mut pod);
        let Some(uid) = pod.metadata.uid.clone() else {
            return;
        };
        let known = self.workers.get(&uid).filter(|worker| !worker.is_closed());
        if let Some(worker) = known {
            // Its worker holds it as long as the pod lives: it keeps only what the worker does not know better.
            if let Some(status) = pod.status.take() {
                pod.status = Some(publish::of_others(status));
            }
            if worker.send(Arc::new(pod)).is_ok() {
                return;
            }
            // The worker ended in this moment; the next event begins it anew.
            self.workers.remove(&uid);
            return;
        }
        let pod = Arc::new(pod);
        let (sender, receiver) = watch::channel(Arc::clone(&pod));
        self.workers.insert(uid, sender);
        let work = worker::run(Arc::clone(&self.context), pod, receiver, self.end.clone());
        self.tasks.spawn(Box::pin(work));
    }

    /// Removes what pods left behind that went away while no process of this node ran.
    async fn sweep(&self, listed: &HashSet<String>) {
        let (pods, logs) = (
            self.context.pods_directory.clone(),
            self.context.logs.root().to_owned(),
        );
        let listed = listed.clone();
        let swept = tokio::task::spawn_blocking(move || {
            let uid_of_logs = |name: &str| name.rsplit('_').next().unwrap_or(name).to_owned();
            let uid_of_pod = |name: &str| name.to_owned();
            remove_unlisted(&pods, &listed, uid_of_pod);
            remove_unlisted(&logs, &listed, uid_of_logs);
        });
        if let Err(error) = swept.await {
            tracing::warn!(error = %chain(&error), "Failed to remove what former pods left behind");
        }
    }
}

fn remove_unlisted(
    directory: &std::path::Path,
    listed: &HashSet<String>,
    uid: impl Fn(&str) -> String,
) {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !listed.contains(&uid(&name))
            && let Err(error) = volumes::directory::remove(&entry.path())
        {
            tracing::warn!(path = %entry.path().display(), error = %chain(&error), "Failed to remove what a former pod left behind");
        }
    }
}
