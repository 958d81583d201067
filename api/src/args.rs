//! Flags of the API server. Knows what is asked for, not how it is done.

use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::Ipv4Net;

use crate::server::Config;

/// What `server` and `up` take for the API.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    /// Where everything is kept: the database, certificates, the admin kubeconfig
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Address of the API; port 0 picks a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:6443")]
    pub listen: SocketAddr,
    /// The admin kubeconfig, written with mode 0600 [default: in the data directory]
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Range of Services' cluster IPs
    #[arg(long, value_name = "CIDR", default_value = "10.96.0.0/16")]
    pub service_cidr: Ipv4Net,
    /// Another name or address that clients reach the API by (repeatable)
    #[arg(long = "tls-san", value_name = "NAME")]
    pub names: Vec<String>,
}

// === impl Args ===

impl Args {
    /// `data_dir` is what `--data-dir` defaults to.
    pub fn into_config(self, data_dir: PathBuf) -> Config {
        let data_dir = self.data_dir.unwrap_or(data_dir);
        Config {
            listen: self.listen,
            kubeconfig: self
                .kubeconfig
                .unwrap_or_else(|| data_dir.join("kubeconfig")),
            service_cidr: self.service_cidr,
            names: self.names,
            ..Config::at(data_dir)
        }
    }
}
