//! Namespaces that go away: deletes their content, pods first, says what remains, and lets go when nothing does.
//!
//! Owns the conditions of terminating namespaces and the finalizer `kubernetes`. Never touches other namespaces.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::NamespaceCondition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use types::condition;

use super::Shared;
use crate::clock;
use crate::discovery::Served;
use crate::objects::{Key, Metadata, NAMESPACES, Namespace, collection_url};
use crate::reconcile::{Outcome, Queue};
use crate::write::{Error, Target, Writer, gone_is_fine};

const FINALIZER: &str = "kubernetes";
/// Content with finalizers of others is looked at again this often.
const RECHECK: Duration = Duration::from_millis(200);
/// Pods announce their end, so this is only a safety net.
const RECHECK_PODS: Duration = Duration::from_secs(5);

/// What was found in the namespace after everything was told to go.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Resource, as `deployments.apps`, → objects left.
    pub remaining: BTreeMap<String, usize>,
    /// Finalizer → objects that carry it.
    pub finalizers: BTreeMap<String, usize>,
    /// What could not be deleted or listed.
    pub failures: Vec<String>,
    /// Why the server could not say what it serves.
    pub discovery: Option<String>,
    /// Only pods were looked at so far.
    pub pods_only: bool,
}

#[derive(Debug, PartialEq)]
pub enum Action {
    PatchStatus(Value),
    Finalize,
    LookAgain(Duration),
}

/// What to say and do about one terminating namespace.
pub fn plan(namespace: &Namespace, observed: &Observed, now: Timestamp) -> Vec<Action> {
    let mut actions = Vec::new();
    let old = namespace.status.conditions.clone().unwrap_or_default();
    let mut list = old.clone();
    for new in conditions(observed, now) {
        let same = list
            .iter()
            .any(|c| c.type_ == new.type_ && c.status == new.status && c.message == new.message);
        if !same {
            condition::set(&mut list, new);
        }
    }
    if list != old {
        actions.push(Action::PatchStatus(json!({"status": {"conditions": list}})));
    }
    let clean = observed.failures.is_empty() && observed.discovery.is_none();
    if clean && observed.remaining.is_empty() && !observed.pods_only {
        actions.push(Action::Finalize);
    } else if observed.pods_only {
        actions.push(Action::LookAgain(RECHECK_PODS));
    } else {
        actions.push(Action::LookAgain(RECHECK));
    }
    actions
}

fn conditions(observed: &Observed, now: Timestamp) -> Vec<NamespaceCondition> {
    let list = |counts: &BTreeMap<String, usize>, verb: &str| {
        let parts: Vec<String> = counts
            .iter()
            .map(|(what, count)| format!("{what} {verb} {count} resource instances"))
            .collect();
        parts.join(", ")
    };
    let discovery = observed
        .discovery
        .as_ref()
        .map(|e| format!("Discovery failed for some groups: {e}"));
    let failures = (!observed.failures.is_empty()).then(|| {
        format!(
            "Failed to delete all resource types, {} remaining: {}",
            observed.failures.len(),
            observed.failures.join(", ")
        )
    });
    let remaining = (!observed.remaining.is_empty()).then(|| {
        format!(
            "Some resources are remaining: {}",
            list(&observed.remaining, "has")
        )
    });
    let finalizers = (!observed.finalizers.is_empty()).then(|| {
        format!(
            "Some content in the namespace has finalizers remaining: {}",
            list(&observed.finalizers, "in")
        )
    });
    [
        (
            "NamespaceDeletionDiscoveryFailure",
            ("DiscoveryFailed", discovery),
            (
                "ResourcesDiscovered",
                "All resources successfully discovered",
            ),
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            ("GroupVersionParsingFailed", None),
            (
                "ParsedGroupVersions",
                "All legacy kube types successfully parsed",
            ),
        ),
        (
            "NamespaceDeletionContentFailure",
            ("ContentDeletionFailed", failures),
            (
                "ContentDeleted",
                "All content successfully deleted, may be waiting on finalization",
            ),
        ),
        (
            "NamespaceContentRemaining",
            ("SomeResourcesRemain", remaining),
            ("ContentRemoved", "All content successfully removed"),
        ),
        (
            "NamespaceFinalizersRemaining",
            ("SomeFinalizersRemain", finalizers),
            (
                "ContentHasNoFinalizers",
                "All content-preserving finalizers finished",
            ),
        ),
    ]
    .into_iter()
    .map(|(type_, (bad, message), (good, fine))| NamespaceCondition {
        type_: type_.to_owned(),
        status: if message.is_some() { "True" } else { "False" }.to_owned(),
        reason: Some(if message.is_some() { bad } else { good }.to_owned()),
        message: Some(message.unwrap_or_else(|| fine.to_owned())),
        last_transition_time: Some(Time(now)),
    })
    .collect()
}

pub struct Controller {
    shared: Arc<Shared>,
    writer: Writer,
    /// Keys are namespaces.
    pub queue: Arc<Queue<Key>>,
}

#[derive(serde::Deserialize)]
struct Listed {
    #[serde(default = "Vec::new")]
    items: Vec<Metadata>,
}

// === impl Controller ===

impl Controller {
    pub fn new(shared: &Arc<Shared>) -> Arc<Self> {
        let queue = Queue::new("namespace", Duration::from_millis(50));
        let waker = Arc::clone(&queue);
        shared.informers.namespaces.on_change(move |change| {
            if let Some(namespace) = change.new
                && namespace.metadata.is_deleting()
            {
                waker.add(namespace.metadata.key());
            }
        });
        let waker = Arc::clone(&queue);
        let namespaces = Arc::downgrade(&shared.informers.namespaces);
        shared.informers.pods.on_change(move |change| {
            if let (Some(pod), None) = (change.old, change.new)
                && let Some(namespaces) = namespaces.upgrade()
            {
                let key = Key::new("", &pod.metadata.namespace);
                if namespaces
                    .get(&key)
                    .is_some_and(|n| n.metadata.is_deleting())
                {
                    waker.add(key);
                }
            }
        });
        Arc::new(Self {
            shared: Arc::clone(shared),
            writer: shared.writer("namespace-controller"),
            queue,
        })
    }

