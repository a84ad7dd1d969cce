//! Points in time, durations as operators write them, and the clock.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::text::serde_as_text;

/// Seconds since the Unix epoch: the unit of `DynamoDB`'s time to live.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Timestamp(pub u64);

/// The end of the year 9999: the last time that has a date (RFC 3339, section 1).
const LAST: u64 = 253_402_300_799;

/// How far ahead of this clock that of another process may be.
const SKEW: Duration = Duration::from_secs(10);

impl Timestamp {
    /// This time plus `duration`, in whole seconds.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration.as_secs()))
    }

    /// This time minus `duration`, in whole seconds.
    #[must_use]
    pub fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(duration.as_secs()))
    }

    /// Whether this time, which was at most `longest` ahead when it was written down, has not come yet. One that is
    /// further ahead is of a clock that has been set back since, and says nothing.
    pub fn is_ahead(self, longest: Duration, now: Self) -> bool {
        now < self && self <= now.plus(longest).plus(SKEW)
    }

    /// How long until this time, seen from `now`; zero once it has passed.
    pub fn after(self, now: Self) -> Duration {
        Duration::from_secs(self.0.saturating_sub(now.0))
    }

    /// This time for people to read.
    pub fn date(self) -> humantime::Rfc3339Timestamp {
        humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + Duration::from_secs(self.0.min(LAST)))
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        Self(time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs())
    }
}

/// A duration in the notation of settings: `30d`, `1h 30m`.
pub fn written(duration: Duration) -> String {
    let mut rest = duration.as_millis();
    let mut parts = Vec::new();
    for (unit, length) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
        if rest >= length {
            parts.push(format!("{}{unit}", rest / length));
            rest %= length;
        }
    }
    if parts.is_empty() { "0s".into() } else { parts.join(" ") }
}

/// Where "now" comes from: the system, or a test that moves it by hand.
#[derive(Clone, Debug, Default)]
pub struct Clock(Option<Arc<AtomicU64>>);

impl Clock {
    /// A clock that stands still at `now` until [`Self::advance`].
    pub fn manual(now: Timestamp) -> Self {
        Self(Some(Arc::new(AtomicU64::new(now.0))))
    }

    /// Moves a manual clock; the system's clock is not moved.
    pub fn advance(&self, by: Duration) {
        if let Some(seconds) = &self.0 {
            seconds.fetch_add(by.as_secs(), Ordering::SeqCst);
        }
    }

    /// Sets a manual clock back; the system's clock is not moved.
    pub fn set_back(&self, by: Duration) {
        if let Some(seconds) = &self.0 {
            seconds.fetch_sub(by.as_secs(), Ordering::SeqCst);
        }
    }

    /// The present time.
    pub fn now(&self) -> Timestamp {
        self.system_time().into()
    }

    /// The present time with fractions of a second. A manual clock has whole seconds.
    #[expect(clippy::disallowed_methods, reason = "this is where time comes from")]
    pub fn system_time(&self) -> SystemTime {
        match &self.0 {
            Some(seconds) => SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.load(Ordering::SeqCst)),
            None => SystemTime::now(),
        }
    }
}

/// The longest duration of a setting: sums with it stay within the range of [`SystemTime`].
const LONGEST: Duration = Duration::from_hours(100 * 366 * 24);

/// A duration as operators write it: `"5m"`, `"90d"`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match humantime::parse_duration(text) {
            Ok(duration) if duration > LONGEST => Err(format!("{text:?} is more than a hundred years")),
            Ok(duration) => Ok(Self(duration)),
            Err(error) => Err(format!("{text:?} is no duration like \"5m\": {error}")),
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(formatter)
    }
}

serde_as_text!(Span);
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_written_as_settings_have_it() {
        for (text, same) in
            [("5m", "300s"), ("30d", "720h"), ("1h 30m", "90m"), ("1d 1s", "86401s"), ("250ms", "250ms"), ("0s", "0m")]
        {
            let duration = humantime::parse_duration(same).unwrap();
            assert_eq!(written(duration), text);
            assert_eq!(humantime::parse_duration(text).unwrap(), duration, "{text}");
        }
    }

    #[test]
    fn no_duration_of_a_setting_is_longer_than_clocks_can_tell() {
        assert_eq!("100y".parse::<Span>().map(|span| span.0), Ok(humantime::parse_duration("100y").unwrap()));
        for text in ["101y", "500000000000y", "18446744073709551615s"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }
}
