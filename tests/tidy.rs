//! The repository's own rules as tests: who may import whom, how long a file may be, what it may be called.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Files longer than [`LONGEST`] that are known and have a reason. This list shrinks.
const LONG_FILES: &[(&str, &str)] = &[];
const LONGEST: usize = 600;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust source of ours, as paths from the root.
fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for dir in ["src", "api", "scheduler", "host", "guests", "tests"] {
        collect(&root().join(dir), "rs", &mut found);
    }
    assert!(
        found.len() > 20,
        "the sources were looked for in the wrong place"
    );
    found
}

fn collect(dir: &Path, ending: &str, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()))
    {
        let path = entry.expect("a directory entry").path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target") {
                collect(&path, ending, found);
            }
        } else if path
            .extension()
            .is_some_and(|extension| extension == ending)
        {
            found.push(
                path.strip_prefix(root())
                    .expect("below the root")
                    .to_owned(),
            );
        }
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(root().join(path))
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Names of the crates `package` depends on in a normal build.
fn dependencies(package: &str) -> Vec<String> {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--offline",
            "--edges",
            "normal",
            "--prefix",
            "none",
            "--format",
            "{lib}",
            "--package",
            package,
        ])
        .current_dir(root())
        .output()
        .expect("cargo can be run");
    assert!(
        output.status.success(),
        "cargo tree: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| line.trim().to_owned())
        .collect()
}

#[test]
fn imports_go_one_way() {
    let forbidden: &[(&str, &[&str])] = &[
        ("api", &["kube_client", "scheduler", "host", "wasmtime"]),
        ("scheduler", &["api", "host", "sqlx", "wasmtime"]),
        ("host", &["api", "scheduler", "sqlx"]),
        ("types", &["tokio", "kube_client", "sqlx", "hyper"]),
    ];
    for (package, names) in forbidden {
        let dependencies = dependencies(package);
        assert!(
            dependencies.len() > 1,
            "{package} has no dependencies: the question was asked wrongly"
        );
        for name in *names {
            assert!(
                !dependencies.iter().any(|found| found == name),
                "{package} must not depend on {name}"
            );
        }
    }
}

#[test]
fn there_is_one_tls_provider() {
    let dependencies = dependencies("coracle");
    for name in ["aws_lc_rs", "aws_lc_sys", "openssl_sys", "native_tls"] {
        assert!(
            !dependencies.iter().any(|found| found == name),
            "{name} would be a second TLS provider beside ring"
        );
    }
    assert!(dependencies.iter().any(|found| found == "ring"));
}

#[test]
fn no_file_is_longer_than_a_conversation() {
    for path in sources() {
        let name = path.display().to_string();
        let lines = read(&path).lines().count();
        let known = LONG_FILES.iter().any(|(long, _)| *long == name);
        assert!(
            lines <= LONGEST || known,
            "{name} has {lines} lines: split it where it has two reasons to change"
        );
        assert!(
            lines > LONGEST || !known,
            "{name} is short again: take it off the list"
        );
    }
}

#[test]
fn every_file_says_what_it_owns() {
    for path in sources() {
        let first = read(&path).lines().next().unwrap_or_default().to_owned();
        assert!(
            first.starts_with("//! ") && first.len() > 10,
            "{} must begin with what it is",
            path.display()
        );
    }
}

#[test]
fn no_file_is_called_after_nothing() {
    for path in sources() {
        let stem = path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .unwrap_or_default();
        for name in ["util", "utils", "common", "helper", "helpers", "misc"] {
            assert_ne!(stem, name, "{}: name the concept", path.display());
        }
    }
}

#[test]
fn sql_lives_in_the_store() {
    for path in sources() {
        let name = path.display().to_string();
        let at_home = name.starts_with("api/src/store")
            || name.starts_with("api/tests/store")
            || name == "tests/tidy.rs";
        assert!(
            at_home || !read(&path).contains("sqlx::"),
            "{name} speaks SQL outside the store"
        );
    }
}

#[test]
fn there_is_one_unsafe_block() {
    let unsafe_code: Vec<_> = sources()
        .into_iter()
        .filter(|path| path != Path::new("tests/tidy.rs"))
        .filter(|path| {
            read(path)
                .lines()
                .any(|line| line.trim_start().starts_with("unsafe ") || line.contains(" unsafe {"))
        })
        .collect();
    assert_eq!(unsafe_code, [Path::new("host/src/runtime/compiled.rs")]);
}

#[test]
fn every_guest_is_used() {
    let guests = std::fs::read_dir(root().join("guests/built")).expect("the built guests are kept");
    let names = guests.map(|entry| {
        entry
            .expect("an entry")
            .file_name()
            .to_string_lossy()
            .into_owned()
    });
    let names: Vec<_> = names
        .filter_map(|name| name.strip_suffix(".wasm").map(str::to_owned))
        .collect();
    assert!(!names.is_empty());
    // What merely bundles guests is no use of one.
    let mut users: String = sources()
        .iter()
        .filter(|path| path.starts_with("tests") || path.starts_with("host"))
        .map(|path| read(path))
        .collect();
    let mut manifests = Vec::new();
    collect(&root().join("manifests"), "yaml", &mut manifests);
    users.extend(manifests.iter().map(|path| read(path)));
    for name in names {
        let image = format!("guests/{name}");
        // The mirror map leads from these names to it.
        let stands_for = match name.as_str() {
            "load-generator" => "gcr.io/google-samples/istio/loadgen",
            _ => &image,
        };
        assert!(
            users.contains(stands_for) || users.contains(&format!("\"{name}\"")),
            "no test and no manifest uses the guest {name}"
        );
    }
}

#[test]
fn the_kept_guests_match_their_checksums() {
    let status = Command::new("sha256sum")
        .args(["--quiet", "--check", "SHA256SUMS"])
        .current_dir(root().join("guests/built"))
        .status()
        .expect("sha256sum can be run");
    assert!(status.success(), "run guests/build");
}
