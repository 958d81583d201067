//! Paths and directories: what the mounts are, what they imply above them, and the few devices scripts expect.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::io::{Input, Output};
use crate::os;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    File,
    Directory,
    Link,
    Other,
}

/// What WASI knows of a file; of owners and modes it knows nothing.
#[derive(Clone, Debug)]
pub struct Stat {
    pub kind: Kind,
    pub size: u64,
    pub modified: Option<SystemTime>,
    pub accessed: Option<SystemTime>,
}

impl Stat {
    fn of(metadata: &Metadata) -> Self {
        let kind = match metadata.file_type() {
            t if t.is_file() => Kind::File,
            t if t.is_dir() => Kind::Directory,
            t if t.is_symlink() => Kind::Link,
            _ => Kind::Other,
        };
        Self {
            kind,
            size: metadata.len(),
            modified: metadata.modified().ok(),
            accessed: metadata.accessed().ok(),
        }
    }

    fn implied(kind: Kind) -> Self {
        Self {
            kind,
            size: 0,
            modified: None,
            accessed: None,
        }
    }

    pub fn is_dir(&self) -> bool {
        self.kind == Kind::Directory
    }
}

/// Where a name that somebody gave leads from a directory. An empty one leads nowhere: no file has it, and what is asked of
/// it fails as POSIX wants (`rm -rf "$UNSET"` must not mean the directory).
pub fn named(cwd: &str, name: &str) -> PathBuf {
    match name {
        "" => PathBuf::new(),
        name => PathBuf::from(absolute(cwd, name)),
    }
}

/// Joins and cleans: the result is absolute, without `.`, `..` and doubled slashes.
pub fn absolute(cwd: &str, path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    let before = if path.starts_with('/') { "" } else { cwd };
    for part in before.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// Names that must exist directly below `path` because something is mounted there or further down.
pub fn implied(preopens: &[String], path: &str) -> Vec<String> {
    let below = if path == "/" {
        "/".to_owned()
    } else {
        format!("{path}/")
    };
    let mut names: Vec<String> = preopens
        .iter()
        .filter_map(|mount| mount.strip_prefix(&below))
        .filter_map(|rest| rest.split('/').next())
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect();
    names.sort();
    names.dedup();
    names
}

fn is_implied(path: &Path) -> bool {
    let path = path.to_string_lossy();
    path == "/" || !path.is_empty() && !implied(&os::preopens(), &path).is_empty()
}

/// About the file itself, not what a link points to.
pub fn lstat(path: &Path) -> io::Result<Stat> {
    about(path, fs::symlink_metadata(path))
}

pub fn stat(path: &Path) -> io::Result<Stat> {
    about(path, fs::metadata(path))
}

fn about(path: &Path, metadata: io::Result<Metadata>) -> io::Result<Stat> {
    match metadata {
        Ok(metadata) => Ok(Stat::of(&metadata)),
        Err(_) if is_implied(path) => Ok(Stat::implied(Kind::Directory)),
        Err(_) if device(path).is_some() => Ok(Stat::implied(Kind::Other)),
        Err(error) => Err(missing(error)),
    }
}

/// Outside of every mount there is nothing, which WASI words as a lack of rights or of preopens.
fn missing(error: io::Error) -> io::Error {
    let text = error.to_string();
    if text.contains("pre-opened") || error.raw_os_error() == Some(76) {
        return io::Error::new(io::ErrorKind::NotFound, "No such file or directory");
    }
    error
}

/// The names in a directory, sorted.
pub fn list(path: &Path) -> io::Result<Vec<String>> {
    let mut names: BTreeMap<String, ()> = BTreeMap::new();
    let implied = implied(&os::preopens(), &path.to_string_lossy());
    match fs::read_dir(path) {
        Ok(entries) => {
            for entry in entries {
                names.insert(entry?.file_name().to_string_lossy().into_owned(), ());
            }
        }
        Err(error) if implied.is_empty() && path != Path::new("/") => return Err(missing(error)),
        Err(_) => {}
    }
    names.extend(implied.into_iter().map(|name| (name, ())));
    Ok(names.into_keys().collect())
}

#[derive(Clone, Copy)]
enum Device {
    Null,
    Zero,
    Random,
    Stdin,
    Stdout,
    Stderr,
}

fn device(path: &Path) -> Option<Device> {
    Some(match path.to_str()? {
        "/dev/null" => Device::Null,
        "/dev/zero" => Device::Zero,
        "/dev/random" | "/dev/urandom" => Device::Random,
        "/dev/stdin" => Device::Stdin,
        "/dev/stdout" => Device::Stdout,
        "/dev/stderr" => Device::Stderr,
        _ => return None,
    })
}

pub fn open(path: &Path) -> io::Result<Input> {
    if cfg!(target_os = "wasi") {
        match device(path) {
            Some(Device::Null) => return Ok(Input::nothing()),
            Some(Device::Stdin) => return Ok(Input::outside()),
            Some(_) => return Err(io::Error::other("this device is not here")),
            None => {}
        }
    }
    if stat(path)?.is_dir() {
        return Err(io::Error::other("Is a directory"));
    }
    Ok(Input::file(File::open(path).map_err(missing)?))
}

/// For writing: a new or emptied file, or at the end of what is there.
pub fn create(path: &Path, append: bool) -> io::Result<Output> {
    if cfg!(target_os = "wasi") {
        match device(path) {
            Some(Device::Null) => return Ok(Output::Null),
            Some(Device::Stdout) => return Ok(Output::Stdout),
            Some(Device::Stderr) => return Ok(Output::Stderr),
            Some(_) => return Err(io::Error::other("this device is not here")),
            None => {}
        }
    }
    let file = OpenOptions::new()
        .create(true)
        .write(true)
        .append(append)
        .truncate(!append)
        .open(path)
        .map_err(missing)?;
    Ok(Output::File(std::rc::Rc::new(std::cell::RefCell::new(
        file,
    ))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_joined_and_cleaned() {
        assert_eq!(absolute("/a/b", "../c/./d//e"), "/a/c/d/e");
        assert_eq!(absolute("/a", "/x/../../y"), "/y");
        assert_eq!(absolute("/", ""), "/");
        assert_eq!(named("/a", "b"), Path::new("/a/b"));
        assert!(stat(&named("/tmp", "")).is_err(), "nothing has no name");
    }

    #[test]
    fn mounts_imply_the_directories_above_them() {
        let mounts = [
            "/var/run/secrets/token".into(),
            "/var/data".into(),
            "/etc".into(),
        ];
        assert_eq!(implied(&mounts, "/"), ["etc", "var"]);
        assert_eq!(implied(&mounts, "/var"), ["data", "run"]);
        assert_eq!(implied(&mounts, "/var/data"), [""; 0]);
        assert_eq!(implied(&mounts, "/va"), [""; 0]);
    }
}
