//! Runs the real service on a bus of its own, with the simulated engine or the real one.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use animd_client::ManagerProxy;
use rusqlite::Connection;
use tempfile::TempDir;

pub use crate::common::program;

/// A complete PNG of one pixel.
pub const PICTURE: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\0\0\0\0:~\x9bU\
\0\0\0\nIDATx\xdach\0\0\0\x82\0\x81\xdaE\x08;\0\0\0\0IEND\xaeB`\x82";

/// Longer than anything here takes on a busy machine; only a failing test waits that long.
const PATIENCE: Duration = Duration::from_secs(120);

// The bus takes only users that the machine knows: these two are `daemon` and `bin` on every Linux.
pub const ALICE: u32 = 1;
pub const BOB: u32 = 2;

/// Returns whether other users can be simulated here, and prints a note if not.
pub fn others() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("not run: only root can play other users");
    }
    root
}

/// The test's folders, its bus, and the service while it runs.
pub struct House {
    pub dir: TempDir,
    bus: Child,
    address: String,
    service: Option<Child>,
    config: String,
    /// `inbox.stable_seconds`: short, so that pictures are not taken earlier than that.
    stable_seconds: f64,
    env: Vec<(String, String)>,
    /// Whether the service treats the bus as the system's.
    system: bool,
    /// The user that the service runs as, if not the test's own.
    uid: Option<u32>,
    /// A program that starts the service, with its arguments.
    wrap: Vec<String>,
    /// The engine's program, and its model.
    engine: (PathBuf, PathBuf),
}

impl Drop for House {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the service's log\n{}", fs::read_to_string(self.path("log")).unwrap_or_default());
        }
        for child in self.service.iter_mut().chain([&mut self.bus]) {
            _ = child.kill();
            _ = child.wait();
        }
    }
}

impl House {
    /// Returns folders and a bus; `config` is more TOML for the service.
    pub fn new(config: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bus_config = dir.path().join("bus.conf");
        let socket = dir.path().join("bus");
        fs::write(
            &bus_config,
            format!(
                "<busconfig><type>session</type><listen>unix:path={}</listen><auth>EXTERNAL</auth><policy context=\"default\"><allow user=\"*\"/>\
                 <allow send_destination=\"*\" eavesdrop=\"true\"/><allow eavesdrop=\"true\"/><allow own=\"*\"/></policy></busconfig>",
                socket.display()
            ),
        )
        .unwrap();
        let mut bus = Command::new("dbus-daemon")
            .arg(format!("--config-file={}", bus_config.display()))
            .args(["--nofork", "--print-address"])
            .stderr(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("dbus-daemon is installed");
        let mut address = String::new();
        BufReader::new(bus.stdout.take().unwrap()).read_line(&mut address).unwrap();
        for folder in ["inbox", "outbox", "model"] {
            fs::create_dir(dir.path().join(folder)).unwrap();
        }
        Self {
            dir,
            bus,
            address: address.trim().into(),
            service: None,
            config: config.into(),
            stable_seconds: 0.2,
            env: Vec::new(),
            system: false,
            uid: None,
            wrap: Vec::new(),
            engine: (program("animd-engine-sim"), "model".into()),
        }
    }

    /// Returns folders and a running service on a bus that it treats as the system's, and that other users reach.
    pub fn system(config: &str) -> Self {
        let mut house = Self::closed_system(config);
        house.start();
        house
    }

    /// Returns folders and a bus as [`Self::system`] does, without starting the service.
    pub fn closed_system(config: &str) -> Self {
        let mut house = Self::new(config);
        house.system = true;
        let open = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
        fs::set_permissions(house.dir.path(), open).unwrap();
        house
    }

    /// Returns folders and a bus, with the service running.
    pub fn started(config: &str) -> Self {
        let mut house = Self::new(config);
        house.start();
        house
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Copies animctl to where every user can run it, and returns the path.
    pub fn animctl_for_all(&self) -> PathBuf {
        let animctl = self.path("animctl");
        fs::copy(program("animctl"), &animctl).unwrap();
        // A child that another test has just forked may still have the copy open for writing.
        let busy = || Command::new(&animctl).arg("--version").output().map_err(|e| e.kind());
        while busy() == Err(ErrorKind::ExecutableFileBusy) {
            sleep(Duration::from_millis(10));
        }
        animctl
    }

    /// Returns the engine's process, while there is one.
    pub fn engine(&self) -> Option<u32> {
        let pid = self.service.as_ref()?.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    }

    /// Returns the manager on this house's bus.
    pub async fn manager(&self) -> ManagerProxy<'static> {
        ManagerProxy::new(&self.connect().await).await.unwrap()
    }

    /// Returns a connection to this house's bus.
    pub async fn connect(&self) -> zbus::Connection {
        zbus::connection::Builder::address(self.address.as_str()).build().await.unwrap()
    }

    /// Returns a connection of another user's; only for tests that run as root, and on a bus that others reach.
    pub async fn connect_as(&self, uid: u32) -> zbus::Connection {
        let path = self.path("bus");
        let connect = move || {
            // SAFETY: the bare system call changes the ids of this thread alone, which ends right after.
            let changed = unsafe { libc::syscall(libc::SYS_setresuid, -1, uid, -1) };
            assert_eq!(changed, 0, "this thread becomes user {uid}");
            UnixStream::connect(path).unwrap()
        };
        let stream = std::thread::spawn(connect).join().unwrap();
        zbus::connection::Builder::unix_stream(stream).user_id(uid).build().await.unwrap()
    }

    /// Returns the address of this house's bus.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Returns the variable that says where the service's bus is.
    pub fn bus_variable(&self) -> &'static str {
        if self.system { "DBUS_SYSTEM_BUS_ADDRESS" } else { "DBUS_SESSION_BUS_ADDRESS" }
    }

    /// Returns the running service's process.
    pub fn pid(&self) -> u32 {
        self.service.as_ref().map_or(0, Child::id)
    }

    pub fn set_env(&mut self, name: &str, value: &str) {
        self.env.push((name.into(), value.into()));
    }

    /// Starts the service and waits until it has its name.
    pub fn start(&mut self) {
        self.start_by(self.service());
    }

    /// Starts the service by this command, which is [`Self::service`] with changes, and waits until it has its name.
    pub fn start_by(&mut self, mut service: Command) {
        self.service = Some(service.spawn().unwrap());
        for _ in 0..600 {
            if self.animctl(&["status"]).status.success() {
                return;
            }
            let ended = self.service.as_mut().and_then(|service| service.try_wait().unwrap());
            assert!(ended.is_none(), "the service ended: {ended:?}");
            sleep(Duration::from_millis(50));
        }
        panic!("the service does not answer");
    }

    /// Lets the service run as another user; only for tests that run as root.
    pub fn run_as(&mut self, uid: u32) {
        self.uid = Some(uid);
    }

    /// Lets another program start the service by replacing itself with it.
    pub fn wrap(&mut self, command: &[&str]) {
        self.wrap = command.iter().map(|word| (*word).to_owned()).collect();
    }

    /// Lets the real engine make the videos, with this model.
    #[allow(dead_code, reason = "only the tests with the real engine call it")]
    pub fn use_real_engine(&mut self, model: &Path) {
        self.engine = (program("animd-engine"), model.into());
    }

    /// Configures no model.
    #[allow(dead_code, reason = "not every program of tests calls it")]
    pub fn use_no_model(&mut self) {
        self.engine.1 = PathBuf::new();
    }

    /// Gives the small model its name, as the package does.
    #[allow(dead_code, reason = "not every program of tests calls it")]
    pub fn install_small_model(&self) {
        let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/small-model/files");
        fs::create_dir_all(self.path("models")).unwrap();
        std::os::unix::fs::symlink(files, self.path("models/small")).unwrap();
    }

    /// Writes the service's configuration, for its start or for a reload.
    pub fn write_config(&self) -> PathBuf {
        let file = self.path("animd.toml");
        let model = match self.engine.1.as_os_str().is_empty() {
            true => String::new(),
            false => format!("[model]\npath = \"{}\"\n", self.engine.1.display()),
        };
        let text = format!(
            "{model}[folders]\ninbox = \"inbox\"\noutbox = \"outbox\"\nstate = \"state\"\n\
             [inbox]\nstable_seconds = {}\n{}",
            self.stable_seconds, self.config
        );
        fs::write(&file, text).unwrap();
        file
    }

    pub fn spawn(&mut self) {
        self.service = Some(self.service().spawn().unwrap());
    }

    /// Returns the service's command, as it is started here.
    pub fn service(&self) -> Command {
        let file = self.write_config();
        let log = fs::OpenOptions::new().create(true).append(true).open(self.path("log")).unwrap();
        let animd = program("animd");
        let mut service = match self.wrap.split_first() {
            Some((wrap, args)) => {
                let mut service = Command::new(wrap);
                service.args(args).arg(animd);
                service
            }
            None => Command::new(animd),
        };
        if let Some(uid) = self.uid {
            service.uid(uid).gid(uid);
        }
        service
            .args((!self.system).then_some("--user"))
            .arg("--config")
            .arg(&file)
            .arg("--engine")
            .arg(&self.engine.0)
            .env(self.bus_variable(), &self.address)
            .env("HOME", self.dir.path())
            .env_remove("NOTIFY_SOCKET")
            .env_remove("JOURNAL_STREAM")
            // The tests must not depend on a real driver of this machine.
            .env("NVML_LIBRARY", "/nonexistent/libnvidia-ml.so.1")
            .envs(self.env.iter().cloned())
            .stderr(log);
        service
    }

    /// Sets the additional TOML for the next start of the service.
    pub fn configure(&mut self, config: &str) {
        self.config = config.into();
    }

    /// Sets `inbox.stable_seconds` for the next start of the service.
    #[allow(dead_code, reason = "not every program with this harness calls it")]
    pub fn set_stable(&mut self, seconds: f64) {
        self.stable_seconds = seconds;
    }

    /// Ends the bus, as at the end of a session.
    pub fn end_bus(&mut self) {
        self.bus.kill().unwrap();
        self.bus.wait().unwrap();
    }

    /// Returns the bytes of memory that the service has now (`VmRSS`), or has had at most (`VmHWM`).
    pub fn memory(&self, which: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(which)).unwrap();
        let kib: u64 = line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap();
        kib << 10
    }

    /// Returns how many files the service has open.
    pub fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// Returns the exit code of a service that has ended by itself.
    pub fn exited(&mut self) -> Option<i32> {
        self.service.as_mut()?.try_wait().unwrap()?.code()
    }

    /// Kills the service, as a power cut would.
    pub fn kill(&mut self) {
        if let Some(mut service) = self.service.take() {
            service.kill().unwrap();
            service.wait().unwrap();
        }
    }

    /// Stops the service as systemd does, and returns its exit code.
    pub fn stop(&mut self) -> Option<i32> {
        let mut service = self.service.take()?;
        let pid = rustix::process::Pid::from_child(&service);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        service.wait().unwrap().code()
    }

    pub fn animctl(&self, args: &[&str]) -> Output {
        self.animctl_command(args).output().unwrap()
    }

    pub fn animctl_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program("animctl"));
        let bus = if self.system { "--system" } else { "--user" };
        command.arg(bus).args(args).env(self.bus_variable(), &self.address);
        command
    }

    /// Runs `animctl --json ARGS`, which must succeed, and returns the value.
    pub fn json(&self, args: &[&str]) -> serde_json::Value {
        let output = self.animctl(&[&["--json"], args].concat());
        assert!(output.status.success(), "animctl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Drops a picture with a prompt into the inbox, with the sidecar first, as a file manager does.
    pub fn drop_picture(&self, name: impl AsRef<OsStr>, prompt: Option<&str>) {
        let path = self.path("inbox").join(name.as_ref());
        if let Some(prompt) = prompt {
            fs::write(path.with_extension("txt"), prompt).unwrap();
        }
        fs::write(&path, PICTURE).unwrap();
    }

    /// Writes a picture outside the inbox and returns its path.
    pub fn picture(&self) -> String {
        let path = self.path("picture.png");
        fs::write(&path, PICTURE).unwrap();
        path.to_str().unwrap().to_owned()
    }

    pub fn until(&self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let start = Instant::now();
        while !done(self) {
            assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
            sleep(Duration::from_millis(20));
        }
    }

    /// Waits until so many jobs have ended.
    pub fn until_ended(&self, count: i64) {
        self.until(&format!("{count} jobs have ended"), |house| {
            house.number("SELECT count(*) FROM job WHERE state IN ('done','failed','canceled')")
                == Some(count)
        });
    }

    /// Returns a number from the ledger; `None` while it cannot be read.
    pub fn number(&self, sql: &str) -> Option<i64> {
        let db = Connection::open(self.path("state/ledger.db")).ok()?;
        db.query_row(sql, [], |row| row.get(0)).ok()
    }

    /// Returns a text from the ledger.
    pub fn text(&self, sql: &str) -> String {
        let db = Connection::open(self.path("state/ledger.db")).unwrap();
        db.query_row(sql, [], |row| row.get(0)).unwrap()
    }

    /// Returns a text from the ledger; `None` while it has none or cannot be read.
    pub fn text_if(&self, sql: &str) -> Option<String> {
        let db = Connection::open(self.path("state/ledger.db")).ok()?;
        db.query_row(sql, [], |row| row.get(0)).ok()
    }

    /// Returns the files of a folder, sorted, as text.
    pub fn files(&self, folder: &str) -> Vec<String> {
        files(&self.path(folder))
    }
}

/// Returns what a program printed.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a verb, which must succeed, and returns what it prints.
pub fn says(house: &House, args: &[&str]) -> String {
    let output = house.animctl(args);
    assert!(output.status.success(), "animctl {args:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

pub fn files(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .map(|dir| {
            dir.flatten()
                .filter(|e| e.path().is_file())
                .map(|e| animd_common::files::show(e.file_name()))
                .collect()
        })
        .unwrap_or_default();
    names.sort();
    names
}
