//! Requests that an endpoint did not take: who gets them instead, and when nobody does.

use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::Instant;

use super::*;
use crate::network::{Limits, Policy};

const DEADLINE: Duration = Duration::from_secs(10);

async fn posted(client: &PodNetwork, uri: &str) -> String {
    text(client.http(post(uri, "x")).await.unwrap()).await
}

#[tokio::test(start_paused = true)]
async fn the_sixth_endpoint_is_asked_when_five_refuse() {
    let network = network();
    let client = pod(&network, "client");
    let (good, _serving) = web(&network, "good");
    let gone: Vec<_> = (0..5)
        .map(|n| pod(&network, &format!("gone-{n}")))
        .collect();
    for _ in 0..10 {
        // A name of its own each time: what refused is remembered by address.
        let pods: Vec<&PodNetwork> = gone.iter().chain([&good]).map(|pod| &**pod).collect();
        hello(&network, &pods);
        let begun = Instant::now();
        assert_eq!(posted(&client, "http://hello/").await, "good hello / x");
        let connected = client.connect("10.96.0.7:80".parse().unwrap()).await;
        assert!(connected.is_ok());
        assert_eq!(begun.elapsed(), Duration::ZERO, "nobody was waited for");
        tokio::time::advance(Duration::from_secs(60)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn busy_pods_refuse_at_once_and_are_not_avoided() {
    let network = Network::new(Config {
        limits: Limits {
            requests_per_pod: 1,
            ..Limits::default()
        },
        ..Config::default()
    })
    .unwrap();
    let client = pod(&network, "client");
    let held = Arc::new(tokio::sync::Semaphore::new(0));
    let mut served = Vec::new();
    for n in 0..6 {
        let pod = pod(&network, &format!("web-{n}"));
        let held = Arc::clone(&held);
        let guest = Guest(move |_| {
            let held = Arc::clone(&held);
            async move {
                drop(held.acquire().await);
                Ok(Response::new(serve::empty()))
            }
        });
        let serving = pod.serve_http(Ports::All, Arc::new(guest)).unwrap();
        served.push((pod, serving));
    }
    let pods: Vec<&PodNetwork> = served.iter().map(|(pod, _)| &**pod).collect();
    hello(&network, &pods);
    let asked: Vec<_> = (0..6)
        .map(|_| {
            let client = Arc::clone(&client);
            tokio::spawn(async move { client.http(get("http://hello/")).await })
        })
        .collect();
    let begun = Instant::now();
    while network
        .fabric
        .pods()
        .iter()
        .any(|pod| pod.identity().name != "client" && pod.requests().begin().is_some())
    {
        tokio::task::yield_now().await;
    }
    let refused = client.http(get("http://hello/")).await.unwrap_err();
    assert!(matches!(refused, HttpError::NotReached(_)), "{refused}");
    assert_eq!(begun.elapsed(), Duration::ZERO);
    held.add_permits(1);
    for answer in asked {
        answer.await.unwrap().unwrap();
    }
    client.http(get("http://hello/")).await.unwrap();
    assert_eq!(begun.elapsed(), Duration::ZERO, "nobody is passed over");
}

#[tokio::test]
async fn what_listens_on_real_sockets_is_no_different() {
    let network = Network::new(Config {
        egress: Policy {
            allow: vec!["127.0.0.0/8".parse().unwrap()],
            deny: Vec::new(),
        },
        ..Config::default()
    })
    .unwrap();
    let client = pod(&network, "client");
    let listener = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let answered = tokio::spawn(async move {
        let answers = |socket| {
            let service =
                hyper::service::service_fn(|request: Request<hyper::body::Incoming>| async {
                    let body = request.into_body().collect().await?.to_bytes();
                    Ok::<_, hyper::Error>(Response::new(http_body_util::Full::new(body)))
                });
            let io = hyper_util::rt::TokioIo::new(socket);
            hyper::server::conn::http1::Builder::new().serve_connection(io, service)
        };
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(answers(socket));
        }
    });
    let spec = json!({"clusterIP": "10.96.0.9", "ports": [{"port": 80}]});
    let addresses = ["127.0.0.3", "127.0.0.2"];
    behind(
        &network,
        ("shop", "site"),
        spec,
        json!([{"port": port}]),
        &addresses,
    );
    for _ in 0..50 {
        assert_eq!(posted(&client, "http://site/").await, "x");
    }
    answered.abort();
}

#[tokio::test]
async fn what_waits_in_a_backlog_goes_elsewhere_when_the_pod_ends() {
    let network = network();
    let client = pod(&network, "client");
    let (good, _serving) = web(&network, "good");
    let ends = pod(&network, "ends");
    let listener = ends.listen(8080, 8).unwrap();
    hello(&network, &[&ends, &good]);
    let asked: Vec<_> = (0..20)
        .map(|_| {
            let client = Arc::clone(&client);
            tokio::spawn(async move { posted(&client, "http://hello/").await })
        })
        .collect();
    let waits = async {
        while ends.sockets().open() < 2
            || ends.budget().used() == 0 && good.budget().used() == 0 && client.budget().used() == 0
        {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, waits)
        .await
        .expect("one waits");
    drop(listener);
    for answer in asked {
        assert_eq!(answer.await.unwrap(), "good hello / x");
    }
}
