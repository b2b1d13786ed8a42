//! Pictures dropped into the folder.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;

use crate::harness::{House, PICTURE};

#[test]
fn a_dropped_picture_becomes_one_video() {
    let house = House::started("");
    house.drop_picture("photo.png", Some("a wave"));
    // This is a second event for the same file, while it waits or runs.
    fs::write(house.path("inbox/photo.png"), PICTURE).unwrap();
    house.until_ended(1);
    let seed = house.number("SELECT seed FROM job").unwrap();
    assert_eq!(house.files("outbox"), [format!("photo-{seed}.mp4")]);
    assert_eq!(house.files("inbox/done"), ["photo.png", "photo.txt"]);
    assert!(house.files("inbox").is_empty() && house.files("inbox/failed").is_empty());
    assert_eq!(house.files("state/spool").len(), 1, "another try needs the picture");
    assert_eq!(house.text("SELECT state FROM job"), "done");
    assert_eq!(house.text("SELECT settings_json ->> 'prompt' FROM job"), "a wave");
    assert_eq!(
        house.text("SELECT video FROM jobs"),
        house.path(&format!("outbox/photo-{seed}.mp4")).to_str().unwrap()
    );
    assert_eq!(house.number("SELECT count(*) FROM stage"), Some(2));
    assert_eq!(house.number("SELECT count(*) FROM step WHERE computed = 1"), Some(40));
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &house.path(&format!("outbox/photo-{seed}.mp4")).metadata().unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o640);
    // A picture that is moved back is a new request.
    fs::rename(house.path("inbox/done/photo.png"), house.path("inbox/photo.png")).unwrap();
    house.until_ended(2);
    assert_eq!(house.files("outbox").len(), 2);
}

#[test]
fn what_lies_there_at_the_start_is_taken_and_litter_is_not() {
    let mut house = House::new("");
    house.drop_picture("early.png", None);
    for litter in [".hidden.png", "a.png~", "b.png.part", "c.txt", "Thumbs.db"] {
        fs::write(house.path("inbox").join(litter), PICTURE).unwrap();
    }
    std::os::unix::fs::symlink("/etc/hostname", house.path("inbox/link.png")).unwrap();
    assert!(
        std::process::Command::new("mkfifo").arg(house.path("inbox/pipe.png")).status().unwrap().success()
    );
    house.start();
    house.until_ended(1);
    house.drop_picture("late.png", None);
    house.until_ended(2);
    assert_eq!(house.number("SELECT count(*) FROM job"), Some(2));
    assert_eq!(house.files("inbox/done"), ["early.png", "late.png"]);
    assert!(house.path("inbox/link.png").is_symlink() && house.path("inbox/pipe.png").exists());
    let log = fs::read_to_string(house.path("log")).unwrap();
    assert!(
        log.contains("something in a watched folder is a symbolic link")
            && log.contains("something in a watched folder is a pipe")
    );
    assert_eq!(
        house.text("SELECT settings_json ->> 'prompt' FROM job LIMIT 1"),
        animd_common::config::NEUTRAL_PROMPT
    );
}

#[test]
fn sidecars_set_and_bad_ones_fail_with_their_line() {
    let house = House::started("[defaults]\nsteps = 6\n");
    fs::write(house.path("inbox/good.toml"), "prompt = \"a wave\"\nseed = 7\nframes = 5\n").unwrap();
    house.drop_picture("good.png", None);
    house.until_ended(1);
    assert_eq!(house.files("outbox"), ["good-7.mp4"]);
    assert_eq!(house.number("SELECT frames FROM job"), Some(5));
    assert_eq!(house.number("SELECT steps FROM job"), Some(6));
    assert_eq!(house.files("inbox/done"), ["good.png", "good.toml"]);

    fs::write(house.path("inbox/bad.toml"), "prompt = \"a\"\nsede = 7\n").unwrap();
    house.drop_picture("bad.png", None);
    house.until_ended(2);
    fs::write(house.path("inbox/odd.toml"), "frames = 80\n").unwrap();
    house.drop_picture("odd.png", None);
    house.until_ended(3);
    fs::write(house.path("inbox/latin.txt"), b"h\xe9\n").unwrap();
    house.drop_picture("latin.png", None);
    house.until_ended(4);
    let note =
        |name: &str| fs::read_to_string(house.path(&format!("inbox/failed/{name}.png.error.txt"))).unwrap();
    assert_eq!(note("bad"), "bad.toml:2: unknown key `sede`; did you mean `seed`?\n");
    assert!(note("odd").contains("`frames` must be 4n+1, up to 4093; the nearest to 80 is 81"));
    assert_eq!(note("latin"), "latin.txt:1: it is not valid UTF-8; save it as UTF-8\n");
    assert!(house.files("inbox").is_empty());
    assert_eq!(house.files("outbox"), ["good-7.mp4"]);
    assert_eq!(house.number("SELECT count(*) FROM job WHERE state = 'failed'"), Some(3));
}

