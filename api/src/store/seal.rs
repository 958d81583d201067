//! Encryption at rest: which values are sealed, with what, and how a sealed value is told from a plain one. Pure but
//! for the key file and the nonces.
//!
//! A sealed value is `00 "cs1"`, eight bytes that name the key, a nonce of twelve random bytes, and AES-256-GCM's
//! output; its associated data is the object's key, so that a value cannot be moved to another object. Plain values are
//! JSON and never begin with a zero, so both live side by side; what is not sealed with the first key is sealed anew when a
//! server starts (`reseal`).
//!
//! The key file has one key a line, base64 of 32 random bytes (`head -c 32 /dev/urandom | base64`); empty lines and
//! lines that begin with `#` do not count. The first key seals, all of them open: to change keys put the new one first and
//! start again; then take the old one out. Where several servers share a store, all of them must have the new key (behind
//! the old one) before one of them has it first. One key is good for 2³² writes.

use std::borrow::Cow;
use std::fmt;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use aes_gcm::aead::{Aead as _, KeyInit as _, Payload};
use aes_gcm::{Aes256Gcm, Key as AesKey, Nonce};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

use super::Key;

/// The resources whose values are sealed when there is a key.
pub(super) const SEALED: &[&str] = &["secrets", crate::pki::MATERIAL];
const MARK: &[u8] = b"\0cs1";
const NAME_BYTES: usize = 8;
const NONCE_BYTES: usize = 12;
const HEAD_BYTES: usize = MARK.len() + NAME_BYTES + NONCE_BYTES;

/// The keys; without any, nothing is sealed, and what is sealed cannot be opened.
#[derive(Clone, Default)]
pub struct Sealer(Vec<Sealing>);

#[derive(Clone)]
struct Sealing {
    name: [u8; NAME_BYTES],
    cipher: Aes256Gcm,
}

/// Why a value stays sealed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Sealed {
    /// None of our keys has this name.
    UnknownKey(String),
    /// Changed since, or another object's.
    Damaged,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read the encryption keys in {}", path.display())]
    File {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the encryption keys in {} can be read by everybody (mode {mode:o}); they must not", path.display())]
    Mode { path: PathBuf, mode: u32 },
    #[error("line {line} of {} is not the base64 of 32 bytes", path.display())]
    Line { path: PathBuf, line: usize },
    #[error("there is no key in {}", path.display())]
    Empty { path: PathBuf },
}

// === impl Sealer ===

impl Sealer {
    /// Reads a key file.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::File {
            path: path.to_owned(),
            source,
        };
        let mode = std::fs::metadata(path)
            .map_err(failed)?
            .permissions()
            .mode()
            & 0o777;
        if mode & 0o007 != 0 {
            let path = path.to_owned();
            return Err(Error::Mode { path, mode });
        }
        let text = std::fs::read_to_string(path).map_err(failed)?;
        let mut keys = Vec::new();
        for (line, text) in (1..).zip(text.lines()) {
            let text = text.trim();
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let key = STANDARD.decode(text).ok();
            let key: Option<[u8; 32]> = key.and_then(|key| key.try_into().ok());
            let path = || path.to_owned();
            keys.push(key.ok_or_else(|| Error::Line { path: path(), line })?);
        }
        if keys.is_empty() {
            let path = path.to_owned();
            return Err(Error::Empty { path });
        }
        Ok(Self::new(keys))
    }

    /// The first key seals, all of them open.
    pub fn new(keys: impl IntoIterator<Item = [u8; 32]>) -> Self {
        let sealing = |key: [u8; 32]| {
            let digest = Sha256::digest(key);
            let mut name = [0; NAME_BYTES];
            name.copy_from_slice(&digest[..NAME_BYTES]);
            let cipher = Aes256Gcm::new(&AesKey::<Aes256Gcm>::from(key));
            Sealing { name, cipher }
        };
        Self(keys.into_iter().map(sealing).collect())
    }

    /// What is written for `bytes`.
    pub(super) fn seal<'b>(&self, key: &Key, bytes: &'b [u8]) -> Cow<'b, [u8]> {
        let Some(sealing) = self.0.first() else {
            return Cow::Borrowed(bytes);
        };
        if !SEALED.contains(&&*key.resource) {
            return Cow::Borrowed(bytes);
        }
        let nonce: [u8; NONCE_BYTES] = rand::random();
        let payload = Payload {
            msg: bytes,
            aad: &associated(key),
        };
        let sealed = sealing.cipher.encrypt(&Nonce::from(nonce), payload);
        // It fails beyond 64 GiB only; a request has 3 MiB.
        let sealed = sealed.expect("an object is small");
        let mut out = Vec::with_capacity(HEAD_BYTES + sealed.len());
        out.extend_from_slice(MARK);
        out.extend_from_slice(&sealing.name);
        out.extend_from_slice(&nonce);
        out.extend_from_slice(&sealed);
        Cow::Owned(out)
    }

    /// What was written, whether it is sealed or not.
    pub(super) fn open(&self, key: &Key, bytes: Vec<u8>) -> Result<Vec<u8>, Sealed> {
        if !bytes.starts_with(MARK) {
            return Ok(bytes);
        }
        let Some((head, sealed)) = bytes.split_at_checked(HEAD_BYTES) else {
            return Err(Sealed::Damaged);
        };
        let (name, nonce) = head[MARK.len()..].split_at(NAME_BYTES);
        let known = self.0.iter().find(|sealing| sealing.name == name);
        let sealing = known.ok_or_else(|| Sealed::UnknownKey(hex(name)))?;
        let nonce: [u8; NONCE_BYTES] = nonce.try_into().map_err(|_| Sealed::Damaged)?;
        let payload = Payload {
            msg: sealed,
            aad: &associated(key),
        };
        let opened = sealing.cipher.decrypt(&Nonce::from(nonce), payload);
        opened.map_err(|_| Sealed::Damaged)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// There are keys that only open.
    pub(super) fn has_others(&self) -> bool {
        self.0.len() > 1
    }

    /// What everything begins with that is sealed with the first key.
    pub(super) fn head(&self) -> Option<Vec<u8>> {
        let first = self.0.first()?;
        Some([MARK, &first.name].concat())
    }

    /// The value should be sealed with the first key, and is not.
    pub(super) fn is_due(&self, key: &Key, value: &[u8]) -> bool {
        let sealed = |head: Vec<u8>| value.starts_with(&head);
        SEALED.contains(&&*key.resource) && self.head().is_some_and(|head| !sealed(head))
    }
}

