//! Who a pod is to others: what metrics, policies and other nodes know of the source of a stream. A value; it decides nothing.

use std::fmt;
use std::sync::LazyLock;

use super::namespaces::Labels;

/// Where clusters have their ingress controller, mostly, and so what their policies name.
pub(crate) const INGRESS: &str = "ingress-nginx";

/// A workload's identity. On its own node it comes from the Pod; from another node it is believed only for addresses of
/// that node.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Identity {
    pub(crate) namespace: String,
    /// Name of the Pod.
    pub(crate) pod: String,
    pub(crate) service_account: String,
    /// For metrics: the Deployment's (or other owner's) name; the pod's own where it has none.
    pub(crate) workload: String,
}

/// Labels by which policies select the controller's pods, and its namespace.
static INGRESS_POD: LazyLock<Labels> = LazyLock::new(|| {
    labels(&[
        ("app.kubernetes.io/component", "controller"),
        ("app.kubernetes.io/instance", INGRESS),
        ("app.kubernetes.io/name", INGRESS),
    ])
});
static INGRESS_NAMESPACE: LazyLock<Labels> = LazyLock::new(|| {
    labels(&[
        ("app.kubernetes.io/instance", INGRESS),
        ("app.kubernetes.io/name", INGRESS),
        (types::well_known::LABEL_NAMESPACE_NAME, INGRESS),
    ])
});

fn labels(all: &[(&str, &str)]) -> Labels {
    let pairs = all.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    pairs.collect()
}

/// Labels of the pod that Ingress and Gateway are to policies.
pub(crate) fn ingress_labels() -> &'static Labels {
    &INGRESS_POD
}

/// Labels of its namespace, where the cluster has none of that name.
pub(crate) fn namespace_labels(name: &str) -> Option<&'static Labels> {
    (name == INGRESS).then(|| &*INGRESS_NAMESPACE)
}

/// `spiffe://cluster.local/ns/NS/sa/SA`
pub(crate) struct Spiffe<'a>(&'a Identity);

// === impl Identity ===

impl Identity {
    /// Ingress and Gateway, on any node: to policies a pod as other clusters have it, which no policy could name otherwise.
    pub(crate) fn ingress() -> Self {
        Self {
            namespace: INGRESS.to_owned(),
            ..Self::default()
        }
    }

    /// No pod is without a name.
    pub(crate) fn is_ingress(&self) -> bool {
        self.pod.is_empty() && self.namespace == INGRESS
    }

    /// The SPIFFE name of the pod's service account.
    pub(crate) fn spiffe(&self) -> Spiffe<'_> {
        Spiffe(self)
    }
}

// === impl Spiffe ===

impl fmt::Display for Spiffe<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Identity {
            namespace,
            service_account,
            ..
        } = self.0;
        write!(
            f,
            "spiffe://{}/ns/{namespace}/sa/{service_account}",
            types::well_known::CLUSTER_DOMAIN
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_account_has_a_spiffe_name() {
        let identity = Identity {
            namespace: "shop".to_owned(),
            service_account: "cart".to_owned(),
            ..Identity::default()
        };
        assert_eq!(
            identity.spiffe().to_string(),
            "spiffe://cluster.local/ns/shop/sa/cart"
        );
    }
}
