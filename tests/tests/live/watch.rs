//! Watched folders: many of them, with subfolders, polled, renamed and flooded.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::harness::{House, PICTURE, files};

/// Writes a picture unlike any other to a path below the house.
fn put(house: &House, path: &str) {
    fs::write(house.path(path), [PICTURE, path.as_bytes()].concat()).unwrap();
}

fn jobs(house: &House) -> Option<i64> {
    house.number("SELECT count(*) FROM job")
}

/// Waits until the service has looked at everything once more.
fn settle(house: &House, name: &str) {
    let before = jobs(house).unwrap();
    put(house, &format!("inbox/{name}.png"));
    house.until("another picture is taken", |house| jobs(house) > Some(before));
}

#[test]
fn subfolders_have_settings_and_keep_their_place() {
    let house = House::started("");
    fs::write(house.path("inbox/folder.toml"), "seed = 1\nframes = 5\nsteps = 4\n").unwrap();
    put(&house, "inbox/top.png");
    house.until_ended(1);
    // These folders are made while the service runs, and get files at once.
    fs::create_dir_all(house.path("new/a/b")).unwrap();
    fs::write(house.path("new/a/folder.toml"), "seed = 2\n").unwrap();
    fs::write(house.path("new/a/b/deep.txt"), "a wave").unwrap();
    put(&house, "new/a/b/deep.png");
    put(&house, "new/a/near.png");
    fs::rename(house.path("new/a"), house.path("inbox/a")).unwrap();
    house.until_ended(3);
    assert_eq!(house.files("outbox"), ["top-1.mp4"]);
    assert_eq!(house.files("outbox/a"), ["near-2.mp4"]);
    assert_eq!(house.files("outbox/a/b"), ["deep-2.mp4"]);
    assert_eq!(house.files("inbox/done/a/b"), ["deep.png", "deep.txt"]);
    assert_eq!(house.files("inbox/done/a"), ["near.png"]);
    assert_eq!(house.files("inbox/a"), ["folder.toml"]);
    assert_eq!(house.number("SELECT count(*) FROM job WHERE frames = 5 AND steps = 4"), Some(3));
    assert_eq!(
        house.text("SELECT settings_json ->> 'prompt' FROM job WHERE CAST(name AS TEXT) = 'deep.png'"),
        "a wave"
    );
    // A folder made after that, and a mistake in it.
    fs::create_dir(house.path("inbox/a/c")).unwrap();
    fs::write(house.path("inbox/a/c/folder.toml"), "\nsteeps = 3\n").unwrap();
    put(&house, "inbox/a/c/bad.png");
    house.until_ended(4);
    let note = fs::read_to_string(house.path("inbox/failed/a/c/bad.png.error.txt")).unwrap();
    assert_eq!(note, "a/c/folder.toml:2: unknown key `steeps`; did you mean `steps`?\n");
}

