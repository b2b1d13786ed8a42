//! What the unit's sandbox lets the service see besides its own folders, according to the drop-ins that
//! `animctl model add`, `animctl folder add` or an administrator have written.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// Where the drop-ins of the unit lie, below the root.
pub const DROP_INS: &str = "etc/systemd/system/animd.service.d";
/// The folder that the service may write to without any drop-in.
pub const HOME: &str = "/var/lib/animd";
/// Links of plain characters to folders and files of any name, which only root may change. systemd 256 and newer cannot show
/// the service a path with a quote in it, however it is written.
pub const LINKS: &str = "/etc/animd/links";
/// Folders that are hidden from the service, or that are another folder for it.
const HIDDEN: [&str; 5] = ["/home", "/root", "/run/user", "/tmp", "/var/tmp"];

/// A folder of the machine that appears at another place for the service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    /// Where it is.
    pub source: PathBuf,
    /// Where the service sees it.
    pub target: PathBuf,
    /// Whether the service may write there.
    pub writable: bool,
}

/// The sandbox; by default none, as for an animd that is started with `--user`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sandbox {
    /// Whether there is one.
    pub on: bool,
    /// The folders that it shows at another place.
    pub binds: Vec<Bind>,
    /// The folders that it lets the service write to, besides [`HOME`].
    pub writable: Vec<PathBuf>,
}

impl Sandbox {
    /// Reads the sandbox from the drop-ins below `root`.
    pub fn read(root: &Path) -> Self {
        let mut files: Vec<PathBuf> = fs::read_dir(root.join(DROP_INS))
            .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
            .unwrap_or_default();
        files.retain(|path| path.extension().is_some_and(|e| e == "conf"));
        files.sort();
        let mut sandbox = Self { on: true, ..Self::default() };
        for text in files.iter().filter_map(|file| fs::read(file).ok()) {
            sandbox.take(&text);
        }
        for bind in &mut sandbox.binds {
            let link = root.join(bind.source.strip_prefix("/").unwrap_or(&bind.source));
            if bind.source.starts_with(LINKS)
                && let Ok(source) = fs::read_link(link)
            {
                bind.source = source;
            }
        }
        sandbox
    }

    /// Returns the installed service's sandbox, or none for a user's own service.
    pub fn of(user: bool) -> Self {
        if user { Self::default() } else { Self::read(Path::new("/")) }
    }

    /// Returns the files that the service sees one by one in a folder: their names there, and where they lie.
    pub fn files_in(&self, dir: &Path) -> Vec<(PathBuf, PathBuf)> {
        let of_it = |bind: &Bind| {
            let name = bind.target.strip_prefix(dir).ok()?;
            let is_file = name.components().count() == 1 && !bind.source.is_dir();
            is_file.then(|| (name.to_owned(), bind.source.clone()))
        };
        let mut files: Vec<_> = self.binds.iter().filter_map(of_it).collect();
        files.sort();
        files.dedup();
        files
    }

    fn take(&mut self, text: &[u8]) {
        for line in text.split(|b| *b == b'\n') {
            let Some(at) = line.iter().position(|b| *b == b'=') else { continue };
            let (key, values) = (line[..at].trim_ascii(), &line[at + 1..]);
            for mut parts in words(values).into_iter().map(Vec::into_iter) {
                let Some(source) = parts.next().map(plain) else { continue };
                let mut parts = parts.map(PathBuf::from);
                match key {
                    b"BindPaths" | b"BindReadOnlyPaths" => {
                        let target = parts.next().unwrap_or_else(|| source.clone());
                        self.binds.push(Bind { source, target, writable: key == b"BindPaths" });
                    }
                    b"ReadWritePaths" => self.writable.push(source),
                    _ => {}
                }
            }
        }
    }

    /// Returns where a path that the service uses lies on the machine, and the folder below which its rights are
    /// checked.
    pub fn outside(&self, path: &Path) -> (PathBuf, PathBuf) {
        for bind in &self.binds {
            if let Ok(rest) = path.strip_prefix(&bind.target) {
                let outside =
                    if rest.as_os_str().is_empty() { bind.source.clone() } else { bind.source.join(rest) };
                return (outside, bind.source.clone());
            }
        }
        (path.to_owned(), PathBuf::from("/"))
    }

