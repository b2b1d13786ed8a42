//! The manual pages and the completions, generated from the programs' command lines, the shipped configuration and the
//! bus interface's contract.

mod bus;
mod commands;
mod keys;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap_complete::Shell;
use clap_mangen::roff::{Inline, Roff, bold, roman};

pub use bus::page as bus_page;
pub use commands::{animctl_page, animd_page};
pub use keys::page as config_page;

/// The contract of the bus interface.
pub const CONTRACT: &str = include_str!("../../dbus/org.animd.Animd1.xml");

/// Writes everything below `share`, which is laid out as `/usr/share`, and returns the files.
pub fn write(share: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for (path, page) in [
        ("man/man8/animd.8", animd_page()),
        ("man/man1/animctl.1", animctl_page()),
        ("man/man5/animd.toml.5", config_page()),
        ("man/man5/org.animd.Animd1.5", bus_page()),
    ] {
        files.push(put(share, path, page.as_bytes())?);
    }
    for (shell, path) in [
        (Shell::Bash, "bash-completion/completions/animctl"),
        (Shell::Zsh, "zsh/vendor-completions/_animctl"),
        (Shell::Fish, "fish/vendor_completions.d/animctl.fish"),
    ] {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut animctl::command(), "animctl", &mut text);
        files.push(put(share, path, &text)?);
    }
    Ok(files)
}

fn put(share: &Path, path: &str, text: &[u8]) -> io::Result<PathBuf> {
    let path = share.join(path);
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::write(&path, text)?;
    Ok(path)
}

/// A page being written.
struct Page(Roff);

impl Page {
    /// Returns a page with its title and its NAME.
    fn new(name: &str, section: &str, summary: &str) -> Self {
        let version = format!("animd {}", env!("CARGO_PKG_VERSION"));
        let mut page = Self(Roff::new());
        // A blank for the date: the same source gives the same page.
        page.0.control("TH", [name, section, " ", version.as_str(), "animd"]);
        page.section("NAME");
        page.0.text([roman(format!("{name} - {summary}"))]);
        page
    }

    fn section(&mut self, title: &str) {
        self.0.control("SH", [title]);
    }

    fn subsection(&mut self, title: &str) {
        self.0.control("SS", [title]);
    }

    /// Writes paragraphs, which blank lines separate. Lines that begin with a space keep their own breaks.
    fn text(&mut self, text: &str) {
        for paragraph in text.split("\n\n").map(str::trim_end).filter(|p| !p.trim().is_empty()) {
            self.0.control("PP", []);
            for (n, line) in paragraph.lines().enumerate() {
                if n > 0 && line.starts_with(' ') {
                    self.0.control("br", []);
                }
                self.0.text(inlines(line.trim()));
            }
        }
    }

    /// Writes one entry of a list.
    fn entry(&mut self, term: Vec<Inline>, text: &str) {
        self.0.control("TP", []);
        self.0.text(term);
        for (n, paragraph) in text.split("\n\n").enumerate() {
            if n > 0 {
                self.0.control("IP", []);
            }
            self.0.text(inlines(&paragraph.lines().map(str::trim).collect::<Vec<_>>().join(" ")));
        }
    }

    fn see_also(&mut self, pages: &[(&str, &str)]) {
        self.section("SEE ALSO");
        let mut line = Vec::new();
        for (n, (name, section)) in pages.iter().enumerate() {
            line.extend([roman(if n == 0 { "" } else { ", " }), bold(*name), roman(format!("({section})"))]);
        }
        self.0.text(line);
    }

    fn render(&self) -> String {
        self.0.render()
    }
}

