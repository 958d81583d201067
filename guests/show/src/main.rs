//! Shows: what a container is given. Prints its arguments, environment and every file below the directories in `SHOW_DIRS`
//! (colon-separated); then writes `POD_NAME` into `WRITE_FILE` if set; exits 0 at once, or after `STAY_MS`.

use std::path::Path;
use std::time::Duration;

fn main() -> std::io::Result<()> {
    println!("args {:?}", std::env::args().skip(1).collect::<Vec<_>>());
    let mut env: Vec<_> = std::env::vars().collect();
    env.sort();
    for (name, value) in env {
        println!("env {name}={value}");
    }
    for dir in std::env::var("SHOW_DIRS")
        .unwrap_or_default()
        .split(':')
        .filter(|d| !d.is_empty())
    {
        list(Path::new(dir));
    }
    if let Ok(file) = std::env::var("WRITE_FILE") {
        match std::fs::write(&file, std::env::var("POD_NAME").unwrap_or_default()) {
            Ok(()) => println!("wrote {file}"),
            Err(error) => println!("could not write {file}: {error}"),
        }
    }
    let stay: u64 = std::env::var("STAY_MS")
        .ok()
        .and_then(|ms| ms.parse().ok())
        .unwrap_or(0);
    std::thread::sleep(Duration::from_millis(stay));
    Ok(())
}

fn list(dir: &Path) {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) => return println!("dir {}: {error}", dir.display()),
    };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        // Names with two dots are the atomic-update machinery of volumes.
        if path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(".."))
        {
            continue;
        }
        if path.is_dir() {
            list(&path);
        } else {
            match std::fs::read(&path) {
                Ok(bytes) => println!(
                    "file {} {:?}",
                    path.display(),
                    String::from_utf8_lossy(&bytes)
                ),
                Err(error) => println!("file {}: {error}", path.display()),
            }
        }
    }
}
