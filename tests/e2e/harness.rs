//! A cluster of one's own for each test: temporary data directory, port 0, stopped and explained when the test ends.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::shared;

/// How long a test waits for anything; machines are slow when they are busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// `coracle up` in a process of its own.
pub(crate) struct Cluster {
    dir: tempfile::TempDir,
    process: Option<Child>,
    role: &'static str,
    listen: String,
    args: Vec<String>,
    /// What the process printed before it was ready: the table and the kubeconfig line.
    pub(crate) greeting: String,
}

/// Is the tool there? Where it is not, the test says so and is skipped, unless tools are required.
pub(crate) fn have(tool: &str) -> bool {
    let found = Command::new(tool)
        .arg("--help")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok();
    if !found {
        assert!(
            std::env::var_os("CORACLE_REQUIRE_TOOLS").is_none(),
            "{tool} is not on this machine, and tools are required"
        );
        println!("skipped: {tool} is not on this machine");
    }
    found
}

/// Asks again and again until the answer is `Some`; panics with `what` at the deadline.
pub(crate) fn wait_for<T>(what: &str, ask: impl FnMut() -> Option<T>) -> T {
    shared::wait_for(PATIENCE, what, ask)
}

/// One HTTP/1.1 GET; `None` when nobody answers. Returns status and body.
pub(crate) fn http_get(address: &str, path: &str) -> Option<(u16, String)> {
    let stream = TcpStream::connect(address).ok()?;
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .ok()?;
    shared::http_get(stream, address, path).ok()
}

/// The directory of the repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub(crate) fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_coracle"));
    command.current_dir(root());
    command
}

// === impl Cluster ===

impl Cluster {
    /// An empty cluster.
    pub(crate) fn start() -> Self {
        Self::with(&[])
    }

    /// A cluster with more arguments for `up`.
    pub(crate) fn with(args: &[&str]) -> Self {
        let mut cluster = Self::stopped();
        cluster.args = args.iter().map(|arg| (*arg).to_owned()).collect();
        cluster.start_again();
        cluster
    }

    /// `coracle server` instead, where it is when it is started again: nobody else is given a port that was just used.
    pub(crate) fn server(args: &[&str]) -> Self {
        let mut cluster = Self::stopped();
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        cluster.listen = free.local_addr().expect("bound").to_string();
        drop(free);
        cluster.role = "server";
        cluster.args = args.iter().map(|arg| (*arg).to_owned()).collect();
        cluster.start_again();
        cluster
    }

