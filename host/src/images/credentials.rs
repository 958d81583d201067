//! Pull secrets: which user and password go to which registry. Pure.

use base64::Engine;
use k8s_openapi::api::core::v1::Secret;
use oci_client::secrets::RegistryAuth;

use super::reference::Reference;

/// Registries and who to be there, from a pod's `imagePullSecrets`.
#[derive(Clone, Default)]
pub(crate) struct Credentials {
    /// (`ghcr.io` or `ghcr.io/me`, auth)
    entries: Vec<(String, RegistryAuth)>,
}

impl Credentials {
    /// Adds a secret of type `kubernetes.io/dockerconfigjson` or `kubernetes.io/dockercfg`. What cannot be read is an `Err`
    /// for the log; the pull then goes on without it, as upstream does.
    pub(crate) fn add(&mut self, secret: &Secret) -> Result<(), String> {
        let data = |key: &str| secret.data.as_ref().and_then(|data| data.get(key));
        let (bytes, nested) = match (data(".dockerconfigjson"), data(".dockercfg")) {
            (Some(bytes), _) => (bytes, true),
            (None, Some(bytes)) => (bytes, false),
            (None, None) => return Err("has neither .dockerconfigjson nor .dockercfg".to_owned()),
        };
        let config: serde_json::Value =
            serde_json::from_slice(&bytes.0).map_err(|error| error.to_string())?;
        let auths = if nested {
            config.get("auths")
        } else {
            Some(&config)
        };
        for (server, entry) in auths
            .and_then(|auths| auths.as_object())
            .into_iter()
            .flatten()
        {
            if let Some(auth) = auth_of(entry) {
                self.entries.push((server_name(server), auth));
            }
        }
        Ok(())
    }

    /// The entry with the longest path that fits; anonymous without one.
    pub(crate) fn find(&self, reference: &Reference) -> RegistryAuth {
        let name = reference.name();
        let fits = |entry: &str| {
            name == entry
                || name
                    .strip_prefix(entry)
                    .is_some_and(|rest| rest.starts_with('/'))
        };
        self.entries
            .iter()
            .filter(|(entry, _)| fits(entry))
            .max_by_key(|(entry, _)| entry.len())
            .map_or(RegistryAuth::Anonymous, |(_, auth)| auth.clone())
    }
}

fn auth_of(entry: &serde_json::Value) -> Option<RegistryAuth> {
    let text = |key: &str| {
        entry
            .get(key)
            .and_then(|value| value.as_str())
            .filter(|text| !text.is_empty())
    };
    if let (Some(user), Some(password)) = (text("username"), text("password")) {
        return Some(RegistryAuth::Basic(user.to_owned(), password.to_owned()));
    }
    let decoded = base64::engine::general_purpose::STANDARD
        .decode(text("auth")?)
        .ok()?;
    let decoded = String::from_utf8(decoded).ok()?;
    let (user, password) = decoded.split_once(':')?;
    Some(RegistryAuth::Basic(user.to_owned(), password.to_owned()))
}

/// `https://index.docker.io/v1/` is `docker.io`.
fn server_name(server: &str) -> String {
    let bare = server
        .trim_start_matches("https://")
        .trim_start_matches("http://")
        .trim_end_matches('/');
    let bare = bare.trim_end_matches("/v1").trim_end_matches("/v2");
    match bare {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_fitting_entry_is_used() {
        let config = serde_json::json!({"auths": {
            "https://index.docker.io/v1/": {"auth": base64::engine::general_purpose::STANDARD.encode("me:pass")},
            "ghcr.io": {"username": "a", "password": "1"},
            "ghcr.io/team": {"username": "b", "password": "2"}}});
        let encoded = base64::engine::general_purpose::STANDARD.encode(config.to_string());
        let secret = serde_json::json!({"data": {".dockerconfigjson": encoded}});
        let mut credentials = Credentials::default();
        credentials
            .add(&serde_json::from_value(secret).expect("well formed"))
            .expect("read");
        let find = |name: &str| credentials.find(&Reference::parse(name).expect("a name"));
        let basic =
            |user: &str, password: &str| RegistryAuth::Basic(user.to_owned(), password.to_owned());
        assert_eq!(find("nginx"), basic("me", "pass"));
        assert_eq!(find("ghcr.io/other/app"), basic("a", "1"));
        assert_eq!(find("ghcr.io/team/app"), basic("b", "2"));
        assert_eq!(find("ghcr.io/teams/app"), basic("a", "1"));
        assert_eq!(find("quay.io/a/b"), RegistryAuth::Anonymous);
    }
}
