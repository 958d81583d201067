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
/// Most bytes that the copies and moves of one JSON patch may touch in all: as much as a request may send.
const COPY_BUDGET: usize = 3 << 20;
/// Levels an object may be nested. Stored objects are read with a limit of 128, and ownership adds a few.
const DEEPEST: usize = 100;

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
    let mut budget = COPY_BUDGET;
    for operation in patch.0 {
        afford(&patched, &operation, &mut budget)?;
        json_patch::patch_unsafe(&mut patched, &[operation]).map_err(|_| {
            Error::new(
                Reason::Invalid,
                "the server rejected our request due to an error in our request",
            )
        })?;
    }
    Ok(patched)
}

/// Refuses an operation that would nest too deeply, or copy and move more than the budget in all: forty copies of a map
/// into itself would be a terabyte, and a tree moved into itself again and again would overflow the stack of its readers.
fn afford(
    document: &Value,
    operation: &json_patch::PatchOperation,
    budget: &mut usize,
) -> Result<(), Error> {
    use json_patch::PatchOperation::{Add, Copy, Move, Remove, Replace, Test};
    let source = |from: &json_patch::jsonptr::Pointer| from.resolve(document).ok();
    let (path, value) = match operation {
        Add(add) => (&add.path, Some(&add.value)),
        Replace(replace) => (&replace.path, Some(&replace.value)),
        Copy(copy) => (&copy.path, source(&copy.from)),
        Move(moved) => (&moved.path, source(&moved.from)),
        Remove(_) | Test(_) => return Ok(()),
    };
    let Some(value) = value else { return Ok(()) };
    let (depth, size) = measure(value);
    if matches!(operation, Copy(_) | Move(_)) {
        *budget = budget.checked_sub(size).ok_or_else(|| {
            Error::new(
                Reason::RequestEntityTooLarge,
                format!("Unable to complete the patch, what it copies and moves exceeds the limit {COPY_BUDGET}"),
            )
        })?;
    }
    if path.tokens().count() + depth > DEEPEST {
        return Err(too_deep());
    }
    Ok(())
}

/// Refuses what is nested more deeply than its readers can follow.
pub fn check_depth(value: &Value) -> Result<(), Error> {
    if measure(value).0 > DEEPEST {
        Err(too_deep())
    } else {
        Ok(())
    }
}

fn too_deep() -> Error {
    Error::bad_request(format!(
        "the object is nested more than {DEEPEST} levels deep"
    ))
}

/// Levels of nesting and, roughly, bytes of text.
fn measure(value: &Value) -> (usize, usize) {
    let join = |(depth, size): (usize, usize), (below, more): (usize, usize)| {
        (depth.max(below), size + more)
    };
    match value {
        Value::Object(map) => {
            let (depth, size) = map
                .iter()
                .map(|(key, child)| {
                    let (depth, size) = measure(child);
                    (depth, size + key.len() + 4)
                })
                .fold((0, 2), join);
            (depth + 1, size)
        }
        Value::Array(list) => {
            let (depth, size) = list.iter().map(measure).fold((0, 2), join);
            (depth + 1, size + list.len())
        }
        Value::String(text) => (0, text.len() + 2),
        _ => (0, 4),
    }
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
    fn a_patch_cannot_blow_an_object_up() {
        let copies: Vec<_> = (0..60)
            .map(|n| value!({"op": "copy", "from": "/a", "path": format!("/a/n{n}")}))
            .collect();
        let copies = serde_json::to_vec(&copies).expect("printable");
        let error = json(&value!({"a": {"k": "v"}}), &copies).expect_err("it doubles each time");
        assert_eq!(error.reason, Reason::RequestEntityTooLarge);

        let deep = |levels: usize| "{\"x\":".repeat(levels) + "1" + &"}".repeat(levels);
        let add = format!(r#"[{{"op":"add","path":"/a","value":{}}}]"#, deep(99));
        assert!(json(&value!({}), add.as_bytes()).is_ok());
        let add = format!(r#"[{{"op":"add","path":"/a","value":{}}}]"#, deep(100));
        let error = json(&value!({}), add.as_bytes()).expect_err("too deep");
        assert_eq!(
            error.message,
            "the object is nested more than 100 levels deep"
        );
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
