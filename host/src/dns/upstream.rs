//! Names outside the cluster: the system's resolver, bounded and with a deadline. Caches nothing: the system does.

use std::net::IpAddr;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::network::{ResolveError, Resolved};

/// Lookups block a thread each.
const AT_ONCE: usize = 64;
const DEADLINE: Duration = Duration::from_secs(10);

pub(crate) struct Upstream {
    permits: Semaphore,
}

impl Default for Upstream {
    fn default() -> Self {
        Self {
            permits: Semaphore::new(AT_ONCE),
        }
    }
}

impl Upstream {
    /// Addresses of `name`, IPv4 first: pods have no IPv6 address of their own.
    pub(crate) async fn lookup(&self, name: &str) -> Resolved {
        tokio::time::timeout(DEADLINE, self.ask(name))
            .await
            .unwrap_or(Err(ResolveError::Temporary))
    }

    async fn ask(&self, name: &str) -> Resolved {
        let Ok(_permit) = self.permits.acquire().await else {
            return Err(ResolveError::Temporary);
        };
        let found = tokio::net::lookup_host((name, 0)).await.map_err(|error| {
            // getaddrinfo's code does not survive into the error; its text does.
            if error.to_string().contains("Temporary failure") {
                ResolveError::Temporary
            } else {
                ResolveError::NotFound
            }
        })?;
        let mut ips: Vec<IpAddr> = found.map(|address| address.ip()).collect();
        ips.sort_by_key(IpAddr::is_ipv6);
        ips.dedup();
        if ips.is_empty() {
            return Err(ResolveError::NotFound);
        }
        Ok(ips)
    }
}
