//! Variables in a text, as Compose (Compose specification, "Interpolation") and BuildKit (Dockerfile reference,
//! "Environment replacement") substitute them.

use std::iter::Peekable;
use std::str::Chars;

/// The longest text that is substituted: no image has a longer name.
const LONGEST: usize = 1024;
/// How deep defaults may hold variables, and how long a value that a pattern is looked for in.
const DEEPEST: usize = 16;
const LONGEST_MATCHED: usize = 256;

/// Substitutes `$NAME`, `${NAME}` and `${NAME:-default}` with its like. `escape` is what takes the meaning from the next
/// character, in a Dockerfile, where quotes go too. Fails with the name of the first variable that has no value.
pub(super) fn substitute(
    text: &str,
    escape: Option<char>,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<String, String> {
    if text.len() > LONGEST {
        return Err(text.chars().take(DEEPEST).collect());
    }
    let (filled, unset) = Substitution { escape, variable }.until(&mut text.chars().peekable(), "", DEEPEST);
    unset.map_or(Ok(filled), Err)
}

/// A text, and the first variable in it that has no value.
type Filled = (String, Option<String>);

struct Substitution<'a> {
    escape: Option<char>,
    variable: &'a dyn Fn(&str) -> Option<String>,
}

impl Substitution<'_> {
    /// Reads up to one of the characters `ends`, which is left. The whole text is read even if a variable has no value,
    /// because a default may not be needed.
    fn until(&self, rest: &mut Peekable<Chars>, ends: &str, depth: usize) -> Filled {
        let (mut filled, mut unset, mut quote) = (String::new(), None, None);
        while let Some(letter) = rest.next_if(|letter| quote.is_some() || !ends.contains(*letter)) {
            match letter {
                '$' if quote != Some('\'') => {
                    let (value, without) = self.variable(rest, depth);
                    filled.push_str(&value);
                    unset = unset.or(without);
                }
                '"' | '\'' if self.escape.is_some() && quote.is_none_or(|open| open == letter) => {
                    quote = quote.xor(Some(letter));
                }
                _ if self.escape == Some(letter) && quote != Some('\'') => filled.extend(rest.next()),
                _ => filled.push(letter),
            }
        }
        (filled, unset)
    }

    /// Reads what follows a `$`.
    fn variable(&self, rest: &mut Peekable<Chars>, depth: usize) -> Filled {
        let in_braces = rest.next_if_eq(&'{').is_some();
        let mut name = String::new();
        while let Some(letter) = rest.next_if(|letter| letter.is_ascii_alphanumeric() || *letter == '_') {
            name.push(letter);
        }
        if !in_braces && name.is_empty() {
            // `$$` is a dollar; `$(NAME)` is none of these variables.
            _ = rest.next_if_eq(&'$');
            return ("$".to_owned(), None);
        }
        let value = (self.variable)(&name).filter(|_| !name.is_empty());
        let or_unset = |value: Option<String>| (value.clone().unwrap_or_default(), value.xor(Some(name.clone())));
        let Some(depth) = depth.checked_sub(1).filter(|_| in_braces) else { return or_unset(value) };
        // With a colon, empty is unset.
        let or_empty = rest.next_if_eq(&':').is_some();
        let value = value.filter(|value| !or_empty || !value.is_empty());
        let filled = match rest.next_if(|letter| "-+?#%/".contains(*letter)) {
            None => or_unset(value),
            Some(sign @ ('-' | '+' | '?')) => match (sign, self.until(rest, "}", depth), value) {
                ('-', word, None) | ('+', word, Some(_)) => word,
                ('+', _, None) => Filled::default(),
                (_, _, value) => or_unset(value),
            },
            Some(sign) => {
                let twice = rest.next_if_eq(&sign).is_some();
                let pattern = pattern(rest, if sign == '/' { "/}" } else { "}" });
                let by = rest.next_if_eq(&'/').map(|_| self.until(rest, "}", depth).0).unwrap_or_default();
                or_unset(value.map(|value| match sign {
                    '/' => replaced(&pattern, &value, &by, twice),
                    _ => without(pattern, &value, sign == '%', twice),
                }))
            }
        };
        if rest.next_if_eq(&'}').is_some() { filled } else { or_unset(None) }
    }
}

/// A part of a pattern of shells.
enum Part {
    Anything,
    AnyLetter,
    Letter(char),
}

