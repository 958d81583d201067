//! ServiceAccount tokens: JSON Web Tokens signed with the cluster's key (ES256). Signs and verifies; whether what a token is
//! bound to is still there is asked in `accounts`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _,
    UnparsedPublicKey,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::User;
use crate::pki::{self, Pki};

/// Who signs, and the audience of tokens for the API itself.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// Clocks may differ by this many seconds.
pub(super) const LEEWAY: i64 = 60;
/// Tokens whose signature is remembered as good.
const REMEMBERED: usize = 4_096;

/// Signs and verifies. One per server; the key is the cluster's.
pub struct Tokens {
    key: EcdsaKeyPair,
    random: SystemRandom,
    key_id: String,
    /// By the digest of the whole token: checking a signature is the dear part, and clients show the same one again.
    known: Mutex<HashMap<[u8; 32], Arc<Claims>>>,
}

/// What a token says.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Claims {
    pub audiences: Vec<String>,
    /// Seconds, as all times here.
    pub expires: i64,
    pub issued: i64,
    pub not_before: i64,
    pub id: String,
    pub namespace: String,
    pub account: Bound,
    pub pod: Option<Bound>,
    pub secret: Option<Bound>,
    pub node: Option<Bound>,
    /// A client that still uses the token after this has not taken the newer one.
    pub warn_after: Option<i64>,
}

/// An object a token is bound to.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Bound {
    pub name: String,
    pub uid: String,
}

// === impl Tokens ===

impl Tokens {
    pub fn new(pki: &Pki) -> Result<Self, pki::Error> {
        let broken = |reason: String| pki::Error::Read {
            name: "service accounts' tokens".to_owned(),
            reason,
        };
        let random = SystemRandom::new();
        let key = PrivatePkcs8KeyDer::from_pem_slice(pki.service_account_key().as_bytes())
            .map_err(|error| broken(error.to_string()))?;
        let key = EcdsaKeyPair::from_pkcs8(
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            key.secret_pkcs8_der(),
            &random,
        )
        .map_err(|error| broken(error.to_string()))?;
        let public = pki.service_account_public_key();
        let public = SubjectPublicKeyInfoDer::from_pem_slice(public.as_bytes())
            .map_err(|error| broken(error.to_string()))?;
        Ok(Self {
            key,
            random,
            key_id: URL_SAFE_NO_PAD.encode(Sha256::digest(&public)),
            known: Mutex::default(),
        })
    }

    /// `None` only when the system has no randomness.
    pub fn sign(&self, claims: &Claims) -> Option<String> {
        let header = json!({ "alg": "ES256", "kid": self.key_id });
        let mut token = URL_SAFE_NO_PAD.encode(header.to_string());
        token.push('.');
        token.push_str(&URL_SAFE_NO_PAD.encode(claims.to_value().to_string()));
        let signature = self.key.sign(&self.random, token.as_bytes()).ok()?;
        token.push('.');
        token.push_str(&URL_SAFE_NO_PAD.encode(signature));
        Some(token)
    }

