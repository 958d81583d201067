//! HTTP guests: fresh and reused instances, bodies, traps, limits.

use super::*;

#[tokio::test]
async fn both_versions_say_hello() {
    let runtime = runtime();
    for name in ["hello-http", "hello-http-p3"] {
        let pod = Pod::new();
        let running = start(&runtime, name, pod.workload(&[])).await;
        for _ in 0..3 {
            let (status, body) = ask(&running, get("/")).await.expect("an answer");
            assert_eq!((status, &body[..]), (200, &b"Hello World!\n"[..]), "{name}");
        }
        assert_eq!(running.usage().requests, 3);
        assert_eq!(running.usage().failed_requests, 0);
    }
}

#[tokio::test]
async fn bodies_pass_both_ways() {
    let pod = Pod::new();
    let running = start(&runtime(), "misbehave", pod.workload(&[])).await;
    let (_, body) = ask(&running, post("/echo", b"round trip")).await.unwrap();
    assert_eq!(&body[..], b"round trip");
    let (_, body) = ask(&running, get("/big/2048")).await.unwrap();
    assert_eq!(body.len(), 2 << 20);
}

#[tokio::test]
async fn a_trap_fails_its_request_and_no_other() {
    let pod = Pod::new();
    let running = start(&runtime(), "misbehave", pod.workload(&[])).await;
    let Err(HttpError::Guest(message)) = ask(&running, get("/trap")).await else {
        panic!("the guest answered");
    };
    assert!(message.contains("unreachable"), "{message}");
    assert_eq!(ask(&running, get("/")).await.unwrap().0, 200);
    assert_eq!(running.usage().failed_requests, 1);
    let text = pod.logs.text();
    assert!(text.contains("coracle: request failed: "), "{text}");
}

#[tokio::test]
async fn a_request_without_end_is_given_up_and_hurts_nobody() {
    let runtime = runtime().request_timeout(Duration::from_millis(300));
    let pod = Pod::new();
    let running = start(&runtime, "misbehave", pod.workload(&[])).await;
    let (spun, slept, fine) = tokio::join!(
        ask(&running, get("/spin")),
        ask(&running, get("/sleep/3600000")),
        ask(&running, get("/")),
    );
    assert!(matches!(spun, Err(HttpError::Timeout(_))), "{spun:?}");
    assert!(matches!(slept, Err(HttpError::Timeout(_))), "{slept:?}");
    assert_eq!(fine.unwrap().0, 200);
}

#[tokio::test]
async fn memory_without_end_ends_the_workload() {
    let pod = Pod::new();
    let mut workload = pod.workload(&[]);
    workload.limits.memory_bytes = 32 << 20;
    let running = start(&runtime(), "misbehave", workload).await;
    assert!(ask(&running, get("/grow")).await.is_err());
    let exit = exit(&running).await;
    assert_eq!((exit.code, exit.cause), (137, ExitCause::OutOfMemory));
    assert!(
        matches!(ask(&running, get("/")).await, Err(error) if unreached(&error)),
        "it takes no more requests"
    );
}

#[tokio::test]
async fn stopping_answers_what_is_inside_and_takes_nothing_new() {
    let runtime = runtime();
    let pod = Pod::new();
    let running = start(&runtime, "misbehave", pod.workload(&[])).await;
    let slow = async {
        let slow = ask(&running, get("/sleep/300")).await;
        assert_eq!(slow.unwrap().0, 200, "it was inside");
    };
    let stop = async {
        // One poll of the other future has let it in.
        running.stop(DEADLINE);
        tokio::task::yield_now().await;
        let late = ask(&running, get("/")).await;
        assert!(matches!(late, Err(error) if unreached(&error)));
    };
    tokio::join!(slow, stop);
    let exit = exit(&running).await;
    assert_eq!((exit.code, exit.cause), (0, ExitCause::Killed));
}

#[tokio::test]
async fn killing_ends_requests_at_once() {
    let pod = Pod::new();
    let running = start(&runtime(), "misbehave", pod.workload(&[])).await;
    let (slow, ()) = tokio::join!(ask(&running, get("/sleep/3600000")), async {
        running.kill();
    });
    assert!(slow.is_err());
    assert_eq!(exit(&running).await.code, 137);
}

#[tokio::test]
async fn instances_are_used_again_only_when_asked() {
    let runtime = runtime();
    let cost = async |reuse| {
        let pod = Pod::new();
        let mut workload = pod.workload(&[]);
        workload.reuse = reuse;
        let running = start(&runtime, "hello-http", workload).await;
        for _ in 0..5 {
            ask(&running, get("/")).await.expect("an answer");
        }
        running.usage().memory_bytes
    };
    assert_eq!(cost(None).await, 0, "an idle HTTP workload holds no memory");
    let kept = cost(Some(Reuse {
        requests: 100,
        concurrent: 1,
    }))
    .await;
    assert!(kept > 0, "the instance is kept");
}