/// The name of the key that a value is sealed with; `None` of plain text.
pub(super) fn name_of(value: &[u8]) -> Option<String> {
    let rest = value.strip_prefix(MARK)?;
    Some(hex(&rest[..NAME_BYTES.min(rest.len())]))
}

/// Names of keys only.
impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.0.iter().map(|sealing| hex(&sealing.name));
        f.debug_list().entries(names).finish()
    }
}

impl fmt::Display for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownKey(name) => write!(f, "it is sealed with the key {name}, unknown here"),
            Self::Damaged => f.write_str("its seal is broken"),
        }
    }
}

/// No part of a key has a zero byte in it.
fn associated(key: &Key) -> Vec<u8> {
    [&*key.resource, &*key.namespace, &*key.name]
        .join("\0")
        .into_bytes()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(name: &str) -> Key {
        Key::new("secrets", "default", name)
    }

    #[test]
    fn what_is_sealed_is_opened_by_its_key_for_its_object_and_nothing_else() {
        let sealer = Sealer::new([[1; 32]]);
        let plain = b"{\"data\":\"hush\"}";
        let sealed = sealer.seal(&secret("a"), plain).into_owned();
        assert_ne!(sealer.seal(&secret("a"), plain), sealed, "a fresh nonce");
        assert!(!sealed.windows(4).any(|window| window == b"hush"));
        let open =
            |sealer: &Sealer, name, sealed: &[u8]| sealer.open(&secret(name), sealed.to_owned());
        assert_eq!(open(&sealer, "a", &sealed).as_deref(), Ok(&plain[..]));
        assert_eq!(open(&sealer, "b", &sealed), Err(Sealed::Damaged));
        assert_eq!(open(&sealer, "a", &sealed[..20]), Err(Sealed::Damaged));
        assert_eq!(open(&sealer, "a", plain).as_deref(), Ok(&plain[..]));
        for sealer in [Sealer::new([[2; 32]]), Sealer::default()] {
            let error = open(&sealer, "a", &sealed).err();
            assert!(matches!(error, Some(Sealed::UnknownKey(_))), "{error:?}");
        }
        let rotated = Sealer::new([[2; 32], [1; 32]]);
        assert_eq!(open(&rotated, "a", &sealed).as_deref(), Ok(&plain[..]));
        let map = Key::new("configmaps", "default", "a");
        assert_eq!(sealer.seal(&map, plain), &plain[..], "not everything is");
    }

    #[test]
    fn a_key_file_is_private_and_every_line_of_it_a_key() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("keys");
        let write = |text: &str, mode| {
            std::fs::write(&path, text).expect("written");
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(&path, mode).expect("set");
            Sealer::read(&path)
        };
        let one = STANDARD.encode([1; 32]);
        let sealer = write(&format!("# first\n\n {one} \n{one}\n"), 0o640);
        assert_eq!(sealer.expect("read").0.len(), 2);
        let error = write(&one, 0o644).expect_err("too open").to_string();
        assert!(error.contains("mode 644"), "{error}");
        let error = write("# none\n", 0o600).expect_err("empty").to_string();
        assert!(error.contains("no key"), "{error}");
        let error = write(&format!("{one}\nabc"), 0o600).expect_err("short");
        assert!(error.to_string().contains("line 2"), "{error}");
    }
}
