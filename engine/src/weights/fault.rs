//! SIGBUS: what the kernel sends where a mapped file was cut, or where its disk fails.
//!
//! The handler can do almost nothing, as it may have interrupted anything. It hands the address to a thread, and keeps its own
//! from going on; the thread finds the file, says what is wrong and ends the process.

use std::ffi::c_int;
use std::io::Read;
use std::mem::{size_of, zeroed};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;

use super::mapped::fault;
use crate::{Error, Result};

/// The end of the pipe that the handler writes addresses to.
static ADDRESSES: AtomicI32 = AtomicI32::new(-1);

/// Has `report` called with the sentence when a model file cannot be read from memory, and ends the process with what it
/// returns. Only the first call in a process has an effect.
///
/// # Errors
/// [`Error::Internal`] if the system gives no pipe, thread or handler.
pub fn on_fault(report: impl FnOnce(Error) -> u8 + Send + 'static) -> Result<()> {
    let failed = |e: std::io::Error| Error::Internal(format!("cannot watch for SIGBUS: {e}"));
    let (mut reader, writer) = std::io::pipe().map_err(failed)?;
    let fd = writer.as_raw_fd();
    if ADDRESSES.compare_exchange(-1, fd, Ordering::SeqCst, Ordering::SeqCst).is_err() {
        return Ok(());
    }
    // The handler uses the pipe for as long as the process lives.
    std::mem::forget(writer);
    let wait = move || {
        let mut address = [0; size_of::<usize>()];
        if reader.read_exact(&mut address).is_err() {
            return;
        }
        match fault(usize::from_ne_bytes(address)) {
            // SAFETY: it ends the process. Nothing that is to run at an end does: the thread that was interrupted may hold
            // what that needs, such as a driver's lock.
            Some(e) => unsafe { libc::_exit(report(e).into()) },
            // It is not about a model file.
            None => std::process::abort(),
        }
    };
    thread::Builder::new().name("faults".into()).spawn(wait).map_err(failed)?;
    // SAFETY: all bytes zero are a valid `sigaction`. The handler has the signature that SA_SIGINFO asks for, lives as long as
    // the process, and calls only what is async-signal-safe.
    let set = unsafe {
        let mut action: libc::sigaction = zeroed();
        action.sa_sigaction = on_sigbus as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut())
    };
    if set == 0 { Ok(()) } else { Err(failed(std::io::Error::last_os_error())) }
}

extern "C" fn on_sigbus(_: c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO a valid `info`, and SIGBUS has an address. The buffer outlives the
    // call. `write` and `pause` are async-signal-safe.
    unsafe {
        let address = ((*info).si_addr() as usize).to_ne_bytes();
        libc::write(ADDRESSES.load(Ordering::SeqCst), address.as_ptr().cast(), address.len());
        // Going on would read the same address again.
        loop {
            libc::pause();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::hint::black_box;
    use std::path::PathBuf;
    use std::process::Command;

    use super::super::mapped::Mapped;
    use super::*;

    const FILE: &str = "ANIMD_TEST_CUT_FILE";

    /// Runs in a process of its own: reads a file that is cut at the very moment.
    #[test]
    #[ignore = "another test runs it in a process that it ends"]
    fn reads_what_is_not_there() {
        let path = PathBuf::from(std::env::var_os(FILE).expect("another test sets it"));
        on_fault(|e| {
            eprintln!("said: {e}");
            44
        })
        .expect("it listens");
        let mapped = Mapped::open(&path).expect("it is a file");
        File::options().write(true).open(&path).and_then(|file| file.set_len(10)).expect("cut");
        black_box(mapped.bytes[80_000]);
        unreachable!("there is nothing to read");
    }

    #[test]
    fn a_file_that_is_cut_while_it_is_read_ends_the_process_with_a_sentence() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("model.safetensors");
        fs::write(&path, vec![7; 100_000]).expect("written");
        let test = "weights::fault::tests::reads_what_is_not_there";
        let output = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", test, "--ignored", "--nocapture"])
            .env(FILE, &path)
            .output()
            .expect("it runs");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(44), "{text}");
        let expected = "model.safetensors` had 100000 bytes when it was opened and now has 10; copy it again";
        assert!(text.contains(expected), "{text}");
    }
}
