//! org.animd.Animd1(5), from the contract's own comments.

use clap_mangen::roff::{bold, roman};

use super::{CONTRACT, Page};

/// Returns the manual page.
pub fn page() -> String {
    let mut page = Page::new("org.animd.Animd1", "5", "the bus interface of animd");
    page.section("DESCRIPTION");
    let mut rest = CONTRACT;
    let mut comment = "";
    let mut first = true;
    let mut member: Option<Member> = None;
    while let Some(at) = rest.find('<') {
        rest = &rest[at..];
        if let Some(body) = rest.strip_prefix("<!--") {
            let (text, after) = body.split_once("-->").unwrap_or((body, ""));
            rest = after;
            match std::mem::take(&mut first) {
                true => lead(&mut page, text),
                false => comment = text,
            }
            continue;
        }
        let (tag, after) = rest[1..].split_once('>').unwrap_or((&rest[1..], ""));
        rest = after;
        let name = attribute(tag, "name");
        match tag.split([' ', '/']).find(|word| !word.is_empty()).unwrap_or_default() {
            "interface" if !tag.starts_with('/') => page.section(name),
            "arg" => {
                if let Some(member) = &mut member {
                    member.argument(attribute(tag, "direction"), attribute(tag, "type"), name);
                }
            }
            kind @ ("method" | "signal" | "property") => {
                if !tag.starts_with('/') {
                    member = Some(Member::new(kind, name, attribute(tag, "type"), comment));
                }
                if (tag.starts_with('/') || tag.ends_with('/'))
                    && let Some(member) = member.take()
                {
                    member.write(&mut page);
                }
            }
            _ => {}
        }
    }
    page.see_also(&[("animd", "8"), ("animctl", "1"), ("animd.toml", "5"), ("busctl", "1")]);
    page.render()
}

fn attribute<'a>(tag: &'a str, key: &str) -> &'a str {
    let start = format!(" {key}=\"");
    tag.split_once(&start).and_then(|(_, rest)| rest.split('"').next()).unwrap_or_default()
}

/// A method, a signal or a property.
struct Member<'a> {
    kind: &'a str,
    name: &'a str,
    of: &'a str,
    comment: &'a str,
    inward: Vec<String>,
    outward: Vec<String>,
}

impl<'a> Member<'a> {
    fn new(kind: &'a str, name: &'a str, of: &'a str, comment: &'a str) -> Self {
        Self { kind, name, of, comment, inward: Vec::new(), outward: Vec::new() }
    }

    fn argument(&mut self, direction: &str, of: &str, name: &str) {
        let list = if direction == "out" { &mut self.outward } else { &mut self.inward };
        list.push(format!("{of} {name}"));
    }

    fn title(&self) -> String {
        let Self { kind, name, of, .. } = self;
        match *kind {
            "property" => format!("{name} ({of}, property)"),
            "signal" => format!("{name}({}), signal", self.inward.join(", ")),
            _ if self.outward.is_empty() => format!("{name}({})", self.inward.join(", ")),
            _ => format!("{name}({}) -> {}", self.inward.join(", "), self.outward.join(", ")),
        }
    }

    /// Writes the comment: what the member does, then `@argument: ` and the argument's meaning.
    fn write(&self, page: &mut Page) {
        page.subsection(&self.title());
        let mut parts: Vec<String> = vec![String::new()];
        for line in self.comment.lines().map(str::trim).filter(|line| !line.is_empty()) {
            if line.starts_with('@') {
                parts.push(String::new());
            }
            if let Some(part) = parts.last_mut() {
                if !part.is_empty() {
                    part.push(' ');
                }
                part.push_str(line);
            }
        }
        let about =
            parts[0].strip_prefix(self.name).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(&parts[0]);
        let mut letters = about.chars();
        page.text(
            &letters.next().into_iter().flat_map(char::to_uppercase).chain(letters).collect::<String>(),
        );
        for part in &parts[1..] {
            let (name, text) = part.trim_start_matches('@').split_once(": ").unwrap_or((part, ""));
            page.entry(vec![bold(name)], text);
        }
    }
}

/// Writes the comment at the file's head: paragraphs, and lists whose lines are indented further.
fn lead(page: &mut Page, text: &str) {
    let mut entries: Vec<(&str, String)> = Vec::new();
    let mut paragraph = String::new();
    let flush = |page: &mut Page, paragraph: &mut String, entries: &mut Vec<(&str, String)>| {
        page.text(&std::mem::take(paragraph));
        for (term, text) in entries.drain(..) {
            page.entry(vec![bold(term), roman("")], &text);
        }
    };
    for line in text.lines() {
        let indent = line.len() - line.trim_start().len();
        let words = line.trim();
        match indent {
            _ if words.is_empty() => flush(page, &mut paragraph, &mut entries),
            0..4 => {
                if !entries.is_empty() {
                    flush(page, &mut paragraph, &mut entries);
                }
                paragraph.push_str(words);
                paragraph.push('\n');
            }
            // The line continues the entry above.
            9.. => {
                if let Some((_, text)) = entries.last_mut() {
                    text.push(' ');
                    text.push_str(words);
                }
            }
            _ => match words.split_once("  ") {
                Some((term, text)) => entries.push((term, text.trim().to_owned())),
                None => entries.push((words, String::new())),
            },
        }
    }
    flush(page, &mut paragraph, &mut entries);
}
