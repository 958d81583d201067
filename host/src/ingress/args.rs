//! Flags of the Ingress engine. Parses; starts nothing.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::{Config, Limits};

/// Part of a node's flags.
#[derive(clap::Args, Clone, Debug, Default)]
#[group(skip)]
pub struct Args {
    /// Where Ingresses and Gateways answer on port 80 [default: port 80 of --service-address]
    #[arg(long, value_name = "ADDR")]
    pub ingress_http: Option<SocketAddr>,

    /// Where Ingresses and Gateways answer on port 443 [default: port 443 of --service-address]
    #[arg(long, value_name = "ADDR")]
    pub ingress_https: Option<SocketAddr>,

    /// A proxy in front of Ingresses whose X-Forwarded headers are believed. May be repeated.
    #[arg(long = "ingress-trusted-proxy", value_name = "CIDR")]
    pub ingress_trusted: Vec<IpNet>,

    /// Largest body of a request through an Ingress, in bytes; 0 is without bound
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().body)]
    pub ingress_body_limit: u64,
}

// === impl Args ===

impl Args {
    pub fn config(&self, service_address: IpAddr) -> Config {
        let usual = Config::at(service_address);
        Config {
            http: self.ingress_http.unwrap_or(usual.http),
            https: self.ingress_https.unwrap_or(usual.https),
            trusted: self.ingress_trusted.clone(),
            limits: Limits {
                body: self.ingress_body_limit,
                ..Limits::default()
            },
        }
    }
}
