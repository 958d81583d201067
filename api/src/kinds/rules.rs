//! A kind's special rules as data: a table of defaults, a table of checks, and functions only for what a table cannot say.
//!
//! [`Rules`] is the one [`Strategy`] of all built-in kinds; patterns are those of [`path::walk`]. Never does I/O.

use serde_json::{Map, Value};

use super::path::{self, Path};
use super::quantities::NOT_NEGATIVE;
use super::strategy::{Door, Lookup, NameRule, ScalePaths, Strategy};
use super::{label_selector, names, quantities};
use crate::object::Object;
use crate::status::{Cause, Error};
use crate::store::Operation;

pub const IMMUTABLE: &str = "field is immutable";
pub const NOT_POSITIVE: &str = "must be greater than zero";

/// A default's value.
#[derive(Clone, Copy, Debug)]
pub enum Literal {
    /// Also stands in for an empty string.
    Text(&'static str),
    Number(i64),
    Bool(bool),
    EmptyObject,
    EmptyList,
}

/// What must hold at each place a pattern names. A check other than `Required*` passes where nothing stands.
#[derive(Clone, Copy)]
pub enum Check {
    /// Present, and neither an empty text, list nor map.
    Required,
    RequiredWith(&'static str),
    /// One of these texts, sorted as upstream lists them.
    OneOf(&'static [&'static str]),
    NotNegative,
    Positive,
    Between(i64, i64),
    Port,
    /// A port that must be there; 0 is not there.
    RequiredPort,
    /// A text that follows a rule of `names`.
    Name(names::Rule),
    /// As `Name`, and an empty text passes too.
    NameOrEmpty(names::Rule),
    /// A map whose keys follow a rule.
    Keys(names::Rule),
    /// A map of labels: qualified keys, label values.
    Labels,
    Selector,
    /// A quantity that is not negative.
    Quantity,
    /// A number or percentage that is not negative.
    Amount,
    /// The same after an update as before.
    Immutable,
    /// Items of a list differ in this key.
    Unique(&'static str),
    With(fn(&Path<'_>, &Value, &mut Vec<Cause>)),
}

/// Defaults, applied in order: `(pattern, value)`. Objects on the way are made, except behind a segment that ends with
/// `?`, which must be there already: `spec.sessionAffinityConfig?.clientIP?.timeoutSeconds`.
pub type Defaults = &'static [(&'static str, Literal)];
pub type Checks = &'static [(&'static str, Check)];

/// See [`Strategy::allocate`].
pub type Allocate = fn(&mut Object, Option<&Object>, &dyn Lookup) -> Result<Vec<Operation>, Error>;

/// What is special about one kind. `Rules::NEW` has nothing special; rows say only what differs.
pub struct Rules {
    pub defaults: Defaults,
    /// After the table.
    pub default: fn(&mut Object),
    /// The status a new object begins with, as JSON; empty: none.
    pub status: &'static str,
    /// A create keeps the status the client sent.
    pub keeps_status: bool,
    pub prepare: fn(&mut Object, Option<&Object>, Door<'_>),
    /// Not asked of writes through the status door.
    pub checks: Checks,
    pub validate: fn(&Object, Option<&Object>, Door<'_>, &mut Vec<Cause>),
    pub warnings: fn(&Object, Option<&Object>) -> Vec<String>,
    /// Must be set for `allocate` to be called.
    pub allocates: bool,
    pub allocate: Allocate,
    pub release: fn(&Object, &dyn Lookup) -> Vec<Operation>,
    /// Selectable fields; each is the path of its value unless `field` knows better.
    pub fields: &'static [&'static str],
    pub field: fn(&Object, &str) -> Option<String>,
    pub grace_seconds: fn(&Object, Option<i64>) -> Option<i64>,
    pub hold: fn(&mut Object) -> bool,
    pub name: NameRule,
    pub unconditional_update: bool,
    pub create_on_update: bool,
    pub returns_deleted: bool,
    pub has_generation: bool,
    pub orphans_by_default: bool,
    pub scale: Option<ScalePaths>,
}

// === impl Rules ===

impl Rules {
    pub const NEW: Self = Self {
        defaults: &[],
        default: |_| {},
        status: "",
        keeps_status: false,
        prepare: |_, _, _| {},
        checks: &[],
        validate: |_, _, _, _| {},
        warnings: |_, _| Vec::new(),
        allocates: false,
        allocate: |_, _, _| Ok(Vec::new()),
        release: |_, _| Vec::new(),
        fields: &[],
        field: |_, _| None,
        grace_seconds: |_, _| None,
        hold: |_| false,
        name: NameRule::Subdomain,
        unconditional_update: true,
        create_on_update: false,
        returns_deleted: false,
        has_generation: false,
        orphans_by_default: false,
        scale: None,
    };
}

impl Strategy for Rules {
    fn default(&self, new: &mut Object) {
        let mut value = Value::Object(std::mem::take(new.map_mut()));
        apply_defaults(&mut value, self.defaults);
        if let Value::Object(map) = value {
            *new.map_mut() = map;
        }
        (self.default)(new);
    }

