//! The bootstrap roles and bindings, and the roles that gather others' rules: put in place at start, the latter kept while
//! the server runs. What they are is `auth::bootstrap`'s to say.

use std::sync::Arc;

use serde_json::Value;
use types::error::chain;

use super::{RETRY, registry, user};
use crate::auth::bootstrap::{self, Role, Wanted};
use crate::auth::rbac::{CLUSTER_ROLES, GROUP};
use crate::handlers::Api;
use crate::kinds::Kind;
use crate::object::Object;
use crate::registry::Change;
use crate::status::{Error, Reason};

/// One round does it, unless others write at the same time.
const ROUNDS: usize = 16;

pub(super) async fn place(api: &Api) -> Result<(), Error> {
    let wanted = bootstrap::objects();
    // Together, so that they share the store's flushes.
    futures::future::try_join_all(wanted.iter().map(|wanted| ensure(api, wanted))).await?;
    aggregate(api).await
}

fn kind<'a>(api: &'a Api, plural: &str) -> Result<&'a Kind, Error> {
    let kind = api.kinds.find(GROUP, "v1", plural);
    kind.ok_or_else(|| Error::internal(format!("there is no kind {plural} to begin with")))
}

async fn ensure(api: &Api, wanted: &Wanted) -> Result<(), Error> {
    let user = user();
    let mut registry = registry(api, kind(api, wanted.plural)?, &wanted.namespace, &user);
    let new = Object::new(wanted.value.clone())
        .map_err(|_| Error::internal("a bootstrap role must be an object"))?;
    let mut transform = |old: Option<&Object>| {
        let new = match old {
            Some(old) if old.at(&["roleRef"]) != new.at(&["roleRef"]) => {
                let name = &wanted.name;
                tracing::warn!(binding = %name, "A bootstrap binding leads to another role; it is left so");
                old.clone()
            }
            Some(old) => bootstrap::reconciled(old, &wanted.value),
            None => new.clone(),
        };
        Ok(Change { new, owned: false })
    };
    match registry
        .update(&wanted.name, "update", true, &mut transform)
        .await
    {
        // Another server was quicker; it wanted the same.
        Err(error) if error.reason == Reason::AlreadyExists => Ok(()),
        done => done.map(|_| ()),
    }
}

/// Gives every role with an `aggregationRule` its rules.
async fn aggregate(api: &Api) -> Result<(), Error> {
    let user = user();
    let mut registry = registry(api, kind(api, "clusterroles")?, "", &user);
    for _ in 0..ROUNDS {
        let snapshot = api.cache.snapshot(CLUSTER_ROLES);
        let parsed: Vec<(Arc<str>, Value)> = snapshot
            .iter()
            .map(|stored| {
                let value = serde_json::from_slice(&stored.bytes).unwrap_or_default();
                (Arc::clone(&stored.key.name), value)
            })
            .collect();
        let all: Vec<Role<'_>> = parsed
            .iter()
            .map(|(name, value)| Role { name, value })
            .collect();
        let mut changed = false;
        for role in &all {
            let Some(rules) = bootstrap::aggregated(role.value, &all) else {
                continue;
            };
            if role.value["rules"]
                .as_array()
                .map_or(&[][..], Vec::as_slice)
                == rules
            {
                continue;
            }
            changed = true;
            let mut transform = |old: Option<&Object>| {
                let Some(old) = old else {
                    return Err(Error::not_found(GROUP, "clusterroles", role.name));
                };
                let mut new = old.clone();
                new.set(&["rules"], rules.clone().into());
                Ok(Change { new, owned: false })
            };
            match registry
                .update(role.name, "update", false, &mut transform)
                .await
            {
                // Deleted in between, or written by another server: the next round looks again.
                Err(error) if matches!(error.reason, Reason::NotFound | Reason::Conflict) => {}
                done => done.map(|_| ())?,
            }
        }
        if !changed {
            return Ok(());
        }
    }
    Ok(())
}

/// Keeps gathered roles as their parts change, until the server stops.
pub(crate) async fn keep_aggregated(api: Arc<Api>) {
    loop {
        let round = watch(&api);
        tokio::select! {
            biased;
            () = api.stopping.cancelled() => return,
            result = round => if let Err(error) = result {
                tracing::warn!(error = %chain(&error), "Could not gather the rules of aggregated roles");
            }
        }
        tokio::select! {
            biased;
            () = api.stopping.cancelled() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

async fn watch(api: &Api) -> Result<(), Error> {
    let mut changes = api.cache.watch(CLUSTER_ROLES, api.cache.revision())?;
    aggregate(api).await?;
    while changes.next().await.is_some() {
        while changes.try_next().is_some() {}
        aggregate(api).await?;
    }
    Ok(())
}
