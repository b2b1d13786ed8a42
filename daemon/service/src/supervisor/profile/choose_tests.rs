//! The table of cases. README.md shows the cases that people ask about.

use std::fmt::Write;

use animd_protocol::messages::{Kernels, Target};
use animd_protocol::profile::{BUILT_IN, Precision, Profile};

use super::*;
use crate::supervisor::gpu::Process;

const MIB: u64 = 1 << 20;

/// Returns what the GPU backend is meant to be built for.
fn built() -> Kernels {
    let native = |major, minor| Target { capability: (major, minor), exact: major == 9 };
    let native = vec![native(8, 0), native(8, 6), native(8, 9), native(9, 0), native(12, 0)];
    Kernels { native, ptx: Some((8, 9)), driver: Some(580) }
}

/// Returns the profiles that come with animd, and one of a user's own that asks for fp8.
fn profiles() -> Vec<Profile> {
    let read = |name, text: &str| Profile::read(text).unwrap_or_else(|e| panic!("{name}: {e}"));
    let mut all: Vec<Profile> = BUILT_IN.iter().map(|(name, text)| read(*name, text)).collect();
    let mut own =
        read("own", BUILT_IN.iter().find(|(name, _)| *name == "h100").expect("it comes with animd").1);
    own.name = "own".into();
    own.precision.dit = Precision::Fp8;
    // `auto` chooses what asks for more memory before what asks for less.
    own.device.min_memory_gib = 1.0;
    all.push(own);
    all
}

fn card(name: &str, capability: (u32, u32), total_mib: u64) -> Card {
    Card {
        index: 0,
        uuid: format!("GPU-{}", name.to_lowercase().replace(' ', "-")),
        name: format!("NVIDIA {name}"),
        bus_id: "00000000:01:00.0".into(),
        capability,
        memory_total: total_mib * MIB,
        // What the driver and the screen take.
        memory_free: (total_mib - 600) * MIB,
        mig: false,
        processes: Vec::new(),
        power_limit_mw: None,
    }
}

// The memory sizes are those that NVML reports.
fn h200() -> Card {
    card("H200", (9, 0), 143_771)
}
fn l40s() -> Card {
    card("L40S", (8, 9), 46_068)
}
fn rtx_4090() -> Card {
    card("GeForce RTX 4090", (8, 9), 24_564)
}
fn rtx_3090() -> Card {
    card("GeForce RTX 3090", (8, 6), 24_576)
}
fn rtx_5090() -> Card {
    card("GeForce RTX 5090", (12, 0), 32_607)
}
fn rtx_2080_ti() -> Card {
    card("GeForce RTX 2080 Ti", (7, 5), 11_264)
}

fn with(mut cards: Vec<Card>) -> Machine {
    for (index, card) in cards.iter_mut().enumerate() {
        card.index = index as u32;
    }
    Machine::Driver { version: "580.82.07".into(), cards }
}

fn old_driver(version: &str) -> Machine {
    Machine::Driver { version: version.into(), cards: vec![h200()] }
}

/// Returns a card of which another program holds all memory but `free_mib`.
fn held(mut card: Card, free_mib: u64) -> Card {
    let bytes = card.memory_total - (free_mib + 600) * MIB;
    card.processes = vec![Process { pid: 4242, name: Some("python3".into()), bytes: Some(bytes) }];
    card.memory_free = free_mib * MIB;
    card
}

fn divided(mut card: Card) -> Card {
    card.mig = true;
    card
}

fn no_driver(on_bus: u32) -> Machine {
    Machine::NoDriver {
        why: "NVIDIA's driver is not installed: there is no libnvidia-ml.so.1".into(),
        on_bus,
    }
}

struct Row {
    /// The case as README.md words it; rows whose text is in brackets are not in README.md.
    case: &'static str,
    machine: Machine,
    kernels: Kernels,
    wish: Wish,
    state: Verdict,
    profile: Option<&'static str>,
    /// The GPU to use, or the one that the choice is about.
    gpu: Option<u32>,
    /// Parts of what is said.
    says: &'static [&'static str],
}

