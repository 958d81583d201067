//! Images: from a name in a pod to Wasm bytes on this node. Knows registries, files, what is bundled; not what runs the bytes.
//!
//! ```text
//! name ─ mirror map ─┬─ bundled with the program
//!                    ├─ a file, or a directory with files
//!                    └─ a registry ─ content store (by sha256)
//! ```

use std::collections::HashMap;
use std::fs::Metadata;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use nix::fcntl::OFlag;
use tokio::sync::Semaphore;
use tokio::time::Instant;

mod archive;
mod credentials;
mod mirror;
mod reference;
mod registry;
mod store;
#[cfg(test)]
mod tests;

pub(crate) use credentials::Credentials;
pub(crate) use mirror::Error as MirrorError;
use mirror::{Mirrors, Target};
use reference::Reference;
use registry::Registry;
pub(crate) use store::digest;
use store::{Record, Store};

/// Registries asked at the same time.
const PULLS: usize = 4;
/// Bytes of pulled images kept when nobody uses them.
const KEPT: u64 = 4 * 1024 * 1024 * 1024;
/// No image may be larger, wherever it comes from.
const LARGEST: u64 = 512 * 1024 * 1024;
/// Every Wasm binary begins so; so does a component.
const MAGIC: &[u8] = b"\0asm";

/// `imagePullPolicy`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Policy {
    Always,
    IfNotPresent,
    Never,
}

/// An image on this node.
#[derive(Debug)]
pub(crate) struct Image {
    /// `sha256:…` of the Wasm bytes.
    pub(crate) digest: String,
    /// As `imageID` in a container's status.
    pub(crate) id: String,
    pub(crate) size: u64,
    /// Entrypoint and command of a container image that wraps the Wasm file; empty otherwise.
    pub(crate) entrypoint: Vec<String>,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Bundled(&'static [u8]),
    File(PathBuf),
}

/// How an image came to be here.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Origin {
    Present,
    Pulled(Duration),
}

/// Reasons are Kubernetes', for a container's `waiting` state.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "Failed to apply default image tag {image:?}: couldn't parse image name {image:?}: {source}"
    )]
    InvalidName {
        image: String,
        source: reference::Error,
    },
    #[error("Container image {image:?} is not present with pull policy of Never")]
    Never { image: String },
    #[error("failed to pull image {image:?}{}: {source}", sent(.to))]
    Pull {
        image: String,
        /// Where the mirror map sent it.
        to: Option<String>,
        source: registry::Error,
    },
    #[error("failed to read image {image:?}: {why}")]
    File { image: String, why: String },
    #[error("failed to keep image {image:?}: {source}")]
    Store {
        image: String,
        source: std::io::Error,
    },
}

fn sent(to: &Option<String>) -> String {
    to.as_ref()
        .map(|to| format!(" (mirrored to {to})"))
        .unwrap_or_default()
}

/// Shared by all workers; cheap to clone.
#[derive(Clone)]
pub(crate) struct Images {
    shared: Arc<Shared>,
}

struct Shared {
    mirrors: Mirrors,
    bundled: HashMap<String, Bundled>,
    registry: OnceLock<Registry>,
    store: Store,
    pulls: Semaphore,
    // Both are locked for a look-up; the inner lock of a pull is held while it is under way, so that equal pulls wait for
    // the first and take what it brought.
    files: Mutex<HashMap<PathBuf, (Stamp, Arc<Image>)>>,
    checks: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Checked>>>>,
}

type Stamp = (Option<SystemTime>, u64);

/// When a name was last compared with its registry, by whom and what it was then.
#[derive(Default)]
struct Checked {
    last: Option<(Instant, Arc<Image>)>,
}

struct Bundled {
    bytes: &'static [u8],
    image: OnceLock<Arc<Image>>,
}

impl Error {
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Error::InvalidName { .. } => "InvalidImageName",
            Error::Never { .. } => "ErrImageNeverPull",
            Error::Pull { .. } | Error::File { .. } | Error::Store { .. } => "ErrImagePull",
        }
    }
}

impl Policy {
    pub(crate) fn named(name: Option<&str>, image: &str) -> Policy {
        match name {
            Some("Always") => Policy::Always,
            Some("Never") => Policy::Never,
            Some("IfNotPresent") => Policy::IfNotPresent,
            _ if image.ends_with(":latest") => Policy::Always,
            _ => Policy::IfNotPresent,
        }
    }
}

/// Why the images of this node cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("image directory {directory}")]
    Directory {
        directory: PathBuf,
        source: std::io::Error,
    },
    #[error(transparent)]
    Mirror(#[from] MirrorError),
}

// === impl Images ===

