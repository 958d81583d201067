//! Server-side apply and field ownership: who set what, and what that means for the next writer.
//!
//! Follows structured-merge-diff's updater and apiserver's field manager. Pure: the clock is a parameter.
//! Sources: KEP-555; `sigs.k8s.io/structured-merge-diff/merge`; `apimachinery/pkg/util/managedfields`.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::fields::{Fields, Step};
use super::typed;
use crate::object::Object;
use crate::schema::{Schema, TypeId};
use crate::status::{Cause, CauseReason, Error, Reason};

/// Entries of kind `Update` an object may carry; older ones are merged into one.
const MOST_UPDATERS: usize = 10;
const ANCIENT: &str = "ancient-changes";
/// Owns what stood in an object before the first apply, when nobody had tracked it.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Paths nobody owns.
const UNOWNED: &[&[&str]] = &[
    &["apiVersion"],
    &["kind"],
    &["metadata"],
    &["metadata", "name"],
    &["metadata", "namespace"],
    &["metadata", "creationTimestamp"],
    &["metadata", "selfLink"],
    &["metadata", "uid"],
    &["metadata", "generation"],
    &["metadata", "managedFields"],
    &["metadata", "resourceVersion"],
];

/// Who writes, and when.
#[derive(Clone, Copy, Debug)]
pub struct Manager<'a> {
    /// `?fieldManager=`, or the first part of the User-Agent.
    pub name: &'a str,
    /// `status`, `scale` …; empty for the object itself.
    pub subresource: &'a str,
    /// Take over what others own instead of failing. Updates always do.
    pub force: bool,
    pub now: Timestamp,
}

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Operation {
    Apply,
    Update,
}

/// One entry of `metadata.managedFields`.
#[derive(Clone, Debug)]
struct Entry {
    manager: String,
    operation: Operation,
    api_version: String,
    /// RFC 3339, seconds.
    time: String,
    subresource: String,
    fields: Fields,
}

/// Applies `config` (what the manager wants, and all it wants) to `live`. The answer carries the new managedFields.
///
/// Errors: 409 with one `FieldManagerConflict` cause per field that another manager set to something else, unless forced;
/// 400 when the config itself carries managedFields.
pub fn apply(
    schema: &Schema,
    ty: TypeId,
    live: Option<&Object>,
    config: &Object,
    manager: Manager<'_>,
    reset: &[&[&str]],
) -> Result<Object, Error> {
    if config
        .at(&["metadata", "managedFields"])
        .is_some_and(|fields| !fields.is_null())
    {
        return Err(Error::bad_request("metadata.managedFields must be nil"));
    }
    let mut entries = live.map(entries).unwrap_or_default();
    let base = bare(live);
    if let Some(live) = live.filter(|_| entries.is_empty()) {
        entries.push(Entry {
            fields: owned(typed::paths(schema, ty, &base), reset),
            ..Entry::new(
                Manager {
                    name: BEFORE_FIRST_APPLY,
                    ..manager
                },
                Operation::Update,
                live.api_version(),
            )
        });
    }
    let fresh = Entry::new(manager, Operation::Apply, config.api_version());
    let mine = entries.iter().position(|entry| entry.is_of(&fresh));
    let before = mine.map(|at| entries.remove(at));
    let fields = owned(typed::paths(schema, ty, config.value()), reset);

    let merged = typed::merged(schema, ty, &base, config.value());
    let wanted = match &before {
        Some(last) => prune(schema, ty, &merged, &last.fields, &entries, &fields),
        None => merged,
    };
    let difference = typed::difference(schema, ty, &base, &wanted);
    let allowed = manager.force || is_own_client_side_apply(live, manager.name);
    release(&mut entries, &difference, allowed, |entry| {
        allowed_by_force(entry, manager, live)
    })?;

    let unchanged = before
        .as_ref()
        .filter(|last| last.fields == fields && last.api_version == fresh.api_version);
    let time = unchanged.map_or_else(|| fresh.time.clone(), |last| last.time.clone());
    if !fields.is_empty() {
        entries.push(Entry {
            fields,
            time,
            ..fresh
        });
    }
    let mut object = Object::new(wanted)
        .map_err(|_| Error::internal("an apply made something that is no object"))?;
    sync_last_applied(&mut object, live, config, manager.name);
    write(&mut object, entries);
    Ok(object)
}

