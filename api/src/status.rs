//! Every error a client can see, and how it becomes a `metav1.Status`: the only place an error becomes an HTTP code.
//!
//! The words are Kubernetes' own (`apimachinery/pkg/api/errors`, `util/validation/field`): clients and tests match on them.

mod cause;

use std::fmt::Write as _;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};

pub use cause::{Cause, CauseReason};

/// `Status.reason`, with its HTTP code.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reason {
    BadRequest,
    Unauthorized,
    Forbidden,
    NotFound,
    MethodNotAllowed,
    NotAcceptable,
    AlreadyExists,
    Conflict,
    Gone,
    Expired,
    RequestEntityTooLarge,
    UnsupportedMediaType,
    Invalid,
    TooManyRequests,
    InternalError,
    NotImplemented,
    ServiceUnavailable,
    Timeout,
}

/// A failed request.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    pub reason: Reason,
    pub message: String,
    pub details: Box<Details>,
}

/// `Status.details`; empty strings and lists are left out of the answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Details {
    pub name: String,
    pub group: String,
    /// The plural for a missing object (`pods`), the Kind for an invalid one (`Pod`): upstream does the same.
    pub kind: String,
    pub uid: String,
    pub causes: Vec<Cause>,
    pub retry_after_seconds: u32,
    /// `metadata.continue` of an expired list: where an inconsistent continuation starts.
    pub continue_token: String,
    /// Upstream's generic answers carry `"details":{}` even when there is nothing in it.
    pub show_empty: bool,
}

// === impl Reason ===

impl Reason {
    pub fn code(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::NotAcceptable => StatusCode::NOT_ACCEPTABLE,
            Self::AlreadyExists | Self::Conflict => StatusCode::CONFLICT,
            Self::Gone | Self::Expired => StatusCode::GONE,
            Self::RequestEntityTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Invalid => StatusCode::UNPROCESSABLE_ENTITY,
            Self::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            Self::InternalError => StatusCode::INTERNAL_SERVER_ERROR,
            Self::NotImplemented => StatusCode::NOT_IMPLEMENTED,
            Self::ServiceUnavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "BadRequest",
            Self::Unauthorized => "Unauthorized",
            Self::Forbidden => "Forbidden",
            Self::NotFound => "NotFound",
            Self::MethodNotAllowed => "MethodNotAllowed",
            Self::NotAcceptable => "NotAcceptable",
            Self::AlreadyExists => "AlreadyExists",
            Self::Conflict => "Conflict",
            Self::Gone => "Gone",
            Self::Expired => "Expired",
            Self::RequestEntityTooLarge => "RequestEntityTooLarge",
            Self::UnsupportedMediaType => "UnsupportedMediaType",
            Self::Invalid => "Invalid",
            Self::TooManyRequests => "TooManyRequests",
            Self::InternalError => "InternalError",
            Self::NotImplemented => "NotImplemented",
            Self::ServiceUnavailable => "ServiceUnavailable",
            Self::Timeout => "Timeout",
        }
    }
}

// === impl Error ===

