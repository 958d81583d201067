//! Deletion: preconditions, grace, finalizers by propagation policy, and the end.
//!
//! ```text
//!            ┌ grace > 0 or finalizers ─► marked (deletionTimestamp), still there ─► last finalizer gone ─┐
//! DELETE ────┤                                                                                            ├─► gone
//!            └ neither ───────────────────────────────────────────────────────────────────────────────────┘
//! ```

use std::sync::Arc;

use jiff::SignedDuration;
use serde_json::{Value, json};

use super::{ATTEMPTS, Outcome, Registry, encode, system};
use crate::object::Object;
use crate::request::{Query, query};
use crate::status::{Cause, Error};
use crate::store::{self, Expect, Operation, Stored};

/// `metav1.DeleteOptions`, from body or query.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct DeleteOptions {
    pub grace_seconds: Option<i64>,
    pub propagation: Option<Propagation>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub dry_run: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Propagation {
    Background,
    Foreground,
    Orphan,
}

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

// === impl DeleteOptions ===

impl DeleteOptions {
    /// The query's words, for a DELETE without a body.
    pub fn from_query(query: &Query) -> Result<Self, Error> {
        let mut options = json!({});
        if let Some(grace) = query.integer("gracePeriodSeconds")? {
            options["gracePeriodSeconds"] = json!(grace);
        }
        if let Some(policy) = query.first("propagationPolicy") {
            options["propagationPolicy"] = json!(policy);
        }
        if let Some(orphan) = query.maybe_flag("orphanDependents") {
            options["orphanDependents"] = json!(orphan);
        }
        let dry_run: Vec<&str> = query.all("dryRun").collect();
        options["dryRun"] = json!(dry_run);
        Self::from_value(&options)
    }

    pub fn from_value(options: &Value) -> Result<Self, Error> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let mut causes = Vec::new();
        let empty = Vec::new();
        let dry_run = options["dryRun"].as_array().unwrap_or(&empty);
        let dry_run = query::dry_run(dry_run.iter().filter_map(Value::as_str), &mut causes);
        let orphan = options["orphanDependents"].as_bool();
        let policy = options["propagationPolicy"].as_str();
        let propagation = match policy {
            None => orphan.map(|orphan| match orphan {
                true => Propagation::Orphan,
                false => Propagation::Background,
            }),
            Some("Background") => Some(Propagation::Background),
            Some("Foreground") => Some(Propagation::Foreground),
            Some("Orphan") => Some(Propagation::Orphan),
            Some(other) => {
                let allowed = ["Foreground", "Background", "Orphan", "nil"];
                let cause = Cause::not_supported("propagationPolicy", &json!(other), &allowed);
                causes.push(cause);
                None
            }
        };
        if let (Some(policy), Some(_)) = (policy, orphan) {
            causes.push(Cause::invalid(
                "propagationPolicy",
                &json!(policy),
                "orphanDependents and deletionPropagation cannot be both set",
            ));
        }
        if !causes.is_empty() {
            return Err(Error::invalid("meta.k8s.io", "DeleteOptions", "", causes));
        }
        Ok(Self {
            grace_seconds: options["gracePeriodSeconds"].as_i64(),
            propagation,
            uid: text(&options["preconditions"]["uid"]),
            resource_version: text(&options["preconditions"]["resourceVersion"]),
            dry_run,
        })
    }
}

