//! `animctl cancel ID...`

use serde_json::{Value, json};

use super::exit::{Exit, Result};
use super::{Ctl, json_of, print};

/// Cancel jobs, waiting or running.
///
/// Their owner and root may.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl cancel 7\n\nA running job stops a little later; if its video is finished \
first, the job is done all the same.\n\nJSON: id, state (canceled, canceling, or done or failed where that came first); of several \
jobs an array of such objects"
)]
pub struct Args {
    /// The jobs' numbers
    #[arg(required = true, value_name = "ID")]
    ids: Vec<u64>,
}

pub async fn run(args: &Args, ctl: &Ctl) -> Result {
    let (mut told, mut sentences, mut exit) = (Vec::new(), Vec::new(), Exit::Done);
    for &id in &args.ids {
        match cancel(id, ctl).await {
            Ok(state) => {
                sentences.push(match state.as_str() {
                    "canceled" => format!("job {id} is cancelled"),
                    "canceling" => format!("job {id} is being cancelled"),
                    ended => format!("job {id} is {ended}: that came before the cancel"),
                });
                told.push(json!({"id": id, "state": state}));
            }
            // A job that cannot be cancelled does not keep the others from being cancelled.
            Err(e) if args.ids.len() > 1 => {
                eprintln!("animctl: {}", e.text);
                exit = e.exit;
            }
            Err(e) => return Err(e),
        }
    }
    if ctl.json {
        print(match args.ids[..] {
            [_] => told.remove(0),
            _ => Value::Array(told),
        });
    } else {
        sentences.iter().for_each(print);
    }
    Ok(exit)
}

async fn cancel(id: u64, ctl: &Ctl) -> Result<String> {
    let job = ctl.job(id).await?;
    job.cancel().await?;
    // The property `State` may lag behind the description.
    let description = json_of(&job.describe().await?);
    let ended = description["state"].as_str().filter(|state| animd_client::has_ended(state));
    Ok(ended.unwrap_or("canceling").to_owned())
}
