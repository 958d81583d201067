//! Renews the node's two certificates before they end: on the disk, in what runs, and for the connection to the API.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;
use tokio::sync::watch;
use tokio::time::sleep;
use types::error::chain;

use super::files::{self, Files};
use super::leaf::Leaf;
use super::{Error, now, request, user_name};
use crate::servers::Servers;
use crate::tls::{Certificates, Role};

/// When most of its life is over; not all nodes at once.
const SHARE: std::ops::Range<f64> = 0.7..0.9;
/// The clock may be set meanwhile: never sleep longer without looking at it.
const LOOK: Duration = Duration::from_secs(600);
const AGAIN: Duration = Duration::from_secs(5);
const AGAIN_AT_MOST: Duration = Duration::from_secs(300);
/// Between words about a certificate that has ended.
const EXPIRED: Duration = Duration::from_secs(60);

pub(super) struct Renewal {
    pub(super) certificates: Arc<Certificates>,
    pub(super) files: Arc<Files>,
    pub(super) servers: Servers,
    pub(super) node_name: String,
    pub(super) address: IpAddr,
    pub(super) lifetime: Option<Duration>,
    /// There is a certificate for the endpoint.
    pub(super) serving: watch::Sender<bool>,
}

// === impl Renewal ===

impl Renewal {
    /// As long as it is polled.
    pub(super) async fn run(self) {
        tokio::join!(self.keep(Role::Client), self.keep(Role::Server));
    }

    async fn keep(&self, role: Role) {
        let mut again = AGAIN;
        let mut present = role == Role::Client || *self.serving.borrow();
        loop {
            if let Some(leaf) = self.leaf(role).filter(|_| present) {
                let share = rand::rng().random_range(SHARE);
                wait_until(leaf.renew_at(share)).await;
            }
            match self.renew(role).await {
                Ok(()) => {
                    again = AGAIN;
                    present = true;
                    // Whatever the new one says, servers are not asked again at once.
                    sleep(AGAIN).await;
                }
                Err(error) => {
                    let leaf = self.leaf(role);
                    let path = self.files.pair(role);
                    let expired = leaf
                        .as_ref()
                        .and_then(|leaf| expired(role, &path, leaf, now()));
                    if let Some(expired) = expired {
                        tracing::error!(error = %expired, reason = %chain(&error), "This node can no longer renew its certificate by itself");
                        sleep(EXPIRED).await;
                        continue;
                    }
                    let ends = leaf.map(|leaf| leaf.ends);
                    tracing::warn!(?role, ends = ?ends.map(|ends| ends.to_string()), error = %chain(&error), "Failed to renew a certificate of this node");
                    sleep(again).await;
                    again = (again * 2).min(AGAIN_AT_MOST);
                }
            }
        }
    }

    async fn renew(&self, role: Role) -> Result<(), Error> {
        let pem = self.obtain(role).await?;
        self.certificates
            .replace(role, pem.as_bytes(), pem.as_bytes())?;
        match role {
            Role::Client => self.servers.reconnect().await,
            Role::Server => {
                self.serving.send_replace(true);
            }
        }
        tracing::info!(?role, "Renewed a certificate of this node");
        Ok(())
    }

    /// A new certificate, with the node's own identity; it is on the disk when this returns.
    async fn obtain(&self, role: Role) -> Result<String, Error> {
        let wanted = request::Wanted {
            role,
            node_name: &self.node_name,
            address: Some(self.address).filter(|_| role == Role::Server),
            lifetime: self.lifetime,
        };
        let pem = request::obtain(&self.servers.client(), &wanted, None).await?;
        files::write_private(&self.files.pair(role), pem.as_bytes())?;
        Ok(pem)
    }

    /// The one on the disk, if it still says what it must.
    pub(super) fn present(&self, role: Role) -> Result<Option<String>, Error> {
        let path = self.files.pair(role);
        let Some(pem) = files::read(&path)? else {
            return Ok(None);
        };
        let leaf = Leaf::read(&path, &pem)?;
        let named = leaf.names.contains(&self.node_name) && leaf.addresses.contains(&self.address);
        let good = leaf.ends > now()
            && leaf.common_name == user_name(&self.node_name)
            && (role == Role::Client || named);
        Ok(good.then_some(pem))
    }

    fn leaf(&self, role: Role) -> Option<Leaf> {
        let path = self.files.pair(role);
        let pem = files::read(&path).ok().flatten()?;
        Leaf::read(&path, &pem).ok()
    }
}

/// The certificate that the node asks with has ended: whoever it asks does not let it in, and only a new token helps.
pub(super) fn expired(role: Role, path: &Path, leaf: &Leaf, now: jiff::Timestamp) -> Option<Error> {
    (role == Role::Client && leaf.ends <= now).then(|| Error::Expired {
        path: path.to_owned(),
        at: leaf.ends,
    })
}

async fn wait_until(at: jiff::Timestamp) {
    loop {
        let left = Duration::try_from(at.duration_since(now())).unwrap_or_default();
        if left.is_zero() {
            return;
        }
        sleep(left.min(LOOK)).await;
    }
}
