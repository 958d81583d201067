//! A Postgres server of a test's own: made in a temporary directory with the installed binaries, listening on a socket
//! there and nowhere else, gone when it is dropped. Std only, so that every test and bench can include this file.
//!
//! The role the tests connect as owns its database and nothing more. Postgres refuses to run as root; then it runs as
//! `nobody`.

#![allow(dead_code, reason = "not everybody who includes this uses all of it")]

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const NOBODY: u32 = 65_534;
const PORT: u16 = 5_432;
/// For anything the server is asked to do.
const DEADLINE: Duration = Duration::from_secs(60);

/// A running server. Dropping it stops it and removes its directory.
pub(crate) struct Server {
    directory: PathBuf,
    programs: PathBuf,
    /// Whether it has to run as somebody else than we do.
    root: bool,
    settings: Vec<String>,
    process: Option<Child>,
}

/// Where `postgres` and `initdb` are; says so when they are nowhere.
///
/// # Panics
/// When they are nowhere and `CORACLE_REQUIRE_TOOLS` is set.
#[expect(clippy::print_stderr, reason = "a skipped test says why")]
pub(crate) fn programs() -> Option<PathBuf> {
    let mut places: Vec<PathBuf> = Vec::new();
    if let Ok(found) = Command::new("pg_config").arg("--bindir").output() {
        places.push(String::from_utf8_lossy(&found.stdout).trim().into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    places.extend(std::env::split_paths(&path));
    for versions in ["/usr/lib/postgresql", "/usr/local/lib/postgresql"] {
        let versions = fs::read_dir(versions).into_iter().flatten().flatten();
        let mut found: Vec<_> = versions.map(|entry| entry.path().join("bin")).collect();
        found.sort();
        places.extend(found.into_iter().rev());
    }
    let complete = |place: &PathBuf| {
        let all = ["postgres", "initdb", "pg_ctl"];
        all.iter().all(|name| place.join(name).is_file())
    };
    let found = places.into_iter().find(complete);
    if found.is_none() {
        let required = std::env::var_os("CORACLE_REQUIRE_TOOLS").is_some();
        assert!(!required, "postgres, initdb and pg_ctl are not installed");
        eprintln!("skipped: postgres, initdb and pg_ctl are not installed");
    }
    found
}

impl Server {
    /// `None`, with a line that says why, where Postgres is not installed. Settings are like `fsync=on`.
    pub(crate) fn start(settings: &[&str]) -> Option<Self> {
        let programs = programs()?;
        let directory = temporary();
        let root = fs::metadata(&directory).expect("just made").uid() == 0;
        if root {
            chown(&directory, Some(NOBODY), Some(NOBODY)).expect("root may");
        }
        let settings = settings.iter().map(|setting| (*setting).to_owned());
        let mut server = Self {
            directory,
            programs,
            root,
            settings: settings.collect(),
            process: None,
        };
        let data = server.data();
        let made = server
            .command("initdb")
            .arg("-D")
            .arg(&data)
            .args([
                "-A",
                "trust",
                "-U",
                "admin",
                "-E",
                "UTF8",
                "--no-locale",
                "-N",
            ])
            .output()
            .expect("initdb runs");
        assert!(
            made.status.success(),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
        server.alone(
            "CREATE ROLE coracle LOGIN NOSUPERUSER\nCREATE DATABASE coracle OWNER coracle\n",
        );
        server.run();
        Some(server)
    }

    /// With TLS on a port of 127.0.0.1, beside the socket. Certificate and key are PEM.
    pub(crate) fn start_tls(certificate: &str, key: &str) -> Option<(Self, u16)> {
        let mut server = Self::start(&["fsync=off"])?;
        server.halt("fast");
        for (name, text) in [("server.crt", certificate), ("server.key", key)] {
            let path = server.data().join(name);
            fs::write(&path, text).expect("our directory");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("just made");
            if server.root {
                chown(&path, Some(NOBODY), Some(NOBODY)).expect("root may");
            }
        }
        let free = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let port = free.local_addr().expect("bound").port();
        drop(free);
        let settings = ["ssl=on", "listen_addresses=127.0.0.1"].map(str::to_owned);
        server.settings.extend(settings);
        server.settings.push(format!("port={port}"));
        server.run();
        Some((server, port))
    }

    /// What a client needs to know.
    pub(crate) fn url(&self) -> String {
        let socket = self.directory.display().to_string().replace('/', "%2F");
        format!("postgres://coracle@{socket}:{PORT}/coracle")
    }

    /// As the superuser.
    pub(crate) fn admin_url(&self) -> String {
        self.url().replace("coracle@", "admin@")
    }

    /// Kills every session without a goodbye, and starts again, with recovery.
    pub(crate) fn crash(&mut self) {
        self.halt("immediate");
        self.run();
    }

    /// Stops it: `fast`, or `immediate` as a crash would.
    pub(crate) fn halt(&mut self, how: &str) {
        let data = self.data();
        let stopped = self
            .command("pg_ctl")
            .args(["stop", "-w", "-m", how, "-D"])
            .arg(&data)
            .output()
            .expect("pg_ctl runs");
        assert!(
            stopped.status.success(),
            "{}",
            String::from_utf8_lossy(&stopped.stderr)
        );
        if let Some(mut process) = self.process.take() {
            process.wait().expect("it was our child");
        }
    }

    /// Starts it, and waits until it takes connections.
    #[expect(
        clippy::disallowed_methods,
        reason = "waits on a file that another process writes, with a deadline, without a runtime"
    )]
    pub(crate) fn run(&mut self) {
        let data = self.data();
        let log = fs::File::create(self.directory.join("log")).expect("our directory");
        let mut command = self.command("postgres");
        command
            .arg("-D")
            .arg(&data)
            .arg("-k")
            .arg(&self.directory)
            .args(["-h", "", "-p", &PORT.to_string()])
            .args(["-c", "max_connections=50", "-c", "shared_buffers=32MB"]);
        for setting in &self.settings {
            command.args(["-c", setting]);
        }
        let process = command.stdout(Stdio::null()).stderr(log).spawn();
        self.process = Some(process.expect("postgres runs"));
        let begun = Instant::now();
        // The eighth line of its pid file says how it is.
        while !fs::read_to_string(data.join("postmaster.pid"))
            .is_ok_and(|file| file.lines().nth(7).is_some_and(|l| l.trim() == "ready"))
        {
            let log = || fs::read_to_string(self.directory.join("log")).unwrap_or_default();
            assert!(
                begun.elapsed() < DEADLINE,
                "postgres did not start: {}",
                log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Statements, one a line, for a server that does not run.
    fn alone(&self, sql: &str) {
        let mut process = self
            .command("postgres")
            .args(["--single", "-D"])
            .arg(self.data())
            .arg("postgres")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("postgres runs");
        let mut input = process.stdin.take().expect("piped");
        input.write_all(sql.as_bytes()).expect("it reads");
        drop(input);
        assert!(process.wait().expect("our child").success());
    }

    fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.current_dir(&self.directory).stdin(Stdio::null());
        if self.root {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // Its children see that it is gone, and go.
            drop(process.kill());
            drop(process.wait());
        }
        drop(fs::remove_dir_all(&self.directory));
    }
}

/// A new directory, short enough for a socket's path.
fn temporary() -> PathBuf {
    let begun = std::process::id();
    for attempt in 0.. {
        let path = Path::new("/tmp").join(format!("coracle-pg-{begun}-{attempt}"));
        if fs::create_dir(&path).is_ok() {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("just made");
            return path;
        }
        assert!(attempt < 1_000, "{} cannot be made", path.display());
    }
    unreachable!("attempts end with an assertion")
}
