//! What a pod needs before its first container: an address, and its volumes as directories. Owns nothing that lasts.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::context::{Context, now};
use super::downward::Surroundings;
use super::volumes::directory;
use super::{objects, volumes};
use crate::network::{DnsPolicy, PodIdentity};

/// Volume name → directory on this node.
pub(crate) type Directories = BTreeMap<String, PathBuf>;

/// Who the pod is, for the network.
pub(crate) fn identity(pod: &Pod) -> PodIdentity {
    let metadata = &pod.metadata;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let spec = pod.spec.as_ref();
    let dns = spec.and_then(|spec| spec.dns_config.as_ref());
    let ndots = dns
        .and_then(|dns| dns.options.as_ref())
        .and_then(|options| {
            options
                .iter()
                .find(|option| option.name.as_deref() == Some("ndots"))
        })
        .and_then(|option| option.value.as_deref()?.parse().ok());
    let aliases = spec.and_then(|spec| spec.host_aliases.as_ref());
    let host_aliases = aliases
        .into_iter()
        .flatten()
        .filter_map(|alias| {
            Some((
                alias.ip.parse().ok()?,
                alias.hostnames.clone().unwrap_or_default(),
            ))
        })
        .collect();
    let address = pod
        .status
        .as_ref()
        .and_then(|status| status.pod_ip.as_deref()?.parse().ok());
    PodIdentity {
        namespace: text(&metadata.namespace),
        name: text(&metadata.name),
        uid: text(&metadata.uid),
        workload: workload(pod),
        service_account: spec
            .and_then(|spec| spec.service_account_name.clone())
            .unwrap_or_default(),
        address,
        hostname: hostname(pod),
        subdomain: spec.and_then(|spec| spec.subdomain.clone()),
        host_aliases,
        dns_policy: match spec.and_then(|spec| spec.dns_policy.as_deref()) {
            Some("Default") => DnsPolicy::Default,
            Some("None") => DnsPolicy::None,
            _ => DnsPolicy::ClusterFirst,
        },
        labels: metadata.labels.clone().unwrap_or_default(),
        ports: crate::network::named_ports(pod),
        searches: dns.and_then(|dns| dns.searches.clone()).unwrap_or_default(),
        ndots,
    }
}

/// `spec.hostname`, or the pod's name, cut to what a host name may have.
pub(crate) fn hostname(pod: &Pod) -> String {
    let own = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.hostname.clone())
        .filter(|name| !name.is_empty());
    let mut name = own
        .or_else(|| pod.metadata.name.clone())
        .unwrap_or_default();
    name.truncate(63);
    name.trim_end_matches(['-', '.']).to_owned()
}

/// The Deployment behind a ReplicaSet, or the owner itself, or the pod.
fn workload(pod: &Pod) -> String {
    let owners = pod.metadata.owner_references.iter().flatten();
    let Some(owner) = owners
        .into_iter()
        .find(|owner| owner.controller == Some(true))
    else {
        return pod.metadata.name.clone().unwrap_or_default();
    };
    let hash = pod
        .metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(types::well_known::LABEL_POD_TEMPLATE_HASH));
    let deployment =
        hash.and_then(|hash| owner.name.strip_suffix(hash.as_str())?.strip_suffix('-'));
    deployment.unwrap_or(&owner.name).to_owned()
}

/// Writes every mounted volume. Done again while the pod runs, it brings those up to date that follow other objects.
/// The error is the message of a `FailedMount` Event.
pub(crate) async fn make_volumes(
    context: Arc<Context>,
    pod: Arc<Pod>,
    around: Surroundings,
) -> Result<Directories, String> {
    let mounted = volumes::mounted(&pod);
    if mounted.is_empty() {
        return Ok(Directories::new());
    }
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let references = volumes::references(&mounted);
    let root = context.volumes_directory(pod.metadata.uid.as_deref().unwrap_or_default());
    let wanted = volumes::tokens::wanted(&mounted);
    let (sources, tokens) = tokio::join!(
        objects::fetch(&context.client, namespace, &references),
        volumes::tokens::fetch(&context.client, &pod, wanted, &root, now()),
    );
    let mut sources = sources.map_err(|error| error.to_string())?;
    sources.tokens = tokens?;
    let mut wanted = Vec::new();
    for volume in mounted {
        let contents = volumes::contents(&pod, volume, &sources, &around)
            .map_err(|error| failed(&volume.name, &error))?;
        wanted.push((volume.name.clone(), contents));
    }
    let written = tokio::task::spawn_blocking(move || {
        let mut directories = Directories::new();
        for (name, contents) in wanted {
            let directory = directory::write(&root.join(&name), &contents)
                .map_err(|error| failed(&name, &error))?;
            directories.insert(name, directory);
        }
        Ok(directories)
    });
    written.await.map_err(|error| error.to_string())?
}

fn failed(volume: &str, error: &volumes::Error) -> String {
    let source = std::error::Error::source(error)
        .map(|source| format!(": {source}"))
        .unwrap_or_default();
    format!("MountVolume.SetUp failed for volume \"{volume}\" : {error}{source}")
}

/// The volumes whose size is limited: name and bytes.
pub(crate) fn size_limits(pod: &Pod) -> Vec<(String, u64)> {
    let limited = volumes::mounted(pod).into_iter().filter_map(|volume| {
        let quantity = volume.empty_dir.as_ref()?.size_limit.as_ref()?;
        let bytes = types::quantity::Quantity::try_from(quantity).ok()?.bytes();
        (bytes > 0).then(|| (volume.name.clone(), bytes))
    });
    limited.collect()
}

/// The first volume that outgrew its limit, in the words of an eviction.
pub(crate) async fn outgrown(context: Arc<Context>, pod: Arc<Pod>) -> Option<String> {
    let limits = size_limits(&pod);
    let root = context.volumes_directory(pod.metadata.uid.as_deref().unwrap_or_default());
    let measured = tokio::task::spawn_blocking(move || {
        let mut limits = limits.into_iter();
        limits.find(|(name, limit)| directory::size(&root.join(name)) > *limit)
    });
    let (name, limit) = measured.await.ok()??;
    let limit = types::quantity::Quantity::from_bytes(limit);
    Some(format!(
        "Usage of EmptyDir volume \"{name}\" exceeds the limit \"{limit}\". "
    ))
}
