//! Tests of how jobs end, from every point at which the machine may stop.

mod retry;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use animd_common::clock::now_us;
use animd_common::config::Config;
use animd_common::files::{self, Identity};
use animd_common::watch::names::{CANCELED, DONE, FAILED};
use animd_protocol::request::Settings;
use tokio::sync::watch;
use tokio::time::sleep;

use super::*;
use crate::recipes::Recipes;
use crate::store::ledger::{Added, NewJob, Source};

struct Place {
    _dir: tempfile::TempDir,
    delivery: Delivery,
    inbox: PathBuf,
}

fn place() -> Result<Place> {
    let dir = tempfile::tempdir().map_err(Error::file("make", "a folder"))?;
    let mut config = Config::default();
    config.folders.inbox = dir.path().join("inbox");
    config.folders.outbox = dir.path().join("outbox");
    config.folders.state = dir.path().join("state");
    for dir in [&config.folders.inbox, &config.folders.outbox] {
        fs::create_dir(dir).map_err(Error::file("create", dir))?;
    }
    let ledger = Ledger::open(&dir.path().join("ledger.db"))?;
    let watches = Watches::default();
    watches.configure(&config);
    let (inbox, state) = (config.folders.inbox.clone(), config.folders.state.clone());
    let config = CurrentConfig::new(config);
    let delivery = Delivery {
        defaults: Defaults::new(config.clone(), Recipes::default()),
        config,
        ledger,
        spool: Spool::open(dir.path().join("spool"))?,
        pictures: PictureFiles::new(&state),
        parts: PartFolders::new(&state),
        results: Results::new(&state),
        events: Events::default(),
        watches,
        waiting: Waiting::default(),
    };
    Ok(Place { _dir: dir, delivery, inbox })
}

/// What the engine reports of the "video" that the tests write.
fn report() -> Report {
    Report { bytes: 5, ..Report::default() }
}

impl Place {
    /// Returns a picture in the inbox and its job, claimed.
    fn running(&self) -> Result<Job> {
        let path = self.inbox.join("photo.png");
        fs::write(&path, animd_common::picture::TINY).map_err(Error::file("write", &path))?;
        let (_, meta) = files::open_regular(&path).map_err(Error::file("open", &path))?;
        self.queue(Source { path, identity: Identity::of(&meta), read_us: now_us() })
    }

    /// Returns the job of a picture in the inbox, claimed.
    fn queue(&self, source: Source) -> Result<Job> {
        let (file, _) = files::open_regular(&source.path).map_err(Error::file("open", &source.path))?;
        let spooled = self.delivery.spool.put(&file, "the picture")?;
        let new = NewJob {
            owner: 0,
            watched: true,
            idempotency_key: None,
            priority: 0,
            outbox: None,
            retry_of: None,
            per_user: u32::MAX,
            name: "photo.png".into(),
            source: Some(source),
            picture_bytes: spooled.bytes,
            last: None,
            parts_bytes: 0,
            work: Ok((spooled.sha256, Box::new(Settings::default().resolve(|| 7)?))),
        };
        self.claimed(new)
    }

    /// Queues and claims a job.
    fn claimed(&self, new: NewJob) -> Result<Job> {
        let added = self.delivery.ledger.call_blocking(move |db| db.add(&new, || true))?;
        let Added::New(id) = added else { panic!("{added:?}") };
        Ok(self.delivery.ledger.call_blocking(move |db| db.claim(id))?.expect("it was just queued"))
    }

    /// Returns a picture in the inbox and its job, up to the commit of `finishing`.
    fn finishing(&self) -> Result<Job> {
        let job = self.running()?;
        fs::write(self.delivery.part(&job), "video").map_err(Error::file("write", "part"))?;
        let ended = self.delivery.examine_blocking(&job, report())?;
        let target = self.delivery.source_target(&job, ended.outcome());
        let id = job.id;
        assert!(self.delivery.ledger.call_blocking(move |db| db.finishing(
            id,
            State::Running,
            &ended,
            target.as_deref()
        ))?);
        Ok(self.job(id))
    }

    fn outbox(&self) -> PathBuf {
        self.delivery.config.get().folders.outbox.clone()
    }

    fn job(&self, id: u64) -> Job {
        self.delivery.ledger.call_blocking(move |db| db.job(id)).expect("readable").expect("known")
    }

