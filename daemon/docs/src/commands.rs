//! animd(8) and animctl(1), from their command lines.

use clap::{Arg, Command};
use clap_mangen::roff::{Inline, bold, italic, roman};

use super::Page;
use animctl::{self, Exit};

/// Returns animd(8).
pub fn animd_page() -> String {
    let mut command = animd::cli::command();
    command.build();
    let mut page = head(&mut command, "8");
    page.section("OPTIONS");
    options(&mut page, &command, false);
    page.section("EXIT STATUS");
    for (code, meaning) in animd::cli::EXITS {
        page.entry(vec![bold(code.to_string())], meaning);
    }
    page.section("SIGNALS");
    page.entry(
        vec![bold("SIGTERM"), roman(", "), bold("SIGINT")],
        "Stop. A running job goes back into the queue.",
    );
    page.entry(
        vec![bold("SIGHUP")],
        "Read the configuration again. If it has a mistake, the old one stays in force.",
    );
    page.section("FILES");
    for (file, what) in [
        ("/etc/animd/animd.toml", "The configuration; see animd.toml(5)."),
        (
            "/etc/animd/conf.d/*.toml",
            "More configuration files, read in the order of their names; each overrides those before it.",
        ),
        (
            "/etc/animd/profiles/*.toml",
            "Additional profiles; one with the name of a profile in /usr/share/animd/profiles replaces it.",
        ),
        ("/var/lib/animd/inbox", "Pictures dropped here become videos."),
        ("/var/lib/animd/outbox", "The videos."),
        ("/var/lib/animd/state/ledger.db", "The queue and the log of jobs, an SQLite file."),
        (
            "/var/cache/animd/prepared",
            "The prepared copies of models; `animctl model cache` shows and drops them.",
        ),
        ("~/Videos/animd, ~/.local/state/animd, ~/.cache/animd", "The folders of `animd --user`."),
    ] {
        page.entry(vec![italic(file)], what);
    }
    page.section("EXAMPLES");
    page.entry(vec![bold("journalctl JOB=7")], "The log of one job.");
    page.entry(
        vec![bold("animd --user --model ~/models/Wan2.1-I2V-14B-480P")],
        "A service of your own, on the session's bus.",
    );
    page.see_also(&[("animctl", "1"), ("animd.toml", "5"), ("org.animd.Animd1", "5"), ("journalctl", "1")]);
    page.render()
}

/// Returns animctl(1).
pub fn animctl_page() -> String {
    let mut command = animctl::command();
    command.build();
    let mut page = head(&mut command, "1");
    page.section("OPTIONS");
    page.text("Every verb accepts these options.");
    options(&mut page, &command, false);
    page.section("VERBS");
    verbs(&mut page, &mut command);
    page.section("EXIT STATUS");
    for exit in Exit::ALL {
        page.entry(vec![bold(exit.code().to_string())], exit.meaning());
    }
    page.text("`warm -- CMD` and `drain -- CMD` end with the exit status of CMD.");
    page.section("ENVIRONMENT");
    page.entry(
        vec![bold("DBUS_SESSION_BUS_ADDRESS"), roman(", "), bold("DBUS_SYSTEM_BUS_ADDRESS")],
        "Where the buses are.",
    );
    page.see_also(&[("animd", "8"), ("animd.toml", "5"), ("org.animd.Animd1", "5"), ("journalctl", "1")]);
    page.render()
}

/// Returns a page with NAME, SYNOPSIS and DESCRIPTION.
fn head(command: &mut Command, section: &str) -> Page {
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let summary = about.trim_end_matches('.');
    let summary = summary.chars().take(1).flat_map(char::to_lowercase).chain(summary.chars().skip(1));
    let mut page = Page::new(command.get_name(), section, &summary.collect::<String>());
    page.section("SYNOPSIS");
    page.text(&usage(command));
    page.section("DESCRIPTION");
    let long = command.get_long_about().or(command.get_about()).map(ToString::to_string);
    page.text(&long.unwrap_or_default());
    page
}

fn usage(command: &mut Command) -> String {
    let usage = command.render_usage().to_string();
    let lines: Vec<&str> = usage.trim_start_matches("Usage:").lines().map(str::trim).collect();
    lines.join("\n ")
}

/// Writes every verb with its options, and what stands below them in its --help.
fn verbs(page: &mut Page, command: &mut Command) {
    for verb in command.get_subcommands_mut().filter(|verb| verb.get_name() != "help") {
        let title = usage(verb);
        page.subsection(&title);
        let about = verb.get_long_about().or(verb.get_about()).map(ToString::to_string);
        page.text(&about.unwrap_or_default());
        options(page, verb, true);
        let after = verb.get_after_help().map(ToString::to_string);
        page.text(&after.unwrap_or_default());
        verbs(page, verb);
    }
}

/// Writes the options of a command; `own` leaves out the options that all verbs share.
fn options(page: &mut Page, command: &Command, own: bool) {
    for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
        let common = ["help", "version"].contains(&arg.get_id().as_str()) || arg.is_global_set();
        if own && common {
            continue;
        }
        page.entry(term(arg), &help(arg));
    }
}

fn term(arg: &Arg) -> Vec<Inline> {
    let names = arg.get_value_names().unwrap_or_default().join(" ");
    if arg.is_positional() {
        return vec![italic(names)];
    }
    let mut term = Vec::new();
    if let Some(short) = arg.get_short() {
        term.extend([bold(format!("-{short}")), roman(", ")]);
    }
    term.push(bold(format!("--{}", arg.get_long().unwrap_or_default())));
    if arg.get_action().takes_values() && !names.is_empty() {
        term.extend([roman(" "), italic(names)]);
    }
    term
}

fn help(arg: &Arg) -> String {
    let mut text = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
    let values = arg.get_possible_values();
    if arg.get_action().takes_values() && !values.is_empty() {
        let names: Vec<&str> = values.iter().map(clap::builder::PossibleValue::get_name).collect();
        text = format!("{text} (one of {})", names.join(", "));
    }
    let default: Vec<_> = arg.get_default_values().iter().map(|v| v.to_string_lossy().into_owned()).collect();
    if arg.get_action().takes_values() && !default.is_empty() {
        text = format!("{text} [default: {}]", default.join(" "));
    }
    text
}
