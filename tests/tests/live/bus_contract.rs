//! The bus interface matches `dbus/org.animd.Animd1.xml`, which documents every member.

use std::collections::BTreeSet;

use crate::harness::House;
use zbus::fdo::IntrospectableProxy;

const CONTRACT: &str = include_str!("../../../daemon/dbus/org.animd.Animd1.xml");

/// One tag with its attributes, and the comment before it.
struct Tag {
    name: String,
    attributes: Vec<(String, String)>,
    closes: bool,
    empty: bool,
    comment: String,
}

impl Tag {
    fn get(&self, key: &str) -> &str {
        self.attributes.iter().find(|(k, _)| k == key).map_or("", |(_, value)| value)
    }
}

/// Returns the tags of a document as simple as introspection is.
fn tags(xml: &str) -> Vec<Tag> {
    let mut tags = Vec::new();
    let (mut rest, mut comment) = (xml, String::new());
    while let Some(at) = rest.find('<') {
        rest = &rest[at..];
        if let Some(body) = rest.strip_prefix("<!--") {
            let (text, after) = body.split_once("-->").unwrap();
            text.trim().clone_into(&mut comment);
            rest = after;
            continue;
        }
        let (inside, after) = rest[1..].split_once('>').unwrap();
        rest = after;
        if inside.starts_with(['!', '?']) {
            continue;
        }
        let empty = inside.ends_with('/');
        let inside = inside.trim_end_matches('/').trim();
        let (name, mut list) = inside.split_once(char::is_whitespace).unwrap_or((inside, ""));
        let mut attributes = Vec::new();
        while let Some((key, value)) = list.split_once("=\"") {
            let (value, next) = value.split_once('"').unwrap();
            attributes.push((key.trim().to_owned(), value.to_owned()));
            list = next;
        }
        let closes = name.starts_with('/');
        let name = name.trim_start_matches('/').to_owned();
        tags.push(Tag { name, attributes, closes, empty, comment: std::mem::take(&mut comment) });
    }
    tags
}

/// Returns every member of animd's interfaces as a line: its interface, its name, its arguments in order, its
/// annotations.
fn members(xml: &str) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    let (mut interface, mut member, mut arguments) = (String::new(), String::new(), 0);
    for tag in tags(xml) {
        match tag.name.as_str() {
            "interface" => interface = if tag.closes { String::new() } else { tag.get("name").to_owned() },
            _ if tag.closes || !interface.starts_with("org.animd.") => {}
            "method" | "signal" | "property" => {
                member = format!("{interface} {} {}", tag.name, tag.get("name"));
                arguments = 0;
                lines.insert(format!("{member} {} {}", tag.get("type"), tag.get("access")));
            }
            "arg" => {
                arguments += 1;
                // A signal's arguments have no direction to choose.
                let direction = if member.contains(" signal ") { "" } else { tag.get("direction") };
                lines.insert(format!(
                    "{member} argument {arguments} {} {} {direction}",
                    tag.get("name"),
                    tag.get("type")
                ));
            }
            "annotation" => {
                lines.insert(format!("{member} annotation {} {}", tag.get("name"), tag.get("value")));
            }
            _ => {}
        }
    }
    lines
}

#[test]
fn everything_in_the_contract_is_explained() {
    let tags = tags(CONTRACT);
    let mut comment = String::new();
    for (at, tag) in tags.iter().enumerate().filter(|(_, tag)| !tag.closes) {
        match tag.name.as_str() {
            "method" | "signal" | "property" => {
                let name = tag.get("name");
                assert!(tag.comment.starts_with(&format!("{name}: ")), "{name} is not explained");
                comment.clone_from(&tag.comment);
                let has_arguments = !tag.empty && tags[at + 1].name == "arg";
                assert_eq!(has_arguments, comment.contains('@'), "{name}");
            }
            "arg" => {
                let name = tag.get("name");
                assert!(
                    comment.contains(&format!("@{name}: ")),
                    "the argument {name} is not explained: {comment}"
                );
            }
            _ => {}
        }
    }
}

#[tokio::test]
async fn the_live_interface_is_the_contract() {
    let house = House::started("");
    let picture = house.picture();
    house.json(&["submit", &picture, "-p", "slow=1000"]);
    let bus = house.connect().await;
    let introspect = async |path: &str| {
        let object = IntrospectableProxy::builder(&bus)
            .destination("org.animd.Animd1")
            .path(path.to_owned())
            .build()
            .await
            .unwrap();
        object.introspect().await.unwrap()
    };
    let manager = introspect("/org/animd/Animd1").await;
    let job = introspect("/org/animd/Animd1/job/1").await;
    let live: BTreeSet<String> = &members(&manager) | &members(&job);
    let contract = members(CONTRACT);
    let only = |a: &BTreeSet<String>, b| a.difference(b).cloned().collect::<Vec<_>>().join("\n");
    assert_eq!(
        live,
        contract,
        "only live:\n{}\nonly written:\n{}",
        only(&live, &contract),
        only(&contract, &live)
    );

    // The parent nodes name their children, and do not repeat them.
    let root = introspect("/").await;
    assert!(root.contains("<node name=\"org\"/>") && !root.contains("org.animd"), "{root}");
    assert!(introspect("/org").await.contains("<node name=\"animd\"/>"));
    assert!(introspect("/org/animd").await.contains("<node name=\"Animd1\"/>"));
    assert!(
        manager.contains("<node name=\"job\"/>") && manager.contains("org.freedesktop.DBus.ObjectManager")
    );
    let jobs = introspect("/org/animd/Animd1/job").await;
    assert!(jobs.contains("<node name=\"1\"/>") && !jobs.contains("org.animd"), "{jobs}");
}
