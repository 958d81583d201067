//! The repository's own rules as tests: who may import whom, how long a file may be, what it may be called.

#[path = "tidy/modules.rs"]
mod modules;

use std::path::{Path, PathBuf};
use std::process::Command;

use modules::Graph;

/// Files longer than [`LONGEST`] that are known and have a reason. This list shrinks.
const LONG_FILES: &[(&str, &str)] = &[];
const LONGEST: usize = 600;

const CRATES: &[&str] = &[
    "api/types/src",
    "api/src",
    "scheduler/src",
    "host/src",
    "src",
    "guests/toolbox/src",
];

/// Modules that use one another in a circle: crate, `parent: modules`, and why. This list shrinks.
const CIRCLES: &[(&str, &str, &str)] = &[
    (
        "api/src",
        ": admission auth certificates discovery furniture handlers kinds links metrics nodes openapi registry streams table",
        "what a request needs (`Api`) lives in handlers",
    ),
    (
        "api/src",
        ": cache pki store",
        "the store's records live in it; what it seals is named by pki",
    ),
    (
        "api/src",
        "codec::protobuf: decode encode special",
        "a grammar: messages are in special forms, and those in messages",
    ),
    (
        "api/src",
        "store::postgres: load publisher",
        "one enum in the wrong file",
    ),
    (
        "host/src",
        ": dns network",
        "names are looked up in the network's table",
    ),
    (
        "host/src",
        ": join servers",
        "files that only the owner reads",
    ),
    (
        "host/src",
        "ingress: proxy serve upgrade",
        "what a connection's requests share is in serve",
    ),
    (
        "host/src",
        "network: bodies client http observe pod policy ports serve tunnel udp vnet",
        "the router and its transports, all over `Fabric`",
    ),
    ("host/src", "network::policy: counts rules", "one enum"),
    (
        "host/src",
        "network::policy: gate open",
        "decisions are in the gate that opens",
    ),
    (
        "host/src",
        "network::tunnel: datagrams kinds outgoing peer",
        "memory of a peer's answers",
    ),
    (
        "host/src",
        "pods: environment volumes",
        "both read the same sources",
    ),
    (
        "host/src",
        "pods: exec known logs toolbox",
        "streams of sessions live in exec",
    ),
    (
        "host/src",
        "runtime: calls engine guest limits linker sockets",
        "wasmtime's own knot: a store's data and the linker that uses it",
    ),
    ("host/src", "runtime: command workload", "texts of exits"),
    (
        "guests/toolbox/src",
        ": applets shell",
        "`sh` is an applet, and runs applets",
    ),
    (
        "guests/toolbox/src",
        ": context files io os",
        "streams know how their context fails",
    ),
    (
        "guests/toolbox/src",
        "shell: lex parse",
        "a word holds commands: `$(…)`",
    ),
];

/// What code must not mention: crate, the module and all below it, words. Tests may.
const UNHEARD: &[(&str, &[&str], &[&str])] = &[
    (
        "api/types/src",
        &[""],
        &["tokio", "std::fs", "std::net::Tcp", "Instant", "now()"],
    ),
    (
        "api/src",
        &["kinds"],
        &["crate::handlers", "crate::registry"],
    ),
    ("api/src", &["store"], &["crate::kinds", "crate::handlers"]),
    ("scheduler/src", &["controllers"], &["crate::scheduling"]),
    ("host/src", &["pods"], &["wasmtime::", "wasmtime_"]),
    ("host/src", &["runtime"], &["k8s_openapi", "kube::"]),
    (
        "host/src",
        &[
            "pods::lifecycle",
            "pods::status",
            "pods::probes",
            "pods::backoff",
            "network::balancer",
            "network::tunnel::machine",
            "network::tunnel::liveness",
            "network::policy::rules",
            "dns::zone",
        ],
        &["now()", "tokio::", "std::fs", "std::net::Tcp", "rand::"],
    ),
];

/// What controllers share; else none knows another.
const SHARED_BY_CONTROLLERS: &[&str] = &["amount", "ownership", "service_pods", "service_ports"];

