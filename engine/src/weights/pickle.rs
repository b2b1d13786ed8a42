//! A reader for the pickles that `torch.save` writes, which runs nothing: it knows dictionaries, numbers, strings and
//! the few callables that rebuild tensors, and refuses every other one by its name.
//!
//! Values live in one arena and refer to each other by index, so that neither nesting nor cycles nor a long memo can
//! make reading or dropping them recurse. Every operation adds at most one value, so memory stays proportional to the
//! pickle's own length.

use std::collections::HashMap;

/// The longest pickle that is read. A real one, with a thousand tensors, has about 100 kB.
pub(crate) const MAX_BYTES: u64 = 4 << 20;
/// The longest name of a tensor or a storage, and the most tensors: a few bytes of pickle can repeat a long name, so
/// that without a limit a small file would ask for much memory.
const MAX_NAME: usize = 512;
const MAX_TENSORS: usize = 65_536;

/// A tensor as a pickle describes it: a view of a storage that lies elsewhere in the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PickledTensor {
    /// The class of the storage, without its module: `BFloat16Storage`.
    pub storage_class: &'static str,
    /// The storage's key: its record is `data/KEY`.
    pub key: String,
    /// Elements of the storage.
    pub storage_elements: usize,
    /// The first element.
    pub offset: usize,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// Steps along each axis, in elements.
    pub strides: Vec<usize>,
}

type Id = usize;

