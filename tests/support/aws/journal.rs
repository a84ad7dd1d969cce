//! What the endpoints were asked, and what they were told to refuse.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// One of the services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// The ledger's table.
    DynamoDb,
    /// The bucket of blobs.
    S3,
    /// The queue of fills and its dead-letter queue.
    Sqs,
    /// Logins to registries of Amazon.
    Ecr,
    /// Secrets Manager.
    Secrets,
    /// The Parameter Store.
    Parameters,
    /// Which accounts belong together.
    Organizations,
}

/// How an injected fault answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// 500: `InternalServerError`, `InternalError` or `InternalFailure`, as the service calls it.
    Internal,
    /// `ProvisionedThroughputExceededException`, `SlowDown` or `RequestThrottled`.
    Throttled,
}

/// Stands for any operation when a fault is injected.
pub const EVERY_OPERATION: &str = "*";

struct Fault {
    service: Service,
    operation: String,
    failure: Failure,
    remaining: usize,
}

#[derive(Default)]
struct Entries {
    calls: Vec<(Service, String)>,
    faults: VecDeque<Fault>,
    /// How many more parts S3 answers.
    parts: Option<usize>,
}

/// The request log and the fault hook, shared by the services.
#[derive(Default)]
pub(super) struct Journal(Mutex<Entries>);

impl Journal {
    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs a call; `Some` when it must be refused.
    pub(super) fn record(&self, service: Service, operation: &str) -> Option<Failure> {
        let mut entries = self.entries();
        entries.calls.push((service, operation.to_owned()));
        let at = entries.faults.iter().position(|fault| {
            fault.service == service && (fault.operation == EVERY_OPERATION || fault.operation == operation)
        })?;
        let fault = &mut entries.faults[at];
        let failure = fault.failure;
        fault.remaining = fault.remaining.saturating_sub(1);
        if fault.remaining == 0 {
            entries.faults.remove(at);
        }
        Some(failure)
    }

    pub(super) fn fail_next(&self, service: Service, operation: &str, failure: Failure, count: usize) {
        if count > 0 {
            self.entries().faults.push_back(Fault {
                service,
                operation: operation.to_owned(),
                failure,
                remaining: count,
            });
        }
    }

    pub(super) fn heal(&self) {
        let mut entries = self.entries();
        entries.faults.clear();
        entries.parts = None;
    }

    pub(super) fn answer_parts(&self, count: usize) {
        self.entries().parts = Some(count);
    }

    /// Whether S3 takes a part and says nothing.
    pub(super) fn ignores_part(&self) -> bool {
        let mut entries = self.entries();
        let ignored = entries.parts == Some(0);
        entries.parts = entries.parts.map(|left| left.saturating_sub(1));
        ignored
    }

    /// The operations of every call so far, in order.
    pub(super) fn operations(&self) -> Vec<String> {
        self.entries().calls.iter().map(|(_, operation)| operation.clone()).collect()
    }

    pub(super) fn calls(&self, service: Service, operation: &str) -> usize {
        let entries = self.entries();
        entries
            .calls
            .iter()
            .filter(|(of, name)| *of == service && (operation == EVERY_OPERATION || name == operation))
            .count()
    }
}
