//! An engine without a model, for the tests of the service; no package ships it. It obeys the protocol, and writes a line
//! of text where a video is asked for, and likewise the pictures beside it. Words in the prompt, or in the variable
//! `SIM_JOB` for every job, make it misbehave:
//!
//! | word | what it does |
//! |---|---|
//! | `slow=MS` | takes so many milliseconds for each denoising step |
//! | `fail`, `fail=CODE` | refuses the job with this code; `memory` without one |
//! | `zero` | refuses the job with a sentence that has a zero byte and a terminal escape |
//! | `crash` | aborts |
//! | `kill` | dies by SIGKILL, as from the kernel when memory runs out |
//! | `exit` | ends with status 3 |
//! | `hang` | stands still, heartbeat and all |
//! | `garbage` | says something that is no message |
//! | `endless` | says a line that is longer than any message |
//! | `stray` | reports the end of a job that it was not given, and goes on |
//! | `deaf` | does not stop when it is told to |
//! | `nothing` | reports a video that it has not written |
//! | `short` | reports more bytes than it has written |
//! | `model-lora=NAME` | reports that the model's own file names this `LoRA` |
//!
//! Like an engine it notes which settings change nothing.
//! The words from `fail` to `stray` act half-way through denoising, or in the stage that they name: `crash@load`,
//! `hang@vae-decode`.
//! The variable `SIM_START` has words for the start: `slow=MS` loads for so long, `model` and `device` refuse the model and
//! the GPU, `model=END` refuses a model whose path ends so, `protocol` speaks another version, `mute` says nothing, `crash` aborts.
//! `SIM_LIVES=FILE` is a file to which each start adds a byte. A model in a folder called `models` has its name, any other is called
//! `simulated`. With `SIM_KERNELS` it claims code for compute capability 9.0, and to run on the
//! GPU that it is given.

use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use std::{fs, process, thread};

use animd_protocol::ErrorCode;
use animd_protocol::lora::ModelLora;
use animd_protocol::messages::{
    FromEngine, HEARTBEAT_SECONDS, Kernels, MAX_LINE, PROTOCOL, Pictures, Report, Target, ToEngine,
};
use animd_protocol::progress::{Progress, Stage};
use animd_protocol::recipe::Recipe;
use animd_protocol::request::Request;

#[derive(Clone)]
struct Line(Arc<Mutex<UnixStream>>);

impl Line {
    fn send(&self, message: &FromEngine) {
        let mut text = serde_json::to_string(message).expect("messages are plain data");
        text.push('\n');
        self.say(text.as_bytes());
    }

    fn say(&self, bytes: &[u8]) {
        let mut stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if stream.write_all(bytes).is_err() {
            process::exit(1);
        }
    }
}

/// Words of a prompt or a variable.
struct Words(String);

impl Words {
    fn variable(name: &str) -> String {
        std::env::var(name).unwrap_or_default()
    }

    fn all(&self) -> impl Iterator<Item = &str> {
        self.0.split_whitespace()
    }

    fn has(&self, word: &str) -> bool {
        self.all().any(|w| w == word)
    }

    /// Returns the value of `word=VALUE`.
    fn value(&self, word: &str) -> Option<&str> {
        self.all().find_map(|w| w.strip_prefix(word)?.strip_prefix('='))
    }

    fn millis(&self, word: &str) -> Option<Duration> {
        self.value(word)?.parse().ok().map(Duration::from_millis)
    }

    /// Returns whether `word` is to happen in this stage: `word@STAGE`, or `word` alone in the middle of denoising.
    fn now(&self, word: &str, stage: Stage, middle: bool) -> bool {
        self.all().any(|w| match w.split_once('@') {
            Some((w, at)) => w == word && at == stage.name() && (middle || stage != Stage::Denoise),
            None => w == word && middle,
        })
    }
}

/// Returns the simulated model: it can end a video at a given picture, and need not.
fn recipe() -> Recipe {
    let mut recipe = Recipe::wan21_i2v_least();
    recipe.conditioning.last_frame = true;
    recipe
}