    /// Returns why the service does not see a path, or may not write there.
    pub fn refusal(&self, path: &Path, write: bool) -> Option<&'static str> {
        if !self.on {
            return None;
        }
        let bind = self.binds.iter().find(|bind| path.starts_with(&bind.target));
        if bind.is_none() && HIDDEN.iter().any(|hidden| path.starts_with(hidden)) {
            return Some("is hidden from the service by its sandbox");
        }
        let may = path.starts_with(HOME)
            || self.writable.iter().any(|writable| path.starts_with(writable))
            || bind.is_some_and(|bind| bind.writable);
        (write && !may).then_some("is read-only for the service, by its sandbox")
    }

    /// Returns whether a path has to be shown to the service at another place.
    pub fn hides(path: &Path) -> bool {
        HIDDEN.iter().any(|hidden| path.starts_with(hidden))
    }
}

/// Returns a path without the `-` for one that may be missing.
fn plain(source: OsString) -> PathBuf {
    let bytes = source.into_vec();
    PathBuf::from(OsString::from_vec(bytes.strip_prefix(b"-").map(<[u8]>::to_vec).unwrap_or(bytes)))
}

/// Returns the words of a directive's value, each as the parts of its `SOURCE:TARGET`, as systemd splits them: quotes keep
/// separators together, and a backslash stands for nothing but keeps the character after it.
fn words(value: &[u8]) -> Vec<Vec<OsString>> {
    let (mut words, mut parts, mut part) = (Vec::new(), Vec::new(), Vec::new());
    let (mut quote, mut rest) = (None, value);
    while let [first, after @ ..] = rest {
        rest = after;
        match (*first, quote) {
            (b'\\', _) => {
                part.extend(rest.first());
                rest = rest.get(1..).unwrap_or_default();
            }
            (b'%', _) if rest.first() == Some(&b'%') => {
                part.push(b'%');
                rest = &rest[1..];
            }
            (byte, Some(open)) if byte == open => quote = None,
            (b'"' | b'\'', None) => quote = Some(*first),
            (b':', None) => parts.push(OsString::from_vec(std::mem::take(&mut part))),
            (byte, None) if byte.is_ascii_whitespace() => {
                if !part.is_empty() || !parts.is_empty() {
                    parts.push(OsString::from_vec(std::mem::take(&mut part)));
                    words.push(std::mem::take(&mut parts));
                }
            }
            (byte, _) => part.push(byte),
        }
    }
    if !part.is_empty() || !parts.is_empty() {
        parts.push(OsString::from_vec(part));
        words.push(parts);
    }
    words
}

/// Returns whether a path has only characters that mean nothing else to systemd.
pub fn is_plain(path: &Path) -> bool {
    path.to_string_lossy().chars().all(|c| c.is_ascii_alphanumeric() || "/._-+,@".contains(c))
}

/// Returns a path as the value of a systemd directive. What is not plain stands in quotes, because systemd has no escape for
/// a single character there: of `\x20` it drops the backslash.
pub fn escape(path: &Path) -> String {
    let text = path.to_string_lossy();
    if is_plain(path) {
        return text.into_owned();
    }
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '%' => quoted.push_str("%%"),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drop_ins_are_read_as_systemd_reads_them() {
        let path = Path::new("/home/ann/my models: 100%/\"wän\" \\x20");
        assert_eq!(escape(path), r#""/home/ann/my models: 100%%/\"wän\" \\x20""#);
        assert_eq!(escape(Path::new("/srv/a-b_c.d")), "/srv/a-b_c.d");
        let mut sandbox = Sandbox { on: true, ..Sandbox::default() };
        let text = format!(
            "[Service]\nBindReadOnlyPaths=-{}:/var/lib/animd/models/wan\nReadWritePaths=/srv/a /srv/b\n# BindPaths=/x\n",
            escape(path)
        );
        sandbox.take(text.as_bytes());
        assert_eq!(sandbox.binds.len(), 1);
        assert_eq!(
            sandbox.outside(Path::new("/var/lib/animd/models/wan/config.json")),
            (path.join("config.json"), path.to_owned())
        );
        assert_eq!(sandbox.writable, [Path::new("/srv/a"), Path::new("/srv/b")]);
        let refusal = |path: &str, write| sandbox.refusal(Path::new(path), write).is_some();
        assert!(refusal("/home/ann", false) && refusal("/srv/c", true));
        assert!(
            !refusal("/srv/a/x", true) && !refusal("/srv/c", false) && !refusal("/var/lib/animd/inbox", true)
        );
        assert_eq!(Sandbox::default().refusal(Path::new("/home/ann"), true), None);
    }
}
