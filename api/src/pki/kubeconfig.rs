//! The admin kubeconfig: everything a client needs, in one private file.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::{Error, Pki, files};

/// The document, for `https://host:port`. JSON is YAML, and every client reads it; YAML is nicer to people.
pub fn render(pki: &Pki, server: &str) -> Result<String, Error> {
    let admin = pki.admin()?;
    let document = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "coracle",
        "preferences": {},
        "clusters": [{ "name": "coracle", "cluster": {
            "server": server,
            "certificate-authority-data": STANDARD.encode(pki.ca_pem()),
        }}],
        "contexts": [{ "name": "coracle", "context": { "cluster": "coracle", "user": "admin" } }],
        "users": [{ "name": "admin", "user": {
            "client-certificate-data": STANDARD.encode(admin.certificate_pem),
            "client-key-data": STANDARD.encode(admin.key_pem),
        }}],
    });
    Ok(serde_norway::to_string(&document).unwrap_or_else(|_| document.to_string()))
}

/// Writes it with mode 0600, making the directory it lies in.
pub fn write(pki: &Pki, server: &str, path: &Path) -> Result<(), Error> {
    if let Some(directory) = path.parent().filter(|p| !p.as_os_str().is_empty())
        && !directory.exists()
    {
        files::make_directory(directory)?;
    }
    files::write_private(path, render(pki, server)?.as_bytes())
}