    /// What a token of this cluster says; `None` for any other. Nothing is said of its time.
    pub fn verify(&self, token: &str) -> Option<Arc<Claims>> {
        let digest: [u8; 32] = Sha256::digest(token).into();
        if let Some(claims) = self.known().get(&digest) {
            return Some(Arc::clone(claims));
        }
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, payload) = signed.split_once('.')?;
        let header: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).ok()?).ok()?;
        if header["alg"] != "ES256" || header["kid"] != *self.key_id {
            return None;
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_key());
        public.verify(signed.as_bytes(), &signature).ok()?;
        let payload: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
        let claims = Arc::new(Claims::from_value(&payload)?);
        let mut known = self.known();
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(digest, Arc::clone(&claims));
        Some(claims)
    }

    /// The JSON Web Key Set others verify with.
    pub fn key_set(&self) -> Value {
        // An uncompressed point: 4, x, y.
        let (x, y) = self.key.public_key().as_ref()[1..].split_at(32);
        json!({ "keys": [{
            "use": "sig", "kty": "EC", "kid": self.key_id, "crv": "P-256", "alg": "ES256",
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
        }] })
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<[u8; 32], Arc<Claims>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Claims ===

impl Claims {
    pub fn user_name(&self) -> String {
        format!(
            "system:serviceaccount:{}:{}",
            self.namespace, self.account.name
        )
    }

    /// The user these claims make, if they hold.
    pub fn user(&self) -> User {
        let mut user = User::service_account(&self.namespace, &self.account.name);
        user.uid.clone_from(&self.account.uid);
        let mut extra = |key: &str, value: &str| {
            let key = format!("authentication.kubernetes.io/{key}");
            user.extra.insert(key, vec![value.to_owned()]);
        };
        if !self.id.is_empty() {
            extra("credential-id", &format!("JTI={}", self.id));
        }
        for (kind, bound) in [("pod", &self.pod), ("node", &self.node)] {
            if let Some(bound) = bound {
                extra(&format!("{kind}-name"), &bound.name);
                if !bound.uid.is_empty() {
                    extra(&format!("{kind}-uid"), &bound.uid);
                }
            }
        }
        user
    }

    fn to_value(&self) -> Value {
        let bound = |bound: &Bound| {
            if bound.uid.is_empty() {
                json!({ "name": bound.name })
            } else {
                json!({ "name": bound.name, "uid": bound.uid })
            }
        };
        let mut own = json!({ "namespace": self.namespace });
        for (key, object) in [
            ("node", self.node.as_ref()),
            ("pod", self.pod.as_ref()),
            ("secret", self.secret.as_ref()),
            ("serviceaccount", Some(&self.account)),
        ] {
            if let Some(object) = object {
                own[key] = bound(object);
            }
        }
        if let Some(after) = self.warn_after {
            own["warnafter"] = json!(after);
        }
        json!({
            "aud": self.audiences, "exp": self.expires, "iat": self.issued, "iss": ISSUER,
            "jti": self.id, "kubernetes.io": own, "nbf": self.not_before, "sub": self.user_name(),
        })
    }

    fn from_value(value: &Value) -> Option<Self> {
        let own = &value["kubernetes.io"];
        let bound = |key: &str| {
            let text = |name: &str| own[key][name].as_str().unwrap_or_default().to_owned();
            let bound = Bound {
                name: text("name"),
                uid: text("uid"),
            };
            (!bound.name.is_empty()).then_some(bound)
        };
        let audiences = value["aud"].as_array()?.iter();
        let claims = Self {
            audiences: audiences
                .filter_map(|audience| Some(audience.as_str()?.to_owned()))
                .collect(),
            expires: value["exp"].as_i64()?,
            issued: value["iat"].as_i64()?,
            not_before: value["nbf"].as_i64()?,
            id: value["jti"].as_str().unwrap_or_default().to_owned(),
            namespace: own["namespace"].as_str()?.to_owned(),
            account: bound("serviceaccount")?,
            pod: bound("pod"),
            secret: bound("secret"),
            node: bound("node"),
            warn_after: own["warnafter"].as_i64(),
        };
        let ours = value["iss"] == ISSUER && value["sub"] == *claims.user_name();
        ours.then_some(claims)
    }

    /// Is it good at `now`?
    pub fn is_current(&self, now: i64) -> bool {
        now < self.expires.saturating_add(LEEWAY) && now.saturating_add(LEEWAY) >= self.not_before
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn tokens() -> Tokens {
        let pki = Pki::open(None, jiff::Timestamp::UNIX_EPOCH).expect("made");
        Tokens::new(&pki).expect("a key")
    }

    pub(crate) fn claims() -> Claims {
        let bound = |name: &str, uid: &str| Bound {
            name: name.to_owned(),
            uid: uid.to_owned(),
        };
        Claims {
            audiences: vec![ISSUER.to_owned()],
            expires: 2_000,
            issued: 1_000,
            not_before: 1_000,
            id: "j".to_owned(),
            namespace: "ns".to_owned(),
            account: bound("robot", "u1"),
            pod: Some(bound("p", "u2")),
            node: Some(bound("n1", "u3")),
            secret: None,
            warn_after: Some(1_500),
        }
    }

    #[test]
    fn a_token_says_what_was_signed_and_nothing_else_is_believed() {
        let tokens = tokens();
        let token = tokens.sign(&claims()).expect("signed");
        for _ in 0..2 {
            let read = tokens.verify(&token).expect("verified");
            assert_eq!(*read, claims());
        }
        assert!(
            self::tests::tokens().verify(&token).is_none(),
            "another cluster's"
        );
        let parts: Vec<&str> = token.split('.').collect();
        let mut forged = claims();
        forged.namespace = "kube-system".to_owned();
        let payload = URL_SAFE_NO_PAD.encode(forged.to_value().to_string());
        let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
        for wrong in [
            format!("{}.{payload}.{}", parts[0], parts[2]),
            format!("{none}.{payload}."),
            format!("{}.{}", parts[0], parts[1]),
            format!("{token}.x"),
            "x".to_owned(),
            String::new(),
        ] {
            assert!(tokens.verify(&wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn claims_name_the_account_and_where_it_runs() {
        let user = claims().user();
        assert_eq!(user.name, "system:serviceaccount:ns:robot");
        assert_eq!(user.uid, "u1");
        assert_eq!(
            user.groups,
            [
                "system:serviceaccounts",
                "system:serviceaccounts:ns",
                "system:authenticated"
            ]
        );
        let extra: Vec<String> = user
            .extra
            .iter()
            .map(|(key, values)| format!("{key}={}", values.join(",")))
            .collect();
        assert_eq!(
            extra,
            [
                "authentication.kubernetes.io/credential-id=JTI=j",
                "authentication.kubernetes.io/node-name=n1",
                "authentication.kubernetes.io/node-uid=u3",
                "authentication.kubernetes.io/pod-name=p",
                "authentication.kubernetes.io/pod-uid=u2",
            ]
        );
    }

    #[test]
    fn times_are_kept_with_a_minute_of_leeway() {
        let claims = claims();
        for (now, good) in [(939, false), (940, true), (2_059, true), (2_060, false)] {
            assert_eq!(claims.is_current(now), good, "{now}");
        }
    }
}