impl Error {
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            details: Box::default(),
        }
    }

    fn about(reason: Reason, group: &str, kind: &str, name: &str, message: String) -> Self {
        let mut error = Self::new(reason, message);
        error.details.group = group.to_owned();
        error.details.kind = kind.to_owned();
        error.details.name = name.to_owned();
        error
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(Reason::BadRequest, message)
    }

    /// `Internal error occurred: …`.
    pub fn internal(message: impl Into<String>) -> Self {
        let message = message.into();
        let mut error = Self::new(
            Reason::InternalError,
            format!("Internal error occurred: {message}"),
        );
        error
            .details
            .causes
            .push(Cause::other(CauseReason::InternalError, "", message));
        error
    }

    /// `deployments.apps "x" not found`.
    pub fn not_found(group: &str, plural: &str, name: &str) -> Self {
        let message = format!("{} {name:?} not found", qualified(plural, group));
        Self::about(Reason::NotFound, group, plural, name, message)
    }

    /// `configmaps "a" already exists`.
    pub fn already_exists(group: &str, plural: &str, name: &str) -> Self {
        let message = format!("{} {name:?} already exists", qualified(plural, group));
        Self::about(Reason::AlreadyExists, group, plural, name, message)
    }

    /// A generated name that collided eight times.
    pub fn generate_name_exhausted(group: &str, plural: &str, name: &str) -> Self {
        let mut error = Self::already_exists(group, plural, name);
        error
            .message
            .push_str(", the server was not able to generate a unique name for the object");
        error.details.retry_after_seconds = 1;
        error
    }

    /// `Operation cannot be fulfilled on pods "p": why`.
    pub fn conflict(group: &str, plural: &str, name: &str, why: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} {name:?}: {why}",
            qualified(plural, group)
        );
        Self::about(Reason::Conflict, group, plural, name, message)
    }

    /// A stale resourceVersion.
    pub fn modified(group: &str, plural: &str, name: &str) -> Self {
        Self::conflict(group, plural, name, MODIFIED)
    }

    /// `Pod "p" is invalid: spec.x: Required value` with every cause; `kind` is the Kind, not the plural.
    pub fn invalid(group: &str, kind: &str, name: &str, causes: Vec<Cause>) -> Self {
        let mut texts: Vec<String> = Vec::with_capacity(causes.len());
        for cause in &causes {
            let text = cause.to_string();
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        let all = match texts.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let message = format!("{} {name:?} is invalid: {all}", qualified(kind, group));
        let mut error = Self::about(Reason::Invalid, group, kind, name, message);
        error.details.causes = causes;
        error
    }

    /// `pods "p" is forbidden: why`, or `pods is forbidden: why` without a name.
    pub fn forbidden(group: &str, plural: &str, name: &str, why: &str) -> Self {
        let resource = qualified(plural, group);
        let message = match (plural.is_empty(), name.is_empty()) {
            (true, _) => format!("forbidden: {why}"),
            (false, true) => format!("{resource} is forbidden: {why}"),
            (false, false) => format!("{resource} {name:?} is forbidden: {why}"),
        };
        Self::about(Reason::Forbidden, group, plural, name, message)
    }

    pub fn unauthorized() -> Self {
        Self::new(Reason::Unauthorized, "Unauthorized")
    }

    /// A path under a known prefix that names no resource.
    pub fn no_such_resource() -> Self {
        let mut error = Self::new(
            Reason::NotFound,
            "the server could not find the requested resource",
        );
        error.details.show_empty = true;
        error
    }

    /// A verb that this path does not have.
    pub fn method_not_allowed() -> Self {
        let mut error = Self::new(
            Reason::MethodNotAllowed,
            "the server does not allow this method on the requested resource",
        );
        error.details.show_empty = true;
        error
    }

    /// A JSON patch that does not apply (and other requests wrong in themselves).
    pub fn rejected() -> Self {
        let mut error = Self::new(
            Reason::Invalid,
            "the server rejected our request due to an error in our request",
        );
        error.details.show_empty = true;
        error
    }

    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        Self::new(
            Reason::UnsupportedMediaType,
            format!(
                "the body of the request was in an unknown format - accepted media types include: {}",
                accepted.join(", ")
            ),
        )
    }

    pub fn not_acceptable(available: &[&str]) -> Self {
        Self::new(
            Reason::NotAcceptable,
            format!(
                "only the following media types are accepted: {}",
                available.join(", ")
            ),
        )
    }

    pub fn too_large(limit: usize) -> Self {
        Self::new(
            Reason::RequestEntityTooLarge,
            format!("Request entity too large: limit is {limit}"),
        )
    }

    /// The client asked for a revision that has not been reached within the waiting time.
    pub fn resource_version_too_large(wanted: u64, current: u64) -> Self {
        let mut error = Self::timeout(
            format!("Timeout: Too large resource version: {wanted}, current: {current}"),
            1,
        );
        error.details.causes.push(Cause::other(
            CauseReason::ResourceVersionTooLarge,
            "",
            "Too large resource version",
        ));
        error
    }

    pub fn timeout(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        let mut error = Self::new(Reason::Timeout, message);
        error.details.retry_after_seconds = retry_after_seconds;
        error
    }

    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        let mut error = Self::new(Reason::TooManyRequests, message);
        error.details.retry_after_seconds = retry_after_seconds;
        error
    }

    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Reason::ServiceUnavailable, message)
    }

    /// Something this server knows of and cannot do yet: an honest answer instead of a wrong one.
    pub fn not_yet(what: &str) -> Self {
        Self::new(
            Reason::NotImplemented,
            format!("{what} is not supported by this server yet"),
        )
    }

    /// A watch or exact read from before the horizon.
    pub fn too_old(requested: u64, oldest: u64) -> Self {
        Self::new(
            Reason::Expired,
            format!("too old resource version: {requested} ({oldest})"),
        )
    }

    pub fn code(&self) -> StatusCode {
        self.reason.code()
    }

    /// The `metav1.Status` clients see.
    pub fn to_status(&self) -> Value {
        let mut metadata = json!({});
        if !self.details.continue_token.is_empty() {
            metadata["continue"] = json!(self.details.continue_token);
        }
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": metadata,
            "status": "Failure",
            "message": self.message,
            "reason": self.reason.as_str(),
            "code": self.code().as_u16(),
        });
        if let Some(details) = self.details.to_value() {
            status["details"] = details;
        }
        status
    }
}

