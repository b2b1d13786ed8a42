//! Watched folders whose paths suddenly lead elsewhere, and folders that lie in each other.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{lchown, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::harness::{House, PICTURE, program};

/// The configuration of a user's watched folder, with an outbox of its own, which is polled often.
const ANN: &str = "poll_seconds = 0.2\nrescan_seconds = 1\n[[watch]]\npath = \"ann/pictures\"\noutbox = \"videos/ann\"\n\
                   stable_seconds = 0.2\n";

/// Writes a picture unlike any other to a path below the house.
fn put(house: &House, path: &str) {
    fs::write(house.path(path), [PICTURE, path.as_bytes()].concat()).unwrap();
}

/// Makes the user's folder, and another one of the same names with a private picture.
fn furnish(house: &House) {
    for folder in ["ann/pictures", "trap/pictures", "videos"] {
        fs::create_dir_all(house.path(folder)).unwrap();
    }
    put(house, "trap/theirs.png");
    put(house, "trap/pictures/theirs.png");
}

/// Puts a link in a folder's place and the folder at `away`, atomically.
fn swap(house: &House, path: &str, target: &str) {
    symlink(house.path(target), house.path("away")).unwrap();
    exchange(&house.path(path), &house.path("away"));
}

fn swap_back(house: &House, path: &str) {
    exchange(&house.path(path), &house.path("away"));
    fs::remove_file(house.path("away")).unwrap();
}

fn exchange(one: &Path, other: &Path) {
    renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).unwrap();
}

/// Returns the paths of everything below a folder, except the ledger's own files.
fn below(house: &House, folder: &str) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    let mut folders = vec![house.path(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() && !path.is_symlink() {
                folders.push(path.clone());
            }
            let name = path.strip_prefix(house.dir.path()).unwrap().to_str().unwrap().to_owned();
            if !name.contains("ledger.db") {
                all.insert(name);
            }
        }
    }
    all
}

/// Returns the trouble with the user's folder, from `animctl folder list`.
fn trouble(house: &House) -> String {
    let listed = house.json(&["folder", "list"]);
    let ann =
        listed.as_array().unwrap().iter().find(|f| f["path"].as_str().unwrap().ends_with("ann/pictures"));
    ann.unwrap()["trouble"].as_str().unwrap_or_default().to_owned()
}

fn jobs(house: &House) -> i64 {
    house.number("SELECT count(*) FROM job").unwrap()
}

/// Waits until the service has looked at the inbox once more.
fn settle(house: &House, name: &str) {
    let before = jobs(house);
    put(house, &format!("inbox/{name}.png"));
    house.until("another picture is taken", |house| jobs(house) > before);
}

/// Returns a paused service, with another user's picture waiting in its spool.
fn with_a_waiting_picture() -> House {
    let mut house = House::new(ANN);
    furnish(&house);
    house.start();
    assert!(house.animctl(&["pause"]).status.success());
    let picture = house.picture();
    assert!(house.animctl(&["submit", &picture, "-p", "a secret"]).status.success());
    assert_eq!(house.files("state/spool").len(), 1);
    house
}

/// Returns the exit code of a service that does not start.
fn exit_code(house: &mut House) -> Option<i32> {
    house.spawn();
    let start = Instant::now();
    loop {
        match house.exited() {
            None if start.elapsed() < Duration::from_secs(60) => {
                std::thread::sleep(Duration::from_millis(20));
            }
            code => return code,
        }
    }
}

