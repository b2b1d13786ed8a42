//! The files that let the service's sandbox see a folder; systemd and animd read them when the service starts.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use animd_common::files::{show, write_atomic};

use super::exit::{Failure, Result};
use crate::doctor::User;
use crate::doctor::sandbox::{DROP_INS, HOME, LINKS, Sandbox, escape, is_plain};

/// The folder below which the folders of other users appear for the service.
const FOLDERS: &str = "/var/lib/animd/folders";
/// animd's own configuration, below the root.
const CONFIG: &str = "etc/animd/conf.d";

/// Files to write, and where the service sees the folder then.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The path below the root and the text of each file.
    pub files: Vec<(PathBuf, String)>,
    /// The paths below the root of files that are to go.
    pub gone: Vec<PathBuf>,
    /// Links of plain names below the root, and what they lead to.
    pub links: Vec<(PathBuf, PathBuf)>,
    /// Where the service will see the folder.
    pub inside: PathBuf,
}

impl Plan {
    /// Returns the files that let the service watch a folder, and write its videos to `outbox` if that is given.
    pub fn folder(dir: &Path, outbox: Option<&Path>, stable: Option<f64>, poll: Option<f64>) -> Self {
        let id = format!("folder-{}", name(dir));
        let mut links = Vec::new();
        let (inside, mut lines) = seen(dir, &mut links);
        let mut text = format!("[[watch]]\npath = {}\n", toml(&inside));
        if let Some(outbox) = outbox {
            let (outbox, more) = seen(outbox, &mut links);
            _ = writeln!(text, "outbox = {}", toml(&outbox));
            lines.extend(more);
        }
        for (key, seconds) in [("stable_seconds", stable), ("poll_seconds", poll)] {
            if let Some(seconds) = seconds {
                _ = writeln!(text, "{key} = {seconds:?}");
            }
        }
        let mut files = vec![(config(&id), text)];
        if !lines.is_empty() {
            files.push((drop_in(&id), unit(&lines)));
        }
        Self { files, gone: Vec::new(), links, inside }
    }

    /// Writes the files below `root`, and removes those that are to go.
    pub fn write(&self, root: &Path) -> Result<()> {
        for (link, source) in &self.links {
            let link = root.join(link);
            if fs::read_link(&link).is_ok_and(|known| known == *source) {
                continue;
            }
            if let Some(dir) = link.parent() {
                fs::create_dir_all(dir).map_err(Failure::file("make", dir))?;
            }
            _ = fs::remove_file(&link);
            symlink(source, &link).map_err(Failure::file("write", &link))?;
        }
        for (path, text) in &self.files {
            let path = root.join(path);
            if let Some(dir) = path.parent() {
                fs::create_dir_all(dir).map_err(Failure::file("make", dir))?;
            }
            write_atomic(&path, text.as_bytes(), 0o644).map_err(Failure::file("write", &path))?;
        }
        remove(root, self.gone.iter())?;
        tidy_links(root);
        Ok(())
    }

    /// Removes the files below `root`; returns false if there were none.
    pub fn remove(&self, root: &Path) -> Result<bool> {
        let any = remove(root, self.files.iter().map(|(path, _)| path))?;
        tidy_links(root);
        Ok(any)
    }

    /// Runs `change`, which changes the files below `root`; if it fails, restores them.
    pub fn or_undo<T>(&self, root: &Path, change: impl FnOnce() -> Result<T>) -> Result<T> {
        let before = self.before(root)?;
        change().map_err(|e| before.undo(&e))
    }

    /// Returns the files below `root` as they are before a change.
    pub fn before(&self, root: &Path) -> Result<Before> {
        let mut files = Vec::new();
        for path in self.files.iter().map(|(path, _)| path).chain(&self.gone) {
            let path = root.join(path);
            let bytes = match fs::read(&path) {
                Ok(bytes) => Some(bytes),
                Err(e) if e.kind() == io::ErrorKind::NotFound => None,
                Err(e) => return Err(Failure::file("read", &path)(e)),
            };
            files.push((path, bytes));
        }
        Ok(Before { root: root.to_owned(), files })
    }

