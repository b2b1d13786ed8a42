//! The NVIDIA driver, its devices, and what it does when the machine sleeps.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use animd_common::files::show;

use super::rights::{READ, WRITE};
use super::{Check, User, refusal};

/// The oldest driver that animd works with.
const OLDEST: u32 = 580;
/// The remedy for a driver that is missing or too old. Debian's own is older than what animd needs.
const INSTALL: &str = "install NVIDIA's driver 580 or newer from https://developer.nvidia.com/cuda-downloads";

/// Checks the NVIDIA driver, given the text of `/proc/driver/nvidia/version`.
pub fn driver(version: &str) -> Check {
    const NAME: &str = "driver";
    let Some(line) = version.lines().find(|line| line.starts_with("NVRM version:")) else {
        return Check::warn(
            NAME,
            "the NVIDIA driver is not loaded, so there is no GPU for animd",
            format!("{INSTALL}, and start the machine again"),
        );
    };
    let number = line.split_whitespace().find(|word| {
        word.contains('.')
            && word.split('.').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
    });
    let major = number.and_then(|number| number.split('.').next()?.parse::<u32>().ok());
    match (number, major) {
        (Some(number), Some(major)) if major < OLDEST => Check::warn(
            NAME,
            format!("NVIDIA {number}, and animd needs {OLDEST} or newer"),
            format!("{INSTALL}, and start the machine again"),
        ),
        (number, _) => Check::ok(NAME, format!("NVIDIA {}", number.unwrap_or("of an unknown version"))),
    }
}

/// Checks that the device files in `dev` exist and that the service's user can open them.
pub fn devices(dev: &Path, user: &User) -> Check {
    const NAME: &str = "devices";
    let names: Vec<_> = fs::read_dir(dev)
        .map(|entries| {
            entries.flatten().filter(|entry| is_card(&entry.file_name().to_string_lossy())).collect()
        })
        .unwrap_or_default();
    let make = "run `nvidia-modprobe -u -c0` as root, which makes the device files; animd's unit does so at its start";
    if names.is_empty() {
        return Check::fail(NAME, format!("there is no `{}/nvidia0`", show(dev)), make);
    }
    for path in
        names.iter().map(fs::DirEntry::path).chain(["nvidiactl", "nvidia-uvm"].map(|name| dev.join(name)))
    {
        match fs::metadata(&path) {
            Ok(meta) if meta.file_type().is_char_device() || cfg!(test) => {}
            _ => return Check::fail(NAME, format!("there is no device `{}`", show(&path)), make),
        }
        if let Some(why) = refusal(&path, user, READ | WRITE) {
            let remedy = format!("add `{}` to the group that owns the file, then restart animd", user.name);
            return Check::fail(NAME, why, remedy);
        }
    }
    Check::ok(
        NAME,
        format!(
            "{}, nvidiactl and nvidia-uvm",
            if names.len() == 1 { "1 card".into() } else { format!("{} cards", names.len()) }
        ),
    )
}

fn is_card(name: &str) -> bool {
    name.strip_prefix("nvidia").is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

/// Checks whether the driver preserves video memory when the machine sleeps, given the text of
/// `/proc/driver/nvidia/params`.
pub fn suspend(params: &str) -> Check {
    const NAME: &str = "suspend";
    let value = params.lines().find_map(|line| line.strip_prefix("PreserveVideoMemoryAllocations:"));
    match value.map(str::trim) {
        Some("1") => Check::ok(NAME, "the driver preserves video memory while the machine sleeps"),
        Some(_) => Check::warn(
            NAME,
            "the driver loses video memory when the machine sleeps; animd then loads the model again, but other programs may crash",
            "set `options nvidia NVreg_PreserveVideoMemoryAllocations=1` in /etc/modprobe.d/nvidia.conf and enable nvidia-suspend.service",
        ),
        None => Check::ok(NAME, "there is no NVIDIA driver that could lose video memory"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    #[test]
    fn drivers_are_read_from_their_file() {
        let open = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\nGCC version: 12\n";
        assert_eq!(driver(open).message, "NVIDIA 580.95.05");
        assert_eq!(driver("").status, Status::Warn);
        let old = driver("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.163.01  Thu\n");
        assert_eq!(
            (old.status, old.message.as_str()),
            (Status::Warn, "NVIDIA 550.163.01, and animd needs 580 or newer")
        );
    }

    #[test]
    fn suspend_needs_the_driver_to_keep_memory() {
        assert_eq!(suspend("Foo: 1\nPreserveVideoMemoryAllocations: 1\n").status, Status::Ok);
        assert_eq!(suspend("PreserveVideoMemoryAllocations: 0\n").status, Status::Warn);
        assert_eq!(suspend("").status, Status::Ok);
    }

    #[test]
    fn missing_devices_are_named() -> std::io::Result<()> {
        let dir = tempfile::tempdir()?;
        let user = User::current();
        assert!(devices(dir.path(), &user).message.ends_with("/nvidia0`"));
        fs::write(dir.path().join("nvidia0"), "")?;
        fs::write(dir.path().join("nvidiactl"), "")?;
        assert!(devices(dir.path(), &user).message.ends_with("/nvidia-uvm`"));
        assert!(is_card("nvidia12") && !is_card("nvidia-caps") && !is_card("nvidia"));
        Ok(())
    }
}