#[derive(Clone, Debug)]
enum Value {
    None,
    Bool,
    Int(i64),
    /// Floats, bytes, sets: part of what may be in a file, never of what is asked for.
    Opaque,
    Text(String),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Storage {
        class: &'static str,
        key: String,
        elements: usize,
    },
    Tensor(PickledTensor),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    StorageClass(&'static str),
}

impl Global {
    fn find(module: &str, name: &str) -> Option<Self> {
        match (module, name) {
            ("collections", "OrderedDict") => Some(Self::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => Some(Self::RebuildTensor),
            ("torch._utils", "_rebuild_parameter") => Some(Self::RebuildParameter),
            ("torch", _) => STORAGES.into_iter().find(|class| *class == name).map(Self::StorageClass),
            _ => None,
        }
    }
}

const STORAGES: [&str; 10] = [
    "FloatStorage",
    "HalfStorage",
    "BFloat16Storage",
    "DoubleStorage",
    "LongStorage",
    "IntStorage",
    "ShortStorage",
    "CharStorage",
    "ByteStorage",
    "BoolStorage",
];

type Read<T> = Result<T, String>;

fn broken<T>(what: &str) -> Read<T> {
    Err(format!("its pickle is broken ({what}); copy it again"))
}

/// The tensors of the dictionary that a pickle holds, in its order; other values are left out. A dictionary that only
/// wraps another one as `state_dict` is unwrapped.
///
/// # Errors
/// A clause for a sentence about the file: the pickle is broken, or wants something that is not a tensor.
pub(crate) fn read(bytes: &[u8]) -> Read<Vec<(String, PickledTensor)>> {
    let mut machine = Machine {
        bytes,
        at: 0,
        values: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    let mut top = machine.run()?;
    for _ in 0..2 {
        let Value::Dict(items) = &machine.values[top] else {
            return Err("its pickle holds no dictionary of tensors".to_owned());
        };
        let mut tensors = Vec::new();
        let mut inner = None;
        for (key, value) in items {
            if tensors.len() > MAX_TENSORS {
                return Err(format!("its pickle has more than {MAX_TENSORS} tensors"));
            }
            match (&machine.values[*key], &machine.values[*value]) {
                (Value::Text(name), Value::Tensor(_)) if name.len() > MAX_NAME => {
                    return Err(format!(
                        "its pickle has a tensor whose name is longer than {MAX_NAME} bytes"
                    ));
                }
                (Value::Text(name), Value::Tensor(tensor)) => tensors.push((name.clone(), tensor.clone())),
                (Value::Text(name), Value::Dict(_)) if name == "state_dict" => inner = Some(*value),
                _ => {}
            }
        }
        match inner {
            Some(id) if tensors.is_empty() => top = id,
            _ => return Ok(tensors),
        }
    }
    Ok(Vec::new())
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
}

impl Machine<'_> {
    /// Executes up to STOP and gives the value that is left.
    fn run(&mut self) -> Read<Id> {
        loop {
            match self.byte()? {
                b'.' => return self.pop(),
                // PROTO, FRAME
                0x80 => {
                    let version = self.byte()?;
                    if version > 5 {
                        return Err(format!("its pickle has protocol {version}; 2 to 5 can be read"));
                    }
                }
                0x95 => _ = self.take(8)?,
                // MARK, POP, POP_MARK, DUP
                b'(' => self.marks.push(self.stack.len()),
                b'0' => {
                    if self.marks.last() == Some(&self.stack.len()) {
                        self.marks.pop();
                    } else {
                        self.pop()?;
                    }
                }
                b'1' => _ = self.pop_mark()?,
                b'2' => {
                    let id = self.top()?;
                    self.stack.push(id);
                }
                opcode => self.value(opcode)?,
            }
        }
    }

    /// Opcodes that make a value or change one.
    fn value(&mut self, opcode: u8) -> Read<()> {
        match opcode {
            b'N' => self.push(Value::None),
            0x88 | 0x89 => self.push(Value::Bool),
            // BININT, BININT1, BININT2, LONG1, LONG4, INT, LONG
            b'J' => {
                let v = i32::from_le_bytes(self.array()?);
                self.push(Value::Int(v.into()));
            }
            b'K' => {
                let v = self.byte()?;
                self.push(Value::Int(v.into()));
            }
            b'M' => {
                let v = u16::from_le_bytes(self.array()?);
                self.push(Value::Int(v.into()));
            }
            0x8a => {
                let n = self.byte()?;
                self.long(n.into())?;
            }
            0x8b => {
                let n = u32::from_le_bytes(self.array()?);
                self.long(n.into())?;
            }
            b'I' | b'L' => {
                let line = self.line()?;
                let value = match line {
                    "00" | "01" if opcode == b'I' => Value::Bool,
                    _ => match line.trim_end_matches('L').parse() {
                        Ok(v) => Value::Int(v),
                        Err(_) => return broken("a number that is none"),
                    },
                };
                self.push(value);
            }
            // FLOAT, BINFLOAT
            b'F' => {
                self.line()?;
                self.push(Value::Opaque);
            }
            b'G' => {
                self.take(8)?;
                self.push(Value::Opaque);
            }
            // SHORT_BINUNICODE, BINUNICODE, BINUNICODE8, UNICODE; SHORT_BINSTRING, BINSTRING
            0x8c | b'U' => {
                let n = self.byte()?;
                self.text(n.into())?;
            }
            b'X' | b'T' => {
                let n = u32::from_le_bytes(self.array()?);
                self.text(n.into())?;
            }
            0x8d => {
                let n = u64::from_le_bytes(self.array()?);
                self.text(n)?;
            }
            b'V' | b'S' => {
                let line = self.line()?.trim_matches(['\'', '"']).to_owned();
                self.push(Value::Text(line));
            }
            // SHORT_BINBYTES, BINBYTES, BINBYTES8, BYTEARRAY8
            b'C' => {
                let n = self.byte()?;
                self.opaque(n.into())?;
            }
            b'B' => {
                let n = u32::from_le_bytes(self.array()?);
                self.opaque(n.into())?;
            }
            0x8e | 0x96 => {
                let n = u64::from_le_bytes(self.array()?);
                self.opaque(n)?;
            }
            _ => self.container(opcode)?,
        }
        Ok(())
    }

    /// Tuples, lists, dictionaries, sets.
    fn container(&mut self, opcode: u8) -> Read<()> {
        match opcode {
            b')' => self.push(Value::Tuple(Vec::new())),
            b']' => self.push(Value::List(Vec::new())),
            b'}' => self.push(Value::Dict(Vec::new())),
            0x8f => self.push(Value::Opaque),
            b't' => {
                let items = self.pop_mark()?;
                self.push(Value::Tuple(items));
            }
            0x85..=0x87 => {
                let n = usize::from(opcode - 0x84);
                let Some(from) = self.stack.len().checked_sub(n).filter(|from| *from >= self.floor()) else {
                    return broken("too few values for a tuple");
                };
                let items = self.stack.split_off(from);
                self.push(Value::Tuple(items));
            }
            b'l' => {
                let items = self.pop_mark()?;
                self.push(Value::List(items));
            }
            b'd' => {
                let items = pairs(&self.pop_mark()?)?;
                self.push(Value::Dict(items));
            }
            0x91 => {
                self.pop_mark()?;
                self.push(Value::Opaque);
            }
            // APPEND, APPENDS, ADDITEMS, SETITEM, SETITEMS
            b'a' => {
                let item = self.pop()?;
                self.extend_list(&[item])?;
            }
            b'e' => {
                let items = self.pop_mark()?;
                self.extend_list(&items)?;
            }
            0x90 => _ = self.pop_mark()?,
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.extend_dict(&[key, value])?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.extend_dict(&items)?;
            }
            _ => self.object(opcode)?,
        }
        Ok(())
    }

