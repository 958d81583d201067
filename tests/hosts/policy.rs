//! NetworkPolicies between hosts: HTTP guests and sockets, by pods, namespaces, addresses and ports, in both directions, and
//! what is open when they change.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use crate::cluster::{Cluster, address};
use crate::guests::Dial;
use crate::lab::{Lab, wait_for};
use crate::load;

/// Callers of `web` in the namespace `guarded`, by the port of h2 that leads to them.
const FRIEND: u16 = 30_201;
const STRANGER: u16 = 30_202;
const FOREIGN: u16 = 30_203;
/// `held` itself, from outside.
const HELD: u16 = 30_204;

/// On h2 what is guarded; on h1 and h3 who wants to reach it.
const GUARDED: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: guarded, labels: {app: web}}
spec: {nodeName: h2, containers: [{name: main, image: coracle.dev/guests/hello-http, ports: [{containerPort: 8000}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: guarded}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8000}]}
---
apiVersion: v1
kind: Pod
metadata: {name: lines, namespace: guarded, labels: {app: lines}}
spec: {nodeName: h2, containers: [{name: main, image: coracle.dev/guests/echo, env: [{name: PORT, value: '7000'}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: lines, namespace: guarded}
spec: {selector: {app: lines}, ports: [{port: 7, targetPort: 7000}]}
---
apiVersion: v1
kind: Pod
metadata: {name: held, namespace: guarded, labels: {app: held}}
spec: {nodeName: h2, containers: [{name: main, image: coracle.dev/guests/echo, env: [{name: PORT, value: '7000'}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: held, namespace: guarded}
spec: {type: NodePort, selector: {app: held}, ports: [{port: 7, targetPort: 7000, nodePort: 30204}]}
";

fn caller(namespace: &str, role: &str, node: &str, port: u16) -> String {
    format!(
        "
---
apiVersion: v1
kind: Pod
metadata: {{name: {role}, namespace: {namespace}, labels: {{role: {role}}}}}
spec:
  nodeName: {node}
  containers:
  - {{name: main, image: coracle.dev/guests/caller, env: [{{name: TARGET, value: 'web.guarded:80'}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: {role}, namespace: {namespace}}}
spec: {{type: NodePort, selector: {{role: {role}}}, ports: [{{port: 80, targetPort: 8000, nodePort: {port}}}]}}
"
    )
}

/// A policy of that name, spelled out in one line.
fn policy(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
         metadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

/// Waits until the callers on these ports reach `web`, or do not; `what` is in force.
fn reach(lab: &Lab, what: &str, expected: &[(u16, bool)]) {
    lab.inside("hub", || {
        for (port, open) in expected {
            wait_for(&format!("{what}: caller {port} reaches: {open}"), || {
                let (status, body) = load::ask(address(12, *port), "caller", "/").ok()?;
                let denied = body.contains("Denied") || body.contains("Dns");
                let found = match status {
                    200 => true,
                    502 if denied => false,
                    _ => panic!("{what}: caller {port}: {status} {body}"),
                };
                (found == *open).then_some(())
            });
        }
    });
}

/// A client of `lines` with these labels connects from h1, or does not.
fn dials(lab: &Lab, name: &str, role: &str, open: bool) {
    let client = Dial {
        namespace: "callers",
        labels: &format!("role: {role}"),
        args: "'lines.guarded:7', hello",
        ..Dial::new(name)
    };
    client.start(lab);
    let (code, said) = client.ended(lab);
    assert_eq!(code == 0, open, "{name}: {said}");
    let heard = said.contains("hello");
    assert_eq!(heard, open, "{name}: {said}");
}

pub(crate) fn works(cluster: &Cluster) {
    let lab = &cluster.lab;
    lab.make_namespace("guarded", "");
    lab.make_namespace("callers", "team: callers");
    lab.make_namespace("foreign", "");
    let callers = [
        caller("callers", "friend", "h1", FRIEND),
        caller("callers", "stranger", "h3", STRANGER),
        // The same label, in another namespace.
        caller("foreign", "friend", "h1", FOREIGN),
    ];
    lab.apply(&format!("{GUARDED}{}", callers.concat()));
    for namespace in ["guarded", "callers", "foreign"] {
        let ready = ["wait", "pod", "--all", "--for=condition=Ready"];
        let whose = ["-n", namespace, "--timeout=80s"];
        lab.kubectl(&[&ready[..], &whose].concat());
    }
    let all = |open| [(FRIEND, open), (STRANGER, open), (FOREIGN, open)];
    reach(lab, "no policy", &all(true));
    dials(lab, "free", "friend", true);

    what_is_open_is_cut(lab);
    reach(lab, "default-deny", &all(false));
    dials(lab, "denied", "friend", false);
    by_selectors(lab);
    by_addresses(lab);
    egress(lab);
}

/// A stream from outside through h1, and one of a pod on h3, both to `held`: a policy that forbids them ends them.
fn what_is_open_is_cut(lab: &Lab) {
    let stream = lab.inside("hub", || {
        wait_for("a stream through h1", || {
            let mut stream = TcpStream::connect(address(11, HELD)).ok()?;
            let patience = Duration::from_secs(20);
            stream.set_read_timeout(Some(patience)).expect("set");
            stream.write_all(b"hello\n").ok()?;
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).ok()?;
            (line == "hello\n").then_some(stream)
        })
    });
    // It serves one at a time: the second is connected, says its line and waits for the first to end.
    let second = Dial {
        namespace: "callers",
        node: "h3",
        args: "'held.guarded:7', hello, again",
        ..Dial::new("second")
    };
    second.hears(lab, "connected to");
    // And goes on as long as policies do not concern it.
    let other = "{podSelector: {matchLabels: {app: lines}}, policyTypes: [Egress]}";
    lab.apply(&policy("guarded", "other", other));
    reach(lab, "a policy for other pods", &[(FRIEND, true)]);
    (&stream).write_all(b"still\n").expect("it is open");
    let mut line = [0; 6];
    (&stream).read_exact(&mut line).expect("it is open");
    assert_eq!(&line, b"still\n");

    let deny = policy(
        "guarded",
        "deny",
        "{podSelector: {}, policyTypes: [Ingress]}",
    );
    lab.apply(&deny);
    let mut rest = Vec::new();
    let end = (&stream).read_to_end(&mut rest);
    let timed_out = end.as_ref().is_err_and(|error| {
        matches!(
            error.kind(),
            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
        )
    });
    assert!(
        !timed_out && rest.is_empty(),
        "it was cut: {end:?} {rest:?}"
    );
    let (_, said) = second.ended(lab);
    assert!(
        !said.contains("again"),
        "the second was cut as well: {said}"
    );
    lab.kubectl(&["delete", "-n", "guarded", "networkpolicy", "other"]);
}

fn by_selectors(lab: &Lab) {
    let from = |peer: &str| {
        let spec = format!("{{podSelector: {{}}, ingress: [{{from: [{peer}]}}]}}");
        policy("guarded", "allow", &spec)
    };
    let team = "namespaceSelector: {matchLabels: {team: callers}}";
    let friend = "podSelector: {matchLabels: {role: friend}}";
    lab.apply(&from(&format!("{{{team}, {friend}}}")));
    let expected = [(FRIEND, true), (STRANGER, false), (FOREIGN, false)];
    reach(lab, "by pod and namespace", &expected);
    dials(lab, "as-friend", "friend", true);
    dials(lab, "as-stranger", "stranger", false);

    lab.apply(&from(&format!("{{{team}}}")));
    let expected = [(FRIEND, true), (STRANGER, true), (FOREIGN, false)];
    reach(lab, "by namespace", &expected);
    dials(lab, "of-the-team", "stranger", true);

    // A pod selector alone is about the policy's own namespace.
    lab.apply(&from(&format!("{{{friend}}}")));
    let expected = [(FRIEND, false), (STRANGER, false), (FOREIGN, false)];
    reach(lab, "by pod", &expected);

    let ports = "{podSelector: {}, ingress: [{ports: [{port: 7000, endPort: 7999}]}]}";
    lab.apply(&policy("guarded", "allow", ports));
    reach(lab, "by port", &[(FRIEND, false), (FOREIGN, false)]);
    dials(lab, "by-port", "stranger", true);
}

fn by_addresses(lab: &Lab) {
    let block = lab.kubectl(&["get", "node", "h1", "-o", "jsonpath={.spec.podCIDR}"]);
    let friend = ["get", "pod", "-n", "callers", "friend", "-o"];
    let friend = lab.kubectl(&[&friend[..], &["jsonpath={.status.podIP}"]].concat());
    let block = format!("{{ipBlock: {{cidr: {block}, except: [{friend}/32]}}}}");
    let spec = format!("{{podSelector: {{}}, ingress: [{{from: [{block}]}}]}}");
    lab.apply(&policy("guarded", "allow", &spec));
    let expected = [(FRIEND, false), (STRANGER, false), (FOREIGN, true)];
    reach(lab, "by address", &expected);
    // What comes from outside has the address of the host it came in by.
    lab.inside("hub", || {
        let hears = |number| {
            let mut stream = TcpStream::connect(address(number, HELD)).ok()?;
            let patience = Duration::from_secs(5);
            stream.set_read_timeout(Some(patience)).expect("set");
            stream.write_all(b"hello\n").ok()?;
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).ok()?;
            (line == "hello\n").then_some(())
        };
        wait_for("a stream through h1", || hears(11));
        assert_eq!(hears(13), None, "nothing through h3");
    });
    decisions_are_counted(lab);
    lab.kubectl(&["delete", "-n", "guarded", "networkpolicy", "deny", "allow"]);
    let expected = [(FRIEND, true), (STRANGER, true), (FOREIGN, true)];
    reach(lab, "no policy any more", &expected);
}

fn decisions_are_counted(lab: &Lab) {
    let metrics = lab.kubectl(&["get", "--raw", "/api/v1/nodes/h2/proxy/metrics"]);
    for verdict in ["denied", "allowed"] {
        let counted = metrics.lines().any(|line| {
            line.starts_with("coracle_networkpolicy_decisions_total{namespace=\"guarded\"")
                && line.contains(&format!("verdict=\"{verdict}\""))
                && !line.ends_with(" 0")
        });
        assert!(counted, "no decision that {verdict} anything:\n{metrics}");
    }
}

fn egress(lab: &Lab) {
    let to = |rules: &str| {
        let pods = "podSelector: {matchLabels: {role: stranger}}";
        let spec = format!("{{{pods}, policyTypes: [Egress], egress: [{rules}]}}");
        policy("callers", "out", &spec)
    };
    lab.apply(&to(""));
    reach(lab, "no way out", &[(STRANGER, false), (FRIEND, true)]);
    dials(lab, "no-way-out", "stranger", false);
    let dns = "{to: [{namespaceSelector: {}, podSelector: {matchLabels: {k8s-app: kube-dns}}}], \
               ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]}";
    let web = "{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: guarded}}, \
               podSelector: {matchLabels: {app: web}}}]}";
    lab.apply(&to(&format!("{dns}, {web}")));
    reach(lab, "out to the web", &[(STRANGER, true)]);
    dials(lab, "out-elsewhere", "stranger", false);
    lab.apply(&to(&format!("{dns}, {{ports: [{{port: 7000}}]}}")));
    reach(lab, "out to a port", &[(STRANGER, false)]);
    dials(lab, "out-by-port", "stranger", true);
}
