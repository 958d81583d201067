//! Patches: (object, patch) → object, or every cause. Pure; reads the type graph, never a kind, a store or a clock.
//!
//! [`json`] RFC 6902 · [`merge`] RFC 7396 · [`strategic`] Kubernetes' merge keys and `$patch` directives · [`apply`]
//! server-side apply and field ownership, on [`fields`], sets of paths into an object.

pub mod apply;
pub mod fields;
pub mod strategic;
mod typed;

use serde_json::Value;

use crate::status::{Error, Reason};

pub use strategic::strategic;

/// Most operations one JSON patch may hold, as upstream.
const MOST_OPERATIONS: usize = 10_000;

/// Applies a JSON patch (RFC 6902).
///
/// Errors: 400 for a body that is no JSON patch, 413 past 10,000 operations, 422 when an operation cannot be done or a
/// `test` fails. The original is untouched then.
pub fn json(original: &Value, patch: &[u8]) -> Result<Value, Error> {
    let patch: json_patch::Patch = serde_json::from_slice(patch)
        .map_err(|error| Error::bad_request(format!("error decoding patch: {error}")))?;
    if patch.0.len() > MOST_OPERATIONS {
        return Err(Error::new(
            Reason::RequestEntityTooLarge,
            format!(
                "The allowed maximum operations in a JSON patch is {MOST_OPERATIONS}, got {}",
                patch.0.len()
            ),
        ));
    }
    let mut patched = original.clone();
    json_patch::patch(&mut patched, &patch).map_err(|_| {
        Error::new(
            Reason::Invalid,
            "the server rejected our request due to an error in our request",
        )
    })?;
    Ok(patched)
}

/// Applies a merge patch (RFC 7396).
pub fn merge(original: &Value, patch: &Value) -> Value {
    let mut merged = original.clone();
    json_patch::merge(&mut merged, patch);
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json as value;

    #[test]
    fn a_failed_test_operation_is_unprocessable() {
        let object = value!({"a": 1});
        let error =
            json(&object, br#"[{"op":"test","path":"/a","value":2}]"#).expect_err("2 is not 1");
        assert_eq!(error.reason, Reason::Invalid);
        assert_eq!(
            error.message,
            "the server rejected our request due to an error in our request"
        );
        let error = json(&object, b"{}").expect_err("an object is no patch");
        assert_eq!(error.reason, Reason::BadRequest);
    }

    #[test]
    fn null_removes_in_a_merge_patch() {
        let merged = merge(
            &value!({"a": 1, "b": {"c": 1}}),
            &value!({"a": null, "b": {"d": 2}}),
        );
        assert_eq!(merged, value!({"b": {"c": 1, "d": 2}}));
    }
}
