//! Several hosts on one machine: network namespaces, each joined to a hub by a cable that can be pulled. Nothing of it
//! touches the machine's own network, and all of it goes when the [`Lab`] is dropped.
//!
//! ```text
//!   hub (bridge 192.0.2.1): kubectl, clients, the database
//!    ├── h1 192.0.2.11     ├── s1 192.0.2.21
//!    ├── h2 192.0.2.12     ├── s2 192.0.2.22
//!    └── …                 └── (nat) e1 198.51.100.7, which nobody can dial
//! ```

use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::nat::Nat;
use crate::shared;

/// How long anything is waited for; a busy machine is slow.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);
/// Where clients, kubectl and the database live.
pub(crate) const HUB: &str = "192.0.2.1";

/// Labs share the machine's two cores: one at a time, so that what they measure means something.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
static NUMBER: AtomicU32 = AtomicU32::new(0);

pub(crate) struct Lab {
    name: String,
    dir: tempfile::TempDir,
    hosts: Vec<Host>,
    kubeconfig: Mutex<PathBuf>,
    nats: Vec<Nat>,
    _alone: MutexGuard<'static, ()>,
}

struct Host {
    name: String,
    process: Option<Child>,
}

/// The tool is there; where it is not, the test says so and is skipped, unless tools are required.
fn usable(what: &str, command: &mut Command) -> bool {
    let output = command.stdin(Stdio::null()).output();
    let problem = match output {
        Ok(output) if output.status.success() => return true,
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    assert!(
        std::env::var_os("CORACLE_REQUIRE_TOOLS").is_none(),
        "{what}: {problem}; and tools are required"
    );
    println!("skipped: {what}: {problem}");
    false
}

/// Asks again and again until the answer is `Some`; panics with `what` at the deadline.
pub(crate) fn wait_for<T>(what: &str, ask: impl FnMut() -> Option<T>) -> T {
    shared::wait_for(PATIENCE, what, ask)
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

// === impl Lab ===

impl Lab {
    /// A hub and nothing else; `None` where this machine does not let us make one.
    pub(crate) fn new() -> Option<Self> {
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("cor{}x{number}", std::process::id() % 100_000);
        let hub = format!("{name}-hub");
        if !usable("kubectl", Command::new("kubectl").arg("--help"))
            || !usable(
                "network namespaces",
                Command::new("ip").args(["netns", "add", &hub]),
            )
        {
            return None;
        }
        let lab = Self {
            name,
            dir: tempfile::tempdir().expect("a temporary directory"),
            hosts: Vec::new(),
            kubeconfig: Mutex::default(),
            nats: Vec::new(),
            _alone: alone,
        };
        lab.in_hub(&["link", "set", "lo", "up"]);
        lab.in_hub(&["link", "add", "br0", "type", "bridge"]);
        lab.in_hub(&["addr", "add", &format!("{HUB}/24"), "dev", "br0"]);
        lab.in_hub(&["link", "set", "br0", "up"]);
        Some(lab)
    }

    fn namespace(&self, host: &str) -> String {
        format!("{}-{host}", self.name)
    }

    /// `ip` with these arguments, inside the hub.
    fn in_hub(&self, args: &[&str]) {
        let hub = self.namespace("hub");
        run("ip", &[&["-n", &hub], args].concat());
    }

    /// A host with the address 192.0.2.`number`.
    pub(crate) fn host(&mut self, host: &str, number: u8) {
        let (hub, own) = (self.namespace("hub"), self.namespace(host));
        run("ip", &["netns", "add", &own]);
        self.in_hub(&[
            "link", "add", host, "type", "veth", "peer", "name", "eth0", "netns", &own,
        ]);
        run(
            "ip",
            &["-n", &hub, "link", "set", host, "master", "br0", "up"],
        );
        run("ip", &["-n", &own, "link", "set", "lo", "up"]);
        let address = format!("192.0.2.{number}/24");
        run("ip", &["-n", &own, "addr", "add", &address, "dev", "eth0"]);
        run("ip", &["-n", &own, "link", "set", "eth0", "up"]);
        run("ip", &["-n", &own, "route", "add", "default", "via", HUB]);
        self.hosts.push(Host {
            name: host.to_owned(),
            process: None,
        });
    }

    /// A host with this address that reaches `to` and that nothing can reach: behind a NAT.
    pub(crate) fn hidden_host(&mut self, host: &str, address: &str, to: &[SocketAddr]) {
        let own = self.namespace(host);
        run("ip", &["netns", "add", &own]);
        self.hosts.push(Host {
            name: host.to_owned(),
            process: None,
        });
        let mut addresses: Vec<String> = to.iter().map(|to| to.ip().to_string()).collect();
        addresses.sort();
        addresses.dedup();
        run("ip", &["-n", &own, "link", "set", "lo", "up"]);
        for address in addresses.iter().map(String::as_str).chain([address]) {
            let address = format!("{address}/32");
            run("ip", &["-n", &own, "addr", "add", &address, "dev", "lo"]);
        }
        let nat = Nat::start(self.namespace_file(host), self.namespace_file("hub"), to);
        self.nats.push(nat);
    }

    /// Gives a host one more address, or takes it away; everybody else learns that at once, as when keepalived tells them.
    pub(crate) fn address(&self, host: &str, address: &str, present: bool) {
        let verb = if present { "add" } else { "del" };
        let with_mask = format!("{address}/32");
        let own = self.namespace(host);
        run("ip", &["-n", &own, "addr", verb, &with_mask, "dev", "eth0"]);
        for other in self.namespaces() {
            // Where nobody was known there is nothing to forget.
            let _ = Command::new("ip")
                .args(["-n", &other, "neigh", "flush", "to", address])
                .output();
        }
    }

    /// What `host` sends to `address` is lost on the way, or no longer.
    pub(crate) fn lose(&self, host: &str, address: &str, lost: bool) {
        let own = self.namespace(host);
        // Nobody has it.
        let nobody = ["lladdr", "02:00:00:00:00:99", "nud", "permanent"];
        let (verb, link): (_, &[&str]) = if lost {
            ("replace", &nobody)
        } else {
            ("del", &[])
        };
        let neighbour = ["-n", &own, "neigh", verb, address, "dev", "eth0"];
        run("ip", &[&neighbour, link].concat());
    }

    fn namespaces(&self) -> impl Iterator<Item = String> {
        let hosts = self.hosts.iter().map(|host| host.name.as_str());
        hosts.chain(["hub"]).map(|host| self.namespace(host))
    }

    /// Pulls the cable, or puts it back.
    pub(crate) fn cable(&self, host: &str, plugged: bool) {
        self.in_hub(&["link", "set", host, if plugged { "up" } else { "down" }]);
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A program on a host (`hub` is one too).
    pub(crate) fn command(&self, host: &str, program: &str) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.namespace(host), program])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .env("HOME", self.dir.path())
            .stdin(Stdio::null());
        command
    }

    /// The binary on a host, with a data directory of its own.
    fn coracle(&self, host: &str, role: &str, args: &[&str]) -> Command {
        let mut command = self.command(host, env!("CARGO_BIN_EXE_coracle"));
        command
            .args(["--log", "info", role, "--data-dir"])
            .arg(self.path(host))
            .args(args);
        command
    }

    /// Starts the host's process (again) in the background; what it says is in its log.
    pub(crate) fn start(&mut self, host: &str, role: &str, args: &[&str]) {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path(&format!("{host}.log")))
            .expect("a log file");
        let process = self
            .coracle(host, role, args)
            .stdout(log.try_clone().expect("a file"))
            .stderr(log)
            .spawn()
            .expect("the binary can be started");
        let slot = self.slot(host);
        assert!(slot.process.is_none(), "{host} runs already");
        slot.process = Some(process);
    }

    /// Runs the binary to its end; returns what it printed.
    pub(crate) fn coracle_output(&self, host: &str, role: &str, args: &[&str]) -> String {
        let output = self
            .coracle(host, role, args)
            .output()
            .expect("the binary can be started");
        assert!(
            output.status.success(),
            "coracle {role} {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn slot(&mut self, host: &str) -> &mut Host {
        let found = self.hosts.iter_mut().find(|h| h.name == host);
        found.unwrap_or_else(|| panic!("no host {host}"))
    }

    /// `kill -9`, as when the power goes.
    pub(crate) fn kill(&mut self, host: &str) {
        let mut process = self.slot(host).process.take().expect("it runs");
        process.kill().expect("it runs");
        process.wait().expect("it ended");
    }

    /// SIGTERM, and waits for the end; returns the exit code.
    pub(crate) fn terminate(&mut self, host: &str) -> Option<i32> {
        let mut process = self.slot(host).process.take().expect("it runs");
        let id = nix::unistd::Pid::from_raw(i32::try_from(process.id()).expect("a process id"));
        nix::sys::signal::kill(id, Signal::SIGTERM).expect("it runs");
        wait_for(&format!("{host} to stop"), || {
            process.try_wait().expect("it is our child")
        })
        .code()
    }

    pub(crate) fn log(&self, host: &str) -> String {
        std::fs::read_to_string(self.path(&format!("{host}.log"))).unwrap_or_default()
    }

    /// Which server kubectl talks to.
    pub(crate) fn use_kubeconfig(&self, path: PathBuf) {
        *self
            .kubeconfig
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = path;
    }

    pub(crate) fn try_kubectl(&self, args: &[&str]) -> Output {
        let output = self.kubectl_command(args).output();
        output.expect("kubectl can be started")
    }

    fn kubectl_command(&self, args: &[&str]) -> Command {
        let config = self
            .kubeconfig
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let mut command = self.command("hub", "kubectl");
        command.args(args).env("KUBECONFIG", config);
        command
    }

    /// kubectl that goes on (`logs -f`, `get -w`) until what is returned is dropped.
    pub(crate) fn follow(&self, args: &[&str]) -> Follow {
        let file = self.fresh("out");
        let out = File::create(&file).expect("a file");
        let process = self
            .kubectl_command(args)
            .stderr(out.try_clone().expect("a file"))
            .stdout(out)
            .spawn()
            .expect("kubectl can be started");
        Follow { process, file }
    }

    /// A name in the lab's directory that nobody has.
    fn fresh(&self, suffix: &str) -> PathBuf {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        self.path(&format!("{number}.{suffix}"))
    }

    /// Runs kubectl, which must succeed; returns its standard output.
    pub(crate) fn kubectl(&self, args: &[&str]) -> String {
        let output = self.try_kubectl(args);
        assert!(
            output.status.success(),
            "kubectl {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub(crate) fn apply(&self, manifest: &str) {
        let file = self.fresh("yaml");
        let mut open = File::create(&file).expect("a file");
        open.write_all(manifest.as_bytes()).expect("written");
        self.kubectl(&["apply", "-f", &file.display().to_string()]);
    }

    /// A namespace that takes pods.
    pub(crate) fn make_namespace(&self, name: &str, labels: &str) {
        self.apply(&format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n"
        ));
        let account = ["-n", name, "serviceaccount", "default"];
        self.wait(&format!("the account of {name}"), &account, |_| Some(()));
    }

    pub(crate) fn get(&self, args: &[&str]) -> Option<Value> {
        let output = self.try_kubectl(&[&["get", "-o", "json"], args].concat());
        output
            .status
            .success()
            .then(|| serde_json::from_slice(&output.stdout).expect("kubectl prints JSON"))
    }

    /// Waits until `ask` finds what it looks for in the object.
    pub(crate) fn wait<T>(
        &self,
        what: &str,
        args: &[&str],
        mut ask: impl FnMut(&Value) -> Option<T>,
    ) -> T {
        wait_for(what, || {
            let found = self.get(args).and_then(|object| ask(&object));
            if found.is_none() {
                // kubectl costs more than what it asks.
                std::thread::park_timeout(Duration::from_millis(150));
            }
            found
        })
    }

    /// Logs of a pod once they contain `wanted`.
    pub(crate) fn logs_with(&self, args: &[&str], wanted: &str) -> String {
        let mut before = String::new();
        wait_for(&format!("{wanted:?} in the logs of {args:?}"), || {
            let output = self.try_kubectl(&[&["logs"], args].concat());
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let errors = String::from_utf8_lossy(&output.stderr);
            let said = format!("{text}{errors}");
            if said != before {
                println!("logs of {args:?}: {said}");
                before = said;
            }
            text.contains(wanted).then_some(text)
        })
    }

    /// Runs `work` on a thread that lives in the host's network.
    pub(crate) fn inside<T: Send>(&self, host: &str, work: impl FnOnce() -> T + Send) -> T {
        let namespace = self.namespace_file(host);
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                enter(&namespace);
                work()
            });
            match thread.join() {
                Ok(done) => done,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    pub(crate) fn namespace_file(&self, host: &str) -> PathBuf {
        Path::new("/run/netns").join(self.namespace(host))
    }
}