    /// One pass over one namespace.
    pub async fn pass(&self, key: Key) -> Result<Outcome, Error> {
        let Some(namespace) = self.shared.informers.namespaces.get(&key) else {
            return Ok(Outcome::Done);
        };
        let held = namespace
            .spec
            .finalizers
            .iter()
            .flatten()
            .any(|f| f == FINALIZER);
        if !namespace.metadata.is_deleting() || !held {
            return Ok(Outcome::Done);
        }
        let observed = self.empty(&key.name).await;
        let actions = plan(&namespace, &observed, clock::now());
        let target = Target::of(NAMESPACES, &namespace.metadata);
        let mut outcome = Outcome::Done;
        for action in actions {
            match action {
                Action::PatchStatus(patch) => {
                    gone_is_fine(self.writer.patch_status(&target, &patch).await)?;
                }
                Action::Finalize => self.finalize(&target).await?,
                Action::LookAgain(delay) => outcome = Outcome::Again(delay),
            }
        }
        Ok(outcome)
    }

    /// Tells everything to go and counts what is still there.
    async fn empty(&self, namespace: &str) -> Observed {
        let mut observed = Observed::default();
        let served = match self.shared.catalog.refresh(&self.writer).await {
            Ok(served) => served,
            Err(error) => {
                observed.discovery = Some(error.user_message());
                self.shared.catalog.known()
            }
        };
        let deletable = |s: &&Served| s.namespaced && s.can(&["list", "delete"]);
        // Pods first: while they end they may still need what is around them.
        let (pods, others): (Vec<&Served>, Vec<&Served>) = served
            .iter()
            .filter(deletable)
            .partition(|s| s.plural == "pods" && s.api_version == "v1");
        for served in pods {
            self.clear(served, namespace, &mut observed).await;
        }
        if !observed.remaining.is_empty() || !observed.failures.is_empty() {
            observed.pods_only = true;
            return observed;
        }
        for served in others {
            self.clear(served, namespace, &mut observed).await;
        }
        observed
    }

    async fn clear(&self, served: &Served, namespace: &str, observed: &mut Observed) {
        if let Err(error) = self.try_clear(served, namespace, observed).await {
            observed
                .failures
                .push(format!("{}: {}", served.dotted(), error.user_message()));
        }
    }

    async fn try_clear(
        &self,
        served: &Served,
        namespace: &str,
        observed: &mut Observed,
    ) -> Result<(), Error> {
        let url = collection_url(&served.api_version, &served.plural, namespace);
        let listed: Listed = match self.writer.get(url.clone()).await {
            Ok(listed) => listed,
            // Not served (any more): there is nothing.
            Err(error) if matches!(error.code(), Some(404 | 405)) => return Ok(()),
            Err(error) => return Err(error),
        };
        if listed.items.is_empty() {
            return Ok(());
        }
        if served.can(&["deletecollection"]) {
            self.writer
                .delete_collection(&served.api_version, &served.plural, namespace)
                .await?;
        } else {
            for item in &listed.items {
                let target = Target {
                    api_version: served.api_version.clone(),
                    plural: served.plural.clone(),
                    namespace: namespace.to_owned(),
                    name: item.metadata.name.clone(),
                };
                gone_is_fine(self.writer.delete(&target, Default::default()).await)?;
            }
        }
        let left: Listed = self.writer.get(url).await?;
        if !left.items.is_empty() {
            observed.remaining.insert(served.dotted(), left.items.len());
        }
        for finalizer in left.items.iter().flat_map(|i| &i.metadata.finalizers) {
            *observed.finalizers.entry(finalizer.clone()).or_default() += 1;
        }
        Ok(())
    }

    async fn finalize(&self, target: &Target) -> Result<(), Error> {
        let mut namespace: Value = match self.writer.get(target.url()).await {
            Ok(namespace) => namespace,
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) => return Err(error),
        };
        if let Some(Value::Array(finalizers)) = namespace.pointer_mut("/spec/finalizers") {
            finalizers.retain(|f| f != FINALIZER);
        }
        gone_is_fine(
            self.writer
                .replace_subresource(target, "finalize", &namespace)
                .await,
        )
        .map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_remains_is_named_and_holds_the_namespace() {
        let now = Timestamp::from_second(1).expect("a time");
        let observed = Observed {
            remaining: BTreeMap::from([("pods.".to_owned(), 2)]),
            pods_only: true,
            ..Observed::default()
        };
        let actions = plan(&Namespace::default(), &observed, now);
        let Action::PatchStatus(patch) = &actions[0] else {
            panic!("conditions first: {actions:?}");
        };
        let remaining = &patch["status"]["conditions"][3];
        assert_eq!(remaining["type"], "NamespaceContentRemaining");
        assert_eq!(
            remaining["message"],
            "Some resources are remaining: pods. has 2 resource instances"
        );
        assert!(!actions.contains(&Action::Finalize));
    }

    #[test]
    fn an_empty_namespace_is_let_go() {
        let now = Timestamp::from_second(1).expect("a time");
        let actions = plan(&Namespace::default(), &Observed::default(), now);
        assert_eq!(actions.last(), Some(&Action::Finalize));
    }
}
