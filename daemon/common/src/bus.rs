//! The service's name on the bus, its states, and the bus's values as JSON.

use serde_json::Value;
use zbus::Variant;

/// The service's name on the bus.
pub const NAME: &str = "org.animd.Animd1";

/// What the service as a whole is doing, the property `State` of its manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceState {
    /// The service has just started.
    Starting,
    /// The engine is starting.
    Loading,
    /// There are no jobs to run.
    Idle,
    /// A video is being made.
    Busy,
    /// The queue is paused, or the machine goes to sleep.
    Paused,
    /// There is no model, or it cannot be used.
    NoWeights,
    /// No GPU can be used.
    NoGpu,
    /// The engine cannot work.
    NoEngine,
    /// No video could be encoded or put into its folder now: the queue rests until it can.
    NoOutput,
    /// The service is about to end.
    Stopping,
}

impl ServiceState {
    /// All states.
    pub const ALL: [Self; 10] = [
        Self::Starting,
        Self::Loading,
        Self::Idle,
        Self::Busy,
        Self::Paused,
        Self::NoWeights,
        Self::NoGpu,
        Self::NoEngine,
        Self::NoOutput,
        Self::Stopping,
    ];

    /// Returns the name on the bus, in JSON and in the metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Loading => "loading",
            Self::Idle => "idle",
            Self::Busy => "busy",
            Self::Paused => "paused",
            Self::NoWeights => "no-weights",
            Self::NoGpu => "no-gpu",
            Self::NoEngine => "no-engine",
            Self::NoOutput => "no-output",
            Self::Stopping => "stopping",
        }
    }

    /// Returns the state with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }

    /// Returns whether jobs cannot run until a person repairs something.
    pub fn is_trouble(self) -> bool {
        matches!(self, Self::NoWeights | Self::NoGpu | Self::NoEngine | Self::NoOutput)
    }

    /// Returns whether waiting jobs run one after the other, with nothing in their way.
    pub fn is_working(self) -> bool {
        matches!(self, Self::Idle | Self::Busy)
    }
}

/// Returns a value of the bus as JSON; `None` for what JSON cannot say, such as a descriptor.
pub fn json(value: &Variant<'_>) -> Option<Value> {
    Some(match value {
        Variant::U8(n) => (*n).into(),
        Variant::Bool(b) => (*b).into(),
        Variant::I16(n) => (*n).into(),
        Variant::U16(n) => (*n).into(),
        Variant::I32(n) => (*n).into(),
        Variant::U32(n) => (*n).into(),
        Variant::I64(n) => (*n).into(),
        Variant::U64(n) => (*n).into(),
        Variant::F64(x) => serde_json::Number::from_f64(*x)?.into(),
        Variant::Str(s) => s.as_str().into(),
        Variant::ObjectPath(path) => path.as_str().into(),
        Variant::Signature(signature) => signature.to_string().into(),
        Variant::Variant(inner) => json(inner)?,
        Variant::Array(items) => Value::Array(items.iter().map(json).collect::<Option<_>>()?),
        Variant::Structure(fields) => Value::Array(fields.fields().iter().map(json).collect::<Option<_>>()?),
        Variant::Dict(entries) => {
            let mut map = serde_json::Map::new();
            for (key, value) in entries.iter() {
                let key = match json(key)? {
                    Value::String(key) => key,
                    other => other.to_string(),
                };
                map.insert(key, json(value)?);
            }
            Value::Object(map)
        }
        Variant::Fd(_) => return None,
    })
}

/// Returns a JSON value as an option of a bus call: a string, a whole number, a float, a boolean or a list of strings. `None` for every
/// other value.
pub fn variant(value: &Value) -> Option<Variant<'_>> {
    match value {
        Value::Bool(truth) => Some((*truth).into()),
        Value::String(text) => Some(text.as_str().into()),
        Value::Number(number) => match number.as_u64() {
            Some(whole) => Some(whole.into()),
            None => number.as_f64().map(Into::into),
        },
        Value::Array(items) => {
            let texts: Option<Vec<String>> =
                items.iter().map(|item| Some(item.as_str()?.to_owned())).collect();
            texts.map(Variant::new)
        }
        Value::Null | Value::Object(_) => None,
    }
}
