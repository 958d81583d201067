//! A container's environment and arguments: literals, `$(VAR)`, ConfigMaps, Secrets, the downward API, services. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVarSource, Pod, Secret, Service};

use super::downward::{self, Surroundings};
use super::volumes::tokens::Tokens;

/// The objects a pod refers to, as fetched; `None` is one that does not exist.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sources {
    pub(crate) config_maps: BTreeMap<String, Option<Arc<ConfigMap>>>,
    pub(crate) secrets: BTreeMap<String, Option<Arc<Secret>>>,
    pub(crate) tokens: Tokens,
}

/// What a container refers to, by name in the pod's namespace.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Reference {
    ConfigMap(String),
    Secret(String),
}

/// Why a container cannot be configured, in upstream's words: the message of `CreateContainerConfigError`.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum Error {
    #[error("configmap \"{0}\" not found")]
    NoConfigMap(String),
    #[error("secret \"{0}\" not found")]
    NoSecret(String),
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    NoKey {
        key: String,
        kind: &'static str,
        namespace: String,
        name: String,
    },
    #[error("env {name}: {message}")]
    Field { name: String, message: String },
}

/// Everything the environment of `container` needs to be fetched first.
pub(crate) fn references(container: &Container) -> Vec<Reference> {
    let mut references = Vec::new();
    for source in container.env_from.iter().flatten() {
        references.extend(
            source
                .config_map_ref
                .as_ref()
                .map(|map| Reference::ConfigMap(map.name.clone())),
        );
        references.extend(
            source
                .secret_ref
                .as_ref()
                .map(|secret| Reference::Secret(secret.name.clone())),
        );
    }
    for source in container
        .env
        .iter()
        .flatten()
        .filter_map(|env| env.value_from.as_ref())
    {
        references.extend(
            source
                .config_map_key_ref
                .as_ref()
                .map(|key| Reference::ConfigMap(key.name.clone())),
        );
        references.extend(
            source
                .secret_key_ref
                .as_ref()
                .map(|key| Reference::Secret(key.name.clone())),
        );
    }
    references.sort();
    references.dedup();
    references
}

/// Name and value of every variable, each name once: service links, then `envFrom`, then `env`; later ones win.
pub(crate) fn environment(
    pod: &Pod,
    container: &Container,
    sources: &Sources,
    links: &BTreeMap<String, String>,
    around: &Surroundings,
) -> Result<Vec<(String, String)>, Error> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut result = Ordered::default();
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        if let Some(reference) = &source.config_map_ref
            && let Some(map) = config_map(sources, &reference.name, reference.optional)?
        {
            for (key, value) in map.data.iter().flatten() {
                result.set(format!("{prefix}{key}"), value.clone());
            }
        }
        if let Some(reference) = &source.secret_ref
            && let Some(secret) = secret(sources, &reference.name, reference.optional)?
        {
            for (key, value) in secret.data.iter().flatten() {
                result.set(
                    format!("{prefix}{key}"),
                    String::from_utf8_lossy(&value.0).into_owned(),
                );
            }
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (_, Some(from)) => match from_source(
                pod,
                container,
                namespace,
                &variable.name,
                from,
                sources,
                around,
            )? {
                Some(value) => value,
                None => continue,
            },
            (Some(value), None) => expand(value, |name| {
                result.get(name).or_else(|| links.get(name)).cloned()
            }),
            (None, None) => String::new(),
        };
        result.set(variable.name.clone(), value);
    }
    let mut all: Vec<(String, String)> = links
        .iter()
        .filter(|(name, _)| result.get(name).is_none())
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    all.extend(result.entries);
    Ok(all)
}

/// `command` and `args` with `$(VAR)` expanded; `program` stands in when no command is given.
pub(crate) fn arguments(
    container: &Container,
    program: &str,
    environment: &[(String, String)],
) -> Vec<String> {
    let values: BTreeMap<&str, &str> = environment
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let expanded = |text: &String| {
        expand(text, |name| {
            values.get(name).map(|value| (*value).to_owned())
        })
    };
    let command = container.command.as_deref().unwrap_or_default();
    let mut arguments: Vec<String> = command.iter().map(expanded).collect();
    if arguments.is_empty() {
        arguments.push(program.to_owned());
    }
    arguments.extend(container.args.iter().flatten().map(expanded));
    arguments
}

