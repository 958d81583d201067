//! `sleep`.

use std::time::Duration;

use super::{Answer, done};
use crate::context::Context;
use crate::os;

/// Longer than anything runs.
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

pub fn start(_: &mut Context, args: &[String]) -> Answer {
    let time = duration(args)?;
    done(if os::pause(time) { 0 } else { 130 })
}

/// `1.5`, `10s`, `2m 30s`, `infinity`.
pub fn duration(args: &[String]) -> Result<Duration, String> {
    if args.is_empty() {
        return Err("a time is needed".to_owned());
    }
    let mut sum = Duration::ZERO;
    for arg in args {
        sum = sum.saturating_add(one(arg)?);
    }
    Ok(sum.min(FOREVER))
}

pub fn one(text: &str) -> Result<Duration, String> {
    if matches!(text, "infinity" | "inf") {
        return Ok(FOREVER);
    }
    let invalid = || format!("invalid number '{text}'");
    let unit = match text.chars().last() {
        Some('s') => 1.0,
        Some('m') => 60.0,
        Some('h') => 3_600.0,
        Some('d') => 86_400.0,
        Some(c) if c.is_ascii_digit() || c == '.' => 1.0,
        _ => return Err(invalid()),
    };
    let number: f64 = text
        .trim_end_matches(['s', 'm', 'h', 'd'])
        .parse()
        .map_err(|_| invalid())?;
    Duration::try_from_secs_f64(number * unit)
        .map(|time| time.min(FOREVER))
        .map_err(|_| invalid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units_and_sums() {
        let time =
            |args: &[&str]| duration(&args.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>());
        assert_eq!(time(&["1.5"]), Ok(Duration::from_millis(1_500)));
        assert_eq!(time(&["1m", "2s"]), Ok(Duration::from_secs(62)));
        assert_eq!(time(&["infinity"]), Ok(FOREVER));
        assert!(time(&["x"]).is_err() && time(&["-1"]).is_err() && time(&[]).is_err());
    }
}
