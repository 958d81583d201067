//! Flags of a node, for whoever runs one. Parses; starts nothing.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ipnet::Ipv4Net;

use crate::dns::args::DnsArgs;
use crate::ingress;
use crate::network::observe;
use crate::start::Config;

/// `coracle up` and `coracle node` take these.
#[derive(clap::Args, Clone, Debug)]
#[group(skip)]
pub struct Args {
    /// Name of this node [default: the machine's host name]
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,

    /// Where NodePort and LoadBalancer Services listen
    #[arg(long, value_name = "ADDR", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub service_address: IpAddr,

    /// Run another image under this name: NAME[:TAG], or PREFIX/* for all below; to an image, a file or a directory.
    /// May be repeated.
    #[arg(long = "mirror", value_name = "FROM=TO")]
    pub mirrors: Vec<MirrorFlag>,

    /// File with one FROM=TO per line; # begins a comment
    #[arg(long, value_name = "FILE")]
    pub mirror_file: Option<PathBuf>,

    /// Most pods this node takes
    #[arg(long, value_name = "N", default_value_t = 5_000)]
    pub max_pods: u32,

    /// Addresses of this node's pods [default: `up` takes 100.64.0.0/18, a joining node what the cluster gives it]
    #[arg(long, value_name = "CIDR")]
    pub pod_cidr: Option<Ipv4Net>,

    /// Addresses of all pods of the cluster
    #[arg(long, value_name = "CIDR", default_value = "100.64.0.0/10")]
    pub cluster_cidr: Ipv4Net,

    #[command(flatten)]
    pub dns: DnsArgs,

    #[command(flatten)]
    pub ingress: ingress::Args,

    /// Send spans of requests between pods to this OTLP collector (HTTP), such as http://192.0.2.5:4318
    #[arg(long, value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,

    /// Of the traces that begin on this node, how many are kept, 0 to 1; of others, what their beginning decided
    #[arg(long, value_name = "RATIO", default_value_t = 1.0, value_parser = ratio)]
    pub trace_ratio: f64,

    /// Write a line of JSON for every request between pods to this file; - is standard output
    #[arg(long, value_name = "FILE")]
    pub access_log: Option<PathBuf>,
}

fn ratio(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
        _ => Err("wanted a number from 0 to 1".to_owned()),
    }
}

/// `gcr.io/samples/hello:v1=ghcr.io/me/hello:1`
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MirrorFlag {
    pub from: String,
    pub to: String,
}

#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    #[error("{0:?} is not FROM=TO")]
    Format(String),
    #[error("mirror file {path} cannot be read")]
    File {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("mirror file {path}, line {line}: {text:?} is not FROM=TO")]
    Line {
        path: PathBuf,
        line: usize,
        text: String,
    },
}

impl FromStr for MirrorFlag {
    type Err = MirrorError;

    fn from_str(text: &str) -> Result<MirrorFlag, MirrorError> {
        match text.split_once('=') {
            Some((from, to)) if !from.trim().is_empty() && !to.trim().is_empty() => {
                Ok(MirrorFlag {
                    from: from.trim().to_owned(),
                    to: to.trim().to_owned(),
                })
            }
            _ => Err(MirrorError::Format(text.to_owned())),
        }
    }
}

impl Args {
    /// `config` with what the flags say; a podCIDR it has already stays unless a flag names another.
    pub fn apply(
        &self,
        config: Config,
        mirrors: Vec<(String, String)>,
        service_cidr: Ipv4Net,
    ) -> Config {
        Config {
            service_address: self.service_address,
            mirrors,
            max_pods: self.max_pods,
            pod_cidr: self.pod_cidr.or(config.pod_cidr),
            cluster_cidr: self.cluster_cidr,
            service_cidr,
            dns: self.dns.config(service_cidr),
            observe: self.observe(),
            ingress: self.ingress.config(self.service_address),
            ..config
        }
    }

    /// What is told of requests, beside metrics.
    fn observe(&self) -> observe::Config {
        observe::Config {
            otlp_endpoint: self.otlp_endpoint.clone(),
            trace_ratio: self.trace_ratio,
            access_log: self.access_log.clone(),
        }
    }

    /// The mirror map: flags, then the file, then `defaults`; the first entry for a name counts.
    pub fn mirrors(
        &self,
        defaults: &[(String, String)],
    ) -> Result<Vec<(String, String)>, MirrorError> {
        let mut entries: Vec<(String, String)> = self
            .mirrors
            .iter()
            .map(|flag| (flag.from.clone(), flag.to.clone()))
            .collect();
        if let Some(path) = &self.mirror_file {
            entries.extend(read(path)?);
        }
        entries.extend(defaults.iter().cloned());
        let mut seen = std::collections::HashSet::new();
        entries.retain(|(from, _)| seen.insert(from.clone()));
        Ok(entries)
    }

    /// The flag, or the machine's name as a DNS label, or `node`.
    pub fn node_name(&self) -> String {
        self.node_name.clone().unwrap_or_else(machine_name)
    }
}

/// The machine's host name as a DNS label, or `node`.
pub fn machine_name() -> String {
    let name = nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok());
    label(&name.unwrap_or_default())
}

fn read(path: &Path) -> Result<Vec<(String, String)>, MirrorError> {
    let text = std::fs::read_to_string(path).map_err(|source| MirrorError::File {
        path: path.to_owned(),
        source,
    })?;
    let mut entries = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let flag: MirrorFlag = line.parse().map_err(|_| MirrorError::Line {
            path: path.to_owned(),
            line: number + 1,
            text: line.to_owned(),
        })?;
        entries.push((flag.from, flag.to));
    }
    Ok(entries)
}

/// Lower-case letters, digits, dots and dashes.
fn label(name: &str) -> String {
    let clean: String = name
        .to_ascii_lowercase()
        .chars()
        .map(|letter| {
            if letter.is_ascii_alphanumeric() || matches!(letter, '.' | '-') {
                letter
            } else {
                '-'
            }
        })
        .collect();
    let clean = clean.trim_matches(['-', '.']);
    if clean.is_empty() {
        "node".to_owned()
    } else {
        clean.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn flags_come_before_the_file_and_the_file_before_defaults() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join("mirrors");
        std::fs::write(&file, "# ours\na = file\nb = file # two\n\n").expect("written");
        let line = [
            "x",
            "--mirror",
            "a=flag",
            "--mirror-file",
            &file.display().to_string(),
        ];
        let args = Line::try_parse_from(line).expect("parsed").args;
        let default = |name: &str| (name.to_owned(), "default".to_owned());
        let mirrors = args.mirrors(&[default("b"), default("c")]).expect("read");
        let flat: Vec<String> = mirrors
            .iter()
            .map(|(from, to)| format!("{from}={to}"))
            .collect();
        assert_eq!(flat, ["a=flag", "b=file", "c=default"]);
        assert!(Line::try_parse_from(["x", "--mirror", "nonsense"]).is_err());
    }

    #[test]
    fn host_names_become_node_names() {
        assert_eq!(label("My_Host.local"), "my-host.local");
        assert_eq!(label("--"), "node");
    }
}