#[test]
fn a_folder_swapped_for_a_link_is_not_used_until_it_is_back() {
    let house = with_a_waiting_picture();
    let before = (below(&house, "state"), below(&house, "trap"));
    put(&house, "ann/pictures/first.png");
    house.until("it is taken", |house| jobs(house) == 2);
    let mut known = below(&house, "state/spool").len();
    for (n, (path, target, with)) in [
        ("ann/pictures", "state/spool", "(folders.state"),
        ("ann/pictures", "state", "(folders.state"),
        ("ann/pictures", "outbox", "(folders.outbox"),
        ("ann/pictures", "inbox", "(folders.inbox"),
        ("ann/pictures", ".", "(folders."),
        ("ann/pictures", "trap", "leads to another folder now"),
        ("ann", "trap", "leads to another folder now"),
    ]
    .into_iter()
    .enumerate()
    {
        swap(&house, path, target);
        house.until(&format!("{path} leads to {target}, and that is told"), |house| {
            trouble(house).contains(with)
        });
        house.until("the state tells of it", |house| {
            let state = house.json(&["status"]);
            state["state_text"]
                .as_str()
                .unwrap()
                .contains("a watched folder is not used, because its path leads")
        });
        let doctor = String::from_utf8(house.animctl(&["doctor"]).stdout).unwrap();
        let found = doctor.lines().find(|line| line.contains("ann/pictures` is not used"));
        assert!(found.is_some_and(|line| line.starts_with("warn  watched folder")), "{doctor}");
        let pictures = house.path(if path == "ann" { "away/pictures" } else { "away" });
        fs::write(pictures.join(format!("{n}.png")), [PICTURE, &[n as u8]].concat()).unwrap();
        // The service polls the folder five times a second.
        settle(&house, &format!("a{n}"));
        settle(&house, &format!("b{n}"));
        known += 2;
        assert_eq!(below(&house, "state/spool").len(), known, "{path} to {target}");
        assert_eq!(below(&house, "trap"), before.1);
        swap_back(&house, path);
        house.until("it is used again", |house| trouble(house).is_empty());
        house.until("what came meanwhile is taken", |house| below(house, "state/spool").len() == known + 1);
        known += 1;
    }
    // Everything that was there is there, and nothing is new but copies of pictures.
    let state = below(&house, "state");
    assert!(before.0.is_subset(&state), "{state:?}");
    assert!(state.difference(&before.0).all(|path| path.starts_with("state/spool/")), "{state:?}");
    let log = fs::read_to_string(house.path("log")).unwrap();
    let told = log.lines().filter(|line| line.contains("is not used: ")).count();
    assert_eq!(told, 7, "once each: {log}");
    // The service goes on working, and only with what was dropped.
    // One picture waits from the beginning, two each time are in the inbox, and the rest is the user's.
    let count = 1 + 2 * 7 + 8;
    house.until("all are queued", |house| jobs(house) == count);
    assert!(house.animctl(&["resume"]).status.success());
    house.until_ended(count);
    assert_eq!(house.files("ann/pictures/done").len(), 8);
    assert_eq!(house.files("videos/ann").len(), 8);
    assert_eq!(house.number("SELECT count(*) FROM job WHERE state = 'done'"), Some(count));
    assert!(!house.path("trap/done").exists() && !house.path("trap/pictures/done").exists());
}

/// The owner of the link matters: an administrator's link is a mistake in the configuration, a user's link is an
/// attack, which must not keep the service from starting. Only root can give links away.
#[test]
fn a_folder_swapped_before_the_start_is_told_or_refused() {
    let mut house = with_a_waiting_picture();
    house.stop();
    let before = below(&house, "state");
    for target in ["state", "state/spool"] {
        swap(&house, "ann/pictures", target);
        assert_eq!(exit_code(&mut house), Some(78));
        let log = fs::read_to_string(house.path("log")).unwrap();
        let said = log.lines().last().unwrap();
        assert!(said.contains("(watch.path; it leads to `") && said.contains("(folders.state"), "{said}");
        if rustix::process::geteuid().is_root() {
            lchown(house.path("ann/pictures"), Some(1), Some(1)).unwrap();
            house.start();
            house.until("it is told", |house| trouble(house).contains("of user 1 leads to `"));
            settle(&house, &target.replace('/', "-"));
            swap_back(&house, "ann/pictures");
            house.until("it is used", |house| trouble(house).is_empty());
            house.stop();
        } else {
            swap_back(&house, "ann/pictures");
        }
    }
    let after = below(&house, "state");
    assert!(before.is_subset(&after), "{after:?}");
    assert!(after.difference(&before).all(|path| path.starts_with("state/spool/")), "{after:?}");
    house.start();
    put(&house, "ann/pictures/a.png");
    assert!(house.animctl(&["resume"]).status.success());
    house.until("it is made", |house| house.files("ann/pictures/done") == ["a.png"]);
}