    /// The memo, globals, and what they are called for.
    fn object(&mut self, opcode: u8) -> Read<()> {
        match opcode {
            // PUT, BINPUT, LONG_BINPUT, MEMOIZE
            b'p' | b'q' | b'r' => {
                let index = self.memo_index(opcode - b'p')?;
                let id = self.top()?;
                self.memo.insert(index, id);
            }
            0x94 => {
                let id = self.top()?;
                self.memo.insert(self.memo.len() as u64, id);
            }
            // GET, BINGET, LONG_BINGET
            b'g' | b'h' | b'j' => {
                let index = self.memo_index(match opcode {
                    b'g' => 0,
                    b'h' => 1,
                    _ => 2,
                })?;
                match self.memo.get(&index) {
                    Some(id) => self.stack.push(*id),
                    None => return broken("a reference to nothing"),
                }
            }
            // GLOBAL, STACK_GLOBAL
            b'c' => {
                let module = self.line()?.to_owned();
                let name = self.line()?.to_owned();
                self.global(&module, &name)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Value::Text(module), Value::Text(name)) = (&self.values[module], &self.values[name])
                else {
                    return broken("a global without a name");
                };
                let (module, name) = (module.clone(), name.clone());
                self.global(&module, &name)?;
            }
            // REDUCE, NEWOBJ
            b'R' | 0x81 => {
                let (arguments, callable) = (self.pop()?, self.pop()?);
                let value = self.call(callable, arguments)?;
                self.push(value);
            }
            // BUILD: the attributes of a dictionary (`_metadata`) say nothing that the engine needs.
            b'b' => {
                self.pop()?;
                let id = self.top()?;
                if !matches!(self.values[id], Value::Dict(_)) {
                    return Err("its pickle sets attributes of something that is not a dictionary".to_owned());
                }
            }
            // BINPERSID
            b'Q' => {
                let id = self.pop()?;
                let value = self.storage(id)?;
                self.push(value);
            }
            _ => {
                return Err(format!("its pickle has the operation {opcode:#04x}, which tensors do not need"));
            }
        }
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str) -> Read<()> {
        let Some(global) = Global::find(module, name) else {
            let full: String = format!("{module}.{name}").chars().take(100).collect();
            let full = full.escape_debug();
            return Err(if module.split('.').next() == Some("torch") {
                format!(
                    "it needs torch's `{full}`, which animd does not read; it reads plain F32, F16 and BF16 tensors"
                )
            } else {
                format!(
                    "it wants to call `{full}`, which no tensor needs; a model file that runs code is not loaded"
                )
            });
        };
        self.push(Value::Global(global));
        Ok(())
    }