/// Records on `new` who changed what against `old`: an ordinary write by `manager`. Whatever managedFields `new` carries
/// are the client's word for them (an empty list resets them); absent, those of `old` go on.
pub fn own(
    schema: &Schema,
    ty: TypeId,
    old: Option<&Object>,
    new: &mut Object,
    manager: Manager<'_>,
    reset: &[&[&str]],
) {
    let given = new.at(&["metadata", "managedFields"]).cloned();
    let mut entries = match given.as_ref().and_then(Value::as_array).map(Vec::as_slice) {
        Some([]) => Vec::new(),
        Some([only]) if only.as_object().is_some_and(serde_json::Map::is_empty) => Vec::new(),
        // What a client sends through a subresource says nothing about ownership.
        Some(_) if manager.subresource.is_empty() && !self::entries(new).is_empty() => {
            self::entries(new)
        }
        _ => old.map(self::entries).unwrap_or_default(),
    };
    // Compared in place: managedFields are owned by nobody, so those of `old` may stay in.
    new.remove(&["metadata", "managedFields"]);
    let nothing = json!({});
    let base = old.map_or(&nothing, Object::value);
    let difference = typed::difference(schema, ty, base, new.value());
    let fresh = Entry::new(manager, Operation::Update, new.api_version());
    let mine = entries.iter().position(|entry| entry.is_of(&fresh));
    let before = mine.map(|at| entries.remove(at));
    release(&mut entries, &difference, true, |_| true).expect("a forced release meets no conflict");

    let had = before
        .as_ref()
        .map(|entry| entry.fields.clone())
        .unwrap_or_default();
    let fields = owned(
        had.union(&difference.changed)
            .difference(&difference.removed),
        reset,
    );
    let time = match &before {
        Some(last) if last.fields == fields => last.time.clone(),
        _ => fresh.time.clone(),
    };
    if !fields.is_empty() {
        entries.push(Entry {
            fields,
            time,
            ..fresh
        });
    }
    cap_updaters(&mut entries);
    write(new, entries);
}

/// Takes what changed or vanished from everybody's sets.
fn release(
    entries: &mut Vec<Entry>,
    difference: &typed::Difference,
    force: bool,
    forgiven: impl Fn(&Entry) -> bool,
) -> Result<(), Error> {
    let mut conflicts = Vec::new();
    for entry in entries.iter_mut() {
        let taken = entry.fields.intersection(&difference.changed);
        if !taken.is_empty() {
            if !(force && forgiven(entry)) {
                conflicts.push((entry.clone(), taken.readable()));
            }
            entry.fields = entry.fields.difference(&taken);
        }
        entry.fields = entry.fields.difference(&difference.removed);
    }
    if !conflicts.is_empty() {
        return Err(conflict(&conflicts));
    }
    entries.retain(|entry| !entry.fields.is_empty());
    Ok(())
}

/// `force` forgives everybody; a `kubectl` that takes over from its own client-side apply forgives only that.
fn allowed_by_force(entry: &Entry, manager: Manager<'_>, live: Option<&Object>) -> bool {
    manager.force
        || (is_own_client_side_apply(live, manager.name)
            && entry.manager == "kubectl-client-side-apply")
}

fn is_own_client_side_apply(live: Option<&Object>, manager: &str) -> bool {
    manager == "kubectl" && live.is_some_and(|live| live.annotation(LAST_APPLIED).is_some())
}

/// Items and fields that this manager applied last time and nobody states now are taken out of the merged object.
fn prune(
    schema: &Schema,
    ty: TypeId,
    merged: &Value,
    last: &Fields,
    others: &[Entry],
    mine: &Fields,
) -> Value {
    let mut named = |path: &[Step]| typed::is_named(schema, ty, path);
    let last = last.with_named(&mut named);
    let pruned =
        typed::paths(schema, ty, &typed::without(schema, ty, merged, &last)).with_named(&mut named);
    let stated = others
        .iter()
        .fold(mine.clone(), |all, entry| all.union(&entry.fields))
        .with_named(&mut named);
    let there = typed::paths(schema, ty, merged).with_named(&mut named);
    let gone = there.difference(&pruned.union(&stated)).intersection(&last);
    typed::without(schema, ty, merged, &gone)
}

/// `fields` less what nobody owns and what this door resets.
fn owned(fields: Fields, reset: &[&[&str]]) -> Fields {
    let set = |paths: &[&[&str]]| {
        let mut set = Fields::default();
        for path in paths {
            set.insert(
                &path
                    .iter()
                    .map(|name| Step::Field((*name).to_owned()))
                    .collect::<Vec<_>>(),
            );
        }
        set
    };
    fields.difference(&set(UNOWNED)).without(&set(reset))
}

/// The object's tree without managedFields; an empty object for none.
fn bare(object: Option<&Object>) -> Value {
    let Some(object) = object else {
        return json!({});
    };
    let mut copy = object.clone();
    copy.remove(&["metadata", "managedFields"]);
    copy.into_value()
}

fn conflict(conflicts: &[(Entry, Vec<String>)]) -> Error {
    let mut causes = Vec::new();
    let mut lines = Vec::new();
    for (entry, fields) in conflicts {
        let who = entry.readable();
        for field in fields {
            causes.push(Cause::other(
                CauseReason::FieldManagerConflict,
                field,
                format!("conflict with {who}"),
            ));
        }
        lines.push((who, fields));
    }
    let message = match lines.as_slice() {
        [(who, fields)] if fields.len() == 1 => format!(
            "Apply failed with 1 conflict: conflict with {who}: {}",
            fields[0]
        ),
        lines => {
            let mut message = format!("Apply failed with {} conflicts: ", causes.len());
            let parts: Vec<String> = lines
                .iter()
                .map(|(who, fields)| match fields.as_slice() {
                    [only] => format!("conflict with {who}: {only}"),
                    many => {
                        let list: String =
                            many.iter().map(|field| format!("\n- {field}")).collect();
                        format!("conflicts with {who}:{list}")
                    }
                })
                .collect();
            message.push_str(&parts.join("\n"));
            message
        }
    };
    let mut error = Error::new(Reason::Conflict, message);
    error.details.causes = causes;
    error
}