/// Moves the calling thread into a network namespace, for good.
pub(crate) fn enter(namespace: &Path) {
    let file = File::open(namespace).expect("the namespace is there");
    setns(file, CloneFlags::CLONE_NEWNET).expect("we may enter it");
}

/// kubectl at work, and what it has said so far.
pub(crate) struct Follow {
    process: Child,
    file: PathBuf,
}

impl Follow {
    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(&self.file).unwrap_or_default()
    }

    /// Waits until it has said this.
    pub(crate) fn says(&self, wanted: &str) {
        let what = format!("{wanted:?} in what kubectl says");
        wait_for(&what, || self.said().contains(wanted).then_some(()));
    }

    pub(crate) fn goes_on(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("--- kubectl said\n{}", self.said());
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Runs all of them at once; fails with the names of those that failed.
pub(crate) fn together(parts: &[(&str, &(dyn Fn() + Sync))]) {
    let failed: Vec<&str> = std::thread::scope(|scope| {
        let running: Vec<_> = parts
            .iter()
            .map(|(name, part)| (*name, scope.spawn(part)))
            .collect();
        let ended = running.into_iter();
        let failed = ended.filter_map(|(name, part)| part.join().is_err().then_some(name));
        failed.collect()
    });
    assert!(failed.is_empty(), "failed: {failed:?}");
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for args in [
                &["get", "nodes,pods,svc,endpointslices", "-A", "-o", "wide"][..],
                &["get", "events", "-A"],
            ] {
                let output = self.try_kubectl(args);
                println!(
                    "--- kubectl {args:?}\n{}",
                    String::from_utf8_lossy(&output.stdout)
                );
            }
            for host in &self.hosts {
                let log = self.log(&host.name);
                let from = log.len().saturating_sub(20_000);
                let from = (from..log.len()).find(|at| log.is_char_boundary(*at));
                println!("--- {}\n{}", host.name, &log[from.unwrap_or(0)..]);
            }
        }
        for host in &mut self.hosts {
            if let Some(mut process) = host.process.take() {
                let _ = process.kill();
                let _ = process.wait();
            }
        }
        self.nats.clear();
        for namespace in self.namespaces() {
            let _ = Command::new("ip")
                .args(["netns", "del", &namespace])
                .output();
        }
    }
}

#[test]
fn a_host_whose_cable_is_pulled_is_cut_off_until_it_is_back() {
    let Some(mut lab) = Lab::new() else {
        return;
    };
    lab.host("h1", 11);
    let listener = lab.inside("h1", || std::net::TcpListener::bind("192.0.2.11:80"));
    let listener = listener.expect("it listens in h1");
    let dial = |lab: &Lab| {
        lab.inside("hub", || {
            let address = listener.local_addr().expect("it listens");
            std::net::TcpStream::connect_timeout(&address, Duration::from_millis(500)).is_ok()
        })
    };
    assert!(dial(&lab));
    lab.cable("h1", false);
    assert!(!dial(&lab));
    lab.cable("h1", true);
    wait_for("the host to be back", || dial(&lab).then_some(()));
}