fn row(
    case: &'static str,
    machine: Machine,
    (state, profile, gpu): (Verdict, Option<&'static str>, Option<u32>),
    says: &'static [&'static str],
) -> Row {
    Row { case, machine, kernels: built(), wish: Wish::default(), state, profile, gpu, says }
}

fn wish(profile: &str, gpu: &str) -> Wish {
    Wish { profile: profile.into(), gpu: gpu.into(), ..Wish::default() }
}

#[expect(clippy::too_many_lines, reason = "a row for each kind of machine")]
fn table() -> Vec<Row> {
    use Verdict::{CannotServe, NoGpu, Ready, Retry};
    let none = Kernels::default;
    let only_hopper = || Kernels { native: vec![built().native[3]], ptx: None, ..built() };
    let cpu = Some("cpu");
    vec![
        row(
            "H200",
            with(vec![h200()]),
            (Ready, Some("h200"), Some(0)),
            &[
                "139.8 GiB of 140.4 GiB are free, `h200` needs 100.0 GiB",
                "machine code for it (compute capability 9.0)",
            ],
        ),
        row(
            "H100, 80 GB",
            with(vec![card("H100 80GB HBM3", (9, 0), 81_559)]),
            (Ready, Some("h100"), Some(0)),
            &["`h100` needs 24.0 GiB"],
        ),
        row(
            "RTX PRO 6000, 96 GB",
            with(vec![card("RTX PRO 6000 Blackwell Workstation Edition", (12, 0), 97_887)]),
            (Ready, Some("rtxpro6000"), Some(0)),
            &["machine code for it (compute capability 12.0)"],
        ),
        row(
            "[B200]",
            with(vec![card("B200", (10, 0), 183_359)]),
            (Ready, Some("rtxpro6000"), Some(0)),
            &["compiles the engine's code for it (compute capability 10.0) from PTX 8.9"],
        ),
        row(
            "A100, 80 GB",
            with(vec![card("A100-SXM4-80GB", (8, 0), 81_920)]),
            (Ready, Some("a100"), Some(0)),
            &["`a100` needs 60.0 GiB", "machine code for it (compute capability 8.0)"],
        ),
        row(
            "A100, 40 GB",
            with(vec![card("A100-PCIE-40GB", (8, 0), 40_960)]),
            (Ready, Some("l40s"), Some(0)),
            &["`l40s` needs 36.0 GiB"],
        ),
        row("L40S", with(vec![l40s()]), (Ready, Some("l40s"), Some(0)), &["machine code", "8.9"]),
        row(
            "RTX 6000 Ada, 48 GB",
            with(vec![card("RTX 6000 Ada Generation", (8, 9), 49_140)]),
            (Ready, Some("l40s"), Some(0)),
            &[],
        ),
        row(
            "RTX A6000, 48 GB",
            with(vec![card("RTX A6000", (8, 6), 49_140)]),
            (Ready, Some("l40s"), Some(0)),
            &["machine code for it (compute capability 8.6)"],
        ),
        row(
            "RTX 5090",
            with(vec![rtx_5090()]),
            (Ready, Some("rtx5090"), Some(0)),
            &["31.3 GiB of 31.8 GiB are free, `rtx5090` needs 26.0 GiB"],
        ),
        row(
            "RTX 4090",
            with(vec![rtx_4090()]),
            (Ready, Some("rtx4090"), Some(0)),
            &["23.4 GiB of 24.0 GiB are free"],
        ),
        row(
            "RTX 3090",
            with(vec![rtx_3090()]),
            (Ready, Some("rtx3090"), Some(0)),
            &["`rtx3090` needs 20.0 GiB"],
        ),
        row(
            "RTX 5080, 16 GB",
            with(vec![card("GeForce RTX 5080", (12, 0), 16_303)]),
            (Ready, Some("rtx4060ti"), Some(0)),
            &["machine code for it (compute capability 12.0)"],
        ),
        row(
            "RTX 4060 Ti, 16 GB",
            with(vec![card("GeForce RTX 4060 Ti", (8, 9), 16_380)]),
            (Ready, Some("rtx4060ti"), Some(0)),
            &["`rtx4060ti` needs 13.0 GiB"],
        ),
        row(
            "RTX 3060, 12 GB",
            with(vec![card("GeForce RTX 3060", (8, 6), 12_288)]),
            (Ready, Some("rtx3060"), Some(0)),
            &["`rtx3060` needs 9.0 GiB"],
        ),
        row(
            "RTX 3080, 10 GB",
            with(vec![card("GeForce RTX 3080", (8, 6), 10_240)]),
            (Ready, Some("rtx3060"), Some(0)),
            &[],
        ),
        row(
            "RTX 4060 Ti, 8 GB",
            with(vec![card("GeForce RTX 4060 Ti", (8, 9), 8_188)]),
            (CannotServe, cpu, Some(0)),
            &["it has 8.0 GiB of memory, and `rtx3060` needs 9.0 GiB", "a card with more memory"],
        ),
        row(
            "RTX 2080 Ti",
            with(vec![rtx_2080_ti()]),
            (CannotServe, cpu, Some(0)),
            &["needs compute capability 8.0, and it has 7.5", "compute capability 8.0 or newer"],
        ),
        row(
            "an RTX 4090 and an L40S",
            with(vec![rtx_4090(), l40s()]),
            (Ready, Some("l40s"), Some(1)),
            &[
                "NVIDIA L40S (GPU 1): 44.4 GiB of 45.0 GiB are free",
                "NVIDIA GeForce RTX 4090 (GPU 0): not taken, it would take `rtx4090`",
            ],
        ),
        row(
            "[native before PTX]",
            with(vec![card("of Blackwell", (10, 0), 16_380), card("GeForce RTX 4080", (8, 9), 16_376)]),
            (Ready, Some("rtx4060ti"), Some(1)),
            &["NVIDIA of Blackwell (GPU 0): not taken, its code would have to be compiled from PTX"],
        ),
        row(
            "[the newer one of two for the same profile]",
            with(vec![card("GeForce RTX 3060", (8, 6), 12_288), card("GeForce RTX 4070", (8, 9), 12_282)]),
            (Ready, Some("rtx3060"), Some(1)),
            &["NVIDIA GeForce RTX 3060 (GPU 0): not taken, its compute capability is 8.6"],
        ),
        row(
            "[two alike]",
            with(vec![h200(), h200()]),
            (Ready, Some("h200"), Some(0)),
            &["no better, and has the later place"],
        ),
        row(
            "[two alike, one in use]",
            with(vec![held(h200(), 110_000), h200()]),
            (Ready, Some("h200"), Some(1)),
            &["(GPU 0): not taken, it has less memory free (107.4 GiB)"],
        ),
        row(
            "an RTX 3090 and an RTX 4090",
            with(vec![rtx_3090(), rtx_4090()]),
            (Ready, Some("rtx4090"), Some(1)),
            &["NVIDIA GeForce RTX 3090 (GPU 0): not taken, it would take `rtx3090`"],
        ),
        row(
            "an H200 of which another program holds 100 GiB",
            with(vec![held(h200(), 40_000)]),
            (Ready, Some("h100"), Some(0)),
            &[
                "39.1 GiB of 140.4 GiB are free, `h100` needs 24.0 GiB",
                "`h200` would need 100.0 GiB free; `python3`, process 4242, holds 100.8 GiB",
            ],
        ),
        row(
            "an RTX 4090 of which another program holds 10 GiB",
            with(vec![held(rtx_4090(), 13_724)]),
            (Ready, Some("rtx4060ti"), Some(0)),
            &["`rtx4060ti` needs 13.0 GiB", "`rtx4090` would need 20.0 GiB free; `python3`"],
        ),
        row(
            "an RTX 4090 of which another program holds 20 GiB",
            with(vec![held(rtx_4090(), 3_500)]),
            (Retry, None, Some(0)),
            &[
                "3.4 GiB of 24.0 GiB are free, and `rtx3060` needs 9.0 GiB",
                "`python3`, process 4242, holds 20.0 GiB",
                "jobs wait",
                "looks again by itself",
            ],
        ),
        row(
            "[held by somebody unknown]",
            with(vec![Card { processes: Vec::new(), ..held(rtx_4090(), 3_500) }]),
            (Retry, None, Some(0)),
            &["20.6 GiB are held by programs that the driver does not name"],
        ),
        row(
            "MIG is on",
            with(vec![divided(h200())]),
            (CannotServe, cpu, Some(0)),
            &["it is divided (MIG is on)", "`sudo nvidia-smi -i 0 -mig 0`"],
        ),
        row(
            "[MIG beside a whole card]",
            with(vec![divided(h200()), l40s()]),
            (Ready, Some("l40s"), Some(1)),
            &["MIG is on"],
        ),
        row(
            "the driver is there, and no card",
            with(vec![]),
            (NoGpu, cpu, None),
            &["knows no GPU", "`lspci`"],
        ),
        row(
            "no card and no driver",
            no_driver(0),
            (NoGpu, cpu, None),
            &["libnvidia-ml.so.1", "no NVIDIA GPU is on the PCI bus"],
        ),
        row(
            "a card, and no driver",
            no_driver(1),
            (NoGpu, cpu, None),
            &["an NVIDIA GPU is on the PCI bus", "modprobe nvidia", "looks again by itself"],
        ),
        row(
            "driver 550",
            old_driver("550.163.01"),
            (CannotServe, cpu, Some(0)),
            &["the driver 550.163.01 is older than 580", "install NVIDIA's driver 580 or newer"],
        ),
        Row {
            kernels: Kernels { driver: Some(525), ..built() },
            ..row(
                "[driver 550, kernels that need 525]",
                old_driver("550.163.01"),
                (Ready, Some("h200"), Some(0)),
                &[],
            )
        },
        row(
            "[a driver without a number]",
            old_driver("unknown"),
            (CannotServe, cpu, Some(0)),
            &["older than 580"],
        ),
        row(
            "the driver may not be used",
            Machine::Refused { why: "`/dev/nvidiactl` is refused".into() },
            (Retry, None, None),
            &["/dev/nvidiactl", "start animd again"],
        ),
        row(
            "the driver has an error",
            Machine::Failed { why: "the driver says: Unknown Error".into() },
            (Retry, None, None),
            &["Unknown Error", "asks again by itself", "jobs wait"],
        ),
        Row {
            kernels: none(),
            ..row(
                "[no kernels, H200]",
                with(vec![h200()]),
                (CannotServe, cpu, Some(0)),
                &[
                    "NVIDIA H200 (GPU 0): this build of the engine has no code for GPUs; so the profile is `cpu`",
                ],
            )
        },
        Row {
            kernels: none(),
            ..row(
                "[no kernels, RTX 3090]",
                with(vec![rtx_3090()]),
                (CannotServe, cpu, Some(0)),
                &["NVIDIA GeForce RTX 3090"],
            )
        },
        Row {
            kernels: none(),
            ..row(
                "[no kernels, card in use]",
                with(vec![held(rtx_4090(), 3_500)]),
                (CannotServe, cpu, Some(0)),
                &["no code"],
            )
        },
        Row {
            kernels: none(),
            ..row("[no kernels, no driver]", no_driver(0), (NoGpu, cpu, None), &["no code for GPUs anyway"])
        },
        Row {
            kernels: none(),
            ..row(
                "[no kernels, an error]",
                Machine::Failed { why: "timeout".into() },
                (Retry, cpu, None),
                &["timeout", "`cpu`"],
            )
        },
        Row {
            kernels: only_hopper(),
            ..row(
                "[newer than all code, no PTX]",
                with(vec![rtx_5090()]),
                (CannotServe, cpu, Some(0)),
                &["has code for compute capability 9.0, and it has 12.0", "a newer animd"],
            )
        },
        Row {
            wish: wish("rtx4090", AUTO),
            ..row(
                "`profile.name = \"rtx4090\"` on an H200",
                with(vec![h200()]),
                (Ready, Some("rtx4090"), Some(0)),
                &["profile.name asks for `rtx4090`"],
            )
        },
        Row {
            wish: wish("h200", AUTO),
            ..row(
                "`profile.name = \"h200\"` on an RTX 4090",
                with(vec![rtx_4090()]),
                (CannotServe, None, Some(0)),
                &["it has 24.0 GiB of memory, and `h200` needs 100.0 GiB"],
            )
        },
        Row {
            wish: wish("own", AUTO),
            ..row(
                "[a profile of one's own in fp8, on an RTX A6000]",
                with(vec![card("RTX A6000", (8, 6), 49_140)]),
                (CannotServe, None, Some(0)),
                &[
                    "precision.dit `fp8` of the profile `own` needs compute capability 8.9",
                    "`dit = \"int8\"`",
                ],
            )
        },
        Row {
            wish: wish("cpu", AUTO),
            ..row(
                "`profile.name = \"cpu\"`",
                with(vec![h200()]),
                (Ready, cpu, None),
                &["asks for `cpu`, which needs no GPU"],
            )
        },
        Row {
            wish: wish("h20", AUTO),
            ..row(
                "[an unknown profile]",
                with(vec![h200()]),
                (CannotServe, None, None),
                &["there is no profile `h20`; did you mean `h200`?", "one of h200, rtxpro6000"],
            )
        },
        Row {
            wish: wish(AUTO, "0"),
            ..row(
                "`profile.gpu = 0`, an RTX 4090 and an L40S",
                with(vec![rtx_4090(), l40s()]),
                (Ready, Some("rtx4090"), Some(0)),
                &[],
            )
        },
        Row {
            wish: wish(AUTO, "GPU-l40s"),
            ..row("[a GPU by UUID]", with(vec![rtx_4090(), l40s()]), (Ready, Some("l40s"), Some(1)), &[])
        },
        Row {
            wish: wish(AUTO, "7"),
            ..row(
                "[an unknown GPU]",
                with(vec![rtx_4090()]),
                (CannotServe, None, None),
                &["there is no GPU `7`", "0 GPU-geforce-rtx-4090"],
            )
        },
        Row {
            wish: wish(AUTO, "0"),
            ..row(
                "[a GPU that cannot serve, asked for]",
                with(vec![rtx_2080_ti(), rtx_4090()]),
                (CannotServe, None, Some(0)),
                &["7.5"],
            )
        },
    ]
}

