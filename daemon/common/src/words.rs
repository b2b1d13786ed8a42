//! Quantities as people read them, for the terminal and the report.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// Returns seconds in words.
pub fn time(seconds: f64) -> String {
    match seconds {
        s if s < 60.0 => format!("{:.1} s", (s * 10.0).floor() / 10.0),
        s if s < 3600.0 => format!("{:.0} min {:02.0} s", (s / 60.0).floor(), (s % 60.0).floor()),
        s if s < 86_400.0 => {
            format!("{:.0} h {:02.0} min", (s / 3600.0).floor(), (s % 3600.0 / 60.0).floor())
        }
        s => format!("{:.0} days {:02.0} h", (s / 86_400.0).floor(), (s % 86_400.0 / 3600.0).floor()),
    }
}

/// Returns joules in words; an empty string if they are not known.
pub fn energy(joules: f64) -> String {
    match joules {
        j if j <= 0.0 => String::new(),
        j if j < 1e4 => format!("{j:.0} J"),
        j if j < 3.6e6 => format!("{:.0} kJ", j / 1e3),
        j => format!("{:.2} kWh", j / 3.6e6),
    }
}

/// Returns bytes in words.
pub fn bytes(bytes: u64) -> String {
    match bytes as f64 {
        b if b < 1024.0 => format!("{b} bytes"),
        b if b < f64::from(1 << 20) => format!("{:.1} KiB", b / 1024.0),
        b if b < f64::from(1 << 30) => format!("{:.1} MiB", b / f64::from(1 << 20)),
        b => format!("{:.1} GiB", b / f64::from(1 << 30)),
    }
}

/// Returns microseconds since the epoch as date and time in universal time.
pub fn date_utc(us: u64) -> String {
    format(us, TimeZone::UTC, "%Y-%m-%d %H:%M UTC")
}

/// Returns microseconds since the epoch as date and time in the machine's time zone, with the zone.
pub fn date(us: u64) -> String {
    format(us, TimeZone::system(), "%Y-%m-%d %H:%M %Z")
}

/// Returns microseconds since the epoch as date and time to the second in the machine's time zone, with the zone.
pub fn moment(us: u64) -> String {
    format(us, TimeZone::system(), "%Y-%m-%d %H:%M:%S %Z")
}

fn format(us: u64, zone: TimeZone, how: &str) -> String {
    let stamp = i64::try_from(us).ok().and_then(|us| Timestamp::from_microsecond(us).ok());
    stamp.map_or_else(|| "?".to_owned(), |stamp| stamp.to_zoned(zone).strftime(how).to_string())
}

/// Returns how long ago that was, in microseconds since the epoch.
pub fn ago(us: u64) -> String {
    let seconds = (Timestamp::now().as_microsecond() as u64).saturating_sub(us) / 1_000_000;
    match seconds {
        0..60 => format!("{seconds} s ago"),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..86400 => format!("{} h {} min ago", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} days ago", seconds / 86400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_in_words() {
        assert_eq!([time(5.04), time(65.0), time(7260.0)], ["5.0 s", "1 min 05 s", "2 h 01 min"]);
        assert_eq!([time(59.99), time(119.9), time(180_000.0)], ["59.9 s", "1 min 59 s", "2 days 02 h"]);
        assert_eq!(
            [energy(0.0), energy(900.0), energy(5e4), energy(7.2e6)],
            ["", "900 J", "50 kJ", "2.00 kWh"]
        );
        assert_eq!([bytes(5), bytes(3 << 20)], ["5 bytes", "3.0 MiB"]);
        assert_eq!(date_utc(0), "1970-01-01 00:00 UTC");
        assert_eq!(date_utc(1_709_210_096_000_000), "2024-02-29 12:34 UTC");
        assert_eq!(date_utc(u64::MAX), "?");
    }
}
