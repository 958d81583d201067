//! Signing what others ask for: a certificate signing request becomes a certificate of this cluster's authority. Whether
//! it should be is decided by whoever calls.

use std::time::Duration;

use rcgen::{
    CertificateSigningRequestParams, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SerialNumber,
};
use rustls_pki_types::CertificateSigningRequestDer;
use time::OffsetDateTime;

use super::{BACKDATE, Error, Pki, make};

/// What a usage of the Kubernetes API (`certificates.k8s.io`, `spec.usages`) is in a certificate.
enum Purpose {
    Key(KeyUsagePurpose),
    Extended(ExtendedKeyUsagePurpose),
}

// === impl Pki ===

impl Pki {
    /// Signs the public key, subject and alternative names of a DER request, for these `usages` (in the API's words) and
    /// nothing else it may ask for, from now for `lifetime` (at most until the authority ends). Answers PEM: the leaf.
    ///
    /// # Errors
    /// A request that cannot be read, or whose signature is not its key's; a usage there is no bit for.
    pub fn sign(
        &self,
        csr_der: &[u8],
        usages: &[&str],
        lifetime: Duration,
        now: jiff::Timestamp,
    ) -> Result<String, Error> {
        let unreadable = |source| make("a certificate signing request", source);
        let request = CertificateSigningRequestDer::from(csr_der);
        let mut request =
            CertificateSigningRequestParams::from_der(&request).map_err(unreadable)?;
        let params = &mut request.params;
        params.is_ca = IsCa::NoCa;
        params.key_usages.clear();
        params.extended_key_usages.clear();
        for usage in usages {
            match purpose(usage).ok_or_else(|| Error::Usage((*usage).to_owned()))? {
                Purpose::Key(purpose) => params.key_usages.push(purpose),
                Purpose::Extended(purpose) => params.insert_extended_key_usage(purpose),
            }
        }
        // Derived from the key it would be the same for every renewal; the first bit must not be a sign.
        let mut serial: [u8; 16] = rand::random();
        serial[0] &= 0x7f;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.use_authority_key_identifier_extension = true;
        let begin = OffsetDateTime::from_unix_timestamp(now.as_second())
            .unwrap_or(OffsetDateTime::UNIX_EPOCH);
        let lifetime = time::Duration::try_from(lifetime).unwrap_or(time::Duration::MAX);
        // Whoever renews counts from the beginning: a short life must not be over before it was lived.
        params.not_before = begin - BACKDATE.min(lifetime / 10);
        params.not_after = begin.saturating_add(lifetime).min(self.ends());
        let certificate = request.signed_by(&self.issuer).map_err(unreadable)?;
        Ok(certificate.pem())
    }
}

fn purpose(usage: &str) -> Option<Purpose> {
    use ExtendedKeyUsagePurpose as Extended;
    use KeyUsagePurpose as Key;
    Some(match usage {
        "signing" | "digital signature" => Purpose::Key(Key::DigitalSignature),
        "content commitment" => Purpose::Key(Key::ContentCommitment),
        "key encipherment" => Purpose::Key(Key::KeyEncipherment),
        "data encipherment" => Purpose::Key(Key::DataEncipherment),
        "key agreement" => Purpose::Key(Key::KeyAgreement),
        "crl sign" => Purpose::Key(Key::CrlSign),
        "encipher only" => Purpose::Key(Key::EncipherOnly),
        "decipher only" => Purpose::Key(Key::DecipherOnly),
        "any" => Purpose::Extended(Extended::Any),
        "server auth" => Purpose::Extended(Extended::ServerAuth),
        "client auth" => Purpose::Extended(Extended::ClientAuth),
        "code signing" => Purpose::Extended(Extended::CodeSigning),
        "email protection" | "s/mime" => Purpose::Extended(Extended::EmailProtection),
        "timestamping" => Purpose::Extended(Extended::TimeStamping),
        "ocsp signing" => Purpose::Extended(Extended::OcspSigning),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, DnType, KeyPair, SanType};
    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject as _;
    use x509_parser::prelude::{FromDer as _, X509Certificate};

    use super::*;
    use crate::auth::User;

    const HOUR: Duration = Duration::from_secs(3_600);

    fn now() -> jiff::Timestamp {
        jiff::Timestamp::from_second(1_800_000_000).expect("a time")
    }

    fn request(key: &KeyPair, params: &mut CertificateParams) -> Vec<u8> {
        params
            .distinguished_name
            .push(DnType::OrganizationName, "system:nodes");
        params
            .distinguished_name
            .push(DnType::CommonName, "system:node:n1");
        let request = params.serialize_request(key).expect("made");
        request.der().to_vec()
    }

    #[test]
    fn a_request_is_signed_for_what_was_granted_and_not_for_what_it_asks() {
        let pki = Pki::open(None, now()).expect("made");
        let key = KeyPair::generate().expect("made");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .subject_alt_names
            .push(SanType::IpAddress([192, 0, 2, 7].into()));
        let der = request(&key, &mut params);
        let sign = |lifetime| {
            let usages = ["digital signature", "client auth"];
            pki.sign(&der, &usages, lifetime, now()).expect("signed")
        };
        let pem = sign(HOUR);
        let leaf = CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM");
        let user = User::from_certificate(&leaf).expect("names somebody");
        assert_eq!(user.name, "system:node:n1");
        let (_, leaf) = X509Certificate::from_der(&leaf).expect("a certificate");
        assert!(pki.has_signed(&leaf));
        assert!(!leaf.is_ca());
        let usage = leaf.extended_key_usage().expect("read").expect("there");
        assert!(usage.value.client_auth && !usage.value.server_auth);
        assert!(leaf.subject_alternative_name().expect("read").is_some());
        assert_eq!(leaf.validity().not_after.timestamp(), 1_800_003_600);
        let begins = leaf.validity().not_before.timestamp();
        assert_eq!(
            begins,
            1_800_000_000 - 360,
            "a short life begins at most a tenth earlier"
        );

        let again = sign(HOUR);
        assert_ne!(again, pem, "every certificate has a serial of its own");
        let forever = CertificateDer::from_pem_slice(sign(HOUR * 999_999).as_bytes());
        let forever = forever.expect("PEM");
        let (_, forever) = X509Certificate::from_der(&forever).expect("a certificate");
        assert_eq!(
            forever.validity().not_after.timestamp(),
            pki.ends().unix_timestamp()
        );
    }

    #[test]
    fn a_forged_request_or_an_unknown_usage_is_refused() {
        let pki = Pki::open(None, now()).expect("made");
        let key = KeyPair::generate().expect("made");
        let mut der = request(&key, &mut CertificateParams::default());
        let refused = pki.sign(&der, &["cert sign"], HOUR, now());
        assert!(matches!(refused, Err(Error::Usage(usage)) if usage == "cert sign"));
        let last = der.len() - 1;
        der[last] ^= 1;
        assert!(pki.sign(&der, &["client auth"], HOUR, now()).is_err());
        assert!(pki.sign(b"nonsense", &[], HOUR, now()).is_err());
    }
}