    /// Returns whether the unit changes, and not only animd's configuration.
    pub fn needs_unit(&self) -> bool {
        self.files.iter().any(|(path, _)| path.starts_with(DROP_INS))
    }
}

/// Files as they were before a change.
pub struct Before {
    root: PathBuf,
    files: Vec<(PathBuf, Option<Vec<u8>>)>,
}

impl Before {
    /// Restores the files after a change that failed, and returns the failure in words that say so.
    pub fn undo(self, e: &Failure) -> Failure {
        for (path, bytes) in self.files {
            // The first error is the one to report.
            _ = match bytes {
                Some(bytes) => write_atomic(&path, &bytes, 0o644),
                None => fs::remove_file(&path),
            };
        }
        tidy_links(&self.root);
        Failure { exit: e.exit, text: format!("{}; nothing is changed", e.text.trim_end()) }
    }
}

/// Removes files below `root`; returns false if there were none.
fn remove<'a>(root: &Path, paths: impl Iterator<Item = &'a PathBuf>) -> Result<bool> {
    let mut any = false;
    for path in paths {
        let path = root.join(path);
        match fs::remove_file(&path) {
            Ok(()) => any = true,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(Failure::file("remove", &path)(e)),
        }
    }
    Ok(any)
}

/// Removes the links that no drop-in names.
fn tidy_links(root: &Path) {
    let entries = |dir: PathBuf| fs::read_dir(dir).into_iter().flatten().flatten();
    let texts: Vec<String> =
        entries(root.join(DROP_INS)).filter_map(|entry| fs::read_to_string(entry.path()).ok()).collect();
    for link in entries(root.join(&LINKS[1..])) {
        let name = format!("{LINKS}/{}:", link.file_name().to_string_lossy());
        if link.path().is_symlink() && !texts.iter().any(|text| text.contains(&name)) {
            // One that stays does no harm.
            _ = fs::remove_file(link.path());
        }
    }
}

/// Returns the path by which a unit names a file or folder that it shows to the service: its own, or a link's, which is added to
/// `links`.
pub fn source(path: &Path, links: &mut Vec<(PathBuf, PathBuf)>) -> PathBuf {
    if is_plain(path) {
        return path.to_owned();
    }
    let link = Path::new(LINKS).join(name(path));
    links.push((link.strip_prefix("/").unwrap_or(&link).to_owned(), path.to_owned()));
    link
}

/// Returns where the service sees a folder, and the directives that its unit needs to write there.
fn seen(dir: &Path, links: &mut Vec<(PathBuf, PathBuf)>) -> (PathBuf, Vec<String>) {
    if dir.starts_with(HOME) {
        return (dir.to_owned(), Vec::new());
    }
    if Sandbox::hides(dir) {
        let inside = Path::new(FOLDERS).join(name(dir));
        let bind = format!("BindPaths=-{}:{}", escape(&source(dir, links)), escape(&inside));
        return (inside, vec![bind]);
    }
    (dir.to_owned(), vec![format!("ReadWritePaths=-{}", escape(dir))])
}

/// Returns the text of a drop-in with these directives.
pub fn unit(lines: &[String]) -> String {
    format!("# Written by animctl.\n[Service]\n{}\n", lines.join("\n"))
}

/// Returns the path below the root of a drop-in of the service's unit.
pub fn drop_in(id: &str) -> PathBuf {
    Path::new(DROP_INS).join(format!("animctl-{id}.conf"))
}

/// Returns the path below the root of a file of animd's configuration.
pub fn config(id: &str) -> PathBuf {
    Path::new(CONFIG).join(format!("animctl-{id}.toml"))
}