impl Images {
    /// `mirrors` are (from, to); `bundled` (name, bytes), a name without tag meaning every tag. Keeps what it pulls below
    /// `directory`.
    pub(crate) fn open(
        directory: &Path,
        mirrors: &[(String, String)],
        bundled: &[(String, &'static [u8])],
    ) -> Result<Images, OpenError> {
        let store =
            Store::open(directory.to_owned(), KEPT).map_err(|source| OpenError::Directory {
                directory: directory.to_owned(),
                source,
            })?;
        let bundled = bundled
            .iter()
            .filter_map(|(name, bytes)| {
                let image = OnceLock::new();
                Some((
                    Reference::parse_bare(name).ok()?.to_string(),
                    Bundled { bytes, image },
                ))
            })
            .collect();
        Ok(Images {
            shared: Arc::new(Shared {
                mirrors: Mirrors::new(mirrors)?,
                bundled,
                registry: OnceLock::new(),
                store,
                pulls: Semaphore::new(PULLS),
                files: Mutex::default(),
                checks: Mutex::default(),
            }),
        })
    }

    /// Makes the image be here, as the policy says. Cancel by dropping: a pull others wait for is begun anew by them.
    pub(crate) async fn ensure(
        &self,
        image: &str,
        policy: Policy,
        credentials: &Credentials,
    ) -> Result<(Arc<Image>, Origin), Error> {
        let target = self
            .shared
            .mirrors
            .resolve(image)
            .map_err(|source| Error::InvalidName {
                image: image.to_owned(),
                source,
            })?;
        let reference = match target {
            Target::Path { path, name } => {
                return Ok((self.file(image, path, name).await?, Origin::Present));
            }
            Target::Registry(reference) => reference,
        };
        let name = reference.to_string();
        if let Some(bundled) = self.bundled(&reference) {
            return Ok((bundled.image(&reference), Origin::Present));
        }
        if policy != Policy::Always
            && let Some(found) = self.shared.store.find(&name)
        {
            return Ok((found, Origin::Present));
        }
        if policy == Policy::Never {
            return Err(Error::Never {
                image: image.to_owned(),
            });
        }
        self.pull(image, &reference, credentials).await
    }

    /// Is this image (as a pod names it) certain to be here without asking anybody?
    pub(crate) fn is_at_hand(&self, image: &str) -> bool {
        match self.shared.mirrors.resolve(image) {
            Ok(Target::Registry(reference)) => self.bundled(&reference).is_some(),
            Ok(Target::Path { .. }) => true,
            Err(_) => false,
        }
    }

    fn bundled(&self, reference: &Reference) -> Option<&Bundled> {
        let bundled = &self.shared.bundled;
        bundled
            .get(&reference.to_string())
            .or_else(|| bundled.get(&reference.name()))
    }

    /// The bytes of an image, verified against its digest.
    pub(crate) async fn bytes(&self, image: &Image) -> Result<Bytes, Error> {
        let path = match &image.content {
            Content::Bundled(bytes) => return Ok(Bytes::from_static(bytes)),
            Content::File(path) => path.clone(),
        };
        let wrong = |why: String| Error::File {
            image: image.id.clone(),
            why,
        };
        let expected = image.digest.clone();
        let read = tokio::task::spawn_blocking(move || {
            let (bytes, _) =
                read_file(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            let found = store::digest(&bytes);
            if found == expected {
                Ok(Bytes::from(bytes))
            } else {
                Err(format!(
                    "{} changed: it was {expected} and is {found}",
                    path.display()
                ))
            }
        });
        read.await
            .map_err(|error| wrong(error.to_string()))?
            .map_err(wrong)
    }

    /// Names and sizes of what was pulled, the largest first.
    pub(crate) fn listed(&self) -> Vec<(Vec<String>, u64)> {
        let records = self.shared.store.records().into_iter();
        records
            .map(|record| (vec![record.name], record.size))
            .collect()
    }

    async fn pull(
        &self,
        image: &str,
        reference: &Reference,
        credentials: &Credentials,
    ) -> Result<(Arc<Image>, Origin), Error> {
        let asked = Instant::now();
        let name = reference.to_string();
        let check = {
            let mut checks = self
                .shared
                .checks
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            checks.retain(|known, check| *known == name || Arc::strong_count(check) > 1);
            Arc::clone(checks.entry(name.clone()).or_default())
        };
        let mut check = check.lock().await;
        if let Some((when, image)) = &check.last
            && *when >= asked
        {
            return Ok((Arc::clone(image), Origin::Present));
        }
        // The semaphore is never closed.
        let _turn = self.shared.pulls.acquire().await;
        let began = Instant::now();
        let wrong = |source| Error::Pull {
            image: image.to_owned(),
            to: self.shared.mirrors.names(image).then(|| name.clone()),
            source,
        };
        let registry = self.shared.registry.get_or_init(Registry::new);
        let auth = credentials.find(reference);
        if let Some(known) = self.shared.store.find(&name) {
            let digest = registry.digest(reference, &auth).await.map_err(wrong)?;
            if known.id.ends_with(&digest) {
                check.last = Some((Instant::now(), Arc::clone(&known)));
                return Ok((known, Origin::Pulled(began.elapsed())));
            }
        }
        let fetched = registry.fetch(reference, &auth).await.map_err(wrong)?;
        if !fetched.wasm.starts_with(MAGIC) {
            return Err(Error::File {
                image: image.to_owned(),
                why: "its layer is not a WebAssembly binary".to_owned(),
            });
        }
        let shared = Arc::clone(&self.shared);
        let kept = tokio::task::spawn_blocking(move || {
            let record = Record {
                name,
                digest: store::digest(&fetched.wasm),
                manifest: fetched.manifest,
                entrypoint: fetched.entrypoint,
                size: fetched.wasm.len() as u64,
            };
            shared.store.keep(record, &fetched.wasm)
        });
        let kept = kept
            .await
            .unwrap_or_else(|error| Err(std::io::Error::other(error)));
        let kept = kept.map_err(|source| Error::Store {
            image: image.to_owned(),
            source,
        })?;
        check.last = Some((Instant::now(), Arc::clone(&kept)));
        Ok((kept, Origin::Pulled(began.elapsed())))
    }

    async fn file(&self, image: &str, path: PathBuf, name: String) -> Result<Arc<Image>, Error> {
        let shared = Arc::clone(&self.shared);
        let read = tokio::task::spawn_blocking(move || shared.file(&path, &name));
        read.await
            .unwrap_or_else(|error| Err(error.to_string()))
            .map_err(|why| Error::File {
                image: image.to_owned(),
                why,
            })
    }
}

impl Shared {
    /// Read again only when the file's time or length changed.
    fn file(&self, path: &Path, name: &str) -> Result<Arc<Image>, String> {
        let path = find_file(path, name)?;
        let text = |error: std::io::Error| format!("{}: {error}", path.display());
        let metadata = std::fs::metadata(&path).map_err(text)?;
        let stamp = stamp(&metadata);
        let known = || self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((seen, image)) = known().get(&path)
            && *seen == stamp
        {
            return Ok(Arc::clone(image));
        }
        let (bytes, stamp) = read_file(&path).map_err(text)?;
        if !bytes.starts_with(MAGIC) {
            return Err(format!("{} is not a WebAssembly binary", path.display()));
        }
        let digest = store::digest(&bytes);
        let image = Arc::new(Image {
            id: format!("file://{}@{digest}", path.display()),
            digest,
            size: bytes.len() as u64,
            entrypoint: Vec::new(),
            content: Content::File(path.clone()),
        });
        known().insert(path, (stamp, Arc::clone(&image)));
        Ok(image)
    }
}

impl Bundled {
    fn image(&self, reference: &Reference) -> Arc<Image> {
        let made = self.image.get_or_init(|| {
            let digest = store::digest(self.bytes);
            let name = reference.name();
            let program = name.rsplit('/').next().unwrap_or_default();
            Arc::new(Image {
                id: format!("{name}@{digest}"),
                digest,
                size: self.bytes.len() as u64,
                entrypoint: vec![program.to_owned()],
                content: Content::Bundled(self.bytes),
            })
        });
        Arc::clone(made)
    }
}

fn stamp(metadata: &Metadata) -> Stamp {
    (metadata.modified().ok(), metadata.len())
}

/// Pods name files of the node: devices, pipes and what has no end are refused before a byte is read.
fn read_file(path: &Path) -> io::Result<(Vec<u8>, Stamp)> {
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut bytes = Vec::new();
    if metadata.len() <= LARGEST {
        // Files of /proc have no length; those of a running writer have none yet.
        file.take(LARGEST + 1).read_to_end(&mut bytes)?;
    }
    if metadata.len().max(bytes.len() as u64) > LARGEST {
        return Err(io::Error::other("larger than 512 MiB"));
    }
    Ok((bytes, stamp(&metadata)))
}

/// `path` itself when it is a file; else `path/<name>.wasm`, by the whole name or its last part.
fn find_file(path: &Path, name: &str) -> Result<PathBuf, String> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    let last = name.rsplit('/').next().unwrap_or(name);
    let candidates = [
        path.join(format!("{name}.wasm")),
        path.join(format!("{last}.wasm")),
    ];
    let found = candidates.iter().find(|candidate| candidate.is_file());
    found.cloned().ok_or_else(|| {
        let tried: Vec<String> = candidates
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        format!("no such file: {}", tried.join(", "))
    })
}
