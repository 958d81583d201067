//! `coracle token`: makes, lists and deletes the tokens with which machines join. Speaks to the API like any client; only a
//! token that was just made is ever printed whole.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Endpoints, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use rand::RngExt as _;
use types::well_known::{NAMESPACE_DEFAULT, NAMESPACE_SYSTEM};

use crate::{data_dir, progress};

const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";
const PREFIX: &str = "bootstrap-token-";
const GROUP: &str = "system:bootstrappers:kubeadm:default-node-token";
/// No API server takes longer without being away.
const ANSWER: Duration = Duration::from_secs(30);

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
    /// The administrator's kubeconfig [default: $KUBECONFIG, else the one in the data directory of the server]
    #[arg(long, value_name = "FILE", global = true)]
    kubeconfig: Option<PathBuf>,
    /// The server's data directory
    #[arg(long, value_name = "DIR", global = true)]
    data_dir: Option<PathBuf>,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Make a token that lets machines join, and print it; nobody can read it again
    Create(Create),
    /// List the tokens there are, without their secrets
    List,
    /// Delete tokens: whoever has joined stays, nobody else joins with them
    Delete {
        /// Their ids (the part between the dots), or whole tokens
        #[arg(required = true, value_name = "ID")]
        tokens: Vec<String>,
    },
}

#[derive(clap::Args)]
struct Create {
    /// How long the token lets machines join, such as 2h; 0s means until it is deleted
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = types::duration::parse)]
    ttl: Duration,
    /// What it is for, shown by `coracle token list`
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Groups of whoever shows the token; below system:bootstrappers:
    #[arg(long, value_name = "GROUPS", default_value = GROUP, value_delimiter = ',')]
    groups: Vec<String>,
    /// Print the whole command for the machine that is to join
    #[arg(long)]
    print_join_command: bool,
}

pub(crate) async fn run(args: Args) -> Result<ExitCode> {
    let config = args.config().await?;
    let client = kube::Client::try_from(config.clone())
        .context("could not use the kubeconfig to speak to the API")?;
    let secrets: Api<Secret> = Api::namespaced(client, NAMESPACE_SYSTEM);
    let work = async {
        match &args.command {
            Command::Create(create) => create.run(&secrets, &config).await,
            Command::List => list(&secrets).await,
            Command::Delete { tokens } => delete(&secrets, tokens).await,
        }
    };
    tokio::time::timeout(ANSWER, work)
        .await
        .with_context(|| format!("{} did not answer within {ANSWER:?}", config.cluster_url))??;
    Ok(ExitCode::SUCCESS)
}

// === impl Args ===

impl Args {
    async fn config(&self) -> Result<kube::Config> {
        let path = match (&self.kubeconfig, std::env::var_os("KUBECONFIG")) {
            (Some(path), _) => path.clone(),
            (None, Some(path)) if !path.is_empty() && self.data_dir.is_none() => path.into(),
            _ => match &self.data_dir {
                Some(dir) => dir.join("kubeconfig"),
                None => data_dir::default_path()?.join("kubeconfig"),
            },
        };
        let failed = || {
            format!(
                "could not use the kubeconfig {}: give the one of the administrator with --kubeconfig, or the server's --data-dir",
                path.display()
            )
        };
        let kubeconfig = Kubeconfig::read_from(&path).with_context(failed)?;
        kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .with_context(failed)
    }
}