/// Returns a file name of plain characters only, unique for each path.
pub fn name(dir: &Path) -> String {
    let plain = |b: &u8| match b {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'_' => *b as char,
        _ => '-',
    };
    let bytes = dir.as_os_str().as_bytes();
    let name: String = bytes.iter().map(plain).collect();
    let name = name.trim_matches(['-', '.']);
    if bytes.iter().all(|b| plain(b) != '-' || *b == b'/') && name.len() < 100 {
        return name.to_owned();
    }
    // The hash keeps paths apart that differ only in other characters, or that are too long.
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, b| (hash ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3));
    let end: String = name.chars().rev().take(60).collect::<Vec<_>>().into_iter().rev().collect();
    format!("{end}-{:08x}", hash as u32)
}

/// Returns a path as a value in TOML.
pub fn toml(path: &Path) -> String {
    toml::Value::from(path.to_string_lossy().into_owned()).to_string()
}

/// Returns the absolute path of a folder, with all links followed.
pub fn real(dir: &Path) -> Result<PathBuf> {
    let real = fs::canonicalize(dir).map_err(Failure::file("find", dir))?;
    if !real.is_dir() {
        return Err(Failure::new(format!("`{}` is not a folder", show(dir))));
    }
    writable(&real)?;
    Ok(real)
}

/// Returns an error for a path that no file of systemd's can hold.
pub fn writable(path: &Path) -> Result<()> {
    let why = match path.to_str() {
        None => "is not valid UTF-8",
        Some(text) if text.contains(char::is_control) => {
            "has a line break or another control character in it, which the files of systemd cannot hold"
        }
        Some(_) => return Ok(()),
    };
    Err(Failure::new(format!("`{}` {why}; rename it", show(path))))
}

/// Returns an error unless this user may write to /etc.
pub fn needs_root(command: &str) -> Result<()> {
    match rustix::process::geteuid().is_root() {
        true => Ok(()),
        false => Err(Failure::new(format!(
            "this changes the service's sandbox, which only root can do: `sudo {command}`, or `pkexec {command}`"
        ))),
    }
}

/// Returns the user that the installed service runs as.
pub fn service_user() -> Option<User> {
    let text = |path| fs::read_to_string(path).unwrap_or_default();
    User::named("animd", &text("/etc/passwd"), &text("/etc/group"))
}

/// Puts the files in force, at once or when the running job has ended, and returns a sentence that says which.
pub fn apply() -> Result<&'static str> {
    reread()?;
    restart()
}

/// Has systemd read its files again.
pub fn reread() -> Result<()> {
    systemctl(&["daemon-reload"])
}

/// Restarts the service, at once or when the running job has ended, and returns a sentence that says which.
pub fn restart() -> Result<&'static str> {
    if !is_active() {
        return Ok("it takes effect when the service starts: `systemctl start animd`");
    }
    systemctl(&["start", "--no-block", "animd-handover.service"])?;
    Ok("the service restarts for it as soon as no job runs")
}

