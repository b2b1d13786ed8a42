//! Which folders are watched: the inbox, those of the configuration, and those that were added over the bus.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use animd_common::config::{Config, file_place};
use animd_common::files::show;
use animd_common::places::{self, Place, Role};
use animd_common::tasks::blocking;
use animd_common::watch::root::Root;
use animd_common::watch::{Origin, Report, Watched, access, away};
use animd_protocol::ErrorCode;
use tokio::sync::watch;

use super::ledger::{AddedWatch, Ledger};
use crate::error::{Error, Result};

/// The longest path that Linux takes, in bytes.
const MOST_PATH: usize = 4095;

/// How to watch a folder that is added.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct How {
    /// See [`Watched::outbox`].
    pub outbox: Option<PathBuf>,
    /// See [`Watched::stable_seconds`].
    pub stable_seconds: Option<f64>,
    /// See [`Watched::poll_seconds`].
    pub poll_seconds: Option<f64>,
}

/// The list of watched folders, shared by the bus, the watchers and the deliveries; cheap to clone.
#[derive(Clone)]
pub struct Watches {
    list: Arc<RwLock<List>>,
    /// Held by whoever changes the list.
    changing: Arc<Mutex<()>>,
    reports: Arc<Mutex<HashMap<PathBuf, Report>>>,
    /// The open watched folders, by path: everybody who uses a folder shares one [`Root`].
    roots: Arc<Mutex<HashMap<PathBuf, Root>>>,
    /// All places of the list, which are kept apart.
    places: places::Shared,
    changed: watch::Sender<()>,
}

#[derive(Clone, Default)]
struct List {
    outbox: PathBuf,
    /// The folders that the service has besides watched ones.
    own: Vec<Place>,
    /// The files that the configuration stands in.
    files: Vec<Place>,
    /// The watched folders, none of which overlap.
    watched: Vec<Arc<Watched>>,
    /// The folders that are refused, and why.
    refused: Vec<(Arc<Watched>, String)>,
}

impl Default for Watches {
    /// Returns an empty list, which [`Self::configure`] fills.
    fn default() -> Self {
        Self {
            list: Arc::default(),
            changing: Arc::default(),
            reports: Arc::default(),
            roots: Arc::default(),
            places: Arc::default(),
            changed: watch::Sender::new(()),
        }
    }
}

impl Watches {
    /// Keeps the files that the configuration stands in apart from watched folders, too.
    pub fn keep_apart(&self, files: &[PathBuf]) {
        let _only = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut list = self.list.read().unwrap_or_else(PoisonError::into_inner).clone();
        list.files = files.iter().map(file_place).collect();
        self.put_in_force(list);
    }

    /// Takes the watched folders from another configuration; those that were added over the bus stay.
    pub fn configure(&self, config: &Config) {
        // Looking at folders below may take long: the list itself is not locked meanwhile.
        let _only = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.list.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mut new = List {
            outbox: config.folders.outbox.clone(),
            own: config.own_places(),
            files: old.files.clone(),
            watched: vec![Arc::new(Watched {
                path: config.folders.inbox.clone(),
                outbox: None,
                stable_seconds: None,
                poll_seconds: None,
                origin: Origin::Inbox,
            })],
            refused: Vec::new(),
        };
        for watch in &config.watch {
            new.put(Watched {
                path: watch.path.clone(),
                outbox: watch.outbox.clone(),
                stable_seconds: watch.stable_seconds,
                poll_seconds: watch.poll_seconds,
                origin: Origin::Configured,
            });
        }
        for old in old.watched.iter().chain(old.refused.iter().map(|(watched, _)| watched)) {
            if matches!(old.origin, Origin::Added(_)) {
                new.put(Watched::clone(old));
            }
        }
        self.put_in_force(new);
        // A path that leads elsewhere now may have been changed on purpose.
        for root in self.roots.lock().unwrap_or_else(PoisonError::into_inner).values() {
            root.forget();
        }
    }

