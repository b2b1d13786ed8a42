//! sentencepiece's own file, a message of protocol buffers
//! (<https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto>).

use super::vocabulary::{Kind, Piece, Vocabulary};

/// The longest file that is read; umT5's has 4.5 MB.
const MAX_BYTES: usize = 64 << 20;
/// The most pieces; umT5 has 256,000.
const MAX_PIECES: usize = 1 << 20;

type Read<T> = Result<T, String>;

/// A field of a message.
enum Field<'a> {
    Number(u64),
    Bits32([u8; 4]),
    Bits64,
    Bytes(&'a [u8]),
}

/// Returns the vocabulary that a file's bytes describe.
///
/// # Errors
/// A clause for a sentence about the file.
pub(super) fn read(bytes: &[u8]) -> Read<Vocabulary> {
    if bytes.len() > MAX_BYTES {
        return Err(format!("a sentencepiece model of {} bytes; up to {MAX_BYTES} are read", bytes.len()));
    }
    let mut vocabulary = Vocabulary { pieces: Vec::new(), charsmap: Vec::new() };
    for field in Message(bytes) {
        match field? {
            // pieces
            (1, Field::Bytes(message)) => vocabulary.pieces.push(piece(message)?),
            // normalizer_spec
            (3, Field::Bytes(message)) => {
                for field in Message(message) {
                    // precompiled_charsmap
                    if let (2, Field::Bytes(map)) = field? {
                        vocabulary.charsmap = map.to_vec();
                    }
                }
            }
            _ => {}
        }
        if vocabulary.pieces.len() > MAX_PIECES {
            return Err(format!("its sentencepiece model has more than {MAX_PIECES} pieces"));
        }
    }
    if vocabulary.pieces.is_empty() {
        return Err("its sentencepiece model has no pieces; copy it again".to_owned());
    }
    Ok(vocabulary)
}

fn piece(message: &[u8]) -> Read<Piece> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: Kind::Normal };
    for field in Message(message) {
        match field? {
            (1, Field::Bytes(text)) => {
                let text = std::str::from_utf8(text).map_err(|_| broken())?;
                text.clone_into(&mut piece.text);
            }
            (2, Field::Bits32(score)) => piece.score = f32::from_le_bytes(score).into(),
            (3, Field::Number(kind)) => piece.kind = Kind::numbered(kind),
            _ => {}
        }
    }
    Ok(piece)
}

fn broken() -> String {
    "its sentencepiece model is broken; copy it again".to_owned()
}

/// A message: fields with numbers.
struct Message<'a>(&'a [u8]);

impl<'a> Message<'a> {
    fn take(&mut self, count: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(usize::try_from(count).ok()?)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            number |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return Some(number);
            }
        }
        None
    }

    fn field(&mut self) -> Option<(u64, Field<'a>)> {
        let key = self.number()?;
        let field = match key & 7 {
            0 => Field::Number(self.number()?),
            1 => {
                self.take(8)?;
                Field::Bits64
            }
            2 => {
                let length = self.number()?;
                Field::Bytes(self.take(length)?)
            }
            5 => Field::Bits32(self.take(4)?.try_into().ok()?),
            _ => return None,
        };
        Some((key >> 3, field))
    }
}

impl<'a> Iterator for Message<'a> {
    type Item = Read<(u64, Field<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            // What follows a broken field means nothing.
            self.0 = &[];
        }
        Some(field.ok_or_else(broken))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(number: u64, content: &[u8]) -> Vec<u8> {
        let mut field = varint(number << 3 | 2);
        field.extend(varint(content.len() as u64));
        field.extend(content);
        field
    }

    fn varint(mut value: u64) -> Vec<u8> {
        let mut out = Vec::new();
        while value > 127 {
            out.push(value as u8 | 128);
            value >>= 7;
        }
        out.push(value as u8);
        out
    }

    fn model() -> Vec<u8> {
        let piece = |text: &str, score: f32, kind: u64| {
            let mut message = bytes(1, text.as_bytes());
            message.extend([&varint(2 << 3 | 5)[..], &score.to_le_bytes()].concat());
            // The kind of a normal piece is not written.
            if kind != 1 {
                message.extend([varint(3 << 3), varint(kind)].concat());
            }
            bytes(1, &message)
        };
        let normalizer = [bytes(1, b"nmt_nfkc"), bytes(2, &[7; 300]), varint(3 << 3), varint(1)].concat();
        let trainer = [varint(4 << 3), varint(256_000), varint(9 << 3 | 1), vec![0; 8]].concat();
        [
            piece("<unk>", 0.0, 2),
            piece("\u{2581}a", -2.5, 1),
            piece("<x>", 0.0, 4),
            bytes(2, &trainer),
            bytes(3, &normalizer),
        ]
        .concat()
    }

    #[test]
    fn pieces_and_the_table_of_characters_are_read() {
        let piece = |text: &str, score, kind| Piece { text: text.to_owned(), score, kind };
        let expected = Vocabulary {
            pieces: vec![
                piece("<unk>", 0.0, Kind::Unknown),
                piece("\u{2581}a", -2.5, Kind::Normal),
                piece("<x>", 0.0, Kind::UserDefined),
            ],
            charsmap: vec![7; 300],
        };
        assert_eq!(read(&model()).unwrap(), expected);
    }

    #[test]
    fn no_damage_makes_it_panic() {
        let whole = model();
        for length in 0..whole.len() {
            let _ = read(&whole[..length]);
        }
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut file = whole.clone();
                file[at] ^= 1 << bit;
                let _ = read(&file);
            }
        }
        for broken in
            [&b""[..], b"\xff", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x0a\x05a", b"\x0b"]
        {
            assert!(read(broken).is_err(), "{broken:?}");
        }
    }
}
