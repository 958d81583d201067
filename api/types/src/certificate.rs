//! A Secret's certificate and key for TLS, read in one way by nodes, which show it, and by the controller, which says what
//! nodes do. Never asks whether a client will trust it, nor whether it has expired.

use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::{Error as Pem, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

/// Of a Secret's `tls.crt` and `tls.key`. The error is for people, and goes on after the Secret's name: `has no tls.key`.
pub fn of_secret(certificate: Option<&[u8]>, key: Option<&[u8]>) -> Result<CertifiedKey, String> {
    let certificate = certificate.ok_or("has no tls.crt")?;
    let key = key.ok_or("has no tls.key")?;
    parse(certificate, key).map_err(|why| format!("cannot be used for TLS: {why}"))
}

/// Of PEM, the server's own certificate first.
pub fn parse(certificate: &[u8], key: &[u8]) -> Result<CertifiedKey, String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate).collect();
    let chain = chain.map_err(|error| format!("tls.crt: {error}"))?;
    if chain.is_empty() {
        return Err("tls.crt holds no certificate in PEM".to_owned());
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| match error {
        Pem::NoItemsFound => {
            "tls.key holds no private key in PEM, or one with a password".to_owned()
        }
        error => format!("tls.key: {error}"),
    })?;
    CertifiedKey::from_der(chain, key, &Arc::new(ring::default_provider()))
        .map_err(|error| format!("tls.crt and tls.key: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// PEM of a certificate and its key.
    fn issue() -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let names = vec!["a.test".to_owned()];
        let certificate = rcgen::CertificateParams::new(names).unwrap();
        let certificate = certificate.self_signed(&key).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    #[test]
    fn what_cannot_be_shown_is_refused_and_named() {
        let ((certificate, key), (other, _)) = (issue(), issue());
        let cut = &certificate[..certificate.len() / 2];
        let lines: Vec<&str> = certificate.lines().collect();
        let broken = [&lines[..2], &lines[lines.len() - 1..]].concat().join("\n");
        let sealed = key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
        let garbled = key.replace(&key[40..60], "MHcCAQEEIAAAAAAAAAAA");
        let bags = format!("Bag Attributes\n    friendlyName: a\n{certificate}");
        for (certificate, key, expected) in [
            (&*certificate, &*key, ""),
            (&bags, &key, ""),
            (&other, &key, "tls.crt and tls.key: "),
            (cut, &key, "tls.crt: "),
            (&broken, &key, "tls.crt and tls.key: "),
            (&certificate, &sealed, "tls.key holds no private key in PEM"),
            (&certificate, &garbled, "tls.crt and tls.key: "),
            (&key, &key, "tls.crt holds no certificate"),
            (&certificate, &certificate, "tls.key holds no private key"),
            ("x", &key, "tls.crt holds no certificate"),
            ("", "", "tls.crt holds no certificate"),
        ] {
            match parse(certificate.as_bytes(), key.as_bytes()) {
                Ok(_) => assert_eq!(expected, "", "{certificate}{key}"),
                Err(why) => assert!(!expected.is_empty() && why.starts_with(expected), "{why}"),
            }
        }
        let missing = |result: Result<CertifiedKey, String>| result.map(drop).unwrap_err();
        assert_eq!(missing(of_secret(None, None)), "has no tls.crt");
        assert_eq!(missing(of_secret(Some(b""), None)), "has no tls.key");
    }
}
