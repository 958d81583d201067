//! RFC 3339 as Go's `time` package reads and prints it. Pure.

/// A layout as its error messages show it.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    name: &'static str,
    micros: bool,
}

pub(super) const SECONDS: Layout = Layout {
    name: "2006-01-02T15:04:05Z07:00",
    micros: false,
};

pub(super) const MICROS: Layout = Layout {
    name: "2006-01-02T15:04:05.000000Z07:00",
    micros: true,
};

/// Go's complaint about `text`, if it has one: `parsing time "x" as "…": cannot parse "x" as "2006"`.
pub(super) fn check(text: &str, layout: Layout) -> Result<(), String> {
    let complain = |rest: &str, element: &str| {
        format!(
            "parsing time {text:?} as {:?}: cannot parse {rest:?} as {element:?}",
            layout.name
        )
    };
    let mut rest = text;
    let parts = [
        ("2006", 4),
        ("-", 0),
        ("01", 2),
        ("-", 0),
        ("02", 2),
        ("T", 0),
        ("15", 2),
        (":", 0),
        ("04", 2),
        (":", 0),
        ("05", 2),
    ];
    for (element, digits) in parts {
        rest = match digits {
            0 => rest.strip_prefix(element),
            _ => take_digits(rest, digits),
        }
        .ok_or_else(|| complain(rest, element))?;
    }
    if let Some(fraction) = rest.strip_prefix('.') {
        let tail = fraction.trim_start_matches(|c: char| c.is_ascii_digit());
        if tail.len() == fraction.len() {
            return Err(complain(rest, "Z07:00"));
        }
        rest = tail;
    }
    if !is_zone(rest) {
        return Err(complain(rest, "Z07:00"));
    }
    match text.parse::<jiff::Timestamp>() {
        Ok(_) => Ok(()),
        Err(_) => Err(format!("parsing time {text:?}: value out of range")),
    }
}

/// The canonical text of a time that passed [`check`]; anything else comes back as it is.
pub(super) fn canonical(text: &str, layout: Layout) -> Option<String> {
    let stands = if layout.micros { 27 } else { 20 };
    if text.len() == stands && text.ends_with('Z') {
        return None;
    }
    let at: jiff::Timestamp = text.parse().ok()?;
    let form = if layout.micros {
        "%Y-%m-%dT%H:%M:%S.%6fZ"
    } else {
        "%Y-%m-%dT%H:%M:%SZ"
    };
    Some(at.strftime(form).to_string())
}

fn take_digits(text: &str, count: usize) -> Option<&str> {
    let (digits, rest) = text.split_at_checked(count)?;
    digits.bytes().all(|b| b.is_ascii_digit()).then_some(rest)
}

/// `Z`, `+01:00`, `-08:30`
fn is_zone(text: &str) -> bool {
    let bytes = text.as_bytes();
    match bytes {
        b"Z" => true,
        [b'+' | b'-', h1, h2, b':', m1, m2] => [h1, h2, m1, m2].iter().all(|b| b.is_ascii_digit()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_printed_in_utc_seconds() {
        let text = "2026-11-23T10:00:00.5+01:00";
        assert_eq!(check(text, SECONDS), Ok(()));
        assert_eq!(
            canonical(text, SECONDS).as_deref(),
            Some("2026-11-23T09:00:00Z")
        );
        assert_eq!(
            canonical("2026-11-23T09:00:00Z", MICROS).as_deref(),
            Some("2026-11-23T09:00:00.000000Z")
        );
        assert_eq!(canonical("2026-11-23T09:00:00Z", SECONDS), None);
    }

    #[test]
    fn a_bad_time_is_named_as_go_names_it() {
        let error = check("tomorrow", SECONDS).expect_err("this is no time");
        assert_eq!(
            error,
            "parsing time \"tomorrow\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"tomorrow\" as \"2006\""
        );
        assert!(check("2026-13-40T00:00:00Z", SECONDS).is_err());
        assert!(check("2026-01-02 00:00:00Z", SECONDS).is_err());
    }
}
