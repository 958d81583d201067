//! Rows of gateway.networking.k8s.io, as its CRDs (standard channel) describe them. Data, no code.

use super::{READ_WRITE, row, sub};
use crate::kinds::Kind;
use crate::kinds::Scope::{Cluster, Namespaced};
use crate::kinds::{columns, gateway};

const GROUP: &str = "gateway.networking.k8s.io";

pub(super) fn gateway() -> Vec<Kind> {
    const CATEGORIES: &[&str] = &["gateway-api"];
    vec![
        row(GROUP, "v1", "GatewayClass", "gatewayclasses", Cluster)
            .strategy(&gateway::GATEWAY_CLASS)
            .columns(&columns::gateway::GATEWAY_CLASS)
            .short(&["gc"])
            .categories(CATEGORIES)
            .subresources(const { &[sub("status", "", "", "GatewayClass", READ_WRITE)] }),
        row(GROUP, "v1", "Gateway", "gateways", Namespaced)
            .strategy(&gateway::GATEWAY)
            .columns(&columns::gateway::GATEWAY)
            .short(&["gtw"])
            .categories(CATEGORIES)
            .subresources(const { &[sub("status", "", "", "Gateway", READ_WRITE)] }),
        row(GROUP, "v1", "HTTPRoute", "httproutes", Namespaced)
            .strategy(&gateway::HTTP_ROUTE)
            .columns(&columns::gateway::HTTP_ROUTE)
            .categories(CATEGORIES)
            .subresources(const { &[sub("status", "", "", "HTTPRoute", READ_WRITE)] }),
        row(GROUP, "v1", "ReferenceGrant", "referencegrants", Namespaced)
            .strategy(&gateway::REFERENCE_GRANT)
            .columns(&columns::NAME_AND_AGE)
            .short(&["refgrant"])
            .categories(CATEGORIES),
        row(
            GROUP,
            "v1beta1",
            "ReferenceGrant",
            "referencegrants",
            Namespaced,
        )
        .strategy(&gateway::REFERENCE_GRANT)
        .columns(&columns::NAME_AND_AGE)
        .stored_as(
            "gateway.networking.k8s.io/referencegrants",
            &gateway::BetaGrants,
        )
        .short(&["refgrant"])
        .categories(CATEGORIES),
    ]
}
