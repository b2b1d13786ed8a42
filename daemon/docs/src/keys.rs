//! animd.toml(5), from the shipped configuration.

use animd_common::config::reference::{SHIPPED, reference};
use clap_mangen::roff::{bold, italic, roman};

use super::Page;

/// Returns the manual page.
pub fn page() -> String {
    let mut page = Page::new("animd.toml", "5", "the configuration of animd");
    page.section("SYNOPSIS");
    page.text(
        "/etc/animd/animd.toml\n /etc/animd/conf.d/*.toml\n ~/.config/animd/animd.toml, for `animd --user`",
    );
    page.section("DESCRIPTION");
    // What stands above the first section of the file.
    let lead = SHIPPED.lines().take_while(|line| line.starts_with('#'));
    page.text(&lead.map(|line| line.trim_start_matches(['#', ' '])).collect::<Vec<_>>().join("\n"));
    let mut section = "";
    for doc in reference() {
        if doc.section != section {
            section = doc.section;
            page.section(&match section {
                "watch" => "[[watch]]".to_owned(),
                section => format!("[{section}]"),
            });
        }
        let example = if doc.is_default { "" } else { "   (an example)" };
        page.entry(
            vec![
                bold(doc.key),
                roman(" = "),
                italic(short(doc.value)),
                roman(format!("   ({}){example}", doc.kind)),
            ],
            &doc.description,
        );
    }
    page.see_also(&[("animd", "8"), ("animctl", "1"), ("org.animd.Animd1", "5")]);
    page.render()
}

/// Shortens a long value to its beginning: no terminal breaks a line of Chinese.
fn short(value: &str) -> String {
    if value.chars().count() <= 60 {
        return value.to_owned();
    }
    let start: String = value.chars().take(30).collect();
    format!("{start}...\"")
}
