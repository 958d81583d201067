//! The line a watcher reads for a change, and the object's bytes as a part of it. Knows no HTTP and no object's fields.
//!
//! It is here and not with the handlers because of memory: an object's bytes are born inside their line, so that a history
//! of events keeps each state once, and a watch copies nothing.

use bytes::Bytes;

use super::Event;

const BEFORE: &[u8] = b"{\"type\":\"";
const BETWEEN: &[u8] = b"\",\"object\":";
const AFTER: &[u8] = b"}\n";

/// `{"type":"ADDED","object":…}` and the end of the line.
pub(crate) fn wrap(kind_of_change: &str, object: &[u8]) -> Bytes {
    of_parts(kind_of_change, &[object]).0
}

/// The line about an object that comes in parts, and the object: a slice of the line.
pub(super) fn of_parts(kind_of_change: &str, parts: &[&[u8]]) -> (Bytes, Bytes) {
    let object: usize = parts.iter().map(|part| part.len()).sum();
    let begin = BEFORE.len() + kind_of_change.len() + BETWEEN.len();
    let mut line = Vec::with_capacity(begin + object + AFTER.len());
    line.extend_from_slice(BEFORE);
    line.extend_from_slice(kind_of_change.as_bytes());
    line.extend_from_slice(BETWEEN);
    for part in parts {
        line.extend_from_slice(part);
    }
    line.extend_from_slice(AFTER);
    let line = Bytes::from(line);
    let object = line.slice(begin..begin + object);
    (line, object)
}

/// What a watcher without a selector calls a change.
pub(crate) fn kind_of_change(existed: bool, deleted: bool) -> &'static str {
    match (existed, deleted) {
        (_, true) => "DELETED",
        (false, false) => "ADDED",
        (true, false) => "MODIFIED",
    }
}

// === impl Event ===

impl Event {
    /// The line for watchers without a selector who read the stored form: as it was written with the object, or made once
    /// for all of them when the state came from the database.
    pub(crate) fn line(&self) -> Bytes {
        let kind_of_change = || kind_of_change(self.previous.is_some(), self.deleted);
        let make = || wrap(kind_of_change(), &self.object.bytes);
        self.line.get_or_init(make).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_a_part_of_its_line() {
        let (line, object) = of_parts("ADDED", &[b"{\"a\":", b"1}"]);
        assert_eq!(line, "{\"type\":\"ADDED\",\"object\":{\"a\":1}}\n");
        assert_eq!(object, "{\"a\":1}");
        assert!(line.as_ptr_range().contains(&object.as_ptr()), "no copy");
        assert_eq!(wrap("ADDED", &object), line);
    }
}