/// Returns what README.md says of a row.
fn answer(row: &Row) -> String {
    let profile = row.profile.map_or("none, jobs wait".into(), |name| format!("`{name}`"));
    let gpu = row.gpu.filter(|_| row.state == Verdict::Ready && row.machine.cards().len() > 1);
    let gpu =
        gpu.map_or(String::new(), |index| format!(" on the {}", if index == 0 { "first" } else { "second" }));
    format!("| {} | {profile}{gpu} | {} |", row.case, row.state.name())
}

#[test]
fn every_machine_has_its_answer() {
    let mut wrong = String::new();
    for row in table() {
        let got = choose(&row.machine, &row.kernels, &row.wish, &profiles());
        let found =
            (got.state, got.profile.as_ref().map(|p| p.name.as_str()), got.gpu.as_ref().map(|gpu| gpu.index));
        let expected = (row.state, row.profile, row.gpu);
        if found != expected {
            _ = writeln!(
                wrong,
                "{}\n  expected {expected:?}\n  got      {found:?}\n  {}",
                row.case,
                got.text()
            );
        }
        for part in row.says.iter().filter(|part| !got.text().contains(*part)) {
            _ = writeln!(wrong, "{}\n  does not say `{part}`:\n  {}", row.case, got.text());
        }
        if got.state != Verdict::Ready && got.remedy.is_none() {
            _ = writeln!(wrong, "{}\n  has no remedy", row.case);
        }
        if got.why.is_empty() || got.text().contains("..") || got.text().ends_with('.') {
            _ = writeln!(wrong, "{}\n  is told badly: {}", row.case, got.text());
        }
        assert_eq!(
            got.used_gpu().is_some(),
            got.profile.as_ref().is_some_and(Profile::on_gpu),
            "{}",
            row.case
        );
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

#[test]
fn the_readme_has_the_answers() {
    let readme = include_str!("../../../../../README.md");
    let rows: Vec<String> = table().iter().filter(|row| !row.case.starts_with('[')).map(answer).collect();
    let missing = rows.iter().any(|row| !readme.contains(row.as_str()));
    assert!(!missing, "README.md, section Profiles, must have these rows:\n{}", rows.join("\n"));
}