    fn keeps_status(&self) -> bool {
        self.keeps_status
    }

    fn prepare(&self, new: &mut Object, old: Option<&Object>, door: Door<'_>) {
        if old.is_none() && !self.status.is_empty() && !self.keeps_status {
            let status = serde_json::from_str(self.status).unwrap_or_default();
            new.set(&["status"], status);
        }
        (self.prepare)(new, old, door);
    }

    fn validate(&self, new: &Object, old: Option<&Object>, door: Door<'_>) -> Vec<Cause> {
        let mut causes = Vec::new();
        if door != Door::Subresource("status") {
            check(self.checks, &Path::ROOT, new.value(), &mut causes);
            if let Some(old) = old {
                check_immutable(self.checks, new, old, &mut causes);
            }
        }
        (self.validate)(new, old, door, &mut causes);
        causes
    }

    fn warnings(&self, new: &Object, old: Option<&Object>) -> Vec<String> {
        (self.warnings)(new, old)
    }

    fn allocates(&self) -> bool {
        self.allocates
    }

    fn allocate(
        &self,
        new: &mut Object,
        old: Option<&Object>,
        lookup: &dyn Lookup,
    ) -> Result<Vec<Operation>, Error> {
        (self.allocate)(new, old, lookup)
    }

    fn release(&self, old: &Object, lookup: &dyn Lookup) -> Vec<Operation> {
        (self.release)(old, lookup)
    }

    fn fields(&self, object: &Object) -> Vec<(&'static str, String)> {
        let value = |name: &&'static str| {
            let text = (self.field)(object, name).unwrap_or_else(|| text_at(object, name));
            (*name, text)
        };
        self.fields.iter().map(value).collect()
    }

    fn field_names(&self) -> &'static [&'static str] {
        self.fields
    }

    fn grace_seconds(&self, object: &Object, requested: Option<i64>) -> Option<i64> {
        (self.grace_seconds)(object, requested)
    }

    fn hold(&self, object: &mut Object) -> bool {
        (self.hold)(object)
    }

    fn name_rule(&self) -> NameRule {
        self.name
    }

    fn unconditional_update(&self) -> bool {
        self.unconditional_update
    }

    fn create_on_update(&self) -> bool {
        self.create_on_update
    }

    fn returns_deleted(&self) -> bool {
        self.returns_deleted
    }

    fn has_generation(&self) -> bool {
        self.has_generation
    }

    fn orphans_by_default(&self) -> bool {
        self.orphans_by_default
    }

    fn scale(&self) -> Option<ScalePaths> {
        self.scale
    }
}

/// The scalar at a dotted path, as selectors compare it; empty where nothing stands.
pub fn text_at(object: &Object, dotted: &str) -> String {
    let found = dotted
        .split('.')
        .try_fold(object.value(), |value, key| value.get(key));
    match found {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        Some(Value::Bool(value)) => value.to_string(),
        _ => String::new(),
    }
}

// === Defaults ===

/// Applies a table of defaults below `value`.
pub fn apply_defaults(value: &mut Value, defaults: &[(&str, Literal)]) {
    for (pattern, literal) in defaults {
        apply_default(value, pattern, *literal);
    }
}

