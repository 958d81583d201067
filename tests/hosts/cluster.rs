//! The cluster the tests run on: two API servers on one Postgres, three nodes that joined with a token.

use std::net::SocketAddr;

use serde_json::Value;

use crate::lab::{HUB, Lab, wait_for};
use crate::postgres::Postgres;

pub(crate) const NODES: [(&str, u8); 3] = [("h1", 11), ("h2", 12), ("h3", 13)];
pub(crate) const SERVERS: [(&str, u8); 2] = [("s1", 21), ("s2", 22)];

pub(crate) struct Cluster {
    pub(crate) lab: Lab,
    token: String,
    store: String,
    _database: Postgres,
}

pub(crate) fn address(number: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, number], port))
}

// === impl Cluster ===

impl Cluster {
    /// Everything runs and all nodes are Ready; `None` where this machine cannot.
    pub(crate) fn start() -> Option<Self> {
        let mut lab = Lab::new()?;
        let database = Postgres::start(&lab)?;
        for (host, number) in SERVERS.iter().chain(&NODES) {
            lab.host(host, *number);
        }
        let store = database.url(HUB);
        let mut cluster = Self {
            lab,
            token: String::new(),
            store,
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
        cluster.wait_ready(&["h1", "h2", "h3"]);
        Some(cluster)
    }

    pub(crate) fn start_server(&mut self, host: &str, number: u8) {
        let listen = address(number, 6443).to_string();
        let store = self.store.clone();
        self.lab.start(
            host,
            "server",
            &[
                "--listen",
                &listen,
                "--store",
                &store,
                // A lost node is noticed sooner than after the usual 40 s; nodes say every 10 s that they are there.
                "--node-monitor-grace-period",
                "16s",
            ],
        );
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
        let token = self.token.clone();
        let mut args = vec!["--node-name", host, "--node-ip", &ip, "--token", &token];
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
