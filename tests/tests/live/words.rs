//! Pictures and their words find each other, slow writers are waited for, and litter is nothing.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{sleep, spawn};
use std::time::Duration;

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::harness::{ALICE, BOB, House, PICTURE, others};

/// Returns the prompt of a job.
fn prompt(house: &House, name: &str) -> String {
    house.text(&format!("SELECT settings_json ->> 'prompt' FROM job WHERE CAST(name AS TEXT) = '{name}'"))
}

fn write(house: &House, name: &str, bytes: impl AsRef<[u8]>) {
    fs::write(house.path("inbox").join(name), bytes).unwrap();
}

/// Returns a picture unlike any other.
fn picture(name: &str) -> Vec<u8> {
    [PICTURE, name.as_bytes()].concat()
}

#[test]
fn every_name_of_a_sidecar_is_understood() {
    let house = House::started("");
    let pairs = [
        ("a.png", "a.png.txt"),
        ("b.png", "b.caption"),
        ("c.png", "c.png.TXT"),
        ("d.JPG", "d.JPG.text"),
        ("e.png", "e.Prompt"),
    ];
    for (name, sidecar) in pairs {
        write(&house, sidecar, format!("words of {name}\n"));
        write(&house, name, picture(name));
    }
    write(&house, "f.png.json", "{\"prompt\": \"words of f.png\", \"seed\": 7}");
    write(&house, "f.png", picture("f"));
    house.until_ended(6);
    for (name, sidecar) in pairs {
        assert_eq!(prompt(&house, name), format!("words of {name}"));
        assert!(house.path("inbox/done").join(sidecar).exists(), "{sidecar} goes with its picture");
    }
    assert_eq!(prompt(&house, "f.png"), "words of f.png");
    assert!(house.files("inbox").is_empty(), "{:?}", house.files("inbox"));
}

#[test]
fn a_late_sidecar_is_matched_by_what_waits() {
    let house = House::started("");
    assert!(house.animctl(&["pause"]).status.success());
    let names = ["late.Png", "other.jfif", "third.TIF", "plain"];
    for name in names {
        write(&house, name, picture(name));
    }
    house.until("they wait", |house| house.number("SELECT count(*) FROM job") == Some(4));
    write(&house, "late.txt", "rain falls");
    write(&house, "other.jfif.txt", "rain falls");
    write(&house, "third.caption", "rain falls");
    write(&house, "plain.txt", "rain falls");
    for name in names {
        house.until(name, |house| prompt(house, name) == "rain falls");
    }
    assert_eq!(house.number("SELECT count(*) FROM job"), Some(4));
    assert!(house.animctl(&["resume"]).status.success());
    house.until_ended(4);
    assert!(house.files("inbox").is_empty());
}

#[test]
fn a_picture_in_parts_is_waited_for() {
    let house = House::started("");
    for (name, bytes) in [("scan.png", PICTURE), ("again.png", &picture("again"))] {
        let path = house.path("inbox").join(name);
        for part in bytes.chunks(bytes.len().min(PICTURE.len()) / 3 + 1) {
            // The file is closed between the parts, for longer than a file must lie unchanged.
            OpenOptions::new().create(true).append(true).open(&path).unwrap().write_all(part).unwrap();
            sleep(Duration::from_millis(700));
        }
    }
    house.until_ended(2);
    assert_eq!(house.number("SELECT count(*) FROM job WHERE state = 'done'"), Some(2));
    assert!(house.files("inbox/failed").is_empty(), "{:?}", house.files("inbox/failed"));
}

#[test]
fn an_empty_file_is_nothing_yet() {
    let house = House::started("");
    write(&house, "finder.png", "");
    write(&house, "never.png", "");
    sleep(Duration::from_secs(1));
    write(&house, "finder.png", PICTURE);
    house.until_ended(1);
    assert_eq!(house.text("SELECT state FROM job"), "done");
    assert_eq!(house.files("inbox"), ["never.png"]);
    assert!(house.files("inbox/failed").is_empty());
}

#[test]
fn a_download_is_waited_for() {
    let mut house = House::new("rescan_seconds = 1\n");
    write(&house, "load.png", PICTURE);
    write(&house, "load.png.aria2", "x");
    house.start();
    write(&house, "other.png", picture("other"));
    house.until_ended(1);
    assert_eq!(house.files("inbox"), ["load.png", "load.png.aria2"]);
    fs::remove_file(house.path("inbox/load.png.aria2")).unwrap();
    house.until_ended(2);
    assert_eq!(house.number("SELECT count(*) FROM job WHERE state = 'done'"), Some(2));
}

/// Returns a camera's raw file: its first directory is a thumbnail, and the picture is below it.
fn raw_picture() -> Vec<u8> {
    let mut bytes = b"II*\0\x08\0\0\0".to_vec();
    let fields: [(u16, u32); 5] = [(254, 1), (256, 40), (257, 24), (330, 200), (50_706, 0x0401)];
    bytes.extend_from_slice(&(fields.len() as u16).to_le_bytes());
    for (tag, value) in fields {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&[4, 0, 1, 0, 0, 0]);
        bytes.extend_from_slice(&value.to_le_bytes());
    }
    bytes.resize(4096, 0);
    bytes
}

