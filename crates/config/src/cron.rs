//! Schedules of CronJobs: which points in time a line in cron's language means.
//!
//! Source: `robfig/cron` v3 `ParseStandard`, which Kubernetes uses: five fields or a descriptor (`@daily`,
//! `@every 90s`). Days of month and of week are alternatives unless one of them is `*`. Where clocks go forward, what
//! falls into the hour that is missing does not happen; where they go back, it happens twice.

use std::time::Duration;

use k8s_openapi::jiff::civil::{Date, DateTime};
use k8s_openapi::jiff::tz::{AmbiguousOffset, TimeZone};
use k8s_openapi::jiff::{SignedDuration, Span, Timestamp};

use crate::duration;

/// A schedule that never comes again (30 February) is looked for this long.
const HORIZON_YEARS: i16 = 5;
/// No clock is put back further than this.
const FOLD_HOURS: i64 = 3;

const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// A schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule(Rule);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Rule {
    /// `@every`: at least a second.
    Every(Duration),
    Fields(Fields),
}

/// One bit for each value that fits.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Fields {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// `*` for the days of the month, or of the week: then only the other counts.
    any_day: bool,
}

impl Schedule {
    /// Reads a schedule; the error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.starts_with("TZ=") || text.starts_with("CRON_TZ=") {
            return Err("a schedule has no TZ; write the zone into timeZone".to_owned());
        }
        if let Some(descriptor) = text.strip_prefix('@') {
            return described(descriptor);
        }
        let parts: Vec<&str> = text.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = parts.as_slice() else {
            return Err(format!(
                "'{text}' has {} fields; write five (minute, hour, day of month, month, day of week), for example \
                 '30 4 * * *'",
                parts.len()
            ));
        };
        let (days, any_day) = field(day, "day of month", 1, 31, &[])?;
        let (weekdays, any_weekday) = field(weekday, "day of week", 0, 6, &DAYS)?;
        Ok(Self(Rule::Fields(Fields {
            minutes: field(minute, "minute", 0, 59, &[])?.0,
            hours: field(hour, "hour", 0, 23, &[])?.0,
            days,
            months: field(month, "month", 1, 12, &MONTHS)?.0,
            weekdays,
            any_day: any_day || any_weekday,
        })))
    }

    /// The first time after `after` by the clocks of `zone`; none if it does not come within five years.
    pub fn next_after(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        match &self.0 {
            Rule::Every(period) => {
                let period = SignedDuration::try_from(*period).ok()?;
                let whole = Timestamp::from_second(after.as_second()).ok()?;
                whole.checked_add(period).ok()
            }
            Rule::Fields(fields) => fields.next_after(after, zone),
        }
    }

    /// The last time after `earliest` and not after `now`, and how many there are, counted up to 101.
    pub fn latest(&self, earliest: Timestamp, now: Timestamp, zone: &TimeZone) -> Option<(Timestamp, usize)> {
        let mut count = 0;
        let mut last = self.next_after(earliest, zone).filter(|time| *time <= now)?;
        while count <= 100 {
            count += 1;
            match self.next_after(last, zone).filter(|time| *time <= now) {
                Some(time) => last = time,
                None => return Some((last, count)),
            }
        }
        // Too many to walk through: look back from now, further each time.
        if let Rule::Every(period) = &self.0 {
            let period = i64::try_from(period.as_secs()).unwrap_or(i64::MAX).max(1);
            let rest = now.duration_since(last).as_secs() % period;
            return now.checked_sub(SignedDuration::from_secs(rest)).ok().map(|time| (time, count));
        }
        for hours in [1, 24, 24 * 32, 24 * 400] {
            let from = now.checked_sub(SignedDuration::from_hours(hours)).ok()?.max(last);
            let mut found = None;
            let mut time = from;
            while let Some(next) = self.next_after(time, zone).filter(|time| *time <= now) {
                found = Some(next);
                time = next;
            }
            if let Some(found) = found {
                return Some((found, count));
            }
        }
        Some((last, count))
    }
}

/// What may follow `@`.
fn described(descriptor: &str) -> Result<Schedule, String> {
    let standard = match descriptor {
        "yearly" | "annually" => "0 0 1 1 *",
        "monthly" => "0 0 1 * *",
        "weekly" => "0 0 * * 0",
        "daily" | "midnight" => "0 0 * * *",
        "hourly" => "0 * * * *",
        other => {
            let period = other.strip_prefix("every ").map(str::trim).and_then(duration::parse);
            return match period {
                // Shorter ones are a second, as with cron.
                Some(period) => Ok(Schedule(Rule::Every(Duration::from_secs(period.as_secs().max(1))))),
                None => Err(format!(
                    "'@{other}' is none of @yearly, @monthly, @weekly, @daily, @hourly and @every DURATION"
                )),
            };
        }
    };
    Schedule::parse(standard)
}