/// kubectl's own annotation must not go stale when it changes from client-side to server-side apply.
fn sync_last_applied(object: &mut Object, live: Option<&Object>, config: &Object, manager: &str) {
    let there = live.is_some_and(|live| live.annotation(LAST_APPLIED).is_some());
    if manager == "kubectl" && there && object.annotation(LAST_APPLIED).is_some() {
        let text = serde_json::to_string(config.value()).unwrap_or_default();
        // Annotations end at 256 KiB in all; a larger one would make the object invalid.
        if text.len() < 256 * 1024 {
            object.set(
                &["metadata", "annotations", LAST_APPLIED],
                Value::String(text + "\n"),
            );
        }
    }
}

/// Merges the oldest `Update` entries into one when there are too many.
fn cap_updaters(entries: &mut Vec<Entry>) {
    let mut updaters: Vec<usize> = (0..entries.len())
        .filter(|at| entries[*at].operation == Operation::Update)
        .collect();
    let Some(excess) = updaters
        .len()
        .checked_sub(MOST_UPDATERS)
        .filter(|excess| *excess > 0)
    else {
        return;
    };
    updaters.sort_by(|a, b| entries[*a].time.cmp(&entries[*b].time));
    let mut merged: Option<Entry> = None;
    for at in &updaters[..=excess] {
        let old = &entries[*at];
        merged = Some(match merged {
            None => Entry {
                manager: ANCIENT.to_owned(),
                subresource: String::new(),
                ..old.clone()
            },
            Some(all) => Entry {
                fields: all.fields.union(&old.fields),
                time: old.time.clone(),
                ..all
            },
        });
    }
    let gone: Vec<usize> = updaters[..=excess].to_vec();
    let mut at = 0;
    entries.retain(|_| {
        at += 1;
        !gone.contains(&(at - 1))
    });
    entries.extend(merged);
}

// === impl Entry ===

impl Entry {
    fn new(manager: Manager<'_>, operation: Operation, api_version: &str) -> Self {
        let time = Timestamp::from_second(manager.now.as_second()).unwrap_or(manager.now);
        Self {
            manager: manager.name.to_owned(),
            operation,
            api_version: api_version.to_owned(),
            time: time.to_string(),
            subresource: manager.subresource.to_owned(),
            fields: Fields::default(),
        }
    }

    /// Do both stand for the same manager? An applier is the same at any version.
    fn is_of(&self, other: &Self) -> bool {
        self.manager == other.manager
            && self.operation == other.operation
            && self.subresource == other.subresource
            && (self.operation == Operation::Apply || self.api_version == other.api_version)
    }

    /// `"kubectl" using apps/v1`, as conflicts name an updater; an applier goes by its name alone.
    fn readable(&self) -> String {
        let mut text = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            text.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if self.operation == Operation::Update {
            text.push_str(&format!(" using {}", self.api_version));
        }
        text
    }

    fn parse(value: &Value) -> Option<Self> {
        let text = |key: &str| {
            value
                .get(key)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        Some(Self {
            manager: text("manager"),
            operation: match value.get("operation")?.as_str()? {
                "Apply" => Operation::Apply,
                "Update" => Operation::Update,
                _ => return None,
            },
            api_version: text("apiVersion"),
            time: text("time"),
            subresource: text("subresource"),
            fields: Fields::from_json(value.get("fieldsV1")?)?,
        })
    }

    fn to_json(&self) -> Value {
        let operation = match self.operation {
            Operation::Apply => "Apply",
            Operation::Update => "Update",
        };
        let mut entry = json!({
            "manager": self.manager, "operation": operation, "apiVersion": self.api_version,
            "time": self.time, "fieldsType": "FieldsV1", "fieldsV1": self.fields.to_json(),
        });
        if !self.subresource.is_empty() {
            entry["subresource"] = json!(self.subresource);
        }
        entry
    }
}

/// The entries an object carries; none when they cannot be read, as upstream.
fn entries(object: &Object) -> Vec<Entry> {
    let list = object.list_at(&["metadata", "managedFields"]);
    list.iter()
        .map(Entry::parse)
        .collect::<Option<Vec<_>>>()
        .unwrap_or_default()
}

/// Appliers first, then by time, name and version.
fn write(object: &mut Object, mut entries: Vec<Entry>) {
    entries.sort_by(|a, b| {
        let key = |e: &Entry| {
            (
                e.operation,
                e.time.clone(),
                e.manager.clone(),
                e.api_version.clone(),
                e.subresource.clone(),
            )
        };
        key(a).cmp(&key(b))
    });
    if entries.is_empty() {
        object.remove(&["metadata", "managedFields"]);
    } else {
        object.set(
            &["metadata", "managedFields"],
            entries.iter().map(Entry::to_json).collect(),
        );
    }
}

#[cfg(test)]
mod tests;
