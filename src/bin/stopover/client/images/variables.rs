//! Variables in a text, as Compose (Compose specification, "Interpolation") and BuildKit (Dockerfile reference,
//! "Environment replacement") substitute them.

use std::iter::Peekable;
use std::str::Chars;

use regex_lite::{Captures, Regex};

/// The longest text that is substituted, and the longest value: no image has a longer name.
const LONGEST: usize = 1024;
/// How deep defaults may hold variables.
const DEEPEST: usize = 16;

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
        let value = (self.variable)(&name).filter(|value| !name.is_empty() && value.len() <= LONGEST);
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
                let pattern = pattern(rest, if sign == '/' { "/}" } else { "}" }, twice || sign == '/');
                let by = rest.next_if_eq(&'/').map(|_| self.until(rest, "}", depth).0).unwrap_or_default();
                or_unset(value.map(|value| replaced(&value, sign, twice, &pattern, &by)))
            }
        };
        if rest.next_if_eq(&'}').is_some() { filled } else { or_unset(None) }
    }
}

/// Reads a pattern of shells up to one of the characters `ends`, which is left, as a regular expression. Its stars take
/// as much as they can, or as little.
fn pattern(rest: &mut Peekable<Chars>, ends: &str, longest: bool) -> String {
    let mut pattern = String::new();
    while let Some(letter) = rest.next_if(|letter| !ends.contains(*letter)) {
        match letter {
            '*' => pattern.push_str(if longest { ".*" } else { ".*?" }),
            '?' => pattern.push('.'),
            letter => {
                let letter = if letter == '\\' { rest.next() } else { Some(letter) };
                pattern.extend(letter.map(|letter| regex_lite::escape(&letter.to_string())));
            }
        }
    }
    pattern
}

/// A value without what matches at its beginning (`#`) or its end (`%`), or with the first match, or all, replaced (`/`).
fn replaced(value: &str, sign: char, twice: bool, pattern: &str, by: &str) -> String {
    // The group is what stays.
    let whole = match (sign, twice) {
        _ if pattern.is_empty() => return value.to_owned(),
        ('#', _) => format!("(?s)^(){pattern}"),
        // What is left takes the more, the less the pattern may.
        ('%', false) => format!("(?s)^(.*){pattern}$"),
        ('%', true) => format!("(?s)^(.*?){pattern}$"),
        _ => format!("(?s)(){pattern}"),
    };
    // 0 is all.
    let most = usize::from(sign != '/' || !twice);
    let stays = |found: &Captures| found.get(1).map_or("", |stays| stays.as_str()).to_owned() + by;
    Regex::new(&whole).map_or_else(|_| value.to_owned(), |regex| regex.replacen(value, most, stays).into_owned())
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
            "LONG" => Some("x".repeat(LONGEST + 1)),
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
            ("${LONG%x}", Err("LONG")),
            ("${V/*/x}${V/?.*./_}${V%%.}${V/\\//x}${V//}", Ok("x_31.2.31.2.31.2.3")),
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
