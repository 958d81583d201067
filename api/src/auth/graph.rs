//! Which node has to do with which object: what the pods bound to it refer to, and what Ingresses and Gateways need
//! everywhere. An index that is kept as pods come and go; a question is two look-ups.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;
use types::routing::gateway_api::ReferenceGrantSpec;
use types::routing::lets;
use types::well_known::{GATEWAY_CONTROLLER, INGRESS_CONTROLLER};

use super::live::Derived;
use crate::store::{Key, Stored};

const PODS: &str = "pods";
const INGRESSES: &str = "networking.k8s.io/ingresses";
const GATEWAYS: &str = "gateway.networking.k8s.io/gateways";
const INGRESS_CLASSES: &str = "networking.k8s.io/ingressclasses";
const GATEWAY_CLASSES: &str = "gateway.networking.k8s.io/gatewayclasses";
const INGRESS_CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";
const REFERENCE_GRANTS: &str = "gateway.networking.k8s.io/referencegrants";

/// What nodes may read because something refers to it.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum What {
    Secret,
    ConfigMap,
    Claim,
    Account,
}

/// An object that is referred to.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Object {
    pub(crate) what: What,
    namespace: Arc<str>,
    name: Box<str>,
}

/// A pod's node, and the objects it refers to.
type Refers = (Arc<str>, Vec<Object>);

#[derive(Default)]
pub(super) struct Graph {
    /// How many pods of each node refer to it.
    by_node: HashMap<Object, HashMap<Arc<str>, usize>>,
    /// Pod → its node and what it refers to, so that its end takes that out.
    pods: HashMap<(Arc<str>, Arc<str>), Refers>,
    /// Secrets with certificates that any node may have to show, and which Ingresses and Gateways name them.
    certificates: HashMap<Object, Vec<Key>>,
    fronts: HashMap<Key, Front>,
    /// Classes that the nodes serve. Others' Ingresses and Gateways are no reason to read anything.
    classes: HashSet<Class>,
    /// Namespace and name → what it lets others refer to.
    grants: HashMap<(Arc<str>, Arc<str>), Grant>,
}

/// An Ingress or a Gateway.
struct Front {
    class: Class,
    secrets: Vec<Object>,
}

/// Resource and name of an IngressClass or a GatewayClass.
type Class = (&'static str, Box<str>);

/// A ReferenceGrant.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Grant {
    spec: ReferenceGrantSpec,
}

// === impl Graph ===

impl Graph {
    /// Does a pod of `node` refer to it?
    pub(super) fn has(&self, node: &str, what: What, namespace: &str, name: &str) -> bool {
        let object = Object {
            what,
            namespace: namespace.into(),
            name: name.into(),
        };
        let by_pods = self.by_node.get(&object);
        by_pods.is_some_and(|nodes| nodes.contains_key(node))
            || what == What::Secret && self.is_certificate(&object)
    }

    fn is_certificate(&self, secret: &Object) -> bool {
        let named_by = self.certificates.get(secret).into_iter().flatten();
        named_by.into_iter().any(|key| {
            let front = self.fronts.get(key);
            let served = front.is_some_and(|front| self.classes.contains(&front.class));
            served && (key.namespace == secret.namespace || self.is_granted(&key.namespace, secret))
        })
    }

    /// Named from another namespace: only where that one lets it.
    fn is_granted(&self, from: &str, secret: &Object) -> bool {
        let of_its_namespace = self
            .grants
            .iter()
            .filter(|((namespace, _), _)| *namespace == secret.namespace);
        let mut grants = of_its_namespace.map(|(_, grant)| &grant.spec);
        grants.any(|grant| lets(grant, ("Gateway", from), ("Secret", &secret.name)))
    }

