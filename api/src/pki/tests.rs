//! What the authority promises: files that are used again, leaves that are renewed in time.

use super::*;
use crate::auth::User;

fn at(second: i64) -> jiff::Timestamp {
    jiff::Timestamp::from_second(second).expect("a time")
}

const NOW: i64 = 1_800_000_000;

#[test]
fn files_are_private_and_used_again() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().expect("a directory");
    let first = Pki::open(Some(directory.path()), at(NOW)).expect("made");
    let admin = first.admin().expect("made");
    let second = Pki::open(Some(directory.path()), at(NOW + 60)).expect("read");
    assert_eq!(second.ca_pem(), first.ca_pem());
    assert_eq!(second.admin().expect("read").key_pem, admin.key_pem);
    assert_eq!(second.service_account_key(), first.service_account_key());
    let key = directory.path().join("pki/admin.key");
    let mode = std::fs::metadata(key).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_leaf_is_issued_anew_when_it_expires_or_lacks_an_address() {
    let directory = tempfile::tempdir().expect("a directory");
    let service = IpAddr::from([10, 96, 0, 1]);
    let open = |now| Pki::open(Some(directory.path()), at(now)).expect("opens");
    let serve = |now, addresses: &[IpAddr]| {
        let identity = open(now).api_server(service, addresses, &[]);
        identity.expect("made").key_pem
    };
    let first = serve(NOW, &[]);
    assert_eq!(serve(NOW, &[]), first, "nothing changed");
    let wider = serve(NOW, &[IpAddr::from([192, 0, 2, 7])]);
    assert_ne!(wider, first, "a new address");
    let later = serve(NOW + 340 * 86_400, &[IpAddr::from([192, 0, 2, 7])]);
    assert_ne!(later, wider, "25 days left");
    let third = serve(NOW + (340 + 250) * 86_400, &[IpAddr::from([192, 0, 2, 7])]);
    assert_ne!(third, later, "less than a third of its life left");
}

#[test]
fn a_leaf_of_another_authority_is_issued_anew() {
    let directory = tempfile::tempdir().expect("a directory");
    let open = || Pki::open(Some(directory.path()), at(NOW)).expect("opens");
    let first = open().admin().expect("made");
    for file in ["pki/ca.crt", "pki/ca.key"] {
        std::fs::remove_file(directory.path().join(file)).expect("was there");
    }
    let second = open().admin().expect("made");
    assert_ne!(second.key_pem, first.key_pem, "the authority is a new one");
    assert_eq!(open().admin().expect("read").key_pem, second.key_pem);
}

#[test]
fn the_admin_certificate_names_a_master() {
    let pki = Pki::open(None, at(NOW)).expect("made");
    let (chain, _) = pki.admin().expect("made").der().expect("PEM");
    let user = User::from_certificate(&chain[0]).expect("names somebody");
    assert_eq!(user.name, "kubernetes-admin");
    assert_eq!(user.groups, ["system:masters", "system:authenticated"]);
    let node = pki.node("n1", &[IpAddr::from([127, 0, 0, 1])]);
    let (chain, _) = node.expect("made").der().expect("PEM");
    let user = User::from_certificate(&chain[0]).expect("names somebody");
    assert_eq!(user.name, "system:node:n1");
    let serving = pki.api_server(IpAddr::from([10, 96, 0, 1]), &[], &[]);
    let serving = pki.chain(&serving.expect("made"));
    assert_eq!(serving.der().expect("PEM").0.len(), 2, "leaf and authority");
    let shown = Shown::new(&serving).expect("usable");
    pki.server_config(Arc::clone(&shown)).expect("a server");
    let client = pki.kubelet_client().expect("made");
    shown.replace(&client).expect("usable");
    pki.client_config(shown).expect("a client");
}
