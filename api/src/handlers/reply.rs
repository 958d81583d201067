//! Answers: bytes or a stream, with the headers every answer carries, compressed when large and wanted.

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER, VARY, WARNING,
    X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde_json::Value;

use super::negotiate::Format;
use crate::codec;
use crate::status::{Error, Reason};

/// Answers longer than this are compressed for who accepts it.
const COMPRESS_FROM: usize = 128 * 1024;
const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");
const STATUS_DEFINITION: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";

/// An answer on its way out.
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub content: Content,
}

pub enum Content {
    Bytes(Bytes),
    Stream(Body),
}

// === impl Reply ===

impl Reply {
    pub fn new(status: StatusCode, content_type: &'static str, bytes: impl Into<Bytes>) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        Self {
            status,
            headers,
            content: Content::Bytes(bytes.into()),
        }
    }

    pub fn json(bytes: impl Into<Bytes>) -> Self {
        Self::new(StatusCode::OK, codec::JSON, bytes)
    }

    pub fn value(status: StatusCode, value: &Value) -> Self {
        Self::new(status, codec::JSON, value.to_string())
    }

    pub fn text(status: StatusCode, text: impl Into<Bytes>) -> Self {
        let mut reply = Self::new(status, "text/plain; charset=utf-8", text);
        reply
            .headers
            .insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        reply
    }

    /// What a path that leads nowhere answers.
    pub fn no_page() -> Self {
        Self::text(StatusCode::NOT_FOUND, "404 page not found\n")
    }

    pub fn stream(content_type: &'static str, body: Body) -> Self {
        let mut reply = Self::new(StatusCode::OK, content_type, Bytes::new());
        reply.content = Content::Stream(body);
        reply
    }

    /// From a module that builds whole responses.
    pub fn from_bytes(response: http::Response<Bytes>) -> Self {
        let (parts, bytes) = response.into_parts();
        Self {
            status: parts.status,
            headers: parts.headers,
            content: Content::Bytes(bytes),
        }
    }

    /// One header per warning, each once.
    pub fn warn(&mut self, warnings: &[String]) {
        for (at, text) in warnings.iter().enumerate() {
            if warnings[..at].contains(text) {
                continue;
            }
            if let Ok(value) = HeaderValue::from_str(&format!("299 - {}", quoted(text))) {
                self.headers.append(WARNING, value);
            }
        }
    }

    /// An error as `Status`, in protobuf for who reads nothing else.
    pub fn error(error: &Error, format: Format) -> Self {
        let status = error.to_status();
        let bytes = match format {
            Format::Protobuf => codec::protobuf::encode(STATUS_DEFINITION, &status).ok(),
            Format::Yaml => codec::to_yaml(&status).ok().map(String::into_bytes),
            Format::Json => None,
        };
        let mut reply = match bytes {
            Some(bytes) => Self::new(error.code(), format.content_type(), bytes),
            None => Self::value(error.code(), &status),
        };
        if error.details.retry_after_seconds > 0 {
            let seconds = HeaderValue::from(error.details.retry_after_seconds);
            reply.headers.insert(RETRY_AFTER, seconds);
        }
        if error.reason == Reason::Forbidden {
            reply
                .headers
                .insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        }
        reply
    }

    /// Adds what every answer has, compresses, and hands over.
    pub async fn finish(mut self, request: &HeaderMap) -> Response {
        let audit = uuid::Uuid::new_v4().to_string();
        if let Ok(audit) = HeaderValue::from_str(&audit) {
            self.headers.insert(AUDIT_ID, audit);
        }
        self.headers
            .entry(CACHE_CONTROL)
            .or_insert(HeaderValue::from_static("no-cache, private"));
        self.compress(request).await;
        let body = match self.content {
            Content::Bytes(bytes) => Body::from(bytes),
            Content::Stream(body) => body,
        };
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response
    }

    async fn compress(&mut self, request: &HeaderMap) {
        let Content::Bytes(bytes) = &self.content else {
            return;
        };
        let accepted = request
            .get_all(ACCEPT_ENCODING)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .any(|coding| coding.split(';').next().unwrap_or_default().trim() == "gzip");
        if bytes.len() < COMPRESS_FROM || !accepted || self.headers.contains_key(CONTENT_ENCODING) {
            return;
        }
        let bytes = bytes.clone();
        // Milliseconds of pure computing: off the threads that serve everybody.
        let packed = tokio::task::spawn_blocking(move || gzip(&bytes)).await;
        if let Ok(Ok(packed)) = packed {
            self.content = Content::Bytes(packed.into());
            self.headers
                .insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            self.headers
                .append(VARY, HeaderValue::from_static("Accept-Encoding"));
        }
    }
}

fn gzip(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    use std::io::Write as _;
    let buffer = Vec::with_capacity(bytes.len() / 4);
    let mut encoder = flate2::write::GzEncoder::new(buffer, flate2::Compression::fast());
    encoder.write_all(bytes)?;
    encoder.finish()
}

/// As Go quotes a header's text: backslash and quote escaped, control characters dropped.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn large_answers_are_compressed_for_who_accepts_it() {
        let mut request = HeaderMap::new();
        let large = vec![b'x'; COMPRESS_FROM];
        let plain = Reply::json(large.clone()).finish(&request).await;
        assert!(!plain.headers().contains_key(CONTENT_ENCODING));
        request.insert(ACCEPT_ENCODING, HeaderValue::from_static("br, gzip;q=0.5"));
        let packed = Reply::json(large).finish(&request).await;
        assert_eq!(packed.headers()[CONTENT_ENCODING], "gzip");
        assert!(packed.headers().contains_key(AUDIT_ID));
        let small = Reply::json("{}").finish(&request).await;
        assert!(!small.headers().contains_key(CONTENT_ENCODING));
    }

    #[test]
    fn each_warning_is_one_header() {
        let mut reply = Reply::json("{}");
        reply.warn(&[
            "unknown field \"a\"".to_owned(),
            "b".to_owned(),
            "b".to_owned(),
        ]);
        let values: Vec<_> = reply.headers.get_all(WARNING).iter().collect();
        assert_eq!(values, [r#"299 - "unknown field \"a\"""#, r#"299 - "b""#]);
    }
}
