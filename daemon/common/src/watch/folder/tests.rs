//! When a picture in a folder that is polled counts as complete, on a clock that the tests move.

use std::collections::VecDeque;
use std::fs;

use tokio::sync::mpsc;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::sleep;

use super::*;

/// One hand-over: the second since the start, and the names.
type Handed = (u64, Vec<String>);

/// Gives each picture the next fate; when there is none left, everything is taken.
struct Recorder {
    start: Instant,
    fates: VecDeque<Fate>,
    handed: mpsc::UnboundedSender<Handed>,
    reports: mpsc::UnboundedSender<Report>,
}

impl Take for Recorder {
    async fn take(&mut self, pictures: &[Ready]) -> Vec<Fate> {
        let mut names: Vec<String> =
            pictures.iter().map(|ready| show(ready.path.file_name().unwrap_or_default())).collect();
        names.sort();
        _ = self.handed.send((self.start.elapsed().as_secs(), names));
        pictures.iter().map(|_| self.fates.pop_front().unwrap_or(Fate::Taken)).collect()
    }

    fn report(&mut self, report: &Report) {
        _ = self.reports.send(report.clone());
    }
}

/// A watched folder.
struct House {
    dir: tempfile::TempDir,
    handed: mpsc::UnboundedReceiver<Handed>,
    reports: mpsc::UnboundedReceiver<Report>,
    _stop: watch::Sender<bool>,
}

impl House {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("inbox").join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("written");
    }

    async fn handed(&mut self) -> Handed {
        self.handed.recv().await.expect("the folder is watched")
    }

    /// Returns what is handed over within so many seconds.
    async fn within(&mut self, seconds: u64) -> Option<Handed> {
        tokio::time::timeout(Duration::from_secs(seconds), self.handed.recv()).await.ok().flatten()
    }
}

/// Returns options with a poll every second; a picture must lie unchanged for five.
fn options(root: &Path) -> Options {
    Options {
        root: Root::alone(root),
        create: false,
        stable: Duration::ZERO,
        early: Duration::ZERO,
        poll_stable: Duration::from_secs(5),
        poll: Some(Duration::from_secs(1)),
        default_poll: Duration::from_secs(1),
        rescan: Duration::from_secs(1000),
    }
}