/// The values of a field, and whether it is a plain `*`.
fn field(text: &str, what: &str, min: u32, max: u32, names: &[&str]) -> Result<(u64, bool), String> {
    let mut bits = 0;
    let mut any = false;
    for part in text.split(',') {
        let problem = |why: &str| format!("'{part}' {why} for the {what}: from {min} to {max}");
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => {
                let step = step.parse::<u32>().ok().filter(|step| *step > 0);
                (range, Some(step.ok_or_else(|| problem("has no usable step"))?))
            }
            None => (part, None),
        };
        let (from, to) = if matches!(range, "*" | "?") {
            any |= step.is_none_or(|step| step == 1);
            (min, max)
        } else {
            let value = |text: &str| {
                let named = names.iter().position(|name| name.eq_ignore_ascii_case(text));
                let named = named.and_then(|index| u32::try_from(index).ok()).map(|index| index + min);
                named.or_else(|| text.parse().ok()).ok_or_else(|| problem("is no value"))
            };
            match range.split_once('-') {
                Some((from, to)) => (value(from)?, value(to)?),
                // `5/10` begins at 5 and goes on to the end.
                None => {
                    let from = value(range)?;
                    (from, if step.is_some() { max } else { from })
                }
            }
        };
        if from < min || to > max {
            return Err(problem("is out of range"));
        }
        if from > to {
            return Err(problem("begins after its end"));
        }
        for value in (from..=to).step_by(usize::try_from(step.unwrap_or(1)).unwrap_or(1)) {
            bits |= 1u64 << value;
        }
    }
    Ok((bits, any))
}

fn has(bits: u64, value: i8) -> bool {
    u32::try_from(value).is_ok_and(|value| bits & (1u64.checked_shl(value).unwrap_or(0)) != 0)
}

impl Fields {
    fn next_after(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let local = zone.to_datetime(after);
        // What the clocks show may come twice: begin before the hour that can repeat, and look beyond what is found.
        let mut at = local.checked_sub(Span::new().hours(FOLD_HOURS)).ok()?;
        let end = local.date().year().checked_add(HORIZON_YEARS)?;
        let mut best: Option<(Timestamp, DateTime)> = None;
        loop {
            let shown = self.next_shown(at, end);
            if let Some((found, first)) = best
                && shown
                    .is_none_or(|shown| shown.duration_since(first) > SignedDuration::from_hours(FOLD_HOURS))
            {
                return Some(found);
            }
            at = shown?;
            for time in instants(at, zone) {
                if time > after && best.is_none_or(|(found, _)| time < found) {
                    best = Some((time, at));
                }
            }
            at = at.checked_add(Span::new().minutes(1)).ok()?;
        }
    }

    /// The first minute from `from` on, as clocks show it, that fits.
    fn next_shown(&self, from: DateTime, end_year: i16) -> Option<DateTime> {
        let mut date = from.date();
        let mut first =
            Some((from.hour(), from.minute() + i8::from(from.second() > 0 || from.subsec_nanosecond() > 0)));
        loop {
            if date.year() > end_year {
                return None;
            }
            if self.fits(date)
                && let Some((hour, minute)) = self.time_from(first.unwrap_or((0, 0)))
            {
                return Some(date.at(hour, minute, 0, 0));
            }
            first = None;
            date = if has(self.months, date.month()) {
                date.tomorrow().ok()?
            } else {
                date.first_of_month().checked_add(Span::new().months(1)).ok()?
            };
        }
    }

    fn fits(&self, date: Date) -> bool {
        let day = has(self.days, date.day());
        let weekday = has(self.weekdays, date.weekday().to_sunday_zero_offset());
        has(self.months, date.month()) && if self.any_day { day && weekday } else { day || weekday }
    }

    fn time_from(&self, (hour, minute): (i8, i8)) -> Option<(i8, i8)> {
        (hour..24).filter(|h| has(self.hours, *h)).find_map(|h| {
            let from = if h == hour { minute } else { 0 };
            (from..60).find(|m| has(self.minutes, *m)).map(|m| (h, m))
        })
    }
}