impl Registry<'_> {
    /// Deletes, or marks as deleting. `Outcome::bytes` is the last state either way.
    pub async fn delete(&mut self, name: &str, options: &DeleteOptions) -> Result<Outcome, Error> {
        for _ in 0..ATTEMPTS {
            let stored = self.find(name)?;
            let old = self.read(&stored)?;
            self.check_preconditions(&old, name, options)?;
            self.admit_deletion(name, &old)?;
            if let Some(outcome) = self.delete_once(&stored, &old, options).await? {
                return Ok(outcome);
            }
        }
        Err(self.modified(name))
    }

    /// One attempt; `None` when another write came first.
    async fn delete_once(
        &mut self,
        stored: &Arc<Stored>,
        old: &Object,
        options: &DeleteOptions,
    ) -> Result<Option<Outcome>, Error> {
        let mut new = old.clone();
        let finalizers = finalizers(
            &new,
            options.propagation,
            self.kind.strategy.orphans_by_default(),
        );
        if finalizers.is_empty() {
            new.remove(&["metadata", "finalizers"]);
        } else {
            new.set(&["metadata", "finalizers"], json!(finalizers));
        }
        match self.plan(&mut new, !finalizers.is_empty(), options.grace_seconds) {
            Plan::Gone => self.vanish(stored, &new).await,
            Plan::Stays if new == *old => self.outcome(stored, false).map(Some),
            Plan::Stays => self.mark(stored, &new).await,
        }
    }

    /// Marks `new` as deleting as far as it has to be, and says whether it stays for now.
    fn plan(&self, new: &mut Object, finalizers: bool, requested: Option<i64>) -> Plan {
        let current = new.i64_at(&["metadata", "deletionGracePeriodSeconds"]);
        let graceful = self.kind.strategy.grace_seconds(new, requested);
        if new.is_deleting() {
            let left = match (current, graceful, requested) {
                // A pending grace period may only become shorter.
                (Some(current), Some(wanted), Some(_)) if wanted < current => {
                    shorten(new, self.now, current, wanted);
                    wanted
                }
                (Some(current), Some(_), _) => current,
                _ => 0,
            };
            let held = self.kind.strategy.hold(new);
            return if left > 0 || finalizers || held {
                Plan::Stays
            } else {
                Plan::Gone
            };
        }
        let mut copy = new.clone();
        let held = self.kind.strategy.hold(&mut copy);
        let grace = graceful.unwrap_or(0);
        if grace == 0 && !finalizers && !held {
            system::mark_deleting(new, self.now, 0);
            return Plan::Gone;
        }
        *new = copy;
        system::mark_deleting(new, self.now, grace);
        if graceful.is_none() && held && !finalizers {
            // What holds itself (a namespace) has no grace period at all.
            new.remove(&["metadata", "deletionGracePeriodSeconds"]);
        }
        Plan::Stays
    }

    async fn mark(&mut self, stored: &Stored, new: &Object) -> Result<Option<Outcome>, Error> {
        if self.dry_run {
            return Ok(Some(Outcome {
                bytes: encode::finished(new),
                created: false,
                deleted: false,
            }));
        }
        let (object, index) = self.stored_form(new);
        let operation = Operation {
            key: stored.key.clone(),
            expect: Expect::At(stored.revision),
            change: store::Change::Put(encode::draft(&object, index)),
        };
        match self.api.store.commit(vec![operation]).await {
            Ok(stored) => match stored.first() {
                Some(stored) => self.outcome(stored, false).map(Some),
                None => Ok(None),
            },
            Err(store::Error::Conflict { .. }) => Ok(None),
            Err(other) => Err(other.into()),
        }
    }

    /// Takes the object out of the store, together with what was allocated for it. `last` is the state watchers see.
    pub(super) async fn vanish(
        &self,
        stored: &Stored,
        last: &Object,
    ) -> Result<Option<Outcome>, Error> {
        if self.dry_run {
            return Ok(Some(Outcome {
                bytes: encode::finished(last),
                created: false,
                deleted: true,
            }));
        }
        let (object, index) = self.stored_form(last);
        let mut operations = vec![Operation {
            key: stored.key.clone(),
            expect: Expect::At(stored.revision),
            change: store::Change::Delete(encode::draft(&object, index)),
        }];
        operations.extend(self.kind.strategy.release(last, &self.lookups()));
        match self.api.store.commit(operations).await {
            Ok(stored) => match stored.first() {
                Some(stored) => {
                    let outcome = self.outcome(stored, false)?;
                    Ok(Some(Outcome {
                        deleted: true,
                        ..outcome
                    }))
                }
                None => Ok(None),
            },
            Err(store::Error::Conflict { .. }) => Ok(None),
            Err(other) => Err(other.into()),
        }
    }

    /// A deleting object that nothing holds any longer: no finalizer, no grace, nothing of its own.
    pub(super) fn is_released(&self, object: &mut Object) -> bool {
        let grace = object.i64_at(&["metadata", "deletionGracePeriodSeconds"]);
        object.finalizers().next().is_none()
            && grace.unwrap_or(0) == 0
            && !self.kind.strategy.hold(object)
    }

    fn check_preconditions(
        &self,
        old: &Object,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<(), Error> {
        let conflict = |why: String| {
            // Upstream names the Kind here, not the plural.
            Err(Error::conflict(
                &self.kind.group,
                &self.kind.kind,
                name,
                &why,
            ))
        };
        if let Some(uid) = &options.uid
            && uid != old.uid()
        {
            return conflict(format!(
                "the UID in the precondition ({uid}) does not match the UID in record ({}). The object might have been deleted and then recreated",
                old.uid()
            ));
        }
        if let Some(revision) = &options.resource_version
            && revision != old.resource_version()
        {
            return conflict(format!(
                "the ResourceVersion in the precondition ({revision}) does not match the ResourceVersion in record ({}). The object might have been modified",
                old.resource_version()
            ));
        }
        Ok(())
    }
}

