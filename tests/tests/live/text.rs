//! Text that the bus cannot carry is refused with a sentence on its way in, and harmless on its way out.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use animd_client::{JobProxy, error_name};
use rusqlite::{Connection, params};
use serde_json::Value;
use zbus::Variant;

use crate::harness::House;

fn utf_16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// Checks that everything that answers with text works, in JSON and for people, in the same process as before.
fn everything_answers(house: &House, jobs: usize, pid: u32) {
    assert_eq!(house.json(&["history"]).as_array().unwrap().len(), jobs);
    assert_eq!(house.json(&["list"]).as_array().unwrap().len(), jobs);
    assert_eq!(house.json(&["export", "--timeline"]).as_array().unwrap().len(), jobs);
    for id in 1..=jobs {
        house.json(&["show", &id.to_string(), "--timeline"]);
        assert!(house.animctl(&["show", &id.to_string(), "--timeline"]).status.success());
    }
    for args in [
        &["history"][..],
        &["list"],
        &["status"],
        &["export", "--csv"],
        &["stats"],
        &["stats", "--by", "model"],
        &["stats", "--by", "profile"],
    ] {
        let output = house.animctl(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        let carried = |byte: &u8| !byte.is_ascii_control() || b"\n\t".contains(byte);
        assert!(output.stdout.iter().all(carried), "{args:?}: {}", String::from_utf8_lossy(&output.stdout));
    }
    let page = house.path("page.html");
    assert!(house.animctl(&["report", page.to_str().unwrap()]).status.success());
    assert!(!fs::read(&page).unwrap().contains(&0));
    fs::remove_file(page).unwrap();
    assert_eq!(house.pid(), pid);
}

#[test]
fn sidecars_are_text_or_refused_with_a_remedy() {
    let house = House::started("[defaults]\nseed = 7\n");
    let pid = house.pid();
    let mark = |text: &str| [&b"\xff\xfe"[..], &utf_16(text)].concat();
    let looks = "it looks like UTF-16 without a byte-order mark; save it as UTF-8\n";
    let zero = "it has the control character U+0000; type the text anew, or save its file as UTF-8\n";
    for (name, bytes, note) in [
        ("utf16.txt", utf_16("leaves fall\r\n"), format!("utf16.txt: {looks}")),
        ("settings.toml", utf_16("seed = 5\n"), format!("settings.toml: {looks}")),
        (
            "zero.txt",
            b"leaves fall\nand\0fall\n".to_vec(),
            "zero.txt:2: it has a zero byte (U+0000), which no text has; save it as plain text in UTF-8\n"
                .into(),
        ),
        ("escaped.toml", b"prompt = \"a\\u0000b\"".to_vec(), format!("escaped.toml: `prompt`: {zero}")),
        (
            "negative.toml",
            b"negative_prompt = \"a\\u0000b\"".to_vec(),
            format!("negative.toml: `negative_prompt`: {zero}"),
        ),
        (
            "terminal.txt",
            b"a \x1b[31mred wave".to_vec(),
            "terminal.txt:1: it has the control character U+001B; remove it\n".into(),
        ),
    ] {
        let picture = OsStr::new(name).as_bytes().split(|byte| *byte == b'.').next().unwrap();
        let picture = format!("{}.png", String::from_utf8_lossy(picture));
        fs::write(house.path("inbox").join(name), bytes).unwrap();
        house.drop_picture(&picture, None);
        let failed = house.path("inbox/failed").join(format!("{picture}.error.txt"));
        house.until(name, |house| failed.exists() && !house.path("inbox").join(&picture).exists());
        assert_eq!(fs::read_to_string(failed).unwrap(), note);
    }
    // A key that holds forbidden characters is shown escaped; half a character of UTF-16 is not a character.
    for (name, toml) in [("key.toml", &b"\"a\\u0000\\n\" = 1"[..]), ("half.toml", b"prompt = \"\\ud800\"")] {
        fs::write(house.path("inbox").join(name), toml).unwrap();
    }
    house.drop_picture("key.png", None);
    house.drop_picture("half.png", None);
    house.until_ended(8);
    assert_eq!(house.number("SELECT count(*) FROM job WHERE state = 'failed'"), Some(8));
    fs::write(house.path("inbox/windows.txt"), mark("leaves fall\r\nslowly\r\n")).unwrap();
    fs::write(house.path("inbox/windows.toml"), mark("seed = 9\r\n")).unwrap();
    house.drop_picture("windows.png", None);
    house.until_ended(9);
    assert_eq!(house.files("outbox"), ["windows-9.mp4"]);
    assert_eq!(house.json(&["show", "9"])["settings"]["prompt"], "leaves fall\nslowly");
    everything_answers(&house, 9, pid);
}

#[test]
fn rows_of_older_versions_are_shown_and_run_again() {
    let mut house = House::started("[defaults]\nseed = 7\n");
    house.drop_picture("done.png", Some("a wave"));
    house.until_ended(1);
    house.drop_picture("failed.png", Some("fail"));
    house.until_ended(2);
    house.json(&["pause"]);
    house.drop_picture("queued.png", Some("a wave"));
    house.until("it is queued", |house| house.number("SELECT count(*) FROM job") == Some(3));
    house.stop();
    let db = Connection::open(house.path("state/ledger.db")).unwrap();
    for id in 1..=3 {
        let json: String =
            db.query_row("SELECT settings_json FROM job WHERE id = ?1", [id], |row| row.get(0)).unwrap();
        let mut settings: Value = serde_json::from_str(&json).unwrap();
        settings["prompt"] = "l\0e\0a\0f\0\r\n\x1b[2J".into();
        settings["negative_prompt"] = "\0".into();
        db.execute("UPDATE job SET settings_json = ?2 WHERE id = ?1", params![id, settings.to_string()])
            .unwrap();
    }
    // The ledger also holds text that is not UTF-8, which no version of animd has written.
    db.execute_batch(
        "UPDATE job SET model = CAST(x'6100ff62' AS TEXT), profile = CAST(x'00' AS TEXT), gpu_name = CAST(x'ff' AS TEXT),
           gpu_uuid = char(0), driver = 'a' || char(0), backend = 'b' || char(27), energy_mj = 5, energy_method = 'counter';
         UPDATE job SET error_text = 'gone' || char(0) || char(27) || 'wrong', error_code = 'me' || char(0) WHERE id = 2;
         UPDATE job SET name = x'6100ff0a1b622e706e67', source_target = x'2f6100ff0a' WHERE id < 3;
         UPDATE stage SET name = name || char(0), energy_mj = 3;
         UPDATE event SET text = 'x' || char(0) || CAST(x'ff' AS TEXT), kind = kind || char(0);
         UPDATE setting SET value = 'by ' || char(0) WHERE key = 'paused';",
    )
    .unwrap();
    drop(db);
    house.start();
    let pid = house.pid();
    let state = house.json(&["status"]);
    assert!(state["state_text"].as_str().unwrap().contains("by \u{fffd}"), "{state}");
    everything_answers(&house, 3, pid);
    let job = house.json(&["show", "2", "--timeline"]);
    assert_eq!(job["error_text"], "gone\u{fffd}\u{fffd}wrong");
    assert_eq!(job["name"], "a\\xff\\n\\u{1b}b.png");
    assert_eq!(job["model"], "a\u{fffd}\u{fffd}b");
    assert_eq!(job["settings"]["prompt"], "leaf\n\u{fffd}[2J");
    assert_eq!(job["timeline"]["events"][0][2], "x\u{fffd}\u{fffd}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let bus = house.connect().await;
        let path = house.manager().await.get_job(2).await.unwrap();
        let job = JobProxy::new(&bus, path).await.unwrap();
        let error = job.open_result().await.expect_err("it failed");
        assert!(error.to_string().contains("gone\u{fffd}\u{fffd}wrong"), "{error}");
    });
    house.json(&["resume"]);
    house.json(&["retry", "1"]);
    house.until_ended(4);
    let done = house.number("SELECT count(*) FROM job WHERE state = 'done' AND id IN (3, 4)");
    assert_eq!(done, Some(2));
    everything_answers(&house, 4, pid);
}

