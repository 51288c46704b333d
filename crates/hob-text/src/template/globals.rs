//! The functions a chat template may call by name, and Python's `strftime` for the one that tells the date.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Kwargs, Rest};
use minijinja::{Environment, Error, Value};

use super::meter;
use super::namespace;
use super::values::{self, Args, Number, Text, invalid, raw_args};
use crate::error::TextError;

/// Longest message of `raise_exception` that is passed on, in characters.
const MESSAGE_CHARS: usize = 500;

/// Registers every function.
pub(super) fn register(env: &mut Environment) {
    env.add_function("raise_exception", |args: Rest<Value>| -> Result<Value, Error> {
        let mut message = Text::default();
        if let Some(value) = args.first() {
            values::push_str(&mut message, value)?;
        }
        Err(meter::stop(TextError::Raised(message.into_string().chars().take(MESSAGE_CHARS).collect())))
    });
    env.add_function("strftime_now", |args: Rest<Value>| -> Result<Value, Error> {
        let format =
            Args::new(&args).text(0, "format")?.ok_or_else(|| invalid("strftime_now needs a format"))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        // A field is at most ten times as long as its two-character code, but takes some time to make.
        meter::charge(format.len().saturating_mul(64))?;
        Ok(Value::from(strftime(&format, now)))
    });
    env.add_function("namespace", |args: Rest<Value>, named: Kwargs| {
        namespace::namespace(&raw_args(args, named))
    });
    env.add_function("range", |args: Rest<Value>| range(&args));
    env.add_function("dict", |args: Rest<Value>, named: Kwargs| dict(&raw_args(args, named)));
}

fn range(args: &[Value]) -> Result<Value, Error> {
    let number = |value: &Value| match Number::of(value) {
        Some(Number::Int(int)) => Ok(int),
        _ => Err(invalid("range needs integers")),
    };
    let (start, stop, step) = match args {
        [stop] => (0, number(stop)?, 1),
        [start, stop] => (number(start)?, number(stop)?, 1),
        [start, stop, step] => (number(start)?, number(stop)?, number(step)?),
        _ => return Err(invalid("range needs one to three integers")),
    };
    if step == 0 {
        return Err(invalid("the step of range must not be 0"));
    }
    let span = if step > 0 { stop.saturating_sub(start) } else { start.saturating_sub(stop) };
    let step_size = step.saturating_abs();
    let len = if span <= 0 { 0 } else { (span - 1) / step_size + 1 };
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    meter::charge(len.saturating_mul(size_of::<Value>()))?;
    let element =
        |index: usize| Number::Int(start.saturating_add(step.saturating_mul(index as i128))).into_value();
    values::list((0..len).map(element).collect())
}

fn dict(args: &[Value]) -> Result<Value, Error> {
    let args = Args::new(args);
    let mut pairs = match args.get(0) {
        None => Vec::new(),
        Some(value) => values::pairs(values::map(value).ok_or_else(|| invalid("dict needs a map"))?)?,
    };
    pairs.extend(args.named().into_iter().map(|(name, value)| (Value::from(name), value)));
    values::dict(pairs)
}

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
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

/// A moment in UTC.
struct Moment {
    year: u64,
    /// 1 to 12.
    month: u64,
    day: u64,
    day_of_year: u64,
    /// 0 is Sunday.
    weekday: u64,
    hour: u64,
    minute: u64,
    second: u64,
}

impl Moment {
    /// Civil date from seconds since 1970, after Hinnant's `civil_from_days` (years counted from March).
    fn of(seconds: u64) -> Moment {
        let days = seconds / 86_400;
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let from_march = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * from_march + 2) / 153;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        // 59 or 60 days lie before March; January and February follow 306 days after it.
        let day_of_year = if month > 2 { from_march + 60 + u64::from(leap) } else { from_march - 305 };
        Moment {
            year,
            month,
            day: from_march - (153 * shifted_month + 2) / 5 + 1,
            day_of_year,
            weekday: (days + 4) % 7,
            hour: seconds / 3_600 % 24,
            minute: seconds / 60 % 60,
            second: seconds % 60,
        }
    }
}

