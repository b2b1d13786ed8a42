//! A damaged ledger has a way on, and what is no file where one should be ends a start at once.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use animd::cli::{EXIT_CONFIG, EXIT_DAMAGED};

use crate::harness::House;

/// Starts the service, which ends by itself, and returns its exit code and its last words.
fn ends(house: &House, more: &[&str]) -> (Option<i32>, String) {
    let start = Instant::now();
    let output = house.service().args(more).stderr(std::process::Stdio::piped()).output().unwrap();
    assert!(start.elapsed() < Duration::from_secs(60), "it does not end");
    let words = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&words).into_owned())
}

#[test]
fn a_damaged_ledger_is_set_aside_and_its_copy_taken() {
    let mut house = House::started("[defaults]\nseed = 7\n");
    house.drop_picture("photo.png", None);
    house.until_ended(1);
    house.stop();
    // The copy is made at the start.
    fs::remove_file(house.path("state/ledger.db.backup")).unwrap();
    house.start();
    house.until("there is a copy", |house| house.path("state/ledger.db.backup").exists());
    let (code, said) = ends(&house, &["--restore-ledger"]);
    assert!(code == Some(EXIT_CONFIG.into()) && said.contains("another animd works on"), "{said}");
    house.stop();
    let (code, said) = ends(&house, &["--restore-ledger"]);
    assert!(code == Some(EXIT_CONFIG.into()) && said.contains("is not damaged"), "{said}");
    fs::write(house.path("state/ledger.db"), "this is no ledger").unwrap();
    let (code, said) = ends(&house, &[]);
    assert_eq!(code, Some(EXIT_DAMAGED.into()), "{said}");
    let path = house.path("state/ledger.db");
    assert!(said.contains(path.to_str().unwrap()) && said.contains("--restore-ledger"), "{said}");
    assert_eq!(fs::read(&path).unwrap(), b"this is no ledger", "nothing was changed");
    let (code, said) = ends(&house, &["--restore-ledger"]);
    assert_eq!(code, Some(0), "{said}");
    let aside = house.files("state").into_iter().find(|name| name.starts_with("ledger.db.damaged-"));
    assert_eq!(fs::read(house.path("state").join(aside.unwrap())).unwrap(), b"this is no ledger");
    house.start();
    assert_eq!(house.text("SELECT state FROM job WHERE id = 1"), "done");
    house.drop_picture("next.png", Some("another"));
    house.until_ended(2);
}

#[test]
fn a_pipe_in_a_files_place_holds_up_no_start() {
    for name in ["state/ledger.db", "state/lock"] {
        let house = House::new("");
        fs::create_dir(house.path("state")).unwrap();
        assert!(Command::new("mkfifo").arg(house.path(name)).status().unwrap().success());
        let (code, said) = ends(&house, &[]);
        assert!(code.is_some_and(|code| code != 0) && said.contains("a pipe"), "{name}: {said}");
        assert!(said.contains(house.path(name).to_str().unwrap()), "{said}");
    }
}
