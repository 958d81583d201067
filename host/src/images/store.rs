//! The node's content store: Wasm bytes by sha256 below one directory, and which image name led to which. Blocking.
//!
//! ```text
//! images/blobs/<sha256>            the bytes
//! images/names/<sha256 of name>    one JSON line: {"name", "digest", "manifest", "entrypoint", "size"}
//! ```
//! Bounded: when the blobs outgrow the limit, those pulled longest ago and held by nobody go first.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Content, Image};

#[derive(Debug)]
pub(crate) struct Store {
    root: PathBuf,
    limit: u64,
    // Locked for look-ups and bookkeeping; files are read and written outside of it.
    names: Mutex<HashMap<String, Known>>,
}

#[derive(Debug)]
struct Known {
    record: Record,
    /// Counts up: the smallest was used longest ago.
    used: u64,
    image: Weak<Image>,
}

/// What is remembered of a pulled image.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Record {
    /// The complete reference it was pulled by.
    pub(crate) name: String,
    /// `sha256:…` of the Wasm bytes.
    pub(crate) digest: String,
    /// `sha256:…` of the registry's manifest.
    pub(crate) manifest: String,
    pub(crate) entrypoint: Vec<String>,
    pub(crate) size: u64,
}

impl Store {
    pub(crate) fn open(root: PathBuf, limit: u64) -> io::Result<Store> {
        fs::create_dir_all(root.join("blobs"))?;
        fs::create_dir_all(root.join("names"))?;
        let mut found = Vec::new();
        for entry in fs::read_dir(root.join("names"))? {
            let entry = entry?;
            let modified = entry.metadata()?.modified()?;
            // A record cut off by a full disk or a crash is one not pulled yet.
            let text = fs::read(entry.path())?;
            if let Ok(record) = serde_json::from_slice::<Record>(&text) {
                found.push((modified, record));
            }
        }
        found.sort_by_key(|(modified, _)| *modified);
        let names = (0..)
            .zip(found)
            .map(|(used, (_, record))| {
                let image = Weak::new();
                (
                    record.name.clone(),
                    Known {
                        record,
                        used,
                        image,
                    },
                )
            })
            .collect();
        Ok(Store {
            root,
            limit,
            names: Mutex::new(names),
        })
    }

    /// The image pulled by this name, if its bytes are still here.
    pub(crate) fn find(&self, name: &str) -> Option<Arc<Image>> {
        let mut names = self.lock();
        let next = names.values().map(|known| known.used).max().unwrap_or(0) + 1;
        let known = names.get_mut(name)?;
        known.used = next;
        if let Some(image) = known.image.upgrade() {
            return Some(image);
        }
        let path = self.blob(&known.record.digest);
        if !path.exists() {
            return None;
        }
        let image = Arc::new(known.record.image(path));
        known.image = Arc::downgrade(&image);
        Some(image)
    }

    /// Keeps `bytes`, whose digest the record names and the caller has computed.
    pub(crate) fn keep(&self, record: Record, bytes: &[u8]) -> io::Result<Arc<Image>> {
        let path = self.blob(&record.digest);
        if !path.exists() {
            write_whole(&path, bytes)?;
        }
        let name = self
            .root
            .join("names")
            .join(hex(&Sha256::digest(record.name.as_bytes())));
        write_whole(&name, &serde_json::to_vec(&record)?)?;
        let image = Arc::new(record.image(path));
        let mut names = self.lock();
        let used = names.values().map(|known| known.used).max().unwrap_or(0) + 1;
        let known = Known {
            record: record.clone(),
            used,
            image: Arc::downgrade(&image),
        };
        names.insert(record.name, known);
        self.shrink(&mut names);
        Ok(image)
    }

    /// Every image here, for the node's status.
    pub(crate) fn records(&self) -> Vec<Record> {
        let mut records: Vec<Record> = self
            .lock()
            .values()
            .map(|known| known.record.clone())
            .collect();
        records.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.name.cmp(&b.name)));
        records
    }

    fn shrink(&self, names: &mut HashMap<String, Known>) {
        loop {
            let sizes: HashMap<&str, u64> = names
                .values()
                .map(|known| (known.record.digest.as_str(), known.record.size))
                .collect();
            if sizes.values().sum::<u64>() <= self.limit {
                return;
            }
            let oldest = names
                .iter()
                .filter(|(_, known)| known.image.strong_count() == 0)
                .min_by_key(|(_, known)| known.used)
                .map(|(name, _)| name.clone());
            let Some(name) = oldest else { return };
            let Some(gone) = names.remove(&name) else {
                return;
            };
            let _ = fs::remove_file(
                self.root
                    .join("names")
                    .join(hex(&Sha256::digest(name.as_bytes()))),
            );
            if !names
                .values()
                .any(|known| known.record.digest == gone.record.digest)
            {
                let _ = fs::remove_file(self.blob(&gone.record.digest));
            }
            tracing::info!(image = %name, "Removed unused image");
        }
    }

    fn blob(&self, digest: &str) -> PathBuf {
        self.root
            .join("blobs")
            .join(digest.trim_start_matches("sha256:"))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Record {
    fn image(&self, path: PathBuf) -> Image {
        let name = self.name.split('@').next().unwrap_or(&self.name);
        let bare = match name.rsplit_once(':') {
            Some((bare, tag)) if !tag.contains('/') => bare,
            _ => name,
        };
        Image {
            digest: self.digest.clone(),
            id: format!("{bare}@{}", self.manifest),
            size: self.size,
            entrypoint: self.entrypoint.clone(),
            content: Content::File(path),
        }
    }
}

/// `sha256:…` of some bytes.
pub(crate) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Never leaves half a file under its name. Not flushed to the disk: a digest is checked before bytes are used, and what a
/// power failure takes is pulled again.
fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let part = path.with_extension(format!("part-{}", uuid::Uuid::new_v4().simple()));
    let written = fs::write(&part, bytes).and_then(|()| fs::rename(&part, path));
    if written.is_err() {
        let _ = fs::remove_file(&part);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str, bytes: &[u8]) -> Record {
        Record {
            name: name.to_owned(),
            digest: digest(bytes),
            manifest: digest(b"manifest"),
            entrypoint: Vec::new(),
            size: bytes.len() as u64,
        }
    }

    #[test]
    fn images_are_found_again_after_a_restart() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let store = Store::open(directory.path().to_owned(), 100).expect("opens");
        store
            .keep(record("a.example/x:1", b"bytes"), b"bytes")
            .expect("kept");
        let again = Store::open(directory.path().to_owned(), 100).expect("opens");
        let image = again.find("a.example/x:1").expect("found");
        assert_eq!(image.digest, digest(b"bytes"));
        assert_eq!(image.id, format!("a.example/x@{}", digest(b"manifest")));
        assert!(again.find("a.example/x:2").is_none());
    }

    #[test]
    fn the_oldest_image_nobody_holds_makes_room() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let store = Store::open(directory.path().to_owned(), 10).expect("opens");
        let held = store.keep(record("a/1:1", b"1111"), b"1111").expect("kept");
        store.keep(record("a/2:1", b"2222"), b"2222").expect("kept");
        store.keep(record("a/3:1", b"3333"), b"3333").expect("kept");
        assert!(store.find("a/1:1").is_some(), "in use");
        assert!(store.find("a/2:1").is_none(), "made room");
        assert!(store.find("a/3:1").is_some());
        assert_eq!(held.size, 4);
        assert_eq!(
            fs::read_dir(directory.path().join("blobs"))
                .expect("a directory")
                .count(),
            2
        );
    }
}
