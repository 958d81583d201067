//! Spans of time as people write them on a command line.

use std::time::Duration;

use anyhow::{Context as _, Result};

/// `90s`, `5m`, `1h`, `250ms`, and `0`.
pub(crate) fn parse(text: &str) -> Result<Duration> {
    let split = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let number: u64 = text[..split]
        .parse()
        .context("wanted a number and a unit, such as 90s or 5m")?;
    let millis = match &text[split..] {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        // No time needs no unit.
        "" if number == 0 => 1,
        unit => anyhow::bail!("{unit:?} is no unit of time: ms, s, m or h"),
    };
    number
        .checked_mul(millis)
        .map(Duration::from_millis)
        .context("that is too long")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_a_number_and_a_unit() {
        assert_eq!(parse("90s").ok(), Some(Duration::from_secs(90)));
        assert_eq!(parse("24h").ok(), Some(Duration::from_secs(86_400)));
        assert_eq!(parse("250ms").ok(), Some(Duration::from_millis(250)));
        assert_eq!(parse("0").ok(), Some(Duration::ZERO));
        for wrong in ["", "5", "m", "5d", "99999999999999999999s"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