/// Where other machines reach the API: where the kubeconfig says or, when that is on this machine alone, where the servers
/// say they are.
async fn servers(secrets: &Api<Secret>, given: &http::Uri) -> Result<Vec<String>> {
    let host = given.host().unwrap_or_default().trim_matches(['[', ']']);
    let here =
        |host: &str| host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
    let given = vec![given.to_string().trim_end_matches('/').to_owned()];
    if !here(host) {
        return Ok(given);
    }
    let endpoints: Api<Endpoints> =
        Api::namespaced(secrets.clone().into_client(), NAMESPACE_DEFAULT);
    let endpoints = endpoints.get_opt("kubernetes").await;
    let endpoints = endpoints.context("could not ask where the API servers are")?;
    let subsets = endpoints.and_then(|endpoints| endpoints.subsets);
    let mut found = Vec::new();
    for subset in subsets.unwrap_or_default() {
        let port = subset.ports.unwrap_or_default().first().map(|p| p.port);
        let addresses = subset.addresses.unwrap_or_default();
        for address in addresses.iter().filter(|address| !here(&address.ip)) {
            let ip: IpAddr = address.ip.parse().context("an endpoint of the API")?;
            let port = port.and_then(|port| u16::try_from(port).ok());
            found.extend(port.map(|port| format!("https://{}", SocketAddr::new(ip, port))));
        }
    }
    Ok(if found.is_empty() { given } else { found })
}

// === impl Create ===

impl Create {
    async fn run(&self, secrets: &Api<Secret>, config: &kube::Config) -> Result<()> {
        let ca = config.root_cert.as_ref().and_then(|all| all.first());
        let ca = ca.context("the kubeconfig has no certificate-authority: whoever joins could not be told whom to trust")?;
        let hash = host::join::ca_hash(ca);
        for group in &self.groups {
            if !group.starts_with("system:bootstrappers:") {
                bail!("--groups {group:?}: groups of tokens begin with system:bootstrappers:");
            }
        }
        let (id, secret) = (random(6), random(16));
        let object = self.secret(&id, &secret, now())?;
        secrets
            .create(&PostParams::default(), &object)
            .await
            .context("could not create the token's Secret in kube-system")?;
        let token = format!("{hash}.{id}.{secret}");
        if self.print_join_command {
            let servers = servers(secrets, &config.cluster_url).await?;
            let servers = servers.join(" --server ");
            progress::print(&format!("coracle node --server {servers} --token {token}"));
        } else {
            progress::print(&token);
        }
        Ok(())
    }

    fn secret(&self, id: &str, secret: &str, now: jiff::Timestamp) -> Result<Secret> {
        let mut data = BTreeMap::from([
            ("token-id", id.to_owned()),
            ("token-secret", secret.to_owned()),
            ("usage-bootstrap-authentication", "true".to_owned()),
            ("usage-bootstrap-signing", "true".to_owned()),
            ("auth-extra-groups", self.groups.join(",")),
        ]);
        if let Some(description) = &self.description {
            data.insert("description", description.clone());
        }
        if !self.ttl.is_zero() {
            let at = now.checked_add(self.ttl).context("--ttl is too long")?;
            let at = jiff::Timestamp::from_second(at.as_second())?;
            data.insert("expiration", at.to_string());
        }
        let data = data.into_iter();
        let data = data.map(|(key, value)| (key.to_owned(), ByteString(value.into_bytes())));
        Ok(Secret {
            metadata: ObjectMeta {
                name: Some(format!("{PREFIX}{id}")),
                namespace: Some(NAMESPACE_SYSTEM.to_owned()),
                ..ObjectMeta::default()
            },
            type_: Some(SECRET_TYPE.to_owned()),
            data: Some(data.collect()),
            ..Secret::default()
        })
    }
}

/// Letters and digits of which nobody can guess the next.
fn random(length: usize) -> String {
    const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut rng = rand::rng();
    let pick = |_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())]);
    (0..length).map(pick).collect()
}

async fn list(secrets: &Api<Secret>) -> Result<()> {
    let params = ListParams::default().fields(&format!("type={SECRET_TYPE}"));
    let all = secrets.list(&params).await;
    let all = all.context("could not list the tokens in kube-system")?;
    let now = now();
    let mut rows = vec![["ID", "TTL", "EXPIRES", "GROUPS", "DESCRIPTION"].map(str::to_owned)];
    rows.extend(all.items.iter().map(|secret| row(secret, now)));
    for line in columns(&rows) {
        progress::print(&line);
    }
    Ok(())
}

