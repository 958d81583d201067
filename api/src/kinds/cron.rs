//! Cron schedules: five fields, or `@daily` and its like. Only whether one is well formed; nothing fires here. Pure.

/// One field: its bounds and the names its values may have.
struct Field {
    least: u32,
    most: u32,
    names: &'static [&'static str],
}

const FIELDS: [Field; 5] = [
    Field {
        least: 0,
        most: 59,
        names: &[],
    },
    Field {
        least: 0,
        most: 23,
        names: &[],
    },
    Field {
        least: 1,
        most: 31,
        names: &[],
    },
    Field {
        least: 1,
        most: 12,
        names: &[
            "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
        ],
    },
    Field {
        least: 0,
        most: 6,
        names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"],
    },
];
const WORDS: [&str; 7] = [
    "@yearly",
    "@annually",
    "@monthly",
    "@weekly",
    "@daily",
    "@midnight",
    "@hourly",
];

/// What is wrong with a schedule, in the words upstream's parser uses.
pub fn parse(text: &str) -> Result<(), String> {
    let text = match text
        .strip_prefix("TZ=")
        .or_else(|| text.strip_prefix("CRON_TZ="))
    {
        Some(rest) => rest.split_once(' ').map_or("", |(_, rest)| rest),
        None => text,
    };
    if text.is_empty() {
        return Err("empty spec string".to_owned());
    }
    if text.starts_with('@') {
        return word(text);
    }
    let fields: Vec<&str> = text.split_whitespace().collect();
    if fields.len() != FIELDS.len() {
        let (count, shown) = (fields.len(), fields.join(" "));
        return Err(format!(
            "expected exactly 5 fields, found {count}: [{shown}]"
        ));
    }
    for (field, text) in FIELDS.iter().zip(fields) {
        text.split(',').try_for_each(|part| range(field, part))?;
    }
    Ok(())
}

fn word(text: &str) -> Result<(), String> {
    let every = text.strip_prefix("@every ").map(str::trim);
    let duration = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_digit()) && text.ends_with(['s', 'm', 'h'])
    };
    match every {
        _ if WORDS.contains(&text) => Ok(()),
        Some(text) if duration(text) => Ok(()),
        Some(_) => Err(format!("failed to parse duration {text}")),
        None => Err(format!("unrecognized descriptor: {text}")),
    }
}

/// `*`, `5`, `1-5`, `*/10`, `mon-fri/2`.
fn range(field: &Field, part: &str) -> Result<(), String> {
    let (range, step) = match part.split_once('/') {
        Some((_, step)) if step.contains('/') => return Err(format!("too many slashes: {part}")),
        Some((range, step)) => (range, Some(step)),
        None => (part, None),
    };
    if let Some(step) = step
        && number(step)? == 0
    {
        return Err(format!("step of range should be a positive number: {part}"));
    }
    if matches!(range, "*" | "?") {
        return Ok(());
    }
    let (from, to) = match range.split_once('-') {
        Some((_, to)) if to.contains('-') => return Err(format!("too many hyphens: {part}")),
        Some((from, to)) => (value(field, from)?, value(field, to)?),
        None => {
            let from = value(field, range)?;
            (from, if step.is_some() { field.most } else { from })
        }
    };
    if from < field.least {
        let least = field.least;
        return Err(format!(
            "beginning of range ({from}) below minimum ({least}): {part}"
        ));
    }
    if to > field.most {
        let most = field.most;
        return Err(format!(
            "end of range ({to}) above maximum ({most}): {part}"
        ));
    }
    if from > to {
        return Err(format!(
            "beginning of range ({from}) beyond end of range ({to}): {part}"
        ));
    }
    Ok(())
}

fn value(field: &Field, text: &str) -> Result<u32, String> {
    let named = field
        .names
        .iter()
        .position(|name| name.eq_ignore_ascii_case(text));
    match named.and_then(|at| u32::try_from(at).ok()) {
        Some(at) => Ok(at + field.least),
        None => number(text),
    }
}

fn number(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| {
        format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_are_judged() {
        for fine in [
            "* * * * *",
            "*/15 0-6,12 1 jan-mar MON",
            "0 0 31 12 0",
            "@weekly",
            "@every 90m",
        ] {
            assert_eq!(parse(fine), Ok(()), "{fine}");
        }
        for (bad, why) in [
            ("", "empty spec string"),
            ("@often", "unrecognized descriptor: @often"),
            (
                "5-1 * * * *",
                "beginning of range (5) beyond end of range (1): 5-1",
            ),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            (
                "*/0 * * * *",
                "step of range should be a positive number: */0",
            ),
            (
                "x * * * *",
                "failed to parse int from x: strconv.Atoi: parsing \"x\": invalid syntax",
            ),
        ] {
            assert_eq!(parse(bad), Err(why.to_owned()), "{bad}");
        }
    }
}
