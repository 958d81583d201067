//! What a node says of its Ingress and Gateway listeners in its Node object: written by nodes, read by the controller.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// The value of the annotation `coracle.dev/ingress`, as JSON.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub listeners: Vec<Listening>,
}

/// One port.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Listening {
    /// As objects ask for it: 80 for Ingresses.
    pub port: u16,
    pub tls: bool,
    /// Where it really listens, as clients reach it; nothing when it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<SocketAddr>,
    /// Why it is not the port that was asked for: `port 80 is not permitted on 127.0.0.1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

// === impl Report ===

impl Report {
    pub fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    pub fn port(&self, port: u16) -> Option<&Listening> {
        self.listeners.iter().find(|l| l.port == port)
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = serde_json::to_string(self).map_err(|_| std::fmt::Error)?;
        f.write_str(&text)
    }
}
