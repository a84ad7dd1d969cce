//! `[[schedule]]`: images that are prefetched periodically.

use std::time::Duration;

use super::file::ScheduleTable;
use super::{ConfigError, value};
use crate::oci::{Platforms, Request};
use crate::values::time::Timestamp;

/// How often an external timer looks for due schedules, where the process runs none (template.yaml, `Prefetch`).
pub const TICK: Duration = Duration::from_hours(1);

/// Images that are prefetched periodically: a tag that has not moved costs a HEAD.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// The period.
    pub every: Duration,
    /// The images, each as the request that pulls it.
    pub images: Vec<Request>,
    /// The platforms that are stored of an index.
    pub platforms: Platforms,
}

impl Schedule {
    /// Whether it is due now, looked at once in every [`TICK`]: time is divided into periods of `every`, and the first
    /// look in each period finds it due. So the time of the last run need not be stored.
    pub fn is_due(&self, now: Timestamp) -> bool {
        let every = self.every.as_secs().max(1);
        now.0 / every != now.0.saturating_sub(TICK.as_secs()) / every
    }
}

pub(super) fn read(tables: Vec<ScheduleTable>) -> Result<Vec<Schedule>, ConfigError> {
    let schedules = (1..).zip(tables).map(|(number, ScheduleTable { every, images, platforms })| {
        let key = |key: &str| format!("schedule[{number}].{key}");
        if every.0.is_zero() {
            return Err(value(key("every"), "must be longer than nothing, for example \"6h\""));
        }
        if platforms == Platforms::Requested {
            return Err(value(key("platforms"), "no client requests any here: name them, like [\"linux/amd64\"]"));
        }
        let image = |(element, text): (usize, &String)| {
            let key = || key(&format!("images[{element}]"));
            let instead = text.to_lowercase();
            let hint = Request::image(&instead).map_or_else(|_| String::new(), |_| format!(" — write {instead:?}"));
            Request::image(text).map_err(|error| value(key(), format!("{text:?} is no image: {error}{hint}")))
        };
        Ok(Schedule { every: every.0, images: (1..).zip(&images).map(image).collect::<Result<_, _>>()?, platforms })
    });
    schedules.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_is_due_once_in_its_time_whatever_the_hour_of_the_look() {
        for (every, expected) in [(6, 4), (24, 1), (1, 24), (5, 5)] {
            let schedule =
                Schedule { every: Duration::from_hours(every), images: Vec::new(), platforms: Platforms::All };
            let looks = (0..24).map(|hour| Timestamp(1_800_000_000 + hour * 3600 + 17 * 60 + hour % 3));
            assert_eq!(looks.filter(|now| schedule.is_due(*now)).count(), expected, "every {every} h");
        }
        let often = Schedule { every: Duration::from_mins(10), images: Vec::new(), platforms: Platforms::All };
        assert!(often.is_due(Timestamp(1_800_000_000)), "at every look");
    }
}
