//! Sessions with the real toolbox, beside real guests: what a client types, reads and gets back.

use std::time::Duration;

use tokio::io::{AsyncReadExt, DuplexStream, duplex};

use super::*;
use crate::network::{self, Network, PodIdentity};
use crate::pods::known::Whose;
use crate::pods::logs::{Logs, WriterThread};
use crate::pods::toolbox::Toolbox;
use crate::runtime::{self, Limits, Mount, Runtime, Workload};

const TOOLBOX: Toolbox = Toolbox {
    component: include_bytes!("../../../../guests/built/toolbox.wasm"),
    applets: include_str!("../../../../guests/toolbox/applets.txt"),
};
const HELLO: &[u8] = include_bytes!("../../../../guests/built/hello-http.wasm");
const PATIENCE: Duration = Duration::from_secs(30);

/// A pod `web` with one container `app`.
pub(crate) struct Pod {
    pub(crate) known: Known,
    running: Arc<Running>,
    record: Arc<Record>,
    _network: Arc<Network>,
    _thread: WriterThread,
    directory: tempfile::TempDir,
}

/// A client's ends.
struct Client {
    keys: Option<DuplexStream>,
    screen: DuplexStream,
    errors: Option<DuplexStream>,
}

impl Pod {
    /// Beside an HTTP server, which has no process.
    pub(crate) async fn serving(limits: Limits) -> Pod {
        Pod::start(HELLO, &[], None, limits, &[("COLOUR", "red")]).await
    }

    /// Whose process is the toolbox, with a stdin.
    async fn reading(command: &[&str], stdin: Stdin) -> Pod {
        let limits = Limits::default();
        Pod::start(TOOLBOX.component, command, Some(stdin), limits, &[]).await
    }

    async fn start(
        image: &'static [u8],
        args: &[&str],
        stdin: Option<Stdin>,
        limits: Limits,
        env: &[(&str, &str)],
    ) -> Pod {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = |name: &str| directory.path().join(name);
        let runtime = Runtime::new(runtime::Config {
            max_pods: 16,
            cache_dir: path("compiled"),
        })
        .expect("a runtime");
        let network = Arc::new(Network::new(network::Config::default()).expect("a network"));
        let identity = PodIdentity {
            namespace: "default".to_owned(),
            name: "web".to_owned(),
            hostname: "web".to_owned(),
            ..PodIdentity::default()
        };
        let (logs, thread) = Logs::start(path("logs")).expect("logs");
        let log = logs.open(&path("logs/web"), "app", 0);
        std::fs::create_dir(path("data")).expect("made");
        std::fs::write(path("data/colour"), "red\n").expect("written");
        let component = runtime
            .load(image.into(), &crate::images::digest(image))
            .await
            .expect("compiled");
        let stdin = stdin.map(Arc::new);
        let terminal = stdin.as_ref().is_some_and(|stdin| stdin.is_terminal());
        let sink: Arc<dyn LogSink> = Arc::new(Arc::clone(&log));
        let workload = Workload {
            name: "default/web/app".to_owned(),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            env: env
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            working_dir: Some("/data".to_owned()),
            mounts: vec![Mount {
                host: path("data"),
                guest: "/data".to_owned(),
                read_only: false,
                held: None,
            }],
            limits,
            reuse: None,
            stdin: stdin.as_ref().map(|stdin| stdin.input()),
            terminal,
            logs: match terminal {
                true => Arc::new(Screen(sink)),
                false => sink,
            },
            network: network.attach_pod(identity).expect("an address"),
        };
        let running = Arc::new(runtime.start(&component, workload).expect("started"));
        let record = Arc::new(Record::new(
            "default",
            "web",
            "u1",
            path("logs"),
            std::iter::once("app".to_owned()),
        ));
        record.update(0, |container| {
            container.running = Some(Arc::clone(&running));
            container.log = Some(log);
            container.stdin = stdin;
        });
        let known = Known::with(Some(Shelf::new(TOOLBOX, runtime, path("pods"))));
        known.insert(Arc::clone(&record));
        Pod {
            known,
            running,
            record,
            _network: network,
            _thread: thread,
            directory,
        }
    }

    async fn exec(&self, command: &[&str], session: Session) -> Result<i32, ExecError> {
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        // The client's own patience ends first, and says what it waits for.
        let session = self.known.exec(target(), command, session);
        let session = tokio::time::timeout(2 * PATIENCE, session).await;
        session.expect("the session ends")
    }

    /// Runs a command to its end: code, stdout, stderr.
    async fn said(&self, command: &[&str]) -> (i32, String, String) {
        let (session, client) = session(false, false);
        let (code, (out, err)) = tokio::join!(self.exec(command, session), client.rest());
        (code.expect("it ran"), out, err)
    }
}

