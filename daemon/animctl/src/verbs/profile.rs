//! `animctl profile`

use serde_json::Value;

use super::exit::{Exit, Failure, Result};
use super::term::{Color, paint, width, wrap};
use super::{Ctl, json_of, print};

/// List the profiles with the reason why each is or is not in use.
///
/// A profile is a way to run the model on a machine.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl profile l40s\n\n`[profile] name` in animd.toml asks for one.\n\nJSON: an array of objects with name, \
summary, fits (it would run here now), chosen, why; of one profile its object"
)]
pub struct Args {
    /// Only this profile
    name: Option<String>,
}

pub async fn run(args: &Args, ctl: &Ctl) -> Result {
    let mut profiles: Vec<Value> = ctl.manager.profiles().await?.iter().map(json_of).collect();
    let text = |profile: &Value, key: &str| profile[key].as_str().unwrap_or_default().to_owned();
    if let Some(name) = &args.name {
        let found = profiles.iter().position(|profile| profile["name"] == name.as_str());
        let profile = profiles.swap_remove(found.ok_or_else(|| {
            let names: Vec<_> = profiles.iter().map(|profile| text(profile, "name")).collect();
            Failure::new(format!("there is no profile `{name}`; known are {}", names.join(", ")))
        })?);
        let use_ = if profile["chosen"] == true { "in use" } else { "not in use" };
        let lines = format!(
            "{}: {}\n{use_}: {}",
            text(&profile, "name"),
            text(&profile, "summary"),
            text(&profile, "why")
        );
        ctl.tell(&profile, &lines);
        return Ok(Exit::Done);
    }
    if ctl.json {
        print(Value::Array(profiles));
        return Ok(Exit::Done);
    }
    let mark = |profile: &Value| match (profile["chosen"] == true, profile["fits"] == true) {
        (true, _) => "in use",
        (false, true) => "fits",
        (false, false) => "does not fit",
    };
    for profile in &profiles {
        let color = if profile["chosen"] == true { Some(Color::Green) } else { None };
        print(format!("{}: {}", text(profile, "name"), paint(mark(profile), color)));
        let why = format!("why: {}", text(profile, "why"));
        for line in [text(profile, "summary"), why].iter().flat_map(|text| wrap(text, width() - 4)) {
            print(format!("    {line}"));
        }
    }
    Ok(Exit::Done)
}
