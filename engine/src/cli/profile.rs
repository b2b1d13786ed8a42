//! The option `--profile`.

use std::path::Path;

use animd_engine::{Error, Result};
use animd_protocol::profile::{BUILT_IN, Profile};

/// Returns the built-in profile of this name, or the one in this file.
///
/// # Errors
/// [`Error::Setting`] if the profile is missing or has a mistake; [`Error::Device`] if this build cannot run it.
pub fn open(name: &str) -> Result<Profile> {
    let path = Path::new(name);
    let profile = match Profile::built_in(name) {
        Some(profile) => profile,
        None if path.is_file() => {
            let bytes = std::fs::read(path).map_err(Error::file("read", path))?;
            let text = String::from_utf8(bytes).map_err(|_| {
                Error::Setting(format!("the profile `{name}` is not UTF-8; save it as UTF-8"))
            })?;
            Profile::read(&text).map_err(|mistake| {
                let line = mistake.line(&text).map_or(String::new(), |line| format!(":{line}"));
                Error::Setting(format!("{name}{line}: {mistake}"))
            })?
        }
        None => {
            let known: Vec<&str> = BUILT_IN.iter().map(|(name, _)| *name).collect();
            return Err(Error::Setting(format!(
                "there is no profile `{name}`, and no file of that name; known are {}",
                known.join(", ")
            )));
        }
    };
    if profile.on_gpu() && !cfg!(feature = "cuda") {
        return Err(Error::Device(format!(
            "the profile `{}` is for NVIDIA GPUs, for which this build has no code; take `cpu`",
            profile.name
        )));
    }
    Ok(profile)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_come_by_name_or_from_a_file() -> std::io::Result<()> {
        assert_eq!(open("cpu").map(|p| p.name).ok().as_deref(), Some("cpu"));
        #[cfg(feature = "cuda")]
        assert!(open("h200").is_ok());
        #[cfg(not(feature = "cuda"))]
        assert!(
            open("h200").is_err_and(|e| e.code().name() == "device" && e.to_string().contains("take `cpu`"))
        );
        assert!(open("h2000").is_err_and(|e| e.to_string().contains("known are h200, ")));
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("mine.toml");
        let text = BUILT_IN[BUILT_IN.len() - 1].1;
        std::fs::write(&file, text.replace("[settings]", "[settings]\nsteps = 7"))?;
        let name = file.to_string_lossy();
        assert_eq!(open(&name).ok().and_then(|p| p.settings.steps), Some(7));
        std::fs::write(&file, text.replace("sensitive", "sensitiv"))?;
        let line = 1 + text.lines().position(|l| l.starts_with("sensitive")).unwrap_or_default();
        assert!(
            open(&name).is_err_and(|e| e.to_string().starts_with(&format!("{name}:{line}: unknown field")))
        );
        Ok(())
    }
}