    fn names(&self, folder: &str) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.inbox.join(folder))
            .map(|dir| dir.flatten().filter(|e| e.path().is_file()).map(|e| show(e.file_name())).collect())
            .unwrap_or_default();
        names.sort();
        names
    }
}

#[test]
fn a_finishing_job_is_finished_from_every_point() -> Result<()> {
    // How far the delivery came before the power went: nothing; the rename; the rename and the move.
    for reached in 0..3 {
        let place = place()?;
        let job = place.finishing()?;
        let output = job.output.clone().expect("decided");
        if reached > 0 {
            fs::rename(place.delivery.part(&job), &output).map_err(Error::file("rename", &output))?;
        }
        if reached > 1 {
            let target = job.source_target.clone().expect("decided");
            fs::create_dir(place.inbox.join(DONE)).map_err(Error::file("create", DONE))?;
            fs::rename(place.inbox.join("photo.png"), &target).map_err(Error::file("rename", &target))?;
        }
        place.delivery.recover()?;
        assert_eq!(place.job(job.id).state, State::Done);
        assert_eq!(place.names("../outbox"), ["photo-7.mp4"]);
        assert_eq!((place.names(""), place.names(DONE)), (vec![], vec!["photo.png".to_owned()]));
        assert_eq!(place.names("../spool").len(), 1, "another try needs the picture");
    }
    Ok(())
}

#[test]
fn a_sidecar_follows_a_picture_that_had_been_moved() -> Result<()> {
    let place = place()?;
    let sidecar = place.inbox.join("photo.txt");
    fs::write(&sidecar, "a wave").map_err(Error::file("write", &sidecar))?;
    let job = place.finishing()?;
    let target = job.source_target.clone().expect("decided");
    fs::create_dir(place.inbox.join(DONE)).map_err(Error::file("create", DONE))?;
    fs::rename(place.inbox.join("photo.png"), &target).map_err(Error::file("rename", &target))?;
    place.delivery.recover()?;
    assert_eq!(place.names(DONE), ["photo.png", "photo.txt"]);
    assert_eq!(place.names(""), Vec::<String>::new());
    Ok(())
}

#[test]
fn a_name_that_is_taken_meanwhile_gets_a_number() -> Result<()> {
    let place = place()?;
    let job = place.finishing()?;
    fs::write(place.outbox().join("photo-7.mp4"), "a stranger's").map_err(Error::file("write", "x"))?;
    place.delivery.settle_blocking(job.id)?;
    assert_eq!(place.names("../outbox"), ["photo-7-2.mp4", "photo-7.mp4"]);
    assert_eq!(fs::read(place.outbox().join("photo-7.mp4")).ok().as_deref(), Some(&b"a stranger's"[..]));
    assert_eq!(place.job(job.id).output.as_deref(), Some(&*place.outbox().join("photo-7-2.mp4")));
    Ok(())
}

#[test]
fn a_video_that_its_outbox_refuses_is_kept() -> Result<()> {
    let place = place()?;
    let job = place.running()?;
    let part = place.delivery.part(&job);
    fs::write(&part, "video").map_err(Error::file("write", &part))?;
    let Ended::Done(mut done) = place.delivery.examine_blocking(&job, report())? else {
        panic!("the file is there")
    };
    // A name that no file system takes stands for an outbox that refuses.
    done.output = place.outbox().join("x".repeat(300)).with_extension("mp4");
    place.delivery.end_blocking(job.id, State::Running, &Ended::Done(done))?;
    let ended = place.job(job.id);
    assert_eq!(ended.state, State::Done);
    let video = ended.output.expect("kept");
    assert_eq!(video.parent(), Some(place.delivery.results.dir()));
    assert_eq!(fs::read(&video).ok().as_deref(), Some(&b"video"[..]));
    assert_eq!((place.names(DONE), place.names("../outbox")), (vec!["photo.png".to_owned()], vec![]));
    Ok(())
}