fn apply_default(value: &mut Value, pattern: &str, literal: Literal) {
    let Value::Object(map) = value else { return };
    let Some((segment, rest)) = pattern.split_once('.') else {
        let slot = map.entry(pattern).or_insert(Value::Null);
        let empty_text = matches!(literal, Literal::Text(_)) && slot.as_str() == Some("");
        if slot.is_null() || empty_text {
            *slot = literal.value();
        }
        return;
    };
    if let Some(key) = segment.strip_suffix("[]") {
        let items = map.get_mut(key).and_then(Value::as_array_mut);
        for item in items.into_iter().flatten() {
            apply_default(item, rest, literal);
        }
    } else if let Some(key) = segment.strip_suffix('?') {
        if let Some(found) = map.get_mut(key) {
            apply_default(found, rest, literal);
        }
    } else {
        let slot = map.entry(segment).or_insert(Value::Null);
        if slot.is_null() {
            *slot = Value::Object(Map::new());
        }
        apply_default(slot, rest, literal);
    }
}

impl Literal {
    fn value(self) -> Value {
        match self {
            Self::Text(text) => text.into(),
            Self::Number(number) => number.into(),
            Self::Bool(value) => value.into(),
            Self::EmptyObject => Value::Object(Map::new()),
            Self::EmptyList => Value::Array(Vec::new()),
        }
    }
}

// === Checks ===

/// Asks every check of a table below `value`, which stands at `path`.
pub fn check(checks: &[(&str, Check)], path: &Path<'_>, value: &Value, causes: &mut Vec<Cause>) {
    for (pattern, check) in checks {
        path::walk(path, value, pattern, &mut |path, found| {
            check.ask(path, found, causes);
        });
    }
}

fn check_immutable(checks: Checks, new: &Object, old: &Object, causes: &mut Vec<Cause>) {
    let immutable = checks
        .iter()
        .filter(|(_, check)| matches!(check, Check::Immutable));
    for (pattern, _) in immutable {
        let path: Vec<&str> = pattern.split('.').collect();
        unchanged(pattern, new.at(&path), old.at(&path), causes);
    }
}

/// A cause when two values differ; absent and null are the same.
pub fn unchanged(field: &str, new: Option<&Value>, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let (new, old) = (new.unwrap_or(&Value::Null), old.unwrap_or(&Value::Null));
    if new != old {
        causes.push(Cause::invalid(field, new, IMMUTABLE));
    }
}

// === impl Check ===

