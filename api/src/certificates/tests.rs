//! What is approved, signed and refused, as a table over requests made here.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{CertificateParams, DnType, KeyPair, SanType};
use serde_json::json;

use super::*;

#[derive(Default)]
struct World {
    nodes: BTreeMap<&'static str, Vec<IpAddr>>,
    taken: Vec<IpAddr>,
    servers: Vec<IpAddr>,
    alive: Vec<&'static str>,
    server_names: Vec<&'static str>,
}

impl Facts for World {
    fn may(&self, user: &User, subresource: &str) -> bool {
        match subresource {
            "nodeclient" => user.is_in("system:bootstrappers"),
            _ => user.is_in("system:nodes"),
        }
    }

    fn addresses(&self, node: &str) -> Vec<IpAddr> {
        self.nodes.get(node).cloned().unwrap_or_default()
    }

    fn is_alive(&self, name: &str) -> bool {
        self.alive.contains(&name)
    }

    fn is_taken(&self, address: IpAddr, _: &str) -> bool {
        self.taken.contains(&address)
    }

    fn longest(&self) -> Duration {
        LIFETIME
    }

    fn is_server(&self, address: IpAddr) -> bool {
        self.servers.contains(&address)
    }

    fn is_server_name(&self, name: &str) -> bool {
        self.server_names.contains(&name)
    }
}

/// `spec.request` with this subject and these alternative names.
fn request(common_name: &str, organization: &str, names: &[&str]) -> String {
    let mut params = CertificateParams::default();
    for name in names {
        let name = match name.parse() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) if name.contains('@') => {
                SanType::Rfc822Name((*name).try_into().expect("a mail address"))
            }
            Err(_) => SanType::DnsName((*name).try_into().expect("a name")),
        };
        params.subject_alt_names.push(name);
    }
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, organization);
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    let key = KeyPair::generate().expect("a key");
    let request = params.serialize_request(&key).expect("a request");
    STANDARD.encode(request.pem().expect("PEM"))
}

fn csr(signer: &str, usages: &str, by: (&str, &[&str]), request: &str) -> Object {
    let usages: Vec<&str> = usages.split(',').collect();
    let value = json!({
        "metadata": {"name": "c"},
        "spec": {"signerName": signer, "usages": usages, "request": request,
            "username": by.0, "groups": by.1, "expirationSeconds": 700},
    });
    Object::new(value).expect("an object")
}

const CLIENT: &str = "digital signature,client auth";
const SERVER: &str = "digital signature,key encipherment,server auth";
const BOOTSTRAP: (&str, &[&str]) = ("system:bootstrap:abcdef", &["system:bootstrappers"]);
const N1: (&str, &[&str]) = ("system:node:n1", &["system:nodes", "system:authenticated"]);
const BOB: (&str, &[&str]) = ("bob", &["system:authenticated"]);

fn approved(csr: &Object) -> Object {
    let mut csr = csr.clone();
    csr.set(
        &["status", "conditions"],
        json!([{"type": "Approved", "status": "True"}]),
    );
    csr
}

#[test]
fn a_client_certificate_is_approved_for_bootstrappers_and_for_the_node_itself() {
    let world = World::default();
    let n1 = request("system:node:n1", "system:nodes", &[]);
    for (by, request, expect) in [
        (BOOTSTRAP, &n1, true),
        (N1, &n1, true),
        (BOB, &n1, false),
        // A node gets nobody else's certificate.
        (N1, &request("system:node:n2", "system:nodes", &[]), false),
        (
            BOOTSTRAP,
            &request("system:node:n1", "system:masters", &[]),
            false,
        ),
        (BOOTSTRAP, &request("bob", "system:nodes", &[]), false),
        (
            BOOTSTRAP,
            &request("system:node:n1", "system:nodes", &["n1"]),
            false,
        ),
        (
            BOOTSTRAP,
            &request("system:node:kubernetes.default.svc", "system:nodes", &[]),
            false,
        ),
        (
            BOOTSTRAP,
            &request("system:node:n1/../n2", "system:nodes", &[]),
            false,
        ),
    ] {
        let action = decide(&csr(NODE_CLIENT, CLIENT, by, request), &world);
        assert_eq!(
            matches!(action, Action::Approve(_)),
            expect,
            "{by:?} {action:?}"
        );
    }
    let named = World {
        server_names: vec!["n1"],
        ..World::default()
    };
    let action = decide(&csr(NODE_CLIENT, CLIENT, BOOTSTRAP, &n1), &named);
    assert_eq!(action, Action::Leave, "a server has that name");
    let action = decide(&csr(NODE_CLIENT, SERVER, BOOTSTRAP, &n1), &world);
    assert_eq!(action, Action::Leave, "for other usages");
    let action = decide(&csr(API_CLIENT, CLIENT, BOOTSTRAP, &n1), &world);
    assert_eq!(action, Action::Leave, "of another signer");
    let action = decide(&csr("example.com/own", CLIENT, BOOTSTRAP, &n1), &world);
    assert_eq!(action, Action::Leave, "of somebody else's signer");
}

#[test]
fn a_bootstrap_token_waits_while_a_node_of_the_name_is_alive() {
    let mut world = World {
        alive: vec!["n1"],
        ..World::default()
    };
    let ask = |name: &str, by, world: &World| {
        let request = request(&format!("system:node:{name}"), "system:nodes", &[]);
        decide(&csr(NODE_CLIENT, CLIENT, by, &request), world)
    };
    assert_eq!(ask("n1", BOOTSTRAP, &world), Action::Wait);
    assert!(matches!(ask("n2", BOOTSTRAP, &world), Action::Approve(_)));
    assert!(
        matches!(ask("n1", N1, &world), Action::Approve(_)),
        "a node renews its own"
    );
    let installer: (&str, &[&str]) = ("installer", &["system:bootstrappers"]);
    assert!(
        matches!(ask("n1", installer, &world), Action::Approve(_)),
        "a person whom RBAC lets"
    );
    world.alive.clear();
    assert!(
        matches!(ask("n1", BOOTSTRAP, &world), Action::Approve(_)),
        "its machine lost its data and joins again"
    );
}