    fn call(&self, callable: Id, arguments: Id) -> Read<Value> {
        let Value::Tuple(arguments) = &self.values[arguments] else {
            return broken("a call without arguments");
        };
        let Value::Global(global) = &self.values[callable] else {
            return broken("a call of something that is no function");
        };
        match global {
            Global::OrderedDict if arguments.is_empty() => Ok(Value::Dict(Vec::new())),
            Global::OrderedDict => broken("a dictionary made from something"),
            Global::RebuildTensor => self.tensor(arguments).map(Value::Tensor),
            Global::RebuildParameter => match arguments.first().map(|id| &self.values[*id]) {
                Some(Value::Tensor(tensor)) => Ok(Value::Tensor(tensor.clone())),
                _ => broken("a parameter without a tensor"),
            },
            Global::StorageClass(name) => Err(format!("it makes a `torch.{name}` of its own")),
        }
    }

    /// `_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks[, metadata])`.
    fn tensor(&self, arguments: &[Id]) -> Read<PickledTensor> {
        let (4.., Some(storage)) = (arguments.len(), arguments.first()) else {
            return broken("a tensor with too few arguments");
        };
        let Value::Storage { class, key, elements } = &self.values[*storage] else {
            return broken("a tensor without a storage");
        };
        let (shape, strides) = (self.extents(arguments[2])?, self.extents(arguments[3])?);
        if shape.len() != strides.len() {
            return broken("a tensor with other strides than extents");
        }
        Ok(PickledTensor {
            storage_class: class,
            key: key.clone(),
            storage_elements: *elements,
            offset: self.size(arguments[1])?,
            shape,
            strides,
        })
    }

    /// `('storage', class, key, location, elements)`.
    fn storage(&self, id: Id) -> Read<Value> {
        let Value::Tuple(items) = &self.values[id] else {
            return broken("a storage without a description");
        };
        let [tag, class, key, _, elements] = items[..] else {
            return broken("a storage without a description");
        };
        match (&self.values[tag], &self.values[class], &self.values[key]) {
            (Value::Text(tag), Value::Global(Global::StorageClass(class)), Value::Text(key))
                if tag == "storage" && key.len() <= MAX_NAME =>
            {
                Ok(Value::Storage { class, key: key.clone(), elements: self.size(elements)? })
            }
            _ => broken("a storage without a class or a key"),
        }
    }

    fn size(&self, id: Id) -> Read<usize> {
        match &self.values[id] {
            Value::Int(v) => usize::try_from(*v).or_else(|_| broken("a negative size")),
            _ => broken("a size that is no number"),
        }
    }

    /// A tuple of at most eight sizes.
    fn extents(&self, id: Id) -> Read<Vec<usize>> {
        match &self.values[id] {
            Value::Tuple(items) if items.len() <= 8 => items.iter().map(|id| self.size(*id)).collect(),
            _ => broken("a shape that is none"),
        }
    }

    fn extend_list(&mut self, items: &[Id]) -> Read<()> {
        let id = self.top()?;
        match &mut self.values[id] {
            Value::List(list) => list.extend_from_slice(items),
            _ => return broken("items for something that is no list"),
        }
        Ok(())
    }

    fn extend_dict(&mut self, items: &[Id]) -> Read<()> {
        let items = pairs(items)?;
        let id = self.top()?;
        match &mut self.values[id] {
            Value::Dict(dict) => dict.extend_from_slice(&items),
            _ => return broken("items for something that is no dictionary"),
        }
        Ok(())
    }

    fn push(&mut self, value: Value) {
        self.values.push(value);
        self.stack.push(self.values.len() - 1);
    }

