//! ServiceAccount tokens in projected volumes: which a pod wants, when the one on disk is to be replaced, and asking for a
//! new one. Nothing is kept in memory: the file says of itself how old it is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount, Volume};
use kube::api::PostParams;
use kube::{Api, Client};

/// By volume and path in it.
pub(crate) type Tokens = BTreeMap<(String, String), Vec<u8>>;

/// One token a volume is to hold.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Wanted {
    volume: String,
    path: String,
    audience: Option<String>,
    seconds: i64,
}

/// The times a token says of itself, in seconds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Life {
    begins: i64,
    ends: i64,
}

/// An hour, when the volume does not say.
const LIFETIME: i64 = 3_600;
/// A token is replaced when this share of its life is over (in percent)…
const REPLACE_AT: i64 = 80;
/// …or when it is a day old.
const OLDEST: i64 = 86_400;
const FETCH: Duration = Duration::from_secs(10);

/// The tokens of `volumes`.
pub(crate) fn wanted(volumes: &[&Volume]) -> Vec<Wanted> {
    let mut wanted = Vec::new();
    for volume in volumes {
        let projected = volume.projected.iter();
        let sources = projected.flat_map(|projected| projected.sources.iter().flatten());
        wanted.extend(sources.filter_map(|source| {
            let token = source.service_account_token.as_ref()?;
            Some(Wanted {
                volume: volume.name.clone(),
                path: token.path.clone(),
                audience: token.audience.clone().filter(|text| !text.is_empty()),
                seconds: token.expiration_seconds.unwrap_or(LIFETIME),
            })
        }));
    }
    wanted
}

/// Is the volume one that hardly ever changes: a token of an hour or more, and beside it the cluster's CA and the pod's own
/// fields? Almost every pod has one, so these are looked after less often than the others.
pub(crate) fn is_quiet(volume: &Volume) -> bool {
    let Some(projected) = &volume.projected else {
        return false;
    };
    let mut sources = projected.sources.iter().flatten();
    sources.all(|source| {
        let token = source.service_account_token.as_ref();
        let map = source.config_map.as_ref();
        let long = |seconds: Option<i64>| seconds.unwrap_or(LIFETIME) >= LIFETIME;
        token.is_some_and(|token| long(token.expiration_seconds))
            || map.is_some_and(|map| map.name == "kube-root-ca.crt")
            || source.downward_api.is_some()
    })
}

/// Reads the times from a token's payload. Its signature is the API's to check.
fn life(token: &[u8]) -> Option<Life> {
    let token = std::str::from_utf8(token).ok()?;
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&payload).ok()?;
    // A token that outlives what was asked for says when a newer one should be in use.
    let asked = claims["kubernetes.io"]["warnafter"].as_i64();
    Some(Life {
        begins: claims["iat"].as_i64()?,
        ends: asked.or_else(|| claims["exp"].as_i64())?,
    })
}

impl Life {
    fn is_fresh(self, now: i64) -> bool {
        let age = now.saturating_sub(self.begins);
        age < OLDEST
            && age.saturating_mul(100) < (self.ends - self.begins).saturating_mul(REPLACE_AT)
    }

    fn is_over(self, now: i64) -> bool {
        self.ends <= now
    }
}