    /// A cluster that was never started; [`Self::start_again`] does.
    pub(crate) fn stopped() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        Self {
            dir,
            process: None,
            role: "up",
            listen: "127.0.0.1:0".to_owned(),
            args: Vec::new(),
            greeting: String::new(),
        }
    }

    /// Starts the process (again) on the same data directory and waits until it says it is ready.
    pub(crate) fn start_again(&mut self) {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path("log"))
            .expect("a log file");
        let mut process = binary()
            .args(["--log", "info", self.role, "--listen", &self.listen])
            .arg("--data-dir")
            .arg(self.data_dir())
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("the binary can be started");
        let stdout = process.stdout.take().expect("its output is piped");
        self.process = Some(process);
        let (lines, greeting) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if lines.send(line).is_err() {
                    break;
                }
            }
        });
        let deadline = Instant::now() + PATIENCE;
        self.greeting.clear();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match greeting.recv_timeout(left) {
                Ok(line) => {
                    self.greeting.push_str(&line);
                    self.greeting.push('\n');
                    if line.starts_with("export KUBECONFIG=") {
                        break;
                    }
                }
                Err(error) => panic!(
                    "the cluster did not become ready ({error}):\n{}\n{}",
                    self.greeting,
                    self.log()
                ),
            }
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.path("data")
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        let line = self
            .greeting
            .lines()
            .find_map(|line| line.strip_prefix("export KUBECONFIG="));
        PathBuf::from(line.expect("the greeting names the kubeconfig"))
    }

    /// What the process logged on standard error.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    pub(crate) fn process_id(&self) -> u32 {
        self.process.as_ref().expect("the process runs").id()
    }

    /// Sends a signal to the process.
    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid =
            nix::unistd::Pid::from_raw(i32::try_from(self.process_id()).expect("a process id"));
        nix::sys::signal::kill(pid, signal).expect("the process runs");
    }

    /// `kill -9`, and waits for the end.
    pub(crate) fn kill(&mut self) {
        let mut process = self.process.take().expect("the process runs");
        process.kill().expect("the process runs");
        process.wait().expect("it ended");
    }

    /// Ctrl-C; returns the exit code.
    pub(crate) fn interrupt(&mut self) -> Option<i32> {
        self.signal(nix::sys::signal::Signal::SIGINT);
        let mut process = self.process.take().expect("the process runs");
        wait_for("the cluster to stop after Ctrl-C", || {
            process.try_wait().expect("it is our child")
        })
        .code()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command
            .args(args)
            .env("KUBECONFIG", self.kubeconfig())
            .env("HOME", self.dir.path())
            .current_dir(root());
        command
    }

    /// Runs kubectl to its end, whatever that is.
    pub(crate) fn try_kubectl(&self, args: &[&str]) -> Output {
        self.command(args)
            .stdin(Stdio::null())
            .output()
            .expect("kubectl can be started")
    }

    /// Runs kubectl, which must succeed; returns its standard output.
    pub(crate) fn kubectl(&self, args: &[&str]) -> String {
        let output = self.try_kubectl(args);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(
            output.status.success(),
            "kubectl {args:?}: {}{}",
            text(&output.stdout),
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    /// Runs kubectl, which must fail; returns its standard error.
    pub(crate) fn kubectl_fails(&self, args: &[&str]) -> String {
        let output = self.try_kubectl(args);
        assert!(
            !output.status.success(),
            "kubectl {args:?} should fail: {}",
            String::from_utf8_lossy(&output.stdout)
        );
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Runs kubectl with text on its standard input (`-f -`); it must succeed. Returns both outputs together.
    pub(crate) fn kubectl_with(&self, args: &[&str], input: &str) -> String {
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl can be started");
        child
            .stdin
            .take()
            .expect("piped")
            .write_all(input.as_bytes())
            .expect("kubectl reads its input");
        let output = child.wait_with_output().expect("kubectl ends");
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(output.status.success(), "kubectl {args:?}: {text}");
        text
    }

    /// As [`Self::kubectl_with`], but it must fail; returns its standard error.
    pub(crate) fn kubectl_with_failing(&self, args: &[&str], input: &str) -> String {
        let file = self.path("input.yaml");
        std::fs::write(&file, input).expect("written");
        let file = file.display().to_string();
        let args: Vec<&str> = args
            .iter()
            .map(|arg| if *arg == "-" { file.as_str() } else { arg })
            .collect();
        self.kubectl_fails(&args)
    }

    /// Runs kubectl with more environment.
    pub(crate) fn kubectl_in(&self, env: &[(&str, &str)], args: &[&str]) -> String {
        let output = self
            .command(args)
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .output()
            .expect("kubectl starts");
        assert!(
            output.status.success(),
            "kubectl {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Starts kubectl and leaves it running with its standard output piped; the caller ends it.
    pub(crate) fn kubectl_spawn(&self, args: &[&str]) -> Child {
        self.command(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("kubectl can be started")
    }

    /// As [`Self::kubectl_spawn`], with its standard error in a file and more environment.
    pub(crate) fn kubectl_told(&self, args: &[&str], errors: &Path, env: &[(&str, &str)]) -> Child {
        let errors = std::fs::File::create(errors).expect("a file");
        self.command(args)
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .expect("kubectl can be started")
    }

    pub(crate) fn apply(&self, manifest: &str) -> String {
        self.kubectl_with(&["apply", "-f", "-"], manifest)
    }

    /// An object as JSON; `None` when there is none.
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
        wait_for(what, || self.get(args).and_then(|object| ask(&object)))
    }

    /// Name of the first pod with this label.
    pub(crate) fn pod_of(&self, selector: &str) -> String {
        self.wait(
            &format!("a pod with {selector}"),
            &["pods", "-l", selector],
            |list| {
                list.pointer("/items/0/metadata/name")
                    .and_then(Value::as_str)
                    .map(str::to_owned)
            },
        )
    }

    /// Logs of a pod once they contain `wanted`.
    pub(crate) fn logs_with(&self, args: &[&str], wanted: &str) -> String {
        wait_for(&format!("{wanted:?} in the logs of {args:?}"), || {
            let output = self.try_kubectl(&[&["logs"], args].concat());
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            text.contains(wanted).then_some(text)
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() && self.process.is_some() {
            for args in [
                &["get", "all", "-A", "-o", "wide"][..],
                &["get", "events", "-A"],
                &["describe", "pods", "-A"],
            ] {
                let output = self.try_kubectl(args);
                println!(
                    "--- kubectl {args:?}\n{}",
                    String::from_utf8_lossy(&output.stdout)
                );
            }
            println!("--- log\n{}", self.log());
        }
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
