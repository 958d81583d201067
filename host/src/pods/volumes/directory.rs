//! Volumes as directories of the node: writes what [`Contents`] says, swaps it whole, measures and removes it.
//! Blocking: call it where blocking is allowed.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, mkdirat};

use super::{Contents, Error, File};

/// The link that says which generation of files is the present one.
const DATA: &str = "..data";

/// Makes `contents` be at `directory` (for a host path: checks it) and returns where guests are to look.
/// Files of an earlier generation are replaced in one step: a reader sees the old ones or the new ones.
pub(crate) fn write(directory: &Path, contents: &Contents) -> Result<PathBuf, Error> {
    match contents {
        Contents::Files(files) => {
            write_files(directory, files).map_err(|source| Error::Write {
                path: directory.to_owned(),
                source,
            })?;
            Ok(directory.to_owned())
        }
        Contents::Scratch { .. } => {
            create(directory).map_err(|source| Error::Write {
                path: directory.to_owned(),
                source,
            })?;
            Ok(directory.to_owned())
        }
        Contents::Host { path, create } => {
            if *create {
                fs::create_dir_all(path).map_err(|source| Error::Write {
                    path: path.clone(),
                    source,
                })?;
            }
            if path.is_dir() {
                Ok(path.clone())
            } else {
                Err(Error::NotADirectory(path.clone()))
            }
        }
    }
}

/// A directory only this node's user can enter.
pub(crate) fn create(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

/// Opens the directory at `sub_path` of a volume guests may write, makes it if `make` says so, and never leaves the volume:
/// links are followed below it only (`CrossesDevices` otherwise), and what is opened stays what it is.
pub(crate) fn below(volume: &Path, sub_path: &str, make: bool) -> io::Result<OwnedFd> {
    let root = fs::OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_DIRECTORY | OFlag::O_PATH).bits())
        .open(volume)?;
    let open = |path: &Path| {
        let how = OpenHow::new()
            .flags(OFlag::O_DIRECTORY | OFlag::O_PATH | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        openat2(&root, path, how)
    };
    let mut directory = open(Path::new("."))?;
    let mut path = PathBuf::new();
    for part in Path::new(sub_path) {
        path.push(part);
        directory = match open(&path) {
            Err(nix::Error::ENOENT) if make => {
                match mkdirat(&directory, part, Mode::S_IRWXU) {
                    // A guest was faster, or it is a link to nothing: opening tells.
                    Ok(()) | Err(nix::Error::EEXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                open(&path)?
            }
            opened => opened?,
        };
    }
    Ok(directory)
}

/// A path of an open directory, for as long as it is held.
pub(crate) fn by_descriptor(directory: &impl AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()))
}

fn write_files(directory: &Path, files: &BTreeMap<String, File>) -> io::Result<()> {
    create(directory)?;
    let data = directory.join(DATA);
    let old = fs::read_link(&data).ok();
    if old.is_some() && holds(&data, files) {
        return Ok(());
    }
    let number = old
        .as_ref()
        .and_then(|old| old.to_str()?.strip_prefix("..")?.parse::<u64>().ok())
        .map_or(1, |number| number + 1);
    let generation = format!("..{number}");
    let fresh = directory.join(&generation);
    // Left behind by a process that ended in the middle of a swap.
    let _ = fs::remove_dir_all(&fresh);
    create(&fresh)?;
    for (path, file) in files {
        let target = fresh.join(path);
        if let Some(parent) = target.parent() {
            create(parent)?;
        }
        // Owner read stays: it is this process that reads for the guest.
        let mode = file.mode | 0o400;
        let mut options = fs::OpenOptions::new();
        let mut handle = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&target)?;
        io::Write::write_all(&mut handle, &file.bytes)?;
        handle.set_permissions(fs::Permissions::from_mode(mode))?;
    }
    let swap = directory.join("..data_tmp");
    let _ = fs::remove_file(&swap);
    symlink(&generation, &swap)?;
    fs::rename(&swap, &data)?;
    link_names(directory, files)?;
    if let Some(old) = old {
        let _ = fs::remove_dir_all(directory.join(old));
    }
    Ok(())
}

/// The visible names are links through `..data`; names no longer there go away.
fn link_names(directory: &Path, files: &BTreeMap<String, File>) -> io::Result<()> {
    let top = |path: &str| path.split('/').next().unwrap_or(path).to_owned();
    let names: std::collections::BTreeSet<String> = files.keys().map(|path| top(path)).collect();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("..") && !names.contains(&name) {
            fs::remove_file(entry.path())?;
        }
    }
    for name in names {
        match symlink(Path::new(DATA).join(&name), directory.join(&name)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn holds(data: &Path, files: &BTreeMap<String, File>) -> bool {
    let same = files
        .iter()
        .all(|(path, file)| fs::read(data.join(path)).is_ok_and(|bytes| bytes == file.bytes));
    same && count_files(data) == files.len()
}

fn count_files(directory: &Path) -> usize {
    let Ok(entries) = fs::read_dir(directory) else {
        return 0;
    };
    entries
        .flatten()
        .map(|entry| {
            if entry.path().is_dir() {
                count_files(&entry.path())
            } else {
                1
            }
        })
        .sum()
}

/// Bytes of all files below; links are not followed. What cannot be read counts nothing.
pub(crate) fn size(directory: &Path) -> u64 {
    let mut total: u64 = 0;
    // Not by recursion: guests decide how deep it goes.
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        for entry in entries {
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => open.push(entry.path()),
                Ok(metadata) if metadata.is_file() => total = total.saturating_add(metadata.len()),
                _ => {}
            }
        }
    }
    total
}

/// Removes a pod's directory; nothing there is fine. Guests make directories as deep as they like, so this does not
/// descend: what lies in a subdirectory is moved up to the top first.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    let root = match open_directory(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    let top = by_descriptor(&root);
    // Names change while they are listed: until a listing is empty.
    loop {
        let mut removed = None;
        for entry in fs::read_dir(&top)? {
            let entry = entry?;
            let path = entry.path();
            let done = if entry.file_type()?.is_dir() {
                remove_directory(&top, &path)?
            } else {
                fs::remove_file(&path)?;
                true
            };
            removed = Some(removed.unwrap_or(false) || done);
        }
        match removed {
            Some(true) => {}
            Some(false) => return Err(io::ErrorKind::DirectoryNotEmpty.into()),
            None => break,
        }
    }
    fs::remove_dir(path)
}

/// Removes `path`; its subdirectories are at `top` afterwards. Says whether anything changed.
fn remove_directory(top: &Path, path: &Path) -> io::Result<bool> {
    let mut changed = false;
    let directory = open_directory(path)?;
    for entry in fs::read_dir(by_descriptor(&directory))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            let name = format!("removed-{}", uuid::Uuid::new_v4());
            fs::rename(entry.path(), top.join(name))?;
        } else {
            fs::remove_file(entry.path())?;
        }
        changed = true;
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(changed),
        result => result.map(|()| true),
    }
}

/// The directory itself, not what a link points to.
fn open_directory(path: &Path) -> io::Result<fs::File> {
    fs::OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW).bits())
        .open(path)
}
