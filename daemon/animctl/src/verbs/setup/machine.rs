//! What this machine runs: its card, the profile that the service has chosen, and how long a video takes with it.

use animd_common::bus::ServiceState;
use animd_common::words::{bytes, time};
use animd_protocol::plan::cards;
use animd_protocol::plan::{Plan, Prediction, Setup, refusal};
use animd_protocol::profile::{Precision, Profile};
use animd_protocol::recipe::Recipe;
use animd_protocol::request::{Sampler, Settings};
use animd_protocol::sources::{Family, Kind};
use serde_json::json;

use super::super::exit::Result;
use super::super::{On, json_of};
use super::step::Step;

const NAME: &str = "machine";
/// Seconds of a video beyond which the model that was distilled to few steps is recommended.
const PATIENCE: f64 = 600.0;

/// What the service has found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Machine {
    /// The service's state and its words, if it answers.
    pub state: Option<(String, String)>,
    /// The profile; empty while there is none.
    pub profile: String,
    /// The card's product name and its bytes of memory, if the service uses one.
    pub card: Option<(String, u64)>,
}

impl Machine {
    /// Asks the service.
    pub async fn ask(on: On) -> Self {
        let asked = async {
            let manager = on.connect().await?.manager;
            let gpu = json_of(&manager.gpu().await?);
            let card = gpu["used"].as_bool().unwrap_or_default().then(|| {
                let name = gpu["name"].as_str().unwrap_or_default().to_owned();
                (name, gpu["memory_total"].as_u64().unwrap_or_default())
            });
            let state = Some((manager.state().await?, manager.state_text().await?));
            Result::Ok(Self { state, profile: manager.profile().await?, card })
        };
        asked.await.unwrap_or_default()
    }

    /// Returns the precision that the profile computes the transformer in; `None` where animd has no profile of this name.
    pub fn precision(&self) -> Option<Precision> {
        Some(Profile::built_in(&self.profile)?.precision.dit)
    }

    /// Returns the seconds that a five-second video at 480p takes here with a model of this family, of the released or of
    /// the distilled kind; `None` without a card whose speed is known.
    fn seconds(&self, family: Family, sampler: Sampler) -> Option<f64> {
        let (name, memory) = self.card.as_ref()?;
        let (card, profile) = (cards::named(name)?, Profile::built_in(&self.profile)?);
        let recipe = match family {
            Family::Wan22I2vA14b => Recipe::wan22_i2v_a14b(),
            Family::Wan21I2v480p | Family::Wan21I2v720p => Recipe::wan21_i2v_14b(),
        };
        let settings = Settings { sampler: Some(sampler), ..profile.settings.clone() };
        let request = settings.resolve_for(&recipe.defaults, || 0).ok()?;
        let wanted = Setup::from(&profile);
        let budget = [wanted.budget, memory.checked_sub(wanted.reserve)].into_iter().flatten().min();
        let setup = Setup { budget, ..wanted };
        let size = [832, 480];
        if refusal(&recipe, &request, size, &setup).is_some() {
            return None;
        }
        let plan = Plan::new(&recipe, &request, size, &setup);
        Prediction::new(&recipe, &plan, &setup, &card).map(|prediction| prediction.seconds)
    }

    /// Returns the kind of files that suits this machine: the distilled model where the released one takes very long.
    pub fn kind(&self, family: Family) -> Kind {
        match self.seconds(family, Sampler::Unipc) {
            Some(seconds) if seconds <= PATIENCE => Kind::Comfy,
            _ => Kind::Distilled,
        }
    }

    /// Returns the step, for a model of this family.
    pub fn step(&self, family: Family, on: On) -> Step {
        let Some((state, text)) = &self.state else {
            let command = if on.user { "animd --user" } else { "sudo systemctl start animd" };
            return Step::todo(
                NAME,
                "animd is not running, so its choice of card and profile is not known",
                vec![command.to_owned()],
            );
        };
        let known = ServiceState::from_name(state);
        let usable = !matches!(known, Some(ServiceState::NoGpu | ServiceState::NoEngine));
        let facts = |step: Step| step.with("profile", self.profile.clone()).with("service", state.clone());
        let Some((card, memory)) = &self.card else {
            return facts(match usable {
                true => Step::done(
                    NAME,
                    "it computes on the CPU, where one video of the 14B model takes days; `animctl profile` says why no card is \
                     used",
                ),
                false => Step::todo(NAME, text.clone(), vec!["animctl doctor".to_owned()]),
            });
        };
        let seconds = [Sampler::Unipc, Sampler::Distill].map(|sampler| self.seconds(family, sampler));
        let takes = match seconds {
            [Some(released), Some(distilled)] => format!(
                "; a five-second video at 480p takes about {}, of a distilled model {}",
                time(released),
                time(distilled)
            ),
            _ => String::new(),
        };
        let message = format!("{card}, {}: profile {}{takes}", bytes(*memory), self.profile);
        let [released, distilled] = seconds;
        facts(Step::done(NAME, message))
            .with("gpu", json!({"name": card, "memory": memory}))
            .with("seconds", json!({"released": released, "distilled": distilled}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(card: &str, gib: u64, profile: &str) -> Machine {
        Machine {
            state: Some(("no-weights".into(), "no model".into())),
            profile: profile.into(),
            card: Some((card.into(), gib << 30)),
        }
    }

    const ON: On = On { user: false, system: true, json: false };

    #[test]
    fn a_slow_card_is_told_to_take_the_distilled_model() {
        let (fast, slow) = (with("NVIDIA H200", 139, "h200"), with("NVIDIA GeForce RTX 3060", 12, "rtx3060"));
        assert_eq!(fast.kind(Family::Wan21I2v480p), Kind::Comfy);
        assert_eq!(slow.kind(Family::Wan21I2v480p), Kind::Distilled);
        assert_eq!(Machine::default().kind(Family::Wan21I2v480p), Kind::Distilled);
        let step = fast.step(Family::Wan21I2v480p, ON);
        assert!(
            step.is_settled() && step.message.contains("profile h200; a five-second"),
            "{}",
            step.message
        );
        let [released, distilled] =
            ["released", "distilled"].map(|kind| step.facts["seconds"][kind].as_f64().unwrap_or_default());
        assert!(released > 5.0 * distilled && distilled > 1.0, "{released} {distilled}");
        assert_eq!(fast.precision(), Some(Precision::Int8));
    }

    #[test]
    fn without_a_card_or_a_service_it_says_so() {
        let cpu = Machine { card: None, profile: "cpu".into(), ..with("", 0, "") };
        let step = cpu.step(Family::Wan21I2v480p, ON);
        assert!(step.is_settled() && step.message.contains("takes days"), "{}", step.message);
        let state = Some(("no-gpu".into(), "the card has too little memory".into()));
        let none = Machine { state, ..cpu.clone() }.step(Family::Wan21I2v480p, ON);
        assert!(!none.is_settled() && none.message.contains("too little memory"));
        let step = Machine::default().step(Family::Wan21I2v480p, ON);
        assert_eq!(step.commands, ["sudo systemctl start animd"]);
        assert_eq!(
            Machine::default().step(Family::Wan21I2v480p, On { user: true, ..ON }).commands,
            ["animd --user"]
        );
    }
}
