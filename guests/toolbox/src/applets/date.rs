//! `date`, and times for other applets. All times are UTC: a component has no zones.

use std::time::{Duration, SystemTime};

use super::{Answer, done};
use crate::context::Context;
use crate::files;
use crate::io::print;
use crate::options::{Spec, parse as options};
use crate::os;

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];

pub fn start(context: &mut Context, args: &[String]) -> Answer {
    const SPEC: Spec = Spec {
        short: "ud:r:IRs:",
        long: &[
            ("utc", 'u'),
            ("date", 'd'),
            ("rfc-2822", 'R'),
            ("iso-8601", 'I'),
            ("reference", 'r'),
        ],
        stop: false,
    };
    let options = options(&SPEC, args)?;
    if options.has('s') {
        return done(context.fail("the clock is the host's and cannot be set"));
    }
    let time = match (options.value('d'), options.value('r')) {
        (Some(text), _) => match read(text, os::now()) {
            Some(time) => time,
            None => return Err(format!("invalid date '{text}'")),
        },
        (None, Some(file)) => match files::stat(&context.path(file)) {
            Ok(about) => about.modified.map(since).unwrap_or_default(),
            Err(error) => return done(context.fail_on(file, &error)),
        },
        (None, None) => os::now(),
    };
    let format = match options.operands.as_slice() {
        [] if options.has('R') => "%a, %d %b %Y %H:%M:%S %z",
        [] if options.has('I') => "%Y-%m-%d",
        [] => "%a %b %e %H:%M:%S %Z %Y",
        [format] if format.starts_with('+') => &format[1..],
        _ => return Err("the clock is the host's and cannot be set".to_owned()),
    };
    print(&context.stdout, &format!("{}\n", show(time, format)));
    done(0)
}

pub fn since(time: SystemTime) -> Duration {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
}

/// `@SECONDS`, `now`, `YYYY-MM-DD[ T]hh:mm[:ss]`, `hh:mm[:ss]`.
pub fn read(text: &str, now: Duration) -> Option<Duration> {
    if text == "now" {
        return Some(now);
    }
    if let Some(seconds) = text.strip_prefix('@') {
        return seconds.parse().ok().map(Duration::from_secs);
    }
    let text = text.trim_end_matches('Z').trim_end_matches(" UTC");
    let (date, time) = match text.split_once(['T', ' ']) {
        Some((date, time)) => (Some(date), Some(time)),
        None if text.contains(':') => (None, Some(text)),
        None => (Some(text), None),
    };
    let days = match date {
        Some(date) => {
            let mut parts = date.splitn(3, '-');
            let year: i64 = parts.next()?.parse().ok()?;
            let month: i64 = parts
                .next()?
                .parse()
                .ok()
                .filter(|m| (1..=12).contains(m))?;
            let day: i64 = parts
                .next()?
                .parse()
                .ok()
                .filter(|d| (1..=31).contains(d))?;
            days_since_1970(year, month, day)
        }
        None => (now.as_secs() / 86_400) as i64,
    };
    let mut seconds = 0;
    if let Some(time) = time {
        for (part, unit) in time.splitn(3, ':').zip([3_600, 60, 1]) {
            seconds += part.parse::<i64>().ok().filter(|n| (0..=60).contains(n))? * unit;
        }
    }
    u64::try_from(days * 86_400 + seconds)
        .ok()
        .map(Duration::from_secs)
}

/// A moment taken apart.
struct Civil {
    year: i64,
    month: i64,
    day: i64,
    hour: u64,
    minute: u64,
    second: u64,
    weekday: usize,
    yearday: i64,
}

/// Days from the civil calendar (Howard Hinnant's algorithm).
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

fn civil(time: Duration) -> Civil {
    let seconds = time.as_secs();
    let days = (seconds / 86_400) as i64;
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    Civil {
        year,
        month,
        day: of_year - (153 * shifted_month + 2) / 5 + 1,
        hour: seconds / 3_600 % 24,
        minute: seconds / 60 % 60,
        second: seconds % 60,
        weekday: (days + 4).rem_euclid(7) as usize,
        yearday: days - days_since_1970(year, 1, 1) + 1,
    }
}

/// strftime, in UTC.
pub fn show(time: Duration, format: &str) -> String {
    let c = civil(time);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(letter) = chars.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        let mut letter = chars.next();
        let unpadded = letter == Some('-');
        if unpadded {
            letter = chars.next();
        }
        let month = MONTHS[(c.month - 1).clamp(0, 11) as usize];
        let day = DAYS[c.weekday];
        let hour12 = (c.hour + 11) % 12 + 1;
        let text = match letter {
            Some('Y') => c.year.to_string(),
            Some('y') => format!("{:02}", c.year % 100),
            Some('C') => format!("{:02}", c.year / 100),
            Some('m') => format!("{:02}", c.month),
            Some('d') => format!("{:02}", c.day),
            Some('e') => format!("{:>2}", c.day),
            Some('H') => format!("{:02}", c.hour),
            Some('I') => format!("{hour12:02}"),
            Some('k') => format!("{:>2}", c.hour),
            Some('l') => format!("{hour12:>2}"),
            Some('M') => format!("{:02}", c.minute),
            Some('S') => format!("{:02}", c.second),
            Some('N') => format!("{:09}", time.subsec_nanos()),
            Some('j') => format!("{:03}", c.yearday),
            Some('s') => time.as_secs().to_string(),
            Some('a') => day[..3].to_owned(),
            Some('A') => day.to_owned(),
            Some('b' | 'h') => month[..3].to_owned(),
            Some('B') => month.to_owned(),
            Some('u') => (if c.weekday == 0 { 7 } else { c.weekday }).to_string(),
            Some('w') => c.weekday.to_string(),
            Some('p') => if c.hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('Z') => "UTC".to_owned(),
            Some('z') => "+0000".to_owned(),
            Some('F') => show(time, "%Y-%m-%d"),
            Some('T') => show(time, "%H:%M:%S"),
            Some('R') => show(time, "%H:%M"),
            Some('D') => show(time, "%m/%d/%y"),
            Some('c') => show(time, "%a %b %e %H:%M:%S %Y"),
            Some('n') => "\n".to_owned(),
            Some('t') => "\t".to_owned(),
            Some('%') => "%".to_owned(),
            Some(other) => format!("%{other}"),
            None => "%".to_owned(),
        };
        match unpadded {
            true => {
                let short = text.trim_start_matches(['0', ' ']);
                out.push_str(if short.is_empty() { "0" } else { short });
            }
            false => out.push_str(&text),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_taken_apart_and_put_together() {
        let time = Duration::from_secs(1_709_210_096);
        assert_eq!(
            show(time, "%F %T %a %j %s"),
            "2024-02-29 12:34:56 Thu 060 1709210096"
        );
        assert_eq!(read("2024-02-29 12:34:56", time), Some(time));
        assert_eq!(read("2024-02-29T12:34:56Z", time), Some(time));
        assert_eq!(read("12:34:56", time), Some(time));
        assert_eq!(read("@5", time), Some(Duration::from_secs(5)));
        assert_eq!(
            show(Duration::ZERO, "%c %-d %I%p"),
            "Thu Jan  1 00:00:00 1970 1 12AM"
        );
        assert_eq!(read("2024-13-01", time), None);
    }
}