#[test]
fn a_serving_certificate_is_approved_for_the_nodes_own_name_and_addresses() {
    let address = IpAddr::from([192, 0, 2, 1]);
    let known = World {
        nodes: [("n1", vec![address])].into(),
        ..World::default()
    };
    let taken = World {
        nodes: known.nodes.clone(),
        taken: vec![address],
        ..World::default()
    };
    let ask = |names: &[&str], by, world: &World| {
        let request = request("system:node:n1", "system:nodes", names);
        matches!(
            decide(&csr(NODE_SERVING, SERVER, by, &request), world),
            Action::Approve(_)
        )
    };
    assert!(
        ask(&["n1"], N1, &World::default()),
        "before it has a Node object"
    );
    assert!(!ask(&["n1", "192.0.2.1"], N1, &World::default()));
    assert!(ask(&["n1", "192.0.2.1"], N1, &known));
    assert!(
        !ask(&["n1", "api.example.com"], N1, &known),
        "whatever names it gives itself"
    );
    assert!(!ask(&["n1", "192.0.2.2"], N1, &known), "not its address");
    assert!(!ask(&["n2"], N1, &known), "not its name");
    assert!(!ask(&["n1", "kubernetes.default.svc"], N1, &known));
    assert!(!ask(&["n1", "192.0.2.1"], N1, &taken), "another's address");
    assert!(!ask(&["n1"], BOOTSTRAP, &known), "only the node itself");
    assert!(!ask(&["n1", "a@example.com"], N1, &known));
    let server = World {
        nodes: known.nodes.clone(),
        servers: vec![address],
        ..World::default()
    };
    assert!(
        !ask(&["n1", "192.0.2.1"], N1, &server),
        "an API server is there"
    );
    let request = request("system:node:n1", "system:nodes", &["n1", "192.0.2.1"]);
    let mut from_there = csr(NODE_SERVING, SERVER, N1, &request);
    for (from, expect) in [("192.0.2.1", true), ("192.0.2.2", false)] {
        from_there.set(&["spec", "extra", REMOTE_ADDRESS], json!([from]));
        let action = decide(&from_there, &server);
        assert_eq!(matches!(action, Action::Approve(_)), expect, "from {from}");
    }
    let named = World {
        server_names: vec!["n1"],
        ..World::default()
    };
    assert!(!ask(&["n1"], N1, &named), "a server has that name");
}

#[test]
fn what_is_approved_is_signed_if_the_signer_may() {
    let world = World::default();
    let n1 = request("system:node:n1", "system:nodes", &[]);
    let sign = |csr: &Object| decide(csr, &world);
    let Action::Sign {
        usages, lifetime, ..
    } = sign(&approved(&csr(NODE_CLIENT, CLIENT, BOB, &n1)))
    else {
        panic!("not signed");
    };
    assert_eq!(usages, ["digital signature", "client auth"]);
    assert_eq!(lifetime, Duration::from_secs(700));
    let bob = request("bob", "dev", &[]);
    for (signer, usages, request, expect) in [
        (API_CLIENT, CLIENT, &bob, None),
        (
            API_CLIENT,
            SERVER,
            &bob,
            Some("usages did not match [digital signature, key encipherment, client auth]"),
        ),
        (
            NODE_CLIENT,
            CLIENT,
            &bob,
            Some("subject organization is not system:nodes"),
        ),
        (
            NODE_SERVING,
            SERVER,
            &n1,
            Some("DNS or IP subjectAltName is required"),
        ),
        (LEGACY, SERVER, &bob, None),
    ] {
        match (sign(&approved(&csr(signer, usages, BOB, request))), expect) {
            (Action::Sign { .. }, None) => {}
            (Action::Fail(why), Some(expect)) => assert_eq!(why, expect),
            (action, _) => panic!("{signer} {usages}: {action:?}"),
        }
    }
    let mut denied = approved(&csr(API_CLIENT, CLIENT, BOB, &bob));
    denied.set(
        &["status", "conditions"],
        json!([{"type": "Denied", "status": "True"}]),
    );
    assert_eq!(sign(&denied), Action::Leave);
    let mut done = approved(&csr(API_CLIENT, CLIENT, BOB, &bob));
    done.set(&["status", "certificate"], json!("x"));
    assert_eq!(sign(&done), Action::Leave);
    let broken = approved(&csr(API_CLIENT, CLIENT, BOB, "eA=="));
    assert!(matches!(sign(&broken), Action::Fail(_)));
}

#[test]
fn lives_are_bounded_on_both_sides() {
    for (asked, expect) in [
        (None, LIFETIME),
        (Some(1), SHORTEST),
        (Some(3_600), Duration::from_secs(3_600)),
        (Some(i64::MAX), LIFETIME),
        (Some(-5), LIFETIME),
    ] {
        assert_eq!(lifetime(asked, LIFETIME), expect, "{asked:?}");
    }
    let brief = Duration::from_secs(40);
    for asked in [None, Some(1), Some(3_600)] {
        assert_eq!(
            lifetime(asked, brief),
            brief,
            "as the cluster says: {asked:?}"
        );
    }
}