#[test]
fn what_the_engine_says_is_made_text() {
    let house = House::started("");
    house.drop_picture("odd.png", Some("zero"));
    house.until_ended(1);
    let said = "the picture says \u{fffd}\u{fffd}[2J and ends";
    assert_eq!(house.json(&["show", "1"])["error_text"], said);
    let note = fs::read_to_string(house.path("inbox/failed/odd.png.error.txt")).unwrap();
    assert_eq!(note, format!("{said}\n"));
    everything_answers(&house, 1, house.pid());
}

#[tokio::test]
async fn options_are_text_or_refused() {
    let house = House::started("");
    let pid = house.pid();
    let picture = File::open(house.picture()).unwrap();
    let manager = house.manager().await;
    for (key, value) in [("prompt", "a\x1b[2Jwave"), ("negative_prompt", "a\u{8}"), ("prompt", "a\x7f")] {
        let options = HashMap::from([(key, Variant::from(value))]);
        let error = manager.submit(picture.as_fd().into(), options).await.expect_err("it is refused");
        assert_eq!(error_name(&error), Some("InvalidOption"), "{error}");
        assert!(error.to_string().contains(&format!("`{key}`: it has the control character U+")), "{error}");
    }
    // A correct client does not send this: a bus that checks disconnects this client, and nobody else.
    let mut keys = vec!["name", "idempotency_key", "keep", "priority", "unknown\0", "outbox"];
    keys.extend(animd_common::keys::SETTINGS);
    for key in keys {
        let hostile = house.manager().await;
        let options = HashMap::from([(key, Variant::from("a\0b"))]);
        hostile.submit(picture.as_fd().into(), options).await.expect_err("it is refused");
    }
    for call in ["submit_path", "inhibit", "add_watch", "remove_watch"] {
        let hostile = house.manager().await;
        let bad = "a\0b";
        let answer = match call {
            "submit_path" => hostile.submit_path(bad, HashMap::new()).await.map(drop),
            "inhibit" => hostile.inhibit("warm", bad, bad).await.map(drop),
            "add_watch" => hostile.add_watch(bad, HashMap::new()).await,
            _ => hostile.remove_watch(bad).await,
        };
        answer.expect_err(call);
    }
    assert_eq!(house.number("SELECT count(*) FROM job"), Some(0));
    let prompt = HashMap::from([("prompt", Variant::from("a wave\r\nrolls in"))]);
    manager.submit(picture.as_fd().into(), prompt).await.unwrap();
    assert_eq!(house.text("SELECT settings_json ->> 'prompt' FROM job"), "a wave\nrolls in");
    house.until_ended(1);
    everything_answers(&house, 1, pid);
}