fn row(secret: &Secret, now: jiff::Timestamp) -> [String; 5] {
    let text = |key: &str| {
        let bytes = secret.data.as_ref().and_then(|data| data.get(key));
        let text = bytes.map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned());
        text.unwrap_or_default()
    };
    let expires = text("expiration");
    let ttl = match expires.parse::<jiff::Timestamp>() {
        Err(_) => "<forever>".to_owned(),
        Ok(at) if at <= now => "<expired>".to_owned(),
        Ok(at) => {
            let seconds = at.as_second() - now.as_second();
            match (seconds / 3600, seconds / 60 % 60) {
                (0, 0) => format!("{seconds}s"),
                (0, minutes) => format!("{minutes}m"),
                (hours, minutes) => format!("{hours}h{minutes}m"),
            }
        }
    };
    let expires = Some(expires).filter(|text| !text.is_empty());
    [
        text("token-id"),
        ttl,
        expires.unwrap_or_else(|| "<never>".to_owned()),
        text("auth-extra-groups"),
        text("description"),
    ]
}

fn columns<const N: usize>(rows: &[[String; N]]) -> Vec<String> {
    let width = |at: usize| rows.iter().map(|row| row[at].chars().count()).max();
    let widths: [usize; N] = std::array::from_fn(|at| width(at).unwrap_or(0));
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths);
        let cells = cells.map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("   ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

async fn delete(secrets: &Api<Secret>, tokens: &[String]) -> Result<()> {
    for token in tokens {
        let id = match token.split('.').collect::<Vec<_>>()[..] {
            [_, id, _] | [id, _] | [id] => id,
            // Perhaps somebody's secret: it is not repeated.
            _ => bail!("one of the arguments is neither the id of a token nor a token"),
        };
        let name = format!("{PREFIX}{id}");
        match secrets.delete(&name, &DeleteParams::default()).await {
            Ok(_) => progress::print(&format!("token {id} deleted")),
            Err(kube::Error::Api(status)) if status.code == 404 => {
                bail!("there is no token {id}: `coracle token list` shows those there are")
            }
            Err(error) => {
                return Err(
                    anyhow::Error::new(error).context(format!("could not delete token {id}"))
                );
            }
        }
    }
    Ok(())
}

#[expect(
    clippy::disallowed_methods,
    reason = "a token expires at a time of day"
)]
fn now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> jiff::Timestamp {
        jiff::Timestamp::from_second(second).expect("in range")
    }

    #[test]
    fn the_secret_is_what_kubernetes_calls_a_bootstrap_token() {
        let create = Create {
            ttl: Duration::from_secs(3600),
            description: Some("rack 4".to_owned()),
            groups: vec![GROUP.to_owned()],
            print_join_command: false,
        };
        let secret = create
            .secret("abcdef", "0123456789abcdef", at(0))
            .expect("made");
        assert_eq!(
            secret.metadata.name.as_deref(),
            Some("bootstrap-token-abcdef")
        );
        assert_eq!(secret.type_.as_deref(), Some(SECRET_TYPE));
        let data = secret.data.as_ref().expect("data");
        assert_eq!(data["expiration"].0, b"1970-01-01T01:00:00Z");
        assert_eq!(data["usage-bootstrap-authentication"].0, b"true");
        let row = row(&secret, at(60));
        assert_eq!(row[..2], ["abcdef", "59m"]);
        assert_eq!(super::row(&secret, at(3600))[1], "<expired>");
        assert!(!row.iter().any(|cell| cell.contains("0123456789abcdef")));
    }

    #[test]
    fn a_random_part_has_the_length_and_letters_of_a_token() {
        let (id, secret) = (random(6), random(16));
        let hash = "ab".repeat(32);
        let token = format!("{hash}.{id}.{secret}");
        assert!(token.parse::<host::join::Token>().is_ok());
        assert_ne!(random(16), secret);
    }
}
