//! HTML that is being written. Markup is what this program says: only literals are. Everything else is text, and escaped.

use std::fmt::{Display, Write};

use percent_encoding::utf8_percent_encode;

use crate::http::listing::RESERVED;

/// A document, or a part of one.
#[derive(Default)]
pub(super) struct Html(String);

/// Escapes what is written, for text and for values of attributes in double quotes.
struct Escaped<'a>(&'a mut String);

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for letter in text.chars() {
            match letter {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                // What turns text round or hides it is shown as a sign that it is there, like other control characters.
                '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => self.0.push('\u{fffd}'),
                _ if letter.is_control() => self.0.push('\u{fffd}'),
                _ => self.0.push(letter),
            }
        }
        Ok(())
    }
}

impl Html {
    /// Adds markup.
    pub(super) fn raw(&mut self, markup: &'static str) -> &mut Self {
        self.0.push_str(markup);
        self
    }

    /// Adds text.
    pub(super) fn text(&mut self, text: impl Display) -> &mut Self {
        // Writing to a string cannot fail.
        let _ = write!(Escaped(&mut self.0), "{text}");
        self
    }

    /// Adds a link to a view of this page: the parameters of its query, and what is read.
    pub(super) fn link(&mut self, query: &[(&'static str, &str)], text: impl Display) -> &mut Self {
        self.raw("<a href=\"/?");
        for (number, (parameter, value)) in query.iter().enumerate() {
            self.raw(if number == 0 { "" } else { "&amp;" });
            self.raw(parameter).raw("=").text(utf8_percent_encode(value, RESERVED));
        }
        self.raw("\">").text(text).raw("</a>")
    }

    /// Adds another part.
    pub(super) fn part(&mut self, part: &Self) -> &mut Self {
        self.0.push_str(&part.0);
        self
    }

    /// Adds a cell of a table.
    pub(super) fn cell(&mut self, text: impl Display) -> &mut Self {
        self.raw("<td>").text(text).raw("</td>")
    }

    /// What was written.
    pub(super) fn finish(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_is_text_and_never_markup() {
        let mut html = Html::default();
        let hostile = "<script>alert(1)</script>\" onload='x' &amp;\u{202e}\u{1b}[2J\n";
        html.raw("<p title=\"")
            .text(hostile)
            .raw("\">")
            .text(hostile)
            .raw("</p>")
            .link(&[("image", hostile), ("last", hostile)], hostile);
        let text = html.finish();
        assert_eq!(text.matches('<').count(), 4, "{text}");
        assert_eq!(text.matches('"').count(), 4, "{text}");
        assert!(!text.contains(['\'', '\u{202e}', '\u{1b}', '\n']) && text.contains("&amp;amp;"), "{text}");
    }
}