#[test]
fn litter_links_and_what_is_done_are_not_looked_into() {
    let mut house = House::new("");
    for folder in ["@eaDir", ".stfolder", "done/sub", "failed", "$RECYCLE.BIN"] {
        fs::create_dir_all(house.path("inbox").join(folder)).unwrap();
        put(&house, &format!("inbox/{folder}/photo.png"));
    }
    fs::create_dir(house.path("elsewhere")).unwrap();
    put(&house, "elsewhere/photo.png");
    std::os::unix::fs::symlink(house.path("elsewhere"), house.path("inbox/link")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(house.path("inbox/socket.png")).unwrap();
    house.start();
    settle(&house, "last");
    house.until_ended(1);
    assert_eq!(jobs(&house), Some(1));
    let log = fs::read_to_string(house.path("log")).unwrap();
    assert!(log.contains("is a socket") && log.contains("is a symbolic link"), "{log}");
    assert_eq!(log.matches("is a socket").count(), 1);
}

#[test]
fn a_link_in_place_of_a_folder_leads_nowhere() {
    let mut house = House::new("poll_seconds = 0.3\n");
    fs::create_dir_all(house.path("inbox/sub")).unwrap();
    fs::create_dir(house.path("elsewhere")).unwrap();
    put(&house, "elsewhere/photo.png");
    // No picture is moved away through a link.
    std::os::unix::fs::symlink(house.path("elsewhere"), house.path("inbox/done")).unwrap();
    put(&house, "inbox/sub/first.png");
    house.start();
    house.until("it says so", |house| {
        fs::read_to_string(house.path("log")).unwrap().contains("a symbolic link or a file is in the place")
    });
    assert_eq!(jobs(&house), Some(0));
    fs::remove_file(house.path("inbox/done")).unwrap();
    house.until_ended(1);
    assert_eq!(house.files("inbox/done/sub"), ["first.png"]);
    // No picture is found through a link: the folder's watch reports a name that leads elsewhere by now.
    let pid = rustix::process::Pid::from_raw(house.pid() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    fs::rename(house.path("inbox/sub"), house.path("old")).unwrap();
    std::os::unix::fs::symlink(house.path("elsewhere"), house.path("inbox/sub")).unwrap();
    put(&house, "old/photo.png");
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    settle(&house, "last");
    house.until_ended(2);
    assert_eq!(jobs(&house), Some(2));
    assert_eq!(house.files("elsewhere"), ["photo.png"]);
}

#[test]
fn many_folders_polled_or_not_follow_a_reload() {
    let watch = |name: &str, more: &str| {
        format!("[[watch]]\npath = \"{name}\"\noutbox = \"videos-{name}\"\nstable_seconds = 0.2\n{more}")
    };
    let mut house = House::new(&[watch("one", ""), watch("two", "poll_seconds = 0.2\n")].concat());
    for folder in ["one", "two", "three"] {
        fs::create_dir_all(house.path(folder).join("sub")).unwrap();
    }
    house.start();
    for folder in ["one", "two"] {
        put(&house, &format!("{folder}/a.png"));
        put(&house, &format!("{folder}/sub/b.png"));
    }
    put(&house, "inbox/c.png");
    house.until_ended(5);
    for folder in ["one", "two"] {
        assert_eq!(house.files(&format!("{folder}/done")), ["a.png"]);
        assert_eq!(house.files(&format!("{folder}/done/sub")), ["b.png"]);
        assert_eq!(house.files(&format!("videos-{folder}")).len(), 1);
        assert_eq!(house.files(&format!("videos-{folder}/sub")).len(), 1);
    }
    let log = fs::read_to_string(house.path("log")).unwrap();
    assert!(log.contains("two` is scanned every 200ms, as configured"), "{log}");
    // `one` goes, `three` comes.
    house.configure(&[watch("two", "poll_seconds = 0.2\n"), watch("three", "")].concat());
    house.write_config();
    let pid = rustix::process::Pid::from_raw(house.pid() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    put(&house, "three/d.png");
    house.until_ended(6);
    put(&house, "one/e.png");
    put(&house, "two/f.png");
    house.until_ended(7);
    settle(&house, "last");
    house.until_ended(8);
    assert_eq!((house.files("one"), jobs(&house)), (vec!["e.png".to_owned()], Some(8)));
}

#[tokio::test]
async fn folders_come_and_go_over_the_bus_and_outlive_a_restart() {
    let mut house = House::started("");
    for folder in ["more", "inbox/sub", "more/sub", "closed/inner"] {
        fs::create_dir_all(house.path(folder)).unwrap();
    }
    let manager = house.manager().await;
    let dir = house.dir.path().to_owned();
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let refused = async |name: &str, options: HashMap<&str, zbus::Variant<'_>>, with: &str| {
        let error = manager.add_watch(&path(name), options).await.unwrap_err().to_string();
        assert!(error.contains(with), "{name}: {error}");
    };
    refused("inbox", HashMap::new(), "is watched already").await;
    refused("inbox/sub", HashMap::new(), "whose subfolders are watched with it").await;
    refused("nowhere", HashMap::new(), "does not exist").await;
    refused("state", HashMap::new(), "overlap").await;
    refused("outbox", HashMap::new(), "taken for pictures").await;
    let inside = path("more/videos");
    refused("more", HashMap::from([("outbox", inside.as_str().into())]), "taken for pictures").await;
    refused("more", HashMap::from([("poll", 1.0.into())]), "poll_seconds").await;
    let quick = || HashMap::from([("stable_seconds", 0.2.into())]);
    put(&house, "more/early.png");
    manager.add_watch(&path("more"), quick()).await.unwrap();
    house.until_ended(1);
    assert_eq!(house.files("more/done"), ["early.png"]);
    refused("more/sub", quick(), "whose subfolders are watched with it").await;
    let listed = manager.watches().await.unwrap();
    assert_eq!(listed.len(), 2);
    assert!(listed[1]["path"] == zbus::Variant::from(path("more")).try_into_owned().unwrap());
    // A picture below a watched folder can be named in a call, and the watch still handles it.
    put(&house, "more/sub/named.png");
    manager.submit_path(&path("more/sub/named.png"), HashMap::new()).await.unwrap();
    house.until_ended(2);
    house.until("it is moved", |house| !house.files("more/done/sub").is_empty());
    drop(manager);
    house.stop();
    put(&house, "more/late.png");
    house.start();
    house.until_ended(3);
    let manager = house.manager().await;
    let error = manager.remove_watch(&path("inbox")).await.unwrap_err().to_string();
    assert!(error.contains("named in the configuration"), "{error}");
    manager.remove_watch(&path("more")).await.unwrap();
    put(&house, "more/never.png");
    settle(&house, "last");
    house.until_ended(4);
    assert_eq!((house.files("more"), jobs(&house)), (vec!["never.png".to_owned()], Some(4)));
}

#[test]
fn a_picture_renamed_while_it_waits_has_one_job() {
    let house = House::started("");
    house.drop_picture("busy.png", Some("slow=20"));
    house.until("it is queued", |house| jobs(house) == Some(1));
    fs::create_dir(house.path("inbox/old")).unwrap();
    put(&house, "inbox/old/a.png");
    put(&house, "inbox/b.png");
    house.until("all are queued", |house| jobs(house) == Some(3));
    fs::rename(house.path("inbox/old"), house.path("inbox/new")).unwrap();
    fs::rename(house.path("inbox/b.png"), house.path("inbox/c.png")).unwrap();
    house.until_ended(3);
    settle(&house, "last");
    house.until_ended(4);
    assert_eq!(jobs(&house), Some(4));
    assert_eq!(house.files("inbox/done/new"), ["a.png"]);
    assert_eq!(house.files("inbox/done"), ["busy.png", "busy.txt", "c.png", "last.png"]);
}

#[test]
fn a_late_sidecar_counts_or_is_another_wish() {
    let house = House::started("");
    house.drop_picture("busy.png", Some("slow=50"));
    house.until("it runs", |house| {
        house.number("SELECT count(*) FROM job WHERE state = 'running'") == Some(1)
    });
    put(&house, "inbox/late.png");
    put(&house, "inbox/wrong.png");
    house.until("all are queued", |house| jobs(house) == Some(3));
    fs::write(house.path("inbox/late.txt"), "a late wave").unwrap();
    fs::write(house.path("inbox/wrong.toml"), "steeps = 1\n").unwrap();
    // The sidecar is too late for the running job: another job follows. One that says the same changes nothing.
    fs::write(house.path("inbox/busy.toml"), "seed = 5\n").unwrap();
    fs::write(house.path("inbox/busy.txt"), "slow=50").unwrap();
    house.until_ended(4);
    assert_eq!(
        house.text("SELECT settings_json ->> 'prompt' FROM job WHERE CAST(name AS TEXT) = 'late.png'"),
        "a late wave"
    );
    house.until("all are moved", |house| house.files("inbox").is_empty());
    assert_eq!(house.files("inbox/done"), ["busy.png", "busy.toml", "busy.txt", "late.png", "late.txt"]);
    assert_eq!(
        house.number("SELECT count(*) FROM job WHERE CAST(name AS TEXT) = 'busy.png' AND state = 'done'"),
        Some(2)
    );
    let note = fs::read_to_string(house.path("inbox/failed/wrong.png.error.txt")).unwrap();
    assert!(note.starts_with("wrong.toml:1: unknown key `steeps`"), "{note}");
    assert_eq!(jobs(&house), Some(4));
}

#[test]
fn a_sidecar_written_again_is_no_other_wish() {
    let house = House::started("");
    house.drop_picture("photo.png", Some("slow=30"));
    house.until("it runs", |house| {
        house.number("SELECT count(*) FROM job WHERE state = 'running'") == Some(1)
    });
    fs::write(house.path("inbox/photo.txt"), "slow=30\n").unwrap();
    fs::copy(house.path("inbox/photo.png"), house.path("copy")).unwrap();
    fs::rename(house.path("copy"), house.path("inbox/photo.png")).unwrap();
    house.until_ended(1);
    settle(&house, "last");
    house.until_ended(2);
    assert_eq!(house.files("inbox/done"), ["last.png", "photo.png", "photo.txt"]);
    assert_eq!(jobs(&house), Some(2));
}

#[test]
fn odd_files_are_taken_or_refused_once() {
    let house = House::started("[defaults]\nseed = 7\n");
    // The name is as long as it can be: no sidecar's ending and no number fits after it.
    let long = format!("{}.png", "x".repeat(251));
    put(&house, &format!("inbox/{long}"));
    house.until_ended(1);
    assert_eq!(house.files("inbox/done"), std::slice::from_ref(&long));
    put(&house, &format!("inbox/{long}"));
    house.until_ended(2);
    let done = house.files("inbox/done");
    assert!(
        done.len() == 2 && done.iter().all(|name| name.len() == 255 && name.ends_with(".png")),
        "{done:?}"
    );
    let bad = format!("{}.png", "y".repeat(251));
    fs::write(house.path(&format!("inbox/{bad}")), "no picture").unwrap();
    house.until_ended(3);
    assert_eq!(house.files("inbox/failed").len(), 2);
    // The picture is gone before the service looks at it.
    put(&house, "inbox/gone.png");
    fs::remove_file(house.path("inbox/gone.png")).unwrap();
    // Two names of one file are one job at a time.
    put(&house, "twice.png");
    fs::hard_link(house.path("twice.png"), house.path("inbox/one.png")).unwrap();
    fs::hard_link(house.path("twice.png"), house.path("inbox/two.png")).unwrap();
    house.until("one is taken", |house| jobs(house) >= Some(4));
    settle(&house, "last");
    house.until_ended(5);
    assert_eq!(jobs(&house), Some(5));
    assert_eq!(house.files("inbox").len(), 1, "the other name is another wish, for later");
}

#[test]
fn a_flood_is_queued_exactly_once() {
    const MANY: i64 = 2000;
    let mut house = House::new("");
    house.set_env("SIM_START", "model");
    house.start();
    fs::create_dir_all(house.path("flood/sub")).unwrap();
    for n in 0..MANY {
        put(&house, &format!("flood/{}{n}.png", if n % 2 == 0 { "sub/" } else { "" }));
    }
    // The folder is moved in as a whole and found by a scan; then its files are written once more, each with an event.
    fs::rename(house.path("flood"), house.path("inbox/flood")).unwrap();
    for n in (0..MANY).step_by(3) {
        put(&house, &format!("inbox/flood/{}{n}.png", if n % 2 == 0 { "sub/" } else { "" }));
    }
    house.until("all are queued", |house| jobs(house) >= Some(MANY));
    settle(&house, "last");
    assert_eq!(jobs(&house), Some(MANY + 1));
    assert_eq!(house.number("SELECT count(DISTINCT source_path) FROM job"), Some(MANY + 1));
}

#[test]
fn lost_events_are_made_up_for() {
    // The kernel keeps 16,384 events, and a file makes two.
    const MANY: i64 = 9000;
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    if limit.trim().parse::<i64>().unwrap() > 2 * MANY - 1000 {
        return;
    }
    let mut house = House::new("");
    house.set_env("SIM_START", "model");
    house.start();
    let pid = rustix::process::Pid::from_raw(house.pid() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    for n in 0..MANY {
        put(&house, &format!("inbox/{n}.png"));
    }
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    house.until("all are queued", |house| jobs(house) >= Some(MANY));
    settle(&house, "last");
    assert_eq!(jobs(&house), Some(MANY + 1));
    assert_eq!(house.number("SELECT count(DISTINCT source_path) FROM job"), Some(MANY + 1));
    assert!(fs::read_to_string(house.path("log")).unwrap().contains("were lost"));
}

/// The limit of inotify watches, the kernel's or a container's, is reached. The test runs only where a user namespace
/// can be made.
#[test]
fn without_watches_folders_are_polled() {
    let limit = "echo 2 > /proc/sys/user/max_inotify_watches && exec \"$0\" \"$@\"";
    let wrap = ["unshare", "--user", "--map-current-user", "sh", "-c", limit];
    if !std::process::Command::new(wrap[0]).args(&wrap[1..]).arg("true").status().is_ok_and(|s| s.success()) {
        return;
    }
    let mut house = House::new("");
    house.wrap(&wrap);
    house.configure("poll_seconds = 0.3\n");
    fs::create_dir_all(house.path("inbox/a/b")).unwrap();
    house.start();
    house.until("it says so", |house| {
        fs::read_to_string(house.path("log")).unwrap().contains("raise fs.inotify.max_user_watches")
    });
    put(&house, "inbox/a/b/photo.png");
    house.until_ended(1);
    assert_eq!(house.files("inbox/done/a/b"), ["photo.png"]);
}

#[test]
fn a_folder_that_disappears_is_waited_for() {
    let mut house = House::new("[[watch]]\npath = \"disk\"\nstable_seconds = 0.2\npoll_seconds = 0.3\n");
    house.start();
    house.until("its absence is said", |house| {
        fs::read_to_string(house.path("log")).unwrap().contains("disk` does not exist")
    });
    fs::create_dir(house.path("disk")).unwrap();
    put(&house, "disk/a.png");
    house.until_ended(1);
    fs::rename(house.path("disk"), house.path("away")).unwrap();
    put(&house, "away/b.png");
    fs::rename(house.path("away"), house.path("disk")).unwrap();
    house.until_ended(2);
    assert_eq!(house.files("disk/done"), ["a.png", "b.png"]);
    // The inbox is the service's own, so it is made again.
    fs::remove_dir_all(house.path("inbox")).unwrap();
    house.until("it is made again", |house| house.path("inbox/failed").exists());
    put(&house, "inbox/c.png");
    house.until_ended(3);
    assert_eq!(files(&house.path("inbox/done")), ["c.png"]);
}

/// The service runs as a user without root's rights. The test runs only as root.
#[test]
fn what_the_service_may_not_read_is_refused_in_words() {
    if rustix::process::geteuid().as_raw() != 0 {
        return;
    }
    let mut house = House::new("");
    house.run_as(65534);
    fs::set_permissions(house.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    for folder in ["inbox", "outbox", "model", "."] {
        std::os::unix::fs::chown(house.path(folder), Some(65534), Some(65534)).unwrap();
    }
    fs::set_permissions(house.path("inbox"), fs::Permissions::from_mode(0o1777)).unwrap();
    house.start();
    put(&house, "hidden.png");
    fs::set_permissions(house.path("hidden.png"), fs::Permissions::from_mode(0o600)).unwrap();
    // The folder is the service's own, so it may rename a file that it may not read.
    fs::rename(house.path("hidden.png"), house.path("inbox/hidden.png")).unwrap();
    house.until_ended(1);
    let note = fs::read_to_string(house.path("inbox/failed/hidden.png.error.txt")).unwrap();
    assert!(note.contains("may not be read by the service"), "{note}");
    // In another user's sticky subfolder the service may not even rename, but it can leave a note.
    fs::create_dir(house.path("inbox/theirs")).unwrap();
    fs::set_permissions(house.path("inbox/theirs"), fs::Permissions::from_mode(0o1777)).unwrap();
    put(&house, "hidden.png");
    fs::set_permissions(house.path("hidden.png"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(house.path("hidden.png"), house.path("inbox/theirs/hidden.png")).unwrap();
    house.until_ended(2);
    assert_eq!(house.files("inbox/theirs"), ["hidden.png", "hidden.png.error.txt"]);
    settle(&house, "last");
    house.until_ended(3);
    assert_eq!(jobs(&house), Some(3), "it is not taken again and again");
}
