//! The machine sleeps and wakes, as reported by a mock of logind.

use std::fs;
use std::io::{ErrorKind, PipeReader, Read, pipe};
use std::sync::{Arc, Mutex, mpsc};

use crate::harness::House;
use rustix::fs::{OFlags, fcntl_setfl};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use zbus::object_server::SignalEmitter;
use zbus::{OwnedFd, connection, interface};

const PATH: &str = "/org/freedesktop/login1";

/// The inhibitors that were asked for: the mode, and the end of a pipe that closes when the inhibitor is released.
#[derive(Clone, Default)]
struct Asked(Arc<Mutex<Vec<(String, PipeReader)>>>);

impl Asked {
    /// Returns how many inhibitors of a mode are held now.
    fn held(&self, mode: &str) -> usize {
        let mut all = self.0.lock().unwrap();
        all.retain_mut(|(_, end)| end.read(&mut [0]).is_err_and(|e| e.kind() == ErrorKind::WouldBlock));
        all.iter().filter(|(m, _)| m == mode).count()
    }
}

struct Login(Asked);

#[interface(name = "org.freedesktop.login1.Manager")]
impl Login {
    #[expect(clippy::needless_pass_by_value, reason = "the shape that zbus asks for")]
    fn inhibit(&self, what: String, who: String, _why: String, mode: String) -> OwnedFd {
        assert_eq!((what.as_str(), who.as_str()), ("sleep", "animd"));
        let (ours, theirs) = pipe().unwrap();
        fcntl_setfl(&ours, OFlags::NONBLOCK).unwrap();
        self.0.0.lock().unwrap().push((mode, ours));
        std::os::fd::OwnedFd::from(theirs).into()
    }

    #[zbus(signal)]
    async fn prepare_for_sleep(emitter: &SignalEmitter<'_>, start: bool) -> zbus::Result<()>;
}

/// Starts a login manager on this bus, in a thread of its own; it announces each value that is sent to it as sleep or
/// wake.
fn login_manager(address: String, asked: Asked) -> UnboundedSender<bool> {
    let (tell, mut told) = unbounded_channel();
    let (ready, is_ready) = mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let bus = connection::Builder::address(address.as_str())
                .serve_at(PATH, Login(asked))
                .name("org.freedesktop.login1")
                .build()
                .await
                .unwrap();
            ready.send(()).unwrap();
            let emitter = SignalEmitter::new(&bus, PATH).unwrap();
            while let Some(start) = told.recv().await {
                Login::prepare_for_sleep(&emitter, start).await.unwrap();
            }
        });
    });
    is_ready.recv().unwrap();
    tell
}

#[test]
fn the_engine_goes_before_the_machine_sleeps() {
    let mut house = House::new("[defaults]\nseed = 7\n");
    let address = house.address().to_owned();
    house.set_env("DBUS_SYSTEM_BUS_ADDRESS", &address);
    let lives = house.path("lives");
    house.set_env("SIM_LIVES", lives.to_str().unwrap());
    let asked = Asked::default();
    let sleep = login_manager(address, asked.clone());
    house.start();
    house.until("it wants to be told", |_| asked.held("delay") == 1);
    assert_eq!(asked.held("block"), 0, "an idle service lets the machine sleep");
    house.drop_picture("photo.png", Some("slow=100"));
    house.until("the machine is kept awake", |_| asked.held("block") == 1);
    sleep.send(true).unwrap();
    house.until("the machine may sleep", |_| asked.held("delay") + asked.held("block") == 0);
    assert_eq!(house.engine(), None);
    assert_eq!(house.text("SELECT state || attempt || crashes || interruptions FROM job"), "queued000");
    assert_eq!(fs::read(&lives).unwrap().len(), 1);
    assert_eq!(house.json(&["status"])["state"], "paused");
    sleep.send(false).unwrap();
    house.until("it wants to be told again", |_| asked.held("delay") == 1);
    house.until_ended(1);
    house.until("the machine may sleep by itself", |_| asked.held("block") == 0);
    assert_eq!(house.files("outbox"), ["photo-7.mp4"]);
    assert_eq!(fs::read(&lives).unwrap().len(), 2);
}
