//! The answers of `Statistics`, sums over ended jobs, and of `Timeline`, the course of one job.

use super::answer::{Answer, Dict};
use crate::store::ledger::{Sum, Timeline};

/// Returns one row of `Statistics`.
pub fn sum(row: Sum) -> Dict {
    Answer::default()
        .with("key", row.key)
        .with("done", row.done)
        .with("failed", row.failed)
        .with("canceled", row.canceled)
        .with("seconds", row.seconds)
        .with("joules", row.joules)
        .with("frames", row.frames)
        .dict()
}

/// Returns the answer of `Timeline`. Its rows leave nothing out: an unknown value is below 0, or 0 if it is an integer.
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
    Answer::default()
        .with("events", events)
        .with("stages", stages)
        .with("steps", steps)
        .with("samples", samples)
        .dict()
}
