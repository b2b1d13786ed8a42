//! `animctl model`: which models there are, where their files lie, and which one is used. One file a verb.

mod add;
mod ask;
pub mod cache;
mod checks;
pub mod known_loras;
mod list;
mod loras;
mod place;
mod remove;
pub mod search;
mod shown;
mod switch;
mod trial;

use super::On;
use super::exit::Result;

/// Find, name and choose models, check their files, and prepare them.
#[derive(clap::Args)]
#[command(after_help = "Example: sudo animctl model add ~/ComfyUI")]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    Add(Box<add::Add>),
    List(list::List),
    Show(shown::Show),
    Use(switch::Use),
    Remove(remove::Remove),
    Verify(checks::Verify),
    Check(checks::Check),
    Prepare(cache::Prepare),
    Cache(cache::Cache),
}

pub async fn run(args: &Args, on: On) -> Result {
    match &args.verb {
        Verb::Add(args) => add::run(args, on).await,
        Verb::List(args) => list::run(args, on).await,
        Verb::Show(args) => shown::run(args, on).await,
        Verb::Use(args) => switch::run(args, on).await,
        Verb::Remove(args) => remove::run(args, on).await,
        Verb::Verify(args) => checks::verify(args, on),
        Verb::Check(args) => checks::check(args, on),
        Verb::Prepare(args) => cache::prepare(args, on),
        Verb::Cache(args) => cache::cache(args, on).await,
    }
}
