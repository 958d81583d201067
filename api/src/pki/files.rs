//! Certificates and keys as files, mode 0600, replaced as a whole.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::{Error, Identity};

pub(super) fn make_directory(path: &Path) -> Result<(), Error> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| failed("make the directory", path, source))
}

/// `None` when either file is missing.
pub(super) fn read(directory: &Path, name: &str) -> Result<Option<Identity>, Error> {
    let (certificate, key) = paths(directory, name);
    Ok(match (read_text(&certificate)?, read_text(&key)?) {
        (Some(certificate_pem), Some(key_pem)) => Some(Identity {
            certificate_pem,
            key_pem,
        }),
        _ => None,
    })
}

/// `None` when the file is missing.
pub(super) fn read_text(path: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(failed("read", path, source)),
    }
}

/// The key first: a certificate without its key would look like a pair that was never finished.
pub(super) fn write(directory: &Path, name: &str, identity: &Identity) -> Result<(), Error> {
    let (certificate, key) = paths(directory, name);
    write_private(&key, identity.key_pem.as_bytes())?;
    write_private(&certificate, identity.certificate_pem.as_bytes())
}

/// Writes beside `path` and renames, so that a reader sees the old or the new file, never half of one.
pub(super) fn write_private(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(".new");
    let draft = PathBuf::from(draft);
    let write = || -> std::io::Result<()> {
        // A left-over draft may have another mode; the mode below only counts for a file that is made.
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&draft)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&draft, path)
    };
    write().map_err(|source| failed("write", path, source))
}

fn paths(directory: &Path, name: &str) -> (PathBuf, PathBuf) {
    (
        directory.join(format!("{name}.crt")),
        directory.join(format!("{name}.key")),
    )
}

fn failed(action: &'static str, path: &Path, source: std::io::Error) -> Error {
    Error::File {
        action,
        path: path.to_owned(),
        source,
    }
}
