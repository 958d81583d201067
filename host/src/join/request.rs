//! One CertificateSigningRequest: made, sent, waited for. Keeps nothing; whoever asks stores what comes of it.

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kube::api::{Api, PostParams};
use kube::runtime::wait::await_condition;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use tokio::time::{Instant, sleep, timeout};
use types::well_known::{GROUP_NODES, SIGNER_NODE_CLIENT, SIGNER_NODE_SERVING};

use super::{Error, user_name};
use crate::tls::Role;

/// For the request itself to be stored.
const ANSWER: Duration = Duration::from_secs(15);
/// As long as upstream waits for somebody's approval.
const PATIENCE: Duration = Duration::from_secs(15 * 60);
/// How often it is said that the request waits.
const REMIND: Duration = Duration::from_secs(15);

/// What the certificate is to say.
pub(crate) struct Wanted<'a> {
    pub(crate) role: Role,
    pub(crate) node_name: &'a str,
    /// For the server's role.
    pub(crate) address: Option<IpAddr>,
    pub(crate) lifetime: Option<Duration>,
}

/// Certificate and private key as one PEM text. `token` names the one that is used, for messages.
pub(crate) async fn obtain(
    client: &Client,
    wanted: &Wanted<'_>,
    token: Option<&str>,
) -> Result<String, Error> {
    let (key, request) = make(wanted)?;
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let parameters = PostParams::default();
    let created = match timeout(ANSWER, api.create(&parameters, &request)).await {
        Ok(created) => created.map_err(|error| explain("(new)", &error, token))?,
        Err(_) => {
            return Err(failed(
                "(new)",
                "no API server stored it in time".to_owned(),
            ));
        }
    };
    let name = created.metadata.name.unwrap_or_default();
    tracing::info!(csr = %name, role = ?wanted.role, "Asked for a certificate");
    let certificate = wait(&api, &name, token).await?;
    let certificate = String::from_utf8(certificate)
        .map_err(|_| failed(&name, "the certificate is no PEM".to_owned()))?;
    Ok(format!(
        "{}\n{}",
        certificate.trim_end(),
        key.serialize_pem()
    ))
}

