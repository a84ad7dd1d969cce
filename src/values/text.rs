//! Quotes of texts that clients and upstreams write, in messages, and types that are written as a text.

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

/// Has serde write types as their `Display`, and read them with their `FromStr`.
macro_rules! serde_as_text {
    ($($type:ty),+) => {$(
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                <String as serde::Deserialize>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )+};
}

/// The same for types whose `Display` is their `as_str`.
macro_rules! as_text {
    ($($type:ty),+) => {$(
        impl std::fmt::Display for $type {
            fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str(self.as_str())
            }
        }

        $crate::values::text::serde_as_text!($type);
    )+};
}

pub(crate) use {as_text, serde_as_text};
