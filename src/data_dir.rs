//! Where the cluster keeps things. Makes directories; never starts anything.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// `$XDG_STATE_HOME/coracle`, else `~/.local/state/coracle`.
pub(crate) fn default_path() -> Result<PathBuf> {
    let absolute = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let state = absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")));
    state
        .map(|state| state.join("coracle"))
        .context("neither XDG_STATE_HOME nor HOME is set; name a --data-dir")
}

/// Makes the data directory (for its owner alone) and returns its absolute path.
pub(crate) fn make(path: &Path) -> Result<PathBuf> {
    use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
    let failed = || format!("could not use the data directory {}", path.display());
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).with_context(failed)?;
    let path = path.canonicalize().with_context(failed)?;
    // Better one clear line now than a failed write in the middle of something.
    let probe = path.join(".writable");
    std::fs::write(&probe, b"")
        .and_then(|()| std::fs::remove_file(&probe))
        .with_context(failed)?;
    Ok(path)
}
