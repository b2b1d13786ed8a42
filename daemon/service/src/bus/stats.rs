//! Sums over ended jobs and the course of one job, as `Statistics` and `Timeline` answer them.

use std::collections::HashMap;

use zbus::{OwnedVariant, Variant};

use crate::store::ledger::{Sum, Timeline};

type Dict = HashMap<String, OwnedVariant>;

/// One row of `Statistics`.
pub fn sum(row: Sum) -> Dict {
    dict([
        ("key", row.key.into()),
        ("done", row.done.into()),
        ("failed", row.failed.into()),
        ("canceled", row.canceled.into()),
        ("seconds", row.seconds.into()),
        ("joules", row.joules.into()),
        ("frames", row.frames.into()),
    ])
}

/// `Timeline`'s answer. In its rows there is no leaving out: what is not known is below 0, or 0 in whole numbers.
pub fn timeline(of: Timeline) -> Dict {
    let events: Vec<_> = of
        .events
        .into_iter()
        .map(|event| (event.at_us, event.kind, event.text.unwrap_or_default()))
        .collect();
    let stages: Vec<_> = of
        .stages
        .into_iter()
        .map(|stage| (stage.name, stage.seconds, stage.joules.unwrap_or(-1.0)))
        .collect();
    let steps: Vec<_> = of.steps.into_iter().map(|step| (step.seconds, step.computed)).collect();
    let samples: Vec<_> = of
        .samples
        .into_iter()
        .map(|s| {
            let whole = |n: Option<u32>| n.unwrap_or(0);
            (
                s.at_us,
                s.watts.unwrap_or(-1.0),
                whole(s.celsius),
                whole(s.sm_mhz),
                whole(s.gpu_percent),
                s.memory_bytes.unwrap_or(0),
            )
        })
        .collect();
    dict([
        ("events", Variant::new(events)),
        ("stages", Variant::new(stages)),
        ("steps", Variant::new(steps)),
        ("samples", Variant::new(samples)),
    ])
}

fn dict<const N: usize>(pairs: [(&str, Variant<'_>); N]) -> Dict {
    let owned = |(key, value): (&str, Variant<'_>)| Some((key.to_owned(), value.try_into_owned().ok()?));
    pairs.into_iter().filter_map(owned).collect()
}
