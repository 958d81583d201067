//! The server as its clients know it: messages in, messages out, over real sockets too.

use std::net::Ipv4Addr;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::wire::tests::query;
use super::*;
use crate::network::table::tests::{service, slice};
use crate::network::table::{Key, Loads, Service};

const DEADLINE: Duration = Duration::from_secs(10);

fn put(table: &mut Table, name: &str, spec: Value, endpoints: Value, ports: Value) {
    let metadata =
        json!({"name": name, "namespace": "shop", "labels": {"kubernetes.io/service-name": name}});
    let object = service(json!({"metadata": metadata, "spec": spec}));
    let slice = slice(
        json!({"addressType": "IPv4", "metadata": metadata, "endpoints": endpoints, "ports": ports}),
    );
    let key = Key {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
    };
    let mut loads = Loads::default();
    table.insert(Service::build(key, object, &[&slice], &mut loads, None));
}

fn table() -> Table {
    let mut table = Table::default();
    let http = json!([{"name": "http", "port": 8080}, {"name": "admin", "port": 9090}]);
    let ports = json!([{"name": "http", "port": 80}, {"name": "admin", "port": 81}]);
    let two =
        json!([{"addresses": ["100.64.0.2"], "hostname": "db-0"}, {"addresses": ["100.64.0.3"]}]);
    let spec = |ip: &str| json!({"clusterIP": ip, "ports": ports});
    put(
        &mut table,
        "web",
        spec("10.96.0.7"),
        two.clone(),
        http.clone(),
    );
    put(&mut table, "db", spec("None"), two, http.clone());
    put(&mut table, "idle", spec("None"), json!([]), http.clone());
    let many: Vec<Value> = (0..200)
        .map(|n| json!({"addresses": [format!("100.64.1.{n}")]}))
        .collect();
    put(&mut table, "many", spec("None"), json!(many), http);
    for (name, target) in [
        ("out", "www.Example.com"),
        ("alias", "web.shop.svc.cluster.local"),
        ("loop", "loop.shop.svc.cluster.local"),
        ("number", "1.2.3.4"),
    ] {
        let spec = json!({"type": "ExternalName", "externalName": target});
        put(&mut table, name, spec, json!([]), json!([]));
    }
    table.complete = true;
    table
}

fn server(table: Table, upstream: &[SocketAddr]) -> Arc<Dns> {
    let config = Config {
        // Nobody answers there: a test must not ask the machine's own servers.
        upstream: if upstream.is_empty() {
            vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 1))]
        } else {
            upstream.to_vec()
        },
        ..Config::default()
    };
    let ranges = vec![
        "100.64.0.0/10".parse().unwrap(),
        "10.96.0.0/16".parse().unwrap(),
    ];
    let tables = watch::Sender::new(Arc::new(table)).subscribe();
    let namespaces = watch::Sender::new(Arc::new(Namespaces::of(&["shop", "empty"]))).subscribe();
    Arc::new(Dns::new(
        &config,
        "cluster.local",
        ranges,
        tables,
        namespaces,
    ))
}

async fn ask(dns: &Dns, name: &str, kind: RecordType) -> Message {
    let question = query(name, kind);
    let bytes = question.to_vec().unwrap();
    let answer = dns.answer(&bytes, Transport::Datagram).await;
    let answer = Message::from_vec(&answer.expect("an answer")).unwrap();
    assert_eq!(answer.metadata.id, question.metadata.id);
    assert_eq!(answer.metadata.message_type, MessageType::Response);
    assert_eq!(answer.queries, question.queries);
    answer
}

