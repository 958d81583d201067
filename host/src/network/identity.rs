//! Who a pod is to others: what metrics, policies and other nodes know of the source of a stream. A value; it decides nothing.

use std::fmt;

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

/// `spiffe://cluster.local/ns/NS/sa/SA`
pub(crate) struct Spiffe<'a>(&'a Identity);

// === impl Identity ===

impl Identity {
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
