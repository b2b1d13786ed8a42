//! NVML, NVIDIA's management library. Each query opens and closes it on a thread of its own: a driver in trouble may
//! not answer for minutes, and an open library costs memory all day.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nvml_wrapper::Nvml;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::ProcessInfo;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::{Card, Machine, Process};

/// The variable that names the library where the loader does not find it.
pub const LIBRARY_VARIABLE: &str = "NVML_LIBRARY";
/// The name that the loader is asked for.
const LIBRARY: &str = "libnvidia-ml.so.1";
/// How long a query may take. A card that sleeps takes a second or two to wake.
const PATIENCE: Duration = Duration::from_secs(8);

/// Asks the driver; cheap to clone.
#[derive(Clone)]
pub struct Driver {
    library: PathBuf,
    patience: Duration,
    /// When the query that runs began.
    busy: Arc<Mutex<Option<Instant>>>,
    /// The fixed answer of a test's driver.
    #[cfg(test)]
    answer: Option<Machine>,
}

impl Default for Driver {
    /// Uses the library that [`LIBRARY_VARIABLE`] names, or else the one that the loader finds.
    fn default() -> Self {
        let library = std::env::var_os(LIBRARY_VARIABLE).filter(|name| !name.is_empty());
        Self::new(library.unwrap_or_else(|| LIBRARY.into()))
    }
}

impl Driver {
    /// Uses another library.
    pub fn new(library: impl Into<PathBuf>) -> Self {
        Self {
            library: library.into(),
            patience: PATIENCE,
            busy: Arc::default(),
            #[cfg(test)]
            answer: None,
        }
    }

    /// Returns a driver that always gives the same answer, at once.
    #[cfg(test)]
    pub fn answering(machine: Machine) -> Self {
        Self { answer: Some(machine), ..Self::new(LIBRARY) }
    }

    /// Returns this driver with another time limit for a query.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Opens the library. For threads that may block.
    ///
    /// # Errors
    /// What the driver says.
    pub fn open(&self) -> Result<Nvml, NvmlError> {
        Nvml::builder().lib_path(self.library.as_os_str()).init()
    }

    /// Asks the driver about the whole machine. Memory that the engine's process `own` holds counts as free.
    pub async fn look(&self, own: Option<u32>) -> Machine {
        #[cfg(test)]
        if let Some(machine) = &self.answer {
            return machine.clone();
        }
        let silent = |since: Instant| {
            let why = format!("the driver has not answered for {} seconds", since.elapsed().as_secs());
            Machine::Failed { why }
        };
        let now = Instant::now();
        {
            let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
            // One thread that hangs in the driver is enough.
            if let Some(since) = *busy {
                return silent(since);
            }
            *busy = Some(now);
        }
        let (reply, answer) = oneshot::channel();
        let driver = self.clone();
        let started = thread::Builder::new().name("nvml".into()).spawn(move || {
            let machine = driver.look_blocking(own);
            *driver.busy.lock().unwrap_or_else(PoisonError::into_inner) = None;
            _ = reply.send(machine);
        });
        if let Err(e) = started {
            *self.busy.lock().unwrap_or_else(PoisonError::into_inner) = None;
            return Machine::Failed { why: format!("no thread can be started to ask the driver: {e}") };
        }
        match timeout(self.patience, answer).await {
            Ok(Ok(machine)) => machine,
            Ok(Err(_)) => Machine::Failed { why: "the driver's library ended its thread".into() },
            Err(_) => silent(now),
        }
    }

