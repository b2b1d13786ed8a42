//! The cards that times are predicted for, and the rates that animd's kernels reach on them.
//!
//! Only the H200's rates are measured with animd (kernels/NOTES.md). Every other card's are its tensor cores' peak times
//! the share of it that a kernel reaches.

use serde::Serialize;

use crate::profile::{AttentionKind, Precision};

/// The share of the tensor cores' peak that kernels of `mma.sync` reach, by what they compute. For int8 these are what
/// the schedules are built for; padded instructions on an H200 gave 87 to 91 % for products and 64 % for attention,
/// which bracket them. e4m3: 240 of 330 T by the kernel as it is. bf16 attention and convolutions are not tuned further
/// than 65 % of the 165 T of an RTX 4090.
mod share {
    pub const INT8_LINEAR: f64 = 0.65;
    pub const INT8_ATTENTION: f64 = 0.76;
    pub const E4M3_LINEAR: f64 = 0.73;
    pub const BF16_LINEAR: f64 = 0.65;
    pub const BF16_ATTENTION: f64 = 0.65;
    pub const CONVOLUTIONS: f64 = 0.65;
    /// Of the memory's bandwidth: an RTX 4090 copies 0.92 of its 1.01 TB/s, and kernels of rows reach nine tenths of
    /// that (an H200: 3.6 of 4.8).
    pub const ROWS: f64 = 0.82;
}

/// A card that times can be predicted for.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Card {
    /// Its name in options: `rtx4090`.
    pub name: String,
    /// The memory that its driver reports, in bytes.
    pub memory: u64,
    /// The compute capability, major and minor.
    pub capability: (u32, u32),
    /// The bytes a second that pinned memory reaches the card with.
    pub copy_rate: f64,
    /// What its kernels reach.
    pub rates: Rates,
}

/// What kernels reach, in operations (an addition and a multiplication are two) or bytes a second. What a card has no
/// kernel for is `None`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Rates {
    /// Linear layers in bf16.
    pub bf16_linear: f64,
    /// Linear layers in e4m3.
    pub fp8_linear: Option<f64>,
    /// Linear layers in int8.
    pub int8_linear: Option<f64>,
    /// Attention in bf16.
    pub exact_attention: f64,
    /// Self-attention with products in 8 bits.
    pub eight_bit_attention: f64,
    /// The VAE's convolutions.
    pub convolutions: f64,
    /// Bytes that kernels of rows read and write: norms, rotary embedding, quantisation.
    pub rows: f64,
}

impl Rates {
    /// Returns the rate of linear layers with weights of this precision.
    pub fn linear(&self, precision: Precision) -> Option<f64> {
        match precision {
            Precision::Bf16 => Some(self.bf16_linear),
            Precision::Fp8 => self.fp8_linear,
            Precision::Int8 => self.int8_linear,
            // Sums of two bf16 numbers are three products.
            Precision::Fp32 => Some(self.bf16_linear / 3.0),
        }
    }

    /// Returns the rate of self-attention of this kind.
    pub fn attention(&self, kind: AttentionKind) -> f64 {
        match kind {
            AttentionKind::Exact => self.exact_attention,
            AttentionKind::EightBit => self.eight_bit_attention,
        }
    }

    /// Returns the rates of an H200 or H100, as measured (kernels/NOTES.md, 2026-11-23, int8 2026-11-30), with memory of this
    /// bandwidth.
    fn hopper(bandwidth: f64) -> Self {
        Self {
            bf16_linear: 685e12,
            fp8_linear: Some(1180e12),
            int8_linear: Some(1290e12),
            exact_attention: 650e12,
            eight_bit_attention: 1010e12,
            // The decoder takes 0.56 s at 832x480.
            convolutions: 500e12,
            rows: 0.75 * bandwidth,
        }
    }

    /// Returns the rates of the kernels for other cards on an H200, as measured (kernels/NOTES.md, 2026-11-29).
    fn mma_sync_on_hopper() -> Self {
        Self {
            bf16_linear: 275e12,
            fp8_linear: Some(275e12),
            int8_linear: Some(805e12),
            exact_attention: 107e12,
            eight_bit_attention: 460e12,
            convolutions: 150e12,
            ..Self::hopper(4.8e12)
        }
    }
}

