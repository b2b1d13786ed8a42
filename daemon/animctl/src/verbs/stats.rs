//! `animctl stats`

use std::collections::HashMap;

use clap::ValueEnum;
use jiff::Timestamp;
use serde_json::Value;
use zbus::Variant;

use super::exit::{Exit, Failure, Result};
use super::table::{Column, Table};
use super::{Ctl, json_of, print, who, whole};
use crate::report::Sum;

const DAY_US: u64 = 86_400_000_000;

/// What sums are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum By {
    /// The day on which a job ended, in universal time
    Day,
    /// The model
    Model,
    /// The profile
    Profile,
}

impl By {
    /// Returns the name on the bus.
    pub fn name(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Model => "model",
            Self::Profile => "profile",
        }
    }

    /// Returns the head of a column of them.
    fn title(self) -> &'static str {
        match self {
            Self::Day => "DAY",
            Self::Model => "MODEL",
            Self::Profile => "PROFILE",
        }
    }
}

/// Sum up your jobs by day, model or profile.
///
/// Only jobs that have ended count. For root it is everybody's jobs.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl stats --by model --days 30\n\nJSON: an array of objects with key (the day, model or profile; empty \
where a job has none), done, failed, canceled (numbers of jobs), and of those with a video seconds, joules, frames"
)]
pub struct Args {
    /// What the sums are for
    #[arg(long, value_enum, default_value_t = By::Day)]
    by: By,
    /// Only jobs of the last N days
    #[arg(long, value_name = "N", value_parser = whole::<u64>)]
    days: Option<u64>,
    /// Only jobs of this user, a name or a number
    #[arg(long, value_name = "USER", value_parser = who::uid)]
    owner: Option<u32>,
}

pub async fn run(args: &Args, ctl: &Ctl) -> Result {
    let rows = sums(ctl, args.by, args.days, args.owner).await?;
    if ctl.json {
        print(Value::Array(rows));
        return Ok(Exit::Done);
    }
    let rows: Vec<Sum> = rows.into_iter().map(sum).collect::<Result<_>>()?;
    let rows = rows
        .iter()
        .map(|row| {
            let [done, failed, canceled, time, each, energy, each_energy] = row.figures();
            [row.name().to_owned(), done, failed, canceled, time, each, energy, each_energy]
        })
        .collect();
    let head = [
        Column::flexible(args.by.title()),
        Column::right("VIDEOS"),
        Column::right("FAILED"),
        Column::right("CANCELLED"),
        Column::right("TIME"),
        Column::right("PER VIDEO"),
        Column::right("ENERGY"),
        Column::right("PER VIDEO"),
    ];
    Table { head, rows }.print(&|_| None);
    Ok(Exit::Done)
}

/// Returns the rows of `Statistics`.
pub async fn sums(ctl: &Ctl, by: By, days: Option<u64>, owner: Option<u32>) -> Result<Vec<Value>> {
    let mut options: HashMap<&str, Variant<'_>> = HashMap::from([("by", by.name().into())]);
    if let Some(days) = days {
        let now = Timestamp::now().as_microsecond() as u64;
        options.insert("since", now.saturating_sub(days.saturating_mul(DAY_US)).into());
    }
    if let Some(owner) = owner {
        options.insert("owner", owner.into());
    }
    Ok(ctl.manager.statistics(options).await?.iter().map(json_of).collect())
}

/// Returns one row as a [`Sum`].
pub fn sum(row: Value) -> Result<Sum> {
    serde_json::from_value(row).map_err(|e| Failure::new(format!("animd's figures cannot be read: {e}")))
}
