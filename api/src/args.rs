//! Flags of the API server. Knows what is asked for, not how it is done.

use std::ffi::OsStr;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::TypedValueParser;
use clap::error::ErrorKind;
use ipnet::Ipv4Net;

use crate::admission::TolerationSeconds;
use crate::server::Config;
use crate::store::{NotAPlace, Place};

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
    #[arg(long, value_name = "URL", value_parser = StoreParser)]
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
    /// Serve Ingresses of this class too, such as nginx (repeatable): an IngressClass of that name is made, as ours
    #[arg(long = "ingress-class", value_name = "NAME")]
    pub ingress_classes: Vec<String>,
    /// How many seconds pods stay on a node that is not ready, if they do not say so themselves
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(i64).range(0..))]
    pub default_not_ready_toleration_seconds: i64,
    /// The same for a node that nothing is heard of
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(i64).range(0..))]
    pub default_unreachable_toleration_seconds: i64,
    /// The longest that certificates live which are signed for nodes and clients
    #[arg(long, value_name = "TIME", default_value = "8760h", value_parser = lifetime)]
    pub cluster_signing_duration: Duration,
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
            ingress_classes: self.ingress_classes,
            tolerations: TolerationSeconds {
                not_ready: self.default_not_ready_toleration_seconds,
                unreachable: self.default_unreachable_toleration_seconds,
            },
            cluster_signing_duration: self.cluster_signing_duration,
            ..Config::at(data_dir)
        }
    }
}

/// A parser whose errors do not show what was typed: there may be a password in it.
#[derive(Clone)]
struct StoreParser;

impl TypedValueParser for StoreParser {
    type Value = Place;

    fn parse_ref(
        &self,
        command: &clap::Command,
        _: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<Place, clap::Error> {
        let text = value.to_str().unwrap_or_default();
        text.parse().map_err(|error: NotAPlace| {
            let message = format!("invalid value for '--store <URL>': {error}\n");
            clap::Error::raw(ErrorKind::ValueValidation, message).with_cmd(command)
        })
    }
}

/// At least a second.
fn lifetime(text: &str) -> Result<Duration, String> {
    let span = types::duration::parse(text).map_err(|wrong| wrong.to_string())?;
    if span < Duration::from_secs(1) {
        return Err("it is less than a second".to_owned());
    }
    Ok(span)
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

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Program {
        #[command(flatten)]
        args: Args,
    }

    fn parse(args: &[&str]) -> Result<Config, String> {
        let args = std::iter::once("coracle").chain(args.iter().copied());
        let program = Program::try_parse_from(args).map_err(|error| error.to_string())?;
        Ok(program.args.into_config("/d".into()))
    }

    #[test]
    fn flags_become_a_configuration() {
        let config = parse(&[]).expect("defaults");
        assert!(matches!(config.store, Place::DataDirectory));
        assert_eq!(config.tolerations, TolerationSeconds::default());
        let config = parse(&[
            "--store=postgres://ann:hush@db/prod",
            "--advertise-address=192.0.2.7",
            "--encryption-key-file=/k",
            "--default-not-ready-toleration-seconds=30",
            "--default-unreachable-toleration-seconds=0",
        ]);
        let config = config.expect("flags");
        assert_eq!(config.store.to_string(), "postgres://ann@db:5432/prod");
        assert_eq!(config.advertise, Some(([192, 0, 2, 7], 0).into()));
        assert_eq!(config.encryption_keys, Some("/k".into()));
        let seconds = (config.tolerations.not_ready, config.tolerations.unreachable);
        assert_eq!(seconds, (30, 0));
        assert!(!format!("{config:?}").contains("hush"));
        for (text, seconds) in [
            ("8760h", Some(365 * 86_400)),
            ("40s", Some(40)),
            ("1h30m", Some(5_400)),
            ("0s", None),
            ("1d", None),
        ] {
            let parsed = lifetime(text).ok().map(|span| span.as_secs());
            assert_eq!(parsed, seconds, "{text}");
        }
    }

    #[test]
    fn a_flag_that_cannot_be_is_refused_without_showing_a_password() {
        let error = parse(&["--store=mysql://ann:hush@db"]).expect_err("no such store");
        assert!(
            error.contains("--store") && !error.contains("hush"),
            "{error}"
        );
        parse(&["--advertise-address=0.0.0.0"]).expect_err("nobody is there");
    }
}
