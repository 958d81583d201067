//! What a joined node keeps on its disk: the cluster's CA and its two certificates with their keys. Mode 0600, replaced whole.
//!
//! A certificate and its key are one file, so that one rename replaces both.

use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::Error;
use crate::tls::Role;

pub(crate) struct Files {
    directory: PathBuf,
}

// === impl Files ===

impl Files {
    /// Below the node's data directory.
    pub(crate) fn open(data_dir: &Path) -> Result<Self, Error> {
        let directory = data_dir.join("pki");
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(|source| failed("make", &directory, source))?;
        Ok(Self { directory })
    }

    pub(crate) fn ca(&self) -> PathBuf {
        self.directory.join("ca.crt")
    }

    pub(crate) fn servers(&self) -> PathBuf {
        self.directory.join("servers")
    }

    pub(crate) fn pair(&self, role: Role) -> PathBuf {
        self.directory.join(match role {
            Role::Client => "kubelet-client.pem",
            Role::Server => "kubelet-server.pem",
        })
    }
}

/// `None` when it is not there.
pub(crate) fn read(path: &Path) -> Result<Option<String>, Error> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(failed("read", path, source)),
    }
}

/// Writes beside `path` and renames: a reader, and a crash, see the old or the new file.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let draft = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        // The mode counts only for a file that is made.
        match std::fs::remove_file(&draft) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&draft)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&draft, path)
    };
    write().map_err(|source| failed("write", path, source))
}

fn failed(action: &'static str, path: &Path, source: std::io::Error) -> Error {
    Error::File {
        action,
        path: path.to_owned(),
        source,
    }
}
