//! Compiles the facts table `facts/types.txt` (its form is explained in `facts.py`) into a [`Schema`]. Pure.

use std::collections::HashMap;

use super::{Field, GroupVersionKind, ListMerge, PatchStrategy, Schema, Struct, Type, TypeId};

/// The second part is the Gateway API.
pub(super) const TYPES: &str = concat!(
    include_str!("../facts/types.txt"),
    include_str!("../facts/gateway.txt")
);

/// Names in the table leave this away.
const PREFIX: &str = "io.k8s.";

#[derive(Debug, thiserror::Error)]
#[error("facts, line {line}: {what}")]
pub(super) struct Error {
    line: usize,
    what: String,
}

/// Compiles the table. Every name is known before the first field is read, so that types may be recursive.
pub(super) fn compile(text: &str) -> Result<Schema, Error> {
    let mut compiler = Compiler::default();
    for line in text.lines() {
        compiler.declare(line);
    }
    let mut open: Option<(TypeId, Struct)> = None;
    for (index, line) in text.lines().enumerate() {
        let step = compiler.line(line, &mut open);
        step.map_err(|what| Error {
            line: index + 1,
            what,
        })?;
    }
    compiler.close(open);
    Ok(compiler.schema)
}

#[derive(Default)]
struct Compiler<'a> {
    schema: Schema,
    names: HashMap<&'a str, TypeId>,
    /// Types without a name, by their text: one node for all `[atomic]s`.
    texts: HashMap<&'a str, TypeId>,
    /// Structs that a reference makes atomic or granular: resolved when all are read.
    variants: Vec<(TypeId, TypeId, bool)>,
}

// === impl Compiler ===

impl<'a> Compiler<'a> {
    fn declare(&mut self, line: &'a str) {
        if line.starts_with(['\t', '@', '#']) || line.is_empty() {
            return;
        }
        let name = line.split(' ').next().unwrap_or(line);
        let id = self.schema.insert(Type::Any);
        self.names.insert(name, id);
        self.schema.define(format!("{PREFIX}{name}"), id);
    }

    fn line(&mut self, line: &'a str, open: &mut Option<(TypeId, Struct)>) -> Result<(), String> {
        if line.starts_with('#') || line.is_empty() {
            return Ok(());
        }
        if let Some(kind) = line.strip_prefix('@') {
            let (id, _) = open.as_ref().ok_or("a kind outside of a definition")?;
            self.schema.serve(parse_kind(kind)?, *id);
            return Ok(());
        }
        if let Some(field) = line.strip_prefix('\t') {
            let (name, field) = self.field(field)?;
            let (_, body) = open.as_mut().ok_or("a field outside of a definition")?;
            body.fields.insert(name.into(), field);
            return Ok(());
        }
        self.close(open.take());
        let (name, atomic) = match line.split_once(' ') {
            Some((name, "a")) => (name, true),
            Some(_) => return Err(format!("unknown mark in {line:?}")),
            None => (line, false),
        };
        let body = Struct {
            name: format!("{PREFIX}{name}").into(),
            atomic,
            ..Struct::default()
        };
        *open = Some((self.names[name], body));
        Ok(())
    }

    /// Puts a finished struct into the graph; after the last one also the variants made by references.
    fn close(&mut self, open: Option<(TypeId, Struct)>) {
        if let Some((id, body)) = open {
            self.schema.set(id, Type::Struct(body));
        }
        self.variants.retain(|(variant, of, atomic)| {
            let Type::Struct(body) = self.schema.get(*of) else {
                return true;
            };
            let body = Struct {
                atomic: *atomic,
                ..body.clone()
            };
            self.schema.set(*variant, Type::Struct(body));
            false
        });
    }

    fn field(&mut self, text: &'a str) -> Result<(&'a str, Field), String> {
        let mut words = text.split(' ');
        let name = words.next().ok_or("a field without a name")?;
        let ty = words.next().ok_or_else(|| format!("{name} has no type"))?;
        let mut field = Field::plain(self.parse_type(ty)?);
        for flag in words {
            set_flag(&mut field, flag)?;
        }
        Ok((name, field))
    }

    fn parse_type(&mut self, text: &'a str) -> Result<TypeId, String> {
        if let Some(id) = self.texts.get(text) {
            return Ok(*id);
        }
        let id = self.new_type(text)?;
        self.texts.insert(text, id);
        Ok(id)
    }

    fn new_type(&mut self, text: &'a str) -> Result<TypeId, String> {
        if let Some(name) = text.strip_prefix('=') {
            return self.reference(name);
        }
        let ty = if let Some(rest) = text.strip_prefix('[') {
            let (merge, item) = rest.split_once(']').ok_or("a list without ]")?;
            Type::List {
                item: self.parse_type(item)?,
                merge: parse_merge(merge),
            }
        } else if let Some(rest) = text.strip_prefix('{') {
            let (mark, value) = rest.split_once('}').ok_or("a map without }")?;
            Type::Map {
                value: self.parse_type(value)?,
                atomic: mark == "a",
            }
        } else {
            match text {
                "s" => Type::String,
                "i32" => Type::Integer { bits: 32 },
                "i64" => Type::Integer { bits: 64 },
                "f" => Type::Number,
                "b" => Type::Boolean,
                "y" => Type::Bytes,
                "q" => Type::Quantity,
                "o" => Type::IntOrString,
                "t" => Type::Time,
                "m" => Type::MicroTime,
                "*" => Type::Any,
                _ => return Err(format!("unknown type {text:?}")),
            }
        };
        Ok(self.schema.insert(ty))
    }

