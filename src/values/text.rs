//! Quotes of texts that clients and upstreams write, in messages.

/// Quotes a text for a message: its first 100 characters, escaped onto one line.
pub fn excerpt(text: &impl std::fmt::Display) -> String {
    beginning(text, 100)
}

/// Quotes the first so many characters of a text, escaped onto one line.
pub fn beginning(text: &impl std::fmt::Display, most: usize) -> String {
    let text = text.to_string();
    let mut letters = text.chars();
    let beginning: String = letters.by_ref().take(most).collect();
    format!("{}{}", beginning.escape_debug(), if letters.next().is_some() { "…" } else { "" })
}

/// A message without the addresses in it, which are for the log: a caller need not learn where a private registry is.
pub fn without_addresses(message: &str) -> String {
    let words = message.split(' ').map(|word| if word.contains("://") { "(its address is in the log)" } else { word });
    words.collect::<Vec<_>>().join(" ")
}