/// What tells how fast a card is: what its driver reports, or a datasheet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Facts<'a> {
    /// The product name.
    pub name: &'a str,
    /// Bytes of memory.
    pub memory: u64,
    /// The compute capability, major and minor.
    pub capability: (u32, u32),
    /// The number of multiprocessors.
    pub multiprocessors: u32,
    /// The clock of the multiprocessors under load, in GHz.
    pub clock: f64,
    /// The memory's bandwidth in bytes a second.
    pub bandwidth: f64,
    /// The bytes a second that pinned memory reaches the card with.
    pub copy_rate: f64,
}

impl Facts<'_> {
    /// Returns what a card with these facts reaches; `None` for a compute capability that there are no kernels for.
    fn rates(&self) -> Option<Rates> {
        let professional = !self.name.to_lowercase().contains("geforce");
        let [bf16, int8, e4m3] = operations(self.capability, professional)?;
        if self.capability == (9, 0) {
            let scale = f64::from(self.multiprocessors) / 132.0;
            let Rates {
                bf16_linear,
                fp8_linear,
                int8_linear,
                exact_attention,
                eight_bit_attention,
                convolutions,
                ..
            } = Rates::hopper(self.bandwidth);
            return Some(Rates {
                bf16_linear: scale * bf16_linear,
                fp8_linear: fp8_linear.map(|rate| scale * rate),
                int8_linear: int8_linear.map(|rate| scale * rate),
                exact_attention: scale * exact_attention,
                eight_bit_attention: scale * eight_bit_attention,
                convolutions: scale * convolutions,
                ..Rates::hopper(self.bandwidth)
            });
        }
        let peak = |operations: f64| operations * f64::from(self.multiprocessors) * self.clock * 1e9;
        Some(Rates {
            bf16_linear: share::BF16_LINEAR * peak(bf16),
            fp8_linear: (e4m3 > 0.0).then_some(share::E4M3_LINEAR * peak(e4m3)),
            int8_linear: Some(share::INT8_LINEAR * peak(int8)),
            exact_attention: share::BF16_ATTENTION * peak(bf16),
            eight_bit_attention: share::INT8_ATTENTION * peak(int8),
            convolutions: share::CONVOLUTIONS * peak(bf16),
            rows: share::ROWS * self.bandwidth,
        })
    }

    /// Returns the card with these facts; `None` for a compute capability that there are no kernels for.
    pub fn card(&self) -> Option<Card> {
        let Self { memory, capability, copy_rate, .. } = *self;
        Some(Card { name: short(self.name), memory, capability, copy_rate, rates: self.rates()? })
    }
}

/// Returns the operations a clock and multiprocessor in bf16, int8 and e4m3 (0 without it), with sums in 32 bits, or
/// `None` for a card without kernels. `GeForce` cards have half the rate where sums are f32.
///
/// 8.0, 8.6 and 8.9: NVIDIA's architecture papers; s8 and e4m3 of a 4080 and a 5090: ReinForce-II/mmapeak#5 and
/// main-horse.github.io/posts/5090-mm-perf, which agree with them.
fn operations(capability: (u32, u32), professional: bool) -> Option<[f64; 3]> {
    Some(match (capability, professional) {
        ((8, 0), _) => [2048.0, 4096.0, 0.0],
        ((8, 6..=8), true) => [1024.0, 2048.0, 0.0],
        ((8, 6..=8), false) => [512.0, 2048.0, 0.0],
        ((8, 9) | (10.., _), true) => [1024.0, 2048.0, 2048.0],
        ((8, 9) | (10.., _), false) => [512.0, 2048.0, 1024.0],
        // Not used: the rates of Hopper are measured.
        ((9, 0), _) => [4096.0, 0.0, 8192.0],
        _ => return None,
    })
}

