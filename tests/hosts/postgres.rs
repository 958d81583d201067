//! A Postgres of the lab's own, in the hub.

use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::lab::{HUB, Lab, wait_for};

const PORT: u16 = 5432;
/// Postgres refuses to run as root; this is `nobody`.
const UNPRIVILEGED: u32 = 65_534;

pub(crate) struct Postgres {
    process: Child,
    _dir: tempfile::TempDir,
}

// === impl Postgres ===

impl Postgres {
    /// A new, empty database; `None` where the programs are not installed.
    pub(crate) fn start(lab: &Lab) -> Option<Self> {
        let Some(programs) = programs() else {
            assert!(
                std::env::var_os("CORACLE_REQUIRE_TOOLS").is_none(),
                "no initdb on this machine, and tools are required"
            );
            println!("skipped: no initdb on this machine");
            return None;
        };
        let dir = tempfile::tempdir().expect("a temporary directory");
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(dir.path(), open).expect("our directory");
        let data = dir.path().join("data");
        std::fs::create_dir(&data).expect("a directory");
        chown(&data, Some(UNPRIVILEGED), Some(UNPRIVILEGED)).expect("we are root");
        let run = |program: &str| {
            let mut command = lab.command("hub", "setpriv");
            let id = UNPRIVILEGED.to_string();
            command
                .args(["--reuid", &id, "--regid", &id, "--clear-groups"])
                .arg(programs.join(program))
                .arg("-D")
                .arg(&data)
                .current_dir(dir.path());
            command
        };
        let made = run("initdb")
            .args(["-U", "coracle", "-A", "trust", "--no-sync", "-E", "UTF8"])
            .output()
            .expect("initdb can be started");
        assert!(
            made.status.success(),
            "initdb: {}",
            String::from_utf8_lossy(&made.stderr)
        );
        let rules = "host all all 192.0.2.0/24 trust\n";
        std::fs::write(data.join("pg_hba.conf"), rules).expect("written");
        let log = std::fs::File::create(dir.path().join("log")).expect("a file");
        let process = run("postgres")
            .args(["-k", "", "-h", HUB, "-p", &PORT.to_string()])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("postgres can be started");
        let postgres = Self { process, _dir: dir };
        let address: SocketAddr = format!("{HUB}:{PORT}").parse().expect("an address");
        lab.inside("hub", || {
            wait_for("Postgres to listen", || TcpStream::connect(address).ok())
        });
        Some(postgres)
    }

    pub(crate) fn url(&self, host: &str) -> String {
        format!("postgres://coracle@{host}:{PORT}/postgres?sslmode=disable")
    }
}

/// Where the server's programs are: on the path, or where Debian puts them.
fn programs() -> Option<PathBuf> {
    let on_path = std::env::var_os("PATH").and_then(|path| {
        std::env::split_paths(&path).find(|directory| directory.join("initdb").exists())
    });
    on_path.or_else(|| {
        let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
            .ok()?
            .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
            .filter(|bin: &PathBuf| Path::new(bin).join("initdb").exists())
            .collect();
        versions.sort();
        versions.pop()
    })
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // The quick way: nobody needs these data.
        let _ = Command::new("kill")
            .args(["-QUIT", &self.process.id().to_string()])
            .status();
        let _ = self.process.wait();
    }
}