    fn put_in_force(&self, new: List) {
        let mut roots = self.roots.lock().unwrap_or_else(PoisonError::into_inner);
        roots.retain(|path, _| new.watched.iter().any(|watched| watched.path == *path));
        drop(roots);
        *self.places.write().unwrap_or_else(PoisonError::into_inner) = new.places();
        *self.list.write().unwrap_or_else(PoisonError::into_inner) = new;
        self.changed.send_replace(());
    }

    /// Adds the folders that were added over the bus before the service was started. Blocks.
    pub fn load(&self, ledger: &Ledger) -> Result<()> {
        let added = ledger.call_blocking(|db| db.watches())?;
        let _only = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut list = self.list.read().unwrap_or_else(PoisonError::into_inner).clone();
        for watch in added {
            list.put(watch.into());
        }
        self.put_in_force(list);
        Ok(())
    }

    /// Checks a new folder, and adds it to the ledger and to the list. Blocks.
    fn add(&self, added: AddedWatch, ledger: &Ledger) -> Result<Arc<Watched>> {
        let refuse = |text: String| Error::refused(ErrorCode::InvalidSetting, text);
        if let Some(why) = access::refusal(&added.path) {
            return Err(refuse(why));
        }
        let _only = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let watched = Arc::new(Watched::from(added.clone()));
        let mut list = self.list.read().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(why) = list.refusal(&watched) {
            return Err(refuse(why));
        }
        if let Some(outbox) = &added.outbox {
            // If the outbox cannot be made, the check of its path says why.
            _ = self.outbox(outbox).make();
            if let Some(why) = access::refusal(outbox) {
                return Err(refuse(format!("its videos cannot be put there: {why}")));
            }
        }
        ledger.call_blocking(move |db| db.add_watch(&added))?;
        list.watched.push(watched.clone());
        self.put_in_force(list);
        Ok(watched)
    }

    fn remove(&self, path: &Path) {
        let _only = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut list = self.list.read().unwrap_or_else(PoisonError::into_inner).clone();
        list.watched.retain(|watched| watched.path != path);
        list.refused.retain(|(watched, _)| watched.path != path);
        self.put_in_force(list);
    }

    /// Returns the folders that are watched.
    pub fn all(&self) -> Vec<Arc<Watched>> {
        self.list.read().unwrap_or_else(PoisonError::into_inner).watched.clone()
    }

    /// Returns the watched folder that a path lies in, or is.
    pub fn find(&self, path: &Path) -> Option<Arc<Watched>> {
        let list = self.list.read().unwrap_or_else(PoisonError::into_inner);
        list.watched.iter().find(|watched| path.starts_with(&watched.path)).cloned()
    }

    /// Returns the root of a watched folder.
    pub fn root(&self, watched: &Path) -> Root {
        let mut roots = self.roots.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || {
            let places = self.places.read().unwrap_or_else(PoisonError::into_inner);
            let own = places.iter().find(|place| place.role == Role::Inbox && place.path == watched).cloned();
            let place = own.unwrap_or_else(|| Place::new("not watched any more", watched, Role::Inbox));
            Root::new(place, self.places.clone())
        };
        roots.entry(watched.to_owned()).or_insert_with(new).clone()
    }

    /// Returns the root whose `done` and `failed` a picture is moved to. When it is not watched any more, that is the
    /// folder that the picture and its `target`, if it has one already, have in common.
    pub fn root_of(&self, picture: &Path, target: Option<&Path>) -> Root {
        match self.find(picture) {
            Some(watched) => self.root(&watched.path),
            None => self.left(away::common(picture, target.unwrap_or(picture))),
        }
    }

    /// Returns the root of a folder that was watched or took videos once, whatever it is used for now.
    pub fn left(&self, path: &Path) -> Root {
        Root::left(path, self.places.clone())
    }

    /// Returns the root of a folder where videos appear.
    pub fn outbox(&self, path: &Path) -> Root {
        Root::new(Place::new("a folder for videos", path, Role::Outbox), self.places.clone())
    }

    /// Returns the watched folders whose paths lead to folders that may not be used.
    pub fn swapped(&self) -> Vec<PathBuf> {
        let reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        reports.iter().filter(|(_, report)| report.swapped).map(|(path, _)| path.clone()).collect()
    }