impl Check {
    fn ask(self, path: &Path<'_>, found: Option<&Value>, causes: &mut Vec<Cause>) {
        if let Self::Required | Self::RequiredWith(_) = self {
            if found.is_none_or(is_empty) {
                let detail = match self {
                    Self::RequiredWith(detail) => detail,
                    _ => "",
                };
                causes.push(Cause::required(path, detail));
            }
            return;
        }
        if let Self::RequiredPort = self
            && found.is_none_or(|port| port == 0)
        {
            causes.push(Cause::required(path, ""));
            return;
        }
        let Some(value) = found else { return };
        match self {
            Self::Required | Self::RequiredWith(_) | Self::Immutable => {}
            Self::OneOf(allowed) => {
                if value.as_str().is_none_or(|text| !allowed.contains(&text)) {
                    causes.push(Cause::not_supported(path, value, allowed));
                }
            }
            Self::NotNegative => number(path, value, |n| n >= 0, NOT_NEGATIVE, causes),
            Self::Positive => number(path, value, |n| n > 0, NOT_POSITIVE, causes),
            Self::Between(least, most) => {
                let detail = format!("must be between {least} and {most}, inclusive");
                number(
                    path,
                    value,
                    |n| (least..=most).contains(&n),
                    &detail,
                    causes,
                );
            }
            Self::Port | Self::RequiredPort => Self::Between(1, 65535).ask(path, found, causes),
            Self::Name(rule) => text(path, value, rule, causes),
            Self::NameOrEmpty(rule) => {
                if value.as_str() != Some("") {
                    text(path, value, rule, causes);
                }
            }
            Self::Keys(rule) => {
                for key in value.as_object().into_iter().flat_map(Map::keys) {
                    let value = Value::from(key.as_str());
                    for why in rule(key) {
                        causes.push(Cause::invalid(path, &value, &why));
                    }
                }
            }
            Self::Labels => label_selector::check_labels(path, value, causes),
            Self::Selector => label_selector::check(path, value, causes),
            Self::Quantity => quantities::check(path, value, causes),
            Self::Amount => amount(path, value, causes),
            Self::Unique(key) => unique(path, value, key, causes),
            Self::With(check) => check(path, value, causes),
        }
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

fn number(
    path: &Path<'_>,
    value: &Value,
    fine: impl Fn(i64) -> bool,
    detail: &str,
    causes: &mut Vec<Cause>,
) {
    if value.as_i64().is_some_and(|n| !fine(n)) {
        causes.push(Cause::invalid(path, value, detail));
    }
}

/// Every message of a rule of `names` about a text.
pub fn text(path: &Path<'_>, value: &Value, rule: names::Rule, causes: &mut Vec<Cause>) {
    for why in rule(value.as_str().unwrap_or_default()) {
        causes.push(Cause::invalid(path, value, &why));
    }
}

fn amount(path: &Path<'_>, value: &Value, causes: &mut Vec<Cause>) {
    match value {
        Value::String(_) => text(path, value, names::percent, causes),
        _ => number(path, value, |n| n >= 0, NOT_NEGATIVE, causes),
    }
}

fn unique(path: &Path<'_>, value: &Value, key: &str, causes: &mut Vec<Cause>) {
    let mut seen: Vec<&Value> = Vec::new();
    for (i, item) in value.as_array().into_iter().flatten().enumerate() {
        let Some(name) = item.get(key).filter(|name| !is_empty(name)) else {
            continue;
        };
        if seen.contains(&name) {
            causes.push(Cause::duplicate(path.index(i).key(key), name));
        }
        seen.push(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn defaults_fill_only_what_is_absent() {
        let mut value = json!({"spec": {"replicas": 0, "type": "", "ports": [{"port": 1, "protocol": "UDP"}, {"port": 2}]}});
        let defaults: Defaults = &[
            ("spec.replicas", Literal::Number(1)),
            ("spec.type", Literal::Text("ClusterIP")),
            ("spec.strategy.type", Literal::Text("RollingUpdate")),
            ("spec.ports[].protocol", Literal::Text("TCP")),
            ("spec.affinity?.seconds", Literal::Number(3)),
        ];
        apply_defaults(&mut value, defaults);
        let expected = json!({"spec": {
            "replicas": 0, "type": "ClusterIP", "strategy": {"type": "RollingUpdate"},
            "ports": [{"port": 1, "protocol": "UDP"}, {"port": 2, "protocol": "TCP"}],
        }});
        assert_eq!(value, expected);
        apply_defaults(&mut value, defaults);
        assert_eq!(value, expected, "defaults are idempotent");
    }

    #[test]
    fn checks_name_the_field_and_speak_as_upstream() {
        const CHECKS: Checks = &[
            ("spec.replicas", Check::NotNegative),
            ("spec.selector", Check::Required),
            ("spec.ports[].port", Check::Port),
            ("spec.ports[].protocol", Check::OneOf(&["TCP", "UDP"])),
            ("spec.ports", Check::Unique("name")),
        ];
        let value = json!({"spec": {"replicas": -1, "ports": [
            {"name": "a", "port": 0}, {"name": "a", "port": 1, "protocol": "X"},
        ]}});
        let mut causes = Vec::new();
        check(CHECKS, &Path::ROOT, &value, &mut causes);
        let lines: Vec<_> = causes
            .iter()
            .map(|cause| format!("{}: {}", cause.field, cause.message))
            .collect();
        assert_eq!(
            lines,
            [
                "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
                "spec.selector: Required value",
                "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
                "spec.ports[1].protocol: Unsupported value: \"X\": supported values: \"TCP\", \"UDP\"",
                "spec.ports[1].name: Duplicate value: \"a\"",
            ]
        );
    }
}