#[test]
fn no_picture_is_put_away_through_a_swapped_folder() {
    let mut house = House::new(ANN);
    furnish(&house);
    house.start();
    assert!(house.animctl(&["pause"]).status.success());
    fs::write(house.path("ann/pictures/bad.txt"), "fail").unwrap();
    fs::write(house.path("ann/pictures/a.txt"), "a wave").unwrap();
    put(&house, "ann/pictures/a.png");
    put(&house, "ann/pictures/bad.png");
    house.until("both are queued", |house| jobs(house) == 2);
    // The files have the same names, so that they could be taken for each other.
    for name in ["a.png", "bad.png", "a.txt"] {
        put(&house, &format!("trap/pictures/{name}"));
    }
    let before = below(&house, "trap");
    swap(&house, "ann", "trap");
    assert!(house.animctl(&["resume"]).status.success());
    house.until_ended(2);
    assert_eq!(below(&house, "trap"), before);
    assert_eq!(house.files("away/pictures"), ["a.png", "a.txt", "bad.png", "bad.txt"]);
    swap_back(&house, "ann");
    house.until("the pictures are put away", |house| house.files("ann/pictures").is_empty());
    assert_eq!(house.files("ann/pictures/done"), ["a.png", "a.txt"]);
    assert_eq!(house.files("ann/pictures/failed"), ["bad.png", "bad.png.error.txt", "bad.txt"]);
    assert_eq!(jobs(&house), 2);
}

#[tokio::test]
async fn a_path_through_a_swapped_folder_is_not_submitted() {
    let house = with_a_waiting_picture();
    let manager = house.manager().await;
    let submit = async |name: &str| {
        let path = house.path("ann/pictures").join(name).to_str().unwrap().to_owned();
        manager
            .submit_path(&path, std::collections::HashMap::new())
            .await
            .map(|_| ())
            .map_err(|e| e.to_string())
    };
    let theirs = house.files("state/spool").remove(0);
    for (path, target, name) in [
        ("ann/pictures", "state/spool", &*theirs),
        ("ann/pictures", "trap", "theirs.png"),
        ("ann", "trap", "theirs.png"),
    ] {
        swap(&house, path, target);
        let said = submit(name).await.unwrap_err();
        assert!(said.contains("its path leads elsewhere"), "{said}");
        swap_back(&house, path);
    }
    assert_eq!((jobs(&house), house.files("state/spool").len()), (1, 1));
    put(&house, "ann/pictures/ours.png");
    submit("ours.png").await.unwrap();
    assert_eq!(jobs(&house), 2);
}

#[test]
fn a_swapped_outbox_gets_no_video() {
    let mut house =
        House::new("[[watch]]\npath = \"ann/pictures\"\noutbox = \"ann/videos\"\nstable_seconds = 0.2\n");
    furnish(&house);
    house.start();
    let before = below(&house, "state");
    let swapped = |house: &House, target: &str| {
        swap(house, "ann/videos", target);
        put(house, &format!("ann/pictures/{}.png", target.replace('/', "-")));
    };
    put(&house, "ann/pictures/first.png");
    house.until_ended(1);
    assert_eq!(house.files("ann/videos").len(), 1);
    for (n, target) in ["state", "state/spool", "inbox"].into_iter().enumerate() {
        swapped(&house, target);
        house.until("the picture waits for its outbox", |house| {
            let state = house.json(&["status"]);
            state["state"] == "no-output" && state["state_text"].as_str().unwrap().contains("takes no file")
        });
        swap_back(&house, "ann/videos");
        house.until_ended(n as i64 + 2);
    }
    assert_eq!(house.number("SELECT count(*) FROM job WHERE state = 'done' AND attempt = 1"), Some(4));
    let after = below(&house, "state");
    assert!(
        after.difference(&before).all(|path| !path.contains("mp4") && !path.contains(".part")),
        "{after:?}"
    );
    assert!(house.files("inbox").is_empty() && house.files("inbox/done").is_empty());
    assert_eq!(house.files("ann/videos").len(), 4);
    // The folder is swapped while a video is made for it.
    fs::write(house.path("ann/pictures/late.txt"), "slow=30").unwrap();
    put(&house, "ann/pictures/late.png");
    house.until("it runs", |house| {
        house.number("SELECT count(*) FROM job WHERE state = 'running'") == Some(1)
    });
    let before = below(&house, "state");
    swap(&house, "ann/videos", "state");
    house.until("its end waits", |house| {
        fs::read_to_string(house.path("log"))
            .unwrap()
            .contains("the finished video of job 5 waits for its folder")
    });
    swap_back(&house, "ann/videos");
    house.until_ended(5);
    // What the engine wrote went where the link led, and is no video.
    assert_eq!(house.text("SELECT error_code FROM job WHERE id = 5 AND state = 'failed'"), "output");
    let after = below(&house, "state");
    assert!(before.is_subset(&after) && after.iter().all(|path| !path.contains("mp4")), "{after:?}");
    assert_eq!(house.files("ann/videos").iter().filter(|name| name.ends_with(".mp4")).count(), 4);
}

