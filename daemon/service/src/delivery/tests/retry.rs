//! Tests of where a picture goes when a retry of its job ends.

use super::*;

impl Place {
    /// Returns another try at an ended job, claimed.
    fn retry(&self, of: &Job) -> Result<Job> {
        let new = NewJob {
            owner: 0,
            watched: false,
            idempotency_key: None,
            priority: 0,
            outbox: None,
            retry_of: Some(of.id),
            per_user: u32::MAX,
            name: "photo.png".into(),
            source: None,
            picture_bytes: 0,
            last: None,
            parts_bytes: 0,
            work: Ok((of.image_sha256.expect("spooled"), Box::new(Settings::default().resolve(|| 7)?))),
        };
        self.claimed(new)
    }

    /// Ends a running job in this way.
    fn end(&self, job: &Job, outcome: Outcome) -> Result<()> {
        let ended = match outcome {
            Outcome::Done => {
                fs::write(self.delivery.part(job), "video").map_err(Error::file("write", "part"))?;
                self.delivery.examine_blocking(job, report())?
            }
            Outcome::Failed => {
                Ended::Failed { code: ErrorCode::Memory, text: format!("job {} failed", job.id) }
            }
            Outcome::Canceled => Ended::Canceled { text: "by somebody".into() },
        };
        assert!(self.delivery.end_blocking(job.id, State::Running, &ended)?);
        Ok(())
    }

    /// Returns a job that failed, whose picture and sidecar are in `failed`.
    fn failed(&self) -> Result<Job> {
        let sidecar = self.inbox.join("photo.txt");
        fs::write(&sidecar, "a wave").map_err(Error::file("write", &sidecar))?;
        let job = self.running()?;
        self.end(&job, Outcome::Failed)?;
        assert_eq!(self.names(FAILED), ["photo.png", "photo.png.error.txt", "photo.txt"]);
        Ok(self.job(job.id))
    }
}

#[test]
fn a_picture_goes_where_the_newest_try_at_it_ended() -> Result<()> {
    let place = place()?;
    let first = place.failed()?;
    let note = || fs::read_to_string(place.inbox.join(FAILED).join("photo.png.error.txt")).ok();
    // The first tries are of the first job, later ones of a try that was cancelled.
    let mut of = first.clone();
    for (outcome, folder) in [
        (Outcome::Failed, FAILED),
        (Outcome::Canceled, CANCELED),
        (Outcome::Canceled, CANCELED),
        (Outcome::Failed, FAILED),
        (Outcome::Done, DONE),
    ] {
        let retry = place.retry(&of)?;
        place.end(&retry, outcome)?;
        let mut there = vec!["photo.png", "photo.txt"];
        if outcome == Outcome::Failed {
            there.insert(1, "photo.png.error.txt");
            assert_eq!(note(), Some(format!("job {} failed\n", retry.id)));
        }
        for each in [DONE, FAILED, CANCELED] {
            let expected = if each == folder { there.clone() } else { Vec::new() };
            assert_eq!(place.names(each), expected, "{each} after {outcome:?}");
        }
        let ended = place.job(retry.id);
        assert_eq!(ended.source_target, Some(place.inbox.join(folder).join("photo.png")));
        if outcome == Outcome::Canceled {
            of = ended;
        }
    }
    // The video is there, whatever becomes of another one.
    place.end(&place.retry(&first)?, Outcome::Failed)?;
    assert_eq!(place.names(DONE), ["photo.png", "photo.txt"]);
    assert_eq!(place.names(FAILED), Vec::<String>::new());
    Ok(())
}

#[test]
fn a_retry_touches_no_picture_that_somebody_has_moved_or_replaced() -> Result<()> {
    for replaced in [true, false] {
        let place = place()?;
        let first = place.failed()?;
        let retry = place.retry(&first)?;
        let (there, elsewhere) = (place.inbox.join("failed/photo.png"), place.inbox.join("photo.png"));
        if replaced {
            fs::remove_file(&there).map_err(Error::file("remove", &there))?;
            fs::write(&there, "another picture").map_err(Error::file("write", &there))?;
        } else {
            fs::rename(&there, &elsewhere).map_err(Error::file("rename", &there))?;
        }
        let (before, waits) = (place.names(FAILED), place.names(""));
        place.end(&retry, Outcome::Done)?;
        assert_eq!((place.names(FAILED), place.names(""), place.names(DONE)), (before, waits, vec![]));
        assert_eq!(place.job(retry.id).source_target, None);
    }
    Ok(())
}

#[test]
fn a_picture_that_is_put_back_belongs_to_its_new_job() -> Result<()> {
    let place = place()?;
    let first = place.failed()?;
    let retry = place.retry(&first)?;
    fs::rename(place.inbox.join("failed/photo.png"), place.inbox.join("photo.png"))
        .map_err(Error::file("rename", "photo"))?;
    let source = first.source.clone().expect("it has a picture");
    let again = place.queue(source)?;
    place.end(&retry, Outcome::Done)?;
    assert_eq!((place.names(""), place.job(retry.id).source), (vec!["photo.png".to_owned()], None));
    place.end(&again, Outcome::Done)?;
    assert_eq!(place.names(DONE), ["photo.png"]);
    Ok(())
}

#[test]
fn a_retry_is_finished_from_every_point() -> Result<()> {
    // How far the delivery came before the power went: nothing; the picture; the picture with its sidecar.
    for reached in 0..3 {
        let place = place()?;
        let retry = place.retry(&place.failed()?)?;
        fs::write(place.delivery.part(&retry), "video").map_err(Error::file("write", "part"))?;
        let ended = place.delivery.examine_blocking(&retry, report())?;
        let id = retry.id;
        let job = place.delivery.ledger.call_blocking(move |db| db.adopt_source(id))?.expect("known");
        let target = place.delivery.source_target(&job, Outcome::Done);
        assert_eq!(target, Some(place.inbox.join("done/photo.png")));
        place
            .delivery
            .ledger
            .call_blocking(move |db| db.finishing(id, State::Running, &ended, target.as_deref()))?;
        let moved = ["photo.png", "photo.txt"];
        fs::create_dir(place.inbox.join(DONE)).map_err(Error::file("create", DONE))?;
        for name in &moved[..reached] {
            fs::rename(place.inbox.join(FAILED).join(name), place.inbox.join(DONE).join(name))
                .map_err(Error::file("rename", name))?;
        }
        place.delivery.recover()?;
        assert_eq!(place.job(id).state, State::Done);
        assert_eq!((place.names(FAILED), place.names(DONE)), (vec![], moved.map(str::to_owned).to_vec()));
    }
    Ok(())
}