/// Tasks that no tracker owns: where, and who waits for them.
const SPAWNED: &[(&str, &str)] = &[
    ("api/src/store/sqlite.rs", "the handle is kept and awaited"),
    (
        "host/src/ingress/secrets.rs",
        "aborted when its handle is dropped",
    ),
    (
        "host/src/link.rs",
        "ends with the connection it drives, or after a deadline",
    ),
    ("host/src/network/http.rs", "the caller waits, or aborts it"),
    (
        "host/src/servers/connection.rs",
        "ends with the last one that uses the connection",
    ),
    (
        "scheduler/src/controllers/ingress_status/secrets.rs",
        "aborted when its handle is dropped",
    ),
];

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

fn graph(dir: &str) -> Graph {
    let mut files = Vec::new();
    collect(&root().join(dir), "rs", &mut files);
    assert!(!files.is_empty(), "{dir} has no sources");
    Graph::new(files.iter().map(|path| {
        let below = path.strip_prefix(dir).expect("it was found there");
        (below.display().to_string(), read(path))
    }))
}

#[test]
fn modules_make_no_circles() {
    for dir in CRATES {
        let found = graph(dir).circles();
        let known: Vec<_> = CIRCLES
            .iter()
            .filter(|(at, ..)| at == dir)
            .map(|(_, circle, _)| *circle)
            .collect();
        for circle in &found {
            assert!(
                known.contains(&circle.as_str()),
                "{dir}: a circle of modules, {circle:?}: move what both need below them"
            );
        }
        for circle in known {
            assert!(
                found.iter().any(|found| found == circle),
                "{dir}: the circle {circle:?} is not as it is listed: {found:#?}"
            );
        }
    }
}

#[test]
fn modules_have_not_heard_of_what_is_not_theirs() {
    for (dir, modules, words) in UNHEARD {
        let graph = graph(dir);
        for wanted in *modules {
            let below = format!("{wanted}::");
            let mut seen = 0;
            for (name, text) in graph.modules() {
                if !wanted.is_empty() && name != *wanted && !name.starts_with(&below) {
                    continue;
                }
                seen += 1;
                for word in *words {
                    assert!(
                        !text.contains(word),
                        "{dir}: {name} mentions {word}, which {wanted:?} must not know"
                    );
                }
            }
            assert!(seen > 0, "{dir} has no module {wanted}");
        }
    }
}

#[test]
fn controllers_do_not_import_one_another() {
    let found: Vec<_> = graph("scheduler/src")
        .beside("controllers")
        .into_iter()
        .filter(|(_, to)| !SHARED_BY_CONTROLLERS.contains(&to.as_str()))
        .collect();
    assert!(found.is_empty(), "{found:?}: share it beside them");
}

#[test]
fn tasks_have_an_owner() {
    let mut found: Vec<String> = Vec::new();
    for dir in CRATES {
        for (name, text) in graph(dir).modules() {
            if text.contains("tokio::spawn(") {
                found.push(format!("{dir}/{}.rs", name.replace("::", "/")));
            }
        }
    }
    found.sort();
    let known: Vec<_> = SPAWNED.iter().map(|(file, _)| *file).collect();
    assert_eq!(found, known, "spawn on the tracker of whoever awaits it");
}

#[test]
fn logs_tell_the_cause_of_an_error() {
    for dir in CRATES {
        for (name, text) in graph(dir).modules() {
            for end in [',', ')'] {
                assert!(
                    !text.contains(&format!("%error{end}")),
                    "{dir}: {name} logs an error without its cause: error = %chain(&error)"
                );
            }
        }
    }
}

#[test]
fn every_dependency_is_used() {
    for manifest in ["api", "api/types", "scheduler", "host", "."] {
        let text = read(&Path::new(manifest).join("Cargo.toml"));
        let section = text.split("\n[dependencies]\n").nth(1).unwrap_or_default();
        let section = section.split("\n[").next().unwrap_or_default();
        let dir = format!("{manifest}/src");
        let dir = dir.trim_start_matches("./");
        let code: String = graph(dir)
            .modules()
            .map(|(_, text)| text.to_owned())
            .collect();
        for line in section.lines() {
            let Some(name) = line.split([' ', '.', '=']).next().filter(|n| !n.is_empty()) else {
                continue;
            };
            let name = name.replace('-', "_");
            assert!(
                code.contains(&format!("{name}::")) || code.contains(&format!("use {name}")),
                "{manifest} does not use {name}"
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
            // It looks at what a server leaves in a database.
            || name == "api/tests/http/replicas.rs"
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
