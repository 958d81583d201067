//! Reads a PKCS #10 request: whom it names. Strict, because a signature makes it true. Pure.

use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject as _;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer as _;

/// What is asked to be certified.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Request {
    pub der: Vec<u8>,
    pub common_name: String,
    pub organizations: Vec<String>,
    pub dns: Vec<String>,
    pub addresses: Vec<IpAddr>,
    /// E-mail addresses, URIs and other alternative names.
    pub other_names: bool,
}

impl Request {
    /// From `spec.request`: PEM in base 64.
    ///
    /// # Errors
    /// What cannot be read, names two common names, or is not signed with its own key.
    pub fn parse(encoded: &str) -> Result<Self, String> {
        let pem = STANDARD
            .decode(encoded)
            .map_err(|error| error.to_string())?;
        let der = CertificateSigningRequestDer::from_pem_slice(&pem)
            .map_err(|_| "PEM block type must be CERTIFICATE REQUEST".to_owned())?;
        Self::from_der(&der)
    }

    fn from_der(der: &[u8]) -> Result<Self, String> {
        let (rest, csr) =
            X509CertificationRequest::from_der(der).map_err(|error| error.to_string())?;
        if !rest.is_empty() {
            return Err("there is something after the request".to_owned());
        }
        let mut request = Self {
            der: der.to_vec(),
            ..Self::default()
        };
        let subject = &csr.certification_request_info.subject;
        for part in subject.iter() {
            if part.iter().count() != 1 {
                return Err("a part of the subject must have one attribute".to_owned());
            }
        }
        let mut names = subject.iter_common_name();
        if let Some(name) = names.next() {
            let name = name.as_str().map_err(|error| error.to_string())?;
            name.clone_into(&mut request.common_name);
        }
        if names.next().is_some() {
            return Err("the subject has more than one common name".to_owned());
        }
        for organization in subject.iter_organization() {
            let organization = organization.as_str().map_err(|error| error.to_string())?;
            request.organizations.push(organization.to_owned());
        }
        for extension in csr.requested_extensions().into_iter().flatten() {
            if let ParsedExtension::SubjectAlternativeName(names) = extension {
                for name in &names.general_names {
                    request.add(name)?;
                }
            }
        }
        csr.verify_signature()
            .map_err(|error| format!("its signature is not its key's: {error}"))?;
        Ok(request)
    }

    fn add(&mut self, name: &GeneralName<'_>) -> Result<(), String> {
        match name {
            GeneralName::DNSName(name) => self.dns.push((*name).to_owned()),
            GeneralName::IPAddress(bytes) => {
                let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
                let address = v4.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from));
                let address = address.map_err(|_| "an IP address has 4 or 16 bytes".to_owned())?;
                self.addresses.push(address);
            }
            _ => self.other_names = true,
        }
        Ok(())
    }

    /// `n1` of `system:node:n1`.
    pub fn node(&self) -> Option<&str> {
        let name = self.common_name.strip_prefix("system:node:")?;
        (!name.is_empty()).then_some(name)
    }
}
