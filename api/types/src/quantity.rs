//! `resource.Quantity`: `500m`, `64Mi`, `1e3`. Exact arithmetic on nano units; never floating point.
//!
//! Canonical form as upstream's: no fraction, the largest suffix of its family that keeps the number whole;
//! `0.5` → `500m`, `1024Mi` → `1Gi`, `1000k` → `1M`. Precision ends at nano; what is finer is rounded up.

use std::cmp::Ordering;
use std::fmt;
use std::ops::{Add, AddAssign, Sub};
use std::str::FromStr;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

const NANO: i128 = 1_000_000_000;

/// Which suffixes the canonical form uses.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    /// `Ki`, `Mi`, `Gi` …
    Binary,
    /// `m`, (none), `k`, `M` …
    Decimal,
    /// `e3`, `E6` …
    Exponent,
}

/// An amount of something; equality and order are by amount, whatever the format.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// The text upstream gives for anything it cannot parse.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
)]
pub struct ParseError;

// === impl Quantity ===

impl Quantity {
    pub const ZERO: Self = Self {
        nanos: 0,
        format: Format::Decimal,
    };

    /// `1500` millis → `1500m`.
    pub fn from_millis(millis: i64) -> Self {
        Self {
            nanos: i128::from(millis) * (NANO / 1000),
            format: Format::Decimal,
        }
    }

    /// Bytes, shown with binary suffixes.
    pub fn from_bytes(bytes: u64) -> Self {
        Self {
            nanos: i128::from(bytes) * NANO,
            format: Format::Binary,
        }
    }

    pub fn from_units(units: i64) -> Self {
        Self {
            nanos: i128::from(units) * NANO,
            format: Format::Decimal,
        }
    }

    /// Thousandths, rounded up, saturating: CPU as millicores.
    pub fn millis(&self) -> i64 {
        saturate(div_up(self.nanos, NANO / 1000))
    }

    /// Whole units, rounded up, saturating: bytes, counts.
    pub fn units(&self) -> i64 {
        saturate(div_up(self.nanos, NANO))
    }

    /// Whole bytes; negative amounts are 0.
    pub fn bytes(&self) -> u64 {
        u64::try_from(self.units()).unwrap_or(0)
    }

    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// Is this a whole multiple of 1/1000? CPU must be.
    pub fn is_milli_precise(&self) -> bool {
        self.nanos % (NANO / 1000) == 0
    }

    /// Is this a whole number? Bytes and counts must be.
    pub fn is_integer(&self) -> bool {
        self.nanos % NANO == 0
    }
}

fn div_up(value: i128, by: i128) -> i128 {
    let floor = value.div_euclid(by);
    if value.rem_euclid(by) == 0 {
        floor
    } else {
        floor + 1
    }
}

fn saturate(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl Add for Quantity {
    type Output = Self;

    /// Keeps the left side's format unless it is zero.
    fn add(self, other: Self) -> Self {
        let format = if self.nanos == 0 {
            other.format
        } else {
            self.format
        };
        Self {
            nanos: self.nanos.saturating_add(other.nanos),
            format,
        }
    }
}

impl AddAssign for Quantity {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sub for Quantity {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self {
            nanos: self.nanos.saturating_sub(other.nanos),
            format: self.format,
        }
    }
}

impl Default for Quantity {
    fn default() -> Self {
        Self::ZERO
    }
}

impl FromStr for Quantity {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(ParseError);
        }
        let (multiplier, divisor, format) = scale(suffix).ok_or(ParseError)?;
        let nanos = magnitude(whole, fraction, multiplier, divisor)?;
        Ok(Self {
            nanos: if negative { -nanos } else { nanos },
            format,
        })
    }
}

/// Nano units of `whole.fraction × multiplier / divisor`, rounded up; amounts past i64 are capped as upstream caps them.
fn magnitude(
    whole: &str,
    fraction: &str,
    multiplier: i128,
    divisor: i128,
) -> Result<i128, ParseError> {
    let cap = i128::from(i64::MAX) * NANO;
    // Ten places are enough: the eleventh could only matter below nano, where everything rounds up.
    let kept = &fraction[..fraction.len().min(10)];
    let dropped = fraction[kept.len()..].bytes().any(|digit| digit != b'0');
    let digits: String = [whole, kept].concat();
    let Ok(mut value) = digits.trim_start_matches('0').parse::<i128>().or_else(|_| {
        if digits.bytes().all(|b| b == b'0') {
            Ok(0)
        } else {
            Err(ParseError)
        }
    }) else {
        return if digits.bytes().all(|b| b.is_ascii_digit()) {
            Ok(cap)
        } else {
            Err(ParseError)
        };
    };
    let mut divisor = divisor * 10_i128.pow(u32::try_from(kept.len()).unwrap_or(10));
    if dropped {
        value = value.saturating_mul(10).saturating_add(1);
        divisor *= 10;
    }
    Ok(value
        .checked_mul(multiplier)
        .and_then(|v| v.checked_mul(NANO))
        .map_or(cap, |v| div_up(v, divisor))
        .min(cap))
}

