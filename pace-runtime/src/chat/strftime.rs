//! `strftime_now(format)`: today's date for a template, in UTC, as there is no portable way to the local zone.

use std::time::{SystemTime, UNIX_EPOCH};

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
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const SECONDS_PER_DAY: u64 = 86_400;

/// A moment in UTC.
struct Moment {
    year: u64,
    /// 0 to 11.
    month: usize,
    day: u64,
    /// From 1 January, from 0.
    day_of_year: u64,
    /// From Sunday.
    weekday: usize,
    second_of_day: u64,
}

/// The present moment by `format`.
pub(super) fn now(format: &str) -> Result<String, String> {
    let since =
        SystemTime::now().duration_since(UNIX_EPOCH).map_err(|_| "the clock is before 1970".to_owned())?;
    write(&Moment::from_unix(since.as_secs()), format)
}

impl Moment {
    /// Counts whole years and months off: a template asks for the date once, and no year is far from 1970.
    fn from_unix(seconds: u64) -> Self {
        let days = seconds / SECONDS_PER_DAY;
        let (mut year, mut day) = (1970, days);
        while day >= days_in_year(year) {
            day -= days_in_year(year);
            year += 1;
        }
        let (day_of_year, mut month) = (day, 0);
        while day >= days_in_month(year, month) {
            day -= days_in_month(year, month);
            month += 1;
        }
        // 1 January 1970 was a Thursday.
        let weekday = usize::try_from((days + 4) % 7).unwrap_or(0);
        Self { year, month, day: day + 1, day_of_year, weekday, second_of_day: seconds % SECONDS_PER_DAY }
    }
}

fn days_in_year(year: u64) -> u64 {
    (0..12).map(|month| days_in_month(year, month)).sum()
}

fn days_in_month(year: u64, month: usize) -> u64 {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    match month {
        1 => 28 + u64::from(leap),
        3 | 5 | 8 | 10 => 30,
        _ => 31,
    }
}

fn write(moment: &Moment, format: &str) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = rest.next();
        let padded = directive != Some('-');
        if !padded {
            directive = rest.next();
        }
        out.push_str(&expand(moment, directive, padded).ok_or_else(|| {
            let directive = directive.map_or_else(String::new, |c| c.to_string());
            format!("strftime_now: `%{directive}` is not supported; supported: aAbBdeHIjmMpSyY%, `-` before numbers")
        })?);
    }
    Ok(out)
}

fn expand(moment: &Moment, directive: Option<char>, padded: bool) -> Option<String> {
    let number =
        |value: u64, width: usize| if padded { format!("{value:0width$}") } else { value.to_string() };
    let (hour, second) = (moment.second_of_day / 3600, moment.second_of_day);
    Some(match directive? {
        'Y' => moment.year.to_string(),
        'y' => number(moment.year % 100, 2),
        'm' => number(u64::try_from(moment.month).unwrap_or(0) + 1, 2),
        'd' => number(moment.day, 2),
        'e' if padded => format!("{:2}", moment.day),
        'e' => moment.day.to_string(),
        'j' => number(moment.day_of_year + 1, 3),
        'H' => number(hour, 2),
        'I' => number((hour + 11) % 12 + 1, 2),
        'M' => number(second / 60 % 60, 2),
        'S' => number(second % 60, 2),
        'p' => if hour < 12 { "AM" } else { "PM" }.to_owned(),
        'B' => MONTHS[moment.month].to_owned(),
        'b' => MONTHS[moment.month][..3].to_owned(),
        'A' => DAYS[moment.weekday].to_owned(),
        'a' => DAYS[moment.weekday][..3].to_owned(),
        '%' => "%".to_owned(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments() {
        // Expected values are Python's datetime.fromtimestamp(t, timezone.utc).strftime(format).
        let format = "%d %b %Y|%A %-d %B|%a %e %j %y|%I:%M:%S %p %H%%";
        for (seconds, expected) in [
            (0, "01 Jan 1970|Thursday 1 January|Thu  1 001 70|12:00:00 AM 00%"),
            (951_782_399, "28 Feb 2000|Monday 28 February|Mon 28 059 00|11:59:59 PM 23%"),
            (951_782_400, "29 Feb 2000|Tuesday 29 February|Tue 29 060 00|12:00:00 AM 00%"),
            (1_735_646_400, "31 Dec 2024|Tuesday 31 December|Tue 31 366 24|12:00:00 PM 12%"),
            (4_107_542_400, "01 Mar 2100|Monday 1 March|Mon  1 060 00|12:00:00 AM 00%"),
        ] {
            assert_eq!(write(&Moment::from_unix(seconds), format).as_deref(), Ok(expected));
        }
    }

    #[test]
    fn unknown_directives_are_named() {
        let moment = Moment::from_unix(0);
        assert!(write(&moment, "%Q").expect_err("unknown").contains("`%Q`"));
        assert!(write(&moment, "100%").expect_err("unfinished").contains("`%`"));
        assert!(now("%Y").expect("a year").parse::<u32>().is_ok_and(|year| year >= 2024));
    }
}
