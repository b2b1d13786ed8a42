//! Text of the ledger, whatever program or version of animd has written it.

use animd_common::text::Text;
use rusqlite::types::{FromSql, FromSqlResult, ValueRef};
use rusqlite::{Row, RowIndex};

/// Returns the text in a column.
pub fn text(row: &Row<'_>, column: impl RowIndex) -> rusqlite::Result<Text> {
    row.get::<_, Stored>(column).map(|stored| stored.0)
}

/// Returns the text in a column that may have none.
pub fn text_if_any(row: &Row<'_>, column: impl RowIndex) -> rusqlite::Result<Option<Text>> {
    row.get::<_, Option<Stored>>(column).map(|stored| stored.map(|stored| stored.0))
}

#[derive(Debug, PartialEq)]
struct Stored(Text);

impl FromSql for Stored {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        Ok(Self(String::from_utf8_lossy(value.as_bytes()?).into_owned().into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_no_text_are_replaced() {
        let stored = Stored::column_result(ValueRef::Text(b"a\xff\0b"));
        assert_eq!(stored, Ok(Stored("a\u{fffd}\u{fffd}b".into())));
    }
}
