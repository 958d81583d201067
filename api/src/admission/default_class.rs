//! DefaultStorageClass and DefaultIngressClass: an object that names no class gets the newest one marked as default.

use serde_json::Value;

use super::{Attributes, Plugin, tree};
use crate::kinds::strategy::Lookup;
use crate::object::Object;
use crate::status::Error;

pub(super) struct DefaultClass {
    group: &'static str,
    plural: &'static str,
    field: &'static str,
    classes: &'static str,
    /// On the class, with value `true`.
    mark: &'static str,
    /// On the object: the class was named the old way.
    old_way: &'static str,
}

pub(super) static STORAGE: DefaultClass = DefaultClass {
    group: "",
    plural: "persistentvolumeclaims",
    field: "storageClassName",
    classes: "storage.k8s.io/storageclasses",
    mark: "storageclass.kubernetes.io/is-default-class",
    old_way: "volume.beta.kubernetes.io/storage-class",
};

pub(super) static INGRESS: DefaultClass = DefaultClass {
    group: "networking.k8s.io",
    plural: "ingresses",
    field: "ingressClassName",
    classes: "networking.k8s.io/ingressclasses",
    mark: "ingressclass.kubernetes.io/is-default-class",
    old_way: "kubernetes.io/ingress.class",
};

impl Plugin for DefaultClass {
    fn mutate(
        &self,
        attributes: &Attributes<'_>,
        new: &mut Object,
        lookup: &dyn Lookup,
    ) -> Result<(), Error> {
        let named = new
            .at(&["spec", self.field])
            .is_some_and(|name| !name.is_null());
        if !attributes.concerns(self.group, self.plural)
            || !attributes.is_create()
            || named
            || new.annotation(self.old_way).is_some()
        {
            return Ok(());
        }
        let classes = lookup.list(self.classes, None);
        // Times are RFC 3339 in UTC with whole seconds, so their text sorts as they do; then by name, downwards.
        let newest = classes
            .iter()
            .map(|class| tree(class))
            .filter(|class| class["metadata"]["annotations"][self.mark] == "true")
            .max_by_key(|class| {
                let text = |key: &str| {
                    class["metadata"][key]
                        .as_str()
                        .unwrap_or_default()
                        .to_owned()
                };
                (text("creationTimestamp"), std::cmp::Reverse(text("name")))
            });
        if let Some(Value::String(name)) = newest.map(|class| class["metadata"]["name"].clone()) {
            new.set(&["spec", self.field], name.into());
        }
        Ok(())
    }
}