/// Multiplier, divisor and format of a suffix.
fn scale(suffix: &str) -> Option<(i128, i128, Format)> {
    let binary = |power: u32| Some((1_i128 << (10 * power), 1, Format::Binary));
    let decimal = |power: u32| Some((10_i128.pow(power), 1, Format::Decimal));
    let small = |power: u32| Some((1, 10_i128.pow(power), Format::Decimal));
    match suffix {
        "" => decimal(0),
        "n" => small(9),
        "u" => small(6),
        "m" => small(3),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10_i128.checked_pow(exponent.unsigned_abs().min(27))?;
            Some(if exponent < 0 {
                (1, power, Format::Exponent)
            } else {
                (power, 1, Format::Exponent)
            })
        }
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        // Below 1024 or with a fraction, the binary family has no suffix: upstream falls back to decimal.
        if self.format == Format::Binary && self.nanos % NANO == 0 {
            let mut value = self.nanos / NANO;
            let mut suffix = "";
            for next in ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"] {
                if value % 1024 != 0 {
                    break;
                }
                value /= 1024;
                suffix = next;
            }
            return write!(f, "{value}{suffix}");
        }
        let mut value = self.nanos;
        let mut power = -9_i32;
        while power < 18 && value % 1000 == 0 {
            value /= 1000;
            power += 3;
        }
        if self.format == Format::Exponent && power != 0 {
            return write!(f, "{value}e{power}");
        }
        let suffix = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"]
            [usize::try_from((power + 9) / 3).unwrap_or(3)];
        write!(f, "{value}{suffix}")
    }
}

impl TryFrom<&ApiQuantity> for Quantity {
    type Error = ParseError;

    fn try_from(quantity: &ApiQuantity) -> Result<Self, ParseError> {
        quantity.0.parse()
    }
}

impl From<Quantity> for ApiQuantity {
    fn from(quantity: Quantity) -> Self {
        Self(quantity.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn canonical(text: &str) -> String {
        text.parse::<Quantity>()
            .map_or_else(|_| "error".to_owned(), |q| q.to_string())
    }

    #[test]
    fn canonical_form_is_upstreams() {
        for (given, want) in [
            ("0", "0"),
            ("0.5", "500m"),
            ("1024Mi", "1Gi"),
            ("1000k", "1M"),
            ("1.5Gi", "1536Mi"),
            ("100m", "100m"),
            ("1500m", "1500m"),
            ("2000m", "2"),
            ("1e3", "1e3"),
            ("12E", "9223372036854775807"),
            ("64Mi", "64Mi"),
            ("1000", "1k"),
            ("1025Ki", "1025Ki"),
            ("500", "500"),
            ("-1.5", "-1500m"),
            ("0.0000000001", "1n"),
            (".5", "500m"),
            ("5.", "5"),
            ("", "error"),
            (".", "error"),
            ("1.2.3", "error"),
            ("abc", "error"),
            ("5x", "error"),
            ("1 Gi", "error"),
        ] {
            assert_eq!(canonical(given), want, "{given:?}");
        }
    }

    #[test]
    fn amounts_round_up() {
        let parse = |text: &str| {
            text.parse::<Quantity>()
                .expect("the table holds valid quantities")
        };
        assert_eq!(parse("0.1m").millis(), 1);
        assert_eq!(parse("500m").millis(), 500);
        assert_eq!(parse("1500m").units(), 2);
        assert_eq!(parse("64Mi").bytes(), 64 << 20);
        assert!(parse("1Gi") > parse("1G"));
        assert_eq!(parse("1"), parse("1000m"));
        assert_eq!((parse("1Gi") + parse("1Gi")).to_string(), "2Gi");
        assert_eq!(parse("99999999999999999999E").units(), i64::MAX);
    }

    proptest! {
        #[test]
        fn printing_and_parsing_again_changes_nothing(nanos in -1_000_000_000_000_000_i64..1_000_000_000_000_000, binary: bool) {
            let format = if binary { Format::Binary } else { Format::Decimal };
            let quantity = Quantity { nanos: i128::from(nanos), format };
            let text = quantity.to_string();
            let again: Quantity = text.parse().expect("printed by us");
            prop_assert_eq!(again, quantity);
            prop_assert_eq!(again.to_string(), text);
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,40}") {
            let _ = text.parse::<Quantity>().map(|q| q.to_string());
        }
    }
}
