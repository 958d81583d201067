//! The garbage collector: dependents follow their owners, in the background, in the foreground, or not at all.
//!
//! Owns the graph of owner references over every kind the server serves, and the finalizers `foregroundDeletion` and
//! `orphan`. Decides in [`graph`]; every deletion is preceded by a fresh look at the object and its owners, because the
//! graph is fed by many watches that do not advance together.

mod graph;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

pub use graph::{FOREGROUND, Graph, Identity, ORPHAN, Verdict, Work};
use types::error::chain;

use super::Shared;
use crate::discovery::Served;
use crate::events::{self, Recorder};
use crate::informers::Store;
use crate::objects::{
    BUDGETS, DEPLOYMENTS, ENDPOINT_SLICES, ENDPOINTS, LEASES, NAMESPACES, NODES, PODS,
    REPLICA_SETS, SERVICE_ACCOUNTS, SERVICES,
};
use crate::objects::{Meta, Metadata, Resource, Watched, collection_url};
use crate::reconcile::{Outcome, Queue};
use crate::write::{Delete, Error, Propagation, Target, Writer, gone_is_fine};

/// How often to ask whether new kinds are served.
const REDISCOVER: Duration = Duration::from_secs(30);
const REDISCOVER_AFTER_FAILURE: Duration = Duration::from_secs(2);

/// What one owner is to a dependent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    Solid,
    /// It is gone.
    Dangling,
    /// It is being deleted in the foreground and waits for us.
    Waiting,
}

#[derive(Debug, PartialEq)]
pub enum Action {
    /// Owners that are gone are taken out; others hold the object.
    Unlink(Vec<OwnerReference>),
    /// Nobody waits for this object any more than its own dependents do: they no longer block it.
    Unblock,
    Delete(Propagation),
}

/// What to do with an object, given what its owners are.
pub fn plan(
    meta: &Meta,
    owners: &[(OwnerReference, Owner)],
    has_dependents: bool,
    circle: bool,
) -> Vec<Action> {
    let of = |kind: Owner| owners.iter().filter(move |(_, o)| *o == kind);
    if owners.is_empty() {
        return Vec::new();
    }
    if of(Owner::Solid).next().is_some() {
        let gone: Vec<&str> = owners
            .iter()
            .filter(|(_, o)| *o != Owner::Solid)
            .map(|(r, _)| r.uid.as_str())
            .collect();
        if gone.is_empty() {
            return Vec::new();
        }
        let mut kept = meta.owner_references.clone();
        kept.retain(|o| !gone.contains(&o.uid.as_str()));
        return vec![Action::Unlink(kept)];
    }
    if of(Owner::Waiting).next().is_some() && has_dependents {
        let mut actions = Vec::new();
        if circle {
            // A dependent of ours is being deleted in the foreground too: it may wait for us, through a circle of owners.
            actions.push(Action::Unblock);
        }
        actions.push(Action::Delete(Propagation::Foreground));
        return actions;
    }
    let has = |finalizer: &str| meta.finalizers.iter().any(|f| f == finalizer);
    vec![Action::Delete(if has(ORPHAN) {
        Propagation::Orphan
    } else if has(FOREGROUND) {
        Propagation::Foreground
    } else {
        Propagation::Background
    })]
}

pub struct Controller {
    shared: Arc<Shared>,
    recorder: Recorder,
    writer: Writer,
    pub queue: Arc<Queue<Work>>,
    /// Short sections only, never held over an await.
    graph: Arc<Mutex<Graph>>,
}

// === impl Controller ===

impl Controller {
    pub fn new(shared: &Arc<Shared>) -> Arc<Self> {
        let this = Arc::new(Self {
            shared: Arc::clone(shared),
            recorder: shared.recorder.named("garbage-collector-controller"),
            writer: shared.writer("generic-garbage-collector"),
            queue: Queue::new("garbagecollector", Duration::ZERO),
            graph: Arc::new(Mutex::new(Graph::default())),
        });
        let informers = &shared.informers;
        this.feed(&informers.pods, PODS);
        this.feed(&informers.nodes, NODES);
        this.feed(&informers.deployments, DEPLOYMENTS);
        this.feed(&informers.replica_sets, REPLICA_SETS);
        this.feed(&informers.services, SERVICES);
        this.feed(&informers.endpoint_slices, ENDPOINT_SLICES);
        this.feed(&informers.endpoints, ENDPOINTS);
        this.feed(&informers.service_accounts, SERVICE_ACCOUNTS);
        this.feed(&informers.namespaces, NAMESPACES);
        this.feed(&informers.budgets, BUDGETS);
        this.feed(&informers.leases, LEASES);
        this
    }