#[test]
fn a_folder_whose_name_the_engine_cannot_be_told_is_named_and_costs_no_engine() {
    let mut house = House::new("[defaults]\nseed = 7\n");
    house.set_env("SIM_LIVES", house.path("lives").to_str().unwrap());
    house.start();
    let folder = house.path("inbox").join(OsStr::from_bytes(b"old \xe9t\xe9\x1b"));
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("photo.png"), crate::harness::PICTURE).unwrap();
    house.drop_picture("next.png", None);
    house.until_ended(2);
    let why = house.text("SELECT error_text FROM job WHERE state = 'failed'");
    assert!(
        why.contains("old \\xe9t\\xe9\\u{1b}`, and the engine takes no path that is not valid UTF-8"),
        "{why}"
    );
    assert_eq!(house.files("outbox"), ["next-7.mp4"]);
    assert_eq!(fs::read(house.path("lives")).unwrap(), b".");
    everything_answers(&house, 2, house.pid());
}

#[test]
fn a_configuration_with_a_zero_byte_names_its_line() {
    let house = House::new("");
    let check = |text: &[u8]| {
        let file = house.path("checked.toml");
        fs::write(&file, text).unwrap();
        let output = house.animctl(&["config", "check", file.to_str().unwrap()]);
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    };
    for (toml, what) in [
        (
            &b"[queue]\nper_user = 1\n[folders]\ninbox = \"/srv/a\\u0000b\"\n"[..],
            "checked.toml:4:9: folders.inbox: it has a zero byte",
        ),
        (b"[defaults]\nprompt = \"a\\u0000b\"\n", "checked.toml:2:10: defaults.prompt: it has a zero byte"),
        (
            b"[defaults]\nprompt = \"a\\u0007b\"\n",
            "checked.toml:2:10: [defaults]: `prompt`: it has the control character U+0007",
        ),
        (b"[[watch]]\npath = \"/srv/\\u0000\"\n", "checked.toml:2:8: watch.path: it has a zero byte"),
        (b"[\0l\0o\0g\0]\0\n\0", "checked.toml: it looks like UTF-16"),
    ] {
        let (fine, said) = check(toml);
        assert!(!fine && said.contains(what), "{said}");
    }
    let marked = [&b"\xff\xfe"[..], &utf_16("[queue]\r\nper_user = 3\r\n")].concat();
    let (fine, said) = check(&marked);
    assert!(fine, "{said}");
}
