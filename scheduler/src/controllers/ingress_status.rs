//! Says in Ingresses, Gateways and HTTPRoutes what became of them: where nodes listen, which references lead nowhere, what
//! is not supported. Compiles what nodes compile, and reads in their Node objects where they listen. Serves nothing.

mod apply;
mod desired;
mod secrets;

pub use apply::Controller;
pub use desired::{Change, Nodes, plan};

use k8s_openapi::ByteString;
use serde::Deserialize;
use types::certificate;
use types::routing::Secret as State;
use types::routing::gateway_api::{Meta as RoutingMeta, Object as RoutingObject};

use crate::objects::{Meta, Object, Watched};

/// A Secret, of which only is kept what nodes make of it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(from = "Whole")]
pub struct TlsSecret {
    pub metadata: Meta,
    state: State,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Whole {
    metadata: Meta,
    data: Option<Data>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Data {
    #[serde(rename = "tls.crt")]
    certificate: Option<ByteString>,
    #[serde(rename = "tls.key")]
    key: Option<ByteString>,
}

impl From<Whole> for TlsSecret {
    fn from(whole: Whole) -> Self {
        let data = whole.data.unwrap_or_default();
        let certificate = data.certificate.as_ref().map(|bytes| bytes.0.as_slice());
        let key = data.key.as_ref().map(|bytes| bytes.0.as_slice());
        let state = match certificate::of_secret(certificate, key) {
            Ok(_) => State::Good,
            Err(why) => State::Bad(why),
        };
        Self {
            metadata: whole.metadata,
            state,
        }
    }
}

impl Watched for TlsSecret {
    fn meta(&self) -> &Meta {
        &self.metadata
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
