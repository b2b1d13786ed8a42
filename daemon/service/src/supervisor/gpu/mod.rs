//! What NVIDIA's driver reports about the machine. The service never touches CUDA: it asks NVML, the driver's
//! management library, which is opened when it is needed and may be missing.

pub mod meter;
pub mod nvml;

/// The driver's answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Machine {
    /// The driver answers.
    Driver {
        /// The driver's version, such as `580.82.07`.
        version: String,
        /// Every GPU that the driver knows, in its order.
        cards: Vec<Card>,
    },
    /// The driver is not installed, or not loaded.
    NoDriver {
        /// What is missing, as a sentence.
        why: String,
        /// How many NVIDIA devices are on the PCI bus.
        on_bus: u32,
    },
    /// The driver is there, but this process may not use it.
    Refused {
        /// What was refused, as a sentence.
        why: String,
    },
    /// The driver is there, but fails.
    Failed {
        /// What went wrong, as a sentence.
        why: String,
    },
}

impl Machine {
    /// Returns the driver's version, if it answers.
    pub fn driver(&self) -> Option<&str> {
        match self {
            Self::Driver { version, .. } => Some(version),
            _ => None,
        }
    }

    /// Returns the driver's GPUs; none if it does not answer.
    pub fn cards(&self) -> &[Card] {
        match self {
            Self::Driver { cards, .. } => cards,
            _ => &[],
        }
    }
}

/// One GPU.
#[derive(Clone, Debug, PartialEq)]
pub struct Card {
    /// The driver's number of it, from 0.
    pub index: u32,
    /// The UUID, `GPU-...`, which no reordering changes.
    pub uuid: String,
    /// The product name.
    pub name: String,
    /// The address on the PCI bus.
    pub bus_id: String,
    /// The compute capability, major and minor.
    pub capability: (u32, u32),
    /// Bytes.
    pub memory_total: u64,
    /// Bytes.
    pub memory_free: u64,
    /// Whether the GPU is divided into several (multi-instance GPU).
    pub mig: bool,
    /// The processes that use it.
    pub processes: Vec<Process>,
    /// Milliwatts that it may draw.
    pub power_limit_mw: Option<u32>,
}

impl Card {
    /// Returns the name and the number, as in `NVIDIA H200 (GPU 0)`.
    pub fn title(&self) -> String {
        format!("{} (GPU {})", self.name, self.index)
    }
}

/// A process on a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// The process's number.
    pub pid: u32,
    /// The name of its program, where it may be known.
    pub name: Option<String>,
    /// Bytes of the GPU's memory, where it may be known.
    pub bytes: Option<u64>,
}

/// Returns bytes as `139.8 GiB`.
pub fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64)
}
