//! Reads the directories of a TIFF: its first page's size, whether it is a camera's raw picture, and where it ends.

use super::{RAW, Size, Source, Trouble};

/// The tags that are looked at.
const NEW_SUBFILE_TYPE: u32 = 254;
const SUBFILE_TYPE: u32 = 255;
const WIDTH: u32 = 256;
const HEIGHT: u32 = 257;
const PHOTOMETRIC: u32 = 262;
const MAKE: u32 = 271;
const STRIP_OFFSETS: u32 = 273;
const STRIP_BYTES: u32 = 279;
const TILE_OFFSETS: u32 = 324;
const TILE_BYTES: u32 = 325;
const SUB_IFDS: u32 = 330;
const DNG_VERSION: u32 = 50_706;
/// The photometric interpretations of a sensor's numbers.
const SENSOR: [u32; 2] = [32_803, 34_892];
/// The most directories below the first one that are looked at.
const MOST_BELOW: u32 = 16;

/// A field of a directory.
#[derive(Clone, Copy)]
struct Field {
    tag: u32,
    kind: u32,
    count: u32,
    /// Where its four bytes of value lie.
    at: u64,
}

/// The fields of a TIFF's first directory.
pub struct Tiff {
    little: bool,
    fields: Vec<Field>,
    /// Whether the directory ends before its last field.
    short: bool,
}

impl Tiff {
    /// Reads the first directory, which may lie anywhere.
    pub fn open(source: &mut Source<'_>) -> Result<Self, Trouble> {
        let little = source.get(0)? == *b"II";
        let mut tiff = Self { little, fields: Vec::new(), short: false };
        let first = tiff.long(source, 4)?;
        (tiff.fields, tiff.short) = tiff.directory(source, first.into())?;
        Ok(tiff)
    }

    fn word(&self, source: &mut Source<'_>, at: u64) -> Result<u32, Trouble> {
        let bytes = source.get(at)?;
        Ok(if self.little { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) }.into())
    }

    fn long(&self, source: &mut Source<'_>, at: u64) -> Result<u32, Trouble> {
        let bytes = source.get(at)?;
        Ok(if self.little { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) })
    }

    /// Returns the fields of the directory at `at`, and whether the file ends before the last of them.
    fn directory(&self, source: &mut Source<'_>, at: u64) -> Result<(Vec<Field>, bool), Trouble> {
        let mut fields = Vec::new();
        for entry in 0..u64::from(self.word(source, at)?) {
            let at = at + 2 + 12 * entry;
            let field = (|| {
                let (tag, kind) = (self.word(source, at)?, self.word(source, at + 2)?);
                Ok(Field { tag, kind, count: self.long(source, at + 4)?, at: at + 8 })
            })();
            match field {
                Ok(field) => fields.push(field),
                Err(Trouble::Early) => return Ok((fields, true)),
                Err(e) => return Err(e),
            }
        }
        Ok((fields, false))
    }

    /// Returns value `n` of a field of whole numbers; `None` for another type or beyond its count.
    fn value(&self, source: &mut Source<'_>, field: Field, n: u32) -> Result<Option<u32>, Trouble> {
        let size = match field.kind {
            1 => 1,
            3 => 2,
            4 | 13 => 4,
            _ => return Ok(None),
        };
        if n >= field.count {
            return Ok(None);
        }
        // Up to four bytes lie in the field itself.
        let at = match u64::from(field.count) * size <= 4 {
            true => field.at,
            false => self.long(source, field.at)?.into(),
        } + u64::from(n) * size;
        Ok(Some(match size {
            1 => u8::from_le_bytes(source.get(at)?).into(),
            2 => self.word(source, at)?,
            _ => self.long(source, at)?,
        }))
    }

    fn field(&self, tag: u32) -> Option<Field> {
        self.fields.iter().find(|field| field.tag == tag).copied()
    }

    fn first(&self, source: &mut Source<'_>, tag: u32) -> Result<Option<u32>, Trouble> {
        self.field(tag).map_or(Ok(None), |field| self.value(source, field, 0))
    }

    /// Returns the size of the first page.
    ///
    /// # Errors
    /// [`Trouble::Foreign`] for a camera's raw picture, whose first page is a thumbnail if it has one.
    pub fn size(&self, source: &mut Source<'_>) -> Size {
        // The mark of Canon's CR2.
        if source.get(8).is_ok_and(|mark| mark == *b"CR") || self.field(DNG_VERSION).is_some() {
            return Err(Trouble::Foreign(RAW));
        }
        if self.is_raw(source)? {
            return Err(Trouble::Foreign(RAW));
        }
        let reduced = self.first(source, NEW_SUBFILE_TYPE)?.is_some_and(|kind| kind & 1 == 1)
            || self.first(source, SUBFILE_TYPE)? == Some(2);
        if reduced {
            let raw = self.field(MAKE).is_some() && self.field(SUB_IFDS).is_some();
            return Err(Trouble::Foreign(if raw { RAW } else { "a TIFF whose first page is a thumbnail" }));
        }
        match (self.first(source, WIDTH)?, self.first(source, HEIGHT)?) {
            (Some(width), Some(height)) => Ok((width, height)),
            _ if self.short => Err(Trouble::Early),
            _ => Err(Trouble::Odd),
        }
    }

    /// Returns whether this page or one below it holds a sensor's numbers.
    fn is_raw(&self, source: &mut Source<'_>) -> Result<bool, Trouble> {
        if self.first(source, PHOTOMETRIC)?.is_some_and(|kind| SENSOR.contains(&kind)) {
            return Ok(true);
        }
        let Some(below) = self.field(SUB_IFDS) else { return Ok(false) };
        for n in 0..below.count.min(MOST_BELOW) {
            let read = self.value(source, below, n).and_then(|at| match at {
                Some(at) => self.directory(source, at.into()).map(|(fields, _)| fields),
                None => Ok(Vec::new()),
            });
            let fields = match read {
                Ok(fields) => fields,
                // A directory below the page may be missing; the page itself is enough.
                Err(Trouble::Early) => continue,
                Err(e) => return Err(e),
            };
            if let Some(kind) = fields.into_iter().find(|field| field.tag == PHOTOMETRIC)
                && let Ok(Some(kind)) = self.value(source, kind, 0)
                && SENSOR.contains(&kind)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns whether a file of this length has the last part of the first page's pixels.
    pub fn ends_within(&self, source: &mut Source<'_>, length: u64) -> Result<bool, Trouble> {
        if self.short {
            return Ok(false);
        }
        for (offsets, bytes) in [(STRIP_OFFSETS, STRIP_BYTES), (TILE_OFFSETS, TILE_BYTES)] {
            let (Some(offsets), Some(bytes)) = (self.field(offsets), self.field(bytes)) else { continue };
            for n in [0, offsets.count.saturating_sub(1)] {
                let (at, size) = (self.value(source, offsets, n)?, self.value(source, bytes, n)?);
                if let (Some(at), Some(size)) = (at, size)
                    && u64::from(at) + u64::from(size) > length
                {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}
