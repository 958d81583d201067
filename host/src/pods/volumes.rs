//! A pod's volumes: what is in them (pure, here) and where on the node they lie (`directory.rs`). Guests see directories
//! only, so every volume is one; nothing here knows how a guest is run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{
    ConfigMap, Container, DownwardAPIVolumeFile, KeyToPath, Pod, Secret, Volume, VolumeProjection,
};
use types::quantity::Quantity;

use super::downward::{self, Surroundings};
use super::environment::{Reference, Sources, expand};

pub(crate) mod directory;
pub(crate) mod tokens;

/// What a volume holds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Contents {
    /// Written by this node, read-only for guests, swapped as a whole when a source changes.
    Files(BTreeMap<String, File>),
    /// Empty at first, kept while the pod lives. Bytes, when limited.
    Scratch { size_limit: Option<u64> },
    /// A directory of the machine.
    Host { path: PathBuf, create: bool },
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct File {
    pub(crate) bytes: Vec<u8>,
    pub(crate) mode: u32,
}

/// Why a volume cannot be made, as in the `FailedMount` Event.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("configmap \"{0}\" not found")]
    NoConfigMap(String),
    #[error("secret \"{0}\" not found")]
    NoSecret(String),
    #[error("no token for {0:?}")]
    NoToken(String),
    #[error("references non-existent {kind} key: {key}")]
    NoKey { kind: &'static str, key: String },
    #[error("{0}")]
    Field(String),
    #[error("hostPath type check failed: {0} is not a directory")]
    NotADirectory(PathBuf),
    #[error("could not write {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

const DEFAULT_MODE: i32 = 0o644;
/// Whatever the volume says: a token is its owner's alone.
const TOKEN_MODE: i32 = 0o600;

/// The volumes some container mounts; others cost nothing.
pub(crate) fn mounted(pod: &Pod) -> Vec<&Volume> {
    let Some(spec) = &pod.spec else {
        return Vec::new();
    };
    let used = |name: &str| {
        let mut containers = spec
            .init_containers
            .iter()
            .flatten()
            .chain(&spec.containers);
        containers.any(|container| {
            container
                .volume_mounts
                .iter()
                .flatten()
                .any(|mount| mount.name == name)
        })
    };
    spec.volumes
        .iter()
        .flatten()
        .filter(|volume| used(&volume.name))
        .collect()
}

/// The objects to fetch before [`contents`] can answer.
pub(crate) fn references(volumes: &[&Volume]) -> Vec<Reference> {
    let mut references = Vec::new();
    for volume in volumes {
        references.extend(
            volume
                .config_map
                .as_ref()
                .map(|map| Reference::ConfigMap(map.name.clone())),
        );
        let secret = volume
            .secret
            .as_ref()
            .and_then(|secret| secret.secret_name.clone());
        references.extend(secret.map(Reference::Secret));
        let projected = volume
            .projected
            .iter()
            .flat_map(|projected| projected.sources.iter().flatten());
        for source in projected {
            references.extend(
                source
                    .config_map
                    .as_ref()
                    .map(|map| Reference::ConfigMap(map.name.clone())),
            );
            references.extend(
                source
                    .secret
                    .as_ref()
                    .map(|secret| Reference::Secret(secret.name.clone())),
            );
        }
    }
    references.sort();
    references.dedup();
    references
}

/// Does it follow objects that may change while the pod runs?
pub(crate) fn is_live(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
}

pub(crate) fn contents(
    pod: &Pod,
    volume: &Volume,
    sources: &Sources,
    around: &Surroundings,
) -> Result<Contents, Error> {
    let mut files = BTreeMap::new();
    if let Some(source) = &volume.config_map {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        config_map(
            &mut files,
            sources,
            &source.name,
            source.items.as_deref(),
            source.optional,
            mode,
        )?;
    } else if let Some(source) = &volume.secret {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        let name = source.secret_name.as_deref().unwrap_or_default();
        secret(
            &mut files,
            sources,
            name,
            source.items.as_deref(),
            source.optional,
            mode,
        )?;
    } else if let Some(source) = &volume.downward_api {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        downward(
            &mut files,
            pod,
            source.items.as_deref().unwrap_or_default(),
            mode,
            around,
        )?;
    } else if let Some(source) = &volume.projected {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        for projection in source.sources.iter().flatten() {
            if let Some(source) = &projection.service_account_token {
                let key = (volume.name.clone(), source.path.clone());
                let token = sources.tokens.get(&key).cloned();
                let token = token.ok_or_else(|| Error::NoToken(source.path.clone()))?;
                files.insert(clean(&source.path)?, File::new(token, TOKEN_MODE));
            }
            projected(&mut files, pod, projection, mode, sources, around)?;
        }
    } else if let Some(source) = &volume.empty_dir {
        let limit = source
            .size_limit
            .as_ref()
            .and_then(|quantity| Quantity::try_from(quantity).ok());
        return Ok(Contents::Scratch {
            size_limit: limit.map(|limit| limit.bytes()).filter(|bytes| *bytes > 0),
        });
    } else if let Some(source) = &volume.host_path {
        return Ok(Contents::Host {
            path: PathBuf::from(&source.path),
            create: source.type_.as_deref() == Some("DirectoryOrCreate"),
        });
    } else {
        // A volume without any source is an emptyDir upstream too.
        return Ok(Contents::Scratch { size_limit: None });
    }
    Ok(Contents::Files(files))
}

type Files = BTreeMap<String, File>;

fn config_map(
    files: &mut Files,
    sources: &Sources,
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
    mode: i32,
) -> Result<(), Error> {
    let found: Option<&ConfigMap> = sources.config_maps.get(name).and_then(Option::as_deref);
    let Some(map) = found else {
        return if optional == Some(true) {
            Ok(())
        } else {
            Err(Error::NoConfigMap(name.to_owned()))
        };
    };
    let mut data: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
    data.extend(
        map.data
            .iter()
            .flatten()
            .map(|(key, value)| (key.as_str(), value.clone().into_bytes())),
    );
    data.extend(
        map.binary_data
            .iter()
            .flatten()
            .map(|(key, value)| (key.as_str(), value.0.clone())),
    );
    chosen(files, data, "config", items, optional, mode)
}

fn secret(
    files: &mut Files,
    sources: &Sources,
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
    mode: i32,
) -> Result<(), Error> {
    let found: Option<&Secret> = sources.secrets.get(name).and_then(Option::as_deref);
    let Some(secret) = found else {
        return if optional == Some(true) {
            Ok(())
        } else {
            Err(Error::NoSecret(name.to_owned()))
        };
    };
    let data = secret
        .data
        .iter()
        .flatten()
        .map(|(key, value)| (key.as_str(), value.0.clone()))
        .collect();
    chosen(files, data, "secret", items, optional, mode)
}

/// All keys, or those of `items` at their own paths.
fn chosen(
    files: &mut Files,
    mut data: BTreeMap<&str, Vec<u8>>,
    kind: &'static str,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
    mode: i32,
) -> Result<(), Error> {
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        files.extend(
            data.into_iter()
                .map(|(key, bytes)| (key.to_owned(), File::new(bytes, mode))),
        );
        return Ok(());
    };
    for item in items {
        match data.remove(item.key.as_str()) {
            Some(bytes) => {
                files.insert(
                    clean(&item.path)?,
                    File::new(bytes, item.mode.unwrap_or(mode)),
                );
            }
            None if optional == Some(true) => {}
            None => {
                return Err(Error::NoKey {
                    kind,
                    key: item.key.clone(),
                });
            }
        }
    }
    Ok(())
}