enum Plan {
    Gone,
    Stays,
}

/// The finalizers after a deletion request: the policy adds its own and takes the other policy's away.
fn finalizers(
    object: &Object,
    policy: Option<Propagation>,
    orphan_by_default: bool,
) -> Vec<String> {
    let mut finalizers: Vec<String> = object.finalizers().map(str::to_owned).collect();
    let has = |name: &str| finalizers.iter().any(|f| f == name);
    let policy = policy.or_else(|| {
        let undecided = !has(ORPHAN) && !has(FOREGROUND);
        (undecided && orphan_by_default).then_some(Propagation::Orphan)
    });
    let (add, remove): (Option<&str>, &[&str]) = match policy {
        None => return finalizers,
        Some(Propagation::Background) => (None, &[ORPHAN, FOREGROUND]),
        Some(Propagation::Foreground) => (Some(FOREGROUND), &[ORPHAN]),
        Some(Propagation::Orphan) => (Some(ORPHAN), &[FOREGROUND]),
    };
    finalizers.retain(|f| !remove.contains(&&**f));
    if let Some(add) = add
        && !finalizers.iter().any(|f| f == add)
    {
        finalizers.push(add.to_owned());
    }
    finalizers
}

/// Moves the end of a pending grace period forward.
fn shorten(object: &mut Object, now: jiff::Timestamp, current: i64, wanted: i64) {
    let end = object
        .str_at(&["metadata", "deletionTimestamp"])
        .and_then(|text| text.parse::<jiff::Timestamp>().ok())
        .unwrap_or(now);
    let moved = end
        .checked_sub(SignedDuration::from_secs(current - wanted))
        .unwrap_or(now);
    object.set(
        &["metadata", "deletionTimestamp"],
        json!(system::time(moved)),
    );
    object.set(&["metadata", "deletionGracePeriodSeconds"], json!(wanted));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(finalizers: &Value) -> Object {
        Object::new(json!({"metadata": {"finalizers": finalizers}})).expect("an object")
    }

    #[test]
    fn a_policy_adds_its_finalizer_and_removes_the_other() {
        let object = with(&json!(["x", "orphan"]));
        let after = |policy, default| finalizers(&object, policy, default);
        assert_eq!(after(Some(Propagation::Background), true), ["x"]);
        assert_eq!(
            after(Some(Propagation::Foreground), false),
            ["x", FOREGROUND]
        );
        assert_eq!(after(Some(Propagation::Orphan), false), ["x", "orphan"]);
        assert_eq!(after(None, true), ["x", "orphan"], "decided before");
        assert_eq!(finalizers(&with(&json!([])), None, true), ["orphan"]);
        assert!(finalizers(&with(&json!([])), None, false).is_empty());
    }

    #[test]
    fn options_are_checked_in_upstream_words() {
        let refuse = |options: &Value| {
            let error = DeleteOptions::from_value(options).expect_err("refused");
            error.message
        };
        assert_eq!(
            refuse(&json!({"propagationPolicy": "Foo"})),
            r#"DeleteOptions.meta.k8s.io "" is invalid: propagationPolicy: Unsupported value: "Foo": supported values: "Foreground", "Background", "Orphan", "nil""#
        );
        assert!(
            refuse(&json!({"propagationPolicy": "Orphan", "orphanDependents": true}))
                .contains("cannot be both set")
        );
    }

    #[test]
    fn a_pending_grace_period_becomes_shorter_from_its_own_start() {
        let mut object = Object::new(json!({"metadata": {
            "deletionTimestamp": "2026-11-23T16:00:30Z", "deletionGracePeriodSeconds": 30}}));
        let object = object.as_mut().expect("an object");
        shorten(object, jiff::Timestamp::UNIX_EPOCH, 30, 5);
        assert_eq!(
            object.str_at(&["metadata", "deletionTimestamp"]),
            Some("2026-11-23T16:00:05Z")
        );
    }
}