    fn feed<T: Watched>(&self, store: &Store<T>, resource: Resource) {
        self.feed_as(store, resource.api_version, resource.kind);
    }

    fn feed_as<T: Watched>(&self, store: &Store<T>, api_version: &str, kind: &str) {
        let (graph, queue) = (Arc::clone(&self.graph), Arc::clone(&self.queue));
        let kind: Arc<(String, String)> = Arc::new((api_version.to_owned(), kind.to_owned()));
        store.on_change(move |change| {
            let work = {
                let mut graph = graph.lock().unwrap_or_else(PoisonError::into_inner);
                match (change.old, change.new) {
                    (_, Some(new)) => graph.observe(&kind, new.meta()),
                    (Some(old), None) => graph.remove(&old.meta().uid),
                    (None, None) => Vec::new(),
                }
            };
            for item in work {
                queue.add(item);
            }
        });
    }

    /// Watches the metadata of every kind that no other informer watches, and of those that are added later.
    pub async fn watch_everything(
        self: Arc<Self>,
        tracker: TaskTracker,
        shutdown: CancellationToken,
    ) {
        let mut watched: HashMap<(String, String), CancellationToken> = HashMap::new();
        loop {
            let pause = match self.shared.catalog.refresh(&self.writer).await {
                Ok(served) => {
                    self.watch_new(&served, &mut watched, &tracker, &shutdown);
                    REDISCOVER
                }
                Err(error) => {
                    warn!(error = %chain(&error), "Discovery failed");
                    REDISCOVER_AFTER_FAILURE
                }
            };
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn watch_new(
        &self,
        served: &[Served],
        watched: &mut HashMap<(String, String), CancellationToken>,
        tracker: &TaskTracker,
        shutdown: &CancellationToken,
    ) {
        let mut gone: Vec<(String, String)> = watched.keys().cloned().collect();
        for resource in served.iter().filter(|s| has_owners(s)) {
            let key = (resource.api_version.clone(), resource.plural.clone());
            gone.retain(|g| *g != key);
            if watched.contains_key(&key) {
                continue;
            }
            debug!(resource = resource.dotted(), "Watching for owners");
            let url = collection_url(&resource.api_version, &resource.plural, "");
            let store = Store::<Metadata>::metadata_only(url);
            self.feed_as(&store, &resource.api_version, &resource.kind);
            let stop = shutdown.child_token();
            let client = self.writer.client().clone();
            watched.insert(key, stop.clone());
            tracker.spawn(async move { store.run(client, stop).await });
        }
        for key in gone {
            if let Some(stop) = watched.remove(&key) {
                stop.cancel();
            }
        }
    }

    /// One piece of work.
    pub async fn pass(&self, work: Work) -> Result<Outcome, Error> {
        match work {
            Work::Delete(uid) => self.attempt_delete(&uid).await?,
            Work::Orphan(uid) => self.orphan(&uid).await?,
        }
        Ok(Outcome::Done)
    }

    async fn attempt_delete(&self, uid: &str) -> Result<(), Error> {
        let Some(view) = self.graph().view(uid) else {
            return Ok(());
        };
        if !view.is_virtual && view.deleting && !view.foreground {
            return Ok(());
        }
        let Some(target) = self.target(&view.identity) else {
            // A kind nobody serves: nothing can be said about it.
            return Ok(());
        };
        let meta = match self.writer.metadata(&target).await? {
            Some(meta) if meta.uid == uid => meta,
            _ => {
                let work = self.graph().remove(uid);
                self.add(work);
                return Ok(());
            }
        };
        if view.is_virtual {
            // It exists; its own watch will tell of it.
            return Ok(());
        }
        if view.foreground && view.deleting {
            return self.finish_foreground(uid, &target, &meta).await;
        }
        let mut owners = Vec::with_capacity(meta.owner_references.len());
        for reference in &meta.owner_references {
            owners.push((
                reference.clone(),
                self.judge(&view.identity, &meta, reference).await?,
            ));
        }
        let actions = plan(
            &meta,
            &owners,
            !view.dependents.is_empty(),
            view.dependent_waits,
        );
        for action in actions {
            let result = match action {
                Action::Unlink(kept) => {
                    self.writer
                        .patch(&target, &owner_patch(&meta, &json!(kept)))
                        .await
                }
                Action::Unblock => {
                    let unblocked: Vec<OwnerReference> = meta
                        .owner_references
                        .iter()
                        .map(|o| OwnerReference {
                            block_owner_deletion: Some(false),
                            ..o.clone()
                        })
                        .collect();
                    let patch =
                        json!({"metadata": {"uid": meta.uid, "ownerReferences": unblocked}});
                    self.writer.patch(&target, &patch).await
                }
                Action::Delete(propagation) => {
                    let options = Delete::of(uid).propagated(propagation);
                    self.writer.delete(&target, options).await
                }
            };
            gone_is_fine(result)?;
        }
        Ok(())
    }

    /// What an owner is: known from the graph where the graph is sure, asked of the server where it is not.
    async fn judge(
        &self,
        dependent: &Identity,
        meta: &Meta,
        reference: &OwnerReference,
    ) -> Result<Owner, Error> {
        let verdict = self.graph().judge(&reference.uid, &dependent.key.namespace);
        match verdict {
            Verdict::Solid => return Ok(Owner::Solid),
            Verdict::Waiting => return Ok(Owner::Waiting),
            Verdict::Absent => return Ok(Owner::Dangling),
            Verdict::OtherNamespace => {
                self.refuse(dependent, meta, reference);
                return Ok(Owner::Dangling);
            }
            Verdict::Unknown => {}
        }
        let Some(served) = self
            .shared
            .catalog
            .find(&reference.api_version, &reference.kind)
        else {
            // Never delete because of a kind we cannot look up.
            return Ok(Owner::Solid);
        };
        if served.namespaced && dependent.key.namespace.is_empty() {
            self.refuse(dependent, meta, reference);
            return Ok(Owner::Solid);
        }
        let namespace = if served.namespaced {
            dependent.key.namespace.clone()
        } else {
            String::new()
        };
        let target = Target {
            api_version: served.api_version,
            plural: served.plural,
            namespace,
            name: reference.name.clone(),
        };
        match self.writer.metadata(&target).await? {
            Some(owner) if owner.uid == reference.uid => {
                let waits = owner.is_deleting() && owner.finalizers.iter().any(|f| f == FOREGROUND);
                Ok(if waits { Owner::Waiting } else { Owner::Solid })
            }
            _ => {
                self.graph().remember_absent(&reference.uid);
                Ok(Owner::Dangling)
            }
        }
    }

    fn refuse(&self, dependent: &Identity, meta: &Meta, reference: &OwnerReference) {
        let mut about = events::reference(PODS, meta);
        about.kind = Some(dependent.kind.1.clone());
        about.api_version = Some(dependent.kind.0.clone());
        self.recorder.warning(
            about,
            "OwnerRefInvalidNamespace",
            format!(
                "ownerRef [{}/{}, namespace: {}, name: {}, uid: {}] does not exist in namespace \"{}\"",
                reference.api_version,
                reference.kind,
                dependent.key.namespace,
                reference.name,
                reference.uid,
                dependent.key.namespace
            ),
        );
    }

    /// Once nothing blocks it any more, an object deleted in the foreground may go.
    async fn finish_foreground(
        &self,
        uid: &str,
        target: &Target,
        meta: &Meta,
    ) -> Result<(), Error> {
        let blocking = self.graph().blocking(uid);
        if blocking.is_empty() {
            return self.remove_finalizer(target, meta, FOREGROUND).await;
        }
        self.add(blocking.into_iter().map(Work::Delete).collect());
        Ok(())
    }

    /// Lets all dependents go, then the object.
    async fn orphan(&self, uid: &str) -> Result<(), Error> {
        let Some(view) = self.graph().view(uid) else {
            return Ok(());
        };
        let Some(target) = self.target(&view.identity) else {
            return Ok(());
        };
        let Some(meta) = self
            .writer
            .metadata(&target)
            .await?
            .filter(|m| m.uid == uid)
        else {
            return Ok(());
        };
        for dependent in &view.dependents {
            let Some(identity) = self.graph().view(dependent).map(|v| v.identity) else {
                continue;
            };
            let Some(target) = self.target(&identity) else {
                continue;
            };
            let Some(known) = self.writer.metadata(&target).await? else {
                continue;
            };
            if known.uid != *dependent {
                continue;
            }
            let mut kept = known.owner_references.clone();
            kept.retain(|o| o.uid != uid);
            if kept.len() < known.owner_references.len() {
                gone_is_fine(
                    self.writer
                        .patch(&target, &owner_patch(&known, &json!(kept)))
                        .await,
                )?;
            }
        }
        self.remove_finalizer(&target, &meta, ORPHAN).await
    }

    async fn remove_finalizer(
        &self,
        target: &Target,
        meta: &Meta,
        finalizer: &str,
    ) -> Result<(), Error> {
        let mut kept = meta.finalizers.clone();
        kept.retain(|f| f != finalizer);
        if kept.len() == meta.finalizers.len() {
            return Ok(());
        }
        let patch = json!({"metadata": {
            "uid": meta.uid,
            "resourceVersion": meta.resource_version,
            "finalizers": kept,
        }});
        gone_is_fine(self.writer.patch(target, &patch).await).map(drop)
    }

    fn target(&self, identity: &Identity) -> Option<Target> {
        let served = self
            .shared
            .catalog
            .find(&identity.kind.0, &identity.kind.1)?;
        let namespace = if served.namespaced {
            identity.key.namespace.clone()
        } else {
            String::new()
        };
        Some(Target {
            api_version: served.api_version,
            plural: served.plural,
            namespace,
            name: identity.key.name.clone(),
        })
    }

    fn add(&self, work: Vec<Work>) {
        for item in work {
            self.queue.add(item);
        }
    }

    fn graph(&self) -> std::sync::MutexGuard<'_, Graph> {
        self.graph.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn owner_patch(meta: &Meta, owners: &Value) -> Value {
    json!({"metadata": {
        "uid": meta.uid,
        "resourceVersion": meta.resource_version,
        "ownerReferences": owners,
    }})
}

/// Kinds that are stored objects, not Events, and not watched by another informer.
fn has_owners(served: &Served) -> bool {
    let typed = [
        BUDGETS,
        PODS,
        NODES,
        DEPLOYMENTS,
        REPLICA_SETS,
        SERVICES,
        ENDPOINT_SLICES,
        ENDPOINTS,
        SERVICE_ACCOUNTS,
        NAMESPACES,
        LEASES,
    ];
    served.plural != "events"
        && served.can(&["list", "watch", "delete"])
        && !typed
            .iter()
            .any(|t| t.api_version == served.api_version && t.plural == served.plural)
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Delete(uid) => write!(f, "delete {uid}"),
            Self::Orphan(uid) => write!(f, "orphan {uid}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(uid: &str, kind: Owner) -> (OwnerReference, Owner) {
        let reference = OwnerReference {
            uid: uid.to_owned(),
            ..OwnerReference::default()
        };
        (reference, kind)
    }

    fn meta(owners: &[(OwnerReference, Owner)], finalizers: &[&str]) -> Meta {
        Meta {
            owner_references: owners.iter().map(|(r, _)| r.clone()).collect(),
            finalizers: finalizers.iter().map(|f| (*f).to_owned()).collect(),
            ..Meta::default()
        }
    }

    #[test]
    fn one_solid_owner_is_enough_to_stay() {
        let owners = [owner("a", Owner::Dangling), owner("b", Owner::Solid)];
        let actions = plan(&meta(&owners, &[]), &owners, true, false);
        let [Action::Unlink(kept)] = actions.as_slice() else {
            panic!("unlink: {actions:?}");
        };
        assert_eq!(kept[0].uid, "b");
        let solid = [owner("b", Owner::Solid)];
        assert!(plan(&meta(&solid, &[]), &solid, true, false).is_empty());
        assert!(plan(&meta(&[], &[]), &[], true, false).is_empty());
    }

    #[test]
    fn what_nobody_owns_goes_as_its_finalizers_say() {
        let owners = [owner("a", Owner::Dangling)];
        let go = |finalizers: &[&str]| plan(&meta(&owners, finalizers), &owners, false, false);
        assert_eq!(go(&[]), vec![Action::Delete(Propagation::Background)]);
        assert_eq!(go(&[ORPHAN]), vec![Action::Delete(Propagation::Orphan)]);
        assert_eq!(
            go(&[FOREGROUND]),
            vec![Action::Delete(Propagation::Foreground)]
        );
    }

    #[test]
    fn foreground_goes_on_downwards_and_circles_do_not_block() {
        let owners = [owner("a", Owner::Waiting)];
        let actions = plan(&meta(&owners, &[]), &owners, true, true);
        assert_eq!(
            actions,
            vec![Action::Unblock, Action::Delete(Propagation::Foreground)]
        );
        let leaf = plan(&meta(&owners, &[]), &owners, false, false);
        assert_eq!(leaf, vec![Action::Delete(Propagation::Background)]);
    }
}
