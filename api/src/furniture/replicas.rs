//! Where the Service `default/kubernetes` leads when several servers share a store: each keeps a Lease in kube-system that
//! says where it listens, and each makes the Endpoints and EndpointSlices list the servers whose leases are alive. A
//! server that stops takes itself out first.
//!
//! A lease is alive while it keeps changing: its age is measured here, from when this server saw the change, so that clocks
//! that differ do no harm.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use types::error::chain;
use types::well_known::{LABEL_SERVICE_NAME, NAMESPACE_DEFAULT, NAMESPACE_SYSTEM};

use super::{KUBERNETES, ensure, registry, user};
use crate::cache::Cache;
use crate::handlers::{self, Api};
use crate::object::Object;
use crate::registry::Change;
use crate::registry::delete::DeleteOptions;
use crate::status::{Error, Reason};
use crate::store::{Revision, Stored};

const LEASES: &str = "coordination.k8s.io/leases";
const SLICES: &str = "discovery.k8s.io/endpointslices";
/// As upstream's servers do, so that tools find them.
const IDENTITY: (&str, &str) = ("apiserver.kubernetes.io/identity", "kube-apiserver");
const ADDRESS: &str = "coracle.dev/advertise-address";
/// Names by which clients find this server, with commas between them: no node may have them.
const NAMES: &str = "coracle.dev/server-names";
const SECONDS: u64 = 15;
const LIFE: Duration = Duration::from_secs(SECONDS);
const RENEW: Duration = Duration::from_secs(5);
/// A lease that has been dead for so long is deleted.
const BURIAL: Duration = Duration::from_secs(60);
/// For taking itself out at the end.
const GOODBYE: Duration = Duration::from_secs(3);

/// One server's part in it.
pub(crate) struct Replica {
    api: Arc<Api>,
    name: String,
    holder: String,
    seen: Seen,
}

/// When which revision of a lease was first seen here.
#[derive(Default)]
struct Seen(HashMap<Arc<str>, (Revision, Instant)>);

/// What a lease says.
struct Lease {
    name: Arc<str>,
    revision: Revision,
    address: SocketAddr,
}

/// Of all servers that share this store, as their leases say.
pub(crate) fn names_of_servers(cache: &Cache) -> Vec<String> {
    let snapshot = cache.snapshot(LEASES);
    let leases = snapshot
        .in_namespace(NAMESPACE_SYSTEM)
        .filter(|stored| stored.index.label(IDENTITY.0) == Some(IDENTITY.1));
    let names = leases.filter_map(|stored| {
        let lease: Value = serde_json::from_slice(&stored.bytes).ok()?;
        let names = lease["metadata"]["annotations"][NAMES].as_str()?;
        Some(names.split(',').map(str::to_owned).collect::<Vec<_>>())
    });
    names.flatten().filter(|name| !name.is_empty()).collect()
}

// === impl Replica ===

impl Replica {
    /// Announces this server; when this returns, the Service leads to it.
    pub(crate) async fn join(api: Arc<Api>) -> Result<Self, Error> {
        let advertised = api.settings.advertised;
        let digest = Sha256::digest(advertised.to_string());
        let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let name = format!("apiserver-{}", &digits[..26]);
        let mut replica = Self {
            holder: format!("{name}_{}", uuid::Uuid::new_v4()),
            name,
            api,
            seen: Seen::default(),
        };
        replica.renew().await?;
        replica.reconcile().await?;
        Ok(replica)
    }