/// Watches a folder with these pictures, which get these answers.
async fn watched<const N: usize>(
    pictures: &[&str],
    fates: [Fate; N],
    change: impl FnOnce(&mut Options),
    test: impl AsyncFnOnce(House),
) {
    let dir = tempfile::tempdir().expect("a folder");
    let root = dir.path().join("inbox");
    fs::create_dir(&root).expect("made");
    let (sender, handed) = mpsc::unbounded_channel();
    let (reporter, reports) = mpsc::unbounded_channel();
    let (stop, stopped) = watch::channel(false);
    let recorder = Recorder { start: Instant::now(), fates: fates.into(), handed: sender, reports: reporter };
    let house = House { dir, handed, reports, _stop: stop };
    for name in pictures {
        house.write(name, "a picture");
    }
    let mut options = options(&root);
    change(&mut options);
    let tasks = LocalSet::new();
    tasks
        .run_until(async {
            spawn_local(Folder::new(options, recorder).run(stopped));
            test(house).await;
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_picture_at_rest_is_handed_over_once() {
    watched(
        &["a.png"],
        [],
        |_| (),
        async |mut house| {
            assert_eq!(house.handed().await, (5, vec!["a.png".into()]));
            assert_eq!(house.within(900).await, None);
        },
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_rescan_hands_over_what_still_lies_there() {
    watched(
        &["a.png"],
        [],
        |options| options.rescan = Duration::from_secs(60),
        async |mut house| {
            assert_eq!(house.handed().await.0, 5);
            assert_eq!(house.handed().await, (65, vec!["a.png".into()]));
        },
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn every_change_doubles_the_wait_up_to_its_limit() {
    watched(
        &["a.png"],
        [],
        |_| (),
        async |mut house| {
            for pause in [3, 7, 10] {
                sleep(Duration::from_secs(pause)).await;
                house.write("a.png", &"more".repeat(pause as usize));
            }
            // Changes are seen when it is looked at: after 5 seconds, after 10 more, and after 16 more, the longest.
            assert_eq!(house.handed().await.0, 5 + 10 + 16 + 16);
            assert_eq!(house.within(900).await, None);
        },
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_sidecar_that_is_being_written_holds_its_picture_back() {
    watched(
        &["a.png", "b.png"],
        [],
        |_| (),
        async |mut house| {
            sleep(Duration::from_secs(2)).await;
            house.write("a.txt", "a wave");
            assert_eq!(house.handed().await, (5, vec!["b.png".into()]));
            // One change, so twice the wait from when it was seen.
            assert_eq!(house.handed().await, (15, vec!["a.png".into()]));
        },
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_taken_is_tried_again() {
    let fates = [Fate::Waits, Fate::Later("the disk is full".into()), Fate::Changed];
    watched(
        &["a.png"],
        fates,
        |_| (),
        async |mut house| {
            assert_eq!(house.handed().await.0, 5);
            assert_eq!(house.handed().await.0, 35);
            assert_eq!(house.handed().await.0, 65);
            // What has changed must lie still again.
            assert_eq!(house.handed().await.0, 70);
            assert_eq!(house.within(900).await, None);
        },
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_flood_is_handed_over_in_batches() {
    let names: Vec<String> = (0..BATCH + 10).map(|n| format!("{n}.png")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    watched(
        &names,
        [],
        |_| (),
        async |mut house| {
            let (first, second) = (house.handed().await, house.handed().await);
            assert_eq!((first.0, first.1.len()), (5, BATCH));
            assert_eq!((second.0, second.1.len()), (5, 10));
        },
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_is_done_is_no_picture_that_waits() {
    watched(
        &[],
        [],
        |_| (),
        async |mut house| {
            // The folders are made by the watcher itself.
            _ = house.reports.recv().await;
            for name in ["done/a.png", "failed/b.png", ".hidden.png"] {
                house.write(name, "something");
            }
            fs::create_dir(house.path("trip")).expect("made");
            house.write("trip/c.png", "a picture");
            assert_eq!(house.handed().await.1, ["c.png"]);
            assert_eq!(house.within(900).await, None);
        },
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_folder_that_goes_away_is_told_of_and_looked_for() {
    watched(
        &["a.png"],
        [],
        |options| options.rescan = Duration::from_secs(20),
        async |mut house| {
            assert_eq!(house.handed().await.0, 5);
            let report = house.reports.recv().await.expect("a report");
            assert_eq!(report.polled, Some(Duration::from_secs(1)));
            assert_eq!(report.trouble, None);
            let (root, away) = (house.path(""), house.dir.path().join("away"));
            fs::rename(&root, &away).expect("renamed");
            let report = house.reports.recv().await.expect("a report");
            assert!(report.trouble.is_some_and(|trouble| trouble.contains("it is tried again")));
            fs::rename(&away, &root).expect("renamed");
            let report = house.reports.recv().await.expect("a report");
            assert_eq!(report.trouble, None);
            assert_eq!(house.handed().await.1, ["a.png"]);
        },
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_picture_whose_end_was_among_lost_events_is_not_waited_for() {
    let dir = tempfile::tempdir().expect("a folder");
    fs::write(dir.path().join("a.png"), "a picture").expect("written");
    let (sender, mut handed) = mpsc::unbounded_channel();
    let (reporter, _reports) = mpsc::unbounded_channel();
    let recorder =
        Recorder { start: Instant::now(), fates: VecDeque::new(), handed: sender, reports: reporter };
    let mut folder = Folder::new(options(dir.path()), recorder);
    assert!(!folder.see(Seen::Begun("a.png".into())), "its writer still has it");
    for second in [0, 6] {
        sleep(Duration::from_secs(second)).await;
        folder.look().await;
    }
    assert!(handed.try_recv().is_err());
    assert!(folder.see(Seen::Lost));
    folder.close_all();
    folder.look().await;
    assert_eq!(handed.try_recv().map(|(_, names)| names), Ok(vec!["a.png".into()]));
}
