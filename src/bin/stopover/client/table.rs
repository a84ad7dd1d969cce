//! Text for a terminal: tables that fit it, and names that do nothing to it.

use std::io::IsTerminal as _;

use rustix::termios::tcgetwinsize;

/// What stands between two columns.
const GAP: &str = "  ";

/// How many characters a line of standard output has; `None`: it is no terminal, and lines are as long as they are.
pub(super) fn width() -> Option<usize> {
    let output = std::io::stdout();
    let size = output.is_terminal().then(|| tcgetwinsize(&output).ok()).flatten();
    size.map(|size| usize::from(size.ws_col)).filter(|width| *width > 0)
}

/// A text that others wrote, as it may stand on a terminal: control characters and others that are not seen are escaped.
pub(super) fn harmless(text: &str) -> String {
    let mut harmless = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '"' | '\'' | '\\' => harmless.push(letter),
            _ => harmless.extend(letter.escape_debug()),
        }
    }
    harmless
}

/// A table that is written part by part: rows below a head, in columns as wide as what was in them so far. Lines are cut
/// at `width`: the last column is for what may be long.
pub(super) struct Table<'a, const N: usize> {
    /// Until it is written.
    head: Option<[&'a str; N]>,
    widths: [usize; N],
    width: Option<usize>,
}

impl<'a, const N: usize> Table<'a, N> {
    /// An empty one.
    pub(super) fn new(head: [&'a str; N], width: Option<usize>) -> Self {
        Self { head: Some(head), widths: [0; N], width }
    }

    /// The lines of more rows, below the head if they are the first.
    pub(super) fn add(&mut self, rows: impl IntoIterator<Item = [String; N]>) -> String {
        let head = self.head.take().map(|head| head.map(str::to_owned));
        let rows = rows.into_iter().map(|row| row.map(|cell| harmless(&cell)));
        let rows: Vec<[String; N]> = head.into_iter().chain(rows).collect();
        for row in &rows {
            for (most, cell) in self.widths.iter_mut().zip(row) {
                *most = cell.chars().count().max(*most);
            }
        }
        let mut text = String::new();
        for row in rows {
            let cells = row.iter().zip(self.widths).map(|(cell, width)| format!("{cell:width$}"));
            let line = cells.collect::<Vec<_>>().join(GAP);
            text.push_str(&cut(line.trim_end(), self.width));
            text.push('\n');
        }
        text
    }
}

/// The beginning of a line that is longer than this.
fn cut(line: &str, width: Option<usize>) -> String {
    match width {
        Some(width) if line.chars().count() > width => {
            line.chars().take(width.saturating_sub(1)).chain(['…']).collect()
        }
        _ => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_fits_the_terminal_and_names_do_nothing_to_it() {
        let row = |one: &str, two: &str| [one.to_owned(), two.to_owned()];
        let rows = [row("a", "1"), row("\u{1b}[2Jb\u{202e}\n", "a reason that is long"), row("ü", "")];
        let text = Table::new(["NAME", "WHY"], None).add(rows.clone());
        let expected = "NAME                  WHY\n\
                        a                     1\n\
                        \\u{1b}[2Jb\\u{202e}\\n  a reason that is long\n\
                        ü\n";
        assert_eq!(text, expected);
        // Written part by part it is aligned with what was there.
        let mut parts = Table::new(["NAME", "WHY"], None);
        assert_eq!(parts.add(rows[..1].to_vec()), "NAME  WHY\na     1\n");
        assert_eq!(parts.add(rows[2..].to_vec()), "ü\n");
        assert_eq!(parts.add([row("a longer name", "2")]), "a longer name  2\n");
        assert_eq!(parts.add([row("b", "3")]), "b              3\n");
        let narrow = Table::new(["NAME", "WHY"], Some(30)).add(rows);
        assert!(narrow.lines().all(|line| line.chars().count() <= 30), "{narrow}");
        assert!(narrow.contains("a reaso…"), "{narrow}");
    }
}
