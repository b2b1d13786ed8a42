//! The page around the plots.

use animd_common::words::{date_utc, energy, time};
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
svg { max-width: 100%; height: auto; display: block; }
h2, p, td, strong, .faint { overflow-wrap: anywhere; }
article { border: 1px solid var(--faint); border-radius: .5rem; padding: 1rem; margin: 1rem 0; }
article header { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; } article header div { flex: 1 1 14rem; min-width: 0; }
article img { max-width: min(12rem, 100%); border-radius: .3rem; }
a { color: inherit; }
.done { color: var(--good); } .failed, .cancelled { color: var(--bad); } .key::before { content: '\\25A0  '; }
.stages { display: flex; height: 1.4rem; border-radius: .3rem; overflow: hidden; margin: .8rem 0 .2rem; }
.stages div { overflow: hidden; white-space: nowrap; font-size: .75rem; padding: 0 .3rem; line-height: 1.4rem; background: #4a78c022; border-right: 1px solid var(--faint); }
.stages div:nth-child(even) { background: #4a78c055; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem; margin: .5rem 0; } dt { opacity: .7; overflow-wrap: anywhere; } dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  table, tbody { display: block; } tr { display: grid; grid-template-columns: 1fr 1fr; padding: .5rem 0; border-bottom: 1px solid var(--faint); }
  tr:first-child { display: none; } td { border: 0; text-align: left; padding: .1rem .3rem; }
  td:first-child { grid-column: 1 / -1; font-weight: bold; } td:not(:first-child)::before { content: attr(data-name) ' '; opacity: .7; }
  dl { grid-template-columns: minmax(0, 1fr) minmax(0, 2fr); }
}
";

/// Returns the page as HTML.
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
                p.faint { "version " (report.version) ", " (date_utc(report.made_us)) }
                @if report.jobs.is_empty() && report.days.is_empty() {
                    p { "No job has ended so far." }
                } @else {
                    h2 { "Days" }
                    p.faint { span.key.done { "with a video " } span.key.failed { "failed or cancelled" } }
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
    // Without a meter there is no energy to show.
    let metered = rows.iter().any(|row| row.joules > 0.0);
    let names = if metered { &NAMES[..] } else { &NAMES[..FIRST_OF_ENERGY] };
    html! {
        @if !rows.is_empty() {
            table {
                tr { th { (what) } @for name in names { th { (name) } } }
                @for row in rows {
                    tr {
                        td { (row.name()) }
                        @for (name, cell) in names.iter().zip(row.figures()) { td data-name=(name) { (cell) } }
                    }
                }
            }
        }
    }
}

/// Returns the name of a stage that takes `share` of its job, or nothing where the stage's part of the bar is too narrow
/// for it on a narrow screen. The list below the bar has every name.
fn label(name: &str, share: f64) -> &str {
    const BAR: f64 = 290.0;
    const LETTER: f64 = 7.5;
    const PADDING: f64 = 12.0;
    if share * BAR >= name.len() as f64 * LETTER + PADDING { name } else { "" }
}

/// The columns of the sums. On a narrow screen each value stands behind its name.
const NAMES: [&str; 7] =
    ["videos", "failed", "cancelled", "time", "time per video", "energy", "energy per video"];

/// Where the columns of energy begin in [`NAMES`].
const FIRST_OF_ENERGY: usize = 5;

/// Returns the address of a file of this machine.
fn address(path: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte);
    let encoded = path.bytes().map(|byte| match plain(byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    });
    format!("file://{}", encoded.collect::<String>())
}

/// Returns links to the files of a job that lie in folders: its video, and the picture that it was made of.
fn links(job: &Entry) -> Vec<(&'static str, String)> {
    let text = |key: &str| job.description[key].as_str().filter(|path| path.starts_with('/'));
    let picture = text("source_moved_to").or(text("source"));
    let files = [("the video", text("output")), ("its picture", picture)];
    files.into_iter().filter_map(|(name, path)| Some((name, address(path?)))).collect()
}

fn card(job: &Entry) -> Markup {
    let text = |key: &str| job.description[key].as_str().unwrap_or_default();
    let state = if text("state") == "canceled" { "cancelled" } else { text("state") };
    let links = links(job);
    let settings = &job.description["settings"];
    let all: f64 = job.timeline.stages.iter().map(|stage| stage.1).sum();
    html! {
        article {
            header {
                @if let Some(jpeg) = &job.thumbnail {
                    a href=[links.first().map(|(_, address)| address)] {
                        img src={ "data:image/jpeg;base64," (BASE64_STANDARD.encode(jpeg)) } alt="a frame of the video";
                    }
                }
                div {
                    strong { "Job " (job.description["id"]) ": " (text("name")) }
                    " " span class=(state) { (state) }
                    br;
                    small { (date_utc(job.description["created"].as_u64().unwrap_or(0))) }
                    @if !links.is_empty() {
                        p { @for (name, address) in &links { a href=(address) { (name) } " " } }
                    }
                    @if let Some(prompt) = settings["prompt"].as_str() { p { (prompt) } }
                    @if !text("error_text").is_empty() { p.failed { (text("error_text")) } }
                }
            }
            @if all > 0.0 {
                div.stages {
                    @for (name, seconds, _) in &job.timeline.stages {
                        div style={ "flex: " (format!("{:.4}", seconds / all)) } title={ (name) ": " (time(*seconds)) } { (label(name, seconds / all)) }
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