    fn reference(&mut self, name: &'a str) -> Result<TypeId, String> {
        let (name, variant) = match name.strip_suffix(['+', '-']) {
            Some(bare) => (bare, Some(name.ends_with('+'))),
            None => (name, None),
        };
        let of = *self
            .names
            .get(name)
            .ok_or_else(|| format!("no definition {name:?}"))?;
        let Some(atomic) = variant else {
            return Ok(of);
        };
        let id = self.schema.insert(Type::Any);
        self.variants.push((id, of, atomic));
        Ok(id)
    }
}

fn set_flag(field: &mut Field, flag: &str) -> Result<(), String> {
    match flag {
        "!" => field.required = true,
        "z" => field.drop_zero = true,
        "w" => field.always = true,
        _ => match flag.split_once('=') {
            Some(("d", json)) => {
                field.default = Some(serde_json::from_str(json).map_err(|e| e.to_string())?);
            }
            Some(("e", values)) => {
                field.allowed = values
                    .split('|')
                    .map(|v| v.replace('~', " ").into())
                    .collect()
            }
            Some(("p", strategy)) => field.patch = parse_strategy(strategy),
            _ => return Err(format!("unknown flag {flag:?}")),
        },
    }
    Ok(())
}

fn parse_kind(text: &str) -> Result<GroupVersionKind, String> {
    let words: Vec<&str> = text.split(' ').collect();
    let [group, version, kind] = words[..] else {
        return Err(format!("{text:?} is no group, version and kind"));
    };
    let group = if group == "-" { "" } else { group };
    Ok(GroupVersionKind::new(group, version, kind))
}

fn parse_merge(text: &str) -> ListMerge {
    match text {
        "atomic" => ListMerge::Atomic,
        "set" => ListMerge::Set,
        keys => ListMerge::Map {
            keys: keys.split(',').map(Into::into).collect(),
        },
    }
}

/// `merge,retainKeys:name`
fn parse_strategy(text: &str) -> PatchStrategy {
    let (strategies, key) = match text.split_once(':') {
        Some((strategies, key)) => (strategies, Some(key.into())),
        None => (text, None),
    };
    let has = |word| strategies.split(',').any(|s| s == word);
    PatchStrategy {
        merge: has("merge"),
        retain_keys: has("retainKeys"),
        merge_key: key,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::builtin;

    fn named(name: &str) -> TypeId {
        builtin()
            .named(name)
            .expect("the definition is in the facts")
    }

    fn field(ty: &str, name: &str) -> &'static Field {
        let found = builtin().field(named(ty), name);
        found.unwrap_or_else(|| panic!("{ty} has no {name}"))
    }

    #[test]
    fn the_facts_compile_and_no_reference_dangles() {
        let schema = compile(TYPES).expect("the facts compile");
        for (name, id) in schema.definitions() {
            assert!(
                matches!(schema.get(id), Type::Struct(_)),
                "{name} is not a struct"
            );
        }
    }

    #[test]
    fn a_deployment_is_found_by_kind_and_by_name() {
        let gvk = GroupVersionKind::parse("apps/v1", "Deployment");
        assert_eq!(
            builtin().kind(&gvk),
            builtin().named("io.k8s.api.apps.v1.Deployment")
        );
    }

    #[test]
    fn container_ports_have_both_merge_rules() {
        let ports = field("io.k8s.api.core.v1.Container", "ports");
        assert_eq!(ports.patch.merge_key.as_deref(), Some("containerPort"));
        let Type::List { merge, .. } = builtin().get(ports.ty) else {
            panic!("ports is a list");
        };
        let keys = vec!["containerPort".into(), "protocol".into()];
        assert_eq!(*merge, ListMerge::Map { keys });
    }

    #[test]
    fn zero_means_absent_only_where_go_has_no_pointer() {
        assert!(field("io.k8s.api.core.v1.PodSpec", "hostNetwork").drop_zero);
        assert!(!field("io.k8s.api.apps.v1.DeploymentSpec", "replicas").drop_zero);
        assert!(field("io.k8s.api.core.v1.Container", "resources").always);
    }

    #[test]
    fn a_reference_may_undo_atomicity() {
        let claim = field("io.k8s.api.core.v1.PersistentVolumeSpec", "claimRef");
        let Type::Struct(granular) = builtin().get(claim.ty) else {
            panic!("claimRef is a struct");
        };
        assert!(!granular.atomic && granular.fields.contains_key("uid"));
        let Type::Struct(plain) = builtin().get(named("io.k8s.api.core.v1.ObjectReference")) else {
            panic!("ObjectReference is a struct");
        };
        assert!(plain.atomic);
    }

    #[test]
    fn a_layer_sees_its_base_and_its_own_types() {
        let mut layer = Schema::over(builtin());
        let string = layer.insert(Type::String);
        layer.define("io.example.Text", string);
        assert!(matches!(layer.get(string), Type::String));
        assert!(layer.named("io.k8s.api.core.v1.Pod").is_some());
        assert!(builtin().named("io.example.Text").is_none());
        let pod = layer
            .named("io.k8s.api.core.v1.Pod")
            .expect("checked above");
        assert_eq!(layer.name(pod), "io.k8s.api.core.v1.Pod");
    }
}
