//! Where the cluster keeps things. Makes directories and keeps other processes out of them; never starts anything.

use std::fs::{File, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

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

/// A node's directory while it is this process's alone.
#[derive(Debug)]
pub(crate) struct Claim {
    _lock: File,
}

/// Makes a node's directory in the data directory and keeps other processes out of it: two would run the same pods, and
/// overwrite each other's certificates. The kernel lets go when the process ends, however it ends; the number inside only
/// makes the message better.
pub(crate) fn claim_node(data_dir: &Path) -> Result<(PathBuf, Claim)> {
    use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
    let path = data_dir.join("node");
    let failed = || format!("could not use the node's directory {}", path.display());
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&path)
        .with_context(failed)?;
    let mut lock = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path.join("lock"))
        .with_context(failed)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut owner = String::new();
            let known = lock.read_to_string(&mut owner).is_ok() && !owner.is_empty();
            let owner = if known { owner.trim() } else { "unknown" };
            bail!(
                "the node's directory {} is in use by another coracle process ({owner}); name another --data-dir",
                path.display()
            );
        }
        Err(TryLockError::Error(error)) => return Err(error).with_context(failed),
    }
    lock.set_len(0)
        .and_then(|()| lock.rewind())
        .and_then(|()| writeln!(lock, "{}", std::process::id()))
        .with_context(failed)?;
    Ok((path, Claim { _lock: lock }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nodes_directory_belongs_to_one_process_at_a_time() {
        let data = tempfile::tempdir().expect("a temporary directory");
        let (path, claim) = claim_node(data.path()).expect("nobody has it");
        let refused = claim_node(data.path()).expect_err("taken").to_string();
        assert!(
            refused.contains(&path.display().to_string())
                && refused.contains(&std::process::id().to_string()),
            "{refused}"
        );
        drop(claim);
        claim_node(data.path()).expect("free again");
    }
}
