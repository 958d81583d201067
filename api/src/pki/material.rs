//! What all API servers of one cluster have in common: the authority and the key that signs service accounts' tokens.
//! Owns where it is kept: files of the one server, or internal records of the store that several share.
//!
//! Internal records have resources that no kind has, so no request ever reaches them.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use rcgen::KeyPair;
use serde_json::{Value, json};

use super::{Error, Identity, files, make, make_ca};
use crate::store::{self, Change, Draft, Expect, Index, Key, Operation, Store};

/// The storage name of these records. Their values are sealed wherever Secrets are.
pub const RESOURCE: &str = "internal/material";
const CA: &str = "ca";
const SERVICE_ACCOUNT: &str = "sa";

/// Made once for a cluster, and never again.
#[derive(Clone)]
pub struct Material {
    pub(super) ca: Identity,
    /// PEM, PKCS8.
    pub(super) service_account_key: String,
}

// === impl Material ===

impl Material {
    pub(super) fn in_memory(now: jiff::Timestamp) -> Result<Self, Error> {
        Ok(Self {
            ca: make_ca(now)?,
            service_account_key: make_key()?,
        })
    }

    /// From the files `ca` and `sa`, which are made where they are missing.
    pub(super) fn in_files(directory: &Path, now: jiff::Timestamp) -> Result<Self, Error> {
        let ca = match files::read(directory, CA)? {
            Some(ca) => ca,
            None => {
                let ca = make_ca(now)?;
                files::write(directory, CA, &ca)?;
                ca
            }
        };
        let path = directory.join(format!("{SERVICE_ACCOUNT}.key"));
        let service_account_key = match files::read_text(&path)? {
            Some(key) => key,
            None => {
                let key = make_key()?;
                files::write_private(&path, key.as_bytes())?;
                key
            }
        };
        Ok(Self {
            ca,
            service_account_key,
        })
    }

    /// From the store. Whichever server comes first makes it (of the files in `seed`, where an operator has put an
    /// authority of their own); the others find it.
    pub async fn in_store(
        store: &dyn Store,
        seed: Option<&Path>,
        now: jiff::Timestamp,
    ) -> Result<Self, Error> {
        let seed = seed.map(|directory| directory.join("pki"));
        let ca = record(store, CA, || {
            let given = seed.as_deref().map(|seed| files::read(seed, CA));
            let ca = match given.transpose()?.flatten() {
                Some(ca) => ca,
                None => make_ca(now)?,
            };
            Ok(json!({ "certificate": ca.certificate_pem, "key": ca.key_pem }))
        });
        let ca = ca.await?;
        let key = record(store, SERVICE_ACCOUNT, || {
            let path = seed.as_ref().map(|seed| seed.join("sa.key"));
            let given = path.as_deref().map(files::read_text).transpose()?.flatten();
            let key = given.map_or_else(make_key, Ok)?;
            Ok(json!({ "key": key }))
        });
        let key = key.await?;
        Ok(Self {
            ca: Identity {
                certificate_pem: text(&ca, CA, "certificate")?,
                key_pem: text(&ca, CA, "key")?,
            },
            service_account_key: text(&key, SERVICE_ACCOUNT, "key")?,
        })
    }
}

/// The record, made if it is missing; of several that make it at once, one wins.
async fn record(
    store: &dyn Store,
    name: &str,
    make: impl FnOnce() -> Result<Value, Error>,
) -> Result<Value, Error> {
    let key = Key::new(RESOURCE, "", name);
    let unusable = |source| Error::Store {
        name: name.to_owned(),
        source,
    };
    if let Some(newest) = store.newest() {
        newest.await.map_err(unusable)?;
    }
    let found = match store.cache().get(&key) {
        Some(found) => found,
        None => {
            let operation = Operation {
                key,
                expect: Expect::Absent,
                change: Change::Put(draft(name, &make()?)),
            };
            match store.commit(vec![operation]).await {
                Ok(mut stored) if stored.len() == 1 => stored.remove(0),
                Ok(_) => return Err(read(name, "the store answered nothing")),
                Err(store::Error::Conflict {
                    found: Some(found), ..
                }) => found,
                Err(source) => return Err(unusable(source)),
            }
        }
    };
    let record: Result<Value, _> = serde_json::from_slice(&found.bytes);
    let record = record.map_err(|error| read(name, &error.to_string()))?;
    Ok(record["data"].clone())
}

fn draft(name: &str, data: &Value) -> Draft {
    let head = format!(
        "{{\"kind\":\"Material\",\"apiVersion\":\"internal\",\"metadata\":{{\"name\":\"{name}\",\"resourceVersion\":\""
    );
    Draft {
        head: Bytes::from(head),
        tail: Bytes::from(format!("\"}},\"data\":{data}}}")),
        index: Index::default(),
    }
}

fn text(record: &Value, name: &str, field: &str) -> Result<String, Error> {
    let text = record[field].as_str().map(str::to_owned);
    text.ok_or_else(|| read(name, &format!("its record has no {field}")))
}

fn read(name: &str, reason: &str) -> Error {
    super::read(&format!("{RESOURCE}/{name}"), reason.to_owned())
}

/// EC P-256, as tokens are signed with ES256.
fn make_key() -> Result<String, Error> {
    let failed = |source| make("service accounts", source);
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    Ok(key.serialize_pem())
}

/// The public half of a private key, PEM (SubjectPublicKeyInfo).
pub(super) fn public_half(key_pem: &str) -> Result<Arc<str>, Error> {
    let key = KeyPair::from_pem(key_pem).map_err(|source| make("service accounts", source))?;
    Ok(key.public_key_pem().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::Pki;
    use crate::store::memory::Memory;

    fn now() -> jiff::Timestamp {
        jiff::Timestamp::from_second(1_800_000_000).expect("a time")
    }

    #[tokio::test]
    async fn servers_that_start_at_once_share_one_authority() {
        let store = Memory::new();
        let (a, b) = tokio::join!(
            Material::in_store(&store, None, now()),
            Material::in_store(&store, None, now()),
        );
        let (a, b) = (a.expect("made"), b.expect("found"));
        assert_eq!(a.ca.certificate_pem, b.ca.certificate_pem);
        assert_eq!(a.service_account_key, b.service_account_key);
        let pki = Pki::with(a, None, now()).expect("usable");
        assert!(pki.service_account_key().contains("PRIVATE KEY"));
        assert!(
            pki.service_account_public_key()
                .contains("BEGIN PUBLIC KEY")
        );
    }

    #[tokio::test]
    async fn an_authority_that_lies_in_the_directory_becomes_the_clusters() {
        let directory = tempfile::tempdir().expect("a directory");
        let own = Pki::open(Some(directory.path()), now()).expect("made");
        let store = Memory::new();
        let shared = Material::in_store(&store, Some(directory.path()), now());
        let shared = shared.await.expect("made");
        assert_eq!(shared.ca.certificate_pem, own.ca_pem());
        assert_eq!(shared.service_account_key, own.service_account_key());
    }
}
