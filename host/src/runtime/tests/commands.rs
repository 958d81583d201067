//! Processes: arguments, exits, traps, limits, on guests of this repository.

use super::*;

#[tokio::test]
async fn arguments_environment_and_files_reach_the_guest() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(dir.path().join("key"), "value").unwrap();
    let pod = Pod::new();
    let mount = |guest: &str, read_only| Mount {
        host: dir.path().to_owned(),
        guest: guest.to_owned(),
        read_only,
        held: None,
    };
    let mut workload = pod.workload(&["show", "one", "two"]);
    workload.env = [
        ("SHOW_DIRS", "/etc/config"),
        ("POD_NAME", "web-0"),
        ("WRITE_FILE", "/etc/config/new"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec();
    workload.mounts = vec![mount("/etc/config", true), mount("/data", false)];
    let runtime = runtime();
    let running = start(&runtime, "show", workload).await;
    assert_eq!(exit(&running).await.code, 0);
    let text = pod.logs.text();
    for line in [
        "args [\"one\", \"two\"]",
        "env POD_NAME=web-0",
        "file /etc/config/key \"value\"",
        "could not write /etc/config/new",
    ] {
        assert!(text.contains(line), "{line} is missing in:\n{text}");
    }

    let pod = Pod::new();
    let mut workload = pod.workload(&["show"]);
    workload.env = vec![
        ("POD_NAME".to_owned(), "web-0".to_owned()),
        ("WRITE_FILE".to_owned(), "/data/new".to_owned()),
    ];
    workload.mounts = vec![mount("/data", false)];
    exit(&start(&runtime, "show", workload).await).await;
    assert_eq!(
        std::fs::read_to_string(dir.path().join("new")).unwrap(),
        "web-0"
    );
}

#[tokio::test]
async fn exit_codes_are_those_a_shell_would_show() {
    let runtime = runtime();
    let end = async |args: &[&str]| {
        let pod = Pod::new();
        let running = start(&runtime, "crash", pod.workload(args)).await;
        (exit(&running).await, pod.logs.text())
    };
    let (returned, text) = end(&["crash", "return"]).await;
    assert_eq!((returned.code, returned.cause), (1, ExitCause::Exited));
    assert!(text.contains("this line is on stderr"), "{text}");
    let (trapped, text) = end(&["crash", "trap"]).await;
    assert_eq!((trapped.code, trapped.cause), (134, ExitCause::Trapped));
    assert!(
        trapped.message.contains("unreachable"),
        "{}",
        trapped.message
    );
    assert!(text.contains("asked to trap"), "{text}");
}

#[tokio::test]
async fn a_core_module_runs_through_the_adapter_and_keeps_its_exit_code() {
    let module = wat::parse_str(
        r#"(module
            (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
            (memory (export "memory") 1)
            (func (export "_start") (call $exit (i32.const 7))))"#,
    )
    .expect("text");
    let runtime = runtime();
    let component = runtime
        .load(module.into(), "sha256:seven")
        .await
        .expect("adapted");
    let pod = Pod::new();
    let running = runtime
        .start(&component, pod.workload(&["seven"]))
        .expect("started");
    let exit = exit(&running).await;
    assert_eq!((exit.code, exit.cause), (7, ExitCause::Exited));
}

#[tokio::test]
async fn memory_faults_and_endless_recursion_are_segmentation_faults() {
    let runtime = runtime();
    for (name, body) in [
        ("load", "(drop (i32.load (i32.const -8)))"),
        ("recurse", "(call $start)"),
    ] {
        let module = wat::parse_str(format!(
            r#"(module (memory (export "memory") 1) (func $start (export "_start") {body}))"#
        ))
        .expect("text");
        let component = runtime
            .load(module.into(), &format!("sha256:{name}"))
            .await
            .expect("adapted");
        let pod = Pod::new();
        let running = runtime
            .start(&component, pod.workload(&[name]))
            .expect("started");
        let exit = exit(&running).await;
        assert_eq!((exit.code, exit.cause), (139, ExitCause::Trapped), "{name}");
    }
}

#[tokio::test]
async fn a_process_of_wasi_0_3_runs() {
    let pod = Pod::new();
    let running = start(&runtime(), "once-p3", pod.workload(&["once"])).await;
    assert_eq!(exit(&running).await.code, 0);
    assert_eq!(pod.logs.text(), "once, on WASI 0.3\n");
}

#[tokio::test]
async fn memory_over_the_limit_is_out_of_memory() {
    let pod = Pod::new();
    let mut workload = pod.workload(&["hog", "memory"]);
    workload.limits.memory_bytes = 64 << 20;
    let running = start(&runtime(), "hog", workload).await;
    let exit = exit(&running).await;
    assert_eq!((exit.code, exit.cause), (137, ExitCause::OutOfMemory));
    assert!(
        exit.message
            .contains("memory limit of 67108864 bytes exceeded"),
        "{}",
        exit.message
    );
    assert_eq!(running.usage().memory_bytes, 0, "all is given back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spinning_guests_are_throttled_share_threads_and_can_be_killed() {
    let runtime = runtime();
    let component = load(&runtime, "hog").await;
    let pods: Vec<Pod> = (0..4).map(|_| Pod::new()).collect();
    let running: Vec<Running> = pods
        .iter()
        .map(|pod| {
            let mut workload = pod.workload(&["hog", "cpu"]);
            workload.limits.cpu_millis = 100;
            runtime.start(&component, workload).expect("started")
        })
        .collect();
    for (pod, running) in pods.iter().zip(&running) {
        pod.logs.wait_for("spinning").await;
        let throttled = async {
            while running.usage().throttled < 3 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(DEADLINE, throttled)
            .await
            .expect("a guest over its quota waits");
    }
    let start = tokio::time::Instant::now();
    for running in &running {
        let usage = running.usage();
        assert!(
            usage.cpu_nanos > 0 && usage.throttled_nanos > 0,
            "{usage:?}"
        );
        running.kill();
        let exit = exit(running).await;
        assert_eq!((exit.code, exit.cause), (137, ExitCause::Killed));
    }
    assert!(start.elapsed() < Duration::from_secs(5), "killing is quick");
}

#[tokio::test]
async fn stopping_a_process_ends_it_as_sigterm_would() {
    let pod = Pod::new();
    let mut workload = pod.workload(&["show"]);
    workload.env = vec![("STAY_MS".to_owned(), "3600000".to_owned())];
    let running = start(&runtime(), "show", workload).await;
    pod.logs.wait_for("args").await;
    running.stop(Duration::from_secs(3600));
    let exit = exit(&running).await;
    assert_eq!((exit.code, exit.cause), (143, ExitCause::Killed));
    running.stop(Duration::ZERO);
    assert_eq!(self::exit(&running).await, exit, "the first end counts");
}

#[tokio::test]
async fn a_full_log_makes_the_guest_wait_and_not_the_host() {
    let pod = Pod::new();
    let running = start(&runtime(), "hog", pod.workload(&["hog", "log"])).await;
    pod.logs.wait_for("all work").await;
    pod.logs
        .full
        .store(true, std::sync::atomic::Ordering::SeqCst);
    // Blocked in its write the guest uses no CPU any more: wait for two equal readings.
    let quiet = async {
        loop {
            let before = running.usage().cpu_nanos;
            tokio::time::sleep(Duration::from_millis(50)).await;
            if running.usage().cpu_nanos == before {
                return;
            }
        }
    };
    tokio::time::timeout(DEADLINE, quiet)
        .await
        .expect("the guest waits");
    running.kill();
    assert_eq!(exit(&running).await.cause, ExitCause::Killed);
}

#[tokio::test]
async fn more_processes_than_the_pool_has_places_are_refused() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let runtime = Runtime::new(Config {
        max_pods: 1,
        cache_dir: dir.path().to_owned(),
    })
    .expect("a runtime");
    let component = load(&runtime, "hog").await;
    let pod = Pod::new();
    let first = runtime
        .start(&component, pod.workload(&["hog", "cpu"]))
        .expect("started");
    assert!(matches!(
        runtime.start(&component, pod.workload(&["hog", "cpu"])),
        Err(StartError::Full(1))
    ));
    first.kill();
    exit(&first).await;
}

#[tokio::test]
async fn a_mount_that_is_not_there_is_named() {
    let runtime = runtime();
    let component = load(&runtime, "show").await;
    let pod = Pod::new();
    let mut workload = pod.workload(&["show"]);
    workload.mounts = vec![Mount {
        host: PathBuf::from("/nowhere/at/all"),
        guest: "/data".to_owned(),
        read_only: true,
        held: None,
    }];
    let Err(error) = runtime.start(&component, workload) else {
        panic!("it started");
    };
    assert_eq!(error.to_string(), "mount /nowhere/at/all at /data");
}

#[tokio::test]
async fn a_runtime_has_ended_when_its_guests_have() {
    let runtime = runtime();
    let pod = Pod::new();
    let running = start(&runtime, "hog", pod.workload(&["hog", "cpu"])).await;
    let web = start(&runtime, "hello-http", pod.workload(&["hello-http"])).await;
    let handler = web.http().expect("it answers HTTP");
    let answer = handler.handle(get("/")).await.expect("answered");
    answer.into_body().collect().await.expect("a body");
    running.stop(Duration::from_millis(10));
    web.stop(Duration::from_secs(1));
    exit(&running).await;
    exit(&web).await;
    let ended = tokio::time::timeout(DEADLINE, runtime.shutdown(10 * DEADLINE));
    ended.await.expect("no task is left behind");
}
