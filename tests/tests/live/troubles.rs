//! The machine's trouble is not the job's: the queue rests with a state that says why, pictures stay where they are, and
//! everything goes on by itself when the trouble ends.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;

use crate::harness::{ALICE, House, others};

/// Waits until the service says that no video can be saved, and returns its sentence.
fn rests(house: &House) -> String {
    house.until("the queue rests", |house| house.json(&["status"])["state"] == "no-output");
    house.json(&["status"])["state_text"].as_str().unwrap().to_owned()
}

/// Drops pictures, and checks that they wait.
fn drop_and_wait(house: &House, count: i64) {
    for n in 0..count {
        house.drop_picture(format!("photo{n}.png"), Some(&format!("number {n}")));
    }
    house.until("they are queued", |house| {
        house.number("SELECT count(*) FROM job WHERE state = 'queued' AND attempt = 0") == Some(count)
    });
    rests(house);
    assert_eq!(house.number("SELECT count(*) FROM job WHERE state = 'queued'"), Some(count));
    assert_eq!(
        house.files("inbox").len(),
        2 * usize::try_from(count).unwrap(),
        "pictures stay where they are"
    );
}

/// Waits until all jobs are done, each at its first attempt.
fn all_done(house: &House, count: i64) {
    house.until_ended(count);
    assert_eq!(house.number("SELECT count(*) FROM job WHERE state = 'done' AND attempt = 1"), Some(count));
    assert_eq!(house.files("outbox").len(), usize::try_from(count).unwrap());
    house.until("the state tells", |house| house.json(&["status"])["state"] == "idle");
}

#[test]
fn a_short_disk_holds_the_queue_and_fails_no_job() {
    let mut house = House::started("[queue]\nfree_mib = 1000000000\n");
    drop_and_wait(&house, 3);
    let text = rests(&house);
    assert!(text.contains("MiB left, and queue.free_mib asks for 1000000000; make room"), "{text}");
    assert!(fs::read_dir(house.path("outbox")).unwrap().next().is_none(), "no unfinished file stays");
    house.configure("[queue]\nfree_mib = 0\n");
    house.write_config();
    assert!(house.animctl(&["reload"]).status.success());
    all_done(&house, 3);
}

#[test]
fn an_outbox_that_takes_no_file_is_waited_for() {
    let house = House::started("");
    // Root may write anywhere, so that a file in the folder's place stands for one that refuses.
    fs::remove_dir(house.path("outbox")).unwrap();
    fs::write(house.path("outbox"), "in the way").unwrap();
    drop_and_wait(&house, 2);
    let text = rests(&house);
    assert!(text.contains("the outbox `") && text.contains("takes no file"), "{text}");
    let known = house.number("SELECT count(*) FROM event").unwrap();
    fs::remove_file(house.path("outbox")).unwrap();
    all_done(&house, 2);
    assert_eq!(known, 2, "each try in vain leaves no trace in the ledger");
}

#[test]
fn without_ffmpeg_the_queue_rests() {
    let mut house = House::new("");
    fs::create_dir(house.path("bin")).unwrap();
    let bin = house.path("bin");
    house.set_env("PATH", bin.to_str().unwrap());
    house.start();
    drop_and_wait(&house, 2);
    let text = rests(&house);
    assert!(text.contains("no program `ffmpeg`") && text.contains("apt install ffmpeg"), "{text}");
    // A program of that name that is something else.
    symlink("/bin/true", bin.join("ffmpeg")).unwrap();
    house.until("the sentence follows", |house| rests(house).contains("cannot encode H.264"));
    fs::remove_file(bin.join("ffmpeg")).unwrap();
    let found = std::env::split_paths(&std::env::var_os("PATH").unwrap())
        .map(|dir| dir.join("ffmpeg"))
        .find(|file| file.is_file());
    symlink(found.expect("ffmpeg is installed"), bin.join("ffmpeg")).unwrap();
    all_done(&house, 2);
}

