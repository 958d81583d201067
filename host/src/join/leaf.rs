//! What one of the node's certificates says. Reads; trusts nothing: whoever is shown it verifies it.

use std::net::IpAddr;
use std::path::Path;

use jiff::Timestamp;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::Error;
use crate::tls;

pub(crate) struct Leaf {
    pub(crate) common_name: String,
    pub(crate) begins: Timestamp,
    pub(crate) ends: Timestamp,
    pub(crate) names: Vec<String>,
    pub(crate) addresses: Vec<IpAddr>,
}

// === impl Leaf ===

impl Leaf {
    /// `path` is for the message only.
    pub(crate) fn read(path: &Path, pem: &str) -> Result<Self, Error> {
        let unreadable = |reason: String| Error::Unreadable {
            path: path.to_owned(),
            reason,
        };
        let chain = tls::certificates(pem.as_bytes(), "the node's certificate")?;
        let first = chain
            .first()
            .ok_or_else(|| unreadable("no certificate in it".to_owned()))?;
        let (_, certificate) =
            X509Certificate::from_der(first).map_err(|error| unreadable(error.to_string()))?;
        let common_name = certificate.subject().iter_common_name().next();
        let common_name = common_name.and_then(|name| name.as_str().ok());
        let time = |second: i64| {
            Timestamp::from_second(second).map_err(|error| unreadable(error.to_string()))
        };
        let validity = certificate.validity();
        let mut leaf = Self {
            common_name: common_name.unwrap_or_default().to_owned(),
            begins: time(validity.not_before.timestamp())?,
            ends: time(validity.not_after.timestamp())?,
            names: Vec::new(),
            addresses: Vec::new(),
        };
        if let Ok(Some(extension)) = certificate.subject_alternative_name() {
            for name in &extension.value.general_names {
                match name {
                    GeneralName::DNSName(name) => leaf.names.push((*name).to_owned()),
                    GeneralName::IPAddress(bytes) => leaf.addresses.extend(address(bytes)),
                    _ => {}
                }
            }
        }
        Ok(leaf)
    }

    /// When to ask for the next one: after `share` of its life, between 0 and 1.
    pub(crate) fn renew_at(&self, share: f64) -> Timestamp {
        let life = self.ends.as_second() - self.begins.as_second();
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            reason = "seconds of a few decades"
        )]
        let after = (life as f64 * share.clamp(0.0, 1.0)) as i64;
        Timestamp::from_second(self.begins.as_second() + after).unwrap_or(self.ends)
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Some(four.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}