/// What a stale write is told.
pub const MODIFIED: &str =
    "the object has been modified; please apply your changes to the latest version and try again";

/// `deployments.apps`, `pods`.
fn qualified(name: &str, group: &str) -> String {
    if group.is_empty() {
        name.to_owned()
    } else {
        format!("{name}.{group}")
    }
}

impl Details {
    fn to_value(&self) -> Option<Value> {
        let mut map = serde_json::Map::new();
        for (key, text) in [
            ("name", &self.name),
            ("group", &self.group),
            ("kind", &self.kind),
            ("uid", &self.uid),
        ] {
            if !text.is_empty() {
                map.insert(key.to_owned(), json!(text));
            }
        }
        if !self.causes.is_empty() {
            let causes = self.causes.iter().map(Cause::to_value).collect();
            map.insert("causes".to_owned(), Value::Array(causes));
        }
        if self.retry_after_seconds > 0 {
            map.insert(
                "retryAfterSeconds".to_owned(),
                json!(self.retry_after_seconds),
            );
        }
        (!map.is_empty() || self.show_empty).then_some(Value::Object(map))
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let mut response = (self.code(), self.to_status().to_string()).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        if self.details.retry_after_seconds > 0 {
            headers.insert(
                header::RETRY_AFTER,
                HeaderValue::from(self.details.retry_after_seconds),
            );
        }
        if matches!(self.reason, Reason::Forbidden) {
            headers.insert(
                header::X_CONTENT_TYPE_OPTIONS,
                HeaderValue::from_static("nosniff"),
            );
        }
        response
    }
}

/// What the store says, in the words of the API. Conflicts are the caller's to understand; here they are only stale.
impl From<crate::store::Error> for Error {
    fn from(error: crate::store::Error) -> Self {
        use crate::store::Error as Store;
        match error {
            Store::Conflict { ref key, .. } => {
                let (group, plural) = key.resource.rsplit_once('/').unwrap_or(("", &key.resource));
                Self::modified(group, plural, &key.name)
            }
            Store::Compacted { requested, oldest } => Self::too_old(requested, oldest),
            Store::Busy => Self::too_many_requests("Too many requests, please try again later.", 1),
            // The store names the disk or the file; a client may read that much.
            other => {
                let mut message = String::from("the store cannot take this write: ");
                // Writing to a String cannot fail.
                let _ = write!(message, "{other}");
                Self::unavailable(message)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_object_is_named_with_its_group() {
        let error = Error::not_found("apps", "deployments", "zz");
        assert_eq!(error.message, r#"deployments.apps "zz" not found"#);
        assert_eq!(
            error.to_status(),
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "deployments.apps \"zz\" not found", "reason": "NotFound",
                "details": {"name": "zz", "group": "apps", "kind": "deployments"}, "code": 404})
        );
    }

    #[test]
    fn one_cause_stands_alone_and_several_stand_in_brackets() {
        let one = vec![Cause::required(
            "metadata.name",
            "name or generateName is required",
        )];
        assert_eq!(
            Error::invalid("", "ConfigMap", "", one.clone()).message,
            "ConfigMap \"\" is invalid: metadata.name: Required value: name or generateName is required"
        );
        let two = vec![one[0].clone(), Cause::forbidden("spec", "no")];
        assert_eq!(
            Error::invalid("apps", "Deployment", "d", two).message,
            "Deployment.apps \"d\" is invalid: [metadata.name: Required value: name or generateName is required, spec: Forbidden: no]"
        );
    }

    #[test]
    fn generic_answers_carry_empty_details_and_bad_requests_none() {
        let status = Error::no_such_resource().to_status();
        assert_eq!(status["details"], json!({}));
        assert!(Error::bad_request("x").to_status().get("details").is_none());
    }
}