/// The folder and the one above it change places with links all the time, while pictures are dropped.
#[test]
fn nothing_outside_is_touched_however_often_a_folder_is_swapped() {
    for path in ["ann/pictures", "ann"] {
        race(path);
    }
}

fn race(path: &str) {
    let house = with_a_waiting_picture();
    put(&house, "trap/pictures/0.png");
    let before = (below(&house, "state"), below(&house, "trap"));
    let theirs: BTreeSet<Vec<u8>> = [&house.path("picture.png"), &house.path("trap/theirs.png")]
        .into_iter()
        .chain([&house.path("trap/pictures/theirs.png"), &house.path("trap/pictures/0.png")])
        .map(|path| fs::read(path).unwrap())
        .collect();
    symlink(house.path("state/spool"), house.path("to-spool")).unwrap();
    symlink(house.path("trap"), house.path("to-trap")).unwrap();
    // The open folder is the user's, wherever it is moved to.
    let pictures = fs::File::open(house.path("ann/pictures")).unwrap();
    let stop = AtomicBool::new(false);
    let mut dropped: i64 = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // The user's folder is always at one of the two places.
            while !stop.load(Ordering::Relaxed) {
                for link in ["to-spool", "to-trap"] {
                    exchange(&house.path(path), &house.path(link));
                    exchange(&house.path(path), &house.path(link));
                }
            }
        });
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(5) {
            let path = format!("/proc/self/fd/{}/{dropped}.png", pictures.as_raw_fd());
            fs::write(path, [PICTURE, format!("ann's {dropped}").as_bytes()].concat()).unwrap();
            dropped += 1;
            std::thread::sleep(Duration::from_millis(20));
        }
        stop.store(true, Ordering::Relaxed);
    });
    house.until("all are taken", |house| jobs(house) == dropped + 1);
    assert!(house.animctl(&["resume"]).status.success());
    house.until_ended(dropped + 1);
    house.until("all are put away", |house| house.files("ann/pictures").is_empty());
    assert_eq!(below(&house, "trap"), before.1);
    let after = below(&house, "state");
    assert!(before.0.is_subset(&after), "{after:?}");
    let new = after.difference(&before.0).filter(|path| !path.starts_with("state/spool/"));
    assert!(
        new.clone().all(|path| path.starts_with("state/pictures") || path.starts_with("state/results")),
        "{after:?}"
    );
    // Every job of the folder is of a picture that was dropped there.
    assert_eq!(jobs(&house), dropped + 1);
    for name in house.files("state/spool") {
        let bytes = fs::read(house.path("state/spool").join(name)).unwrap();
        assert!(bytes == fs::read(house.path("picture.png")).unwrap() || !theirs.contains(&bytes));
    }
    assert_eq!(house.files("ann/pictures/done").len() as i64, dropped);
}

