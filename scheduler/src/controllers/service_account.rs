//! Keeps the ServiceAccount `default` in every namespace that is not going away. Never touches others.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::Shared;
use crate::objects::{Key, Namespace, SERVICE_ACCOUNTS};
use crate::reconcile::{Outcome, Queue};
use crate::write::{Error, Writer};

const DEFAULT: &str = "default";

#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    Create,
}

/// What to do for one namespace.
pub fn plan(namespace: &Namespace, has_default: bool) -> Vec<Action> {
    let leaving = namespace.metadata.is_deleting()
        || namespace.status.phase.as_deref() == Some("Terminating");
    if leaving || has_default {
        return Vec::new();
    }
    vec![Action::Create]
}

pub struct Controller {
    shared: Arc<Shared>,
    writer: Writer,
    /// Keys are namespaces.
    pub queue: Arc<Queue<Key>>,
}

// === impl Controller ===

impl Controller {
    pub fn new(shared: &Arc<Shared>) -> Arc<Self> {
        let queue = Queue::new("serviceaccount", Duration::ZERO);
        let waker = Arc::clone(&queue);
        shared.informers.namespaces.on_change(move |change| {
            if let Some(namespace) = change.new {
                waker.add(namespace.metadata.key());
            }
        });
        let waker = Arc::clone(&queue);
        shared.informers.service_accounts.on_change(move |change| {
            if let (Some(account), None) = (change.old, change.new)
                && account.metadata.name == DEFAULT
            {
                waker.add(Key::new("", &account.metadata.namespace));
            }
        });
        Arc::new(Self {
            shared: Arc::clone(shared),
            writer: shared.writer("service-account-controller"),
            queue,
        })
    }

    pub async fn pass(&self, key: Key) -> Result<Outcome, Error> {
        let informers = &self.shared.informers;
        let Some(namespace) = informers.namespaces.get(&key) else {
            return Ok(Outcome::Done);
        };
        let account = informers
            .service_accounts
            .get(&Key::new(&key.name, DEFAULT));
        for Action::Create in plan(&namespace, account.is_some()) {
            let body = json!({
                "apiVersion": SERVICE_ACCOUNTS.api_version,
                "kind": SERVICE_ACCOUNTS.kind,
                "metadata": {"name": DEFAULT, "namespace": key.name},
            });
            match self.writer.create(SERVICE_ACCOUNTS, &key.name, &body).await {
                Ok(_) => {}
                Err(error) if error.is_already_exists() || error.is_namespace_terminating() => {}
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Outcome::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_that_goes_away_gets_none() {
        let mut namespace = Namespace::default();
        assert_eq!(plan(&namespace, false), vec![Action::Create]);
        assert!(plan(&namespace, true).is_empty());
        namespace.status.phase = Some("Terminating".to_owned());
        assert!(plan(&namespace, false).is_empty());
    }
}
