//! What a server stands on: the store, the cluster's authority, and the certificates it shows, which are renewed while
//! it runs. Knows nothing of requests.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use types::error::chain;

use super::{Config, Error};
use crate::handlers;
use crate::kinds::Kinds;
use crate::pki::{self, Identity, Material, Pki, Shown, kubeconfig};
use crate::registry;
use crate::store::postgres::{self, Postgres};
use crate::store::seal::Sealer;
use crate::store::{Place, Store, memory::Memory, sqlite, sqlite::Sqlite};

/// How often certificates are looked at. They are renewed months before they end.
const LOOK: Duration = Duration::from_secs(3_600);

/// The certificates of one server.
pub(super) struct Certificates {
    pki: Pki,
    service: IpAddr,
    addresses: Vec<IpAddr>,
    names: Vec<String>,
    serving: Current,
    client: Current,
    /// Where the admin kubeconfig is, and the address in it.
    kubeconfig: Option<(PathBuf, String)>,
}

struct Current {
    identity: Identity,
    shown: Arc<Shown>,
}

pub(super) async fn open_store(
    config: &Config,
    kinds: &'static Kinds,
) -> Result<Arc<dyn Store>, Error> {
    let sealer = match &config.encryption_keys {
        Some(path) => Arc::new(Sealer::read(path)?),
        None => Arc::default(),
    };
    let indexer = registry::indexer(kinds);
    let path = match (&config.store, &config.data_dir) {
        (Place::Postgres(address), _) => {
            let options = postgres::Options {
                sealer,
                ..postgres::Options::default()
            };
            let store = Postgres::open_with(*address.clone(), indexer, options).await?;
            return Ok(Arc::new(store));
        }
        (Place::Sqlite(path), _) => path.clone(),
        (Place::DataDirectory, Some(directory)) => directory.join("state.db"),
        (Place::DataDirectory, None) => return Ok(Arc::new(Memory::new())),
    };
    let options = sqlite::Options {
        sealer,
        ..sqlite::Options::default()
    };
    Ok(Arc::new(Sqlite::open_with(&path, indexer, options).await?))
}

/// Of files where there is one server, of the store where several share it.
pub(super) async fn open_pki(config: &Config, store: &dyn Store) -> Result<Pki, Error> {
    let directory = config.data_dir.as_deref();
    let now = handlers::now();
    if !store.is_shared() {
        return Ok(Pki::open(directory, now)?);
    }
    let material = Material::in_store(store, directory, now).await?;
    Ok(Pki::with(material, directory, now)?)
}

// === impl Certificates ===

impl Certificates {
    pub(super) fn new(
        pki: &Pki,
        service: IpAddr,
        addresses: Vec<IpAddr>,
        names: Vec<String>,
    ) -> Result<Self, pki::Error> {
        let serving = pki.api_server(service, &addresses, &names)?;
        let client = pki.kubelet_client()?;
        Ok(Self {
            service,
            addresses,
            names,
            serving: Current {
                shown: Shown::new(&pki.chain(&serving))?,
                identity: serving,
            },
            client: Current {
                shown: Shown::new(&client)?,
                identity: client,
            },
            kubeconfig: None,
            pki: pki.clone(),
        })
    }

    /// For the listener.
    pub(super) fn server_config(&self) -> Result<rustls::ServerConfig, pki::Error> {
        self.pki.server_config(Arc::clone(&self.serving.shown))
    }

    /// For calls to nodes.
    pub(super) fn client_config(&self) -> Result<rustls::ClientConfig, pki::Error> {
        self.pki.client_config(Arc::clone(&self.client.shown))
    }

    /// Writes the admin kubeconfig, and keeps its certificate fresh.
    pub(super) fn write_kubeconfig(
        &mut self,
        path: PathBuf,
        server: String,
    ) -> Result<(), pki::Error> {
        kubeconfig::write(&self.pki, &server, &path)?;
        self.kubeconfig = Some((path, server));
        Ok(())
    }

    /// Renews what is due, until the server stops.
    pub(super) async fn keep(mut self, stopping: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = stopping.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            if let Err(error) = self.renew(handlers::now()) {
                tracing::error!(error = %chain(&error), "Could not renew this server's certificates");
            }
        }
    }

    /// Replaces what is due at `now`.
    fn renew(&mut self, now: jiff::Timestamp) -> Result<(), pki::Error> {
        let pki = self.pki.at(now);
        if pki.is_due(&self.serving.identity) {
            let new = pki.api_server(self.service, &self.addresses, &self.names)?;
            self.serving.shown.replace(&pki.chain(&new))?;
            self.serving.identity = new;
            tracing::info!("Renewed the certificate of the API");
        }
        if pki.is_due(&self.client.identity) {
            let new = pki.kubelet_client()?;
            self.client.shown.replace(&new)?;
            self.client.identity = new;
            if let Some((path, server)) = &self.kubeconfig {
                kubeconfig::write(&pki, server, path)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_renewed_in_time_while_the_server_runs() {
        let at = |second| jiff::Timestamp::from_second(second).expect("a time");
        let begin = 1_800_000_000;
        let pki = Pki::open(None, at(begin)).expect("made");
        let service = IpAddr::from([10, 96, 0, 1]);
        let made = Certificates::new(&pki, service, Vec::new(), Vec::new());
        let mut certificates = made.expect("made");
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("kubeconfig");
        let url = "https://127.0.0.1:6443".to_owned();
        let written = certificates.write_kubeconfig(path.clone(), url);
        written.expect("written");
        let read = || std::fs::read_to_string(&path).expect("there");
        let (first, config) = (certificates.serving.identity.key_pem.clone(), read());
        certificates.renew(at(begin + 86_400)).expect("looked");
        assert_eq!(certificates.serving.identity.key_pem, first, "a day old");
        certificates
            .renew(at(begin + 300 * 86_400))
            .expect("renewed");
        assert_ne!(certificates.serving.identity.key_pem, first, "65 days left");
        assert_ne!(read(), config, "and the admin's");
    }
}