    /// Returns all watched folders, and the refused ones, whose report says why.
    pub fn entries(&self) -> Vec<Entry> {
        let list = self.list.read().unwrap_or_else(PoisonError::into_inner);
        let reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = |watched: &Arc<Watched>, report| Entry {
            watched: watched.clone(),
            outbox: watched.outbox.clone().unwrap_or_else(|| list.outbox.clone()),
            report,
        };
        let watched = list.watched.iter().map(|watched| entry(watched, reports.get(&watched.path).cloned()));
        let refused = list.refused.iter().map(|(watched, why)| {
            entry(watched, Some(Report { trouble: Some(why.clone()), ..Report::default() }))
        });
        watched.chain(refused).collect()
    }

    /// Returns a receiver that is told of every change of the list.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Sets the report on how a folder is watched; `None` once it is no longer watched.
    pub fn report(&self, path: &Path, report: Option<&Report>) {
        let mut reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        match report {
            Some(report) => _ = reports.insert(path.to_owned(), report.clone()),
            None => _ = reports.remove(path),
        }
    }
}

impl From<AddedWatch> for Watched {
    fn from(added: AddedWatch) -> Self {
        Self {
            path: added.path,
            outbox: added.outbox,
            stable_seconds: added.stable_seconds,
            poll_seconds: added.poll_seconds,
            origin: Origin::Added(added.owner),
        }
    }
}

impl List {
    /// Adds a folder, or refuses it with an error in the log: the others go on. An overlap that another user has caused
    /// by a link may pass, and is checked whenever the folder is used.
    fn put(&mut self, watched: Watched) {
        let overlaps = places::overlaps(&self.places(), &watched.places());
        match overlaps.into_iter().find(|overlap| !overlap.by_others).map(|overlap| overlap.sentence) {
            None => self.watched.push(Arc::new(watched)),
            Some(why) => {
                tracing::error!("a folder is not watched: {why}");
                self.refused.push((Arc::new(watched), why));
            }
        }
    }

    /// Returns why a folder cannot be watched beside the others.
    fn refusal(&self, new: &Watched) -> Option<String> {
        places::overlap(&self.places(), &new.places()).map(|overlap| overlap.sentence)
    }

    fn places(&self) -> Vec<Place> {
        let own = self.own.iter().chain(&self.files).cloned();
        own.chain(self.watched.iter().flat_map(|watched| watched.places())).collect()
    }
}

/// A folder that somebody wants watched, whose path and options are possible ones.
#[derive(Clone, Debug, PartialEq)]
pub struct Wish {
    /// The folder's path, without trailing and doubled slashes, so that it is found again.
    pub path: PathBuf,
    how: How,
}

/// Returns a wish if its path and options can be right, without a look at any folder.
///
/// # Errors
/// [`Error::Refused`](animd_common::Error::Refused) with `invalid-setting`.
pub fn checked(path: &Path, how: How) -> Result<Wish> {
    let refuse = |text: String| Error::refused(ErrorCode::InvalidSetting, text);
    for (name, path) in [("the folder", Some(path)), ("outbox", how.outbox.as_deref())] {
        let Some(path) = path else { continue };
        let length = path.as_os_str().len();
        if length > MOST_PATH {
            return Err(refuse(format!("{name} has a path of {length} bytes; {MOST_PATH} are the most")));
        }
        if !path.is_absolute() || path.components().any(|part| matches!(part, Component::ParentDir)) {
            return Err(refuse(format!("{name} `{}` is not an absolute path without `..`", show(path))));
        }
    }
    for (name, value, low) in
        [("stable_seconds", how.stable_seconds, 0.0), ("poll_seconds", how.poll_seconds, 0.1)]
    {
        if value.is_some_and(|value| !(low..=3600.0).contains(&value)) {
            return Err(refuse(format!("{name} {} is not from {low} to 3600", value.unwrap_or_default())));
        }
    }
    Ok(Wish { path: path.components().collect(), how })
}

