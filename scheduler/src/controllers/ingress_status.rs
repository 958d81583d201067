//! Says in Ingresses, Gateways and HTTPRoutes what became of them: where nodes listen, which references lead nowhere, what
//! is not supported. Compiles what nodes compile, and reads in their Node objects where they listen. Serves nothing.

mod apply;
mod desired;
mod secrets;

pub use apply::Controller;
pub use desired::{Change, Nodes, plan};

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use types::routing::Secret as State;
use types::routing::gateway_api::{Meta as RoutingMeta, Object as RoutingObject};

use crate::objects::{Meta, Object, Watched};

/// A Secret, of which only is kept whether it could be a certificate with its key.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct TlsSecret {
    pub metadata: Meta,
    data: TlsData,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct TlsData {
    #[serde(rename = "tls.crt", deserialize_with = "pem")]
    certificate: Part,
    #[serde(rename = "tls.key", deserialize_with = "pem")]
    key: Part,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Part {
    #[default]
    Absent,
    NoPem,
    Pem,
}

/// `-----BEGIN`, as far as it does not depend on what follows.
const BEGIN: &str = "LS0tLS1CRUdJT";

fn pem<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Part, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    Ok(match text {
        None => Part::Absent,
        Some(text) if text.starts_with(BEGIN) => Part::Pem,
        Some(_) => Part::NoPem,
    })
}

impl Watched for TlsSecret {
    fn meta(&self) -> &Meta {
        &self.metadata
    }
}

impl TlsSecret {
    fn state(&self) -> State {
        let parts = BTreeMap::from([
            ("tls.crt", self.data.certificate),
            ("tls.key", self.data.key),
        ]);
        for (name, part) in parts {
            match part {
                Part::Absent => return State::Bad(format!("has no {name}")),
                Part::NoPem => return State::Bad(format!("has a {name} that is no PEM")),
                Part::Pem => {}
            }
        }
        State::Good
    }
}

/// An object as the compiler of routes wants it.
fn routing<S: Clone, T>(object: &Object<S, T>) -> RoutingObject<S> {
    let meta = &object.metadata;
    RoutingObject {
        metadata: RoutingMeta {
            name: meta.name.clone(),
            namespace: meta.namespace.clone(),
            uid: meta.uid.clone(),
            generation: meta.generation,
            labels: meta.labels.clone(),
            annotations: meta.annotations.clone(),
            creation_timestamp: meta.creation_timestamp.clone(),
        },
        spec: object.spec.clone(),
    }
}
