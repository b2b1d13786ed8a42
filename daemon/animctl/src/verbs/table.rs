//! Tables for people.

use super::print;

/// The alignment of a column.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Left,
    Right,
}

/// Returns the lines of a table with aligned columns; the last column may have any width.
pub fn lines<const N: usize>(head: [(&str, Side); N], rows: &[[String; N]]) -> Vec<String> {
    let width = |n: usize| rows.iter().map(|row| row[n].chars().count()).chain([head[n].0.len()]).max();
    let widths: Vec<usize> = (0..N).map(|n| width(n).unwrap_or(0)).collect();
    let line = |cells: [&str; N]| {
        let mut text = String::new();
        for (n, cell) in cells.into_iter().enumerate() {
            let gap = " ".repeat(widths[n] - cell.chars().count());
            match head[n].1 {
                Side::Left => text.extend([cell, &gap]),
                Side::Right => text.extend([&gap, cell]),
            }
            text.push_str("  ");
        }
        text.trim_end().to_owned()
    };
    let mut lines = vec![line(head.map(|(name, _)| name))];
    lines.extend(rows.iter().map(|row| line(row.each_ref().map(String::as_str))));
    lines
}

/// Prints the lines of a table.
pub fn show<const N: usize>(head: [(&str, Side); N], rows: &[[String; N]]) {
    lines(head, rows).iter().for_each(print);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [["7".to_owned(), "a".to_owned()], ["12".to_owned(), "größer".to_owned()]];
        let text = lines([("ID", Side::Right), ("NAME", Side::Left)], &rows);
        assert_eq!(text, ["ID  NAME", " 7  a", "12  größer"]);
    }
}