/// `NOERROR: a; b | soa`, sorted: answers are shuffled.
fn told(answer: &Message) -> String {
    let mut lines: Vec<String> = answer
        .answers
        .iter()
        .map(|record| format!("{} {} {}", record.ttl, record.record_type(), record.data))
        .collect();
    lines.sort();
    let code = CODES
        .iter()
        .find(|(code, _)| *code == answer.metadata.response_code);
    let soa = answer
        .authorities
        .iter()
        .map(|record| format!(" | {}", record.name));
    let all: String = soa.collect();
    format!("{}: {}{all}", code.unwrap().1, lines.join("; "))
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one table")]
async fn every_question_has_its_answer() {
    use RecordType::{A, AAAA, ANY, CNAME, MX, NS, PTR, SOA, SRV, TXT};
    let dns = server(table(), &[]);
    let long = "ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5";
    for (name, kind, expected) in [
        ("web.shop.svc.cluster.local.", A, "NOERROR: 5 A 10.96.0.7"),
        (
            "web.shop.svc.cluster.local.",
            AAAA,
            "NOERROR:  | cluster.local.",
        ),
        (
            "web.shop.svc.cluster.local.",
            MX,
            "NOERROR:  | cluster.local.",
        ),
        (
            "web.shop.svc.cluster.local.",
            CNAME,
            "NOERROR:  | cluster.local.",
        ),
        (
            "web.shop.svc.cluster.local.",
            ANY,
            "NOERROR: 5 HINFO RFC8482 ",
        ),
        (
            "nothing.shop.svc.cluster.local.",
            A,
            "NXDOMAIN:  | cluster.local.",
        ),
        (
            "nothing.shop.svc.cluster.local.",
            ANY,
            "NXDOMAIN:  | cluster.local.",
        ),
        ("empty.svc.cluster.local.", A, "NOERROR:  | cluster.local."),
        (
            "nowhere.svc.cluster.local.",
            A,
            "NXDOMAIN:  | cluster.local.",
        ),
        (
            "db.shop.svc.cluster.local.",
            A,
            "NOERROR: 5 A 100.64.0.2; 5 A 100.64.0.3",
        ),
        (
            "idle.shop.svc.cluster.local.",
            A,
            "NOERROR:  | cluster.local.",
        ),
        (
            "db-0.db.shop.svc.cluster.local.",
            A,
            "NOERROR: 5 A 100.64.0.2",
        ),
        (
            "db-0.db.shop.svc.cluster.local.",
            AAAA,
            "NOERROR:  | cluster.local.",
        ),
        ("1-2-3-4.shop.pod.cluster.local.", A, "NOERROR: 5 A 1.2.3.4"),
        (
            "1-2-3-4.shop.pod.cluster.local.",
            AAAA,
            "NOERROR:  | cluster.local.",
        ),
        (
            "_http._tcp.web.shop.svc.cluster.local.",
            SRV,
            "NOERROR: 5 SRV 0 100 80 web.shop.svc.cluster.local.",
        ),
        (
            "_http._tcp.web.shop.svc.cluster.local.",
            A,
            "NOERROR:  | cluster.local.",
        ),
        (
            "_tcp.web.shop.svc.cluster.local.",
            SRV,
            "NOERROR:  | cluster.local.",
        ),
        (
            "_ftp._tcp.web.shop.svc.cluster.local.",
            SRV,
            "NXDOMAIN:  | cluster.local.",
        ),
        (
            "_http._tcp.db.shop.svc.cluster.local.",
            SRV,
            "NOERROR: 5 SRV 0 50 8080 100-64-0-3.db.shop.svc.cluster.local.; \
             5 SRV 0 50 8080 db-0.db.shop.svc.cluster.local.",
        ),
        // As StatefulSets' users ask: all ports.
        (
            "db-0.db.shop.svc.cluster.local.",
            SRV,
            "NOERROR: 5 SRV 0 50 8080 db-0.db.shop.svc.cluster.local.; \
             5 SRV 0 50 9090 db-0.db.shop.svc.cluster.local.",
        ),
        (
            "web.shop.svc.cluster.local.",
            SRV,
            "NOERROR: 5 SRV 0 50 80 web.shop.svc.cluster.local.; 5 SRV 0 50 81 web.shop.svc.cluster.local.",
        ),
        (
            "7.0.96.10.in-addr.arpa.",
            PTR,
            "NOERROR: 5 PTR web.shop.svc.cluster.local.",
        ),
        (
            "3.0.64.100.in-addr.arpa.",
            PTR,
            "NOERROR: 5 PTR 100-64-0-3.db.shop.svc.cluster.local.",
        ),
        (
            "7.0.96.10.in-addr.arpa.",
            A,
            "NOERROR:  | 96.10.in-addr.arpa.",
        ),
        (
            "9.0.64.100.in-addr.arpa.",
            PTR,
            "NXDOMAIN:  | 64.100.in-addr.arpa.",
        ),
        (
            "alias.shop.svc.cluster.local.",
            A,
            "NOERROR: 5 A 10.96.0.7; 5 CNAME web.shop.svc.cluster.local.",
        ),
        (
            "alias.shop.svc.cluster.local.",
            CNAME,
            "NOERROR: 5 CNAME web.shop.svc.cluster.local.",
        ),
        (
            "number.shop.svc.cluster.local.",
            A,
            "NOERROR:  | cluster.local.",
        ),
        ("loop.shop.svc.cluster.local.", A, "SERVFAIL: "),
        ("dns-version.cluster.local.", TXT, "NOERROR: 5 TXT 1.1.0"),
        (
            "dns-version.cluster.local.",
            A,
            "NOERROR:  | cluster.local.",
        ),
        ("cluster.local.", NS, "NOERROR: 5 NS ns.dns.cluster.local."),
        ("cluster.local.", A, "NOERROR:  | cluster.local."),
        ("ns.dns.cluster.local.", A, "NOERROR: 5 A 10.96.0.10"),
    ] {
        let answer = ask(&dns, name, kind).await;
        assert_eq!(told(&answer), expected, "{name} {kind}");
        let whole = answer.metadata.response_code != ResponseCode::ServFail;
        assert_eq!(answer.metadata.authoritative, whole, "{name} {kind}");
        assert!(answer.metadata.recursion_available && answer.metadata.recursion_desired);
    }
    let soa = ask(&dns, "cluster.local.", SOA).await;
    assert_eq!(told(&soa), format!("NOERROR: 5 SOA {long}"));
    let counted = dns.counted();
    assert_eq!(counted.answers["SERVFAIL"], 1);
    let metrics = counted.prometheus();
    assert!(
        metrics.contains("coracle_dns_responses_total{rcode=\"SERVFAIL\"} 1\n"),
        "{metrics}"
    );
    assert!(counted.answers["NXDOMAIN"] >= 5 && counted.forwarded == 0);
}

#[tokio::test]
async fn an_answer_is_owned_by_the_name_as_it_was_asked() {
    let dns = server(table(), &[]);
    let answer = ask(&dns, "wEb.SHOP.svc.cluster.LOCAL.", RecordType::A).await;
    assert_eq!(told(&answer), "NOERROR: 5 A 10.96.0.7");
    assert!(answer.answers[0].name.eq_case(answer.queries[0].name()));
}

#[tokio::test]
async fn targets_bring_their_addresses_and_answers_change_places() {
    let dns = server(table(), &[]);
    let answer = ask(
        &dns,
        "_http._tcp.db.shop.svc.cluster.local.",
        RecordType::SRV,
    )
    .await;
    let mut extra: Vec<String> = answer
        .additionals
        .iter()
        .map(|record| format!("{} {}", record.name, record.data))
        .collect();
    extra.sort();
    assert_eq!(
        extra,
        [
            "100-64-0-3.db.shop.svc.cluster.local. 100.64.0.3",
            "db-0.db.shop.svc.cluster.local. 100.64.0.2"
        ]
    );
    let mut first = std::collections::HashSet::new();
    for _ in 0..100 {
        let answer = ask(&dns, "db.shop.svc.cluster.local.", RecordType::A).await;
        first.insert(answer.answers[0].data.to_string());
    }
    assert_eq!(first.len(), 2, "nobody is always the first");
}

#[tokio::test]
async fn before_anything_is_known_nothing_is_denied() {
    let mut unknown = table();
    unknown.complete = false;
    let dns = server(unknown, &[]);
    for name in [
        "nothing.shop.svc.cluster.local.",
        "1.0.64.100.in-addr.arpa.",
    ] {
        let answer = ask(&dns, name, RecordType::A).await;
        assert_eq!(told(&answer), "SERVFAIL: ", "{name}");
    }
}

#[tokio::test]
async fn what_does_not_fit_a_datagram_comes_over_tcp() {
    let (dns, tasks, stop) = (
        server(table(), &[]),
        TaskTracker::new(),
        CancellationToken::new(),
    );
    let sockets = rim::Sockets::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    let address = sockets.address;
    sockets.serve(&dns, &tasks, &stop);

    let question = query("many.shop.svc.cluster.local.", RecordType::A)
        .to_vec()
        .unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    udp.send_to(&question, address).await.unwrap();
    let mut buffer = [0; 4096];
    let (length, from) = tokio::time::timeout(DEADLINE, udp.recv_from(&mut buffer))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(from, address);
    let cut = Message::from_vec(&buffer[..length]).unwrap();
    assert!(cut.metadata.truncation && length <= 512 && cut.answers.len() > 20);
    assert_eq!(dns.counted().truncated, 1);

    let mut tcp = TcpStream::connect(address).await.unwrap();
    // Two at once: clients need not wait.
    let framed = [
        &u16::try_from(question.len()).unwrap().to_be_bytes()[..],
        &question,
    ]
    .concat();
    tcp.write_all(&[framed.clone(), framed].concat())
        .await
        .unwrap();
    for _ in 0..2 {
        let read = async {
            let mut answer = vec![0; usize::from(tcp.read_u16().await.unwrap())];
            tcp.read_exact(&mut answer).await.unwrap();
            answer
        };
        let answer = tokio::time::timeout(DEADLINE, read).await.unwrap();
        let whole = Message::from_vec(&answer).unwrap();
        assert!(!whole.metadata.truncation);
        assert_eq!(whole.answers.len(), 200);
    }
    stop.cancel();
    tasks.close();
    tokio::time::timeout(DEADLINE, tasks.wait()).await.unwrap();
}

/// A name server outside: `answer` for datagrams, `over_tcp` for streams. Counts the questions.
async fn outside(
    answer: impl Fn(&Message) -> Option<Message> + Send + 'static,
    over_tcp: impl Fn(&Message) -> Message + Send + 'static,
) -> (SocketAddr, Arc<AtomicU64>) {
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = udp.local_addr().unwrap();
    let tcp = TcpListener::bind(address).await.unwrap();
    let count = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&count);
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        loop {
            let (length, from) = udp.recv_from(&mut buffer).await.unwrap();
            counter.fetch_add(1, Ordering::Relaxed);
            let asked = Message::from_vec(&buffer[..length]).unwrap();
            if let Some(answer) = answer(&asked) {
                // Noise first: an answer to somebody else's question.
                let mut wrong = answer.clone();
                wrong.metadata.id = wrong.metadata.id.wrapping_add(1);
                udp.send_to(&wrong.to_vec().unwrap(), from).await.unwrap();
                udp.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
            }
        }
    });
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = tcp.accept().await.unwrap();
            let mut asked = vec![0; usize::from(socket.read_u16().await.unwrap())];
            socket.read_exact(&mut asked).await.unwrap();
            let answer = over_tcp(&Message::from_vec(&asked).unwrap())
                .to_vec()
                .unwrap();
            socket
                .write_u16(u16::try_from(answer.len()).unwrap())
                .await
                .unwrap();
            socket.write_all(&answer).await.unwrap();
        }
    });
    (address, count)
}

