//! The stack machine that executes a pickle.

use std::collections::HashMap;

use super::input::Input;
use super::rebuild;
use super::value::{Id, Read, Value, broken};

/// The state of a pickle that is being executed.
pub(super) struct Machine<'a> {
    input: Input<'a>,
    /// All values that were made; other values refer to them by index.
    values: Vec<Value>,
    stack: Vec<Id>,
    /// Depths of the stack at which a MARK is open.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
}

impl<'a> Machine<'a> {
    /// Returns a machine at the beginning of a pickle.
    pub fn new(pickle: &'a [u8]) -> Self {
        Self {
            input: Input::new(pickle),
            values: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        }
    }

    /// Executes the pickle up to STOP and returns the value that is left, with the arena that it is in.
    pub fn run(mut self) -> Read<(Vec<Value>, Id)> {
        let last = self.execute()?;
        Ok((self.values, last))
    }

    fn execute(&mut self) -> Read<Id> {
        loop {
            match self.input.byte()? {
                b'.' => return self.pop(),
                // PROTO, FRAME
                0x80 => {
                    let version = self.input.byte()?;
                    if version > 5 {
                        return Err(format!("its pickle has protocol {version}; 2 to 5 can be read"));
                    }
                }
                0x95 => _ = self.input.take(8)?,
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

    /// Executes the opcodes that make or change a value.
    fn value(&mut self, opcode: u8) -> Read<()> {
        match opcode {
            b'N' => self.push(Value::None),
            0x88 | 0x89 => self.push(Value::Bool),
            // BININT, BININT1, BININT2, LONG1, LONG4, INT, LONG
            b'J' => {
                let v = i32::from_le_bytes(self.input.array()?);
                self.push(Value::Int(v.into()));
            }
            b'K' => {
                let v = self.input.byte()?;
                self.push(Value::Int(v.into()));
            }
            b'M' => {
                let v = u16::from_le_bytes(self.input.array()?);
                self.push(Value::Int(v.into()));
            }
            0x8a => {
                let n = self.input.byte()?;
                self.long(n.into())?;
            }
            0x8b => {
                let n = u32::from_le_bytes(self.input.array()?);
                self.long(n.into())?;
            }
            b'I' | b'L' => {
                let line = self.input.line()?;
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
                self.input.line()?;
                self.push(Value::Opaque);
            }
            b'G' => {
                self.input.take(8)?;
                self.push(Value::Opaque);
            }
            // SHORT_BINUNICODE, BINUNICODE, BINUNICODE8, UNICODE; SHORT_BINSTRING, BINSTRING
            0x8c | b'U' => {
                let n = self.input.byte()?;
                self.text(n.into())?;
            }
            b'X' | b'T' => {
                let n = u32::from_le_bytes(self.input.array()?);
                self.text(n.into())?;
            }
            0x8d => {
                let n = u64::from_le_bytes(self.input.array()?);
                self.text(n)?;
            }
            b'V' | b'S' => {
                let line = self.input.line()?.trim_matches(['\'', '"']).to_owned();
                self.push(Value::Text(line));
            }
            // SHORT_BINBYTES, BINBYTES, BINBYTES8, BYTEARRAY8
            b'C' => {
                let n = self.input.byte()?;
                self.opaque(n.into())?;
            }
            b'B' => {
                let n = u32::from_le_bytes(self.input.array()?);
                self.opaque(n.into())?;
            }
            0x8e | 0x96 => {
                let n = u64::from_le_bytes(self.input.array()?);
                self.opaque(n)?;
            }
            _ => self.container(opcode)?,
        }
        Ok(())
    }

    /// Executes the opcodes for tuples, lists, dictionaries and sets.
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

    /// Executes the opcodes for the memo, for globals and for calls.
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
                let module = self.input.line()?;
                let name = self.input.line()?;
                self.push(rebuild::global(module, name)?);
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Value::Text(module), Value::Text(name)) = (&self.values[module], &self.values[name])
                else {
                    return broken("a global without a name");
                };
                let global = rebuild::global(module, name)?;
                self.push(global);
            }
            // REDUCE, NEWOBJ
            b'R' | 0x81 => {
                let (arguments, callable) = (self.pop()?, self.pop()?);
                let value = rebuild::call(&self.values, callable, arguments)?;
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
                let value = rebuild::storage(&self.values, id)?;
                self.push(value);
            }
            _ => {
                return Err(format!("its pickle has the operation {opcode:#04x}, which tensors do not need"));
            }
        }
        Ok(())
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

    /// Returns the depth of the stack at which the innermost open MARK lies.
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
            0 => self.input.line()?.parse().or_else(|_| broken("a reference that is no number")),
            1 => self.input.byte().map(u64::from),
            _ => Ok(u32::from_le_bytes(self.input.array()?).into()),
        }
    }

    /// Pushes a little-endian two's complement integer of `n` bytes; an integer beyond 64 bits is opaque.
    fn long(&mut self, n: u64) -> Read<()> {
        let bytes = self.input.take(n)?;
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
        match std::str::from_utf8(self.input.take(n)?) {
            Ok(text) => {
                let text = text.to_owned();
                self.push(Value::Text(text));
                Ok(())
            }
            Err(_) => broken("text that is not UTF-8"),
        }
    }

    fn opaque(&mut self, n: u64) -> Read<()> {
        self.input.take(n)?;
        self.push(Value::Opaque);
        Ok(())
    }
}

fn pairs(items: &[Id]) -> Read<Vec<(Id, Id)>> {
    match items.as_chunks::<2>() {
        (pairs, []) => Ok(pairs.iter().map(|[k, v]| (*k, *v)).collect()),
        _ => broken("a key without a value"),
    }
}
