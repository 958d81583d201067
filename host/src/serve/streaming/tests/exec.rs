//! Exec as clients speak it: messages on numbered channels, in each of the protocols.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;
use crate::pods::exec::sessions::Pod;
use crate::runtime::Limits;

type Socket = WebSocketStream<DuplexStream>;

/// The endpoint of the node on which the pod runs.
fn node(pod: &Pod) -> Node {
    let stop = CancellationToken::new();
    let (tasks, known) = (TaskTracker::new(), pod.known.clone());
    Node {
        streaming: Streaming::new(known, Arc::new(network()), tasks, stop.clone()),
        stop,
        _pods: Vec::new(),
    }
}

async fn exec(node: &Node, script: &str, more: &str, protocol: &'static str) -> Socket {
    let escaped = |c: char| match c {
        ' ' | ';' | '>' | '&' => format!("%{:02X}", u32::from(c)),
        c => c.to_string(),
    };
    let script: String = script.chars().map(escaped).collect();
    let path = format!(
        "/exec/default/web/app?input=1&output=1{more}&command=sh&command=-c&command={script}"
    );
    node.websocket(&path, protocol).await.expect("agreed")
}

/// All that comes, by channel.
async fn said(mut socket: Socket) -> [String; 4] {
    let mut said: [Vec<u8>; 4] = Default::default();
    while let Some(Ok(message)) = socket.next().await {
        match message {
            Message::Binary(bytes) => said[usize::from(bytes[0])].extend_from_slice(&bytes[1..]),
            Message::Text(text) => {
                let channel = usize::from(text.as_bytes()[0] - b'0');
                said[channel].extend(STANDARD.decode(&text.as_bytes()[1..]).expect("base64"));
            }
            Message::Close(_) => break,
            _ => {}
        }
    }
    said.map(|bytes| String::from_utf8(bytes).expect("text"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_spoken_with_in_every_protocol() {
    let pod = Pod::serving(Limits::default()).await;
    let node = node(&pod);
    let script = "read x; echo $x; echo oh >&2; exit 3";
    let binary = Message::Binary(Bytes::from_static(b"\0hi\n"));
    let base64 = Message::Text("0aGkK".into());
    for (protocol, sent) in [
        (V5, &binary),
        (V4, &binary),
        (V1, &binary),
        (V4_BASE64, &base64),
        (V1_BASE64, &base64),
    ] {
        let mut socket = exec(&node, script, "&error=1", protocol).await;
        socket.send(sent.clone()).await.expect("sent");
        let [_, out, err, verdict] = said(socket).await;
        assert_eq!((out.as_str(), err.as_str()), ("hi\n", "oh\n"), "{protocol}");
        if matches!(protocol, V5 | V4 | V4_BASE64) {
            let status: serde_json::Value = serde_json::from_str(&verdict).expect("a Status");
            assert_eq!(status["reason"], "NonZeroExitCode", "{protocol}");
            let cause = &status["details"]["causes"][0];
            assert_eq!(cause["message"], "3", "{protocol}");
        } else {
            let words = "command terminated with non-zero exit code: exit status 3";
            assert_eq!(verdict, words, "{protocol}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_says_that_its_stdin_ends_and_how_large_its_terminal_is() {
    let pod = Pod::serving(Limits::default()).await;
    let node = node(&pod);
    let mut socket = exec(&node, "cat; echo over", "&error=1", V5).await;
    for message in [&b"\0hi\n"[..], &[255, 0]] {
        let message = Message::Binary(Bytes::copy_from_slice(message));
        socket.send(message).await.expect("sent");
    }
    let [_, out, _, verdict] = said(socket).await;
    assert_eq!(out, "hi\nover\n");
    assert!(verdict.contains("Success"), "{verdict}");
    let mut socket = exec(&node, "echo $COLUMNS $LINES", "&tty=1", V5).await;
    let size = Message::Binary(Bytes::from_static(b"\x04{\"Width\":100,\"Height\":30}"));
    socket.send(size).await.expect("sent");
    assert_eq!(said(socket).await[1], "100 30\r\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_cannot_begin_is_told_in_a_status() {
    let pod = Pod::serving(Limits::default()).await;
    let path = "/exec/default/web/app?output=1&command=nginx";
    let socket = node(&pod).websocket(path, V5).await.expect("agreed");
    let [_, out, _, verdict] = said(socket).await;
    let status: serde_json::Value = serde_json::from_str(&verdict).expect("a Status");
    let words = "Internal error occurred: error executing command in container: \
        exec: \"nginx\": executable file not found in $PATH";
    assert_eq!((out.as_str(), &status["message"]), ("", &words.into()));
}