#[test]
fn a_video_waits_for_an_outbox_that_is_away() -> Result<()> {
    let place = place()?;
    let job = place.finishing()?;
    let (outbox, away) = (place.outbox(), place.inbox.with_file_name("away"));
    fs::rename(&outbox, &away).map_err(Error::file("rename", &outbox))?;
    place.delivery.recover()?;
    assert_eq!(place.job(job.id).state, State::Finishing);
    fs::rename(&away, &outbox).map_err(Error::file("rename", &away))?;
    place.delivery.recover()?;
    assert_eq!(place.job(job.id).state, State::Done);
    assert_eq!(place.names("../outbox"), ["photo-7.mp4"]);
    Ok(())
}

#[test]
fn an_empty_mount_point_is_no_outbox_whose_video_vanished() -> Result<()> {
    let place = place()?;
    let job = place.finishing()?;
    let (outbox, away) = (place.outbox(), place.inbox.with_file_name("away"));
    let rename = |from: &PathBuf, to: &PathBuf| fs::rename(from, to).map_err(Error::file("rename", from));
    rename(&outbox, &away)?;
    fs::create_dir(&outbox).map_err(Error::file("create", &outbox))?;
    place.delivery.recover()?;
    assert_eq!(place.job(job.id).state, State::Finishing);
    let told = place.delivery.waiting.sentence().unwrap_or_default();
    assert!(told.contains("another folder is in its place"), "{told}");
    fs::remove_dir(&outbox).map_err(Error::file("remove", &outbox))?;
    rename(&away, &outbox)?;
    place.delivery.recover()?;
    assert_eq!(place.job(job.id).state, State::Done);
    assert_eq!(place.names("../outbox"), ["photo-7.mp4"]);
    assert_eq!(place.delivery.waiting.sentence(), None);
    Ok(())
}

#[tokio::test]
async fn a_video_that_waits_can_be_cancelled() -> Result<()> {
    let (place, id) = blocking(|| {
        let place = place()?;
        let job = place.finishing()?;
        fs::rename(place.outbox(), place.inbox.with_file_name("away"))
            .map_err(Error::file("rename", "outbox"))?;
        place.delivery.settle_blocking(job.id)?;
        Ok::<_, Error>((place, job.id))
    })
    .await?;
    assert!(!place.delivery.abandon(id + 1, "by somebody".into()).await?);
    assert!(place.delivery.abandon(id, "by somebody".into()).await?);
    blocking(move || {
        let ended = place.job(id);
        assert_eq!((ended.state, ended.output), (State::Canceled, None));
        assert_eq!(place.delivery.waiting.sentence(), None);
        assert_eq!(place.names(CANCELED), ["photo.png"]);
        Ok(())
    })
    .await
}

#[test]
fn what_is_told_of_the_picture_is_what_happened() -> Result<()> {
    let place = place()?;
    let job = place.finishing()?;
    fs::write(place.inbox.join("photo.png"), "another picture").map_err(Error::file("write", "photo"))?;
    place.delivery.settle_blocking(job.id)?;
    assert_eq!(place.job(job.id).source_target, None, "it was not moved");
    Ok(())
}

#[test]
fn only_errors_that_may_pass_are_waited_for() {
    let error = |number: Errno| Error::file("create", "/outbox/x.mp4")(number.into());
    for passing in [Errno::ROFS, Errno::NOSPC, Errno::DQUOT, Errno::ACCESS, Errno::STALE, Errno::IO] {
        assert!(may_pass(&error(passing)), "{passing}");
    }
    for lasting in [Errno::NAMETOOLONG, Errno::INVAL, Errno::ILSEQ] {
        assert!(!may_pass(&error(lasting)), "{lasting}");
    }
    assert!(!may_pass(&Error::STOPPING));
}

#[tokio::test]
async fn a_video_is_delivered_when_its_outbox_is_back() -> Result<()> {
    let place = blocking(place).await?;
    let (outbox, away) = (place.outbox(), place.inbox.with_file_name("away"));
    let (place, id) = blocking(move || {
        let job = place.finishing()?;
        fs::rename(place.outbox(), place.inbox.with_file_name("away"))
            .map_err(Error::file("rename", "outbox"))?;
        place.delivery.recover()?;
        Ok::<_, Error>((place, job.id))
    })
    .await?;
    let (stop, stopped) = watch::channel(false);
    let waiting = tokio::spawn(deliver_waiting(place.delivery.clone(), Duration::from_millis(10), stopped));
    // The first look finds no outbox.
    sleep(Duration::from_millis(50)).await;
    let state = || place.delivery.ledger.call(move |db| Ok(db.job(id)?.map(|job| job.state)));
    assert_eq!(state().await?, Some(State::Finishing));
    fs::rename(&away, &outbox).map_err(Error::file("rename", &away))?;
    let start = std::time::Instant::now();
    while state().await? != Some(State::Done) {
        assert!(start.elapsed() < Duration::from_secs(60), "it is not delivered");
        sleep(Duration::from_millis(10)).await;
    }
    _ = stop.send(true);
    waiting.await.expect("it ends");
    assert_eq!(place.names("../outbox"), ["photo-7.mp4"]);
    Ok(())
}

