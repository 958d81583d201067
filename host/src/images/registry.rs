//! Images from OCI registries: asks for the manifest, tells what kind of artifact it is, fetches its Wasm bytes. Keeps nothing.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use oci_client::Reference as OciReference;
use oci_client::client::{Client, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::manifest::{OciDescriptor, OciImageManifest, OciManifest};
use oci_client::secrets::RegistryAuth;
use serde::Deserialize;
use tokio::io::AsyncWrite;

use super::archive;
use super::reference::Reference;

/// A manifest with everything else may not be larger; layers of Wasm images are.
const LARGEST_CONFIG: i64 = 4 * 1024 * 1024;
const LARGEST_LAYER: i64 = 512 * 1024 * 1024;
/// Memory for a layer before its bytes come.
const RESERVED: usize = 16 * 1024 * 1024;
const CONNECT: Duration = Duration::from_secs(10);
const READ: Duration = Duration::from_secs(60);
/// From the first question to the last byte.
const WHOLE: Duration = Duration::from_secs(900);

pub(crate) struct Registry {
    https: Client,
    http: Client,
}

/// What was fetched.
pub(crate) struct Fetched {
    pub(crate) wasm: Vec<u8>,
    /// `sha256:…` of the manifest.
    pub(crate) manifest: String,
    pub(crate) entrypoint: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "it is a Linux container image ({platform}), not a Wasm component: Linux containers do not run here. To run a Wasm build under this name, add it to the node's mirror map: --mirror {name}=<image, file or directory>"
    )]
    LinuxContainer { platform: String, name: String },
    #[error("it holds no Wasm component: config {config}, layers {layers}")]
    NotWasm { config: String, layers: String },
    #[error("it has several Wasm files and its entrypoint names none: {0}")]
    Ambiguous(String),
    #[error("layer {0} is larger than its manifest says or than this node takes")]
    TooLarge(String),
    #[error("layer {layer} cannot be read: {source}")]
    Layer {
        layer: String,
        source: std::io::Error,
    },
    #[error("not found")]
    NotFound,
    #[error("pull access denied, repository does not exist or may require imagePullSecrets")]
    Denied,
    #[error("{0}")]
    Registry(String),
    #[error("no answer within {} s", WHOLE.as_secs())]
    Timeout,
}

/// The parts of an image's config that matter here.
#[derive(Default, Deserialize)]
struct ImageConfig {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    config: RunConfig,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RunConfig {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
}

impl Registry {
    pub(crate) fn new() -> Registry {
        let client = |protocol| {
            Client::new(ClientConfig {
                protocol,
                connect_timeout: Some(CONNECT),
                read_timeout: Some(READ),
                user_agent: concat!("coracle/", env!("CARGO_PKG_VERSION")),
                ..ClientConfig::default()
            })
        };
        Registry {
            https: client(ClientProtocol::Https),
            http: client(ClientProtocol::Http),
        }
    }

    /// The digest the reference stands for at this moment.
    pub(crate) async fn digest(
        &self,
        reference: &Reference,
        auth: &RegistryAuth,
    ) -> Result<String, Error> {
        let oci = oci(reference);
        let asked = self.client(reference).fetch_manifest_digest(&oci, auth);
        tokio::time::timeout(READ, asked)
            .await
            .map_err(|_| Error::Timeout)?
            .map_err(explain)
    }

    pub(crate) async fn fetch(
        &self,
        reference: &Reference,
        auth: &RegistryAuth,
    ) -> Result<Fetched, Error> {
        tokio::time::timeout(WHOLE, self.fetch_now(reference, auth))
            .await
            .map_err(|_| Error::Timeout)?
    }

