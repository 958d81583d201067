//! Bootstrap tokens: `ID.SECRET`, kept as Secret `bootstrap-token-ID` in kube-system, good for joining a cluster and nothing
//! else until RBAC says so.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::Value;
use types::well_known::NAMESPACE_SYSTEM;

use super::User;
use crate::cache::Cache;

const TYPE: &str = "bootstrap.kubernetes.io/token";
const GROUP: &str = "system:bootstrappers";

/// Whose token this is; `None` when it is no bootstrap token, or not a good one.
pub(super) fn authenticate(cache: &Cache, token: &str, now: Timestamp) -> Option<User> {
    let (id, secret) = parts(token)?;
    let stored = cache.find(
        "secrets",
        NAMESPACE_SYSTEM,
        &format!("bootstrap-token-{id}"),
    )?;
    let object: Value = serde_json::from_slice(&stored.bytes).ok()?;
    judge(&object, id, secret, now)
}

/// `abcdef.0123456789abcdef`.
fn parts(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let plain = |text: &str| {
        text.bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    (id.len() == 6 && secret.len() == 16 && plain(id) && plain(secret)).then_some((id, secret))
}

fn judge(object: &Value, id: &str, secret: &str, now: Timestamp) -> Option<User> {
    let data = |key: &str| {
        let bytes = STANDARD.decode(object["data"][key].as_str()?).ok()?;
        String::from_utf8(bytes).ok()
    };
    let going = object["metadata"]["deletionTimestamp"].is_string();
    if object["type"] != TYPE || going {
        return None;
    }
    let kept = data("token-secret")?;
    if !same(kept.as_bytes(), secret.as_bytes()) || data("token-id")? != id {
        return None;
    }
    // A time that cannot be read has passed.
    if let Some(expiration) = data("expiration")
        && expiration
            .trim()
            .parse::<Timestamp>()
            .ok()
            .is_none_or(|end| end <= now)
    {
        return None;
    }
    if data("usage-bootstrap-authentication").as_deref() != Some("true") {
        return None;
    }
    let extra = data("auth-extra-groups").unwrap_or_default();
    let mut groups = vec![GROUP];
    for group in extra.split(',').filter(|group| !group.is_empty()) {
        // Only groups of this kind: a Secret must not make somebody a master.
        if !is_group(group) {
            return None;
        }
        groups.push(group);
    }
    Some(User::authenticated(
        &format!("system:bootstrap:{id}"),
        &groups,
    ))
}

/// `system:bootstrappers:` and 1 to 255 of `a-z0-9:-`, beginning and ending with a letter or digit.
fn is_group(group: &str) -> bool {
    let Some(rest) = group.strip_prefix("system:bootstrappers:") else {
        return false;
    };
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let ends = [rest.bytes().next(), rest.bytes().next_back()];
    rest.len() <= 255
        && rest.bytes().all(|b| plain(b) || b == b':' || b == b'-')
        && ends.into_iter().all(|b| b.is_some_and(plain))
}

/// Compares without telling by its time where the difference is.
pub(super) fn same(a: &[u8], b: &[u8]) -> bool {
    use sha2::{Digest as _, Sha256};
    let (a, b) = (Sha256::digest(a), Sha256::digest(b));
    let differences = a.iter().zip(&b).fold(0u8, |all, (a, b)| all | (a ^ b));
    std::hint::black_box(differences) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const NOW: &str = "2026-11-23T12:00:00Z";

    fn secret(changes: &[(&str, &str)]) -> Value {
        let mut data = serde_json::Map::new();
        let usual = [
            ("token-id", "abcdef"),
            ("token-secret", "0123456789abcdef"),
            ("usage-bootstrap-authentication", "true"),
        ];
        for (key, value) in usual.iter().chain(changes) {
            data.insert((*key).to_owned(), STANDARD.encode(value).into());
        }
        json!({"type": TYPE, "metadata": {"name": "bootstrap-token-abcdef"}, "data": data})
    }

    fn ask(object: &Value, token: &str) -> Option<User> {
        let (id, secret) = parts(token)?;
        judge(object, id, secret, NOW.parse().expect("a time"))
    }

    #[test]
    fn a_good_token_is_a_bootstrapper() {
        let object = secret(&[
            ("expiration", "2026-11-23T12:00:01Z"),
            ("auth-extra-groups", "system:bootstrappers:workers"),
        ]);
        let user = ask(&object, "abcdef.0123456789abcdef").expect("good");
        assert_eq!(user.name, "system:bootstrap:abcdef");
        assert_eq!(
            user.groups,
            [
                "system:bootstrappers",
                "system:bootstrappers:workers",
                "system:authenticated"
            ]
        );
    }

    #[test]
    fn every_other_token_is_nobodys() {
        let good = "abcdef.0123456789abcdef";
        for (changes, token) in [
            (&[][..], "abcdef.0123456789abcdee"),
            (&[], "abcdef.0123456789abcde"),
            (&[], "ABCDEF.0123456789abcdef"),
            (&[], "abcdef0123456789abcdef"),
            (&[("token-id", "abcdee")], good),
            (&[("expiration", NOW)], good),
            (&[("expiration", "soon")], good),
            (&[("usage-bootstrap-authentication", "false")], good),
            (&[("auth-extra-groups", "system:masters")], good),
            (&[("auth-extra-groups", "system:bootstrappers:")], good),
        ] {
            assert_eq!(ask(&secret(changes), token), None, "{changes:?} {token}");
        }
        let mut other = secret(&[]);
        other["type"] = json!("Opaque");
        assert_eq!(ask(&other, good), None);
        let mut going = secret(&[]);
        going["metadata"]["deletionTimestamp"] = json!(NOW);
        assert_eq!(ask(&going, good), None);
    }
}
