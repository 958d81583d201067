//! Create and update: the order of one write, and its retries.

use std::borrow::Cow;
use std::sync::Arc;

use serde_json::{Value, json};

use super::{ATTEMPTS, Change, Outcome, Registry, encode, system};
use crate::admission::{self, Attributes};
use crate::auth;
use crate::codec;
use crate::kinds::metadata;
use crate::kinds::strategy::Door;
use crate::object::Object;
use crate::patch;
use crate::patch::apply::{Manager, own};
use crate::request::ResourcePath;
use crate::status::{Cause, Error};
use crate::store::{self, Expect, Operation, Stored};

/// How often a generated name may collide.
const NAME_ATTEMPTS: usize = 8;

/// What a write has become, ready for the store.
struct Ready<'o> {
    object: Cow<'o, Object>,
    /// Committed together with the object.
    allocations: Vec<Operation>,
}

impl Registry<'_> {
    /// Stores a new object. `name` is that of the URL, where there is one.
    pub async fn create(&mut self, change: Change, name: Option<&str>) -> Result<Outcome, Error> {
        let Change { mut new, owned } = change;
        self.place(&mut new, name)?;
        if !new.resource_version().is_empty() {
            return Err(Error::bad_request(
                "resourceVersion should not be set on objects to be created",
            ));
        }
        system::identify(&mut new, self.now);
        self.shape(&mut new, None, owned, "create")?;
        let strategy = self.kind.strategy;
        if self.kind.has_status() && !strategy.keeps_status() {
            new.remove(&["status"]);
        }
        new.remove(&["metadata", "generation"]);
        strategy.prepare(&mut new, None, self.door);
        if strategy.has_generation() {
            new.set(&["metadata", "generation"], json!(1));
        }
        self.complete(&mut new);
        let base = new
            .str_at(&["metadata", "generateName"])
            .unwrap_or_default()
            .to_owned();
        if !new.name().is_empty() || base.is_empty() {
            return self.insert(&new, false).await;
        }
        for _ in 0..NAME_ATTEMPTS {
            let name = system::generate_name(&base);
            new.set(&["metadata", "name"], json!(name));
            // A default may be made of the name.
            strategy.default(&mut new);
            match self.insert(&new, true).await {
                Err(error) if error.reason == crate::status::Reason::AlreadyExists => {}
                done => return done,
            }
        }
        let (group, plural) = (&self.kind.group, &self.kind.plural);
        Err(Error::generate_name_exhausted(group, plural, &base))
    }

    /// Validates, allocates, commits; races for an allocation are run again.
    async fn insert(&mut self, new: &Object, generated: bool) -> Result<Outcome, Error> {
        let name = new.name().to_owned();
        let exists = || Error::already_exists(&self.kind.group, &self.kind.plural, &name);
        patch::check_depth(new.value())?;
        let mut causes = metadata::validate(self.kind, new);
        if !self.trusted {
            causes.extend(self.kind.strategy.validate(new, None, self.door));
        }
        self.refuse(&name, causes)?;
        let verb = "create";
        admission::validate(&self.attributes(verb, &name, None), new, &self.lookups())?;
        if !generated && self.find(&name).is_ok() {
            return Err(exists());
        }
        self.warn(new, None);
        for _ in 0..ATTEMPTS {
            let ready = self.allocate(new, None)?;
            if self.dry_run {
                return Ok(Outcome {
                    bytes: encode::finished(&ready.object),
                    created: true,
                    deleted: false,
                });
            }
            match self.commit(&name, Expect::Absent, ready).await {
                Ok(stored) => return self.outcome(&stored, true),
                Err(store::Error::Conflict { operation: 0, .. }) => return Err(exists()),
                Err(store::Error::Conflict { .. }) => {}
                Err(other) => return Err(other.into()),
            }
        }
        Err(Error::too_many_requests(
            format!(
                "cannot allocate for {} {name:?}: too many others try",
                self.kind.plural
            ),
            1,
        ))
    }

    /// Changes an object. `transform` makes the new object of the current one, or of nothing where `create` allows
    /// that; it runs again whenever another write came first.
    pub async fn update(
        &mut self,
        name: &str,
        verb: &str,
        create: bool,
        transform: &mut (dyn FnMut(Option<&Object>) -> Result<Change, Error> + Send),
    ) -> Result<Outcome, Error> {
        for _ in 0..ATTEMPTS {
            let Ok(stored) = self.find(name) else {
                if !create {
                    return Err(self.not_found(name));
                }
                self.may_create(name)?;
                let mut change = transform(None)?;
                // The revision of an object that is gone says nothing about the new one.
                change.new.remove(&["metadata", "resourceVersion"]);
                match self.create(change, Some(name)).await {
                    Err(error)
                        if error.reason == crate::status::Reason::AlreadyExists
                            && self.find(name).is_ok() => {}
                    done => return done,
                }
                continue;
            };
            if let Some(outcome) = self.replace(&stored, name, verb, transform).await? {
                return Ok(outcome);
            }
        }
        Err(self.modified(name))
    }

    /// Who may change may not make: an update that creates is asked about both.
    fn may_create(&self, name: &str) -> Result<(), Error> {
        if self.trusted {
            return Ok(());
        }
        let path = ResourcePath {
            namespace: self.namespace.to_owned(),
            group: self.kind.group.to_string(),
            version: self.kind.version.to_string(),
            resource: self.kind.plural.to_string(),
            name: name.to_owned(),
            ..ResourcePath::default()
        };
        let asked = auth::Attributes::Resource {
            verb: "create",
            path: &path,
        };
        self.api.access.authorise_attributes(self.user, &asked)
    }

    /// One attempt; `None` when another write came first.
    async fn replace(
        &mut self,
        stored: &Arc<Stored>,
        name: &str,
        verb: &str,
        transform: &mut (dyn FnMut(Option<&Object>) -> Result<Change, Error> + Send),
    ) -> Result<Option<Outcome>, Error> {
        let old = self.read(stored)?;
        let Change { mut new, owned } = transform(Some(&old))?;
        self.warnings.clear();
        self.place(&mut new, Some(name))?;
        self.check_identity(&new, &old, name)?;
        system::inherit(&mut new, &old);
        new.set(
            &["metadata", "resourceVersion"],
            json!(old.resource_version()),
        );
        self.close_other_doors(&mut new, &old);
        self.shape(&mut new, Some(&old), owned, verb)?;
        self.kind.strategy.prepare(&mut new, Some(&old), self.door);
        // A binding assigns what the spec left open; it does not change what was wished for.
        let specifies = self.door != Door::Subresource("binding");
        if specifies && self.kind.strategy.has_generation() && system::spec_changed(&new, &old) {
            let next = old.generation() + 1;
            new.set(&["metadata", "generation"], json!(next));
        }
        self.complete(&mut new);
        if system::same_but_for_times(&new, &old) {
            let finished = new.is_deleting() && self.is_released(&mut new);
            if !finished {
                return self.outcome(stored, false).map(Some);
            }
        }
        patch::check_depth(new.value())?;
        let mut causes = metadata::validate_update(&new, &old);
        if !self.trusted {
            causes.extend(self.kind.strategy.validate(&new, Some(&old), self.door));
        }
        self.refuse(name, causes)?;
        let attributes = self.attributes(verb, name, Some(&old));
        admission::validate(&attributes, &new, &self.lookups())?;
        self.warn(&new, Some(&old));
        if new.is_deleting() && self.is_released(&mut new) {
            return self.vanish(stored, &new).await;
        }
        let ready = self.allocate(&new, Some(&old))?;
        if self.dry_run {
            return Ok(Some(Outcome {
                bytes: encode::finished(&ready.object),
                created: false,
                deleted: false,
            }));
        }
        match self.commit(name, Expect::At(stored.revision), ready).await {
            Ok(stored) => self.outcome(&stored, false).map(Some),
            Err(store::Error::Conflict { .. }) => Ok(None),
            Err(other) => Err(other.into()),
        }
    }

    /// Names and namespace of the URL are authoritative; a body that says otherwise is refused.
    pub fn place(&self, new: &mut Object, name: Option<&str>) -> Result<(), Error> {
        if let Some(name) = name {
            if new.name().is_empty() {
                new.set(&["metadata", "name"], json!(name));
            } else if new.name() != name {
                return Err(Error::bad_request(format!(
                    "the name of the object ({}) does not match the name on the URL ({name})",
                    new.name()
                )));
            }
        }
        if self.kind.is_namespaced() {
            if new.namespace().is_empty() {
                new.set(&["metadata", "namespace"], json!(self.namespace));
            } else if new.namespace() != self.namespace {
                return Err(Error::bad_request(
                    "the namespace of the provided object does not match the namespace sent on the request",
                ));
            }
        }
        if !new.at(&["metadata"]).is_some_and(Value::is_object) {
            new.set(&["metadata"], json!({}));
        }
        new.set(&["apiVersion"], json!(self.kind.api_version()));
        new.set(&["kind"], json!(self.kind.kind));
        Ok(())
    }

    /// The body's revision and uid are preconditions.
    fn check_identity(&self, new: &Object, old: &Object, name: &str) -> Result<(), Error> {
        let uid = new.uid();
        if !uid.is_empty() && uid != old.uid() {
            let path = [&*self.kind.storage, self.namespace, name];
            let path: Vec<&str> = path.into_iter().filter(|part| !part.is_empty()).collect();
            let why = format!(
                "StorageError: invalid object, Code: 4, Key: /registry/{}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                path.join("/"),
                old.uid()
            );
            return Err(Error::conflict(
                &self.kind.group,
                &self.kind.plural,
                name,
                &why,
            ));
        }
        let revision = new.resource_version();
        if revision.is_empty() || revision == "0" {
            if self.kind.strategy.unconditional_update() {
                return Ok(());
            }
            let cause = Cause::invalid(
                "metadata.resourceVersion",
                &Value::from(0),
                "must be specified for an update",
            );
            return self.refuse(name, vec![cause]);
        }
        if revision == old.resource_version() {
            Ok(())
        } else {
            Err(self.modified(name))
        }
    }

    /// Status is written through its own door, everything else through the main one. What other doors let through is
    /// the strategy's to say (`prepare`).
    fn close_other_doors(&self, new: &mut Object, old: &Object) {
        match self.door {
            Door::Main if self.kind.has_status() => system::keep(new, old, &["status"]),
            Door::Subresource("status") => {
                let status = new.remove(&["status"]);
                let metadata = [
                    new.remove(&["metadata", "labels"]),
                    new.remove(&["metadata", "annotations"]),
                    new.remove(&["metadata", "managedFields"]),
                ];
                let mut kept = old.clone();
                for (key, value) in ["labels", "annotations", "managedFields"]
                    .iter()
                    .zip(metadata)
                {
                    match value {
                        Some(value) => kept.set(&["metadata", key], value),
                        None => {
                            kept.remove(&["metadata", key]);
                        }
                    }
                }
                match status {
                    Some(status) => kept.set(&["status"], status),
                    None => {
                        kept.remove(&["status"]);
                    }
                }
                *new = kept;
            }
            _ => {}
        }
    }

    /// Default, own, mutate, default again.
    ///
    /// What built-in admission changes is owned by nobody, as upstream.
    fn shape(
        &mut self,
        new: &mut Object,
        old: Option<&Object>,
        owned: bool,
        verb: &str,
    ) -> Result<(), Error> {
        self.kind.strategy.default(new);
        self.complete(new);
        if !owned {
            self.own(old, new);
        }
        let name = new.name().to_owned();
        admission::mutate(&self.attributes(verb, &name, old), new, &self.lookups())?;
        self.kind.strategy.default(new);
        Ok(())
    }

    fn own(&self, old: Option<&Object>, new: &mut Object) {
        if self.manager.is_empty() {
            return;
        }
        if let Some(ty) = self.api.schema.named(&self.kind.definition) {
            let manager = self.field_manager(true);
            own(self.api.schema, ty, old, new, manager, self.reset());
        }
    }

    /// This write's manager, for ownership.
    pub fn field_manager(&self, force: bool) -> Manager<'_> {
        Manager {
            name: self.manager,
            subresource: match self.door {
                Door::Main => "",
                Door::Subresource(name) => name,
            },
            force,
            now: self.now,
        }
    }

    /// What this door does not write, and so does not own.
    pub fn reset(&self) -> &'static [&'static [&'static str]] {
        match self.door {
            Door::Main if self.kind.has_status() => &[&["status"]],
            Door::Subresource("status") => &[&["spec"]],
            _ => &[],
        }
    }

    /// What Go always writes, such as `resources: {}`.
    fn complete(&self, new: &mut Object) {
        if let Some(ty) = self.api.schema.named(&self.kind.definition) {
            let mut value = Value::Object(std::mem::take(new.map_mut()));
            codec::complete(self.api.schema, ty, &mut value);
            if let Value::Object(map) = value {
                *new.map_mut() = map;
            }
        }
    }

    fn attributes<'b>(
        &'b self,
        verb: &'b str,
        name: &'b str,
        old: Option<&'b Object>,
    ) -> Attributes<'b> {
        Attributes {
            kind: self.kind,
            door: self.door,
            verb,
            namespace: self.namespace,
            name,
            user: self.user,
            access: &self.api.access,
            old,
            dry_run: self.dry_run,
            tolerations: self.api.settings.tolerations,
        }
    }

    /// Asks admission about the body of a subresource that is not stored.
    pub fn admit(&self, verb: &str, name: &str, body: &Object) -> Result<(), Error> {
        admission::validate(&self.attributes(verb, name, None), body, &self.lookups())
    }

    /// Asks admission whether this object may be deleted.
    pub(crate) fn admit_deletion(&self, name: &str, old: &Object) -> Result<(), Error> {
        admission::delete(&self.attributes("delete", name, Some(old)))
    }

    fn refuse(&self, name: &str, causes: Vec<Cause>) -> Result<(), Error> {
        if causes.is_empty() {
            return Ok(());
        }
        Err(Error::invalid(
            &self.kind.group,
            &self.kind.kind,
            name,
            causes,
        ))
    }

    fn warn(&mut self, new: &Object, old: Option<&Object>) {
        let strategy = self.kind.strategy;
        self.warnings.extend(strategy.warnings(new, old));
        if let Some(text) = self.kind.warning
            && self.door == Door::Main
        {
            self.warnings.push(text.to_owned());
        }
    }

    /// Chooses what only the cluster can choose; `new` stays as it is, so that a lost race can be run again.
    fn allocate<'o>(&self, new: &'o Object, old: Option<&Object>) -> Result<Ready<'o>, Error> {
        let strategy = self.kind.strategy;
        if !strategy.allocates() {
            return Ok(Ready {
                object: Cow::Borrowed(new),
                allocations: Vec::new(),
            });
        }
        let mut object = new.clone();
        let allocations = strategy.allocate(&mut object, old, &self.lookups())?;
        Ok(Ready {
            object: Cow::Owned(object),
            allocations,
        })
    }

    async fn commit(
        &self,
        name: &str,
        expect: Expect,
        ready: Ready<'_>,
    ) -> Result<Arc<Stored>, store::Error> {
        let (object, index) = self.stored_form(&ready.object);
        let mut operations = Vec::with_capacity(1 + ready.allocations.len());
        operations.push(Operation {
            key: self.key(name),
            expect,
            change: store::Change::Put(encode::draft(&object, index)),
        });
        operations.extend(ready.allocations);
        let stored = self.api.store.commit(operations).await?;
        stored
            .into_iter()
            .next()
            .ok_or_else(|| store::Error::Unavailable("a commit answered nothing".to_owned()))
    }
}
