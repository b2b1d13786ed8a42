//! An engine without a model, for the tests of the service; no package ships it. It obeys the protocol, and words in the prompt make it
//! slow (`slow=MILLISECONDS` a step), fail (`fail`), die (`crash`), hang (`hang`), stay deaf to cancelling (`deaf`) or
//! write nothing (`nothing`). `SIM_START=model` makes it refuse its model. It writes what it was asked as its "video", and
//! likewise the pictures beside it.

use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use std::{fs, process, thread};

use animd_engine::progress::{Progress, Stage};
use animd_engine::protocol::{FromEngine, HEARTBEAT_SECONDS, Kernels, PROTOCOL, Pictures, Report, ToEngine};
use animd_engine::request::Request;

#[derive(Clone)]
struct Line(Arc<Mutex<UnixStream>>);

impl Line {
    fn send(&self, message: &FromEngine) {
        let mut text = serde_json::to_string(message).expect("messages are plain data");
        text.push('\n');
        let mut stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if stream.write_all(text.as_bytes()).is_err() {
            process::exit(1);
        }
    }
}

fn main() -> io::Result<()> {
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let line = Line(Arc::new(Mutex::new(socket.try_clone()?)));
    if std::env::var("SIM_START").is_ok_and(|s| s == "model") {
        let message = "the model folder is empty".into();
        line.send(&FromEngine::Failed { job: 0, code: "model".into(), message });
        process::exit(1);
    }
    line.send(&FromEngine::Hello {
        protocol: PROTOCOL,
        version: env!("CARGO_PKG_VERSION").into(),
        backend: "cpu".into(),
        model: "simulated".into(),
        kernels: Kernels::default(),
        device: None,
    });
    let hung = Arc::new(AtomicBool::new(false));
    let canceled = Arc::new(AtomicU64::new(0));
    {
        let (line, hung) = (line.clone(), hung.clone());
        thread::spawn(move || {
            while !hung.load(Ordering::SeqCst) {
                line.send(&FromEngine::Alive);
                thread::sleep(Duration::from_secs(HEARTBEAT_SECONDS));
            }
        });
    }
    for text in BufReader::new(socket).lines() {
        match serde_json::from_str(&text?)? {
            ToEngine::Hello { .. } => {}
            ToEngine::Cancel { job } => canceled.store(job, Ordering::SeqCst),
            ToEngine::Generate { job, image, output, pictures, request } => {
                let (line, hung, canceled) = (line.clone(), hung.clone(), canceled.clone());
                thread::spawn(move || {
                    let work = (&*image, &*output, &pictures, &*request);
                    let result = generate(&line, job, work, &hung, &canceled);
                    line.send(&match result {
                        Ok(report) => FromEngine::Done { job, report },
                        Err((code, message)) => FromEngine::Failed { job, code: code.into(), message },
                    });
                });
            }
        }
    }
    Ok(())
}

fn generate(
    line: &Line,
    job: u64,
    (image, output, pictures, request): (&Path, &Path, &Pictures, &Request),
    hung: &AtomicBool,
    canceled: &AtomicU64,
) -> Result<Report, (&'static str, String)> {
    let has = |word: &str| request.prompt.split_whitespace().any(|w| w == word);
    let pause =
        request.prompt.split_whitespace().find_map(|w| w.strip_prefix("slow=")?.parse().ok()).unwrap_or(1);
    let picture = fs::read(image).map_err(|e| ("file", e.to_string()))?;
    if !picture.starts_with(b"\x89PNG") {
        return Err(("invalid-image", "the picture is not an image that can be read".into()));
    }
    let steps = request.steps;
    for step in 0..=steps {
        thread::sleep(Duration::from_millis(pause));
        if canceled.load(Ordering::SeqCst) == job && !has("deaf") {
            return Err(("canceled", "cancelled".into()));
        }
        let fraction = f64::from(step) / f64::from(steps + 1);
        let seconds_left = Some(f64::from(steps - step) * pause as f64 / 1e3);
        line.send(&FromEngine::Progress {
            job,
            progress: Progress { stage: Stage::Denoise, step, steps, fraction, seconds_left },
        });
        if let Some(preview) = pictures.preview.as_deref().filter(|_| step > 0) {
            write(preview, &format!("preview {step} of job {job}\n"))?;
            line.send(&FromEngine::Preview { job, n: step });
        }
        if step == steps / 2 {
            if has("crash") {
                process::abort();
            }
            if has("fail") {
                return Err((
                    "memory",
                    "the video needs 80 GiB, the machine has 8; choose a smaller size".into(),
                ));
            }
            if has("hang") {
                hung.store(true, Ordering::SeqCst);
                thread::sleep(Duration::from_secs(3600));
            }
        }
    }
    for (name, path) in [("poster", &pictures.poster), ("thumbnail", &pictures.thumbnail)] {
        if let Some(path) = path {
            write(path, &format!("{name} of job {job}\n"))?;
        }
    }
    let video = format!("simulated video of job {job}, seed {}\n", request.seed);
    if !has("nothing") {
        fs::File::create(output)
            .and_then(|mut file| file.write_all(video.as_bytes()).and_then(|()| file.sync_all()))
            .map_err(|e| ("output", e.to_string()))?;
    }
    Ok(Report {
        width: 832,
        height: 480,
        frames: request.frames,
        seed: request.seed,
        forwards_computed: 2 * steps,
        seconds: vec![("load".into(), 0.5), ("denoise".into(), pause as f64 * f64::from(steps) / 1e3)],
        steps: vec![(pause as f64 / 1e3, true); steps as usize],
        bytes: video.len() as u64,
        peak_ram_bytes: 1 << 20,
        ..Report::default()
    })
}

/// A picture that is none, but of which, as of a real one, no reader sees a half.
fn write(path: &Path, text: &str) -> Result<(), (&'static str, String)> {
    let part = path.with_extension("part");
    fs::write(&part, text).and_then(|()| fs::rename(&part, path)).map_err(|e| ("output", e.to_string()))
}