/// GB/s of pinned copies to the device, by the generation and lanes of PCI Express. Measured: 4 x16 23.9 to 26.4
/// (NVIDIA/nvbandwidth#15), 5 x16 56.3 (tinygrad/open-gpu-kernel-modules#29), an H200 55. Half as many lanes have half the
/// rate.
const PCIE4_X16: f64 = 25.0;
const PCIE4_X8: f64 = 12.0;
const PCIE5_X16: f64 = 55.0;

/// The cards by name: product name, MiB that the driver reports, compute capability, multiprocessors, clock in GHz, GB/s
/// of memory (all by NVIDIA's datasheets), GB/s of copies to the device.
type Row = (&'static str, u64, (u32, u32), u32, f64, f64, f64);
#[rustfmt::skip]
const CARDS: [Row; 22] = [
    ("H200",                     143_771, (9, 0),  132, 1.98, 4800.0, PCIE5_X16),
    ("RTX PRO 6000 Blackwell",    97_887, (12, 0), 188, 2.60, 1792.0, PCIE5_X16),
    ("H100",                      81_559, (9, 0),  132, 1.98, 3350.0, PCIE5_X16),
    ("A100",                      81_920, (8, 0),  108, 1.41, 2039.0, PCIE4_X16),
    ("A100 40GB",                 40_960, (8, 0),  108, 1.41, 1555.0, PCIE4_X16),
    ("RTX 6000 Ada",              49_140, (8, 9),  142, 2.50,  960.0, PCIE4_X16),
    ("L40S",                      46_068, (8, 9),  142, 2.52,  864.0, PCIE4_X16),
    ("RTX A6000",                 49_140, (8, 6),   84, 1.80,  768.0, PCIE4_X16),
    ("A40",                       46_068, (8, 6),   84, 1.74,  696.0, PCIE4_X16),
    ("L4",                        23_034, (8, 9),   58, 2.04,  300.0, PCIE4_X16),
    ("GeForce RTX 5090",          32_607, (12, 0), 170, 2.41, 1792.0, PCIE5_X16),
    ("GeForce RTX 5080",          16_303, (12, 0),  84, 2.62,  960.0, PCIE5_X16),
    ("GeForce RTX 5070 Ti",       16_303, (12, 0),  70, 2.45,  896.0, PCIE5_X16),
    ("GeForce RTX 4090",          24_564, (8, 9),  128, 2.52, 1008.0, PCIE4_X16),
    ("GeForce RTX 4080",          16_376, (8, 9),   76, 2.51,  717.0, PCIE4_X16),
    ("GeForce RTX 4070 Ti SUPER", 16_376, (8, 9),   66, 2.61,  672.0, PCIE4_X16),
    ("GeForce RTX 4070",          12_282, (8, 9),   46, 2.48,  504.0, PCIE4_X16),
    ("GeForce RTX 4060 Ti",       16_380, (8, 9),   34, 2.54,  288.0, PCIE4_X8),
    ("GeForce RTX 3090",          24_576, (8, 6),   82, 1.70,  936.0, PCIE4_X16),
    ("GeForce RTX 3080",          10_240, (8, 6),   68, 1.71,  760.0, PCIE4_X16),
    ("GeForce RTX 3060",          12_288, (8, 6),   28, 1.78,  360.0, PCIE4_X16),
    ("GeForce RTX 2080 Ti",       11_264, (7, 5),   68, 1.55,  616.0, 12.0),
];

/// Returns a product name as options have it: `NVIDIA GeForce RTX 4090` is `rtx4090`.
fn short(name: &str) -> String {
    let lower = name.to_lowercase();
    let words = lower.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| {
        !matches!(
            *word,
            "nvidia" | "geforce" | "generation" | "blackwell" | "workstation" | "server" | "edition"
        )
    });
    words.collect()
}

/// Returns the names of all known cards that there are kernels for.
pub fn names() -> Vec<String> {
    let rows = CARDS.iter().filter(|row| operations(row.2, true).is_some());
    rows.map(|row| short(row.0)).collect()
}