/// Watches one more folder from now on, also after a restart. Whether `by` may ask for that is the caller's question.
///
/// # Errors
/// [`Error::Refused`](animd_common::Error::Refused) with `invalid-setting`: the folder overlaps another one, or may not
/// be used by the service.
pub async fn add(watches: &Watches, ledger: &Ledger, wish: Wish, by: u32) -> Result<Arc<Watched>> {
    let Wish { path, how } = wish;
    let added = AddedWatch {
        path,
        outbox: how.outbox,
        stable_seconds: how.stable_seconds,
        poll_seconds: how.poll_seconds,
        owner: by,
    };
    let (watches, ledger) = (watches.clone(), ledger.clone());
    blocking(move || watches.add(added, &ledger)).await
}

/// Stops watching a folder that was added over the bus. Its jobs go on.
///
/// # Errors
/// [`Error::Refused`](animd_common::Error::Refused) with `not-found`, or `invalid-setting` for one that the
/// configuration names.
pub async fn remove(watches: &Watches, ledger: &Ledger, path: &Path) -> Result<()> {
    let path: PathBuf = path.components().collect();
    let known = watches.entries().into_iter().find(|entry| entry.watched.path == path);
    let Some(entry) = known else {
        let text = format!("`{}` is not watched; `animctl folder list` shows what is", show(&path));
        return Err(Error::refused(ErrorCode::NotFound, text));
    };
    if !matches!(entry.watched.origin, Origin::Added(_)) {
        let text = format!(
            "`{}` is named in the configuration; remove it there, then reload the service",
            show(&path)
        );
        return Err(Error::refused(ErrorCode::InvalidSetting, text));
    }
    let gone = path.clone();
    ledger.call(move |db| db.remove_watch(&gone)).await?;
    let watches = watches.clone();
    blocking(move || {
        watches.remove(&path);
        Ok(())
    })
    .await
}

/// A watched folder and its current state.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The folder.
    pub watched: Arc<Watched>,
    /// Where its videos go.
    pub outbox: PathBuf,
    /// The report on how it is watched; `None` before its watcher has made one.
    pub report: Option<Report>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_that_overlap_are_refused_in_words() {
        let mut config = Config::default();
        config.folders.inbox = "/srv/in".into();
        config.folders.outbox = "/srv/out".into();
        config.folders.state = "/srv/state".into();
        let watches = Watches::default();
        watches.configure(&config);
        let refusal = |path: &str, outbox: Option<&str>| {
            let list = watches.list.read().unwrap_or_else(PoisonError::into_inner);
            let origin = Origin::Added(0);
            let outbox = outbox.map(PathBuf::from);
            let path = path.into();
            list.refusal(&Watched { path, outbox, stable_seconds: None, poll_seconds: None, origin })
        };
        assert_eq!(refusal("/srv/more", None), None);
        assert_eq!(refusal("/srv/more", Some("/srv/videos")), None);
        let refused = |path, outbox, with: &str| {
            let text = refusal(path, outbox).unwrap_or_default();
            assert!(text.contains(with), "{path}: {text}");
        };
        refused("/srv/in", None, "is watched already, as `/srv/in` (folders.inbox)");
        refused("/srv/in/sub", None, "lies in the watched folder `/srv/in`");
        refused("/srv", Some("/videos"), "the folder for videos `/srv/out` (folders.outbox) lies in");
        refused("/srv/out/in", None, "lies in the folder for videos `/srv/out` (folders.outbox)");
        refused("/srv/state/x", None, "overlap");
        refused("/srv/more", Some("/srv/more/videos"), "taken for pictures");
        refused("/srv/more", Some("/srv/in/videos"), "lies in the watched folder `/srv/in`");
        refused("/srv/more", Some("/srv/state/spool"), "`/srv/state/spool` (animctl folder add --outbox)");
        refused("/srv/out", Some("/videos"), "is where videos appear, by `/srv/out` (folders.outbox)");
        let root = |path: &str| watches.root_of(Path::new(path), None).path().to_owned();
        assert_eq!(root("/srv/in/a/b.png"), Path::new("/srv/in"));
        assert_eq!(root("/other/b.png"), Path::new("/other"));
        let target = Path::new("/other/done/a/b.png");
        let left = watches.root_of(Path::new("/other/a/b.png"), Some(target));
        assert_eq!(left.path(), Path::new("/other"));
    }
}