#[test]
fn a_vanished_file_makes_the_job_run_again() -> Result<()> {
    let place = place()?;
    let job = place.finishing()?;
    fs::remove_file(place.delivery.part(&job)).map_err(Error::file("remove", "part"))?;
    place.delivery.recover()?;
    assert_eq!(place.job(job.id).state, State::Queued);
    assert_eq!((place.names("").len(), place.names("../spool").len()), (1, 1));
    Ok(())
}

#[test]
fn a_strangers_file_is_no_video() -> Result<()> {
    let place = place()?;
    let job = place.finishing()?;
    let output = job.output.clone().expect("decided");
    fs::remove_file(place.delivery.part(&job)).map_err(Error::file("remove", "part"))?;
    fs::write(&output, "a stranger's").map_err(Error::file("write", &output))?;
    place.delivery.recover()?;
    assert_eq!(place.job(job.id).state, State::Queued);
    assert_eq!(fs::read(&output).ok().as_deref(), Some(&b"a stranger's"[..]));
    Ok(())
}

#[test]
fn a_running_job_runs_again_until_it_is_hopeless() -> Result<()> {
    let place = place()?;
    let job = place.running()?;
    for n in 1..place.delivery.config.get().queue.interruptions {
        fs::write(place.delivery.part(&place.job(job.id)), "torn").map_err(Error::file("write", "part"))?;
        place.delivery.recover()?;
        assert_eq!((place.job(job.id).state, place.job(job.id).interruptions), (State::Queued, n));
        assert_eq!(place.names("../outbox"), Vec::<String>::new());
        place.delivery.ledger.call_blocking(move |db| db.claim(job.id))?;
    }
    place.delivery.recover()?;
    assert_eq!(place.job(job.id).error_code.as_deref(), Some("crashed"));
    assert_eq!(place.names(FAILED), ["photo.png", "photo.png.error.txt"]);
    Ok(())
}

#[test]
fn a_replaced_source_stays_where_it_is() -> Result<()> {
    let place = place()?;
    let job = place.finishing()?;
    fs::write(place.inbox.join("new"), "another picture").map_err(Error::file("write", "new"))?;
    fs::rename(place.inbox.join("new"), place.inbox.join("photo.png"))
        .map_err(Error::file("rename", "new"))?;
    place.delivery.settle_blocking(job.id)?;
    assert_eq!(place.job(job.id).state, State::Done);
    assert_eq!((place.names(""), place.names(DONE)), (vec!["photo.png".to_owned()], vec![]));
    Ok(())
}

#[test]
fn the_same_file_makes_one_job() -> Result<()> {
    let place = place()?;
    let job = place.running()?;
    let again = |place: &Place, mtime: i64| {
        let mut source = job.source.clone().expect("watched");
        source.identity.mtime_ns += mtime;
        let new = NewJob {
            owner: 0,
            watched: true,
            idempotency_key: None,
            priority: 0,
            outbox: None,
            retry_of: None,
            per_user: u32::MAX,
            name: "photo.png".into(),
            source: Some(source),
            picture_bytes: 0,
            last: None,
            parts_bytes: 0,
            work: Ok((
                job.image_sha256.expect("spooled"),
                Box::new(Settings::default().resolve(|| 99).expect("valid")),
            )),
        };
        place.delivery.ledger.call_blocking(move |db| db.add(&new, || true)).expect("writable")
    };
    assert_eq!(again(&place, 0), Added::Known(job.id));
    // Touched, or copied once more with the same contents.
    assert_eq!(again(&place, 1), Added::Known(job.id));
    Ok(())
}
