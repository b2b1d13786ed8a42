//! Tables for people. A table is never wider than its terminal.

use super::print;
use super::term::{self, Color, columns, shorten};

/// The fewest columns that a flexible column of a table keeps.
const LEAST: usize = 8;
/// How far the last column is cut before any other one is.
const LAST: usize = 12;

/// The alignment of a column.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Left,
    Right,
}

/// One column of a table.
#[derive(Clone, Copy)]
pub struct Column {
    name: &'static str,
    side: Side,
    /// Whether its cells are cut where the table would be too wide.
    flexible: bool,
}

impl Column {
    /// Returns a column of words.
    pub fn left(name: &'static str) -> Self {
        Self { name, side: Side::Left, flexible: false }
    }

    /// Returns a column of numbers.
    pub fn right(name: &'static str) -> Self {
        Self { name, side: Side::Right, flexible: false }
    }

    /// Returns a column of text that may be cut.
    pub fn flexible(name: &'static str) -> Self {
        Self { name, side: Side::Left, flexible: true }
    }
}

/// A table with aligned columns.
pub struct Table<const N: usize> {
    pub head: [Column; N],
    pub rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    /// Returns the lines, the head first, each at most `most` columns wide. `paint` is given every cell that is a state,
    /// the column `STATE`, once its width is settled.
    pub fn lines(&self, most: usize, paint: &dyn Fn(&str) -> String) -> Vec<String> {
        let widths = self.widths(most);
        let line = |cells: [&str; N], is_head: bool| {
            let mut text = String::new();
            for (n, cell) in cells.into_iter().enumerate() {
                let cell = shorten(cell, widths[n]);
                let gap = " ".repeat(widths[n] - columns(&cell));
                let painted = if !is_head && self.head[n].name == "STATE" { paint(&cell) } else { cell };
                match self.head[n].side {
                    Side::Left => text.extend([painted, gap]),
                    Side::Right => text.extend([gap, painted]),
                }
                text.push_str("  ");
            }
            text.trim_end().to_owned()
        };
        let mut lines = vec![line(self.head.map(|column| column.name), true)];
        lines.extend(self.rows.iter().map(|row| line(row.each_ref().map(String::as_str), false)));
        lines
    }

    fn widths(&self, most: usize) -> [usize; N] {
        let mut widths = [0; N];
        for (n, width) in widths.iter_mut().enumerate() {
            let cells = self.rows.iter().map(|row| columns(&row[n]));
            *width = cells.chain([self.head[n].name.len()]).max().unwrap_or(0);
        }
        // The last column, a name, gives way first, and then the widest one that can be cut.
        while widths.iter().sum::<usize>() + 2 * N.saturating_sub(1) > most {
            let flexible = (0..N).filter(|n| self.head[*n].flexible && widths[*n] > LEAST);
            let gives_way = |n: &usize| (*n + 1 == N && widths[*n] > LAST, widths[*n]);
            let Some(widest) = flexible.max_by_key(gives_way) else { break };
            widths[widest] -= 1;
        }
        widths
    }

    /// Prints the table as wide as the terminal, or 80 columns wide; `color` says which colour a state has.
    pub fn print(&self, color: &dyn Fn(&str) -> Option<Color>) {
        self.lines(term::width(), &|state| term::paint(state, color(state))).iter().for_each(print);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let head = [Column::right("ID"), Column::left("NAME")];
        let rows = vec![["7".to_owned(), "a".to_owned()], ["12".to_owned(), "größer".to_owned()]];
        let lines = Table { head, rows }.lines(80, &str::to_owned);
        assert_eq!(lines, ["ID  NAME", " 7  a", "12  größer"]);
    }

    #[test]
    fn a_table_fits_its_terminal() {
        let head =
            [Column::right("ID"), Column::left("STATE"), Column::flexible("NOW"), Column::flexible("NAME")];
        let long = "a very long reason why this picture could not become a video".to_owned();
        let name = "图片".repeat(30);
        let rows = vec![["1234567".to_owned(), "cancelling".to_owned(), long, name]];
        let table = Table { head, rows };
        for most in [60, 80, 120] {
            let lines = table.lines(most, &|state| format!("\x1b[1m{state}\x1b[0m"));
            let plain = lines[1].replace("\x1b[1m", "").replace("\x1b[0m", "");
            assert!(columns(&plain) <= most && plain.contains("..."), "{most}: {plain}");
        }
    }
}