    async fn fetch_now(
        &self,
        reference: &Reference,
        auth: &RegistryAuth,
    ) -> Result<Fetched, Error> {
        let client = self.client(reference);
        let mut oci = oci(reference);
        let (manifest, digest) = client.pull_manifest(&oci, auth).await.map_err(explain)?;
        let manifest = match manifest {
            OciManifest::Image(manifest) => manifest,
            OciManifest::ImageIndex(index) => {
                let platforms: Vec<(String, String)> = index
                    .manifests
                    .iter()
                    .map(|entry| {
                        let platform = entry.platform.as_ref();
                        let name = platform
                            .map(|platform| format!("{}/{}", platform.os, platform.architecture));
                        (name.unwrap_or_default(), entry.digest.clone())
                    })
                    .collect();
                let Some(chosen) = wasm_platform(&platforms) else {
                    let all: Vec<&str> = platforms.iter().map(|(name, _)| name.as_str()).collect();
                    return Err(linux(reference, all.join(", ")));
                };
                oci = oci.clone_with_digest(chosen.to_owned());
                match client.pull_manifest(&oci, auth).await.map_err(explain)?.0 {
                    OciManifest::Image(manifest) => manifest,
                    OciManifest::ImageIndex(_) => {
                        return Err(Error::Registry("an index within an index".to_owned()));
                    }
                }
            }
        };
        let (wasm, entrypoint) = self.wasm_of(client, &oci, reference, &manifest).await?;
        Ok(Fetched {
            wasm,
            manifest: digest,
            entrypoint,
        })
    }

    async fn wasm_of(
        &self,
        client: &Client,
        oci: &OciReference,
        reference: &Reference,
        manifest: &OciImageManifest,
    ) -> Result<(Vec<u8>, Vec<String>), Error> {
        if let Some(layer) = manifest
            .layers
            .iter()
            .find(|layer| is_wasm(&layer.media_type))
        {
            return Ok((blob(client, oci, layer, LARGEST_LAYER).await?, Vec::new()));
        }
        if !manifest.config.media_type.contains("image") {
            return Err(Error::NotWasm {
                config: manifest.config.media_type.clone(),
                layers: media_types(manifest),
            });
        }
        let config = blob(client, oci, &manifest.config, LARGEST_CONFIG).await?;
        let config: ImageConfig = serde_json::from_slice(&config).unwrap_or_default();
        let command: Vec<String> = config
            .config
            .entrypoint
            .into_iter()
            .flatten()
            .chain(config.config.cmd.into_iter().flatten())
            .collect();
        let wasm_platform =
            config.os.starts_with("wasi") || config.architecture.starts_with("wasm");
        let named = command
            .first()
            .filter(|program| program.ends_with(".wasm") || program.ends_with(".wat"));
        if !wasm_platform && named.is_none() {
            return Err(linux(
                reference,
                format!("{}/{}", config.os, config.architecture),
            ));
        }
        let wanted = named.map(|program| {
            program
                .trim_start_matches("./")
                .trim_start_matches('/')
                .to_owned()
        });
        let mut found: Vec<(String, Vec<u8>)> = Vec::new();
        // Later layers win.
        for layer in manifest.layers.iter().rev() {
            let bytes = blob(client, oci, layer, LARGEST_LAYER).await?;
            let name = wanted.clone();
            // One that matches is all there is to a name; two without one are one too many.
            let enough = if wanted.is_some() { 1 } else { 2 };
            let files = tokio::task::spawn_blocking(move || {
                archive::files(&bytes, enough, |file| match &name {
                    Some(name) => file == name,
                    None => file.ends_with(".wasm"),
                })
            });
            let files = files.await.unwrap_or_else(|error| Err(error.into()));
            found.extend(files.map_err(|source| Error::Layer {
                layer: layer.digest.clone(),
                source,
            })?);
            if found.len() >= enough {
                break;
            }
        }
        match (found.len(), wanted.is_some()) {
            (0, _) => Err(Error::NotWasm {
                config: manifest.config.media_type.clone(),
                layers: media_types(manifest),
            }),
            (1, _) | (_, true) => Ok((found.swap_remove(0).1, command)),
            _ => {
                let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
                Err(Error::Ambiguous(names.join(", ")))
            }
        }
    }

    #[cfg(test)]
    pub(super) async fn layer(
        &self,
        reference: &Reference,
        layer: &OciDescriptor,
    ) -> Result<Vec<u8>, Error> {
        let client = self.client(reference);
        let (oci, auth) = (oci(reference), RegistryAuth::Anonymous);
        client.pull_manifest(&oci, &auth).await.map_err(explain)?;
        blob(client, &oci, layer, LARGEST_LAYER).await
    }

