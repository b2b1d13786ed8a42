//! The known word that a wrong one was probably meant to be.

/// The longest wrong word that is compared with the known ones, in bytes: the work grows with it.
pub const MAX_WORD: usize = 64;

/// Returns the known word most like `wrong`, if one is like it at all.
pub fn nearest<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if wrong.len() > MAX_WORD {
        return None;
    }
    known
        .into_iter()
        .map(|word| (distance(wrong, word), word))
        .min()
        .filter(|(distance, word)| *distance <= word.len().max(3) / 2)
        .map(|(_, word)| word)
}

/// Returns the Levenshtein distance, with hyphens and underscores treated as equal.
fn distance(a: &str, b: &str) -> usize {
    let fold = |s: &str| s.to_lowercase().replace('-', "_").chars().collect::<Vec<_>>();
    let (a, b) = (fold(a), fold(b));
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let next = (diagonal + usize::from(x != y)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], next);
        }
    }
    row[b.len()]
}
