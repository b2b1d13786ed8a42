//! Tables for people. A table is never wider than its terminal: where its columns have no room, each row takes several lines.

use super::print;
use super::term::{self, Color, columns, shorten};

/// The fewest columns that a flexible column of a table keeps.
const LEAST: usize = 8;
/// How far the last column is cut before any other one is.
const LAST: usize = 12;

/// The indentation of the further lines of a row that takes several.
const INDENT: usize = 4;

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
        if width_of(&widths) > most {
            return self.rows.iter().flat_map(|row| self.folded(row, most, paint)).collect();
        }
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

    /// Returns a row in lines without a head: numbers after their columns' names, and nothing for empty cells.
    fn folded(&self, row: &[String; N], most: usize, paint: &dyn Fn(&str) -> String) -> Vec<String> {
        let mut lines: Vec<(usize, String)> = Vec::new();
        for (n, (column, cell)) in
            self.head.iter().zip(row).enumerate().filter(|(_, (_, cell))| !cell.is_empty())
        {
            let name = match (n, column.side) {
                (1.., Side::Right) => format!("{} ", column.name.to_lowercase()),
                _ => String::new(),
            };
            let cell = shorten(cell, most.saturating_sub(INDENT + name.len()));
            let width = name.len() + columns(&cell);
            let cell = if column.name == "STATE" { paint(&cell) } else { cell };
            match lines.last_mut() {
                Some((used, line)) if *used + 2 + width <= most => {
                    *used += 2 + width;
                    line.extend(["  ", &name, &cell]);
                }
                last => {
                    let indent = if last.is_some() { INDENT } else { 0 };
                    lines.push((indent + width, format!("{:indent$}{name}{cell}", "")));
                }
            }
        }
        lines.into_iter().map(|(_, line)| line).collect()
    }

    fn widths(&self, most: usize) -> [usize; N] {
        let mut widths = [0; N];
        for (n, width) in widths.iter_mut().enumerate() {
            let cells = self.rows.iter().map(|row| columns(&row[n]));
            *width = cells.chain([self.head[n].name.len()]).max().unwrap_or(0);
        }
        // The last column, a name, gives way first, and then the widest one that can be cut.
        while width_of(&widths) > most {
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

/// Returns the width of a line whose columns have these.
fn width_of(widths: &[usize]) -> usize {
    widths.iter().sum::<usize>() + 2 * widths.len().saturating_sub(1)
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

    #[test]
    fn a_row_takes_several_lines_where_the_columns_have_no_room() {
        let head = [
            Column::right("ID"),
            Column::left("STATE"),
            Column::flexible("NOW"),
            Column::left("TIME"),
            Column::right("JOULES"),
            Column::flexible("NAME"),
        ];
        let row = |now: &str, name: &str| {
            ["17", "done", now, "2026-11-30 12:44 UTC", "12", name].map(str::to_owned)
        };
        let table = Table { head, rows: vec![row("", "émoji😀.png"), row("a reason", &"x".repeat(50))] };
        let painted = table.lines(40, &|state| format!("\x1b[1m{state}\x1b[0m"));
        let plain: Vec<_> = painted.iter().map(|l| l.replace("\x1b[1m", "").replace("\x1b[0m", "")).collect();
        assert!(plain.iter().all(|line| columns(line) <= 40), "{plain:#?}");
        assert_eq!(
            plain[..2],
            ["17  done  2026-11-30 12:44 UTC", "    joules 12  émoji😀.png"].map(String::from)
        );
        assert_eq!(
            plain[2..4],
            ["17  done  a reason  2026-11-30 12:44 UTC", "    joules 12"].map(String::from)
        );
        assert!(plain[4].ends_with("xxx...") && plain.len() == 5, "{plain:#?}");
        assert_eq!(table.lines(80, &str::to_owned).len(), 3, "there is room for a head and two rows");
    }
}
