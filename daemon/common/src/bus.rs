//! What the service and its clients know of the bus: the service's name, and its values as JSON.

use serde_json::Value;
use zbus::Variant;

/// The service's name on the bus.
pub const NAME: &str = "org.animd.Animd1";

/// A value of the bus as JSON; `None` for what JSON cannot say, such as a descriptor.
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