#[test]
fn a_cameras_raw_file_is_refused_by_name() {
    let house = House::started("");
    write(&house, "raw.dng", raw_picture());
    house.until_ended(1);
    let note = fs::read_to_string(house.path("inbox/failed/raw.dng.error.txt")).unwrap();
    assert!(note.contains("is a camera's raw picture"), "{note}");
}

#[test]
fn litter_is_nothing_whoever_leaves_it() {
    let house = House::started("");
    let litter = [
        "zone.png:Zone.Identifier",
        "zone.pngZone.Identifier",
        "._zone.png",
        ".DS_Store",
        "Thumbs.db",
        "zone.png.part",
        "zone.png.crdownload",
        "zone.png~",
        "#zone.png#",
        "desktop.ini",
        "zone.png.md5",
    ];
    for name in litter {
        write(&house, name, picture(name));
    }
    write(&house, "other.png", PICTURE);
    house.until_ended(1);
    assert_eq!(house.number("SELECT count(*) FROM job"), Some(1));
    assert_eq!(house.files("inbox").len(), litter.len());
}

/// Writes a file that belongs to a user, as if that user had.
fn write_as(house: &House, uid: u32, name: &str, bytes: impl AsRef<[u8]>) {
    let path = house.path("inbox").join(name);
    let temporary = house.path("inbox").join(format!(".{name}"));
    fs::write(&temporary, bytes).unwrap();
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o644)).unwrap();
    chown(&temporary, Some(uid), Some(uid)).unwrap();
    fs::rename(temporary, path).unwrap();
}

#[test]
fn one_users_sidecars_do_not_rule_anothers_pictures() {
    if !others() {
        return;
    }
    let house = House::started("");
    write_as(&house, BOB, "family.txt", "what Bob wants");
    write_as(&house, ALICE, "family.png", picture("family"));
    write_as(&house, BOB, "beach.toml", "nonsense = 1");
    write_as(&house, ALICE, "beach.png", picture("beach"));
    house.until_ended(2);
    write_as(&house, BOB, "folder.toml", "prompt = \"what Bob wants for everybody\"\nsize = \"16x16\"\n");
    write_as(&house, ALICE, "third.png", picture("third"));
    write_as(&house, ALICE, "own.txt", "what Alice wants");
    write_as(&house, ALICE, "own.png", picture("own"));
    house.until_ended(4);
    assert_eq!(house.number("SELECT count(*) FROM job WHERE state = 'done'"), Some(4));
    for name in ["family.png", "beach.png", "third.png"] {
        assert_eq!(prompt(&house, name), animd_common::config::NEUTRAL_PROMPT, "{name}");
    }
    assert_eq!(prompt(&house, "own.png"), "what Alice wants");
    assert_eq!(house.files("inbox"), ["beach.toml", "family.txt", "folder.toml"], "Bob's files are Bob's");
    // His own pictures follow them, and the administrator's rule everybody's.
    write_as(&house, 0, "folder.toml", "seed = 7\n");
    write_as(&house, BOB, "family.png", picture("of Bob"));
    house.until_ended(5);
    assert_eq!(house.text("SELECT settings_json ->> 'prompt' FROM job WHERE id = 5"), "what Bob wants");
    assert_eq!(house.number("SELECT seed FROM job WHERE id = 5"), Some(7));
}

#[test]
fn folders_that_change_names_for_ever_cost_a_bounded_memory() {
    let house = House::started("");
    let (a, b) = (house.path("inbox/a"), house.path("inbox/b"));
    for folder in [&a, &b] {
        fs::create_dir(folder).unwrap();
        for n in 0..200 {
            fs::write(folder.join(format!(".{n}")), "").unwrap();
        }
    }
    let over = Arc::new(AtomicBool::new(false));
    let storm = {
        let over = over.clone();
        spawn(move || {
            let exchange = |a: &Path, b: &Path| renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).unwrap();
            let mut count = 0_u64;
            while !over.load(Ordering::Relaxed) {
                exchange(&a, &b);
                count += 1;
            }
            count
        })
    };
    for n in 0..5 {
        write(&house, &format!("photo{n}.png"), picture(&n.to_string()));
        house.until_ended(n + 1);
        sleep(Duration::from_secs(1));
    }
    let taken = house.memory("VmHWM");
    over.store(true, Ordering::Relaxed);
    let count = storm.join().unwrap();
    assert!(count > 10_000, "the storm was a breeze: {count}");
    assert!(taken < 80 << 20, "{taken} bytes after {count} exchanges");
    fs::write(house.path("inbox/a/last.png"), picture("last")).unwrap();
    house.until_ended(6);
    let lost = fs::read_to_string(house.path("log")).unwrap().matches("events of").count();
    assert!(lost < 10, "the log tells of a storm {lost} times");
}
