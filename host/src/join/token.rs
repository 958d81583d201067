//! The text that lets a machine join: whom to trust, and the right to ask. Never printed whole.

use std::fmt;
use std::str::FromStr;

/// `<hex SHA-256 of the CA certificate>.<id>.<secret>`; the last two parts are a Kubernetes bootstrap token.
#[derive(Clone, Eq, PartialEq)]
pub struct Token {
    ca: [u8; 32],
    id: String,
    secret: String,
}

#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the token is not <CA hash>.<id>.<secret> as `coracle token create` prints it: {0}")]
pub struct TokenError(&'static str);

// === impl Token ===

impl Token {
    /// SHA-256 of the DER of the authority that the server must show.
    pub(crate) fn ca(&self) -> &[u8; 32] {
        &self.ca
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// What is shown to the API server.
    pub(crate) fn bearer(&self) -> String {
        format!("{}.{}", self.id, self.secret)
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let mut parts = text.trim().split('.');
        let (Some(hash), Some(id), Some(secret), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenError("wanted three parts with dots between them"));
        };
        let plain = |part: &str, length: usize| {
            let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
            part.len() == length && part.bytes().all(allowed)
        };
        if !plain(id, 6) {
            return Err(TokenError("the id is not 6 letters and digits"));
        }
        if !plain(secret, 16) {
            return Err(TokenError("the secret is not 16 letters and digits"));
        }
        Ok(Self {
            ca: digest(hash).ok_or(TokenError("the CA hash is not 64 hex digits"))?,
            id: id.to_owned(),
            secret: secret.to_owned(),
        })
    }
}

fn digest(hex: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if hex.len() != 64 || !hex.is_ascii() {
        return None;
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(hex.get(index * 2..index * 2 + 2)?, 16).ok()?;
    }
    Some(bytes)
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({})", self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_three_parts_and_keeps_its_secret() {
        let hash = "0f".repeat(32);
        let token: Token = format!("{hash}.abcdef.0123456789abcdef\n")
            .parse()
            .expect("well formed");
        assert_eq!(token.ca(), &[15; 32]);
        assert_eq!(token.bearer(), "abcdef.0123456789abcdef");
        assert_eq!(format!("{token:?}"), "Token(abcdef)");
        for wrong in [
            "abcdef.0123456789abcdef".to_owned(),
            format!("{hash}.abcde.0123456789abcdef"),
            format!("{hash}.abcdef.0123456789ABCDEF"),
            format!("{}.abcdef.0123456789abcdef", "0g".repeat(32)),
            format!("{hash}.abcdef.0123456789abcdef.x"),
        ] {
            assert!(wrong.parse::<Token>().is_err(), "{wrong}");
        }
    }
}
