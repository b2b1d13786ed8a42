//! The page around the plots.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde_json::Value;

use super::{Entry, Report, Sum, plots};

const STYLE: &str = "
:root { color-scheme: light dark; --faint: #8884; --good: #2e7d5a; --bad: #be463c; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; } small, .faint { opacity: .7; }
table { border-collapse: collapse; width: 100%; } td, th { text-align: right; padding: .2rem .6rem; border-bottom: 1px solid var(--faint); }
td:first-child, th:first-child { text-align: left; }
svg { max-width: 100%; height: auto; }
article { border: 1px solid var(--faint); border-radius: .5rem; padding: 1rem; margin: 1rem 0; }
article header { display: flex; gap: 1rem; align-items: flex-start; } article img { max-width: 12rem; border-radius: .3rem; }
.done { color: var(--good); } .failed, .canceled { color: var(--bad); }
.stages { display: flex; height: 1.4rem; border-radius: .3rem; overflow: hidden; margin: .8rem 0 .2rem; }
.stages div { overflow: hidden; white-space: nowrap; font-size: .75rem; padding: 0 .3rem; line-height: 1.4rem; background: #4a78c022; border-right: 1px solid var(--faint); }
.stages div:nth-child(even) { background: #4a78c055; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem; margin: .5rem 0; } dt { opacity: .7; } dd { margin: 0; overflow-wrap: anywhere; }
";

/// The page as HTML.
pub fn page(report: &Report) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "animd: report" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { "animd" }
                p.faint { "version " (report.version) ", " (date(report.made_us)) }
                @if report.jobs.is_empty() && report.days.is_empty() {
                    p { "No job has ended yet." }
                } @else {
                    h2 { "Days" }
                    (PreEscaped(plots::jobs(&report.days)))
                    (PreEscaped(plots::energy(&report.days)))
                    (sums("Day", &report.days))
                    h2 { "Models and profiles" }
                    (sums("Model", &report.models))
                    (sums("Profile", &report.profiles))
                    h2 { "Jobs" }
                    @for job in &report.jobs { (card(job)) }
                }
            }
        }
    };
    page.into_string()
}

fn sums(what: &str, rows: &[Sum]) -> Markup {
    html! {
        @if !rows.is_empty() {
            table {
                tr { th { (what) } th { "videos" } th { "failed" } th { "cancelled" } th { "time" } th { "a video" } th { "energy" } th { "a video" } }
                @for row in rows {
                    tr {
                        td { @if row.key.is_empty() { "not known" } @else { (row.key) } }
                        td { (row.done) }
                        td { (row.failed) }
                        td { (row.canceled) }
                        td { (time(row.seconds)) }
                        td { (each(row, row.seconds, time)) }
                        td { (energy(row.joules)) }
                        td { (each(row, row.joules, energy)) }
                    }
                }
            }
        }
    }
}

fn each(row: &Sum, total: f64, show: impl Fn(f64) -> String) -> String {
    if row.done == 0 { String::new() } else { show(total / row.done as f64) }
}

fn card(job: &Entry) -> Markup {
    let text = |key: &str| job.description[key].as_str().unwrap_or_default();
    let settings = &job.description["settings"];
    let all: f64 = job.timeline.stages.iter().map(|stage| stage.1).sum();
    html! {
        article {
            header {
                @if let Some(jpeg) = &job.thumbnail {
                    img src={ "data:image/jpeg;base64," (BASE64_STANDARD.encode(jpeg)) } alt="a frame of the video";
                }
                div {
                    strong { "Job " (job.description["id"]) ": " (text("name")) }
                    " " span class=(text("state")) { (text("state")) }
                    br;
                    small { (date(job.description["created"].as_u64().unwrap_or(0))) }
                    @if let Some(prompt) = settings["prompt"].as_str() { p { (prompt) } }
                    @if !text("error_text").is_empty() { p.failed { (text("error_text")) } }
                }
            }
            @if all > 0.0 {
                div.stages {
                    @for (name, seconds, _) in &job.timeline.stages {
                        div style={ "flex: " (format!("{:.4}", seconds / all)) } title={ (name) ": " (time(*seconds)) } { (name) }
                    }
                }
                dl {
                    @for (name, seconds, joules) in &job.timeline.stages {
                        dt { (name) }
                        dd { (time(*seconds)) @if *joules >= 0.0 { ", " (energy(*joules)) } }
                    }
                }
            }
            (PreEscaped(plots::power(&job.timeline)))
            (PreEscaped(plots::steps(&job.timeline)))
            @if let Value::Object(settings) = settings {
                details {
                    summary { "settings" }
                    dl {
                        @for (key, value) in settings.iter().filter(|(key, _)| *key != "prompt") {
                            dt { (key) }
                            dd { (value.as_str().map_or_else(|| value.to_string(), str::to_owned)) }
                        }
                    }
                }
            }
        }
    }
}

/// Seconds in words.
fn time(seconds: f64) -> String {
    match seconds {
        s if s < 60.0 => format!("{s:.1} s"),
        s if s < 3600.0 => format!("{:.0} min {:02.0} s", (s / 60.0).floor(), s % 60.0),
        s => format!("{:.0} h {:02.0} min", (s / 3600.0).floor(), s % 3600.0 / 60.0),
    }
}

/// Joules in words; nothing where they are not known.
fn energy(joules: f64) -> String {
    match joules {
        j if j <= 0.0 => String::new(),
        j if j < 1e4 => format!("{j:.0} J"),
        j if j < 3.6e6 => format!("{:.0} kJ", j / 1e3),
        j => format!("{:.2} kWh", j / 3.6e6),
    }
}

/// Microseconds since the epoch as a date and time, universal time.
fn date(us: u64) -> String {
    let (days, second) = (us / 86_400_000_000, us / 1_000_000 % 86_400);
    // Civil date from days, after Howard Hinnant's published algorithm.
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", second / 3600, second / 60 % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_in_words() {
        assert_eq!([time(5.04), time(65.0), time(7260.0)], ["5.0 s", "1 min 05 s", "2 h 01 min"]);
        assert_eq!(
            [energy(0.0), energy(900.0), energy(5e4), energy(7.2e6)],
            ["", "900 J", "50 kJ", "2.00 kWh"]
        );
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
        assert_eq!(date(1_709_210_096_000_000), "2024-02-29 12:34 UTC");
    }
}