/// Reads a pattern up to one of the characters `ends`, which is left.
fn pattern(rest: &mut Peekable<Chars>, ends: &str) -> Vec<Part> {
    let mut pattern = Vec::new();
    while let Some(letter) = rest.next_if(|letter| !ends.contains(*letter)) {
        pattern.extend(match letter {
            '*' => Some(Part::Anything),
            '?' => Some(Part::AnyLetter),
            '\\' => rest.next().map(Part::Letter),
            letter => Some(Part::Letter(letter)),
        });
    }
    pattern
}

/// Where a match of the pattern that begins with the text can end, in order.
fn ends(pattern: &[Part], text: &[char]) -> Vec<usize> {
    pattern.iter().fold(vec![0], |from, part| match part {
        Part::Anything => from.first().map_or_else(Vec::new, |first| (*first..=text.len()).collect()),
        Part::AnyLetter => from.into_iter().map(|at| at + 1).filter(|at| *at <= text.len()).collect(),
        Part::Letter(letter) => from.into_iter().filter(|at| text.get(*at) == Some(letter)).map(|at| at + 1).collect(),
    })
}

/// `${NAME#pattern}`, `##`, `%` and `%%`: a value without what matches at one end of it.
fn without(mut pattern: Vec<Part>, value: &str, at_end: bool, longest: bool) -> String {
    let mut letters: Vec<char> = value.chars().take(LONGEST_MATCHED).collect();
    if at_end {
        letters.reverse();
        pattern.reverse();
    }
    let ends = ends(&pattern, &letters);
    letters.drain(..if longest { ends.last() } else { ends.first() }.copied().unwrap_or_default());
    if at_end {
        letters.reverse();
    }
    letters.into_iter().collect()
}

/// `${NAME/pattern/by}` and `//`: a value with the first match, or all of them, replaced.
fn replaced(pattern: &[Part], value: &str, by: &str, all: bool) -> String {
    let letters: Vec<char> = value.chars().take(LONGEST_MATCHED).collect();
    let (mut rest, mut replaced, mut done) = (&letters[..], String::new(), false);
    while let [first, after @ ..] = rest {
        let end = ends(pattern, rest).last().copied().filter(|end| *end > 0 && (all || !done));
        match end {
            Some(_) => replaced.push_str(by),
            None => replaced.push(*first),
        }
        done |= end.is_some();
        rest = end.map_or(after, |end| rest.get(end..).unwrap_or_default());
    }
    replaced
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_filled_in_as_compose_and_buildkit_do() {
        let variable = |name: &str| match name {
            "A" => Some("a".to_owned()),
            "V" => Some("1.2.3".to_owned()),
            "P" => Some("x/y/z".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        for (text, expected) in [
            ("x", Ok("x")),
            ("$A-${A}.$$A", Ok("a-a.$A")),
            ("${B:-b}${B-b}${EMPTY:-e}${EMPTY-e}", Ok("bbe")),
            ("${A:+set}${B:+set}${EMPTY:+set}${A:?}", Ok("seta")),
            ("${B:-${C:-${A}}}${A:-${B}}", Ok("aa")),
            ("${B:-${C}}", Err("C")),
            ("$B$C", Err("B")),
            ("${B:?no}", Err("B")),
            ("${EMPTY:?no}", Err("EMPTY")),
            ("${A", Err("A")),
            ("${A:-x", Err("A")),
            ("$(A)", Ok("$(A)")),
            ("${Aé}", Err("A")),
            ("${}", Err("")),
            ("${B:-é}", Ok("é")),
            ("${V%.*}-${V%%.*}-${V#*.}-${V##*.}", Ok("1.2-1-2.3-3")),
            ("${P##*/}${P#?}${V%x}", Ok("z/y/z1.2.3")),
            ("${V/./_}-${V//./_}-${V//./}-${V/x/y}-${V//.}", Ok("1_2.3-1_2_3-123-1.2.3-123")),
            ("${P/\\//-}", Ok("x-y/z")),
            ("${B%x}", Err("B")),
        ] {
            let expected = expected.map(str::to_owned).map_err(str::to_owned);
            assert_eq!(substitute(text, None, &variable), expected, "{text}");
        }
        for (text, expected) in
            [("\"$A\"'$A'\\$A", "a$A$A"), ("\"it's\" 'a \"b\"'", "it's a \"b\""), ("${B:-\"a}b\"}", "a}b")]
        {
            assert_eq!(substitute(text, Some('\\'), &variable).unwrap(), expected, "{text}");
        }
        assert!(substitute(&"${B:-".repeat(200), None, &variable).is_err(), "too deep");
        assert!(substitute(&"x".repeat(LONGEST + 1), None, &variable).is_err(), "too long");
    }
}
