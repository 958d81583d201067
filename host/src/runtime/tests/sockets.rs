//! Guests' sockets: TCP, UDP and names over the virtual network.

use super::*;

#[tokio::test]
async fn two_processes_talk_over_tcp_and_udp() {
    let runtime = runtime();
    for protocol in ["tcp", "udp"] {
        let env = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let server = Pod::new();
        let mut workload = server.workload(&["echo"]);
        workload.env = vec![env("PORT", "7000"), env("PROTOCOL", protocol)];
        let echo = start(&runtime, "echo", workload).await;
        server.logs.wait_for("on 0.0.0.0:7000").await;

        let client = Pod::on(&server.network);
        let target = format!("{}:7000", server.pod.address());
        let mut workload = client.workload(&["dial", &target, "first", "second"]);
        workload.env = vec![env("PROTOCOL", protocol)];
        let dial = start(&runtime, "dial", workload).await;
        let code = exit(&dial).await.code;
        let text = client.logs.text();
        assert_eq!(code, 0, "{text}");
        assert!(text.contains("first") && text.contains("second"), "{text}");
        if protocol == "tcp" {
            server.logs.wait_for("served 2 lines").await;
        }
        echo.stop(DEADLINE);
        assert_eq!(exit(&echo).await.code, 143);
    }
}

#[tokio::test]
async fn nobody_listening_is_refused_and_an_unknown_name_not_found() {
    let runtime = runtime();
    let dial = async |target: &str| {
        let pod = Pod::new();
        let target = target.replace("SELF", &pod.pod.address().to_string());
        let running = start(&runtime, "dial", pod.workload(&["dial", &target])).await;
        assert_eq!(exit(&running).await.code, 1);
        pod.logs.text()
    };
    let text = dial("SELF:1").await;
    assert!(text.contains("ConnectionRefused"), "{text}");
    let text = dial("127.0.0.1:1").await;
    assert!(text.contains("ConnectionRefused"), "{text}");
    let text = dial("no-such-service.default.svc.cluster.local").await;
    assert!(text.contains("no-such-service"), "{text}");
}

#[tokio::test]
async fn a_guest_that_opens_sockets_without_end_meets_the_pods_bound() {
    let mut config = network::Config::default();
    config.limits.sockets_per_pod = 1_024;
    let pod = Pod::on(&Arc::new(Network::new(config).expect("a network")));
    let running = start(&runtime(), "hog", pod.workload(&["hog", "sockets"])).await;
    pod.logs.wait_for("refused after 1024 sockets").await;
    running.kill();
    exit(&running).await;
}
