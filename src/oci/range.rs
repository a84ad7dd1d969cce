/// What a `Range` header asks for (RFC 9110, section 14.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RequestedRange {
    /// The whole representation: no header, an unknown unit, text that is no range or ends before it begins, or several
    /// ranges (a server may ignore all of these).
    Whole,
    /// From the first byte to the last one, both included, or to the end.
    From(u64, Option<u64>),
    /// The last so many bytes.
    Suffix(u64),
}

/// A part of a representation that exists: `first <= last < size`, or the whole of an empty one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ByteRange {
    /// Offset of the first byte.
    pub first: u64,
    /// How many bytes.
    pub length: u64,
    /// Whether it was asked for as a part: 206 with `Content-Range`.
    pub partial: bool,
}

impl RequestedRange {
    /// Parses the value of a `Range` header.
    pub fn parse(header: Option<&str>) -> Self {
        let Some((unit, ranges)) = header.and_then(|value| value.split_once('=')) else {
            return Self::Whole;
        };
        if !unit.trim().eq_ignore_ascii_case("bytes") || ranges.contains(',') {
            return Self::Whole;
        }
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
        };
        match ranges.trim().split_once('-') {
            Some(("", suffix)) => number(suffix).map_or(Self::Whole, Self::Suffix),
            Some((first, "")) => number(first).map_or(Self::Whole, |first| Self::From(first, None)),
            Some((first, last)) => match (number(first), number(last)) {
                (Some(first), Some(last)) if first <= last => Self::From(first, Some(last)),
                _ => Self::Whole,
            },
            None => Self::Whole,
        }
    }

    /// The bytes that it selects of a representation of `size` bytes. `None`: it selects no byte (416).
    pub fn of(self, size: u64) -> Option<ByteRange> {
        let (first, length) = match self {
            Self::Whole => {
                return Some(ByteRange { first: 0, length: size, partial: false });
            }
            Self::From(first, last) if first < size => {
                (first, last.map_or(size, |last| last.saturating_add(1).min(size)) - first)
            }
            Self::Suffix(length) if length > 0 && size > 0 => (size.saturating_sub(length), length.min(size)),
            _ => return None,
        };
        Some(ByteRange { first, length, partial: true })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_selects_what_there_is_of_it() {
        let all = |partial| Some(ByteRange { first: 0, length: 10, partial });
        for (header, size, selected) in
            [(None, 10, all(false)), (Some("bytes=-99"), 10, all(true)), (Some("bytes=0-"), 0, None)]
        {
            assert_eq!(RequestedRange::parse(header).of(size), selected, "{header:?}");
        }
    }
}
