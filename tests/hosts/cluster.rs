//! The cluster the tests run on: two API servers on one Postgres, three nodes that joined with a token, and where a test
//! wants it a fourth that nobody can dial.

use std::net::SocketAddr;

use serde_json::Value;

use crate::lab::{HUB, Lab, wait_for};
use crate::load;
use crate::postgres::Postgres;

pub(crate) const NODES: [(&str, u8); 3] = [("h1", 11), ("h2", 12), ("h3", 13)];
pub(crate) const SERVERS: [(&str, u8); 2] = [("s1", 21), ("s2", 22)];

pub(crate) struct Cluster {
    pub(crate) lab: Lab,
    token: String,
    store: String,
    setup: Setup,
    _database: Postgres,
}

/// What differs from test to test.
#[derive(Clone, Copy, Default)]
pub(crate) struct Setup {
    /// More flags of every server.
    pub(crate) server: &'static [&'static str],
    /// There is a node behind a NAT.
    pub(crate) edge: bool,
    /// Nodes may be silent for as long as by default.
    pub(crate) patient: bool,
}

pub(crate) const EDGE: &str = "e1";
pub(crate) const EDGE_ADDRESS: &str = "198.51.100.7";
const API_PORT: u16 = 6443;
const TUNNEL_PORT: u16 = 15008;

pub(crate) fn address(number: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, number], port))
}

// === impl Cluster ===

impl Cluster {
    /// Everything runs and all nodes are Ready; `None` where this machine cannot.
    pub(crate) fn start() -> Option<Self> {
        Self::start_as(Setup::default())
    }

    pub(crate) fn start_as(setup: Setup) -> Option<Self> {
        let mut lab = Lab::new()?;
        let database = Postgres::start(&lab)?;
        for (host, number) in SERVERS.iter().chain(&NODES) {
            lab.host(host, *number);
        }
        if setup.edge {
            let servers = SERVERS.iter().map(|(_, n)| address(*n, API_PORT));
            let nodes = NODES.iter().map(|(_, n)| address(*n, TUNNEL_PORT));
            let all: Vec<SocketAddr> = servers.chain(nodes).collect();
            lab.hidden_host(EDGE, EDGE_ADDRESS, &all);
        }
        let store = database.url(HUB);
        let mut cluster = Self {
            lab,
            token: String::new(),
            store,
            setup,
            _database: database,
        };
        for (host, number) in SERVERS {
            cluster.start_server(host, number);
        }
        cluster.talk_to("s1");
        cluster.token = cluster
            .lab
            .coracle_output("s1", "token", &["create"])
            .trim()
            .to_owned();
        for (host, number) in NODES {
            cluster.start_node(host, number);
        }
        if setup.edge {
            // Only what asks for it runs there.
            let taint = ["--register-with-taints", "edge=true:NoSchedule"];
            cluster.join(EDGE, EDGE_ADDRESS, &[&["--relay"], &taint[..]].concat());
            cluster.wait_ready(&[EDGE]);
        }
        cluster.wait_ready(&["h1", "h2", "h3"]);
        Some(cluster)
    }

    pub(crate) fn start_server(&mut self, host: &str, number: u8) {
        let listen = address(number, API_PORT).to_string();
        let store = self.store.clone();
        let mut args = vec!["--listen", &listen, "--store", &store];
        // A lost node is noticed sooner than after the usual 40 s; nodes say every 10 s that they are there.
        if !self.setup.patient {
            args.extend(["--node-monitor-grace-period", "16s"]);
        }
        args.extend(self.setup.server);
        self.lab.start(host, "server", &args);
        let lab = &self.lab;
        wait_for(&format!("{host} to serve"), || {
            lab.path(host).join("kubeconfig").exists().then_some(())?;
            lab.use_kubeconfig(lab.path(host).join("kubeconfig"));
            let output = lab.try_kubectl(&["get", "--raw", "/readyz"]);
            output.status.success().then_some(())
        });
    }

    pub(crate) fn start_node(&mut self, host: &str, number: u8) {
        let ip = address(number, 0).ip().to_string();
        self.join(host, &ip, &[]);
    }

    fn join(&mut self, host: &str, ip: &str, more: &[&str]) {
        let token = self.token.clone();
        let mut args = vec!["--node-name", host, "--node-ip", ip, "--token", &token];
        args.extend(more);
        for server in ["https://192.0.2.21:6443", "https://192.0.2.22:6443"] {
            args.extend(["--server", server]);
        }
        self.lab.start(host, "node", &args);
    }

    /// kubectl uses that server from now on.
    pub(crate) fn talk_to(&self, server: &str) {
        self.lab
            .use_kubeconfig(self.lab.path(server).join("kubeconfig"));
    }

    pub(crate) fn wait_ready(&self, nodes: &[&str]) {
        for node in nodes {
            self.lab.wait(
                &format!("node {node} to be ready"),
                &["node", node],
                |node| ready(node).then_some(()),
            );
        }
    }

    /// Waits until a controller has noticed that the node is silent.
    pub(crate) fn wait_lost(&self, node: &str) {
        let what = format!("{node} to be NotReady");
        let lost = |node: &Value| (!ready(node)).then_some(());
        self.lab.wait(&what, &["node", node], lost);
    }

    /// Asks every host's port from outside until it answers 200 for `path`.
    pub(crate) fn answers_everywhere(&self, port: u16, path: &str) {
        self.lab.inside("hub", || {
            for (node, number) in NODES {
                wait_for(&format!("an answer through {node}"), || {
                    load::get(address(number, port), path).ok()
                });
            }
        });
    }

    /// (pod, node) of every running, ready pod with this label that is not going away.
    pub(crate) fn pods(&self, selector: &str) -> Vec<(String, String)> {
        let list = self.lab.get(&["pods", "-l", selector]);
        let list = list.unwrap_or_default();
        let items = list["items"].as_array().cloned().unwrap_or_default();
        items
            .iter()
            .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null() && ready(pod))
            .map(|pod| {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                (
                    text(&pod["metadata"]["name"]),
                    text(&pod["spec"]["nodeName"]),
                )
            })
            .collect()
    }

    /// Waits until `count` pods are ready, and returns where they are.
    pub(crate) fn wait_pods(&self, selector: &str, count: usize) -> Vec<(String, String)> {
        wait_for(&format!("{count} ready pods of {selector}"), || {
            let pods = self.pods(selector);
            (pods.len() == count).then_some(pods)
        })
    }
}

/// Has the condition `Ready`.
fn ready(object: &Value) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions.is_some_and(|conditions| {
        conditions
            .iter()
            .any(|c| c["type"] == "Ready" && c["status"] == "True")
    })
}