fn from_source(
    pod: &Pod,
    container: &Container,
    namespace: &str,
    variable: &str,
    from: &EnvVarSource,
    sources: &Sources,
    around: &Surroundings,
) -> Result<Option<String>, Error> {
    let missing = |key: &str, kind, name: &str, optional: Option<bool>| match optional {
        Some(true) => Ok(None),
        _ => Err(Error::NoKey {
            key: key.to_owned(),
            kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }),
    };
    let wrong = |message: String| Error::Field {
        name: variable.to_owned(),
        message,
    };
    if let Some(selector) = &from.config_map_key_ref {
        let Some(map) = config_map(sources, &selector.name, selector.optional)? else {
            return Ok(None);
        };
        return match map.data.as_ref().and_then(|data| data.get(&selector.key)) {
            Some(value) => Ok(Some(value.clone())),
            None => missing(
                &selector.key,
                "ConfigMap",
                &selector.name,
                selector.optional,
            ),
        };
    }
    if let Some(selector) = &from.secret_key_ref {
        let Some(secret) = secret(sources, &selector.name, selector.optional)? else {
            return Ok(None);
        };
        return match secret
            .data
            .as_ref()
            .and_then(|data| data.get(&selector.key))
        {
            Some(value) => Ok(Some(String::from_utf8_lossy(&value.0).into_owned())),
            None => missing(&selector.key, "Secret", &selector.name, selector.optional),
        };
    }
    if let Some(selector) = &from.field_ref {
        let value = downward::field(pod, around, &selector.field_path);
        return value
            .map(Some)
            .ok_or_else(|| wrong(format!("unsupported fieldPath: {}", selector.field_path)));
    }
    if let Some(selector) = &from.resource_field_ref {
        return downward::resource(pod, Some(container), selector, around)
            .map(Some)
            .map_err(wrong);
    }
    Err(wrong(
        "valueFrom names no source this node knows".to_owned(),
    ))
}

fn config_map<'a>(
    sources: &'a Sources,
    name: &str,
    optional: Option<bool>,
) -> Result<Option<&'a ConfigMap>, Error> {
    match sources.config_maps.get(name).and_then(Option::as_deref) {
        None if optional != Some(true) => Err(Error::NoConfigMap(name.to_owned())),
        found => Ok(found),
    }
}

fn secret<'a>(
    sources: &'a Sources,
    name: &str,
    optional: Option<bool>,
) -> Result<Option<&'a Secret>, Error> {
    match sources.secrets.get(name).and_then(Option::as_deref) {
        None if optional != Some(true) => Err(Error::NoSecret(name.to_owned())),
        found => Ok(found),
    }
}

/// `$(NAME)` becomes its value, `$$` a dollar; a name nobody knows stays as it is written.
pub(crate) fn expand(text: &str, value: impl Fn(&str) -> Option<String>) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        result.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            result.push('$');
            rest = after;
        } else if let Some((name, after)) = rest
            .strip_prefix('(')
            .and_then(|inner| inner.split_once(')'))
        {
            match value(name) {
                Some(value) => result.push_str(&value),
                None => result.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            result.push('$');
        }
    }
    result.push_str(rest);
    result
}

/// The variables every pod of a namespace gets for the services in it, and for `default/kubernetes`.
pub(crate) fn service_links<'a>(
    services: impl Iterator<Item = &'a Service>,
    namespace: &str,
    all: bool,
) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    for service in services {
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let own = service.metadata.namespace.as_deref().unwrap_or_default();
        let is_api = own == "default" && name == "kubernetes";
        let wanted = is_api || (all && own == namespace);
        if !wanted {
            continue;
        }
        let Some(spec) = &service.spec else { continue };
        let Some(ip) = spec
            .cluster_ip
            .as_deref()
            .filter(|ip| !ip.is_empty() && *ip != "None")
        else {
            continue;
        };
        let prefix = name.to_uppercase().replace('-', "_");
        for (index, port) in spec.ports.iter().flatten().enumerate() {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let (number, lower) = (port.port, protocol.to_lowercase());
            if index == 0 {
                variables.insert(format!("{prefix}_SERVICE_HOST"), ip.to_owned());
                variables.insert(format!("{prefix}_SERVICE_PORT"), number.to_string());
                variables.insert(format!("{prefix}_PORT"), format!("{lower}://{ip}:{number}"));
            }
            if let Some(port_name) = &port.name {
                let port_name = port_name.to_uppercase().replace('-', "_");
                variables.insert(
                    format!("{prefix}_SERVICE_PORT_{port_name}"),
                    number.to_string(),
                );
            }
            let one = format!("{prefix}_PORT_{number}_{}", protocol.to_uppercase());
            variables.insert(one.clone(), format!("{lower}://{ip}:{number}"));
            variables.insert(format!("{one}_PROTO"), lower);
            variables.insert(format!("{one}_PORT"), number.to_string());
            variables.insert(format!("{one}_ADDR"), ip.to_owned());
        }
    }
    variables
}

/// Variables in order of first mention, each once.
#[derive(Default)]
struct Ordered {
    entries: Vec<(String, String)>,
}