    /// Until the server stops; then this server is taken out.
    pub(crate) async fn keep(mut self) {
        let stopping = self.api.stopping.clone();
        loop {
            let round = async {
                self.renew().await?;
                self.reconcile().await
            };
            tokio::select! {
                biased;
                () = stopping.cancelled() => break,
                done = round => if let Err(error) = done {
                    tracing::warn!(error = %chain(&error), "Could not keep this server among the endpoints of the API");
                }
            }
            tokio::select! {
                biased;
                () = stopping.cancelled() => break,
                () = tokio::time::sleep(RENEW) => {}
            }
        }
        match tokio::time::timeout(GOODBYE, self.leave()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(error = %chain(&error), "Could not take this server out of the endpoints of the API");
            }
            Err(_) => tracing::warn!("Had no time to take this server out of the endpoints"),
        }
    }

    async fn leave(&mut self) -> Result<(), Error> {
        self.bury(&self.name, None).await?;
        self.reconcile().await
    }

    async fn renew(&self) -> Result<(), Error> {
        let kind = self.api.kinds.find("coordination.k8s.io", "v1", "leases");
        let kind = kind.ok_or_else(|| Error::internal("there is no kind leases"))?;
        let address = self.api.settings.advertised.to_string();
        let now = handlers::now();
        let time = format!("{now:.6}");
        let wanted = json!({
            "metadata": {
                "name": self.name,
                "labels": { (IDENTITY.0): IDENTITY.1, "kubernetes.io/hostname": hostname() },
                "annotations": { (ADDRESS): address, (NAMES): self.api.settings.names.join(",") },
            },
            "spec": {
                "holderIdentity": self.holder,
                "leaseDurationSeconds": SECONDS,
                "renewTime": time,
            },
        });
        let wanted =
            Object::new(wanted).map_err(|_| Error::internal("a lease must be an object"))?;
        let user = user();
        let mut registry = registry(&self.api, kind, NAMESPACE_SYSTEM, &user);
        let mut renew = |old: Option<&Object>| {
            let mut new = old.unwrap_or(&wanted).clone();
            for path in [
                &["metadata", "labels"][..],
                &["metadata", "annotations"],
                &["spec"],
            ] {
                if let Some(value) = wanted.at(path) {
                    new.set(path, value.clone());
                }
            }
            Ok(Change { new, owned: false })
        };
        let renewing = registry.update(&self.name, "update", true, &mut renew);
        renewing.await.map(|_| ())
    }

    /// Makes what the Service leads to what the leases say.
    async fn reconcile(&mut self) -> Result<(), Error> {
        let now = Instant::now();
        let snapshot = self.api.cache.snapshot(LEASES);
        let leases: Vec<Lease> = snapshot
            .in_namespace(NAMESPACE_SYSTEM)
            .filter(|stored| stored.index.label(IDENTITY.0) == Some(IDENTITY.1))
            .filter_map(|stored| Lease::read(stored))
            .collect();
        for dead in self.seen.look(&leases, now) {
            self.bury(&dead.name, Some(dead.revision)).await?;
        }
        let alive = self.seen.alive(&leases, now);
        if alive.is_empty() {
            // The last one to leave: an address that nobody answers is no worse than none.
            return Ok(());
        }
        let groups = groups(&alive);
        ensure(
            &self.api,
            "",
            "endpoints",
            NAMESPACE_DEFAULT,
            endpoints(&groups),
            true,
        )
        .await?;
        for (number, (group, addresses)) in groups.iter().enumerate() {
            let slice = slice(number, *group, addresses);
            ensure(
                &self.api,
                "discovery.k8s.io",
                "endpointslices",
                NAMESPACE_DEFAULT,
                slice,
                true,
            )
            .await?;
        }
        self.drop_slices(groups.len()).await
    }

    /// Deletes the slices behind the first `keep`.
    async fn drop_slices(&self, keep: usize) -> Result<(), Error> {
        let snapshot = self.api.cache.snapshot(SLICES);
        for stored in snapshot.in_namespace(NAMESPACE_DEFAULT) {
            let number = stored.key.name.strip_prefix("kubernetes-");
            let number = number.and_then(|number| number.parse::<usize>().ok());
            if stored.index.label(LABEL_SERVICE_NAME) == Some(KUBERNETES)
                && number.is_some_and(|number| number >= keep)
            {
                let (group, plural) = ("discovery.k8s.io", "endpointslices");
                self.delete(group, plural, NAMESPACE_DEFAULT, &stored.key.name, None)
                    .await?;
            }
        }
        Ok(())
    }

    /// Deletes a lease, at this revision if one is named.
    async fn bury(&self, name: &str, at: Option<Revision>) -> Result<(), Error> {
        self.delete("coordination.k8s.io", "leases", NAMESPACE_SYSTEM, name, at)
            .await
    }

    async fn delete(
        &self,
        group: &str,
        plural: &str,
        namespace: &str,
        name: &str,
        at: Option<Revision>,
    ) -> Result<(), Error> {
        let kind = self.api.kinds.find(group, "v1", plural);
        let kind = kind.ok_or_else(|| Error::internal(format!("there is no kind {plural}")))?;
        let user = user();
        let options = DeleteOptions {
            resource_version: at.map(|revision| revision.to_string()),
            ..DeleteOptions::default()
        };
        let mut registry = registry(&self.api, kind, namespace, &user);
        match registry.delete(name, &options).await {
            Ok(_) => Ok(()),
            // Gone, or alive after all.
            Err(error) if matches!(error.reason, Reason::NotFound | Reason::Conflict) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

// === impl Lease ===

impl Lease {
    fn read(stored: &Stored) -> Option<Self> {
        let object: Value = serde_json::from_slice(&stored.bytes).ok()?;
        let address = object["metadata"]["annotations"][ADDRESS].as_str()?;
        Some(Self {
            name: Arc::clone(&stored.key.name),
            revision: stored.revision,
            address: address.parse().ok()?,
        })
    }
}

// === impl Seen ===

impl Seen {
    /// Takes notice of the leases as they are; answers those that may be buried.
    fn look<'l>(&mut self, leases: &'l [Lease], now: Instant) -> Vec<&'l Lease> {
        self.0
            .retain(|name, _| leases.iter().any(|lease| lease.name == *name));
        for lease in leases {
            let seen = self.0.entry(Arc::clone(&lease.name));
            let seen = seen.or_insert((lease.revision, now));
            if seen.0 != lease.revision {
                *seen = (lease.revision, now);
            }
        }
        let dead = |lease: &&Lease| now >= self.at(lease, now) + LIFE + BURIAL;
        leases.iter().filter(dead).collect()
    }

    fn alive(&self, leases: &[Lease], now: Instant) -> BTreeSet<SocketAddr> {
        let alive = leases
            .iter()
            .filter(|lease| now < self.at(lease, now) + LIFE);
        alive.map(|lease| lease.address).collect()
    }

    fn at(&self, lease: &Lease, now: Instant) -> Instant {
        self.0.get(&lease.name).map_or(now, |seen| seen.1)
    }
}

