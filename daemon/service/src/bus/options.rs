//! Checks the options of a call, `a{sv}`: an unknown key is refused, never ignored.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};

use animd_common::bus::json;
use animd_common::keys;
use animd_common::text;
use animd_protocol::given::{self, Given};
use animd_protocol::request::Settings;
use serde_json::Value;
use zbus::{OwnedVariant, Variant};

use super::error::BusError;
use crate::queue::Retry;
use crate::store::ledger::{By, Filter, State};
use crate::store::watches::How;

/// Options as a caller sends them.
pub type Options = HashMap<String, OwnedVariant>;

/// The options of a submission.
#[derive(Debug, Default)]
pub struct Submission {
    /// The settings of the video.
    pub settings: Settings,
    /// The beginning of the video's name.
    pub name: Option<OsString>,
    /// The key for which the same user always gets the same job.
    pub idempotency_key: Option<String>,
    /// The priority: a waiting job with a larger one runs first.
    pub priority: i32,
    /// The picture that the video ends at.
    pub last: Option<OwnedFd>,
    /// Whether the service keeps the video for its caller to fetch, instead of putting it in the outbox.
    pub kept_for_caller: bool,
}

/// The options of a plan.
#[derive(Debug, Default, PartialEq)]
pub struct PlanOf {
    /// The settings of the video.
    pub settings: Settings,
    /// The picture's width and height in pixels, where they are known.
    pub picture: Option<(u32, u32)>,
}

/// The options of `Statistics`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SumsOf {
    /// What the sums are grouped by.
    pub by: By,
    /// Only jobs of this user.
    pub owner: Option<u32>,
    /// Only jobs that ended at this time or later, in microseconds since the epoch.
    pub since_us: u64,
}

const NAME: &str = "name";
const IDEMPOTENCY_KEY: &str = "idempotency_key";
const PRIORITY: &str = "priority";
const KEEP: &str = "keep";
const LAST: &str = "last";
const LAST_NAME: &str = "last_name";
/// The lowest and the highest priority.
const PRIORITIES: std::ops::RangeInclusive<i32> = -100..=100;
/// The longest name and key, in bytes.
const MAX_NAME: usize = 200;
/// The largest side of a picture that a plan is made for.
const MAX_PIXELS: u32 = 1 << 16;
/// The longest wrong word that an error repeats, in characters.
const MAX_SHOWN: usize = 60;
const NEW_SEED: &str = "new_seed";

/// Reads a submission's options: every key of [`Settings`], `last` as a descriptor with its `last_name`, `name`,
/// `idempotency_key`, `priority` and `keep`.
pub fn submission(options: &Options) -> Result<Submission, BusError> {
    let mut read = Submission::default();
    let mut last_name = None;
    read.settings =
        settings(options, &[LAST, LAST_NAME, NAME, IDEMPOTENCY_KEY, PRIORITY, KEEP], |key, value| {
            match key {
                LAST => read.last = Some(descriptor(key, value)?),
                LAST_NAME => last_name = Some(file_name(&word(key, value)?)),
                NAME => read.name = Some(file_name(&word(key, value)?)),
                PRIORITY => {
                    read.priority = number(key, value)?;
                    check_priority(read.priority)?;
                }
                KEEP => {
                    read.kept_for_caller = match word(key, value)?.as_str() {
                        "outbox" => false,
                        "caller" => true,
                        other => {
                            return Err(BusError::InvalidOption(format!(
                                "`{key}`: `{}` is neither `outbox` nor `caller`",
                                short(other)
                            )));
                        }
                    };
                }
                _ => {
                    let given = word(key, value)?;
                    if given.is_empty() || given.len() > MAX_NAME {
                        return Err(BusError::InvalidOption(format!(
                            "`{key}` has {} bytes; give 1 to {MAX_NAME}",
                            given.len()
                        )));
                    }
                    read.idempotency_key = Some(given);
                }
            }
            Ok(())
        })?;
    if read.last.is_some() {
        let name = last_name.unwrap_or_else(|| "picture".into());
        read.settings.last = Some(name.to_string_lossy().into_owned());
    } else if last_name.is_some() {
        let text = format!("`{LAST_NAME}` comes without `{LAST}`; give both, or neither");
        return Err(BusError::InvalidOption(text));
    }
    Ok(read)
}

