//! The rights of users on a system bus, with and without polkit. Other users are simulated by processes with their
//! uids, which only root can start.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::{Arc, Mutex};

use crate::harness::{ALICE, BOB, House, others};
use zbus::{OwnedVariant, interface};

/// Puts animctl and a picture where every user can read them, and returns their paths.
fn furnish(house: &House) -> (String, String) {
    let animctl = house.animctl_for_all();
    let picture = house.picture();
    fs::set_permissions(&picture, fs::Permissions::from_mode(0o644)).unwrap();
    (animctl.to_str().unwrap().to_owned(), picture)
}

/// Runs animctl as another user; returns its exit code, standard output and error.
fn animctl(house: &House, uid: u32, args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(house.path("animctl"));
    command.args(["--system", "--json"]).args(args).env("DBUS_SYSTEM_BUS_ADDRESS", house.address());
    let output = command.uid(uid).gid(uid).current_dir("/").output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// Makes a call without animctl, as another user; `interactive` allows interaction.
fn busctl(house: &House, uid: u32, interactive: bool, path: &str, call: &[&str]) -> (bool, String) {
    let mut command = Command::new("busctl");
    command.arg(format!("--address={}", house.address()));
    command.arg(format!("--allow-interactive-authorization={interactive}"));
    // A negative number among the arguments must not be read as an option.
    command.args(["--", "call", "org.animd.Animd1", path]).args(call);
    let output = command.uid(uid).gid(uid).current_dir("/").output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

const MANAGER: &str = "/org/animd/Animd1";

/// A mock of polkit that records what it was asked.
#[derive(Clone, Default)]
struct Polkit {
    allows: Arc<Mutex<Vec<&'static str>>>,
    /// The action and the flags of each question.
    asked: Arc<Mutex<Vec<(String, u32)>>>,
}

#[interface(name = "org.freedesktop.PolicyKit1.Authority")]
impl Polkit {
    fn check_authorization(
        &self,
        subject: (String, HashMap<String, OwnedVariant>),
        action: String,
        details: HashMap<String, String>,
        flags: u32,
        _cancellation: String,
    ) -> (bool, bool, HashMap<String, String>) {
        assert_eq!(subject.0, "system-bus-name");
        // polkit takes details from root only.
        assert!(details.is_empty());
        let allowed = self.allows.lock().unwrap().iter().any(|a| *a == action);
        self.asked.lock().unwrap().push((action, flags));
        (allowed, !allowed, HashMap::new())
    }
}

#[test]
fn without_polkit_everybody_has_their_own_jobs_and_root_has_all() {
    if !others() {
        return;
    }
    let house = House::system("");
    let (_, picture) = furnish(&house);
    let (code, out, error) = animctl(&house, ALICE, &["submit", &picture, "-p", "secret", "--wait"]);
    assert_eq!(code, Some(0), "{out}{error}");
    assert_eq!(animctl(&house, ALICE, &["show", "1"]).0, Some(0));
    let (code, _, error) = animctl(&house, BOB, &["show", "1"]);
    assert_eq!(code, Some(1));
    assert!(error.contains("managing other users' jobs is for root") && error.contains("sudo"), "{error}");
    assert!(house.json(&["show", "1"])["settings"]["prompt"] == "secret", "root sees all");

    let (code, out, error) = animctl(&house, ALICE, &["submit", &picture, "-p", "secret slow=1000"]);
    assert_eq!(code, Some(0), "{error}");
    assert!(out.contains("\"id\":2"), "{out}");
    assert_eq!(animctl(&house, BOB, &["cancel", "2"]).0, Some(1));
    let job = "/org/animd/Animd1/job/2";
    for call in [
        &["org.animd.Animd1.Job", "Describe"][..],
        &["org.animd.Animd1.Job", "OpenResult"],
        &["org.animd.Animd1.Job", "OpenThumbnail"],
        &["org.animd.Animd1.Job", "OpenPreview"],
        &["org.animd.Animd1.Job", "SetPriority", "i", "-1"],
        &["org.animd.Animd1.Job", "Retry", "a{sv}", "0"],
        &["org.animd.Animd1.Job", "Forget"],
        &["org.animd.Animd1.Job", "Collected"],
    ] {
        let (done, text) = busctl(&house, BOB, false, job, call);
        assert!(!done && text.contains("managing other users' jobs"), "{call:?}: {text}");
    }
    let manager = "org.animd.Animd1.Manager";
    for call in [
        &[manager, "Pause"][..],
        &[manager, "Resume"],
        &[manager, "Unload"],
        &[manager, "Reload"],
        &[manager, "Watches"],
        &[manager, "AddWatch", "sa{sv}", "/tmp", "0"],
        &[manager, "RemoveWatch", "s", "/tmp"],
        &[manager, "Inhibit", "sss", "pause", "a", "b"],
        &[manager, "SubmitPath", "sa{sv}", "/nowhere.png", "1", "priority", "i", "1"],
        &[manager, "History", "a{sv}", "1", "owner", "u", "12345"],
    ] {
        let (done, text) = busctl(&house, BOB, false, MANAGER, call);
        assert!(!done && text.contains("is for root"), "{call:?}: {text}");
    }
    // A file in a watched folder belongs to its owner, whoever may read it; and nobody else learns whether it exists.
    let theirs = house.path("inbox/theirs.png");
    fs::write(&theirs, "no picture").unwrap();
    fs::set_permissions(&theirs, fs::Permissions::from_mode(0o644)).unwrap();
    for path in [theirs, house.path("inbox/done/nothing.png")] {
        let call = [manager, "SubmitPath", "sa{sv}", path.to_str().unwrap(), "0"];
        let (done, text) = busctl(&house, BOB, false, MANAGER, &call);
        assert!(!done && text.contains("there is no file of yours"), "{text}");
    }
    let (done, text) = busctl(&house, BOB, false, MANAGER, &[manager, "History", "a{sv}", "0"]);
    assert!(done && text.trim() == "aa{sv} 0", "{text}");

    // The public facts hold no prompt, no name and no path.
    let (done, text) = busctl(&house, BOB, false, MANAGER, &[manager, "List", "a{sv}", "0"]);
    assert!(
        done && text.contains("running") && !text.contains("secret") && !text.contains("picture"),
        "{text}"
    );
    let managed = ["org.freedesktop.DBus.ObjectManager", "GetManagedObjects"];
    let (done, text) = busctl(&house, BOB, false, MANAGER, &managed);
    assert!(done && text.contains("job/2") && !text.contains("secret") && !text.contains("outbox"), "{text}");
    assert!(animctl(&house, ALICE, &["list"]).1.contains("picture.png"));
    assert_eq!(animctl(&house, ALICE, &["cancel", "2"]).0, Some(0));
}

#[tokio::test]
async fn polkit_decides_the_rest_and_asks_only_where_the_call_allows_it() {
    if !others() {
        return;
    }
    let house = House::system("");
    let (_, picture) = furnish(&house);
    let polkit = Polkit::default();
    let bus = house.connect().await;
    bus.object_server().at("/org/freedesktop/PolicyKit1/Authority", polkit.clone()).await.unwrap();
    bus.request_name("org.freedesktop.PolicyKit1").await.unwrap();
    let house = Arc::new(house);
    // This thread answers as polkit meanwhile.
    let away = async |work: Box<dyn FnOnce(&House) -> (bool, String) + Send>| {
        let house = house.clone();
        tokio::task::spawn_blocking(move || work(&house)).await.unwrap()
    };
    let show = |uid| -> Box<dyn FnOnce(&House) -> (bool, String) + Send> {
        Box::new(move |house| {
            let (code, _, error) = animctl(house, uid, &["show", "1"]);
            (code == Some(0), error)
        })
    };
    let describe = |interactive| -> Box<dyn FnOnce(&House) -> (bool, String) + Send> {
        Box::new(move |house| {
            let call = ["org.animd.Animd1.Job", "Describe"];
            busctl(house, BOB, interactive, "/org/animd/Animd1/job/1", &call)
        })
    };
    let asked = || std::mem::take(&mut *polkit.asked.lock().unwrap());

    let (done, text) = away(Box::new(move |house| {
        let (code, _, error) = animctl(house, ALICE, &["submit", &picture, "--wait"]);
        (code == Some(0), error)
    }))
    .await;
    assert!(done, "{text}");
    assert!(away(show(ALICE)).await.0);
    assert_eq!(asked(), [], "one's own jobs are nobody's business");

    let (done, text) = away(describe(false)).await;
    assert!(!done && text.contains("asks for a password"), "{text}");
    assert_eq!(asked(), [("org.animd.animd1.manage-others".into(), 0)]);
    let (done, text) = away(describe(true)).await;
    assert!(!done && text.contains("nobody is there to ask"), "{text}");
    assert_eq!(asked(), [("org.animd.animd1.manage-others".into(), 1)]);
    polkit.allows.lock().unwrap().push("org.animd.animd1.manage-others");
    assert!(away(describe(false)).await.0);

    asked();
    for (call, action) in [
        (&["Pause"][..], "configure"),
        (&["Reload"], "configure"),
        (&["Unload"], "unload"),
        (&["Inhibit", "sss", "pause", "a", "b"], "unload"),
        (&["SubmitPath", "sa{sv}", "/nowhere.png", "1", "priority", "i", "1"], "raise-priority"),
    ] {
        let call: Vec<String> =
            ["org.animd.Animd1.Manager"].iter().chain(call).map(|s| (*s).to_owned()).collect();
        let named = call.join(" ");
        let (done, text) = away(Box::new(move |house| {
            let call: Vec<&str> = call.iter().map(String::as_str).collect();
            busctl(house, BOB, false, MANAGER, &call)
        }))
        .await;
        assert!(!done && text.contains(&format!("org.animd.animd1.{action}")), "{named}: {text}");
        assert_eq!(asked(), [(format!("org.animd.animd1.{action}"), 0)], "{named}");
    }
    polkit.allows.lock().unwrap().push("org.animd.animd1.configure");
    let pause = |house: &House| busctl(house, BOB, false, MANAGER, &["org.animd.Animd1.Manager", "Pause"]);
    let (done, text) = away(Box::new(pause)).await;
    assert!(done, "{text}");
}
