//! Flags of the API server. Knows what is asked for, not how it is done.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnet::Ipv4Net;

use crate::server::Config;
use crate::store::Place;

/// What `server` and `up` take for the API.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    /// Where everything is kept: the database, certificates, the admin kubeconfig
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where objects are kept: sqlite:PATH, or postgres://USER@HOST:PORT/DATABASE?sslmode=verify-full&sslrootcert=FILE
    /// for several servers at once; its password may come from PGPASSWORD or a password file [default: SQLite in the
    /// data directory]
    #[arg(long, value_name = "URL", value_parser = place, hide_default_value = true)]
    pub store: Option<Place>,
    /// Keys that Secrets are sealed with at rest: a private file with the base64 of 32 random bytes on each line; the
    /// first one seals, all of them open
    #[arg(long, value_name = "FILE")]
    pub encryption_key_file: Option<PathBuf>,
    /// Address, or address and port, at which nodes, pods and other servers reach this one [default: the address it
    /// listens on, or that of the default route]
    #[arg(long, value_name = "ADDR", value_parser = advertised)]
    pub advertise_address: Option<SocketAddr>,
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
            store: self.store.unwrap_or_default(),
            encryption_keys: self.encryption_key_file,
            advertise: self.advertise_address,
            ..Config::at(data_dir)
        }
    }
}

/// Like the type's own, but for errors that show what was typed: there may be a password in it.
fn place(text: &str) -> Result<Place, String> {
    text.parse()
        .map_err(|error: crate::store::NotAPlace| error.to_string())
}

/// Port 0: the one that the server listens on.
fn advertised(text: &str) -> Result<SocketAddr, String> {
    let address = match text.parse::<IpAddr>() {
        Ok(ip) => SocketAddr::new(ip, 0),
        Err(_) => text
            .parse()
            .map_err(|_| "it must be an IP address, or an IP address and a port".to_owned())?,
    };
    if address.ip().is_unspecified() {
        return Err("nobody can reach a server there".to_owned());
    }
    Ok(address)
}
