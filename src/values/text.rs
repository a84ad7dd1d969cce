//! Text of others in messages of ours.

/// What messages quote of what a client sent: enough to know it again, on one line.
pub fn excerpt(text: &impl std::fmt::Display) -> String {
    const MOST: usize = 100;
    let text = text.to_string();
    let mut letters = text.chars();
    let beginning: String = letters.by_ref().take(MOST).collect();
    format!("{}{}", beginning.escape_debug(), if letters.next().is_some() { "…" } else { "" })
}
