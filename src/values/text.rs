//! Quotes of clients' text in messages.

/// Quotes a client's text for a message: its first 100 characters, escaped onto one line.
pub fn excerpt(text: &impl std::fmt::Display) -> String {
    const MOST: usize = 100;
    let text = text.to_string();
    let mut letters = text.chars();
    let beginning: String = letters.by_ref().take(MOST).collect();
    format!("{}{}", beginning.escape_debug(), if letters.next().is_some() { "…" } else { "" })
}
