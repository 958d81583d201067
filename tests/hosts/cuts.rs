//! Links that are cut and heal: one after the other, for longer than a lease, and between a host and the servers alone.

use std::time::Duration;

use crate::cluster::{Cluster, SERVERS, address};
use crate::lab::{Lab, wait_for};
use crate::load::{AVOIDED, Load, get};
use crate::web::{self, on};

#[test]
fn links_are_cut_and_heal() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    web::deploy(&cluster);
    briefly_one_after_the_other(&cluster.lab);
    longer_than_a_lease(&cluster);
    web::roll(&cluster.lab, 2);
    cluster.wait_pods("app=web", 6);
    from_the_servers_alone(&cluster);
}

/// What a host has said about another one's reachability, so often.
fn said(lab: &Lab, host: &str, of: &str, reachable: bool) -> usize {
    let line = format!("Node's reachability changed node={of} reachable={reachable}");
    lab.log(host).matches(&line).count()
}

fn briefly_one_after_the_other(lab: &Lab) {
    let load = Load::start(lab, &web::at(&["h3"]));
    let mut cuts: Vec<Duration> = Vec::new();
    for host in ["h1", "h2", "h1", "h2"] {
        for plugged in [false, true] {
            let before = said(lab, "h3", host, plugged);
            if !plugged {
                cuts.push(load.now());
            }
            lab.cable(host, plugged);
            wait_for(&format!("h3 to see {host} reachable: {plugged}"), || {
                (said(lab, "h3", host, plugged) > before).then_some(())
            });
        }
    }
    let report = load.stop();
    report.assert_bounded("a cable cut for a moment", &cuts);
}

fn longer_than_a_lease(cluster: &Cluster) {
    let lab = &cluster.lab;
    let load = Load::start(lab, &web::at(&["h1", "h3"]));
    let cut = load.now();
    lab.cable("h2", false);
    cluster.wait_lost("h2");
    let report = load.stop();
    report.print("a link cut", cut);
    if let Some(last) = report.last_failure_after(cut) {
        assert!(
            last < AVOIDED,
            "traffic avoids a host that cannot be reached; last failure sent after {last:?}"
        );
    }
    lab.cable("h2", true);
    healed(cluster);
}

/// Nodes that reach it go on with it, and it with them.
fn from_the_servers_alone(cluster: &Cluster) {
    let lab = &cluster.lab;
    let before = cluster.pods("app=web");
    assert!(on(&before, "h2") > 0, "{before:?}");
    let load = Load::start(lab, &web::at(&["h1", "h2", "h3"]));
    let servers = |lost: bool| {
        for (_, number) in SERVERS {
            lab.lose("h2", &address(number, 0).ip().to_string(), lost);
        }
    };
    servers(true);
    cluster.wait_lost("h2");
    wait_for("replacements elsewhere", || {
        let pods = cluster.pods("app=web");
        (pods.len() == 6 && on(&pods, "h2") == 0).then_some(())
    });
    servers(false);
    healed(cluster);
    let report = load.stop();
    println!(
        "a host cut off from the servers: {} requests, {} failed",
        report.samples.len(),
        report.failures().count()
    );
    report.assert_none_failed("a host that the servers cannot hear");
}

fn healed(cluster: &Cluster) {
    let lab = &cluster.lab;
    cluster.wait_ready(&["h2"]);
    wait_for("as many pods as wanted, none twice", || {
        let list = lab.get(&["pods", "-l", "app=web"])?;
        (list["items"].as_array()?.len() == 6 && cluster.pods("app=web").len() == 6).then_some(())
    });
    web::no_address_twice(lab);
    lab.inside("hub", || {
        wait_for("an answer through the host that was cut off", || {
            get(address(12, web::PORT), "/").ok()
        })
    });
}