fn target() -> Target {
    Target {
        namespace: "default".to_owned(),
        pod: "web".to_owned(),
        uid: None,
        container: "app".to_owned(),
    }
}

fn session(stdin: bool, tty: bool) -> (Session, Client) {
    let (keys, typed) = duplex(1024);
    let (shown, screen) = duplex(1024);
    let (told, errors) = duplex(1024);
    let (_, resize) = mpsc::channel(1);
    let session = Session {
        stdin: stdin.then(|| Box::new(typed) as _),
        stdout: Some(Box::new(shown)),
        stderr: (!tty).then(|| Box::new(told) as _),
        resize,
        tty,
    };
    let client = Client {
        keys: Some(keys),
        screen,
        errors: (!tty).then_some(errors),
    };
    (session, client)
}

impl Client {
    async fn types(&mut self, keys: &str) {
        let to = self.keys.as_mut().expect("still typing");
        to.write_all(keys.as_bytes()).await.expect("taken");
    }

    /// Reads until `text` was shown; what was shown until then.
    async fn sees(&mut self, text: &str) -> String {
        let mut seen = Vec::new();
        let read = async {
            while !String::from_utf8_lossy(&seen).contains(text) {
                let byte = self.screen.read_u8().await;
                seen.push(byte.expect("there is more"));
            }
        };
        let found = tokio::time::timeout(PATIENCE, read).await;
        let seen = String::from_utf8_lossy(&seen).into_owned();
        assert!(found.is_ok(), "no {text:?} in {seen:?}");
        seen
    }