    fn pod(&mut self, key: &Key, old: Option<&Stored>, new: Option<&Stored>) {
        let node = |stored: &Stored| {
            let node = stored.index.field("spec.nodeName").unwrap_or_default();
            node.to_owned()
        };
        let before = old.map(node).unwrap_or_default();
        let after = new.map(node).unwrap_or_default();
        let at = (Arc::clone(&key.namespace), Arc::clone(&key.name));
        let same = old
            .zip(new)
            .is_some_and(|(old, new)| old.index.uid == new.index.uid);
        // What a bound pod refers to changes with its ephemeral containers alone; most of its changes are its status.
        let fixed = new.is_none_or(|new| !may_have_ephemeral_containers(&new.bytes));
        if same && fixed && before == after && self.pods.contains_key(&at) != after.is_empty() {
            return;
        }
        if let Some((node, objects)) = self.pods.remove(&at) {
            for object in objects {
                if let Some(nodes) = self.by_node.get_mut(&object) {
                    if let Some(count) = nodes.get_mut(&node) {
                        *count -= 1;
                        if *count == 0 {
                            nodes.remove(&node);
                        }
                    }
                    if nodes.is_empty() {
                        self.by_node.remove(&object);
                    }
                }
            }
        }
        let Some(new) = new.filter(|_| !after.is_empty()) else {
            return;
        };
        let pod: Value = serde_json::from_slice(&new.bytes).unwrap_or_default();
        let node: Arc<str> = after.into();
        let objects = references(&key.namespace, &pod);
        for object in &objects {
            let nodes = self.by_node.entry(object.clone()).or_default();
            *nodes.entry(Arc::clone(&node)).or_default() += 1;
        }
        self.pods.insert(at, (node, objects));
    }

    fn front(&mut self, key: &Key, new: Option<&Stored>) {
        let before = self.fronts.remove(key);
        for secret in before.into_iter().flat_map(|front| front.secrets) {
            if let Some(named_by) = self.certificates.get_mut(&secret) {
                named_by.retain(|other| other != key);
                if named_by.is_empty() {
                    self.certificates.remove(&secret);
                }
            }
        }
        let Some(new) = new else { return };
        let object: Value = serde_json::from_slice(&new.bytes).unwrap_or_default();
        let front = if &*key.resource == INGRESSES {
            ingress(key, &object)
        } else {
            gateway(key, &object)
        };
        for secret in &front.secrets {
            let named_by = self.certificates.entry(secret.clone()).or_default();
            if !named_by.contains(key) {
                named_by.push(key.clone());
            }
        }
        self.fronts.insert(key.clone(), front);
    }

    fn class(&mut self, key: &Key, new: Option<&Stored>) {
        let (resource, field, ours) = match &*key.resource {
            INGRESS_CLASSES => (INGRESS_CLASSES, "controller", INGRESS_CONTROLLER),
            _ => (GATEWAY_CLASSES, "controllerName", GATEWAY_CONTROLLER),
        };
        let class: Class = (resource, Box::from(&*key.name));
        let object: Option<Value> = new.and_then(|new| serde_json::from_slice(&new.bytes).ok());
        if object.is_some_and(|object| object["spec"][field] == ours) {
            self.classes.insert(class);
        } else {
            self.classes.remove(&class);
        }
    }

    fn grant(&mut self, key: &Key, new: Option<&Stored>) {
        let at = (Arc::clone(&key.namespace), Arc::clone(&key.name));
        self.grants.remove(&at);
        let Some(new) = new else { return };
        // What cannot be read lets nobody do anything.
        let grant: Grant = serde_json::from_slice(&new.bytes).unwrap_or_default();
        self.grants.insert(at, grant);
    }
}

impl Derived for Graph {
    const RESOURCES: &'static [&'static str] = &[
        PODS,
        INGRESSES,
        GATEWAYS,
        INGRESS_CLASSES,
        GATEWAY_CLASSES,
        REFERENCE_GRANTS,
    ];

    fn apply(&mut self, key: &Key, old: Option<&Stored>, new: Option<&Stored>) {
        match &*key.resource {
            PODS => self.pod(key, old, new),
            REFERENCE_GRANTS => self.grant(key, new),
            INGRESS_CLASSES | GATEWAY_CLASSES => self.class(key, new),
            _ => self.front(key, new),
        }
    }
}

fn ingress(key: &Key, object: &Value) -> Front {
    let annotation = &object["metadata"]["annotations"][INGRESS_CLASS_ANNOTATION];
    let class = object["spec"]["ingressClassName"].as_str();
    let class = class.or(annotation.as_str()).unwrap_or_default();
    let tls = object["spec"]["tls"].as_array().into_iter().flatten();
    Front {
        class: (INGRESS_CLASSES, class.into()),
        secrets: tls
            .filter_map(|tls| secret(&key.namespace, &tls["secretName"]))
            .collect(),
    }
}