/// `--check`, the service and a reload agree on one configuration.
#[test]
fn folders_in_each_other_are_refused_everywhere() {
    let mut house = House::new("");
    for folder in ["more/sub", "far"] {
        fs::create_dir_all(house.path(folder)).unwrap();
    }
    symlink(house.path("inbox"), house.path("far/link")).unwrap();
    let home = house.dir.path().to_owned();
    let animd = |file: &Path| {
        let mut animd = Command::new(program("animd"));
        animd.args(["--user", "--check", "--config"]).arg(file).env("HOME", &home).output().unwrap()
    };
    let watch = |path: &str, outbox: &str| format!("[[watch]]\npath = \"{path}\"\noutbox = \"{outbox}\"\n");
    let wrong = [
        (watch("inbox/sub", "out"), ["(watch.path)", "(folders.inbox"]),
        (watch(".", "out"), ["(folders.inbox", "(watch.path)"]),
        (watch("more", "more/out"), ["(watch.outbox)", "(watch.path"]),
        (watch("more", "inbox/out"), ["(watch.outbox)", "(folders.inbox"]),
        (watch("more", "far/link/out"), ["(watch.outbox; it leads to `", "(folders.inbox"]),
        (watch("far/link", "out"), ["(watch.path; it leads to `", "(folders.inbox"]),
        (watch("outbox/in", "out"), ["(watch.path)", "(folders.outbox"]),
        (watch("state/spool", "out"), ["(watch.path)", "(folders.state"]),
        (watch("more", "state/spool"), ["(watch.outbox)", "(folders.state"]),
        (watch("model", "out"), ["(watch.path)", "(model.path"]),
        (watch("model/new/deep", "out"), ["(watch.path)", "(model.path"]),
        (watch("more", "out") + &watch("more/sub", "out"), ["(watch.path)", "(watch.path,"]),
    ];
    let mut sentences = Vec::new();
    for (text, keys) in &wrong {
        house.configure(text);
        let checked = animd(&house.write_config());
        assert_eq!(checked.status.code(), Some(78), "{text}");
        let said = String::from_utf8(checked.stderr).unwrap();
        assert!(keys.iter().all(|key| said.contains(key)), "{text}: {said}");
        assert!(said.contains("animd.toml:"), "{said}");
        sentences.push(said.trim().strip_prefix("animd: ").unwrap().to_owned());
    }
    for text in [
        watch("more", "outbox") + &watch("far", "outbox/sub"),
        watch("more/done", "more2") + &watch("more/sub", "more2"),
        watch("more", "moreover"),
    ] {
        house.configure(&text);
        let checked = animd(&house.write_config());
        assert!(checked.status.success(), "{text}: {}", String::from_utf8_lossy(&checked.stderr));
    }
    // One service starts with the configuration, and another one reloads it.
    house.configure(&wrong[0].0);
    assert_eq!(exit_code(&mut house), Some(78));
    house.configure("");
    house.start();
    for ((text, _), sentence) in wrong.iter().zip(&sentences) {
        house.configure(text);
        house.write_config();
        let reloaded = house.animctl(&["reload"]);
        assert!(!reloaded.status.success());
        let said = String::from_utf8_lossy(&reloaded.stderr).into_owned();
        assert!(said.contains(sentence), "{said} has not {sentence}");
        let state = house.json(&["status"])["state_text"].as_str().unwrap().to_owned();
        assert!(state.contains("cannot apply the changed configuration"), "{state}");
    }
    put(&house, "inbox/a.png");
    house.until_ended(1);
    assert_eq!(house.json(&["folder", "list"]).as_array().unwrap().len(), 1);
}

/// Mounts need a mount namespace; the test runs only where one can be made.
#[test]
fn a_folder_that_is_mounted_elsewhere_is_still_itself() {
    let house = House::new("");
    for folder in ["mnt", "mnt2", "state/spool/deep", "inbox/sub", "more/sub", "more/new"] {
        fs::create_dir_all(house.path(folder)).unwrap();
    }
    let mut unshare = vec!["unshare", "--mount", "--map-root-user", "sh", "-c"];
    if rustix::process::geteuid().is_root() {
        unshare.remove(2);
    }
    let at = |path: &str| house.path(path).to_str().unwrap().to_owned();
    let check = |mounts: &[(&str, &str)], watch: &str| {
        fs::write(
            house.path("animd.toml"),
            format!(
                "[folders]\ninbox = \"inbox\"\noutbox = \"outbox\"\nstate = \"state\"\n[[watch]]\n{watch}"
            ),
        )
        .unwrap();
        let mounts = mounts.iter().map(|(from, to)| format!("mount --bind '{}' '{}' && ", at(from), at(to)));
        let script = mounts.collect::<String>() + "exec \"$0\" --user --check --config \"$1\"";
        let mut command = Command::new(unshare[0]);
        command.args(&unshare[1..]).arg(script).arg(program("animd")).arg(at("animd.toml"));
        let output = command.env("HOME", house.dir.path()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    if check(&[("more", "mnt")], "path = \"more\"").0 != Some(0) {
        println!("skipped: nothing can be mounted here");
        return;
    }
    for (mounts, watch, with) in [
        (&[("state/spool", "mnt")][..], "path = \"mnt\"", "(folders.state"),
        (&[("state/spool/deep", "mnt")], "path = \"mnt\"", "(folders.state"),
        (&[("inbox/sub", "mnt")], "path = \"mnt/x\"", "(folders.inbox"),
        (&[("more/sub", "mnt")], "path = \"more\"\noutbox = \"mnt/new\"", "(watch.outbox)"),
        (&[("more", "mnt"), ("more/sub", "mnt2")], "path = \"mnt\"\noutbox = \"mnt2\"", "(watch.outbox)"),
    ] {
        let (code, said) = check(mounts, watch);
        assert_eq!(code, Some(78), "{mounts:?} {watch}");
        assert!(said.contains(with), "{mounts:?} {watch}: {said}");
    }
    assert_eq!(
        check(&[("more/sub", "mnt"), ("more/new", "mnt2")], "path = \"mnt\"\noutbox = \"mnt2\"").0,
        Some(0)
    );
}