impl Ordered {
    fn set(&mut self, name: String, value: String) {
        match self.entries.iter_mut().find(|(known, _)| *known == name) {
            Some(entry) => entry.1 = value,
            None => self.entries.push((name, value)),
        }
    }

    fn get(&self, name: &str) -> Option<&String> {
        self.entries
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(container: serde_json::Value) -> Result<Vec<(String, String)>, Error> {
        let container: Container =
            serde_json::from_value(container).expect("the test's container is well formed");
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "web", "namespace": "default"}, "spec": {"containers": []}}))
        .expect("well formed");
        let map: ConfigMap =
            serde_json::from_value(serde_json::json!({"data": {"colour": "red", "size": "9"}}))
                .expect("well formed");
        let secret: Secret =
            serde_json::from_value(serde_json::json!({"data": {"token": "aHVzaA=="}}))
                .expect("well formed");
        let sources = Sources {
            config_maps: BTreeMap::from([
                ("settings".to_owned(), Some(Arc::new(map))),
                ("gone".to_owned(), None),
            ]),
            secrets: BTreeMap::from([("keys".to_owned(), Some(Arc::new(secret)))]),
            ..Sources::default()
        };
        let links = BTreeMap::from([("DB_SERVICE_HOST".to_owned(), "10.96.0.7".to_owned())]);
        environment(&pod, &container, &sources, &links, &Surroundings::default())
    }

    fn value(result: &Result<Vec<(String, String)>, Error>, name: &str) -> Option<String> {
        let entries = result.as_ref().expect("configured");
        entries
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.clone())
    }

    #[test]
    fn every_source_is_read_and_later_ones_win() {
        let result = check(serde_json::json!({"name": "app",
            "envFrom": [{"prefix": "C_", "configMapRef": {"name": "settings"}}, {"secretRef": {"name": "keys"}}],
            "env": [
                {"name": "C_size", "value": "10"},
                {"name": "URL", "value": "http://$(DB_SERVICE_HOST)/$(C_size)$(NOPE)$$(x)"},
                {"name": "COLOUR", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "colour"}}},
                {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "MAYBE", "valueFrom": {"configMapKeyRef": {"name": "gone", "key": "x", "optional": true}}}]}));
        assert_eq!(value(&result, "C_colour").as_deref(), Some("red"));
        assert_eq!(value(&result, "token").as_deref(), Some("hush"));
        assert_eq!(
            value(&result, "URL").as_deref(),
            Some("http://10.96.0.7/10$(NOPE)$(x)")
        );
        assert_eq!(value(&result, "COLOUR").as_deref(), Some("red"));
        assert_eq!(value(&result, "POD").as_deref(), Some("web"));
        assert_eq!(value(&result, "MAYBE"), None);
        let names: Vec<String> = result
            .expect("configured")
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        let mut unique = names.clone();
        unique.sort();
        unique.dedup();
        assert_eq!(names.len(), unique.len(), "each name once");
    }

    #[test]
    fn what_is_missing_is_named() {
        let env = |from: serde_json::Value| {
            check(serde_json::json!({"name": "app", "env": [{"name": "X", "valueFrom": from}]}))
                .expect_err("something is missing")
                .to_string()
        };
        assert_eq!(
            env(serde_json::json!({"configMapKeyRef": {"name": "gone", "key": "a"}})),
            "configmap \"gone\" not found"
        );
        assert_eq!(
            env(serde_json::json!({"secretKeyRef": {"name": "keys", "key": "a"}})),
            "couldn't find key a in Secret default/keys"
        );
    }

    #[test]
    fn arguments_are_expanded_and_a_program_name_is_always_there() {
        let container: Container =
            serde_json::from_value(serde_json::json!({"name": "app", "args": ["--to=$(A)"]}))
                .expect("well formed");
        let environment = [("A".to_owned(), "b".to_owned())];
        assert_eq!(
            arguments(&container, "app", &environment),
            ["app", "--to=b"]
        );
    }

    #[test]
    fn services_become_variables() {
        let service: Service = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "redis-main", "namespace": "default"},
            "spec": {"clusterIP": "10.96.0.9", "ports": [{"port": 6379, "name": "db"}]}}))
        .expect("well formed");
        let links = service_links(std::iter::once(&service), "default", true);
        assert_eq!(links["REDIS_MAIN_SERVICE_HOST"], "10.96.0.9");
        assert_eq!(links["REDIS_MAIN_PORT_6379_TCP"], "tcp://10.96.0.9:6379");
        assert_eq!(links["REDIS_MAIN_SERVICE_PORT_DB"], "6379");
        assert!(service_links(std::iter::once(&service), "default", false).is_empty());
    }
}
