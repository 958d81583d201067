//! Learns from the Service `default/kubernetes` where else API servers are, and remembers it on the disk for the next start.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, ListParams};
use tokio::time::{sleep, timeout};
use types::error::chain;
use types::well_known::{LABEL_SERVICE_NAME, NAMESPACE_DEFAULT};

use super::{Address, Servers};
use crate::join::files;

/// Servers come and go rarely.
const EVERY: Duration = Duration::from_secs(30);
const ANSWER: Duration = Duration::from_secs(10);

/// For as long as it is polled.
pub(crate) async fn run(servers: Servers, file: PathBuf) {
    let api: Api<EndpointSlice> = Api::namespaced(servers.client(), NAMESPACE_DEFAULT);
    let params = ListParams::default().labels(&format!("{LABEL_SERVICE_NAME}=kubernetes"));
    let mut remembered = recall(&file);
    let local = servers.given().iter().any(Address::is_loopback);
    loop {
        match timeout(ANSWER, api.list(&params)).await {
            Ok(Ok(slices)) => {
                let found = addresses(&slices.items, local);
                if !found.is_empty() && found != remembered {
                    tracing::info!(servers = ?found.iter().map(Address::to_string).collect::<Vec<_>>(), "The API servers of the cluster");
                    servers.learn(&found);
                    remember(&file, &found);
                    remembered = found;
                }
            }
            Ok(Err(error)) => {
                tracing::debug!(error = %chain(&error), "Failed to ask where the API servers are")
            }
            Err(_) => tracing::debug!("Nobody said in time where the API servers are"),
        }
        sleep(EVERY).await;
    }
}

/// A loopback address is another machine's, unless we were given one ourselves.
fn addresses(slices: &[EndpointSlice], local: bool) -> Vec<Address> {
    let mut found = Vec::new();
    for slice in slices {
        let ports = slice.ports.iter().flatten().filter_map(|port| port.port);
        let Some(port) = ports.filter_map(|port| u16::try_from(port).ok()).next() else {
            continue;
        };
        for endpoint in slice.endpoints.iter().flatten() {
            let ready = endpoint.conditions.as_ref().and_then(|c| c.ready);
            let ips = endpoint.addresses.iter();
            let ips = ips.filter_map(|address| address.parse::<IpAddr>().ok());
            for ip in ips.filter(|ip| local || !ip.is_loopback()) {
                if ready != Some(false) {
                    found.push(Address::from(SocketAddr::new(ip, port)));
                }
            }
        }
    }
    found.sort_by_key(Address::to_string);
    found.dedup();
    found
}

/// One address per line. What cannot be read is nothing.
pub(crate) fn recall(file: &Path) -> Vec<Address> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

fn remember(file: &Path, addresses: &[Address]) {
    let lines: String = addresses
        .iter()
        .map(|address| format!("{address}\n"))
        .collect();
    if let Err(error) = files::write_private(file, lines.as_bytes()) {
        tracing::warn!(error = %chain(&error), "Failed to remember where the API servers are");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ready_endpoints_that_can_be_meant_are_learnt() {
        let slice = |endpoints: serde_json::Value| -> EndpointSlice {
            let slice = json!({"metadata": {}, "addressType": "IPv4", "endpoints": endpoints,
                "ports": [{"name": "https", "port": 6443}]});
            serde_json::from_value(slice).expect("well formed")
        };
        let slices = [slice(json!([
            {"addresses": ["192.0.2.2"], "conditions": {"ready": true}},
            {"addresses": ["192.0.2.1"]},
            {"addresses": ["192.0.2.3"], "conditions": {"ready": false}},
            {"addresses": ["127.0.0.1"]},
        ]))];
        let texts = |local| -> Vec<String> {
            let found = addresses(&slices, local);
            found.iter().map(Address::to_string).collect()
        };
        assert_eq!(
            texts(false),
            ["https://192.0.2.1:6443", "https://192.0.2.2:6443"]
        );
        assert_eq!(texts(true).len(), 3);
    }

    #[test]
    fn what_is_remembered_is_recalled() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("servers");
        assert_eq!(recall(&file), []);
        let some = ["https://a:1", "https://[::1]:2"].map(|text| text.parse().expect("an address"));
        remember(&file, &some);
        assert_eq!(recall(&file), some);
    }
}
