//! A job's object on the bus. Public facts are properties; everything else is behind methods that check the caller.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd as StdOwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use animd_common::files::{open_regular, show};
use animd_common::users;
use zbus::message::Header;
use zbus::{Connection, OwnedFd, OwnedObjectPath, OwnedVariant, interface};

use super::describe::{self, Whole};
use super::error::BusError;
use super::facts::Card;
use super::options::{self, Options};
use super::rights::Action;
use super::{Hub, object_path};
use crate::store::ledger::{Job, State};
use crate::store::open_video;
use crate::store::pictures::Picture;

/// The object `/org/animd/Animd1/job/ID`.
pub struct JobObject {
    id: u64,
    owner: u32,
    card: Arc<Card>,
    hub: Arc<Hub>,
}

impl JobObject {
    pub(super) fn new(card: Arc<Card>, hub: Arc<Hub>) -> Self {
        let facts = card.facts();
        Self { id: facts.id, owner: facts.owner, card, hub }
    }

    async fn authorized(&self, header: &Header<'_>, connection: &Connection) -> Result<u32, BusError> {
        self.hub.rights.owner(connection, header, self.owner).await
    }

    async fn job(&self) -> Result<Job, BusError> {
        let id = self.id;
        let job = self.hub.ledger.call(move |db| db.job(id)).await?;
        job.ok_or_else(|| BusError::NotFound(format!("job {id} is no longer in the ledger")))
    }

    /// Opens one of the job's files for reading only.
    async fn open(
        &self,
        path: PathBuf,
        what: &str,
        open: impl FnOnce(&Path) -> io::Result<File> + Send + 'static,
    ) -> Result<OwnedFd, BusError> {
        let opened = tokio::task::spawn_blocking(move || open(&path).map_err(|e| (path, e)))
            .await
            .map_err(|_| BusError::stopping())?;
        match opened {
            Ok(file) => Ok(OwnedFd::from(StdOwnedFd::from(file))),
            Err((path, e)) => {
                Err(BusError::NotFound(format!("{what} `{}` cannot be opened: {e}", show(path))))
            }
        }
    }

    /// Opens the picture of a frame of the video.
    async fn open_frame(&self, frame: Picture) -> Result<OwnedFd, BusError> {
        let job = self.job().await?;
        match job.state {
            State::Done => {
                let what = format!("the {}", frame.name());
                self.open(self.hub.pictures.path(&job, frame), &what, open_own).await
            }
            State::Failed | State::Canceled => Err(BusError::of_job(&job)),
            _ => Err(Self::not_ready(&job, frame.name())),
        }
    }

    fn not_ready(job: &Job, what: &str) -> BusError {
        let has = if job.state.is_open() { "does not have a" } else { "no longer has a" };
        BusError::NotReady(format!("job {} is {}; it {has} {what}", job.id, job.state.name()))
    }
}

/// Opens a file in the service's own folder.
fn open_own(path: &Path) -> io::Result<File> {
    Ok(open_regular(path)?.0)
}

#[interface(name = "org.animd.Animd1.Job", introspection_docs = false)]
impl JobObject {
    async fn cancel(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), BusError> {
        let uid = self.authorized(&header, connection).await?;
        let id = self.id;
        if self.hub.queue.cancel(id, format!("cancelled by {}", users::name(uid))).await? {
            return Ok(());
        }
        let state = self.job().await?.state.name();
        Err(BusError::NotReady(format!("job {id} is {state}; there is nothing to cancel")))
    }

    #[zbus(out_args("description"))]
    async fn describe(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<HashMap<String, OwnedVariant>, BusError> {
        self.authorized(&header, connection).await?;
        let id = self.id;
        let found = self.hub.ledger.call(move |db| db.job(id)?.map(|job| Whole::of(job, db)).transpose());
        let whole = found.await?;
        let whole =
            whole.ok_or_else(|| BusError::NotFound(format!("job {id} is no longer in the ledger")))?;
        Ok(describe::description(whole))
    }

    #[zbus(out_args("video"))]
    async fn open_result(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedFd, BusError> {
        self.authorized(&header, connection).await?;
        let job = self.job().await?;
        match (job.state, job.output.clone()) {
            (State::Done, Some(path)) => {
                let (results, watches) = (self.hub.queue.results.clone(), self.hub.watches.clone());
                self.open(path, "the video", move |path| open_video(&results, &watches, path)).await
            }
            (State::Failed | State::Canceled, _) => Err(BusError::of_job(&job)),
            _ => Err(Self::not_ready(&job, "video")),
        }
    }

    #[zbus(out_args("image"))]
    async fn open_thumbnail(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedFd, BusError> {
        self.authorized(&header, connection).await?;
        self.open_frame(Picture::Thumbnail).await
    }

    #[zbus(out_args("image"))]
    async fn open_poster(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedFd, BusError> {
        self.authorized(&header, connection).await?;
        self.open_frame(Picture::Poster).await
    }

    #[zbus(out_args("image"))]
    async fn open_preview(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedFd, BusError> {
        self.authorized(&header, connection).await?;
        let job = self.job().await?;
        let path = self.hub.pictures.path(&job, Picture::Preview);
        match self.open(path, "the preview", open_own).await {
            Err(BusError::NotFound(_)) => Err(Self::not_ready(&job, "preview")),
            opened => opened,
        }
    }

    async fn set_priority(
        &self,
        priority: i32,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), BusError> {
        options::check_priority(priority)?;
        self.authorized(&header, connection).await?;
        // A priority up to 0, or up to the present one, takes nothing from other users' jobs and needs no permission.
        if priority > self.card.facts().priority.max(0) {
            self.hub.rights.check(connection, &header, Action::RaisePriority).await?;
        }
        Ok(self.hub.queue.set_priority(self.id, priority).await?)
    }

    #[zbus(out_args("job"))]
    async fn retry(
        &self,
        options: Options,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath, BusError> {
        let retry = options::retry(&options)?;
        self.authorized(&header, connection).await?;
        if self.card.facts().priority > 0 {
            self.hub.rights.check(connection, &header, Action::RaisePriority).await?;
        }
        let id = self.hub.queue.retry(self.id, retry).await?;
        self.hub.serve_id(connection, id).await?;
        Ok(object_path(id))
    }

    async fn forget(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), BusError> {
        self.authorized(&header, connection).await?;
        Ok(self.hub.queue.forget(self.id).await?)
    }

    async fn collected(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), BusError> {
        self.authorized(&header, connection).await?;
        Ok(self.hub.queue.collected(self.id).await?)
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn id(&self) -> u64 {
        self.id
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn owner(&self) -> u32 {
        self.owner
    }

    #[zbus(property)]
    fn state(&self) -> &'static str {
        self.card.facts().state.name()
    }

    #[zbus(property)]
    fn stage(&self) -> &'static str {
        self.card.facts().stage
    }

    #[zbus(property)]
    fn step(&self) -> (u32, u32) {
        self.card.facts().step
    }

    #[zbus(property)]
    fn progress(&self) -> f64 {
        self.card.facts().progress
    }

    #[zbus(property)]
    fn expected_end(&self) -> u64 {
        self.card.facts().expected_end
    }

    // The position of every waiting job changes with each job that starts, so that no signal is sent; callers can ask
    // for it.
    #[zbus(property(emits_changed_signal = "false"))]
    fn position(&self) -> u32 {
        self.hub.cards.position(&self.card.facts())
    }

    #[zbus(property)]
    fn priority(&self) -> i32 {
        self.card.facts().priority
    }
}