    /// The depth below which values belong to an open MARK.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Read<Id> {
        match self.stack.last() {
            Some(id) if self.stack.len() > self.floor() => Ok(*id),
            _ => broken("an operation without a value"),
        }
    }

    fn pop(&mut self) -> Read<Id> {
        let id = self.top()?;
        self.stack.pop();
        Ok(id)
    }

    fn pop_mark(&mut self) -> Read<Vec<Id>> {
        match self.marks.pop() {
            Some(mark) => Ok(self.stack.split_off(mark)),
            None => broken("an end without a beginning"),
        }
    }

    fn memo_index(&mut self, kind: u8) -> Read<u64> {
        match kind {
            0 => self.line()?.parse().or_else(|_| broken("a reference that is no number")),
            1 => self.byte().map(u64::from),
            _ => Ok(u32::from_le_bytes(self.array()?).into()),
        }
    }

    /// A little-endian two's complement integer of `n` bytes; one beyond 64 bits is opaque.
    fn long(&mut self, n: u64) -> Read<()> {
        let bytes = self.take(n)?;
        let value = if bytes.len() > 8 {
            Value::Opaque
        } else {
            let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
            let mut full = [if negative { 0xff } else { 0 }; 8];
            full[..bytes.len()].copy_from_slice(bytes);
            Value::Int(i64::from_le_bytes(full))
        };
        self.push(value);
        Ok(())
    }

    fn text(&mut self, n: u64) -> Read<()> {
        match std::str::from_utf8(self.take(n)?) {
            Ok(text) => {
                let text = text.to_owned();
                self.push(Value::Text(text));
                Ok(())
            }
            Err(_) => broken("text that is not UTF-8"),
        }
    }

    fn opaque(&mut self, n: u64) -> Read<()> {
        self.take(n)?;
        self.push(Value::Opaque);
        Ok(())
    }

    fn take(&mut self, n: u64) -> Read<&[u8]> {
        let end = usize::try_from(n).ok().and_then(|n| self.at.checked_add(n));
        match end.and_then(|end| Some((end, self.bytes.get(self.at..end)?))) {
            Some((end, slice)) => {
                self.at = end;
                Ok(slice)
            }
            None => broken("it ends too early"),
        }
    }

    fn byte(&mut self) -> Read<u8> {
        self.array::<1>().map(|[b]| b)
    }

    fn array<const N: usize>(&mut self) -> Read<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64)?);
        Ok(array)
    }

    fn line(&mut self) -> Read<&str> {
        let rest = &self.bytes[self.at..];
        let Some(n) = rest.iter().position(|b| *b == b'\n') else {
            return broken("it ends too early");
        };
        self.at += n + 1;
        std::str::from_utf8(&rest[..n]).or_else(|_| broken("text that is not UTF-8"))
    }
}