#[tokio::test]
async fn an_instance_of_0_3_answers_several_at_once() {
    let runtime = runtime();
    let pod = Pod::new();
    let running = start(&runtime, "hello-http-p3", pod.workload(&[])).await;
    let answers = futures::future::join_all((0..200).map(|_| ask(&running, get("/")))).await;
    for answer in answers {
        assert_eq!(&answer.expect("an answer").1[..], b"Hello World!\n");
    }
    let (running, memory) = (&running, running.usage().memory_bytes);
    assert!(memory > 0, "instances are idle for a second");
    let idle = async {
        while running.usage().memory_bytes > 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(DEADLINE, idle)
        .await
        .expect("idle instances end");
}

#[tokio::test]
async fn one_guest_calls_another() {
    let runtime = runtime();
    let server = Pod::new();
    let hello = start(&runtime, "hello-http", server.workload(&[])).await;
    let _serving = server
        .pod
        .serve_http(network::Ports::All, hello.http().unwrap())
        .expect("free ports");
    let client = Pod::on(&server.network);
    let mut workload = client.workload(&[]);
    workload.env = vec![(
        "TARGET".to_owned(),
        format!("{}:8080", server.pod.address()),
    )];
    let caller = start(&runtime, "caller", workload).await;
    let (status, body) = ask(&caller, get("/")).await.expect("an answer");
    assert_eq!((status, &body[..]), (200, &b"Hello World!\n"[..]));
}

fn unreached(error: &HttpError) -> bool {
    matches!(error, HttpError::NotReached(_) | HttpError::Returned { .. })
}

#[tokio::test]
async fn a_caller_that_leaves_frees_the_instance() {
    let runtime = runtime();
    for name in ["misbehave", "hello-http-p3"] {
        let pod = Pod::new();
        let running = start(&runtime, name, pod.workload(&[])).await;
        let handler = running.http().expect("HTTP");
        let mut leaving = handler.handle(get("/sleep/3600000"));
        let polled = std::future::poll_fn(|cx| std::task::Poll::Ready(leaving.as_mut().poll(cx)));
        assert!(polled.await.is_pending(), "{name} has begun to work");
        drop(leaving);
        assert_eq!(ask(&running, get("/")).await.unwrap().0, 200, "{name}");
        running.stop(DEADLINE);
        assert_eq!(
            exit(&running).await.code,
            0,
            "{name}: nothing is left inside"
        );
    }
}

#[tokio::test]
async fn a_guest_that_drops_its_answer_and_goes_on_is_given_up_and_can_be_killed() {
    let component = wat::parse_str(
        r#"(component
            (import "wasi:http/types@0.2.0" (instance $types
                (export "incoming-request" (type (sub resource)))
                (export "response-outparam" (type (sub resource)))))
            (alias export $types "incoming-request" (type $request))
            (alias export $types "response-outparam" (type $out))
            (core func $drop (canon resource.drop $out))
            (core module $code
                (import "" "drop" (func $drop (param i32)))
                (func (export "handle") (param i32 i32)
                    (call $drop (local.get 1))
                    (loop $forever (br $forever))))
            (core instance $code (instantiate $code
                (with "" (instance (export "drop" (func $drop))))))
            (func $handle (param "request" (own $request)) (param "response-out" (own $out))
                (canon lift (core func $code "handle")))
            (instance $handler (export "handle" (func $handle)))
            (export "wasi:http/incoming-handler@0.2.0" (instance $handler)))"#,
    )
    .expect("text");
    let patient = runtime();
    let hasty = runtime().request_timeout(Duration::from_millis(300));
    let pod = Pod::new();
    for (runtime, killed) in [(hasty, false), (patient, true)] {
        let loaded = runtime.load(component.clone().into(), "sha256:unset");
        let running = runtime
            .start(&loaded.await.expect("loaded"), pod.workload(&[]))
            .expect("started");
        let kill = async {
            if killed {
                tokio::time::sleep(Duration::from_millis(300)).await;
                running.kill();
            }
        };
        let (answer, ()) = tokio::join!(ask(&running, get("/")), kill);
        match answer {
            Err(HttpError::Guest(why)) if killed => assert!(why.ends_with("was stopped"), "{why}"),
            Err(HttpError::Timeout(_)) if !killed => {}
            other => panic!("{other:?}"),
        }
    }
}
