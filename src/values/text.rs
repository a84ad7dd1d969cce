//! Text of others in messages of ours.

/// What messages quote of what a client sent: enough to know it again, on one line.
pub fn excerpt(text: &impl std::fmt::Display) -> String {
    const MOST: usize = 100;
    let text = text.to_string();
    let end = text.char_indices().nth(MOST).map_or(text.len(), |(end, _)| end);
    format!("{}{}", text[..end].escape_debug(), if end < text.len() { "…" } else { "" })
}