/// Returns whether the service runs.
pub fn is_active() -> bool {
    let mut command = Command::new("systemctl");
    command.args(["is-active", "--quiet", "animd.service"]).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn systemctl(args: &[&str]) -> Result<()> {
    let failed = |why: String| Failure::new(format!("`systemctl {}`: {why}", args.join(" ")));
    let status = Command::new("systemctl").args(args).status().map_err(|e| failed(e.to_string()))?;
    if status.success() { Ok(()) } else { Err(failed(status.to_string())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text<'a>(plan: &'a Plan, end: &str) -> &'a str {
        plan.files.iter().find(|(path, _)| path.to_string_lossy().ends_with(end)).map_or("", |(_, text)| text)
    }

    #[test]
    fn a_folder_is_shown_or_opened() {
        let plan = Plan::folder(Path::new("/srv/in"), Some(Path::new("/home/ann/out")), Some(2.0), None);
        assert_eq!(plan.inside, Path::new("/srv/in"));
        let unit = text(&plan, ".conf");
        assert!(
            unit.contains(
                "ReadWritePaths=-/srv/in\nBindPaths=-/home/ann/out:/var/lib/animd/folders/home-ann-out\n"
            ),
            "{unit}"
        );
        let config = text(&plan, ".toml");
        assert_eq!(
            config,
            "[[watch]]\npath = \"/srv/in\"\noutbox = \"/var/lib/animd/folders/home-ann-out\"\nstable_seconds = 2.0\n"
        );
        // animd can read what is written, and so can its doctor.
        animd_common::config::from_text(Path::new("/etc/animd/conf.d/x.toml"), config).expect("it is right");
    }

    #[test]
    fn different_paths_have_different_names() {
        let names = ["/a/b", "/a-b", "/a b", "/a/b c", "/a/b-c"].map(|path| name(Path::new(path)));
        let unique: std::collections::HashSet<&String> = names.iter().collect();
        assert_eq!(unique.len(), names.len(), "{names:?}");
        assert!(name(Path::new(&"/x".repeat(2000))).len() < 120);
    }

    #[test]
    fn a_folder_of_any_name_is_shown_by_a_link() -> Result<()> {
        let root = tempfile::tempdir().map_err(Failure::file("make", "a folder"))?;
        let root = root.path();
        let dir = Path::new("/home/ann/it's \"100%\"");
        let plan = Plan::folder(dir, None, None, None);
        plan.write(root)?;
        let unit = text(&plan, ".conf");
        let bind = unit.lines().find(|line| line.starts_with("BindPaths=")).unwrap_or_default();
        assert!(
            bind.starts_with("BindPaths=-/etc/animd/links/home-ann-it-s") && !bind.contains('"'),
            "{unit}"
        );
        assert_eq!(Sandbox::read(root).outside(&plan.inside).0, dir);
        plan.remove(root)?;
        let left = fs::read_dir(root.join(&LINKS[1..])).map_err(Failure::file("read", LINKS))?.count();
        assert_eq!(left, 0, "the link goes with the drop-in");
        Ok(())
    }

    #[test]
    fn files_come_and_go() -> Result<()> {
        let root = tempfile::tempdir().map_err(Failure::file("make", "a folder"))?;
        let plan = Plan::folder(Path::new("/home/ann/wan"), None, None, None);
        plan.write(root.path())?;
        let sandbox = Sandbox::read(root.path());
        assert_eq!(sandbox.outside(&plan.inside).0, Path::new("/home/ann/wan"));
        assert!(plan.remove(root.path())? && !plan.remove(root.path())?);
        Ok(())
    }

    #[test]
    fn a_change_that_fails_leaves_the_files_as_they_were() -> Result<()> {
        let root = tempfile::tempdir().map_err(Failure::file("make", "a folder"))?;
        let root = root.path();
        let folder = |path: &str, stable| Plan::folder(Path::new(path), None, Some(stable), None);
        let (old, new) = (folder("/home/ann/in", 1.0), folder("/home/ann/in", 2.0));
        let contents =
            || -> Vec<_> { new.files.iter().map(|(path, _)| fs::read(root.join(path)).ok()).collect() };
        let failing = |plan: &Plan| {
            plan.or_undo(root, || plan.write(root).and_then(|()| Err::<(), _>(Failure::new("no systemd"))))
        };
        let failed = failing(&new).map_err(|e| e.text);
        assert_eq!(failed, Err("no systemd; nothing is changed".to_owned()));
        assert!(contents().iter().all(Option::is_none));
        old.write(root)?;
        let before = contents();
        assert!(failing(&new).is_err());
        assert_eq!(contents(), before);
        let gone = Plan { gone: old.files.iter().map(|(path, _)| path.clone()).collect(), ..Plan::default() };
        assert!(failing(&gone).is_err());
        assert_eq!(contents(), before);
        gone.write(root)?;
        assert!(contents().iter().all(Option::is_none));
        Ok(())
    }
}