    fn client(&self, reference: &Reference) -> &Client {
        if reference.is_local() {
            &self.http
        } else {
            &self.https
        }
    }
}

async fn blob(
    client: &Client,
    oci: &OciReference,
    layer: &OciDescriptor,
    largest: i64,
) -> Result<Vec<u8>, Error> {
    let too_large = || Error::TooLarge(layer.digest.clone());
    if layer.size > largest {
        return Err(too_large());
    }
    let most = usize::try_from(layer.size).unwrap_or(0);
    let mut taken = Bounded {
        bytes: Vec::with_capacity(most.min(RESERVED)),
        most,
        exceeded: false,
    };
    let pulled = client.pull_blob(oci, layer, &mut taken).await;
    if taken.exceeded {
        return Err(too_large());
    }
    pulled.map_err(explain)?;
    Ok(taken.bytes)
}

/// Takes what the manifest promised: what comes may be longer.
struct Bounded {
    bytes: Vec<u8>,
    most: usize,
    exceeded: bool,
}

impl AsyncWrite for Bounded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        more: &[u8],
    ) -> Poll<io::Result<usize>> {
        if more.len() > self.most - self.bytes.len() {
            self.exceeded = true;
            return Poll::Ready(Err(io::ErrorKind::FileTooLarge.into()));
        }
        self.bytes.extend_from_slice(more);
        Poll::Ready(Ok(more.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The CNCF layout's layer, and what runwasi and older tools write.
fn is_wasm(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/wasm"
            | "application/vnd.wasm.content.layer.v1+wasm"
            | "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm"
            | "application/vnd.bytecodealliance.component.layer.v0+wasm"
            | "application/vnd.w3c.wasm.module.v1+wasm"
            | "application/vnd.w3c.wasm.component.v1+wasm"
    )
}

fn wasm_platform(platforms: &[(String, String)]) -> Option<&str> {
    let is = |name: &str| {
        name.starts_with("wasi") || name.ends_with("/wasm") || name.ends_with("/wasm32")
    };
    platforms
        .iter()
        .find(|(name, _)| is(name))
        .map(|(_, digest)| digest.as_str())
}

fn linux(reference: &Reference, platform: String) -> Error {
    Error::LinuxContainer {
        platform,
        name: reference.name(),
    }
}

fn media_types(manifest: &OciImageManifest) -> String {
    let types: Vec<&str> = manifest
        .layers
        .iter()
        .map(|layer| layer.media_type.as_str())
        .collect();
    types.join(", ")
}

fn oci(reference: &Reference) -> OciReference {
    let (registry, repository) = (reference.registry.clone(), reference.repository.clone());
    match (&reference.tag, &reference.digest) {
        (_, Some(digest)) => OciReference::with_digest(registry, repository, digest.clone()),
        (Some(tag), None) => OciReference::with_tag(registry, repository, tag.clone()),
        (None, None) => OciReference::with_tag(registry, repository, "latest".to_owned()),
    }
}

/// The client's error, shortened to what helps; the chain below it is in the text.
fn explain(error: OciDistributionError) -> Error {
    use oci_client::errors::OciErrorCode;
    match &error {
        OciDistributionError::ImageManifestNotFoundError(_)
        | OciDistributionError::ServerError { code: 404, .. } => Error::NotFound,
        OciDistributionError::UnauthorizedError { .. }
        | OciDistributionError::AuthenticationFailure(_) => Error::Denied,
        OciDistributionError::RegistryError { envelope, .. } => {
            match envelope.errors.first().map(|error| &error.code) {
                Some(
                    OciErrorCode::ManifestUnknown
                    | OciErrorCode::NameUnknown
                    | OciErrorCode::NotFound,
                ) => Error::NotFound,
                Some(OciErrorCode::Denied | OciErrorCode::Unauthorized) => Error::Denied,
                _ => Error::Registry(error.to_string()),
            }
        }
        _ => Error::Registry(types::error::chain(&error)),
    }
}