/// Reads a plan's options: those of a submission, `width` and `height` of the picture.
pub fn plan(options: &Options) -> Result<PlanOf, BusError> {
    let (mut width, mut height) = (None, None);
    let others = [LAST, LAST_NAME, NAME, IDEMPOTENCY_KEY, PRIORITY, KEEP, "width", "height"];
    let mut last = None;
    let mut settings = settings(options, &others, |key, value| {
        let side = match key {
            // Nothing is opened for a plan: the name alone would do.
            LAST | LAST_NAME => {
                last = Some("picture".to_owned());
                return Ok(());
            }
            "width" => &mut width,
            "height" => &mut height,
            _ => return Ok(()),
        };
        let pixels = whole(key, value)?;
        *side =
            Some(u32::try_from(pixels).ok().filter(|n| (1..=MAX_PIXELS).contains(n)).ok_or_else(|| {
                BusError::InvalidOption(format!("`{key}`: {pixels} is not from 1 to {MAX_PIXELS}"))
            })?);
        Ok(())
    })?;
    settings.last = last;
    match (width, height) {
        (None, Some(_)) => Err(BusError::InvalidOption("`height` comes without `width`; give both".into())),
        (Some(_), None) => Err(BusError::InvalidOption("`width` comes without `height`; give both".into())),
        (width, height) => Ok(PlanOf { settings, picture: width.zip(height) }),
    }
}

/// Reads a retry's options: every key of [`Settings`], and `new_seed`.
pub fn retry(options: &Options) -> Result<Retry, BusError> {
    let mut new_seed = false;
    let settings = settings(options, &[NEW_SEED], |key, value| {
        new_seed = truth(key, value)?;
        Ok(())
    })?;
    Ok(Retry { settings, new_seed })
}

/// Refuses a priority that is out of range.
pub fn check_priority(priority: i32) -> Result<(), BusError> {
    match PRIORITIES.contains(&priority) {
        true => Ok(()),
        false => Err(BusError::InvalidOption(format!(
            "`priority`: {priority} is not from {} to {}",
            PRIORITIES.start(),
            PRIORITIES.end()
        ))),
    }
}

/// Reads the settings out of options; `other` is given the keys of `others`. All wrong settings are told at once.
fn settings(
    options: &Options,
    others: &[&'static str],
    mut other: impl FnMut(&str, &OwnedVariant) -> Result<(), BusError>,
) -> Result<Settings, BusError> {
    let mut settings = Settings::default();
    let mut mistakes = Vec::new();
    let mut options: Vec<_> = options.iter().collect();
    options.sort_by_key(|(key, _)| *key);
    for (key, value) in options {
        if others.contains(&key.as_str()) {
            other(key, value)?;
        } else if key != LAST && keys::SETTINGS.contains(&key.as_str()) {
            if let Err(mistake) = given::set(&mut settings, key, &given(value)) {
                mistakes.push(mistake.0);
            }
        } else {
            return Err(unknown(
                key,
                keys::SETTINGS.into_iter().filter(|known| *known != LAST).chain(others.iter().copied()),
            ));
        }
    }
    if !mistakes.is_empty() {
        return Err(BusError::InvalidOption(mistakes.join("; ")));
    }
    text::settings(settings).map_err(BusError::InvalidOption)
}

/// Returns a value of the bus as what a person gave.
fn given(value: &OwnedVariant) -> Given<'static> {
    match json(value) {
        Some(Value::String(text)) => Given::Text(text.into()),
        Some(Value::Bool(truth)) => Given::Truth(truth),
        Some(Value::Number(number)) => match (number.as_i128(), number.as_f64()) {
            (Some(whole), _) => Given::Whole(whole),
            (None, real) => Given::Real(real.unwrap_or(f64::NAN)),
        },
        Some(Value::Array(items)) => {
            let text = |item: Value| if let Value::String(text) = item { Some(text) } else { None };
            let texts: Option<Vec<String>> = items.into_iter().map(text).collect();
            texts.map_or(Given::Other("a list"), Given::Texts)
        }
        Some(Value::Null | Value::Object(_)) => Given::Other("a list"),
        // JSON has no word for a number that is not finite.
        None => Given::Other("a number that is not finite, or a descriptor"),
    }
}

/// Returns the state with this name.
fn state(name: &str) -> Result<State, BusError> {
    State::from_name(name).ok_or_else(|| {
        let states = State::ALL.map(State::name);
        BusError::InvalidOption(format!("`state`: `{}` is none of {}", short(name), states.join(", ")))
    })
}

