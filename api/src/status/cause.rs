//! One thing wrong with one field, as `Status.details.causes` has it. Pure; the words are upstream's.

use serde_json::{Value, json};

/// `Status.details.causes[].reason`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CauseReason {
    FieldValueNotFound,
    FieldValueRequired,
    FieldValueDuplicate,
    FieldValueInvalid,
    FieldValueNotSupported,
    FieldValueForbidden,
    FieldValueTooLong,
    FieldValueTooMany,
    FieldValueTypeInvalid,
    InternalError,
    FieldManagerConflict,
    NamespaceTerminating,
    ResourceVersionTooLarge,
    DisruptionBudget,
    UnexpectedServerResponse,
}

/// One thing wrong with one field: `spec.containers[0].image` `Required value`.
#[derive(Clone, Debug, PartialEq)]
pub struct Cause {
    pub reason: CauseReason,
    /// Path as clients write it: `spec.ports[0].port`, `metadata.labels`; may be empty.
    pub field: String,
    /// Message without the field, as `field.Error.ErrorBody()` prints it: `Invalid value: -1: must be …`.
    pub message: String,
}

// === impl Cause ===

impl Cause {
    fn new(reason: CauseReason, field: impl Into<String>, message: String) -> Self {
        Self {
            reason,
            field: field.into(),
            message,
        }
    }

    /// `Required value` or `Required value: detail`.
    pub fn required(field: impl Into<String>, detail: &str) -> Self {
        Self::new(
            CauseReason::FieldValueRequired,
            field,
            with_detail("Required value", detail),
        )
    }

    /// `Invalid value: "x": detail`; strings are quoted, everything else is printed as JSON.
    pub fn invalid(field: impl Into<String>, value: &Value, detail: &str) -> Self {
        Self::new(
            CauseReason::FieldValueInvalid,
            field,
            with_detail(&format!("Invalid value: {value}"), detail),
        )
    }

    /// `Unsupported value: "x": supported values: "a", "b"`.
    pub fn not_supported(field: impl Into<String>, value: &Value, supported: &[&str]) -> Self {
        let supported = supported
            .iter()
            .map(|s| format!("{s:?}"))
            .collect::<Vec<_>>()
            .join(", ");
        let message = format!("Unsupported value: {value}: supported values: {supported}");
        Self::new(CauseReason::FieldValueNotSupported, field, message)
    }

    /// `Duplicate value: "x"`.
    pub fn duplicate(field: impl Into<String>, value: &Value) -> Self {
        Self::new(
            CauseReason::FieldValueDuplicate,
            field,
            format!("Duplicate value: {value}"),
        )
    }

    /// `Forbidden: detail`.
    pub fn forbidden(field: impl Into<String>, detail: &str) -> Self {
        Self::new(
            CauseReason::FieldValueForbidden,
            field,
            with_detail("Forbidden", detail),
        )
    }

    /// `Not found: "x"`.
    pub fn not_found(field: impl Into<String>, value: &Value) -> Self {
        Self::new(
            CauseReason::FieldValueNotFound,
            field,
            format!("Not found: {value}"),
        )
    }

    /// `Too long: may not be more than N bytes`.
    pub fn too_long(field: impl Into<String>, limit: usize) -> Self {
        let message = format!("Too long: may not be more than {limit} bytes");
        Self::new(CauseReason::FieldValueTooLong, field, message)
    }

    /// `Too many: N: must have at most M items`.
    pub fn too_many(field: impl Into<String>, found: usize, limit: usize) -> Self {
        let message = format!("Too many: {found}: must have at most {limit} items");
        Self::new(CauseReason::FieldValueTooMany, field, message)
    }

    /// A cause that is not about validation (`FieldManagerConflict`, `NamespaceTerminating` …).
    pub fn other(
        reason: CauseReason,
        field: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self::new(reason, field, message.into())
    }
}

fn with_detail(head: &str, detail: &str) -> String {
    if detail.is_empty() {
        head.to_owned()
    } else {
        format!("{head}: {detail}")
    }
}

impl CauseReason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::FieldValueNotFound => "FieldValueNotFound",
            Self::FieldValueRequired => "FieldValueRequired",
            Self::FieldValueDuplicate => "FieldValueDuplicate",
            Self::FieldValueInvalid => "FieldValueInvalid",
            Self::FieldValueNotSupported => "FieldValueNotSupported",
            Self::FieldValueForbidden => "FieldValueForbidden",
            Self::FieldValueTooLong => "FieldValueTooLong",
            Self::FieldValueTooMany => "FieldValueTooMany",
            Self::FieldValueTypeInvalid => "FieldValueTypeInvalid",
            Self::InternalError => "InternalError",
            Self::FieldManagerConflict => "FieldManagerConflict",
            Self::NamespaceTerminating => "NamespaceTerminating",
            Self::ResourceVersionTooLarge => "ResourceVersionTooLarge",
            Self::DisruptionBudget => "DisruptionBudget",
            Self::UnexpectedServerResponse => "UnexpectedServerResponse",
        }
    }
}

impl std::fmt::Display for Cause {
    /// As in the summary of an invalid object: `spec.x: Required value`; the bare message without a field.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.field.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.field, self.message)
        }
    }
}

impl Cause {
    pub(super) fn to_value(&self) -> Value {
        let mut cause = json!({ "reason": self.reason.as_str(), "message": self.message });
        if !self.field.is_empty() {
            cause["field"] = json!(self.field);
        }
        cause
    }
}