    fn look_blocking(&self, own: Option<u32>) -> Machine {
        let nvml = match self.open() {
            Ok(nvml) => nvml,
            Err(e) => return unavailable(e, &self.library),
        };
        let failed = |e: &NvmlError| Machine::Failed { why: format!("the driver says: {e}") };
        let (version, count) = match nvml.sys_driver_version().and_then(|v| Ok((v, nvml.device_count()?))) {
            Ok(known) => known,
            Err(e) => return failed(&e),
        };
        let (mut cards, mut refused, mut trouble) = (Vec::new(), 0, None);
        for index in 0..count {
            match card(&nvml, index, own) {
                Ok(card) => cards.push(card),
                Err(NvmlError::NoPermission) => refused += 1,
                Err(e) => {
                    tracing::debug!("GPU {index} does not answer: {e}");
                    trouble = Some(Machine::Failed { why: format!("GPU {index}: the driver says: {e}") });
                }
            }
        }
        if cards.is_empty() && refused > 0 {
            return Machine::Refused { why: format!("the driver {version} refuses its {refused} GPUs") };
        }
        // A broken card does not hide a working one.
        trouble.filter(|_| cards.is_empty()).unwrap_or(Machine::Driver { version, cards })
    }
}

/// Returns what is known of the machine when the library cannot be used.
fn unavailable(e: NvmlError, library: &std::path::Path) -> Machine {
    let refused = || Machine::Refused { why: "the driver is there, and its device files are refused".into() };
    match e {
        NvmlError::LibloadingError(_) => Machine::NoDriver {
            why: format!(
                "NVIDIA's driver is not installed: there is no {}",
                animd_common::files::show(library)
            ),
            on_bus: on_bus(),
        },
        NvmlError::DriverNotLoaded => {
            Machine::NoDriver { why: "NVIDIA's driver is installed and not loaded".into(), on_bus: on_bus() }
        }
        NvmlError::NoPermission => refused(),
        // NVML reports this where a control group refuses a device's file.
        NvmlError::Unknown if control_refused() => refused(),
        NvmlError::LibRmVersionMismatch => Machine::Failed {
            why: "the driver's library and its kernel module are of two versions, as after an upgrade".into(),
        },
        e => Machine::Failed { why: format!("the driver says: {e}") },
    }
}

fn control_refused() -> bool {
    let open = fs::OpenOptions::new().read(true).write(true).open("/dev/nvidiactl");
    open.is_err_and(|e| e.kind() == io::ErrorKind::PermissionDenied)
}

/// Returns how many NVIDIA GPUs are on the PCI bus, with or without a driver.
fn on_bus() -> u32 {
    let Ok(devices) = fs::read_dir("/sys/bus/pci/devices") else { return 0 };
    let is = |path: PathBuf, start: &str| fs::read_to_string(path).is_ok_and(|text| text.starts_with(start));
    let found = devices.flatten().map(|device| device.path());
    found.filter(|device| is(device.join("vendor"), "0x10de") && is(device.join("class"), "0x03")).count()
        as u32
}

fn card(nvml: &Nvml, index: u32, own: Option<u32>) -> Result<Card, NvmlError> {
    let device = nvml.device_by_index(index)?;
    let capability = device.cuda_compute_capability()?;
    let memory = device.memory_info()?;
    let mut all: Vec<ProcessInfo> = device.running_compute_processes().unwrap_or_default();
    for process in device.running_graphics_processes().unwrap_or_default() {
        if !all.iter().any(|known| known.pid == process.pid) {
            all.push(process);
        }
    }
    let mut memory_free = memory.free;
    let mut processes = Vec::new();
    for process in all {
        let bytes = match process.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Some(bytes),
            UsedGpuMemory::Unavailable => None,
        };
        if own == Some(process.pid) {
            memory_free += bytes.unwrap_or(0);
        } else {
            processes.push(Process { pid: process.pid, name: program(process.pid), bytes });
        }
    }
    Ok(Card {
        index,
        uuid: device.uuid()?,
        name: device.name()?,
        bus_id: device.pci_info()?.bus_id,
        capability: (capability.major as u32, capability.minor as u32),
        memory_total: memory.total,
        memory_free: memory_free.min(memory.total),
        // Cards that cannot be divided return an error.
        mig: device.mig_mode().is_ok_and(|mode| mode.current != 0),
        processes,
        power_limit_mw: device.enforced_power_limit().ok(),
    })
}

/// Returns the name of a process's program; `None` where the sandbox hides it.
fn program(pid: u32) -> Option<String> {
    let name = fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(animd_common::files::show(OsStr::new(String::from_utf8_lossy(&name).trim_end())))
}
