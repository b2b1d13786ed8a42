//! The configuration in layers, checked from the command line and read again while the service runs.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Output};

use crate::harness::{House, PICTURE, program};

/// Runs `animd ARGS` isolated from this machine's environment and files.
fn animd(home: &Path, args: &[&str], vars: &[(&str, &str)]) -> Output {
    Command::new(program("animd"))
        .args(args)
        .env_clear()
        .env("HOME", home)
        .envs(vars.iter().copied())
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn check_says_what_is_and_where_it_comes_from() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join(".config/animd");
    fs::create_dir_all(dir.join("conf.d")).unwrap();
    fs::write(dir.join("animd.toml"), "[queue]\nattempts = 5\n").unwrap();
    fs::write(dir.join("conf.d/10-more.toml"), "[queue]\n\nper_user = 7\n").unwrap();
    let check = |args: &[&str], vars: &[(&str, &str)]| {
        animd(home.path(), &[&["--user", "--check"], args].concat(), vars)
    };
    let plain = check(&[], &[]);
    assert!(plain.status.success() && plain.stderr.is_empty(), "{plain:?}");
    let plain = text(&plain.stdout);
    assert!(plain.contains("\nattempts = 5\n") && plain.contains("\nper_user = 7\n"), "{plain}");

    let origins = text(&check(&["--origins", "--model", "/m"], &[("ANIMD_QUEUE_TOTAL", "9")]).stdout);
    for (value, place) in [
        ("attempts = 5 # ", "/.config/animd/animd.toml:2:12\n"),
        ("per_user = 7 # ", "/.config/animd/conf.d/10-more.toml:3:12\n"),
        ("total = 9 # variable ANIMD_QUEUE_TOTAL", "\n"),
        ("path = \"/m\" # option --model", "\n"),
        ("free_mib = 256 # built in", "\n"),
    ] {
        let line = origins.split_once(value).unwrap_or_else(|| panic!("{value} in {origins}")).1;
        assert_eq!(
            line.split_inclusive('\n')
                .next()
                .unwrap()
                .strip_prefix(&*home.path().to_string_lossy())
                .unwrap_or("\n"),
            place
        );
    }

    fs::write(dir.join("conf.d/20-wrong.toml"), "[queue]\natempts = 5\n").unwrap();
    let wrong = check(&[], &[]);
    assert_eq!(wrong.status.code(), Some(78));
    let wrong = text(&wrong.stderr);
    assert!(
        wrong.ends_with("conf.d/20-wrong.toml:2:1: unknown key `atempts`; did you mean `attempts`?\n"),
        "{wrong}"
    );

    fs::write(dir.join("conf.d/20-wrong.toml"), "[profile]\nname = \"h20\"\n").unwrap();
    let unknown = check(&[], &[]);
    assert_eq!(unknown.status.code(), Some(78));
    let unknown = text(&unknown.stderr);
    assert!(
        unknown.ends_with("20-wrong.toml:2:8: there is no profile `h20`; did you mean `h200`?\n"),
        "{unknown}"
    );
}

#[test]
fn sighup_puts_in_force_what_can_change_and_systemd_is_told() {
    let mut house = House::new("[defaults]\nseed = 1\n");
    let socket = house.path("notify");
    let heard = UnixDatagram::bind(&socket).unwrap();
    house.set_env("NOTIFY_SOCKET", socket.to_str().unwrap());
    fs::create_dir(house.path("conf.d")).unwrap();
    for folder in ["more", "model2", "out"] {
        fs::create_dir(house.path(folder)).unwrap();
    }
    house.start();
    house.drop_picture("a.png", Some("a wave"));
    house.until_ended(1);
    assert_eq!(house.files("outbox"), ["a-1.mp4"]);
    let first = house.engine();
    assert!(first.is_some());

    // Collects the status messages until the reload is over.
    let hear = || {
        let mut buffer = [0; 4096];
        let mut said = Vec::new();
        while said.last().is_none_or(|last: &String| !last.contains("READY=1")) {
            let n = heard.recv(&mut buffer).unwrap();
            said.push(text(&buffer[..n]));
        }
        said
    };
    hear();
    let hang_up = |house: &House| {
        let pid = rustix::process::Pid::from_raw(house.pid().cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
        let said = hear();
        let start = said.iter().find(|said| said.contains("RELOADING=1")).expect("the beginning is told");
        assert!(start.contains("MONOTONIC_USEC="), "{start}");
    };
    let state = |house: &House| house.json(&["status"])["state_text"].as_str().unwrap().to_owned();

    fs::write(
        house.path("conf.d/a.toml"),
        "[defaults]\nseed = 2\n[inbox]\nstable_seconds = 0.1\n[[watch]]\npath = \"../more\"\noutbox = \"../out\"\n\
         [model]\npath = \"../model2\"\n[folders]\nstate = \"../elsewhere\"\n",
    )
    .unwrap();
    hang_up(&house);
    // The idle engine still has the old model, so it is replaced.
    house.until("another engine is there", |house| house.engine().is_some_and(|pid| Some(pid) != first));
    fs::write(house.path("more/b.png"), PICTURE).unwrap();
    house.until_ended(2);
    assert_eq!(house.files("out"), ["b-2.mp4"]);
    assert!(!house.path("elsewhere").exists());

    // A wrong file changes nothing, and the state says so until it is right again.
    fs::write(house.path("conf.d/b.toml"), "[defaults]\nseed = 3\nframes = 80\n").unwrap();
    hang_up(&house);
    house.until("the state tells of the mistake", |house| {
        state(house)
            .contains("conf.d/b.toml:3:10: `frames` must be 4n+1, up to 4093; the nearest to 80 is 81")
    });
    house.drop_picture("c.png", Some("a wave"));
    house.until_ended(3);
    assert_eq!(house.files("outbox"), ["a-1.mp4", "c-2.mp4"]);
    fs::write(house.path("conf.d/b.toml"), "[defaults]\nseed = 3\n").unwrap();
    hang_up(&house);
    house.until("the state is well again", |house| !state(house).contains("conf.d"));
    house.drop_picture("d.png", Some("a wave"));
    house.until_ended(4);
    assert_eq!(house.files("outbox"), ["a-1.mp4", "c-2.mp4", "d-3.mp4"]);
}