#[test]
fn names_of_any_bytes_keep_them() {
    let house = House::started("[defaults]\nseed = 7\n");
    let odd = OsStr::from_bytes(b"new\nline \xff\xfe.png");
    house.drop_picture(odd, None);
    house.until_ended(1);
    assert!(house.path("outbox").join(OsStr::from_bytes(b"new\nline \xff\xfe-7.mp4")).exists());
    assert!(house.path("inbox/done").join(odd).exists());
    assert_eq!(house.json(&["show", "1"])["name"], "new\\nline \\xff\\xfe.png");
}

#[test]
fn what_exists_is_never_replaced() {
    let house = House::started("[defaults]\nseed = 7\n");
    fs::write(house.path("outbox/photo-7.mp4"), "mine").unwrap();
    fs::write(house.path("inbox/done/photo.png"), "mine").unwrap();
    house.drop_picture("photo.png", None);
    house.until_ended(1);
    assert_eq!(house.files("outbox"), ["photo-7-2.mp4", "photo-7.mp4"]);
    assert_eq!(house.files("inbox/done"), ["photo-2.png", "photo.png"]);
    assert_eq!(fs::read(house.path("outbox/photo-7.mp4")).unwrap(), b"mine");
    assert_eq!(fs::read(house.path("inbox/done/photo.png")).unwrap(), b"mine");
}

#[test]
fn what_is_no_picture_or_too_large_fails_in_words() {
    let house = House::started("");
    fs::write(house.path("inbox/note.png"), "not a picture").unwrap();
    house.until_ended(1);
    let huge = fs::File::create(house.path("huge.png")).unwrap();
    huge.set_len((256 << 20) + 1).unwrap();
    fs::rename(house.path("huge.png"), house.path("inbox/huge.png")).unwrap();
    house.until_ended(2);
    let note =
        |name: &str| fs::read_to_string(house.path(&format!("inbox/failed/{name}.png.error.txt"))).unwrap();
    assert!(note("note").contains("is not a supported image; use a PNG"));
    assert!(note("huge").contains("at most 256 MiB"));
}

#[test]
fn a_picture_goes_where_the_newest_try_at_it_ended() {
    let mut house = House::started("[defaults]\nseed = 7\n");
    fs::create_dir(house.path("inbox/sub")).unwrap();
    house.drop_picture("sub/photo.png", Some("fail"));
    house.until_ended(1);
    let there = |folder: &str| house.files(&format!("inbox/{folder}/sub"));
    assert_eq!(there("failed"), ["photo.png", "photo.png.error.txt", "photo.txt"]);
    let note = house.path("inbox/failed/sub/photo.png.error.txt");
    fs::write(&note, "an old note").unwrap();
    // The same trouble again has a new note.
    assert_eq!(house.animctl(&["retry", "1", "--wait"]).status.code(), Some(1));
    assert_eq!(there("failed"), ["photo.png", "photo.png.error.txt", "photo.txt"]);
    assert!(fs::read_to_string(&note).unwrap().contains("the video needs 80 GiB"));
    // Two tries wait at once; one is cancelled, the other one makes the video after a crash of the service.
    house.json(&["pause"]);
    house.json(&["retry", "1", "-p", "slow=20"]);
    house.json(&["retry", "1", "-p", "a wave"]);
    house.json(&["cancel", "4"]);
    house.until_ended(3);
    assert_eq!((there("failed"), there("cancelled")), (vec![], vec!["photo.png".into(), "photo.txt".into()]));
    house.json(&["resume"]);
    house.until("it runs", |house| {
        house.number("SELECT count(*) FROM job WHERE state = 'running'") == Some(1)
    });
    house.kill();
    house.start();
    house.until_ended(4);
    let there = |folder: &str| house.files(&format!("inbox/{folder}/sub"));
    assert_eq!((there("cancelled"), there("done")), (vec![], vec!["photo.png".into(), "photo.txt".into()]));
    assert_eq!(house.files("outbox/sub"), ["photo-7.mp4"]);
    let moved = house.path("inbox/done/sub/photo.png");
    assert_eq!(house.json(&["show", "3"])["source_moved_to"], moved.to_str().unwrap());
    // Whoever has moved the picture elsewhere keeps it there.
    house.drop_picture("mine.png", Some("fail"));
    house.until_ended(5);
    fs::rename(house.path("inbox/failed/mine.png"), house.path("mine.png")).unwrap();
    house.json(&["retry", "5", "-p", "a wave", "--wait"]);
    assert_eq!(house.files("inbox/failed"), ["mine.png.error.txt", "mine.txt"]);
    assert!(house.path("mine.png").exists() && house.files("inbox/done").is_empty());
}