fn downward(
    files: &mut Files,
    pod: &Pod,
    items: &[DownwardAPIVolumeFile],
    mode: i32,
    around: &Surroundings,
) -> Result<(), Error> {
    for item in items {
        let value = match (&item.field_ref, &item.resource_field_ref) {
            (Some(selector), _) => {
                downward::field(pod, around, &selector.field_path).ok_or_else(|| {
                    Error::Field(format!("unsupported fieldPath: {}", selector.field_path))
                })?
            }
            (None, Some(selector)) => {
                downward::resource(pod, None, selector, around).map_err(Error::Field)?
            }
            (None, None) => String::new(),
        };
        files.insert(
            clean(&item.path)?,
            File::new(value.into_bytes(), item.mode.unwrap_or(mode)),
        );
    }
    Ok(())
}

fn projected(
    files: &mut Files,
    pod: &Pod,
    projection: &VolumeProjection,
    mode: i32,
    sources: &Sources,
    around: &Surroundings,
) -> Result<(), Error> {
    if let Some(source) = &projection.config_map {
        config_map(
            files,
            sources,
            &source.name,
            source.items.as_deref(),
            source.optional,
            mode,
        )?;
    }
    if let Some(source) = &projection.secret {
        secret(
            files,
            sources,
            &source.name,
            source.items.as_deref(),
            source.optional,
            mode,
        )?;
    }
    if let Some(source) = &projection.downward_api {
        downward(
            files,
            pod,
            source.items.as_deref().unwrap_or_default(),
            mode,
            around,
        )?;
    }
    Ok(())
}

/// A path below the volume; the API has validated it, the node does not rely on that.
fn clean(path: &str) -> Result<String, Error> {
    let safe = !path.is_empty()
        && !path.starts_with("..")
        && Path::new(path)
            .components()
            .all(|part| matches!(part, std::path::Component::Normal(_)));
    if safe {
        Ok(path.to_owned())
    } else {
        Err(Error::Field(format!("path {path:?} leaves the volume")))
    }
}

impl File {
    fn new(bytes: Vec<u8>, mode: i32) -> File {
        File {
            bytes,
            mode: u32::try_from(mode).unwrap_or(0o644) & 0o777,
        }
    }
}

/// One mount of a container: a directory of the node and where the guest sees it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Mounted {
    pub(crate) volume: String,
    /// Below the volume's directory; empty for the whole of it.
    pub(crate) sub_path: String,
    pub(crate) guest: String,
    pub(crate) read_only: bool,
}

/// The mounts of a container, sub-paths expanded. `Err` is a message for `CreateContainerConfigError`.
pub(crate) fn mounts(
    pod: &Pod,
    container: &Container,
    environment: &[(String, String)],
) -> Result<Vec<Mounted>, String> {
    let volumes = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.volumes.as_deref())
        .unwrap_or_default();
    let value = |name: &str| {
        let mut entries = environment.iter();
        entries
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.clone())
    };
    container
        .volume_mounts
        .iter()
        .flatten()
        .map(|mount| {
            let volume = volumes
                .iter()
                .find(|volume| volume.name == mount.name)
                .ok_or_else(|| format!("volumeMounts: volume \"{}\" not found", mount.name))?;
            let sub_path = match (&mount.sub_path, &mount.sub_path_expr) {
                (Some(path), _) if !path.is_empty() => {
                    clean(path).map_err(|error| error.to_string())?
                }
                (_, Some(expression)) if !expression.is_empty() => {
                    clean(&expand(expression, value)).map_err(|error| error.to_string())?
                }
                _ => String::new(),
            };
            Ok(Mounted {
                volume: mount.name.clone(),
                sub_path,
                guest: mount.mount_path.clone(),
                read_only: mount.read_only == Some(true) || is_live(volume),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests;
