//! Spans of time as people write them: Go's `time.ParseDuration`, for flags and queries. Never says which spans are sensible.

use std::time::Duration;

/// Nanoseconds in each unit. Go knows both ways to write a micro sign.
const UNITS: [(&str, u128); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];
/// Go counts nanoseconds in 63 bits, some 292 years.
const LONGEST: u128 = i64::MAX as u128;
/// Digits after the point that can matter: an hour has 3.6e12 nanoseconds.
const PLACES: usize = 15;

/// Upstream's sentences.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum Wrong {
    #[error("time: invalid duration {0:?}")]
    Invalid(String),
    #[error("time: missing unit in duration {0:?}")]
    NoUnit(String),
    #[error("time: unknown unit {unit:?} in duration {text:?}")]
    Unit { text: String, unit: String },
}

/// `90s`, `1h30m`, `1.5h`, `250ms`, `0`: numbers with units, added up; never negative.
pub fn parse(text: &str) -> Result<Duration, Wrong> {
    let invalid = || Wrong::Invalid(text.to_owned());
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest.is_empty() {
        return Err(invalid());
    }
    // No time needs no unit.
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    let mut total = 0u128;
    while !rest.is_empty() {
        let (whole, after) = split(rest, |c| c.is_ascii_digit());
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => split(after, |c| c.is_ascii_digit()),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(invalid());
        }
        let (unit, after) = split(after, |c| c != '.' && !c.is_ascii_digit());
        if unit.is_empty() {
            return Err(Wrong::NoUnit(text.to_owned()));
        }
        let known = UNITS.iter().find(|(name, _)| *name == unit);
        let Some((_, nanos)) = known else {
            return Err(Wrong::Unit {
                text: text.to_owned(),
                unit: unit.to_owned(),
            });
        };
        total += number(whole).ok_or_else(invalid)? * nanos;
        let places = &fraction[..fraction.len().min(PLACES)];
        let scale = 10u128.pow(u32::try_from(places.len()).unwrap_or_default());
        total += number(places).ok_or_else(invalid)? * nanos / scale;
        if total > LONGEST {
            return Err(invalid());
        }
        rest = after;
    }
    let nanos = u64::try_from(total).map_err(|_| invalid())?;
    Ok(Duration::from_nanos(nanos))
}

/// A parser for flags that take spans from `least` to `most`, as `clap` wants it.
pub fn within(
    least: Duration,
    most: Duration,
) -> impl Fn(&str) -> Result<Duration, String> + Clone + Send + Sync + 'static {
    move |text| {
        let span = parse(text).map_err(|wrong| wrong.to_string())?;
        if (least..=most).contains(&span) {
            Ok(span)
        } else {
            Err(format!("it is not between {least:?} and {most:?}"))
        }
    }
}

/// No digits are no number: zero. `None`: larger than any span.
fn number(digits: &str) -> Option<u128> {
    let number = match digits {
        "" => 0,
        digits => digits.parse().ok()?,
    };
    (number <= LONGEST).then_some(number)
}

fn split(text: &str, belongs: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !belongs(c)).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_as_go_reads_them() {
        for (text, nanos) in [
            ("0", 0),
            ("0s", 0),
            ("+5s", 5_000_000_000),
            ("90s", 90_000_000_000),
            ("250ms", 250_000_000),
            ("1m30s", 90_000_000_000),
            ("1.5h", 5_400_000_000_000),
            (".5s", 500_000_000),
            ("2.s", 2_000_000_000),
            ("1h1m1s1ms1us1ns", 3_661_001_001_001),
            ("1µs", 1_000),
            ("1μs", 1_000),
            ("0.0000000000000000001h", 0),
            ("0.100000000000000000000h", 360_000_000_000),
            ("8760h", 31_536_000_000_000_000),
            ("9223372036854775807ns", 9_223_372_036_854_775_807),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_nanos(nanos)), "{text}");
        }
    }

    #[test]
    fn what_is_no_span_is_told_in_upstreams_words() {
        for (text, told) in [
            ("", "time: invalid duration \"\""),
            ("+", "time: invalid duration \"+\""),
            ("-1s", "time: invalid duration \"-1s\""),
            ("s", "time: invalid duration \"s\""),
            (".s", "time: invalid duration \".s\""),
            ("5", "time: missing unit in duration \"5\""),
            ("1s5", "time: missing unit in duration \"1s5\""),
            ("5d", "time: unknown unit \"d\" in duration \"5d\""),
            ("3000000h", "time: invalid duration \"3000000h\""),
            (
                "99999999999999999999999999999999999999999s",
                "time: invalid duration \"99999999999999999999999999999999999999999s\"",
            ),
        ] {
            assert_eq!(parse(text).map_err(|e| e.to_string()), Err(told.to_owned()));
        }
    }

    #[test]
    fn a_flag_has_bounds() {
        let parse = within(Duration::from_secs(1), Duration::from_secs(60));
        assert_eq!(parse("1s"), Ok(Duration::from_secs(1)));
        assert_eq!(parse("61s"), Err("it is not between 1s and 60s".to_owned()));
        parse("1d").expect_err("no unit of Go's");
    }
}