#[test]
fn one_users_outbox_holds_up_nobody_elses_jobs() {
    let mut house = House::new("[[watch]]\npath = \"ann\"\noutbox = \"videos\"\nstable_seconds = 0.2\n");
    fs::create_dir(house.path("ann")).unwrap();
    house.start();
    house.until("its outbox is there or can be made", |house| house.json(&["status"])["state"] == "idle");
    _ = fs::remove_dir(house.path("videos"));
    fs::write(house.path("videos"), "in the way").unwrap();
    fs::write(house.path("ann/hers.png"), crate::harness::PICTURE).unwrap();
    house.until("hers is queued", |house| house.number("SELECT count(*) FROM job") == Some(1));
    let text = rests(&house);
    assert!(text.contains("the outbox of a watched folder takes no file"), "{text}");
    assert!(!text.contains("videos"), "folders of users are private: {text}");
    house.drop_picture("other.png", Some("a wave"));
    house.until_ended(1);
    assert_eq!(house.text("SELECT state FROM job WHERE id = 1"), "queued");
    assert_eq!(house.files("outbox").len(), 1);
    fs::remove_file(house.path("videos")).unwrap();
    house.until_ended(2);
    assert_eq!(house.files("videos").len(), 1);
}

#[test]
fn a_finished_video_waits_for_an_outbox_that_became_read_only() {
    if !others() {
        return;
    }
    let mut house = House::closed_system("");
    for path in ["", "inbox", "outbox", "model"] {
        chown(house.path(path), Some(ALICE), Some(ALICE)).unwrap();
    }
    house.run_as(ALICE);
    house.start();
    let allow = |mode| fs::set_permissions(house.path("outbox"), fs::Permissions::from_mode(mode)).unwrap();
    house.drop_picture("photo.png", Some("slow=50"));
    house.until("it runs", |house| house.text_if("SELECT state FROM job").as_deref() == Some("running"));
    allow(0o555);
    house.until("it is finished", |house| {
        house.text_if("SELECT state FROM job").as_deref() == Some("finishing")
    });
    house.drop_picture("next.png", None);
    house.until("the next one waits, and both are told of", |house| {
        fs::read_to_string(house.path("log")).unwrap().contains("the finished video of job 1 waits")
            && house.text_if("SELECT state FROM job WHERE id = 2").as_deref() == Some("queued")
    });
    allow(0o755);
    house.until_ended(2);
    assert_eq!(house.text("SELECT group_concat(state) FROM job"), "done,done");
    assert_eq!(house.number("SELECT sum(attempt) FROM job"), Some(2), "neither was made twice");
    assert_eq!(house.files("outbox").len(), 2);
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_file_system_without_links_and_exclusive_renames_takes_everything() {
    let mut house = House::new("[defaults]\nseed = 7\n");
    fs::write(house.path("outbox/photo-7.mp4"), "mine").unwrap();
    let mut service = house.service();
    // SAFETY: between fork and exec this calls only prctl, which is async-signal-safe.
    unsafe { service.pre_exec(filter::deny_links_and_flags) };
    house.start_by(service);
    house.drop_picture("photo.png", Some("a wave"));
    house.until_ended(1);
    assert_eq!(house.files("outbox"), ["photo-7-2.mp4", "photo-7.mp4"]);
    assert_eq!(fs::read(house.path("outbox/photo-7.mp4")).unwrap(), b"mine");
    assert!(fs::metadata(house.path("outbox/photo-7-2.mp4")).unwrap().len() > 0);
    assert_eq!(house.files("inbox/done"), ["photo.png", "photo.txt"]);
    assert!(house.files("inbox").is_empty());
    let moved = house.path("inbox/done/photo.png");
    assert_eq!(house.json(&["show", "1"])["source_moved_to"], moved.to_str().unwrap());
}

/// A filter of system calls that stands for such a file system.
#[cfg(target_arch = "x86_64")]
mod filter {
    use std::io;

    const RENAMEAT2: u32 = libc::SYS_renameat2 as u32;
    const LINKAT: u32 = libc::SYS_linkat as u32;
    const LINK: u32 = libc::SYS_link as u32;

    const fn op(code: u32, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
        libc::sock_filter { code: code as u16, jt, jf, k }
    }

    /// Lets `renameat2` with flags fail with `EINVAL`, and every hard link with `EPERM`.
    pub fn deny_links_and_flags() -> io::Result<()> {
        const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
        const IS: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
        const SAY: u32 = libc::BPF_RET | libc::BPF_K;
        // The number of the call lies at 0, its fifth argument at 48.
        let program = [
            op(LOAD, 0, 0, 0),
            op(IS, 0, 3, RENAMEAT2),
            op(LOAD, 0, 0, 48),
            op(IS, 3, 0, 0),
            op(SAY, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EINVAL as u32),
            op(IS, 2, 0, LINKAT),
            op(IS, 1, 0, LINK),
            op(SAY, 0, 0, libc::SECCOMP_RET_ALLOW),
            op(SAY, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        ];
        let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
        // SAFETY: the kernel copies the program, which lives until the call returns.
        let set = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0
        };
        if set { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}