/// The points in time at which clocks show this: none, one or two.
fn instants(shown: DateTime, zone: &TimeZone) -> impl Iterator<Item = Timestamp> {
    let offsets = match zone.to_ambiguous_timestamp(shown).offset() {
        AmbiguousOffset::Unambiguous { offset } => [Some(offset), None],
        AmbiguousOffset::Gap { .. } => [None, None],
        AmbiguousOffset::Fold { before, after } => [Some(before), Some(after)],
    };
    offsets.into_iter().flatten().filter_map(move |offset| offset.to_timestamp(shown).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(schedule: &str, after: &str, zone: &str) -> String {
        let schedule = Schedule::parse(schedule).expect("a schedule");
        let zone = TimeZone::get(zone).expect("a zone");
        let found = schedule.next_after(after.parse().expect("a time"), &zone);
        found.map_or_else(|| "never".to_owned(), |time| time.to_string())
    }

    #[test]
    fn schedules_mean_what_cron_means() {
        for (schedule, after, expected) in [
            ("*/5 * * * *", "2026-03-01T10:02:00Z", "2026-03-01T10:05:00Z"),
            ("*/5 * * * *", "2026-03-01T10:05:00Z", "2026-03-01T10:10:00Z"),
            ("* * * * *", "2026-03-01T10:05:30Z", "2026-03-01T10:06:00Z"),
            ("30 4 * * *", "2026-12-31T05:00:00Z", "2027-01-01T04:30:00Z"),
            ("0 0 29 2 *", "2026-03-01T00:00:00Z", "2028-02-29T00:00:00Z"),
            ("0 0 30 2 *", "2026-03-01T00:00:00Z", "never"),
            ("0 12 * JAN-mar Mon", "2026-03-31T00:00:00Z", "2027-01-04T12:00:00Z"),
            // Either of the two days; with a star on one side, the other alone.
            ("0 0 13 * 5", "2026-03-02T00:00:00Z", "2026-03-06T00:00:00Z"),
            ("0 0 13 * *", "2026-03-02T00:00:00Z", "2026-03-13T00:00:00Z"),
            // As robfig/cron has it: a star with a step is no star.
            ("0 0 13 * */7", "2026-03-02T00:00:00Z", "2026-03-08T00:00:00Z"),
            ("50/5 1 ? * ?", "2026-03-02T01:51:00Z", "2026-03-02T01:55:00Z"),
            ("1,2,5-6 * * * *", "2026-03-02T01:02:00Z", "2026-03-02T01:05:00Z"),
            ("@hourly", "2026-03-02T01:02:00Z", "2026-03-02T02:00:00Z"),
            ("@weekly", "2026-03-02T01:02:00Z", "2026-03-08T00:00:00Z"),
            ("@every 90s", "2026-03-02T01:02:00.5Z", "2026-03-02T01:03:30Z"),
        ] {
            assert_eq!(next(schedule, after, "UTC"), expected, "{schedule} after {after}");
        }
    }

    #[test]
    fn clocks_that_jump_skip_and_repeat() {
        let zone = "Europe/Berlin";
        // Forward on 29 March at 2:00 local time: 2:30 is not shown.
        assert_eq!(next("30 2 * * *", "2026-03-28T12:00:00Z", zone), "2026-03-30T00:30:00Z");
        assert_eq!(next("0 3 * * *", "2026-03-28T12:00:00Z", zone), "2026-03-29T01:00:00Z");
        // Back on 25 October at 3:00: 2:30 is shown twice.
        assert_eq!(next("30 2 * * *", "2026-10-24T12:00:00Z", zone), "2026-10-25T00:30:00Z");
        assert_eq!(next("30 2 * * *", "2026-10-25T00:30:00Z", zone), "2026-10-25T01:30:00Z");
        assert_eq!(next("30 2 * * *", "2026-10-25T00:50:00Z", zone), "2026-10-25T01:30:00Z");
        assert_eq!(next("30 2 * * *", "2026-10-25T01:30:00Z", zone), "2026-10-26T01:30:00Z");
        assert_eq!(next("*/20 * * * *", "2026-10-25T00:40:00Z", zone), "2026-10-25T01:00:00Z");
    }

    #[test]
    fn wrong_schedules_are_refused_with_a_reason() {
        for (schedule, part) in [
            ("* * * *", "has 4 fields"),
            ("60 * * * *", "out of range"),
            ("* * 0 * *", "out of range"),
            ("* * * * 7", "out of range"),
            ("*/0 * * * *", "no usable step"),
            ("5-1 * * * *", "begins after its end"),
            ("x * * * *", "is no value"),
            ("@fortnightly", "none of"),
            ("@every soon", "none of"),
            ("TZ=UTC * * * * *", "timeZone"),
        ] {
            let error = Schedule::parse(schedule).expect_err(schedule);
            assert!(error.contains(part), "{schedule}: {error}");
        }
    }

    #[test]
    fn the_latest_time_is_found_however_many_were_missed() {
        let time = |text: &str| text.parse::<Timestamp>().expect("a time");
        let (earliest, now) = (time("2026-01-01T00:00:30Z"), time("2026-03-02T01:02:03Z"));
        for (schedule, expected, count) in [
            ("* * * * *", "2026-03-02T01:02:00Z", 101),
            ("0 * * * *", "2026-03-02T01:00:00Z", 101),
            ("0 0 1 * *", "2026-03-01T00:00:00Z", 2),
            ("0 0 1 6 *", "none", 0),
            ("@every 1m", "2026-03-02T01:01:30Z", 101),
        ] {
            let schedule_ = Schedule::parse(schedule).expect("a schedule");
            let found = schedule_.latest(earliest, now, &TimeZone::UTC);
            let shown = found.map_or_else(|| "none".to_owned(), |(time, _)| time.to_string());
            assert_eq!((shown.as_str(), found.map_or(0, |(_, n)| n)), (expected, count), "{schedule}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "[0-9*/,a-z@ -]{0,30}") {
            if let Ok(schedule) = Schedule::parse(&text) {
                let now = Timestamp::from_second(1_772_413_323).expect("a time");
                proptest::prop_assert!(schedule.next_after(now, &TimeZone::UTC).is_none_or(|next| next > now));
            }
        }
    }
}
