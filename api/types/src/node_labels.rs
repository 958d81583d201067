//! Which labels a node may put on itself: upstream's `IsKubeletLabel`. The kubelet's flag and the API's NodeRestriction ask
//! here, so that what one takes the other does not refuse.

use crate::well_known::{LABEL_ARCH, LABEL_HOSTNAME, LABEL_OS, LABEL_REGION, LABEL_ZONE};

/// In Kubernetes' namespaces; others there would let a node attract what is not meant for it.
const OWN: [&str; 11] = [
    LABEL_HOSTNAME,
    LABEL_ZONE,
    LABEL_REGION,
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    LABEL_OS,
    LABEL_ARCH,
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
];
/// Any label in these, and below them.
const OWN_NAMESPACES: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];

/// Kubernetes' own namespaces are closed but for what describes the machine; everybody else's are open.
pub fn may_set(key: &str) -> bool {
    let Some((namespace, _)) = key.split_once('/') else {
        return true;
    };
    let within = |parent: &str| {
        let above = namespace.strip_suffix(parent);
        above.is_some_and(|above| above.is_empty() || above.ends_with('.'))
    };
    let kubernetes = within("kubernetes.io") || within("k8s.io");
    !kubernetes || OWN.contains(&key) || OWN_NAMESPACES.into_iter().any(within)
}

#[cfg(test)]
mod tests {
    use super::may_set;

    #[test]
    fn a_node_describes_its_machine_and_no_more() {
        for (key, may) in [
            ("team", true),
            ("example.org/a", true),
            ("notkubernetes.io/a", true),
            ("kubernetes.io/hostname", true),
            ("topology.kubernetes.io/zone", true),
            ("failure-domain.beta.kubernetes.io/zone", true),
            ("node.kubernetes.io/windows-build", true),
            ("x.kubelet.kubernetes.io/a", true),
            ("failure-domain.kubernetes.io/zone", false),
            ("kubernetes.io/a", false),
            ("k8s.io/a", false),
            ("a.k8s.io/b", false),
            ("node-role.kubernetes.io/control-plane", false),
            ("node-restriction.kubernetes.io/a", false),
            ("a.node-restriction.kubernetes.io/b", false),
        ] {
            assert_eq!(may_set(key), may, "{key}");
        }
    }
}