pub(super) fn make(wanted: &Wanted<'_>) -> Result<(KeyPair, CertificateSigningRequest), Error> {
    let name = user_name(wanted.node_name);
    let failed = |error: rcgen::Error| Error::Make {
        name: name.clone(),
        reason: error.to_string(),
    };
    let names = match wanted.role {
        Role::Client => Vec::new(),
        Role::Server => vec![wanted.node_name.to_owned()],
    };
    let mut parameters = CertificateParams::new(names).map_err(failed)?;
    let address = wanted.address.map(SanType::IpAddress);
    parameters.subject_alt_names.extend(address);
    parameters.distinguished_name = DistinguishedName::new();
    let subject = &mut parameters.distinguished_name;
    subject.push(DnType::OrganizationName, GROUP_NODES);
    subject.push(DnType::CommonName, name.as_str());
    let key = KeyPair::generate().map_err(failed)?;
    let request = parameters.serialize_request(&key).map_err(failed)?;
    let request = request.pem().map_err(failed)?;
    let (signer, usage) = match wanted.role {
        Role::Client => (SIGNER_NODE_CLIENT, "client auth"),
        Role::Server => (SIGNER_NODE_SERVING, "server auth"),
    };
    let seconds = wanted.lifetime.map(|lifetime| lifetime.as_secs());
    let object = CertificateSigningRequest {
        metadata: ObjectMeta {
            generate_name: Some("csr-".to_owned()),
            ..ObjectMeta::default()
        },
        spec: CertificateSigningRequestSpec {
            request: ByteString(request.into_bytes()),
            signer_name: signer.to_owned(),
            usages: Some(vec!["digital signature".to_owned(), usage.to_owned()]),
            expiration_seconds: seconds.and_then(|seconds| i32::try_from(seconds).ok()),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    };
    Ok((key, object))
}

/// Until it is signed, denied, or nobody has cared for too long.
async fn wait(
    api: &Api<CertificateSigningRequest>,
    name: &str,
    token: Option<&str>,
) -> Result<Vec<u8>, Error> {
    let deadline = Instant::now() + PATIENCE;
    let decided = |csr: Option<&CertificateSigningRequest>| match csr {
        Some(csr) => verdict(csr).is_some(),
        None => true,
    };
    while Instant::now() < deadline {
        let waiting = await_condition(api.clone(), name, decided);
        match timeout(REMIND, waiting).await {
            Ok(Ok(Some(csr))) => {
                if let Some(verdict) = verdict(&csr) {
                    return verdict;
                }
            }
            Ok(Ok(None)) => {
                return Err(failed(name, "somebody deleted it".to_owned()));
            }
            Ok(Err(error)) => {
                let error = kube_error(&error);
                if let Some(error) = error
                    && matches!(error, kube::Error::Api(status) if status.code == 401 || status.code == 403)
                {
                    return Err(explain(name, error, token));
                }
                tracing::warn!(csr = name, error = ?error.map(ToString::to_string), "Failed to watch the certificate request");
                sleep(Duration::from_secs(1)).await;
            }
            Err(_) => tracing::warn!(
                csr = name,
                "Waiting for this certificate request to be approved and signed: is the control plane running, or is a node of this name still alive? By hand: kubectl certificate approve {name}"
            ),
        }
    }
    Err(Error::Waited {
        name: name.to_owned(),
        after: PATIENCE,
    })
}

fn kube_error(error: &kube::runtime::wait::Error) -> Option<&kube::Error> {
    use kube::runtime::watcher::Error as Watch;
    let kube::runtime::wait::Error::ProbeFailed(error) = error;
    match error {
        Watch::InitialListFailed(error)
        | Watch::WatchStartFailed(error)
        | Watch::WatchFailed(error) => Some(error),
        _ => None,
    }
}

/// `None` as long as nobody has decided.
fn verdict(csr: &CertificateSigningRequest) -> Option<Result<Vec<u8>, Error>> {
    let name = csr.metadata.name.clone().unwrap_or_default();
    let status = csr.status.as_ref()?;
    for condition in status.conditions.iter().flatten() {
        let reason = [condition.reason.as_deref(), condition.message.as_deref()];
        let reason = reason.into_iter().flatten().collect::<Vec<_>>().join(": ");
        match condition.type_.as_str() {
            "Denied" => return Some(Err(Error::Denied { name, reason })),
            "Failed" => {
                let reason = format!("the signer refused it: {reason}");
                return Some(Err(Error::Denied { name, reason }));
            }
            _ => {}
        }
    }
    let certificate = status.certificate.as_ref()?;
    (!certificate.0.is_empty()).then(|| Ok(certificate.0.clone()))
}

fn failed(name: &str, reason: String) -> Error {
    Error::Request {
        name: name.to_owned(),
        reason,
    }
}

fn explain(name: &str, error: &kube::Error, token: Option<&str>) -> Error {
    match error {
        kube::Error::Api(status) if status.code == 401 => match token {
            Some(id) => Error::Unauthorized { id: id.to_owned() },
            None => failed(name, status.message.clone()),
        },
        // What is wrong with the request itself does not become right by repetition.
        kube::Error::Api(status) if matches!(status.code, 400 | 403 | 422) => Error::Denied {
            name: name.to_owned(),
            reason: status.message.clone(),
        },
        kube::Error::Service(source) => failed(name, source.to_string()),
        error => failed(name, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn csr(status: serde_json::Value) -> CertificateSigningRequest {
        let csr = json!({"metadata": {"name": "csr-1"}, "spec": {"request": "", "signerName": "s"}, "status": status});
        serde_json::from_value(csr).expect("well formed")
    }

    #[test]
    fn approval_alone_is_no_certificate_and_denial_says_why() {
        assert!(verdict(&csr(json!({}))).is_none());
        let approved = json!({"type": "Approved", "status": "True"});
        assert!(verdict(&csr(json!({"conditions": [approved.clone()]}))).is_none());
        let issued = csr(json!({"conditions": [approved], "certificate": "eA=="}));
        assert_eq!(verdict(&issued).and_then(Result::ok), Some(vec![b'x']));
        let denied = json!({"type": "Denied", "status": "True", "reason": "R", "message": "m"});
        let denied = verdict(&csr(json!({"conditions": [denied]})));
        let text = denied.expect("decided").expect_err("denied").to_string();
        assert_eq!(text, "CertificateSigningRequest csr-1 was denied: R: m");
    }

    #[test]
    fn the_endpoints_certificate_names_node_and_address_and_the_clients_none() {
        let wanted = |role, address| Wanted {
            role,
            node_name: "n1",
            address,
            lifetime: Some(Duration::from_secs(600)),
        };
        let (_, server) = make(&wanted(Role::Server, Some([192, 0, 2, 1].into()))).expect("made");
        assert_eq!(server.spec.signer_name, SIGNER_NODE_SERVING);
        assert_eq!(server.spec.expiration_seconds, Some(600));
        let pem = x509_parser::pem::parse_x509_pem(&server.spec.request.0).expect("PEM");
        use x509_parser::prelude::FromDer as _;
        let (_, request) =
            x509_parser::certification_request::X509CertificationRequest::from_der(&pem.1.contents)
                .expect("a request");
        let subject = request.certification_request_info.subject.to_string();
        assert_eq!(subject, "O=system:nodes, CN=system:node:n1");
        let (_, client) = make(&wanted(Role::Client, None)).expect("made");
        assert_eq!(client.spec.signer_name, SIGNER_NODE_CLIENT);
        let usages = client.spec.usages.unwrap_or_default();
        assert_eq!(usages, ["digital signature", "client auth"]);
    }
}
