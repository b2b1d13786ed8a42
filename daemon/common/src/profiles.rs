//! The files of profiles: where they lie, and whether the one that is configured is among them.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use animd_protocol::Mistake;
use animd_protocol::profile::{BUILT_IN, Profile};

use crate::config::Loaded;
use crate::files::show;
use crate::{Error, keys, text};

/// Leaves the choice of a profile, or of a GPU, to the service.
pub const AUTO: &str = "auto";

/// Where profiles lie; those of a later folder replace those of an earlier one, and both replace the built-in ones.
pub const FOLDERS: [&str; 2] = ["/usr/share/animd/profiles", "/etc/animd/profiles"];

/// Reads one profile's file.
///
/// # Errors
/// A sentence with the file, the line and the nearest right key.
pub fn read(path: &Path) -> Result<Profile, String> {
    let bytes = fs::read(path).map_err(|e| format!("cannot read the profile `{}`: {e}", show(path)))?;
    let text = text::decode(bytes).map_err(|e| e.of(&show(path)))?;
    let mut profile = Profile::read(&text).map_err(|mistake| explain(path, &text, &mistake))?;
    for (key, value) in [("name", &profile.name), ("summary", &profile.summary)] {
        text::without_zero(value).map_err(|e| format!("{}: `{key}`: {e}", show(path)))?;
    }
    profile.settings = text::settings(profile.settings).map_err(|e| format!("{}: {e}", show(path)))?;
    Ok(profile)
}

fn explain(path: &Path, text: &str, mistake: &Mistake) -> String {
    let place = mistake.line(text).map_or_else(|| show(path), |line| format!("{}:{line}", show(path)));
    format!("{place}: {}", keys::with_hint(&mistake.message))
}

/// Returns all profiles, those of later folders first, and what is wrong with the files that could not be read.
pub fn load(folders: &[PathBuf]) -> (Vec<Profile>, Vec<String>) {
    let (mut profiles, mut mistakes, mut names) = (Vec::new(), Vec::new(), HashSet::new());
    for folder in folders.iter().rev() {
        let Ok(entries) = fs::read_dir(folder) else { continue };
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        files.retain(|path| path.extension().is_some_and(|e| e == "toml"));
        files.sort();
        for path in files {
            match read(&path) {
                Ok(profile) if names.insert(profile.name.clone()) => profiles.push(profile),
                Ok(_) => {}
                Err(mistake) => mistakes.push(mistake),
            }
        }
    }
    for (name, text) in BUILT_IN {
        // A test reads all of the built-in profiles.
        if !names.contains(name)
            && let Ok(profile) = Profile::read(text)
        {
            profiles.push(profile);
        }
    }
    (profiles, mistakes)
}

/// Returns whether `profile.name` is a file's.
pub fn is_file(name: &str) -> bool {
    name.contains('/') || Path::new(name).extension().is_some_and(|e| e == "toml")
}

/// Checks that the configured profile exists, which the service only finds out when it chooses one.
///
/// # Errors
/// [`Error::Config`] with the value's place, and the nearest right name or what is wrong with its file.
pub fn check(loaded: &Loaded) -> Result<(), Error> {
    let name = &loaded.config.profile.name;
    let found = if is_file(name) {
        read(name.as_ref()).map(drop)
    } else {
        let (profiles, _) = load(&FOLDERS.map(PathBuf::from));
        match profiles.iter().find(|p| p.name == *name) {
            None if name != AUTO => Err(unknown(name, &profiles)),
            _ => Ok(()),
        }
    };
    found.map_err(|mistake| Error::Config(loaded.origins.say("profile.name", &mistake)))
}

/// Returns a sentence about a name that no profile has.
pub fn unknown(name: &str, profiles: &[Profile]) -> String {
    format!("there is no profile `{name}`{}", keys::hint(name, profiles.iter().map(|p| p.name.as_str())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_folders_replace_by_name_and_mistakes_are_told() -> std::io::Result<()> {
        let dir = tempfile::tempdir()?;
        let (usr, etc) = (dir.path().join("usr"), dir.path().join("etc"));
        let cpu = BUILT_IN[BUILT_IN.len() - 1].1;
        let with = |summary: &str| cpu.replace("no GPU: everything", summary);
        for (folder, name, text) in [
            (&usr, "cpu.toml", with("packaged")),
            (&usr, "h200.toml", BUILT_IN[0].1.to_owned()),
            (&etc, "cpu.toml", with("local")),
            (&etc, "mine.toml", cpu.replacen("\"cpu\"", "\"mine\"", 1)),
            (&etc, "wrong.toml", BUILT_IN[0].1.replace("sensitive =", "sensitiv =")),
            (&etc, "notes.txt", "nothing".into()),
        ] {
            fs::create_dir_all(folder)?;
            fs::write(folder.join(name), text)?;
        }
        let (profiles, mistakes) = load(&[usr, etc.clone(), dir.path().join("nowhere")]);
        let names: Vec<&str> = profiles.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names[..3], ["cpu", "mine", "h200"]);
        assert_eq!(names.len(), BUILT_IN.len() + 1, "{names:?}");
        assert!(profiles[0].summary.starts_with("local"), "{}", profiles[0].summary);
        let [mistake] = &mistakes[..] else { panic!("{mistakes:?}") };
        assert!(mistake.starts_with(&format!("{}:", show(etc.join("wrong.toml")))), "{mistake}");
        assert!(mistake.ends_with("unknown key `sensitiv`; did you mean `sensitive`?"), "{mistake}");
        Ok(())
    }
}
