//! What a parent process hears of an engine that serves it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};

use animd_protocol::messages::{FromEngine, Kernels, PROTOCOL, Pictures, ToEngine};
use animd_protocol::request::{Sampler, Settings};

use super::common::{names, program, tiny_model};
use super::scene;

/// Starts an engine that serves the tiny model, and returns it with this side of its socket.
fn serving() -> (Child, UnixStream) {
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    let child = Command::new(program("animd-engine"))
        .args(["serve", "--model"])
        .arg(tiny_model())
        .stdin(std::os::fd::OwnedFd::from(theirs))
        .spawn()
        .unwrap_or_else(|e| panic!("cannot start: {e}"));
    (child, ours)
}

fn send(mut engine: &UnixStream, message: &ToEngine) {
    let line = serde_json::to_string(message).expect("plain data");
    writeln!(engine, "{line}").expect("it listens");
}

/// Returns what the engine says, message by message.
fn heard(engine: &UnixStream) -> impl Iterator<Item = FromEngine> {
    BufReader::new(engine)
        .lines()
        .map(|line| serde_json::from_str(&line.expect("it speaks")).expect("its language"))
}

#[test]
fn a_parent_process_gets_pictures_and_previews() {
    let (folder, image) = scene();
    let path = |name: &str| Some(folder.path().join(name));
    let (mut child, ours) = serving();
    let send = |message: &ToEngine| send(&ours, message);
    send(&ToEngine::Hello { protocol: PROTOCOL, version: "test".into() });
    let settings = Settings {
        size: Some("64x48".parse().expect("a size")),
        frames: Some(9),
        sampler: Some(Sampler::Distill),
        ..Settings::default()
    };
    let pictures = Pictures { poster: path("p.jpg"), thumbnail: path("t.jpg"), preview: path("v.jpg") };
    send(&ToEngine::Generate {
        job: 3,
        loras: Vec::new(),
        last: None,
        parts: None,
        image,
        output: folder.path().join("out.part"),
        pictures,
        request: Box::new(settings.resolve(|| 1).expect("valid")),
    });
    let mut heard = heard(&ours);
    let hello = heard.next();
    assert!(
        matches!(&hello, Some(FromEngine::Hello { protocol: PROTOCOL, kernels, recipe: Some(_), .. })
            if *kernels == Kernels::default()),
        "{hello:?}"
    );
    let mut previews = Vec::new();
    loop {
        match heard.next().expect("it goes on") {
            FromEngine::Preview { job: 3, n } => previews.push(n),
            FromEngine::Done { job: 3, .. } => break,
            FromEngine::Failed { message, .. } => panic!("{message}"),
            _ => {}
        }
    }
    assert_eq!(previews.first(), Some(&1));
    let size = |name: &str| image::image_dimensions(folder.path().join(name)).expect("a picture");
    assert_eq!((size("p.jpg"), size("t.jpg"), size("v.jpg")), ((64, 48), (64, 48), (32, 24)));
    assert_eq!(names(folder.path()), ["cat.png", "out.part", "p.jpg", "t.jpg", "v.jpg"]);
    drop(heard);
    ours.shutdown(std::net::Shutdown::Both).expect("open");
    assert!(child.wait().expect("it ends").success());
}

#[test]
fn a_job_is_taken_while_the_file_of_the_one_before_is_finished() {
    let (folder, image) = scene();
    let (mut child, ours) = serving();
    let send = |message: &ToEngine| send(&ours, message);
    // The first file has so many pixels that the encoder is not done when the last frame is.
    let generate = |job: u64, size: &str| {
        let settings = Settings {
            size: Some(size.parse().expect("a size")),
            frames: Some(5),
            sampler: Some(Sampler::Distill),
            ..Settings::default()
        };
        send(&ToEngine::Generate {
            job,
            last: None,
            loras: Vec::new(),
            parts: None,
            image: image.clone(),
            output: folder.path().join(format!("{job}.part")),
            pictures: Pictures::default(),
            request: Box::new(settings.resolve(|| 1).expect("valid")),
        });
    };
    send(&ToEngine::Hello { protocol: PROTOCOL, version: "test".into() });
    generate(1, "256x256");
    let mut heard = heard(&ours);
    let (mut told, mut reports) = (Vec::new(), Vec::new());
    while reports.len() < 3 {
        match heard.next().expect("it goes on") {
            FromEngine::Saving { job } => {
                told.push((job, "saving"));
                match job {
                    1 => generate(2, "64x48"),
                    2 => generate(3, "64x48"),
                    _ => {}
                }
            }
            FromEngine::Done { job, report } => {
                told.push((job, "done"));
                assert!(report.seconds.iter().any(|(stage, _)| stage == "write"), "{report:?}");
                let written = folder.path().join(format!("{job}.part")).metadata().expect("a file").len();
                assert_eq!(report.bytes, written);
                reports.push(report);
            }
            FromEngine::Failed { job, message, .. } => panic!("{job}: {message}"),
            _ => {}
        }
    }
    let at = |what| told.iter().position(|told| *told == what).expect("it was told");
    for job in 1..=3 {
        assert!(at((job, "saving")) < at((job, "done")), "{told:?}");
        // A file is finished before the next one is.
        assert!(job == 1 || at((job - 1, "done")) < at((job, "saving")), "{told:?}");
    }
    drop(heard);
    ours.shutdown(std::net::Shutdown::Both).expect("open");
    assert!(child.wait().expect("it ends").success());
}