/// Returns the text, with what stands between backticks in bold.
fn inlines(text: &str) -> Vec<Inline> {
    let parts: Vec<&str> = text.split('`').collect();
    if parts.len().is_multiple_of(2) {
        return vec![roman(text)];
    }
    let part = |(n, part): (usize, &&str)| if n % 2 == 1 { bold(*part) } else { roman(*part) };
    parts.iter().enumerate().filter(|(_, part)| !part.is_empty()).map(part).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use animd_common::bus::ServiceState;
    use clap::Command;

    use super::*;
    use animctl::Exit;
    use animd_common::config::reference::reference;

    /// Returns a page as text, without roff's escapes.
    fn plain(page: &str) -> String {
        page.replace("\\-", "-")
            .replace("\\fB", "")
            .replace("\\fI", "")
            .replace("\\fR", "")
            .replace("\\*(Aq", "'")
    }

    fn verbs(command: &Command, above: &str, each: &mut impl FnMut(&str, &Command)) {
        for verb in command.get_subcommands().filter(|verb| verb.get_name() != "help") {
            let name = format!("{above} {}", verb.get_name());
            each(&name, verb);
            verbs(verb, &name, each);
        }
    }

    #[test]
    fn every_verb_option_and_exit_code_is_in_the_manual() {
        let page = plain(&animctl_page());
        let mut count = 0;
        verbs(&animctl::command(), "animctl", &mut |name, verb| {
            count += 1;
            assert!(page.contains(name), "{name}");
            for option in verb.get_arguments().filter_map(|arg| arg.get_long()) {
                assert!(page.contains(&format!("--{option}")), "{name} --{option}");
            }
        });
        assert!(count > 30, "{count} verbs");
        for exit in Exit::ALL {
            assert!(page.contains(&exit.meaning().replace('`', "")), "{exit:?}");
        }
        let page = plain(&animd_page());
        for arg in animd::cli::command().get_arguments().filter_map(|arg| arg.get_long()) {
            assert!(page.contains(&format!("--{arg}")), "{arg}");
        }
    }

    #[test]
    fn every_verb_has_an_example_and_names_its_json() {
        verbs(&animctl::command(), "animctl", &mut |name, verb| {
            let help = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.starts_with("Example: ") || help.starts_with("Examples:\n"), "{name}: {help}");
            assert!(help.contains(name), "{name}: {help}");
            assert!(verb.has_subcommands() || help.contains("JSON"), "{name}: {help}");
        });
    }

    #[test]
    fn every_key_is_in_the_manual() {
        let page = plain(&config_page());
        for doc in reference() {
            assert!(page.contains(&format!("\n{} = ", doc.key)), "{}.{}", doc.section, doc.key);
        }
        let sections: HashSet<&str> = reference().iter().map(|doc| doc.section).collect();
        for section in sections {
            assert!(page.contains(&format!("[{section}]")), "{section}");
        }
    }

    #[test]
    fn every_member_of_the_bus_interface_is_in_the_manual() {
        let page = plain(&bus_page());
        let mut count = 0;
        for line in CONTRACT.lines().map(str::trim) {
            let Some((kind, rest)) = line.trim_start_matches('<').split_once(" name=\"") else { continue };
            let name = rest.split('"').next().unwrap_or_default();
            if ["method", "signal", "property", "interface"].contains(&kind) {
                count += 1;
                assert!(page.contains(name), "{name}");
            }
        }
        assert!(count > 40, "{count} members");
        for error in ["UnknownOption", "NotAuthorized", "org.animd.animd1.manage-others"] {
            assert!(page.contains(error), "{error}");
        }
    }

    #[test]
    fn the_contract_names_every_state_of_the_service() {
        for state in ServiceState::ALL {
            assert!(CONTRACT.contains(state.name()), "{state:?}");
            assert_eq!(ServiceState::from_name(state.name()), Some(state));
        }
    }

    #[test]
    fn files_lie_where_packages_want_them() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let files = write(dir.path())?;
        assert_eq!(files.len(), 7);
        for file in files {
            let text = fs::read_to_string(&file)?;
            assert!(text.len() > 1000, "{}", file.display());
            assert!(!text.contains("panicked"));
        }
        let bash = fs::read_to_string(dir.path().join("bash-completion/completions/animctl"))?;
        assert!(bash.contains("animctl__subcmd__submit") || bash.contains("animctl__submit"));
        Ok(())
    }
}