/// Every wanted token: the one below `root` while it is fresh, else a new one. Where a new one cannot be had the old one
/// stays for as long as it is good. The error is the message of a `FailedMount` Event.
pub(crate) async fn fetch(
    client: &Client,
    pod: &Pod,
    wanted: Vec<Wanted>,
    root: &Path,
    now: Timestamp,
) -> Result<Tokens, String> {
    if wanted.is_empty() {
        return Ok(Tokens::new());
    }
    let root = root.to_owned();
    let read = tokio::task::spawn_blocking(move || {
        let read = |wanted: Wanted| {
            let path: PathBuf = root.join(&wanted.volume).join(&wanted.path);
            (wanted, std::fs::read(path).ok())
        };
        wanted.into_iter().map(read).collect::<Vec<_>>()
    });
    let read = read.await.map_err(|error| error.to_string())?;
    let now = now.as_second();
    let tokens = read.into_iter().map(|(wanted, old)| async move {
        let old = old.and_then(|token| Some((life(&token)?, token)));
        let key = (wanted.volume.clone(), wanted.path.clone());
        match old {
            Some((life, token)) if life.is_fresh(now) => Ok((key, token)),
            old => match (request(client, pod, &wanted).await, old) {
                (Ok(token), _) => Ok((key, token)),
                (Err(why), Some((life, token))) if !life.is_over(now) => {
                    tracing::warn!(error = %why, "Kept an old token");
                    Ok((key, token))
                }
                (Err(error), _) => Err(format!(
                    "MountVolume.SetUp failed for volume \"{}\" : failed to fetch token: {error}",
                    wanted.volume
                )),
            },
        }
    });
    futures::future::try_join_all(tokens)
        .await
        .map(|tokens| tokens.into_iter().collect())
}

/// A new token, bound to the pod.
async fn request(client: &Client, pod: &Pod, wanted: &Wanted) -> Result<Vec<u8>, String> {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let account = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.service_account_name.as_deref())
        .unwrap_or("default");
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            audiences: Some(wanted.audience.iter().cloned().collect()),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: pod.metadata.name.clone(),
                uid: pod.metadata.uid.clone(),
            }),
            expiration_seconds: Some(wanted.seconds),
        }),
        ..TokenRequest::default()
    };
    let accounts: Api<ServiceAccount> =
        Api::namespaced(client.clone(), &text(&pod.metadata.namespace));
    let params = PostParams::default();
    let asked = accounts.create_token_request(account, &params, &request);
    match tokio::time::timeout(FETCH, asked).await {
        Ok(Ok(answer)) => answer
            .status
            .and_then(|status| status.token)
            .map(String::into_bytes)
            .ok_or_else(|| "the answer has no token".to_owned()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", FETCH.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn token(claims: &serde_json::Value) -> Vec<u8> {
        format!("x.{}.x", URL_SAFE_NO_PAD.encode(claims.to_string())).into_bytes()
    }

    #[test]
    fn a_token_is_replaced_at_four_fifths_of_its_life_or_after_a_day() {
        let hour = life(&token(&json!({"iat": 1_000, "exp": 4_600}))).expect("read");
        assert!(hour.is_fresh(1_000 + 2_879));
        assert!(!hour.is_fresh(1_000 + 2_880));
        assert!(!hour.is_over(4_599));
        assert!(hour.is_over(4_600));
        let year = life(&token(&json!({"iat": 0, "exp": 31_536_000}))).expect("read");
        assert!(year.is_fresh(86_399));
        assert!(!year.is_fresh(86_400));
        let extended = json!({"iat": 0, "exp": 31_536_000, "kubernetes.io": {"warnafter": 3_607}});
        assert!(!life(&token(&extended)).expect("read").is_fresh(3_000));
        for wrong in [&b"x"[..], b"x.y.z", b"\xff"] {
            assert_eq!(life(wrong), None);
        }
    }

    #[test]
    fn only_what_hardly_changes_is_quiet() {
        let volume = |sources: serde_json::Value| -> Volume {
            serde_json::from_value(json!({"name": "v", "projected": {"sources": sources}}))
                .expect("the test's volume is well formed")
        };
        let token = json!({"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}});
        let short = json!({"serviceAccountToken": {"path": "token", "expirationSeconds": 600}});
        let ca = json!({"configMap": {"name": "kube-root-ca.crt"}});
        let own = json!({"configMap": {"name": "settings"}});
        assert!(is_quiet(&volume(json!([token, ca]))));
        assert!(!is_quiet(&volume(json!([short, ca]))));
        assert!(!is_quiet(&volume(json!([token, own]))));
        let wanted = wanted(&[&volume(json!([short, ca]))]);
        assert_eq!((&*wanted[0].path, wanted[0].seconds), ("token", 600));
    }
}
