//! Compiled components on disk. Owns the cache directory; the only `unsafe` of the project is here.
//!
//! A file's name holds the digest of the wasm and the hash of everything that shapes the machine code (wasmtime's version,
//! target, settings), so a stale file is never opened. Files appear by rename and never change afterwards.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tracing::{debug, warn};
use wasmtime::Engine;
use wasmtime::component::Component;

use super::engine::Lane;

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
        Ok(Self { dir })
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
                Ok(component) => return Ok(component),
                Err(error) => {
                    warn!(digest, %error, "Dropped a compiled component that cannot be read");
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
            Ok(component) => Ok(component),
            Err(error) => {
                warn!(digest, %error, "Could not keep a compiled component");
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
