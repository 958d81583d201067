//! What a pod's resolver knows, in the words of `/etc/hosts` and `/etc/resolv.conf`, for people and programs that read those.
//! PURE: names are resolved elsewhere; this only says how.

use std::fmt::Write;

use super::search;
use crate::network::{DnsPolicy, PodNetwork};

/// Name and text of each file.
pub(crate) fn etc(pod: &PodNetwork) -> [(&'static str, String); 3] {
    let hostname = &pod.identity().hostname;
    [
        ("hosts", hosts(pod)),
        ("resolv.conf", resolv_conf(pod)),
        ("hostname", format!("{hostname}\n")),
    ]
}

fn hosts(pod: &PodNetwork) -> String {
    let identity = pod.identity();
    let (address, hostname) = (pod.address(), &identity.hostname);
    let domain = &pod.fabric().config.cluster_domain;
    let mut text =
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost\n".to_owned();
    // Writing into a String cannot fail.
    let _ = match &identity.subdomain {
        Some(subdomain) => writeln!(
            text,
            "{address}\t{hostname}.{subdomain}.{}.svc.{domain}\t{hostname}",
            identity.namespace
        ),
        None => writeln!(text, "{address}\t{hostname}"),
    };
    if !identity.host_aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
    }
    for (ip, names) in &identity.host_aliases {
        let _ = writeln!(text, "{ip}\t{}", names.join("\t"));
    }
    text
}

fn resolv_conf(pod: &PodNetwork) -> String {
    let identity = pod.identity();
    let config = &pod.fabric().config;
    let searches: Vec<String> = {
        let (domain, machine) = (&config.cluster_domain, &config.dns.searches);
        search::searches(identity, domain, machine).collect()
    };
    let mut text = String::new();
    if !searches.is_empty() {
        let _ = writeln!(text, "search {}", searches.join(" "));
    }
    if let Some(server) = config.dns.cluster_address {
        let _ = writeln!(text, "nameserver {server}");
    }
    let ndots = identity
        .ndots
        .or((identity.dns_policy == DnsPolicy::ClusterFirst).then_some(5));
    if let Some(ndots) = ndots {
        let _ = writeln!(text, "options ndots:{ndots}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::{Config, Network, PodIdentity};

    #[test]
    fn a_pod_reads_what_it_would_read_in_any_cluster() {
        let network = Network::new(Config::default()).expect("a network for a test");
        let pod = network
            .attach_pod(PodIdentity {
                namespace: "shop".to_owned(),
                hostname: "web-0".to_owned(),
                subdomain: Some("web".to_owned()),
                host_aliases: vec![([10, 1, 2, 3].into(), vec!["db".to_owned()])],
                ..PodIdentity::default()
            })
            .expect("an address");
        let [(_, hosts), (_, resolv_conf), (_, hostname)] = etc(&pod);
        let own = format!(
            "{}\tweb-0.web.shop.svc.cluster.local\tweb-0\n",
            pod.address()
        );
        assert!(hosts.contains(&own), "{hosts}");
        assert!(hosts.ends_with("10.1.2.3\tdb\n"), "{hosts}");
        assert_eq!(
            resolv_conf,
            "search shop.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n"
        );
        assert_eq!(hostname, "web-0\n");
    }
}
