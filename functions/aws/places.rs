//! How many fills run at once at an upstream, in all invocations together: an item of the table for each upstream.
//!
//! A fill takes a place before it begins and gives it back at its end. An invocation that is killed gives nothing back;
//! its place is free once its time is over. A fill that gets no place is received again after a pause. So that none
//! waits for ever, those that wait longest are noted, as many as there are places: one that came later gets no place
//! that one of these can have.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stopover::oci::UpstreamId;
use stopover::ports::{Attempts, Job, Priority, Result};
use stopover::records::Versioned;
use stopover::values::time::Timestamp;

use crate::DynamoLedger;
use crate::item;

/// How much longer a fill is taken to have waited that a client has asked for.
const HEAD_START: Duration = Duration::from_mins(5);
/// When a fill that is noted asks again.
const SOON: Duration = Duration::from_secs(2);
/// When others do: after half of the time that they have waited.
const PAUSES: [Duration; 2] = [Duration::from_secs(5), Duration::from_mins(1)];
/// How long a noted fill may stay away, beyond its pause: its message waits until an invocation is free.
const AWAY: Duration = Duration::from_secs(30);

/// The longest that Lambda lets an invocation run.
const INVOCATION: Duration = Duration::from_mins(15);

/// A fill that asks for a place.
#[derive(Debug, Clone)]
pub struct PlaceRequest<'a> {
    /// What is to be filled.
    pub job: &'a Job,
    /// Since when it waits.
    pub since: Timestamp,
    /// The invocation that would run it.
    pub invocation: &'a str,
    /// When that is over at the latest.
    pub ends_at: Timestamp,
    /// How many fills may run at its upstream.
    pub limit: usize,
}

/// Whether a fill may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It has a place.
    Now,
    /// It is to ask again after this time.
    After(Duration),
}

/// The places of one upstream.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Places {
    /// By invocation: when it is over at the latest.
    #[serde(default)]
    taken: BTreeMap<String, Timestamp>,
    /// By digest: the fills that wait longest.
    #[serde(default)]
    waiting: BTreeMap<String, Waiting>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Waiting {
    /// Since when, with its head start.
    since: Timestamp,
    /// When it asks again at the latest, or is not waited for any more.
    back_by: Timestamp,
}

impl Places {
    /// Gives the fill a place, or notes that it waits.
    fn ask(&mut self, request: &PlaceRequest<'_>, now: Timestamp) -> Turn {
        let PlaceRequest { job, since, invocation, ends_at, limit } = request;
        let digest = job.digest.to_string();
        let head_start = if job.priority == Priority::Interactive { HEAD_START } else { Duration::ZERO };
        let mine = Waiting { since: since.minus(head_start), back_by: now.plus(SOON + AWAY) };
        self.taken.retain(|_, until| until.is_ahead(INVOCATION, now));
        self.waiting.retain(|other, waiting| waiting.back_by.is_ahead(SOON + AWAY, now) && *other != digest);
        let is_before = |(other, waiting): &(&String, &Waiting)| (waiting.since, *other) < (mine.since, &digest);
        if self.taken.len() + self.waiting.iter().filter(is_before).count() < *limit {
            self.taken.insert((*invocation).to_owned(), *ends_at);
            return Turn::Now;
        }
        self.waiting.insert(digest.clone(), mine);
        if self.waiting.len() > *limit
            && let Some(last) = self.waiting.iter().max_by_key(|(other, waiting)| (waiting.since, *other))
        {
            let last = last.0.clone();
            self.waiting.remove(&last);
        }
        let [shortest, longest] = PAUSES;
        let noted = self.waiting.contains_key(&digest);
        Turn::After(if noted { SOON } else { (now.after(*since) / 2).clamp(shortest, longest) })
    }
}

impl DynamoLedger {
    /// Asks for a place at the upstream of a fill.
    ///
    /// # Errors
    /// The table does not answer, or too many others ask at once.
    pub async fn take_place(&self, request: &PlaceRequest<'_>, now: Timestamp) -> Result<Turn> {
        self.change_places(&request.job.repository.upstream, |places| places.ask(request, now)).await
    }

    /// Gives the place of an invocation back.
    ///
    /// # Errors
    /// As for [`Self::take_place`]; the place is free once the invocation is over.
    pub async fn give_place_back(&self, upstream: &UpstreamId, invocation: &str) -> Result<()> {
        self.change_places(upstream, |places| places.taken.remove(invocation)).await.map(drop)
    }

