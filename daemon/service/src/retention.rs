//! Removes what is kept for some days only. The service cleans up when it starts and then once a day.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use animd_common::clock::days_ago_us;
use animd_common::files::show;
use animd_common::tasks::blocking;
use animd_common::tasks::stopped;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::error::{Error, Result};
use crate::events::Change;
use crate::queue::Queue;
use crate::store::ledger::{Kind, Store};
use crate::store::sweep_spool;

const DAY: Duration = Duration::from_secs(86_400);
const HOUR: Duration = Duration::from_secs(3600);

/// Cleans up now and every day until `stop` turns true.
pub async fn run(queue: Queue, mut stop: watch::Receiver<bool>) {
    loop {
        if let Err(e) = clean(&queue).await {
            tracing::warn!("cannot delete what is too old; trying again tomorrow: {e}");
        }
        for _ in 0..24 {
            // The copy goes when something is forgotten.
            if let Err(e) = queue.ledger.call(Store::make_missing_copy).await {
                tracing::warn!("there is no copy of the ledger: {e}");
            }
            tokio::select! {
                () = sleep(HOUR) => {}
                () = stopped(&mut stop) => return,
            }
        }
    }
}

/// Removes what is older than `[retention]` says, and tidies the ledger's file.
///
/// # Errors
/// The error of the ledger or of a folder; what is left then stays until the next time.
pub async fn clean(queue: &Queue) -> Result<()> {
    let days = queue.config.get().retention.clone();
    let mut removed = drop_jobs(queue, days_ago_us(days.jobs_days)).await?;
    for (kind, days) in
        [(Kind::Step, days.steps_days), (Kind::Sample, days.samples_days), (Kind::Event, days.events_days)]
    {
        let before_us = days_ago_us(days);
        // Rows are removed in pieces, so that nobody waits long for the ledger.
        while queue.ledger.call(move |db| db.drop_old(kind, before_us)).await? {
            removed = true;
        }
    }
    let Queue { results, pictures, ledger, spool, .. } = queue.clone();
    blocking(move || {
        if days.results_days > 0 {
            drop_old_files(results.dir(), DAY * days.results_days, |_| true)?;
        }
        if days.pictures_days > 0 {
            // Posters are as large as the video and would become many; thumbnails go with their jobs.
            let is_poster = |name: &OsStr| name.as_bytes().ends_with(b"-poster.jpg");
            drop_old_files(pictures.dir(), DAY * days.pictures_days, is_poster)?;
        }
        for (id, video) in ledger.call_blocking(|db| db.kept_results())? {
            if fs::symlink_metadata(video).is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
                ledger.call_blocking(move |db| db.result_gone(id))?;
            }
        }
        sweep_spool(&ledger, &spool)
    })
    .await?;
    if removed {
        while queue.ledger.call(Store::shrink).await? {}
    }
    queue.ledger.call(Store::optimize).await?;
    queue.ledger.call(Store::make_copy).await
}

/// Forgets jobs that ended before `before_us`. Returns true if there were any.
async fn drop_jobs(queue: &Queue, before_us: i64) -> Result<bool> {
    let mut after = 0;
    let mut any = false;
    loop {
        let jobs = queue.ledger.call(move |db| db.jobs_ended_before(before_us, after)).await?;
        let Some(last) = jobs.last() else { return Ok(any) };
        after = last.id;
        for job in jobs {
            let id = job.id;
            queue.forget_files(job).await?;
            queue.events.tell(Change::State(id));
            any = true;
        }
    }
}

/// Removes the files of a folder that `which` selects and that are older than `age`.
fn drop_old_files(dir: &Path, age: Duration, which: impl Fn(&OsStr) -> bool) -> Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(Error::file("read", dir))?,
    };
    let now = SystemTime::now();
    for entry in entries.flatten().filter(|entry| which(&entry.file_name())) {
        let made = entry.metadata().and_then(|meta| meta.modified());
        if made.is_ok_and(|made| now.duration_since(made).is_ok_and(|old| old > age)) {
            tracing::debug!("`{}` is old and is removed", show(entry.path()));
            fs::remove_file(entry.path()).map_err(Error::file("remove", entry.path()))?;
        }
    }
    Ok(())
}
