//! One record of each decision: who wanted what, which rule has decided it, and what that cost. Denials and private
//! content are INFO, the rest is DEBUG. Of what a client or an upstream wrote, only what was parsed into a type is
//! logged.

use std::borrow::Cow;
use std::net::IpAddr;

use axum::extract::MatchedPath;
use axum::response::Response;
use http::Method;
use http::header::CONTENT_LENGTH;
use http::request::Parts;

use super::source;
use crate::access::ClaimedIdentity;
use crate::errors::{AccessError, PullError};
use crate::identity::Principal;
use crate::identity::policy::Decision;
use crate::oci::Repository;
use crate::values::pull_counter::PullCounter;
use crate::values::served::Served;

/// A record that is not written yet: what is known of the request so far.
#[derive(Default)]
pub(super) struct Record {
    pub(super) principal: Option<Principal>,
    /// The identity that a refused caller has claimed.
    pub(super) login: Option<ClaimedIdentity>,
    pub(super) address: Option<IpAddr>,
    decided: Option<Decided>,
    /// How the answer came about, if it is one about content.
    pub(super) served: Option<Served>,
    /// How many bytes of a blob a redirect leads to: those of the range that was asked for.
    pub(super) redirected: Option<u64>,
    /// The route of an operator's request.
    endpoint: Option<MatchedPath>,
    /// Whether the caller is an operator.
    pub(super) by_operator: bool,
    /// Counts the manifests that upstream has sent for the request.
    pub(super) spent: PullCounter,
}

struct Decided {
    repository: Repository,
    private: bool,
    allowed: bool,
    rule: Cow<'static, str>,
}

impl Record {
    /// The record of a caller that is identified already.
    pub(super) fn of(principal: Option<Principal>, address: Option<IpAddr>) -> Self {
        Self { principal, address, ..Self::default() }
    }

    /// The record of a request to the operators' API.
    pub(super) fn of_operation(parts: &Parts) -> Self {
        let endpoint = parts.extensions.get::<MatchedPath>().cloned();
        Self { address: source(parts).address, endpoint, ..Self::default() }
    }

    /// The repository that was asked for, once the policy has decided.
    pub(super) fn repository(&self) -> Option<&Repository> {
        self.decided.as_ref().map(|decided| &decided.repository)
    }

    /// Notes the decision of the policy.
    pub(super) fn decided(&mut self, repository: &Repository, private: bool, decision: &Decision<'_>) {
        let (repository, rule) = (repository.clone(), decision.name());
        self.decided = Some(Decided { repository, private, allowed: decision.allowed(), rule });
    }

    /// How many bytes of content the client gets, here or where it is redirected to.
    pub(super) fn bytes(&self, method: &Method, response: &Response) -> u64 {
        let length = || response.headers().get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok();
        let whole = *method == Method::GET && response.status().is_success();
        self.redirected.or_else(|| whole.then(length)?).unwrap_or(0)
    }

    /// Writes the record of a pull, unless the pull failed before there was anything to decide.
    pub(super) fn pulled(&self, method: &Method, response: &Response, error: Option<&PullError>) {
        self.write("pull", error, Some((method, response)));
    }

    /// Writes the record of an image in a prefetch request.
    pub(super) fn prefetched(&self, error: Option<&PullError>) {
        self.write("prefetch", error, None);
    }

    /// Writes the record of a login.
    pub(super) fn logged_in(&self, error: Option<&PullError>) {
        self.write("login", error, None);
    }

    /// Writes the record of a request to the operators' API.
    pub(super) fn operated(&self, error: Option<&PullError>) {
        self.write("operate", error, None);
    }

    fn write(&self, action: &'static str, error: Option<&PullError>, answer: Option<(&Method, &Response)>) {
        let refused = match error {
            Some(
                PullError::Access(_)
                | PullError::Forbidden { .. }
                | PullError::NotAllowed { .. }
                | PullError::TooLarge { .. }
                | PullError::OverBudget(_),
            ) => error,
            _ => None,
        };
        // Without a decision, a pull failed before there was anything to decide, and so did any other request that
        // failed.
        let is_pull = matches!(action, "pull" | "prefetch");
        if self.decided.is_none() && refused.is_none() && (is_pull || error.is_some()) {
            return;
        }
        let (repository, rule) = match (&self.decided, error) {
            (Some(decided), _) => (Some(&decided.repository), Some(decided.rule.as_ref())),
            (None, Some(PullError::NotAllowed { repository, key })) => (Some(repository), Some(key.as_str())),
            _ => (None, self.by_operator.then_some("operator")),
        };
        let private = self.decided.as_ref().is_some_and(|decided| decided.private);
        let allowed = refused.is_none() && self.decided.as_ref().is_none_or(|decided| decided.allowed);
        // Every client tries without credentials first.
        let asked_to_log_in = matches!(error, Some(PullError::Access(AccessError::NoCredentials)));
        let because = match error {
            Some(PullError::Access(error)) => error.because(),
            _ => None,
        };
        macro_rules! record {
            ($level:ident) => {
                tracing::$level!(
                    target: "stopover::audit",
                    action,
                    principal = self.principal.as_ref().map(tracing::field::display),
                    login = self.login.as_ref().map(tracing::field::display),
                    caller = self.address.map(tracing::field::display),
                    endpoint = self.endpoint.as_ref().map(MatchedPath::as_str),
                    repository = repository.map(tracing::field::display),
                    private,
                    allowed,
                    rule,
                    status = answer.map(|(_, response)| response.status().as_u16()),
                    served = self.served.map(Served::as_str),
                    bytes = answer.map(|(method, response)| self.bytes(method, response)),
                    upstream_pulls = self.spent.manifests(),
                    because,
                    reason = refused.map(tracing::field::display),
                    "decided"
                )
            };
        }
        if (private || !allowed) && !asked_to_log_in { record!(info) } else { record!(debug) }
    }
}
