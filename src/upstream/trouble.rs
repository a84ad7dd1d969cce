//! Whose trouble is it? What fails is left alone by itself for a while. The upstream as a whole is left alone only if
//! its `/v2/` fails too: what one caller can have it fail at takes nothing away from the others.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::{Method, StatusCode};
use quick_cache::sync::Cache as MemoryCache;
use tokio::time::Instant;

use super::answer::{limited, timed};
use super::{Result, Upstream};
use crate::errors::{Limit, UpstreamError};
use crate::oci::Name;
use crate::records::gauge::{Break, Gauge, Kind, Outcome, Permit, Scope};
use crate::values::time::Clock;

/// How long `/v2/` may take to answer, so that a client that waits for something known still gets that in time.
const PING_TIMEOUT: Duration = Duration::from_secs(3);
/// The most questions and repositories whose trouble is remembered. What is forgotten is asked again.
const REMEMBERED: usize = 10_000;

/// What trouble is about.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Subject {
    Question(Kind, Name, String),
    Repository(Name),
}

/// The trouble of one account at an upstream. Each process has its own.
pub(super) struct Troubles {
    clock: Clock,
    of: MemoryCache<Subject, Gauge>,
    /// When a question that upstream answered last was sent.
    answered: Mutex<Option<Instant>>,
    /// Held by the request that asks `/v2/`: the others use what it learns.
    pinging: tokio::sync::Mutex<()>,
}

impl Troubles {
    pub(super) fn new(clock: Clock) -> Self {
        let (of, answered, pinging) = (MemoryCache::new(REMEMBERED), Mutex::default(), tokio::sync::Mutex::default());
        Self { clock, of, answered, pinging }
    }

    /// The breaker that is open for this subject. After a pause one request probes.
    fn closed(&self, subject: &Subject) -> Option<Break> {
        match self.of.get(subject)?.permit(Kind::Head, self.clock.now()) {
            Permit::Go => None,
            Permit::Probe(probing) => {
                self.of.insert(subject.clone(), probing);
                None
            }
            Permit::Closed(broken) => Some(broken),
        }
    }

    fn note(&self, subject: &Subject, outcome: &Outcome) {
        let before = self.of.get(subject).unwrap_or_default();
        self.of.insert(subject.clone(), before.after(Kind::Head, outcome, self.clock.now()));
    }

    fn note_answered(&self) {
        *self.answered.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn answered_since(&self, begun: Instant) -> bool {
        self.answered.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|at| at >= begun)
    }
}

impl Upstream {
    /// Runs a request about `what` of a repository if no breaker is open for that, and notes how it ended.
    pub(super) async fn metered<T>(
        &self,
        kind: Kind,
        name: &Name,
        what: impl std::fmt::Display,
        question: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let (meter, troubles) = (&self.account.meter, &self.account.troubles);
        let subjects = [Subject::Question(kind, name.clone(), what.to_string()), Subject::Repository(name.clone())];
        let [of_question, of_repository] = &subjects;
        if let Some(broken) = subjects.iter().find_map(|subject| troubles.closed(subject)) {
            return Err(meter.closed(&broken, self.clock.now()));
        }
        let probes = meter.permit(kind).await?;
        let begun = Instant::now();
        let result = question.await;
        let (outcome, quota) = (Outcome::of(&result), self.account.take_quota());
        match outcome.scope() {
            Scope::Upstream => {
                if outcome == Outcome::Answered {
                    troubles.note_answered();
                    for subject in &subjects {
                        troubles.of.remove(subject);
                    }
                }
                meter.note(kind, &outcome, quota).await;
            }
            scope => {
                troubles.note(if scope == Scope::Question { of_question } else { of_repository }, &outcome);
                if matches!(result, Err(UpstreamError::Elsewhere { .. })) {
                    troubles.note_answered();
                }
                let _alone = troubles.pinging.lock().await;
                if probes || !(troubles.answered_since(begun) || meter.open_breaker(Kind::Head).is_some()) {
                    // Not of the kind that was asked: an answer of `/v2/` says nothing of the quota.
                    meter.note(Kind::Head, &Box::pin(self.ping()).await, quota).await;
                }
            }
        }
        result.map_err(|error| meter.explained(error))
    }

    /// What `/v2/` says of the upstream as a whole. That it wants a login is an answer like any other.
    async fn ping(&self) -> Outcome {
        let mut url = self.config().url.clone();
        url.set_path("/v2/");
        let asked = async {
            let ping = self.clients.send(reqwest::Request::new(Method::GET, url), self.config());
            let response = timed(PING_TIMEOUT, ping).await?;
            match response.status() {
                StatusCode::TOO_MANY_REQUESTS => Err(limited(response, Some(Limit::Requests), self.clock.now()).await),
                status if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT => {
                    Err(UpstreamError::failed(format!("its /v2/ answered {status}")))
                }
                _ => Ok(()),
            }
        };
        let outcome = Outcome::of(&asked.await);
        if outcome == Outcome::Answered {
            self.account.troubles.note_answered();
        }
        tracing::debug!(upstream.id = %self.id(), ?outcome, "asked whether the whole upstream is in trouble");
        outcome
    }
}