    async fn change_places<T>(&self, upstream: &UpstreamId, change: impl Fn(&mut Places) -> T) -> Result<T> {
        let mut attempts = Attempts::new();
        loop {
            let known = self.item(item::places_key(upstream), true).await?;
            let known = known.map(crate::dynamo::versioned::<Places>).transpose()?;
            let (before, version) =
                known.map_or((Places::default(), None), |Versioned { version, value }| (value, Some(version)));
            let mut after = before.clone();
            let changed = change(&mut after);
            if after == before || self.swap_item(item::places_key(upstream), version, &after).await?.is_some() {
                return Ok(changed);
            }
            attempts.again().await?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(number: u64, priority: Priority) -> Job {
        let repository = stopover::oci::Repository { upstream: "a.test".parse().unwrap(), name: "a".parse().unwrap() };
        Job { repository, digest: format!("sha256:{number:064}").parse().unwrap(), size: 1, priority, payer: None }
    }

    /// A fill asks in an invocation of its own, which may take 15 minutes.
    fn ask(places: &mut Places, job: &Job, since: u64, now: u64, limit: usize) -> Turn {
        let invocation = format!("{}-{now}", job.digest);
        let ends_at = Timestamp(now + 900);
        let request = PlaceRequest { job, since: Timestamp(since), invocation: &invocation, ends_at, limit };
        places.ask(&request, Timestamp(now))
    }

    #[test]
    fn no_more_fills_get_a_place_than_their_upstream_may_have_and_a_killed_invocation_keeps_none() {
        let mut places = Places::default();
        let jobs: Vec<Job> = (0..9).map(|number| job(number, Priority::Prefetch)).collect();
        let turns: Vec<Turn> = jobs.iter().map(|job| ask(&mut places, job, 1000, 1000, 2)).collect();
        assert_eq!(turns[..2], [Turn::Now; 2]);
        assert_eq!(turns[2..4], [Turn::After(SOON); 2], "the next ones are noted");
        assert!(turns[4..].iter().all(|turn| *turn == Turn::After(PAUSES[0])), "{turns:?}");
        assert_eq!((places.taken.len(), places.waiting.len()), (2, 2));
        assert_eq!(ask(&mut places, &jobs[8], 1000, 1899, 2), Turn::After(SOON), "the others have not come back");
        assert_eq!(ask(&mut places, &jobs[8], 1000, 1900, 2), Turn::Now);
        assert_eq!(places.taken.len(), 1);
    }

    #[test]
    fn a_place_that_is_given_back_is_for_the_fill_that_waits_longest() {
        let mut places = Places::default();
        let [running, first, second, client] =
            [0, 1, 2, 3].map(|number| job(number, if number == 3 { Priority::Interactive } else { Priority::Refresh }));
        assert_eq!(ask(&mut places, &running, 1000, 1000, 1), Turn::Now);
        assert_eq!(ask(&mut places, &second, 1020, 1020, 1), Turn::After(SOON));
        assert_eq!(ask(&mut places, &first, 1010, 1030, 1), Turn::After(SOON), "it displaces one that came later");
        places.taken.clear();
        assert_eq!(ask(&mut places, &second, 1020, 1030, 1), Turn::After(PAUSES[0]));
        assert_eq!(ask(&mut places, &client, 1031, 1031, 1), Turn::Now, "a client's has waited five minutes longer");
        places.taken.clear();
        assert_eq!(ask(&mut places, &first, 1010, 1032, 1), Turn::Now);
        places.taken.clear();
        assert_eq!(ask(&mut places, &second, 1020, 1033, 1), Turn::Now);
        assert_eq!(ask(&mut places, &client, 1000, 1300, 1), Turn::After(SOON));
        let late = job(4, Priority::Prefetch);
        assert_eq!(ask(&mut places, &late, 1380, 1400, 1), Turn::After(SOON), "the client's has not come back");
    }

    /// New fills come faster than any can be worked off, and ask before the old ones: still each old one gets its turn.
    #[test]
    fn no_fill_waits_for_ever_however_many_come() {
        let (mut places, limit) = (Places::default(), 2);
        let old: Vec<Job> = (0..10).map(|number| job(number, Priority::Prefetch)).collect();
        let mut asks_at: BTreeMap<usize, u64> = (0..old.len()).map(|number| (number, 1000)).collect();
        let mut running: Vec<(String, u64)> = Vec::new();
        let mut now = 1000;
        while !asks_at.is_empty() {
            assert!(now < 1400, "{asks_at:?} still wait");
            running.retain(|(invocation, until)| {
                if *until <= now {
                    places.taken.remove(invocation);
                }
                now < *until
            });
            let newer = job(now, Priority::Prefetch);
            if ask(&mut places, &newer, now, now, limit) == Turn::Now {
                running.push((format!("{}-{now}", newer.digest), now + 10));
            }
            for (number, job) in old.iter().enumerate() {
                if asks_at.get(&number).is_none_or(|at| now < *at) {
                    continue;
                }
                match ask(&mut places, job, 1000, now, limit) {
                    Turn::Now => {
                        asks_at.remove(&number);
                        running.push((format!("{}-{now}", job.digest), now + 10));
                    }
                    Turn::After(pause) => _ = asks_at.insert(number, now + pause.as_secs()),
                }
            }
            assert!(places.taken.len() <= limit && places.waiting.len() <= limit);
            now += 1;
        }
    }
}