fn gateway(key: &Key, object: &Value) -> Front {
    let class = object["spec"]["gatewayClassName"].as_str();
    let listeners = object["spec"]["listeners"].as_array().into_iter().flatten();
    let references = listeners.flat_map(|listener| {
        let references = listener["tls"]["certificateRefs"].as_array();
        references.into_iter().flatten()
    });
    let text = |reference: &Value, key: &str| reference[key].as_str().map(str::to_owned);
    Front {
        class: (GATEWAY_CLASSES, class.unwrap_or_default().into()),
        secrets: references
            .filter(|reference| {
                text(reference, "group").is_none_or(|group| group.is_empty())
                    && text(reference, "kind").is_none_or(|kind| kind == "Secret")
            })
            .filter_map(|reference| {
                let namespace = reference["namespace"].as_str().unwrap_or(&key.namespace);
                secret(namespace, &reference["name"])
            })
            .collect(),
    }
}

fn secret(namespace: &str, name: &Value) -> Option<Object> {
    let name = name.as_str().filter(|name| !name.is_empty())?;
    Some(Object {
        what: What::Secret,
        namespace: namespace.into(),
        name: name.into(),
    })
}

/// Without reading all of it.
fn may_have_ephemeral_containers(pod: &[u8]) -> bool {
    std::str::from_utf8(pod).is_ok_and(|text| text.contains("\"ephemeralContainers\""))
}

