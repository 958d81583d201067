//! Compiled components on disk. Owns the cache directory; the only `unsafe` of the project is here.
//!
//! A file's name holds the digest of the wasm and the hash of everything that shapes the machine code (wasmtime's version,
//! target, settings), so a stale file is never opened. Files appear by rename and never change afterwards.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tracing::{debug, warn};
use types::error::chain;
use wasmtime::Engine;
use wasmtime::component::Component;

use super::engine::Lane;

/// Bytes kept; what was not used for the longest time goes first. Other versions' files go so, too.
const KEPT: u64 = 4 * 1024 * 1024 * 1024;
/// A file that is being written is younger.
const STALE: Duration = Duration::from_secs(60 * 60);

/// The directory of compiled components, private to the node's user.
pub(super) struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// Makes the directory, or takes it over with mode 0700: whoever writes here decides what code the node runs.
    pub(super) fn open(dir: PathBuf) -> io::Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))?;
        let cache = Self { dir };
        cache.trim(KEPT, None);
        Ok(cache)
    }

    /// Removes what was not used for the longest time until at most `kept` bytes are left, but never `fresh`. Code that
    /// runs stays mapped.
    fn trim(&self, kept: u64, fresh: Option<&Path>) {
        let now = now();
        let mut files: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            let used = metadata.modified().unwrap_or(now);
            let suffix = path.extension().and_then(|suffix| suffix.to_str());
            match suffix {
                Some("cwasm") if metadata.is_file() => files.push((used, metadata.len(), path)),
                // Left behind by a process that ended while it wrote.
                Some("tmp") if now.duration_since(used).is_ok_and(|age| age > STALE) => {
                    let _ = fs::remove_file(&path);
                }
                _ => {}
            }
        }
        files.sort();
        let mut total: u64 = files.iter().map(|(_, size, _)| size).sum();
        for (_, size, path) in &files {
            if total <= kept {
                break;
            }
            if Some(path.as_path()) == fresh {
                continue;
            }
            match fs::remove_file(path) {
                Ok(()) => total -= size,
                Err(error) => {
                    warn!(path = %path.display(), error = %chain(&error), "Could not remove a compiled component")
                }
            }
        }
    }

    /// Maps the component from the cache, or compiles it (0.65 ms per KB of wasm) and puts it there. Blocks.
    /// A cache that cannot be written costs a warning and memory, not the component.
    pub(super) fn load(
        &self,
        lane: &Lane,
        digest: &str,
        wasm: &[u8],
    ) -> wasmtime::Result<Component> {
        let path = self.path(digest, lane.compatibility);
        if path.exists() {
            match map(&lane.engine, &path) {
                Ok(component) => {
                    // Only the time, for `trim`; without it the file just goes earlier.
                    let _ = fs::File::open(&path).and_then(|file| file.set_modified(now()));
                    return Ok(component);
                }
                Err(error) => {
                    warn!(digest, error = %format_args!("{error:#}"), "Dropped a compiled component that cannot be read");
                    // If it cannot be removed the rename below replaces it.
                    let _ = fs::remove_file(&path);
                }
            }
        }
        let code = lane.engine.precompile_component(wasm)?;
        debug!(digest, bytes = code.len(), "Compiled component");
        match self
            .write(&path, &code)
            .map_err(wasmtime::Error::from)
            .and_then(|()| map(&lane.engine, &path))
        {
            Ok(component) => {
                self.trim(KEPT, Some(&path));
                Ok(component)
            }
            Err(error) => {
                warn!(digest, error = %format_args!("{error:#}"), "Could not keep a compiled component");
                Component::new(&lane.engine, wasm)
            }
        }
    }

    fn path(&self, digest: &str, compatibility: u64) -> PathBuf {
        let name: String = digest
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .collect();
        self.dir.join(format!("{name}-{compatibility:016x}.cwasm"))
    }

    fn write(&self, path: &Path, code: &[u8]) -> io::Result<()> {
        // A name nobody else uses: two processes may compile the same component.
        let temporary = path.with_extension(format!("{}.tmp", uuid::Uuid::new_v4()));
        let written = (|| {
            let mut file = fs::File::create_new(&temporary)?;
            file.write_all(code)?;
            file.sync_all()?;
            fs::rename(&temporary, path)
        })();
        if written.is_err() {
            // Half a file helps nobody; the error itself is what matters.
            let _ = fs::remove_file(&temporary);
        }
        written
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "compared with the times of files"
)]
fn now() -> SystemTime {
    SystemTime::now()
}

/// Maps machine code straight from the file: no copy, pages shared by all pods and given back under memory pressure.
#[expect(
    unsafe_code,
    reason = "running machine code that was compiled earlier cannot be proven safe"
)]
fn map(engine: &Engine, path: &Path) -> wasmtime::Result<Component> {
    // SAFETY: the file lies in a directory of mode 0700 that only this node's user can write. This module alone writes
    // there, only what `precompile_component` of a matching engine produced, synced before it is renamed to its name,
    // and never changes it afterwards; wasmtime checks version, target and settings before it uses the code.
    unsafe { Component::deserialize_file(engine, path) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_used_for_long_goes_first() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let cache = Cache::open(dir.path().to_owned()).expect("opens");
        let now = now();
        let put = |name: &str, hours: u64| {
            let file = fs::File::create(dir.path().join(name)).expect("made");
            file.set_len(100).expect("sized");
            file.set_modified(now - Duration::from_secs(hours * 3600))
                .expect("dated");
        };
        put("oldest.cwasm", 4);
        put("older.cwasm", 3);
        put("young.cwasm", 2);
        put("a.1.tmp", 2);
        put("b.2.tmp", 0);
        cache.trim(200, Some(&dir.path().join("oldest.cwasm")));
        let mut names: Vec<_> = fs::read_dir(dir.path())
            .expect("read")
            .map(|entry| entry.expect("read").file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["b.2.tmp", "oldest.cwasm", "young.cwasm"]);
    }
}
