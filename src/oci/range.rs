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
    fn ranges_select_what_the_http_specification_says() {
        let range = |header: &str, size| {
            RequestedRange::parse(Some(header)).of(size).map(|range| (range.first, range.length, range.partial))
        };
        assert_eq!(RequestedRange::parse(None).of(10), Some(ByteRange { first: 0, length: 10, partial: false }));
        assert_eq!(range("bytes=0-", 10), Some((0, 10, true)));
        assert_eq!(range("bytes=3-5", 10), Some((3, 3, true)));
        assert_eq!(range("bytes=3-99", 10), Some((3, 7, true)));
        assert_eq!(range("bytes=-4", 10), Some((6, 4, true)));
        assert_eq!(range("bytes=-99", 10), Some((0, 10, true)));
        assert_eq!(range("bytes=0-1,3-4", 10), Some((0, 10, false)));
        assert_eq!(range("lines=0-1", 10), Some((0, 10, false)));
        for ignored in ["bytes=5-3", "bytes=x-y", "bytes=", "bytes=--1"] {
            assert_eq!(range(ignored, 10), Some((0, 10, false)), "{ignored}");
        }
        for unsatisfiable in ["bytes=10-", "bytes=-0", "bytes=99999999999999999999-"] {
            assert_eq!(range(unsatisfiable, 10), None, "{unsatisfiable}");
        }
        assert_eq!(range("bytes=0-", 0), None);
    }
}