/// Everything a pod refers to, each once. What a node may read because of a pod, and what a pod that a node makes by itself
/// must not have.
pub(crate) fn references(namespace: &Arc<str>, pod: &Value) -> Vec<Object> {
    let mut objects: Vec<Object> = Vec::new();
    let mut add = |what: What, name: &Value| {
        let Some(name) = name.as_str().filter(|name| !name.is_empty()) else {
            return;
        };
        let object = Object {
            what,
            namespace: Arc::clone(namespace),
            name: name.into(),
        };
        if !objects.contains(&object) {
            objects.push(object);
        }
    };
    let spec = &pod["spec"];
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    add(What::Account, &spec["serviceAccountName"]);
    for secret in list(&spec["imagePullSecrets"]) {
        add(What::Secret, &secret["name"]);
    }
    for kind in ["initContainers", "containers", "ephemeralContainers"] {
        for container in list(&spec[kind]) {
            for source in list(&container["envFrom"]) {
                add(What::ConfigMap, &source["configMapRef"]["name"]);
                add(What::Secret, &source["secretRef"]["name"]);
            }
            for variable in list(&container["env"]) {
                let from = &variable["valueFrom"];
                add(What::ConfigMap, &from["configMapKeyRef"]["name"]);
                add(What::Secret, &from["secretKeyRef"]["name"]);
            }
        }
    }
    for volume in list(&spec["volumes"]) {
        add(What::ConfigMap, &volume["configMap"]["name"]);
        add(What::Secret, &volume["secret"]["secretName"]);
        add(What::Claim, &volume["persistentVolumeClaim"]["claimName"]);
        if volume["ephemeral"].is_object() {
            let pod = pod["metadata"]["name"].as_str().unwrap_or_default();
            let name = format!("{pod}-{}", volume["name"].as_str().unwrap_or_default());
            add(What::Claim, &name.into());
        }
        add(What::Secret, &volume["azureFile"]["secretName"]);
        // Whatever the volume is: `csi`, `cephfs`, `rbd` and others.
        for source in volume.as_object().into_iter().flatten() {
            add(What::Secret, &source.1["secretRef"]["name"]);
            add(What::Secret, &source.1["nodePublishSecretRef"]["name"]);
        }
        for source in list(&volume["projected"]["sources"]) {
            add(What::ConfigMap, &source["configMap"]["name"]);
            add(What::Secret, &source["secret"]["name"]);
        }
    }
    objects
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::store::Index;

    struct World(Graph, HashMap<Key, Stored>);

    impl World {
        fn put(&mut self, resource: &str, name: &str, object: Option<Value>) {
            let key = Key::new(resource, "ns", name);
            let stored = object.map(|object| Stored {
                key: key.clone(),
                revision: 1,
                created: 1,
                index: Index {
                    uid: object["metadata"]["uid"].as_str().unwrap_or("u").into(),
                    fields: [(
                        "spec.nodeName",
                        object["spec"]["nodeName"]
                            .as_str()
                            .unwrap_or_default()
                            .into(),
                    )]
                    .into(),
                    ..Index::default()
                },
                bytes: object.to_string().into(),
            });
            let old = self.1.remove(&key);
            self.0.apply(&key, old.as_ref(), stored.as_ref());
            if let Some(stored) = stored {
                self.1.insert(key, stored);
            }
        }

        fn secret(&self, node: &str, name: &str) -> bool {
            self.0.has(node, What::Secret, "ns", name)
        }
    }

    fn pod(node: &str, secret: &str) -> Value {
        json!({"metadata": {"name": "p"}, "spec": {"nodeName": node, "serviceAccountName": "robot", "containers": [
            {"env": [{"valueFrom": {"secretKeyRef": {"name": secret}}}], "envFrom": [{"configMapRef": {"name": "env"}}]}],
            "imagePullSecrets": [{"name": "pull"}],
            "volumes": [{"persistentVolumeClaim": {"claimName": "data"}},
                {"name": "tmp", "ephemeral": {}},
                {"projected": {"sources": [{"configMap": {"name": "ca"}}, {"secret": {"name": "more"}}]}}]}})
    }

    #[test]
    fn a_node_has_to_do_with_what_its_pods_refer_to() {
        let mut world = World(Graph::default(), HashMap::new());
        world.put(PODS, "a", Some(pod("", "s")));
        assert!(!world.secret("n1", "s"), "not bound yet");
        world.put(PODS, "a", Some(pod("n1", "s")));
        for secret in ["s", "pull", "more"] {
            assert!(world.secret("n1", secret), "{secret}");
            assert!(!world.secret("n2", secret), "{secret}");
        }
        for (what, name) in [
            (What::ConfigMap, "env"),
            (What::ConfigMap, "ca"),
            (What::Claim, "data"),
            (What::Claim, "p-tmp"),
            (What::Account, "robot"),
        ] {
            assert!(world.0.has("n1", what, "ns", name), "{name}");
            assert!(!world.0.has("n1", what, "other", name), "{name}");
        }
        assert!(!world.secret("n1", "env"), "a ConfigMap is no Secret");
        world.put(PODS, "b", Some(pod("n1", "s")));
        world.put(PODS, "a", None);
        assert!(world.secret("n1", "s"), "the other pod has it");
        world.put(PODS, "b", None);
        assert!(!world.secret("n1", "s"));
        assert!(world.0.by_node.is_empty(), "nothing is left");
    }

    #[test]
    fn volumes_name_secrets_in_many_ways() {
        for volume in [
            json!({"csi": {"driver": "d", "nodePublishSecretRef": {"name": "s"}}}),
            json!({"cephfs": {"secretRef": {"name": "s"}}}),
            json!({"azureFile": {"secretName": "s"}}),
            json!({"secret": {"secretName": "s"}}),
            json!({"projected": {"sources": [{"secret": {"name": "s"}}]}}),
        ] {
            let pod = json!({"metadata": {"name": "p"}, "spec": {"volumes": [volume.clone()]}});
            let found = references(&"ns".into(), &pod);
            let found: Vec<_> = found.iter().map(|o| (o.what, &*o.name)).collect();
            assert_eq!(found, [(What::Secret, "s")], "{volume}");
        }
    }

    #[test]
    fn an_ephemeral_container_refers_to_what_it_came_with() {
        let mut world = World(Graph::default(), HashMap::new());
        world.put(PODS, "a", Some(pod("n1", "s")));
        let mut debugged = pod("n1", "s");
        debugged["spec"]["ephemeralContainers"] =
            json!([{"name": "d", "envFrom": [{"secretRef": {"name": "late"}}]}]);
        world.put(PODS, "a", Some(debugged));
        assert!(world.secret("n1", "late") && world.secret("n1", "s"));
        world.put(PODS, "a", None);
        assert!(world.0.by_node.is_empty(), "nothing is left");
    }

    #[test]
    fn a_pod_of_the_same_name_is_another() {
        let mut world = World(Graph::default(), HashMap::new());
        world.put(PODS, "a", Some(pod("n1", "s")));
        let mut other = pod("n1", "t");
        other["metadata"]["uid"] = json!("other");
        world.put(PODS, "a", Some(other));
        assert!(world.secret("n1", "t"));
        assert!(!world.secret("n1", "s"));
    }

    #[test]
    fn certificates_of_ingresses_and_gateways_are_every_nodes() {
        let mut world = World(Graph::default(), HashMap::new());
        let ours = json!({"spec": {"controller": "coracle.dev/ingress"}});
        world.put(INGRESS_CLASSES, "c", Some(ours));
        let ours = json!({"spec": {"controllerName": "coracle.dev/gateway"}});
        world.put(GATEWAY_CLASSES, "c", Some(ours.clone()));
        let ingress = json!({"spec": {"ingressClassName": "c", "tls": [{"hosts": ["a"], "secretName": "web"}]}});
        world.put(INGRESSES, "i", Some(ingress.clone()));
        world.put(INGRESSES, "j", Some(ingress));
        let gateway = json!({"spec": {"gatewayClassName": "c", "listeners": [{"tls": {"certificateRefs": [
            {"name": "front"}, {"name": "far", "namespace": "other"}, {"name": "map", "kind": "ConfigMap"}]}}]}});
        world.put(GATEWAYS, "g", Some(gateway));
        assert!(world.secret("n1", "web") && world.secret("n2", "front"));
        assert!(!world.secret("n1", "map"));
        world.put(GATEWAY_CLASSES, "c", None);
        assert!(!world.secret("n2", "front"), "nobody's Gateway");
        world.put(GATEWAY_CLASSES, "c", Some(ours));
        let other = json!({"spec": {"controller": "k8s.io/ingress-nginx"}});
        world.put(INGRESS_CLASSES, "nginx", Some(other));
        let foreign =
            json!({"spec": {"ingressClassName": "nginx", "tls": [{"secretName": "theirs"}]}});
        world.put(INGRESSES, "k", Some(foreign));
        assert!(
            !world.secret("n1", "theirs"),
            "another controller's Ingress"
        );
        let old = json!({"metadata": {"annotations": {"kubernetes.io/ingress.class": "c"}}, "spec": {"tls": [{"secretName": "old"}]}});
        world.put(INGRESSES, "l", Some(old));
        assert!(world.secret("n1", "old"), "by annotation");
        let far = |world: &World| world.0.has("n1", What::Secret, "other", "far");
        assert!(!far(&world), "nobody let it");
        let from = |kind: &str, namespace: &str| json!([{"group": "gateway.networking.k8s.io", "kind": kind, "namespace": namespace}]);
        let to = |kind: &str, name: Value| json!([{"group": "", "kind": kind, "name": name}]);
        let ours = from("Gateway", "ns");
        for (from, to, expected) in [
            (&ours, to("Secret", "near".into()), false),
            (&ours, to("Service", "far".into()), false),
            (&from("HTTPRoute", "ns"), to("Secret", "far".into()), false),
            (&from("Gateway", "no"), to("Secret", "far".into()), false),
            (&ours, to("Secret", "".into()), true),
            (&ours, json!([{"group": "", "kind": "Secret"}]), true),
            (&ours, to("Secret", "far".into()), true),
        ] {
            let grant = json!({"metadata": {"name": "r", "namespace": "other"}, "spec": {"from": from, "to": to}});
            let key = Key::new(REFERENCE_GRANTS, "other", "r");
            let stored = Stored {
                key: key.clone(),
                revision: 1,
                created: 1,
                bytes: grant.to_string().into(),
                index: Index::default(),
            };
            world.0.apply(&key, None, Some(&stored));
            assert_eq!(far(&world), expected, "{grant}");
            // The compiler of routes says the same to the Gateway's owner.
            assert_eq!(compiled_says(&grant), expected, "{grant}");
        }
        world.put(INGRESSES, "i", None);
        assert!(world.secret("n1", "web"), "the other Ingress has it");
        world.put(INGRESSES, "j", None);
        assert!(!world.secret("n1", "web"));
    }

    /// Does a Gateway of `ns` get its certificate from Secret `far` of `other`?
    fn compiled_says(grant: &Value) -> bool {
        use types::routing::{Key, Secret, World, compile};
        let class =
            json!({"metadata": {"name": "c"}, "spec": {"controllerName": GATEWAY_CONTROLLER}});
        let listener = json!({"name": "tls", "port": 443, "protocol": "HTTPS",
            "tls": {"certificateRefs": [{"name": "far", "namespace": "other"}]}});
        let gateway = json!({"metadata": {"name": "g", "namespace": "ns"},
            "spec": {"gatewayClassName": "c", "listeners": [listener]}});
        let compiled = compile(&World {
            gateway_classes: vec![Arc::new(serde_json::from_value(class).unwrap())],
            gateways: vec![Arc::new(serde_json::from_value(gateway).unwrap())],
            grants: vec![Arc::new(serde_json::from_value(grant.clone()).unwrap())],
            secrets: [(Key::new("other", "far"), Secret::Good)].into(),
            ..World::default()
        });
        compiled.gateways[0].conditions[0].reason == "Accepted"
    }
}
