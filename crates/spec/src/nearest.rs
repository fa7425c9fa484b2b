//! The nearest of several words, for messages.

/// The candidate that `word` was probably meant to be: at most a third of its characters (and at least one) changed,
/// added, dropped or swapped with a neighbour.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    const WORD_MAX: usize = 64;
    let word: Vec<char> = word.chars().take(WORD_MAX + 1).flat_map(char::to_lowercase).collect();
    if word.len() > WORD_MAX {
        return None;
    }
    let allowed = (word.len() / 3).max(1);
    let distances = candidates.into_iter().map(|candidate| {
        let lower: Vec<char> = candidate.chars().flat_map(char::to_lowercase).collect();
        (distance(&word, &lower), candidate)
    });
    let (distance, candidate) = distances.min_by_key(|(distance, _)| *distance)?;
    (distance <= allowed).then_some(candidate)
}

/// Optimal string alignment: edits, and swaps of neighbours.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for (i, from) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, to) in b.iter().enumerate() {
            let change = rows[i][j] + usize::from(from != to);
            let mut best = change.min(rows[i][j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *from == b[j - 1] && a[i - 1] == *to {
                best = best.min(rows[i - 1][j - 1] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_typing_mistakes_only() {
        let keys = ["capacity", "per_node", "layout", "name"];
        assert_eq!(nearest("capcity", keys), Some("capacity"));
        assert_eq!(nearest("cpaacity", keys), Some("capacity"));
        assert_eq!(nearest("Layout", keys), Some("layout"));
        assert_eq!(nearest("pernode", keys), Some("per_node"));
        assert_eq!(nearest("colour", keys), None);
        assert_eq!(nearest("", keys), None);
        assert_eq!(nearest("x", []), None);
    }
}