/// Reads a list's filter: `state` s (one, or several with commas between them), `owner` u, `before` t, `limit` u, of which at most `most` are given.
pub fn filter(options: &Options, most: u32) -> Result<Filter, BusError> {
    let mut filter = Filter { states: Vec::new(), owner: None, before: None, limit: 100.min(most) };
    for (key, value) in options {
        match key.as_str() {
            "state" => {
                let names = word(key, value)?;
                filter.states = names.split(',').map(|name| state(name.trim())).collect::<Result<_, _>>()?;
            }
            "owner" => filter.owner = Some(number(key, value)?),
            // A number that SQLite cannot hold is larger than every job's.
            "before" => filter.before = Some(whole(key, value)?.min(i64::MAX as u64)),
            "limit" => filter.limit = whole(key, value)?.min(most.into()) as u32,
            _ => return Err(unknown(key, ["state", "owner", "before", "limit"])),
        }
    }
    Ok(filter)
}

/// Reads which sums are asked for: `by` s, `owner` u, `since` t.
pub fn sums(options: &Options) -> Result<SumsOf, BusError> {
    let mut of = SumsOf { by: By::Day, owner: None, since_us: 0 };
    for (key, value) in options {
        match key.as_str() {
            "by" => {
                let name = word(key, value)?;
                of.by = By::from_name(&name).ok_or_else(|| {
                    let names = By::ALL.map(By::name).join(", ");
                    BusError::InvalidOption(format!("`by`: `{}` is none of {names}", short(&name)))
                })?;
            }
            "owner" => of.owner = Some(number(key, value)?),
            // A time that SQLite cannot hold is later than every job's end.
            "since" => of.since_us = whole(key, value)?.min(i64::MAX as u64),
            _ => return Err(unknown(key, ["by", "owner", "since"])),
        }
    }
    Ok(of)
}

fn unknown<'a>(key: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> BusError {
    // Computing the edit distance to a key of a megabyte would take minutes.
    let near = if key.len() > MAX_SHOWN { None } else { keys::nearest(key, known.clone()) };
    let hint = match near {
        Some(near) => format!("; did you mean `{near}`?"),
        None => format!("; known are {}", known.into_iter().collect::<Vec<_>>().join(", ")),
    };
    BusError::UnknownOption(format!("unknown option `{}`{hint}", short(key)))
}

/// Returns a caller's text as one line that is short enough for an error.
fn short(text: &str) -> String {
    let cut: String = text.chars().take(MAX_SHOWN).collect();
    if cut.len() < text.len() {
        format!("{}...", animd_common::files::show(cut))
    } else {
        animd_common::files::show(cut)
    }
}

/// Reads how a folder is to be watched: `outbox` s, `stable_seconds` d, `poll_seconds` d.
pub fn how(options: &Options) -> Result<How, BusError> {
    let mut how = How::default();
    for (key, value) in options {
        match key.as_str() {
            "outbox" => how.outbox = Some(word(key, value)?.into()),
            "stable_seconds" => how.stable_seconds = Some(seconds(key, value)?),
            "poll_seconds" => how.poll_seconds = Some(seconds(key, value)?),
            _ => return Err(unknown(key, ["outbox", "stable_seconds", "poll_seconds"])),
        }
    }
    Ok(how)
}

fn seconds(key: &str, value: &OwnedVariant) -> Result<f64, BusError> {
    json(value)
        .and_then(|v| v.as_f64())
        .ok_or_else(|| BusError::InvalidOption(format!("`{key}` is not a number of seconds")))
}

fn descriptor(key: &str, value: &OwnedVariant) -> Result<OwnedFd, BusError> {
    match &**value {
        Variant::Fd(fd) => fd
            .as_fd()
            .try_clone_to_owned()
            .map_err(|e| BusError::InvalidOption(format!("`{key}` cannot be used: {e}"))),
        _ => Err(BusError::InvalidOption(format!(
            "`{key}` must be a descriptor of a picture that is open for reading, not {}",
            given(value)
        ))),
    }
}

fn word(key: &str, value: &OwnedVariant) -> Result<String, BusError> {
    match json(value) {
        Some(Value::String(word)) => {
            text::without_zero(&word).map_err(|e| BusError::InvalidOption(format!("`{key}`: {e}")))?;
            Ok(word)
        }
        _ => Err(BusError::InvalidOption(format!("`{key}` is not text"))),
    }
}

fn whole(key: &str, value: &OwnedVariant) -> Result<u64, BusError> {
    json(value)
        .and_then(|v| v.as_u64())
        .ok_or_else(|| BusError::InvalidOption(format!("`{key}` is not a whole number from 0 on")))
}