    /// Everything that is still to come on stdout and stderr.
    async fn rest(mut self) -> (String, String) {
        let (mut out, mut err) = (String::new(), String::new());
        let errors = async {
            if let Some(errors) = &mut self.errors {
                errors.read_to_string(&mut err).await.expect("text");
            }
        };
        let (read, ()) = tokio::join!(self.screen.read_to_string(&mut out), errors);
        read.expect("text");
        (out, err)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_sees_what_the_container_sees_and_its_code_comes_back() {
    let pod = Pod::serving(Limits::default()).await;
    let script = "echo $COLOUR $HOSTNAME; cat /data/colour; pwd; echo oh >&2; exit 3";
    let (code, out, err) = pod.said(&["sh", "-c", script]).await;
    assert_eq!((code, out.as_str()), (3, "red web\nred\n/data\n"));
    assert_eq!(err, "oh\n");
    let (_, hosts, _) = pod
        .said(&["/bin/cat", "/etc/hosts", "/etc/resolv.conf"])
        .await;
    assert!(
        hosts.contains("100.64.") && hosts.contains("nameserver 10.96.0.10"),
        "{hosts}"
    );
    let (code, ..) = pod.said(&["sh", "-c", "echo x > /etc/hosts"]).await;
    assert_ne!(code, 0, "generated files are read-only");
    let (_, written, _) = pod.said(&["sh", "-c", "echo blue > new; cat new"]).await;
    assert_eq!(written, "blue\n");
    let kept = std::fs::read_to_string(pod.directory.path().join("data/new"));
    assert_eq!(kept.expect("there"), "blue\n");
    assert!(pod.record.sessions().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_there_is_not_is_refused_in_the_words_of_a_container_runtime() {
    let pod = Pod::serving(Limits::default()).await;
    let refused = async |command: &[&str]| {
        let (session, _client) = session(false, false);
        let refused = pod.exec(command, session).await;
        refused.expect_err("no such command").to_string()
    };
    assert_eq!(
        refused(&["nginx", "-t"]).await,
        "exec: \"nginx\": executable file not found in $PATH"
    );
    assert_eq!(
        refused(&["/app/run"]).await,
        "exec: \"/app/run\": stat /app/run: no such file or directory"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_sends_is_read_to_its_end() {
    let pod = Pod::serving(Limits::default()).await;
    let (session, mut client) = session(true, false);
    let typing = async {
        let lines = "one two\n".repeat(20_000);
        let mut keys = client.keys.take().expect("typing");
        let send = async move {
            keys.write_all(lines.as_bytes()).await.expect("taken");
        };
        tokio::join!(send, client.rest()).1
    };
    let (code, (out, _)) = tokio::join!(pod.exec(&["cat"], session), typing);
    assert_eq!((code, out.len()), (Ok(0), 160_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_at_a_terminal_has_a_shell_and_interrupts_what_it_runs() {
    let pod = Pod::serving(Limits::default()).await;
    let (session, mut client) = session(true, true);
    let person = async {
        client.sees("# ").await;
        client.types("echo hx\x7fi; sleep 1000\r").await;
        client.sees("\r\nhi\r\n").await;
        client.types("\x03").await;
        client.sees("# ").await;
        client.types("echo code $? $TERM\r").await;
        client.sees("code 130 xterm\r\n").await;
        client.types("exit 4\r").await;
        client
    };
    let (code, _client) = tokio::join!(pod.exec(&["/bin/sh"], session), person);
    assert_eq!(code, Ok(4));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_reaches_what_a_shell_runs_and_an_end_does_not_make_it_deaf() {
    let pod = Pod::serving(Limits::default()).await;
    let (session, mut client) = session(true, true);
    let person = async {
        client.sees("# ").await;
        // What reads the terminal.
        client.types("cat\rwords\r").await;
        client.sees("words\r\nwords\r\n").await;
        client.types("\x03").await;
        client.sees("# ").await;
        client.types("echo code $?\r").await;
        client.sees("code 130\r\n").await;
        // What does not, and has an end of input before it that nobody has read.
        for round in 0..2 {
            let line = format!("echo begun; sleep 1000; echo never {round}\r");
            client.types(&line).await;
            client.sees("begun\r\n").await;
            client.types("\x04").await;
            client.types("\x03").await;
            client.sees("# ").await;
            client.types("echo again $?\r").await;
            client.sees("again 130\r\n").await;
        }
        client.types("exit 4\r").await;
        client
    };
    // As k9s and others open a shell.
    let command = ["sh", "-c", "command -v bash && exec bash || exec sh"];
    let (code, _client) = tokio::join!(pod.exec(&command, session), person);
    assert_eq!(code, Ok(4));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_ends_a_script_that_nobody_types_into() {
    let pod = Pod::serving(Limits::default()).await;
    for script in [
        "echo on; cat; echo no",
        "echo on; read x; echo no",
        "echo on; while :; do :; done",
    ] {
        let (session, mut client) = session(true, true);
        let person = async {
            client.sees("on\r\n").await;
            client.types("\x03").await;
            client.rest().await.0
        };
        let command = ["sh", "-c", script];
        let (code, rest) = tokio::join!(pod.exec(&command, session), person);
        assert_eq!((code, rest.contains("no")), (Ok(130), false), "{script}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminals_name_in_the_environment_makes_no_terminal() {
    let env = [("TERM", "screen-256color")];
    let pod = Pod::start(HELLO, &[], None, Limits::default(), &env).await;
    let (_, out, _) = pod
        .said(&[
            "sh",
            "-c",
            "[ -t 0 ] || [ -t 1 ]; echo $? $TERM; env | grep -c CORACLE_",
        ])
        .await;
    assert_eq!(out, "1 screen-256color\n0\n");
    let sent = async |command: &[&str], bytes: &str| {
        let (session, mut client) = session(true, false);
        let typing = async {
            client.types(bytes).await;
            client.keys = None;
            client.rest().await
        };
        tokio::join!(pod.exec(command, session), typing).1
    };
    let bytes = "one\x03two\x04three";
    assert_eq!(sent(&["cat"], bytes).await.0, bytes);
    let (out, err) = sent(&["sh"], "echo a\nread x\nb\x03\necho \"$x\"\n").await;
    assert_eq!(
        (out.as_str(), err.as_str()),
        ("a\nb\x03\n", ""),
        "no prompts"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_ends_a_command_that_is_no_shell() {
    let pod = Pod::serving(Limits::default()).await;
    let (session, mut client) = session(true, true);
    let person = async {
        client.types("\x03").await;
        client.sees("^C").await;
        client
    };
    let (code, _client) = tokio::join!(pod.exec(&["sleep", "1000"], session), person);
    assert_eq!(code, Ok(130));
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_end_with_their_container_and_with_their_client() {
    let pod = Pod::serving(Limits::default()).await;
    let (leaving, mut client) = session(true, true);
    let left = async {
        client.sees("# ").await;
        drop(client);
        // The next thing the shell says has nobody to read it.
    };
    let (code, ()) = tokio::join!(pod.exec(&["sh"], leaving), left);
    // Whichever comes first: the end of its stdin, or that nobody reads what it says.
    let ended = matches!(code, Ok(0) | Err(ExecError::Gone));
    assert!(ended, "its own container lives: {code:?}");
    assert!(pod.record.sessions().is_empty());
    let (session, mut client) = session(false, false);
    let end = async {
        client.sees("begun").await;
        pod.running.kill();
        client
    };
    let command = ["sh", "-c", "echo begun; sleep 1000"];
    let (code, _client) = tokio::join!(pod.exec(&command, session), end);
    assert_eq!(code, Ok(137));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_wants_more_than_the_container_has_left_ends_alone() {
    let pod = Pod::serving(Limits {
        memory_bytes: 8 << 20,
        cpu_millis: 0,
    })
    .await;
    let (code, _, err) = pod
        .said(&["sh", "-c", "x=much; while true; do x=$x$x; done"])
        .await;
    assert_eq!(code, 137);
    assert!(
        err.contains("memory limit of 8388608 bytes exceeded"),
        "{err}"
    );
    let still = tokio::time::timeout(Duration::from_millis(50), pod.running.wait()).await;
    assert!(still.is_err(), "the container goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_joins_a_containers_own_streams() {
    let once = Stdin::new(false, Interrupts::End, true);
    let pod = Pod::reading(&["sh", "-c", "cat; echo the end"], once).await;
    let (session, mut client) = session(true, false);
    let person = async {
        client.types("hello\n").await;
        client.sees("hello\n").await;
        client.keys = None;
        client.sees("the end\n").await;
        let exit = pod.running.wait().await;
        let log = pod.record.container("app").and_then(|app| app.log);
        log.expect("a log").close();
        exit.code
    };
    let attached = tokio::time::timeout(PATIENCE, pod.known.attach(target(), session));
    let (attached, code) = tokio::join!(attached, person);
    assert_eq!((attached.expect("in time"), code), (Ok(0), 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_only_watches_does_not_end_a_stdin_of_one_client() {
    let once = Stdin::new(false, Interrupts::End, true);
    let pod = Pod::reading(&["cat"], once).await;
    let (watching, watcher) = session(false, false);
    let watched = tokio::time::timeout(
        Duration::from_millis(100),
        pod.known.attach(target(), watching),
    );
    assert!(watched.await.is_err(), "there is nothing to see yet");
    drop(watcher);
    let (typing, mut client) = session(true, false);
    let person = async {
        client.types("still here\n").await;
        client.sees("still here\n").await;
    };
    tokio::select! {
        attached = pod.known.attach(target(), typing) => panic!("{attached:?}"),
        () = person => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_joins_a_containers_own_terminal_and_may_come_back() {
    let stdin = Stdin::new(true, Interrupts::AreRead, false);
    let pod = Pod::reading(&["sh"], stdin).await;
    for round in 0..2 {
        let (session, mut client) = session(true, true);
        let person = async {
            client
                .types(&format!("echo round $(({round} + 1))\r"))
                .await;
            client.sees(&format!("round {}\r\n", round + 1)).await;
        };
        tokio::select! {
            attached = pod.known.attach(target(), session) => panic!("{attached:?}"),
            () = person => {}
        }
    }
    let (session, mut client) = session(true, true);
    let person = async {
        client.types("\x1c").await;
        pod.running.wait().await.code
    };
    let code = tokio::select! {
        attached = pod.known.attach(target(), session) => panic!("{attached:?}"),
        code = person => code,
    };
    assert_eq!(code, 131);
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_of_clients_take_no_places_of_probes() {
    let pod = Pod::serving(Limits::default()).await;
    let shelf = pod.known.shelf().expect("a toolbox");
    let enter = || pod.record.enter(Whose::Client, "sh".to_owned()).ok();
    let on_the_pod: Vec<_> = std::iter::from_fn(enter).collect();
    let on_the_node: Vec<_> = std::iter::from_fn(|| shelf.place().ok()).collect();
    assert_eq!((on_the_pod.len(), on_the_node.len()), (32, 256));
    let (session, _client) = session(false, false);
    let refused = pod.exec(&["true"], session).await;
    assert!(matches!(refused, Err(ExecError::TooMany { .. })));
    let beside = pod.known.beside(&target()).expect("runs");
    let asked = shelf.run(&beside, &["true".to_owned()], PATIENCE).await;
    assert_eq!(asked.expect("it ran").0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_keeps_the_beginning_of_what_a_command_says_and_does_not_wait_for_ever() {
    let pod = Pod::serving(Limits::default()).await;
    let shelf = pod.known.shelf().expect("a toolbox");
    let beside = pod.known.beside(&target()).expect("runs");
    let run = async |script: &str, limit| {
        let command = ["sh", "-c", script].map(str::to_owned);
        shelf.run(&beside, &command, limit).await
    };
    let (code, said) = run("echo sick; exit 1", PATIENCE).await.expect("it ran");
    assert_eq!((code, said.as_str()), (1, "sick\n"));
    let endless = "while true; do echo much to say; done";
    let error = run(endless, Duration::from_secs(1)).await;
    assert_eq!(
        error.expect_err("too late").to_string(),
        format!("command timed out: \"sh -c {endless}\" timed out after 1s")
    );
    assert!(pod.record.sessions().is_empty());
}