fn pairs(items: &[Id]) -> Read<Vec<(Id, Id)>> {
    match items.as_chunks::<2>() {
        (pairs, []) => Ok(pairs.iter().map(|[k, v]| (*k, *v)).collect()),
        _ => broken("a key without a value"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `_rebuild_tensor_v2` of storage `key`, `FloatStorage` with `elements`, as protocol 2 writes it.
    fn tensor(elements: u8, shape: &[u8], strides: &[u8]) -> Vec<u8> {
        let mut p = b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x007X\x03\0\0\0cpuK".to_vec();
        p.extend([elements, b't', b'Q', b'K', 0, b'(']);
        p.extend(shape.iter().flat_map(|e| [b'K', *e]));
        p.extend(b"t(");
        p.extend(strides.iter().flat_map(|e| [b'K', *e]));
        p.extend(b"t\x89ccollections\nOrderedDict\n)RtR");
        p
    }

    fn pickle(body: &[u8]) -> Vec<u8> {
        [b"\x80\x02", body, b"."].concat()
    }

    fn refusal(body: &[u8]) -> String {
        read(&pickle(body)).unwrap_err()
    }

    #[test]
    fn a_dictionary_of_tensors_is_read() {
        let body = [&b"}(X\x01\0\0\0a"[..], &tensor(6, &[2, 3], &[1, 2]), b"X\x05\0\0\0epochK\x03u"].concat();
        let tensors = read(&pickle(&body)).unwrap();
        let expected = PickledTensor {
            storage_class: "FloatStorage",
            key: "7".to_owned(),
            storage_elements: 6,
            offset: 0,
            shape: vec![2, 3],
            strides: vec![1, 2],
        };
        assert_eq!(tensors, [("a".to_owned(), expected)]);
        // A wrapper, and one item at a time.
        let wrapped = [&b"}X\x0a\0\0\0state_dict"[..], &body, b"s"].concat();
        assert_eq!(read(&pickle(&wrapped)).unwrap(), tensors);
    }

    #[test]
    fn nothing_is_called() {
        for body in [
            &b"cos\nsystem\n(X\x02\0\0\0lstR"[..],
            b"\x8c\x05posix\x8c\x06system\x93\x8c\x02ls\x85R",
            b"cbuiltins\neval\n(X\x01\0\0\x001tR",
            b"csubprocess\nPopen\n)\x81",
        ] {
            let text = refusal(body);
            assert!(text.contains("runs code"), "{text}");
        }
        assert!(refusal(b"ctorch\nload\n)R").contains("torch's `torch.load`"));
        assert!(refusal(b"cos\nsystem\n(X\x02\0\0\0lstR").contains("`os.system`"));
        assert!(refusal(b"(cos\nsystem\no").contains("runs code"));
        assert!(refusal(b"(ios\nsystem\n").contains("0x69"));
    }

    #[test]
    fn broken_pickles_are_refused() {
        let whole = pickle(&[&b"}(X\x01\0\0\0a"[..], &tensor(6, &[2, 3], &[3, 1]), b"u"].concat());
        for length in 0..whole.len() {
            assert!(read(&whole[..length]).is_err(), "{length}");
        }
        for body in [
            &b""[..],
            b"N",
            b"0",
            b"t",
            b"(0",
            b"s",
            b"}K\x01s",
            b"}(K\x01u",
            b"h\0",
            b"K\x01\x85\x86",
            b"(K\x01\x85",
            b"}K\x01b0",
            b"K\x01}b",
            b"X\xff\xff\xff\xffa",
            b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff",
            b"\x8b\xff\xff\xff\xff",
            b"K\x01Q",
            b"ctorch._utils\n_rebuild_tensor_v2\n)R",
            b"ccollections\nOrderedDict\n]\x85R",
            b"\xff",
        ] {
            assert!(read(&pickle(body)).is_err(), "{body:?}");
        }
        assert!(read(b"\x80\x09}.").unwrap_err().contains("protocol 9"));
    }

    #[test]
    fn deep_and_cyclic_values_do_no_harm() {
        let deep = [&b"}K\x01)"[..], &vec![0x85; 1 << 20], b"s"].concat();
        assert_eq!(read(&pickle(&deep)).unwrap(), []);
        assert_eq!(read(&pickle(b"}q\0X\x01\0\0\0ah\0s")).unwrap(), []);
        assert_eq!(read(&pickle(b"}q\0X\x0a\0\0\0state_dicth\0s")).unwrap(), []);
    }

    #[test]
    fn a_small_pickle_cannot_ask_for_much() {
        let name = [&b"X\0\0\x01\0"[..], &vec![b'a'; 1 << 16]].concat();
        let body = [&b"}("[..], &name, &tensor(6, &[6], &[1]), b"u"].concat();
        assert!(refusal(&body).contains("longer than"));
        let one = [&b"}("[..], b"X\x01\0\0\0aq\0", &tensor(6, &[6], &[1]), b"q\x01"].concat();
        let many = [&one[..], &b"h\0h\x01".repeat(70_000), b"u"].concat();
        assert!(refusal(&many).contains("more than"));
    }

    #[test]
    fn numbers_of_all_widths() {
        let body = [&b"}X\x01\0\0\0a"[..], &tensor(6, &[2, 3], &[3, 1]), b"s"].concat();
        let expected = read(&pickle(&body)).unwrap();
        let three = [
            &b"K\x03"[..],
            b"M\x03\0",
            b"J\x03\0\0\0",
            b"\x8a\x01\x03",
            b"\x8b\x01\0\0\0\x03",
            b"I3\n",
            b"L3L\n",
        ];
        for number in three {
            let at = body.windows(3).position(|w| w == b"\x02K\x03").unwrap() + 1;
            let body = [&body[..at], number, &body[at + 2..]].concat();
            assert_eq!(read(&pickle(&body)).unwrap(), expected, "{number:?}");
        }
        let negative = [&b"}X\x01\0\0\0a"[..], &tensor(6, &[2, 3], &[3, 1]), b"s"].concat();
        let at = negative.windows(3).position(|w| w == b"\x02K\x03").unwrap() + 1;
        let negative = [&negative[..at], b"\x8a\x01\xff", &negative[at + 2..]].concat();
        assert!(refusal(&negative).contains("negative"));
    }
}
