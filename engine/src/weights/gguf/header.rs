//! The header of a GGUF file. Each length in it is checked against the file before anything is made of that length, so
//! that time and memory stay proportional to the header's own bytes, and these are limited.

use std::collections::BTreeMap;

/// The longest header that is read. The largest real one, with a vocabulary of 256,000 pieces, has about 12 MB.
const MAX_HEADER: usize = 64 << 20;
/// The most keys and the most tensors; real files have about 50 and 1100.
const MAX_ENTRIES: u64 = 65_536;
/// The longest name of a key or a tensor.
const MAX_NAME: usize = 512;
/// The most axes of a tensor.
const MAX_AXES: u32 = 8;

type Read<T> = Result<T, String>;

/// What the header says of a tensor.
#[derive(Debug)]
pub(super) struct Info {
    /// The extents, outermost first.
    pub shape: Vec<usize>,
    /// The number of the tensor's type.
    pub kind: u32,
    /// The offset from the beginning of all tensors.
    pub offset: u64,
}

/// The value of a key. Lists stay where they are until somebody wants their items.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value<'a> {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool,
    Text(&'a [u8]),
    List(List<'a>),
}

/// The items of a list, all of one type.
#[derive(Clone, Copy, Debug)]
pub(super) struct List<'a> {
    kind: u32,
    count: u64,
    bytes: &'a [u8],
}

/// A GGUF file's header.
pub(super) struct Header<'a> {
    /// The values of all keys.
    pub keys: BTreeMap<&'a str, Value<'a>>,
    /// The tensors, by their names.
    pub tensors: BTreeMap<String, Info>,
    /// The offset of the first byte after the header.
    pub end: usize,
}

impl<'a> Header<'a> {
    /// Reads the header of a whole file.
    ///
    /// # Errors
    /// A clause for a sentence about the file.
    pub fn read(file: &'a [u8]) -> Read<Self> {
        let mut input = Input { bytes: &file[..file.len().min(MAX_HEADER)], at: 4, whole: file.len() };
        let version = input.u32()?;
        if !(2..=3).contains(&version) {
            let swapped = version.swap_bytes();
            return Err(match swapped {
                2 | 3 => "it was written on a big-endian machine".to_owned(),
                _ => format!("it has version {version} of GGUF; animd reads 2 and 3"),
            });
        }
        let (tensors, keys) = (input.u64()?, input.u64()?);
        for (what, count) in [("tensors", tensors), ("keys", keys)] {
            if count > MAX_ENTRIES {
                return Err(format!(
                    "its GGUF header claims {count} {what}; a model has up to {MAX_ENTRIES}"
                ));
            }
        }
        let mut header = Self { keys: BTreeMap::new(), tensors: BTreeMap::new(), end: 0 };
        for _ in 0..keys {
            let key = input.name()?;
            let kind = input.u32()?;
            let value = input.value(kind)?;
            header.keys.insert(key, value);
        }
        for _ in 0..tensors {
            let name = input.name()?;
            let axes = input.u32()?;
            if axes > MAX_AXES {
                return Err(format!("its header gives `{name}` {axes} axes; copy it again"));
            }
            let mut shape = Vec::new();
            for _ in 0..axes {
                let extent = input.u64()?;
                shape.push(usize::try_from(extent).map_err(|_| broken("an impossible extent"))?);
            }
            shape.reverse();
            let info = Info { shape, kind: input.u32()?, offset: input.u64()? };
            if header.tensors.insert(name.to_owned(), info).is_some() {
                return Err(format!("its header has `{name}` twice; copy it again"));
            }
        }
        header.end = input.at;
        Ok(header)
    }