/// Python's `strftime` in the C locale at UTC. Unknown codes stay as they are.
fn strftime(format: &str, seconds: u64) -> String {
    use std::fmt::Write;
    let now = Moment::of(seconds);
    let hour12 = (now.hour + 11) % 12 + 1;
    let (day, month) = (DAYS[now.weekday as usize], MONTHS[now.month as usize - 1]);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let (code, pad) = match chars.next() {
            // GNU's flag for "no padding".
            Some('-') => (chars.next(), false),
            code => (code, true),
        };
        let mut number = |value: u64, width: usize| {
            let width = if pad { width } else { 0 };
            // Writing to a String cannot fail.
            let _ = write!(out, "{value:0width$}");
        };
        match code {
            Some('Y') => number(now.year, 4),
            Some('m') => number(now.month, 2),
            Some('d') => number(now.day, 2),
            Some('H') => number(now.hour, 2),
            Some('I') => number(hour12, 2),
            Some('M') => number(now.minute, 2),
            Some('S') => number(now.second, 2),
            Some('y') => number(now.year % 100, 2),
            Some('j') => number(now.day_of_year, 3),
            Some('f') => number(0, 6),
            Some('w') => number(now.weekday, 1),
            Some('u') => number((now.weekday + 6) % 7 + 1, 1),
            Some('e') => {
                let _ = write!(out, "{:>2}", now.day);
            }
            Some('B') => out.push_str(month),
            Some('b' | 'h') => out.push_str(&month[..3]),
            Some('A') => out.push_str(day),
            Some('a') => out.push_str(&day[..3]),
            Some('p') => out.push_str(if now.hour < 12 { "AM" } else { "PM" }),
            Some('F') => out.push_str(&strftime("%Y-%m-%d", seconds)),
            Some('T' | 'X') => out.push_str(&strftime("%H:%M:%S", seconds)),
            Some('D' | 'x') => out.push_str(&strftime("%m/%d/%y", seconds)),
            Some('R') => out.push_str(&strftime("%H:%M", seconds)),
            Some('c') => out.push_str(&strftime("%a %b %e %H:%M:%S %Y", seconds)),
            Some('Z') => out.push_str("UTC"),
            Some('z') => out.push_str("+0000"),
            Some('n') => out.push('\n'),
            Some('t') => out.push('\t'),
            Some('%') => out.push('%'),
            Some(other) => {
                out.push('%');
                out.push(other);
            }
            None => out.push('%'),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_as_python_formats_them() {
        // datetime.fromtimestamp(t, timezone.utc).strftime(...) of Python 3.11.
        let format = "%d %b %Y|%A %B %-d, %y %j %I:%M:%S %p|%F %T|%c|%e|%w%u|%%|%Q";
        for (seconds, expected) in [
            (
                0,
                "01 Jan 1970|Thursday January 1, 70 001 12:00:00 AM|1970-01-01 00:00:00|Thu Jan  1 00:00:00 1970| 1|44|%|%Q",
            ),
            (
                951_826_799,
                "29 Feb 2000|Tuesday February 29, 00 060 12:19:59 PM|2000-02-29 12:19:59|Tue Feb 29 12:19:59 2000|29|22|%|%Q",
            ),
            (
                1_735_689_599,
                "31 Dec 2024|Tuesday December 31, 24 366 11:59:59 PM|2024-12-31 23:59:59|Tue Dec 31 23:59:59 2024|31|22|%|%Q",
            ),
            (
                4_107_542_400,
                "01 Mar 2100|Monday March 1, 00 060 12:00:00 AM|2100-03-01 00:00:00|Mon Mar  1 00:00:00 2100| 1|11|%|%Q",
            ),
        ] {
            assert_eq!(strftime(format, seconds), expected);
        }
    }
}
