//! Checks that a component has all the tensors that it needs, and no others.

use std::collections::BTreeSet;
use std::fmt;

use super::Component;
use super::layouts::{Contents, Misfit};
use animd_protocol::dims::schema::Expected;

/// The differences between a component's files and what they should hold.
#[derive(Clone, Debug, Default)]
pub(crate) struct Problems {
    /// Contradictions about sizes.
    pub sizes: Vec<String>,
    pub missing: Vec<String>,
    pub extra: Vec<String>,
    pub misshapen: Vec<String>,
    pub mistyped: Vec<String>,
}

/// The number of tensors of a kind that an error names; it only counts the rest.
const NAMED: usize = 20;

impl Problems {
    pub fn is_empty(&self) -> bool {
        let lists = [&self.sizes, &self.missing, &self.extra, &self.misshapen, &self.mistyped];
        lists.iter().all(|list| list.is_empty())
    }

    fn note(&mut self, misfit: Misfit) {
        match misfit {
            Misfit::Missing(text) => self.missing.push(text),
            Misfit::Misshapen(text) => self.misshapen.push(text),
            Misfit::Mistyped(text) => self.mistyped.push(text),
        }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = [
            (&self.sizes, ""),
            (&self.missing, "missing"),
            (&self.extra, "not of this model"),
            (&self.misshapen, "of the wrong shape"),
            (&self.mistyped, "of the wrong type"),
        ];
        let mut separator = "";
        for (list, kind) in kinds.into_iter().filter(|(list, _)| !list.is_empty()) {
            f.write_str(separator)?;
            separator = "; ";
            if !kind.is_empty() {
                write!(f, "{} {kind}: ", list.len())?;
            }
            f.write_str(&list[..list.len().min(NAMED)].join(", "))?;
            if list.len() > NAMED {
                write!(f, " and {} more", list.len() - NAMED)?;
            }
        }
        Ok(())
    }
}

/// Compares the tensors that files hold of a component with those that the component needs.
pub(super) fn compare(component: Component, contents: &Contents, expected: &[Expected]) -> Problems {
    let mut problems = Problems::default();
    for Expected { name, shape, .. } in expected {
        let Some(have) = contents.tensors.get(name) else {
            problems.missing.push(format!("`{name}`"));
            continue;
        };
        have.misfits.iter().cloned().for_each(|misfit| problems.note(misfit));
        let fits =
            have.shape.len() == shape.len() && have.shape.iter().zip(shape).all(|(h, w)| h == w || *w == 0);
        // What cannot be read may be stored under other extents, so that these say nothing.
        let same_extents = |misfit: &Misfit| !matches!(misfit, Misfit::Mistyped(_));
        if !fits && have.misfits.iter().all(same_extents) {
            problems.misshapen.push(format!("`{name}` is {:?}, not {}", have.shape, show_shape(shape)));
        }
    }
    let known: BTreeSet<&str> = expected.iter().map(|e| e.name.as_str()).collect();
    let unknown = |name: &&String| !known.contains(name.as_str()) && !ignorable(component, name);
    problems.extra.extend(contents.tensors.keys().filter(unknown).map(|name| format!("`{name}`")));
    problems.extra.extend(contents.orphans.keys().map(|name| format!("the scale of `{name}`")));
    problems
}

/// Returns whether a component's file may hold a tensor that the engine has no use for.
pub(super) fn ignorable(component: Component, name: &str) -> bool {
    match component {
        // A complete CLIP checkpoint has the text tower, the last norm and the projection, too.
        Component::Clip => {
            name.starts_with("textual.")
                || name.starts_with("visual.post_norm.")
                || ["log_scale", "visual.head"].contains(&name)
        }
        Component::Dit | Component::T5 | Component::Vae => false,
    }
}

fn show_shape(shape: &[usize]) -> String {
    let extents: Vec<String> =
        shape.iter().map(|e| if *e == 0 { "?".to_owned() } else { e.to_string() }).collect();
    format!("[{}]", extents.join(", "))
}