fn number<T: TryFrom<i64>>(key: &str, value: &OwnedVariant) -> Result<T, BusError> {
    json(value)
        .and_then(|v| T::try_from(v.as_i64()?).ok())
        .ok_or_else(|| BusError::InvalidOption(format!("`{key}` is not a whole number, or too large a one")))
}

fn truth(key: &str, value: &OwnedVariant) -> Result<bool, BusError> {
    json(value)
        .and_then(|v| v.as_bool())
        .ok_or_else(|| BusError::InvalidOption(format!("`{key}` is neither true nor false")))
}

/// Returns the stem of a file from a name that somebody else chose: no folders, no control characters, not hidden.
fn file_name(given: &str) -> OsString {
    let last = given.rsplit('/').find(|part| !part.is_empty()).unwrap_or_default();
    let clean: String = last.chars().map(|c| if c.is_control() { '_' } else { c }).collect();
    // Dots and spaces go together: a space may follow a dot, and a dot may follow a space.
    let mut name = clean.trim_start_matches(|c: char| c == '.' || c.is_whitespace()).trim_end().to_owned();
    while name.len() > MAX_NAME {
        name.pop();
    }
    if name.is_empty() { super::DEFAULT_NAME.into() } else { name.into() }
}

#[cfg(test)]
mod tests {
    use zbus::Variant;

    use super::*;

    fn options<const N: usize>(pairs: [(&str, Variant<'_>); N]) -> Options {
        pairs.into_iter().map(|(k, v)| (k.to_owned(), v.try_into_owned().expect("no descriptor"))).collect()
    }

    #[test]
    fn options_of_any_number_type_are_read() -> Result<(), BusError> {
        let read = submission(&options([
            ("prompt", "a wave".into()),
            ("seed", 5_i32.into()),
            ("steps", 4_u64.into()),
            ("guidance", 3_u8.into()),
            ("fps", 24.0_f64.into()),
            ("size", "720p".into()),
            ("name", "../../.etc/x\ny".into()),
        ]))?;
        assert_eq!(
            (read.settings.seed, read.settings.steps, read.settings.guidance),
            (Some(5), Some(4), Some(3.0))
        );
        assert_eq!(read.name.as_deref(), Some("x_y".as_ref()));
        assert_eq!(file_name("... ..photo.png "), file_name("photo.png"));
        assert_eq!(file_name(". .. "), super::super::DEFAULT_NAME);
        Ok(())
    }

    #[test]
    fn a_last_picture_is_a_descriptor_with_a_name() {
        let file = tempfile::tempfile().expect("a file");
        let last = || Variant::from(zbus::Fd::from(file.as_fd()));
        let read =
            submission(&options([("last", last()), ("last_name", "a/end.png".into())])).expect("valid");
        assert!(read.last.is_some());
        assert_eq!(read.settings.last.as_deref(), Some("end.png"));
        let read = submission(&options([("last", last())])).expect("valid");
        assert_eq!(read.settings.last.as_deref(), Some("picture"));
        let error = |o: Options| submission(&o).expect_err("refused").to_string();
        assert!(error(options([("last", "end.png".into())])).contains("must be a descriptor of a picture"));
        assert!(error(options([("last_name", "end.png".into())])).contains("comes without `last`"));
        let text =
            retry(&options([("last", "end.png".into())])).expect_err("a retry keeps its picture").to_string();
        assert!(text.contains("unknown option `last`"), "{text}");
    }

    #[test]
    fn wrong_options_are_refused_by_name() {
        let error = |o: Options| submission(&o).expect_err("refused").to_string();
        assert!(
            error(options([("promt", "a".into())]))
                .ends_with("unknown option `promt`; did you mean `prompt`?")
        );
        assert!(
            error(options([("seed", (-1_i32).into())])).contains("`seed` must be a whole number from 0 to ")
        );
        let both = error(options([("steps", 0_u8.into()), ("fps", "fast".into())]));
        assert!(both.contains("`fps` must be") && both.contains("; `steps` must be"), "{both}");
        assert!(error(options([("size", "800x601".into())])).contains("the nearest to 601 is 608"));
        let error = |o: Options| filter(&o, 1000).expect_err("refused").to_string();
        assert!(error(options([("state", "quued".into())])).contains("none of queued"));
        assert!(error(options([("stat", "x".into())])).contains("did you mean `state`?"));
        let error = |o: Options| sums(&o).expect_err("refused").to_string();
        assert!(error(options([("by", "week".into())])).contains("none of day, model, profile"));
        assert!(error(options([("ower", 1_u32.into())])).contains("did you mean `owner`?"));
    }
}
