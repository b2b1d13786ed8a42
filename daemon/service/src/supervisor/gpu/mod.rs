//! What NVIDIA's driver says of the machine. The service never touches CUDA: it asks NVML, the driver's library for
//! looking on, which is opened when it is needed and may be missing.

pub mod meter;
pub mod nvml;

/// What the driver said when it was asked.
#[derive(Clone, Debug, PartialEq)]
pub enum Machine {
    /// It answers.
    Driver {
        /// `580.82.07`
        version: String,
        /// Every GPU that it knows, in its order.
        cards: Vec<Card>,
    },
    /// It is not there, or not loaded.
    NoDriver {
        /// What is missing, as a sentence.
        why: String,
        /// NVIDIA's devices on the PCI bus.
        on_bus: u32,
    },
    /// It is there, and this process may not speak to it.
    Refused {
        /// What was refused, as a sentence.
        why: String,
    },
    /// It is there, and something goes wrong.
    Failed {
        /// What, as a sentence.
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

    /// Its GPUs.
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
    /// `GPU-...`, which no reordering changes.
    pub uuid: String,
    /// As its maker calls it.
    pub name: String,
    /// Where it is on the PCI bus.
    pub bus_id: String,
    /// The compute capability, major and minor.
    pub capability: (u32, u32),
    /// Bytes.
    pub memory_total: u64,
    /// Bytes.
    pub memory_free: u64,
    /// Whether it is divided into several (multi-instance GPU).
    pub mig: bool,
    /// Who uses it.
    pub processes: Vec<Process>,
    /// Milliwatts that it may draw.
    pub power_limit_mw: Option<u32>,
}

impl Card {
    /// `NVIDIA H200 (GPU 0)`
    pub fn title(&self) -> String {
        format!("{} (GPU {})", self.name, self.index)
    }
}

/// A process on a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number.
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