fn addresses(asked: &Message, count: u8) -> Message {
    let mut answer = Message::response(asked.metadata.id, asked.metadata.op_code);
    answer.queries.clone_from(&asked.queries);
    let name = asked.queries[0].name().to_lowercase();
    let record =
        |last| Record::from_rdata(name.clone(), 60, RData::A(A(Ipv4Addr::new(9, 9, 9, last))));
    answer.answers = (0..count).map(record).collect();
    answer
}

fn refused(asked: &Message, code: ResponseCode) -> Message {
    let mut answer = Message::error_msg(asked.metadata.id, asked.metadata.op_code, code);
    answer.queries.clone_from(&asked.queries);
    answer
}

#[tokio::test]
async fn other_names_are_asked_elsewhere_once() {
    let (upstream, count) = outside(
        |asked| Some(addresses(asked, 1)),
        |asked| addresses(asked, 1),
    )
    .await;
    let dns = server(table(), &[upstream]);
    let answer = ask(&dns, "www.example.com.", RecordType::A).await;
    assert_eq!(told(&answer), "NOERROR: 60 A 9.9.9.0");
    assert!(!answer.metadata.authoritative);
    let again = ask(&dns, "WWW.example.com.", RecordType::A).await;
    assert!(again.answers[0].name.eq_case(again.queries[0].name()));
    assert_eq!(count.load(Ordering::Relaxed), 1);
    let aliased = ask(&dns, "out.shop.svc.cluster.local.", RecordType::A).await;
    assert_eq!(
        told(&aliased),
        "NOERROR: 5 CNAME www.example.com.; 60 A 9.9.9.0"
    );
    let counted = dns.counted();
    assert_eq!((counted.forwarded, counted.cached), (1, 2));
    ask(&dns, "8.8.8.8.in-addr.arpa.", RecordType::PTR).await;
    assert_eq!(count.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_long_answer_from_elsewhere_is_asked_for_again_over_tcp() {
    let (upstream, _) = outside(
        |asked| {
            let mut answer = addresses(asked, 0);
            answer.metadata.truncation = true;
            Some(answer)
        },
        |asked| addresses(asked, 90),
    )
    .await;
    let dns = server(table(), &[upstream]);
    let mut question = query("big.example.com.", RecordType::A);
    question.edns = Some(Edns::new());
    let answer = dns
        .answer(&question.to_vec().unwrap(), Transport::Stream)
        .await
        .unwrap();
    assert_eq!(Message::from_vec(&answer).unwrap().answers.len(), 90);
    let short = ask(&dns, "big.example.com.", RecordType::A).await;
    assert!(short.metadata.truncation, "the client is told in turn");
}

#[tokio::test]
async fn a_server_that_fails_is_passed_over() {
    let (silent, asked) = outside(|_| None, |asked| addresses(asked, 0)).await;
    let (broken, _) = outside(
        |asked| Some(refused(asked, ResponseCode::ServFail)),
        |asked| addresses(asked, 0),
    )
    .await;
    let (good, _) = outside(
        |asked| Some(addresses(asked, 1)),
        |asked| addresses(asked, 1),
    )
    .await;
    let dns = server(table(), &[silent, broken, good]);
    let answer = ask(&dns, "one.example.com.", RecordType::A).await;
    assert_eq!(told(&answer), "NOERROR: 60 A 9.9.9.0");
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    ask(&dns, "two.example.com.", RecordType::A).await;
    assert_eq!(
        asked.load(Ordering::Relaxed),
        1,
        "the one that answered is asked first now"
    );
    let dns = server(table(), &[broken]);
    let answer = ask(&dns, "one.example.com.", RecordType::A).await;
    assert_eq!(told(&answer), "SERVFAIL: ");
    let aliased = ask(&dns, "out.shop.svc.cluster.local.", RecordType::A).await;
    assert_eq!(told(&aliased), "SERVFAIL: 5 CNAME www.example.com.");
}

#[test]
fn a_name_of_the_longest_kind_is_answered() {
    let label = "a".repeat(60);
    let name = format!("{label}.{label}.{label}.{label}.");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let dns = server(table(), &[]);
        let inside = format!("{label}.{label}.{label}.cluster.local.");
        assert!(Name::from_ascii(&name).is_ok());
        let answer = ask(&dns, &inside, RecordType::A).await;
        assert_eq!(told(&answer), "NXDOMAIN:  | cluster.local.");
    });
}