/// Returns the card of this name: as options have it, or as its driver reports it (`NVIDIA H100 80GB HBM3`).
pub fn named(name: &str) -> Option<Card> {
    let asked = short(name);
    let known = |row: &&Row| asked == short(row.0);
    // A longer name says more of memory and form than the table has: `a100sxm480gb`.
    let begins =
        |row: &&Row| asked.starts_with(&short(row.0)) && ["a100", "h100", "h200"].contains(&&*short(row.0));
    let row = CARDS.iter().find(known).or_else(|| CARDS.iter().find(begins))?;
    let &(name, mib, capability, multiprocessors, clock, bandwidth, copy) = row;
    let (memory, bandwidth, copy_rate) = (mib << 20, bandwidth * 1e9, copy * 1e9);
    Facts { name, memory, capability, multiprocessors, clock, bandwidth, copy_rate }.card()
}

impl Card {
    /// Returns this card as it runs the kernels of another compute capability: an H200 with those of `mma.sync`. `None`
    /// where nobody has measured that.
    #[must_use]
    pub fn with_kernels_of(&self, capability: (u32, u32)) -> Option<Self> {
        if capability == self.capability {
            return Some(self.clone());
        }
        let hopper = self.capability == (9, 0) && capability != (9, 0);
        hopper.then(|| Self { capability, rates: Rates::mma_sync_on_hopper(), ..self.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_are_known_by_both_names() {
        for (name, driver) in [
            ("rtx4090", "NVIDIA GeForce RTX 4090"),
            ("rtx4060ti", "NVIDIA GeForce RTX 4060 Ti"),
            ("rtx4070tisuper", "NVIDIA GeForce RTX 4070 Ti SUPER"),
            ("h100", "NVIDIA H100 80GB HBM3"),
            ("a100", "NVIDIA A100-SXM4-80GB"),
            ("rtx6000ada", "NVIDIA RTX 6000 Ada Generation"),
            ("rtxpro6000", "NVIDIA RTX PRO 6000 Blackwell Workstation Edition"),
            ("RTX 3090", "NVIDIA GeForce RTX 3090"),
        ] {
            let card = named(name).unwrap_or_else(|| panic!("{name} is not known"));
            assert_eq!(named(driver).as_ref(), Some(&card), "{driver}");
        }
        for unknown in ["rtx4091", "", "rtx", "gtx1080", "rtx2080ti", "RTX 4090 D"] {
            assert_eq!(named(unknown), None, "{unknown}");
        }
        assert!(
            names().iter().all(|name| named(name).is_some_and(|card| card.name == *name)),
            "{:?}",
            names()
        );
    }

    #[test]
    fn rates_follow_from_what_a_driver_tells() {
        let ada = named("rtx4090").expect("it is known").rates;
        // 128 multiprocessors at 2.52 GHz do 660 T in int8, 330 in e4m3 and 165 in bf16.
        let near = |got: f64, want: f64| assert!((got / want - 1.0).abs() < 0.01, "{got:e} is not {want:e}");
        near(ada.int8_linear.expect("it has int8"), 0.65 * 660.6e12);
        near(ada.fp8_linear.expect("it has e4m3"), 0.73 * 330.3e12);
        near(ada.convolutions, 107.3e12);
        let ampere = named("rtx3090").expect("it is known").rates;
        assert_eq!((ampere.fp8_linear, ampere.linear(Precision::Fp8)), (None, None));
        // A card that the table does not have is as fast as its units and clocks say.
        let facts = Facts {
            name: "NVIDIA GeForce RTX 4099",
            memory: 1 << 34,
            capability: (8, 9),
            multiprocessors: 64,
            clock: 2.52,
            bandwidth: 504e9,
            copy_rate: 25e9,
        };
        let half = facts.card().expect("it is Ada");
        assert_eq!((half.name.as_str(), half.memory), ("rtx4099", 1 << 34));
        near(half.rates.int8_linear.expect("it has int8"), ada.int8_linear.unwrap_or_default() / 2.0);
        near(half.rates.rows, ada.rows / 2.0);
        assert!(Facts { capability: (7, 5), ..facts }.card().is_none());
    }
}