/// Returns what a model at this path is called.
fn name(model: &Path) -> String {
    let is_named = model.parent().is_some_and(|folder| folder.ends_with("models"));
    let name = model.file_stem().filter(|_| is_named);
    name.map_or_else(|| "simulated".into(), |name| name.to_string_lossy().into_owned())
}

fn main() -> io::Result<()> {
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let line = Line(Arc::new(Mutex::new(socket.try_clone()?)));
    let start = Words(Words::variable("SIM_START"));
    if let Some(lives) = std::env::var_os("SIM_LIVES") {
        fs::OpenOptions::new().create(true).append(true).open(lives)?.write_all(b".")?;
    }
    thread::sleep(start.millis("slow").unwrap_or_default());
    let model = std::env::args().skip_while(|word| word != "--model").nth(1).unwrap_or_default();
    let is_refused = |code: ErrorCode| start.value(code.name()).is_some_and(|end| model.ends_with(end));
    for (code, message) in
        [(ErrorCode::Model, "the model folder is empty"), (ErrorCode::Device, "there is no GPU")]
    {
        if start.has(code.name()) || is_refused(code) {
            line.send(&FromEngine::Failed { job: 0, code, message: message.into() });
            process::exit(1);
        }
    }
    if start.has("crash") {
        process::abort();
    }
    if start.has("mute") {
        thread::sleep(Duration::from_secs(3600));
    }
    let mut kernels = Kernels::default();
    if std::env::var_os("SIM_KERNELS").is_some() {
        kernels.native.push(Target { capability: (9, 0), exact: true });
        kernels.driver = Some(535);
    }
    let visible = std::env::var_os("CUDA_VISIBLE_DEVICES").is_some_and(|gpu| !gpu.is_empty());
    line.send(&FromEngine::Hello {
        protocol: PROTOCOL + u32::from(start.has("protocol")),
        version: env!("CARGO_PKG_VERSION").into(),
        backend: if visible { "cuda" } else { "cpu" }.into(),
        model: name(Path::new(&model)),
        kernels,
        // A small model: the service refuses what the machine's memory does not hold.
        recipe: Some(Box::new(recipe())),
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
            ToEngine::Generate { job, image, output, pictures, request, .. } => {
                // An earlier attempt at this job may have been cancelled.
                _ = canceled.compare_exchange(job, 0, Ordering::SeqCst, Ordering::SeqCst);
                let (line, hung, canceled) = (line.clone(), hung.clone(), canceled.clone());
                thread::spawn(move || {
                    let work = (&*image, &*output, &pictures, &*request);
                    let result = generate(&line, job, work, &hung, &canceled);
                    line.send(&match result {
                        Ok(report) => FromEngine::Done { job, report },
                        Err((code, message)) => FromEngine::Failed { job, code, message },
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
) -> Result<Report, (ErrorCode, String)> {
    let words = Words(format!("{} {}", request.prompt, Words::variable("SIM_JOB")));
    let pause = words.millis("slow").unwrap_or(Duration::from_millis(1));
    let picture = fs::read(image).map_err(|e| (ErrorCode::File, e.to_string()))?;
    if !picture.starts_with(b"\x89PNG") && !picture.starts_with(b"\xff\xd8\xff") {
        return Err((ErrorCode::InvalidImage, "the picture is not an image that can be read".into()));
    }
    let steps = request.steps;
    for stage in Stage::ALL {
        let range = if stage == Stage::Denoise { 0..=steps } else { 0..=0 };
        for step in range {
            if stage == Stage::Denoise {
                thread::sleep(pause);
            }
            if canceled.load(Ordering::SeqCst) == job && !words.has("deaf") {
                return Err((ErrorCode::Canceled, "cancelled".into()));
            }
            let done = match stage {
                Stage::Denoise => step,
                stage if stage > Stage::Denoise => steps,
                _ => 0,
            };
            let fraction = f64::from(done) / f64::from(steps + 1);
            let seconds_left = Some(f64::from(steps - done) * pause.as_secs_f64());
            let progress = Progress { stage, step: done, steps, fraction, seconds_left };
            line.send(&FromEngine::Progress { job, progress });
            if stage == Stage::Write {
                line.send(&FromEngine::Saving { job });
            }
            if let Some(preview) = pictures.preview.as_deref().filter(|_| step > 0) {
                write(preview, &format!("preview {step} of job {job}\n"))?;
                line.send(&FromEngine::Preview { job, n: step });
            }
            misbehave(line, job, &words, hung, |word| {
                words.now(word, stage, stage == Stage::Denoise && step == steps / 2)
            })?;
        }
    }
    for (name, path) in [("poster", &pictures.poster), ("thumbnail", &pictures.thumbnail)] {
        if let Some(path) = path {
            write(path, &format!("{name} of job {job}\n"))?;
        }
    }
    let video = format!("simulated video of job {job}, seed {}\n", request.seed);
    let written = if words.has("short") { video.len() / 2 } else { video.len() };
    if !words.has("nothing") {
        fs::File::create(output)
            .and_then(|mut file| file.write_all(&video.as_bytes()[..written]).and_then(|()| file.sync_all()))
            .map_err(|e| (ErrorCode::Output, e.to_string()))?;
    }
    Ok(Report {
        width: 832,
        height: 480,
        frames: request.frames,
        seed: request.seed,
        forwards_computed: 2 * steps,
        seconds: vec![("load".into(), 0.5), ("denoise".into(), pause.as_secs_f64() * f64::from(steps))],
        steps: vec![(pause.as_secs_f64(), true); steps as usize],
        bytes: video.len() as u64,
        peak_ram_bytes: 1 << 20,
        notes: recipe().remarks(request),
        model_loras: words.value("model-lora").map(model_lora).into_iter().collect(),
        ..Report::default()
    })
}

/// Returns a `LoRA` of this name that the model's own file names.
fn model_lora(name: &str) -> ModelLora {
    ModelLora { name: name.to_owned(), strength: 0.8, strength_low: Some(0.5), sha256: "ab".repeat(32) }
}

/// Does what `words` ask for if `now` says that it is time: the words of the table that may name a stage.
fn misbehave(
    line: &Line,
    job: u64,
    words: &Words,
    hung: &AtomicBool,
    now: impl Fn(&str) -> bool,
) -> Result<(), (ErrorCode, String)> {
    if now("crash") {
        process::abort();
    }
    if now("kill") {
        _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
    if now("exit") {
        process::exit(3);
    }
    if now("hang") {
        hung.store(true, Ordering::SeqCst);
        thread::sleep(Duration::from_secs(3600));
    }
    if now("garbage") {
        line.say(b"this is no message\n");
    }
    if now("endless") {
        line.say(&vec![b'x'; 2 * MAX_LINE]);
    }
    if now("stray") {
        line.send(&FromEngine::Done { job: job + 1, report: Report::default() });
    }
    if now("zero") {
        return Err((ErrorCode::InvalidImage, "the picture says \0\x1b[2J and ends".into()));
    }
    let code = words.all().find_map(|w| w.strip_prefix("fail=")?.split('@').next());
    if now("fail") || code.is_some_and(|code| now(&format!("fail={code}"))) {
        let text = "the video needs 80 GiB, the machine has 8; choose a smaller size";
        return Err((code.map_or(ErrorCode::Memory, ErrorCode::named), text.into()));
    }
    Ok(())
}

/// Writes text in a picture's or video's place, by renaming, so that no reader sees half of it.
fn write(path: &Path, text: &str) -> Result<(), (ErrorCode, String)> {
    let part = path.with_extension("part");
    fs::write(&part, text)
        .and_then(|()| fs::rename(&part, path))
        .map_err(|e| (ErrorCode::Output, e.to_string()))
}
