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

    /// Adds a sentence of this program: what stands between backticks in it is code.
    pub(super) fn told(&mut self, sentence: &str) -> &mut Self {
        for (number, part) in sentence.split('`').enumerate() {
            match number % 2 {
                0 => self.text(part),
                _ => self.part(&Self::code(part)),
            };
        }
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

    /// Adds a table. Each row has a cell for each column, and its first one names it. On a phone a row is a block, and its
    /// cells say what they are; the roles keep it a table there.
    pub(super) fn table<const N: usize>(
        &mut self,
        head: [&'static str; N],
        rows: impl IntoIterator<Item = [Self; N]>,
    ) -> &mut Self {
        self.raw("<table role=\"table\"><thead role=\"rowgroup\"><tr role=\"row\">");
        for name in head {
            self.raw("<th role=\"columnheader\" scope=\"col\">").raw(name).raw("</th>");
        }
        self.raw("</tr></thead><tbody role=\"rowgroup\">");
        for row in rows {
            self.raw("<tr role=\"row\">");
            for (number, (name, cell)) in head.into_iter().zip(row).enumerate() {
                let (begin, end) = match number {
                    0 => ("<th role=\"rowheader\" scope=\"row\"><div>", "</div></th>"),
                    _ => ("<td role=\"cell\" data-label=\"", "</div></td>"),
                };
                self.raw(begin);
                if number > 0 {
                    self.raw(name).raw("\"><div>");
                }
                self.part(&cell).raw(end);
            }
            self.raw("</tr>");
        }
        self.raw("</tbody></table>")
    }

    /// Adds lines as they are, and what they are called.
    pub(super) fn lines(&mut self, called: impl Display, text: impl Display) -> &mut Self {
        self.raw("<pre tabindex=\"0\" role=\"region\" aria-label=\"").text(called).raw("\">");
        for line in text.to_string().lines() {
            self.text(line).raw("\n");
        }
        self.raw("</pre>")
    }

    /// The same, to copy: the script adds a button.
    pub(super) fn copyable(&mut self, called: impl Display, text: impl Display) -> &mut Self {
        self.raw("<div class=\"copy\">").lines(called, text).raw("</div>")
    }

    /// A part that is a text.
    pub(super) fn of(text: impl Display) -> Self {
        let mut html = Self::default();
        html.text(text);
        html
    }

    /// A part that is a digest or another name for machines.
    pub(super) fn code(text: impl Display) -> Self {
        let mut html = Self::default();
        html.raw("<code>").text(text).raw("</code>");
        html
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
        let mut html = Html::default();
        html.table(["A", "B"], [[Html::of(hostile), Html::code(hostile)]]).copyable(hostile, hostile).told(hostile);
        let parts = html.finish();
        assert!(!parts.contains("<script") && !parts.contains(['\'', '\u{202e}', '\u{1b}']), "{parts}");
        assert!(!text.contains(['\'', '\u{202e}', '\u{1b}', '\n']) && text.contains("&amp;amp;"), "{text}");
    }
}