/// A slice, or a subset, has one family and one port.
fn groups(alive: &BTreeSet<SocketAddr>) -> BTreeMap<(bool, u16), Vec<String>> {
    let mut groups: BTreeMap<_, Vec<String>> = BTreeMap::new();
    for address in alive {
        let group = groups.entry((address.is_ipv6(), address.port()));
        group.or_default().push(address.ip().to_string());
    }
    groups
}

fn endpoints(groups: &BTreeMap<(bool, u16), Vec<String>>) -> Value {
    let subsets: Vec<Value> = groups
        .iter()
        .map(|((_, port), addresses)| {
            let addresses: Vec<_> = addresses.iter().map(|ip| json!({ "ip": ip })).collect();
            let ports = json!([{ "name": "https", "port": port, "protocol": "TCP" }]);
            json!({ "addresses": addresses, "ports": ports })
        })
        .collect();
    json!({
        "metadata": { "name": KUBERNETES, "labels": { "endpointslice.kubernetes.io/skip-mirror": "true" } },
        "subsets": subsets,
    })
}

fn slice(number: usize, (v6, port): (bool, u16), addresses: &[String]) -> Value {
    let name = match number {
        0 => KUBERNETES.to_owned(),
        number => format!("{KUBERNETES}-{number}"),
    };
    let endpoints: Vec<_> = addresses
        .iter()
        .map(|ip| json!({ "addresses": [ip], "conditions": { "ready": true } }))
        .collect();
    json!({
        "metadata": { "name": name, "labels": { (LABEL_SERVICE_NAME): KUBERNETES } },
        "addressType": if v6 { "IPv6" } else { "IPv4" },
        "endpoints": endpoints,
        "ports": [{ "name": "https", "port": port, "protocol": "TCP" }],
    })
}

fn hostname() -> String {
    let name = nix::unistd::gethostname().ok();
    name.and_then(|name| name.into_string().ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(name: &str, revision: Revision, address: &str) -> Lease {
        Lease {
            name: name.into(),
            revision,
            address: address.parse().expect("an address"),
        }
    }

    #[test]
    fn a_server_is_alive_while_its_lease_changes_whatever_its_clock_says() {
        let (a, b) = ("192.0.2.1:6443", "192.0.2.2:6443");
        let begin = Instant::now();
        let after = |seconds| begin + Duration::from_secs(seconds);
        let mut seen = Seen::default();
        let mut round = |leases: &[Lease], now| {
            let dead: Vec<_> = seen
                .look(leases, now)
                .iter()
                .map(|l| l.name.to_string())
                .collect();
            let alive: Vec<_> = seen
                .alive(leases, now)
                .iter()
                .map(ToString::to_string)
                .collect();
            (alive, dead)
        };
        let both = |of_a, of_b| [lease("a", of_a, a), lease("b", of_b, b)];
        let (alive, _) = round(&both(1, 2), begin);
        assert_eq!(alive, [a, b], "the benefit of the doubt");
        assert_eq!(round(&both(3, 2), after(14)).0, [a, b]);
        assert_eq!(round(&both(4, 2), after(15)).0, [a]);
        assert_eq!(round(&both(4, 5), after(20)).0, [a, b], "it is back");
        assert_eq!(round(&both(6, 5), after(94)), (vec![a.to_owned()], vec![]));
        assert_eq!(round(&both(6, 5), after(95)).1, ["b"]);
        assert_eq!(round(&[lease("a", 6, a)], after(96)).0, [a]);
    }

    #[test]
    fn servers_are_grouped_by_family_and_port() {
        let alive = [
            "192.0.2.1:6443",
            "[2001:db8::1]:6443",
            "192.0.2.2:6443",
            "192.0.2.3:7443",
        ];
        let alive = alive
            .iter()
            .map(|a| a.parse().expect("an address"))
            .collect();
        let groups = groups(&alive);
        let slices: Vec<_> = groups
            .iter()
            .enumerate()
            .map(|(number, (group, addresses))| slice(number, *group, addresses))
            .collect();
        let facts: Vec<_> = slices
            .iter()
            .map(|s| {
                let count = s["endpoints"].as_array().map_or(0, Vec::len);
                format!("{} {} {count}", s["metadata"]["name"], s["addressType"])
            })
            .collect();
        assert_eq!(
            facts,
            [
                "\"kubernetes\" \"IPv4\" 2",
                "\"kubernetes-1\" \"IPv4\" 1",
                "\"kubernetes-2\" \"IPv6\" 1"
            ]
        );
        assert_eq!(
            endpoints(&groups)["subsets"][0]["addresses"][1]["ip"],
            "192.0.2.2"
        );
    }
}