    /// Returns the text of a key, if there is the key.
    pub fn text(&self, key: &str) -> Read<Option<&'a str>> {
        match self.keys.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => {
                std::str::from_utf8(text).map(Some).map_err(|_| broken("text that is not UTF-8"))
            }
            Some(_) => Err(format!("its key `{key}` is no text; copy it again")),
        }
    }

    /// Returns the whole, non-negative number of a key, if there is the key.
    pub fn number(&self, key: &str) -> Read<Option<u64>> {
        match self.keys.get(key) {
            None => Ok(None),
            Some(Value::Unsigned(n)) => Ok(Some(*n)),
            Some(Value::Signed(n)) if *n >= 0 => Ok(Some(n.unsigned_abs())),
            Some(_) => Err(format!("its key `{key}` is no whole number; copy it again")),
        }
    }

    /// Returns the extents that a key lists, outermost first, if there is the key.
    pub fn shape(&self, key: &str) -> Read<Option<Vec<usize>>> {
        let Some(list) = self.list(key)? else { return Ok(None) };
        let wrong = || format!("its key `{key}` is no list of extents; copy it again");
        if list.count > u64::from(MAX_AXES) {
            return Err(wrong());
        }
        let extent = |value| match value {
            Value::Unsigned(n) => usize::try_from(n).map_err(|_| wrong()),
            Value::Signed(n) => usize::try_from(n).map_err(|_| wrong()),
            _ => Err(wrong()),
        };
        list.items()?.into_iter().map(extent).collect::<Read<_>>().map(Some)
    }

    /// Returns the list of a key, if there is the key.
    pub fn list(&self, key: &str) -> Read<Option<List<'a>>> {
        match self.keys.get(key) {
            None => Ok(None),
            Some(Value::List(list)) => Ok(Some(*list)),
            Some(_) => Err(format!("its key `{key}` is no list; copy it again")),
        }
    }
}

impl<'a> List<'a> {
    /// Returns the items.
    pub fn items(self) -> Read<Vec<Value<'a>>> {
        let mut input = Input { bytes: self.bytes, at: 0, whole: self.bytes.len() };
        (0..self.count).map(|_| input.value(self.kind)).collect()
    }

    /// Returns the items as bytes, if they are of 8 bits each.
    pub fn bytes(self) -> Option<&'a [u8]> {
        matches!(self.kind, 0 | 1).then_some(self.bytes)
    }
}

fn broken(what: &str) -> String {
    format!("its GGUF header is broken ({what}); copy it again")
}

/// The bytes of a header, read from the first to the last.
struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
    /// The length of the file, which can be longer than the bytes that may be read.
    whole: usize,
}

impl<'a> Input<'a> {
    fn take(&mut self, count: u64) -> Read<&'a [u8]> {
        let end = usize::try_from(count).ok().and_then(|count| self.at.checked_add(count));
        match end.and_then(|end| Some((end, self.bytes.get(self.at..end)?))) {
            Some((end, taken)) => {
                self.at = end;
                Ok(taken)
            }
            None if self.whole > self.bytes.len() => {
                Err(format!("its GGUF header is longer than {MAX_HEADER} bytes; copy it again"))
            }
            None => Err("it ends within its GGUF header; copy it again".to_owned()),
        }
    }

    fn array<const N: usize>(&mut self) -> Read<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64)?);
        Ok(array)
    }

    fn u32(&mut self) -> Read<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Read<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Read<&'a [u8]> {
        let length = self.u64()?;
        self.take(length)
    }

    fn name(&mut self) -> Read<&'a str> {
        let name = self.text()?;
        if name.len() > MAX_NAME {
            return Err(format!("its header has a name longer than {MAX_NAME} bytes; copy it again"));
        }
        std::str::from_utf8(name).map_err(|_| broken("a name that is not UTF-8"))
    }

    /// Reads a value of a type that is not a list of lists: those do not occur, and could nest without end.
    fn value(&mut self, kind: u32) -> Read<Value<'a>> {
        Ok(match kind {
            0 => Value::Unsigned(self.array::<1>()?[0].into()),
            1 => Value::Signed(self.array::<1>()?[0].cast_signed().into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Unsigned(self.u32()?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            7 => {
                self.take(1)?;
                Value::Bool
            }
            8 => Value::Text(self.text()?),
            9 => {
                let (kind, count) = (self.u32()?, self.u64()?);
                let from = self.at;
                match width(kind) {
                    Some(width) => {
                        let bytes =
                            count.checked_mul(width).ok_or_else(|| broken("a list without an end"))?;
                        self.take(bytes)?;
                    }
                    None if kind == 8 => {
                        for _ in 0..count {
                            self.text()?;
                        }
                    }
                    None => return Err(broken("a list of lists")),
                }
                Value::List(List { kind, count, bytes: &self.bytes[from..self.at] })
            }
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            _ => return Err(broken("a value of an unknown type")),
        })
    }
}

/// Returns the bytes of a value of a type, if all values of the type have as many.
fn width(kind: u32) -> Option<u64> {
    Some(match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        10..=12 => 8,
        _ => return None,
    })
}
