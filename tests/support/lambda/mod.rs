//! Lambda without Lambda: real function binaries, fed as the service would feed them.
//!
//! [`Function`] is a sandbox: one process behind the Runtime API. [`HttpFront`] is API Gateway (HTTP API, payload 2.0), or
//! a load balancer, in front of some of them, [`EventSource`] the event source mapping of an SQS queue.
//! No response streaming, no extensions, no function URLs.

mod event_source;
mod function;
mod http_front;
mod lineage;
mod load_balancer;
mod payload;
mod runtime_api;

use std::fmt;

pub use self::{
    event_source::EventSource,
    function::Function,
    http_front::HttpFront,
    lineage::{RecursiveLoop, trace_of},
    payload::{HeadLength, Kind, Manner, Paths},
};

const REGION: &str = "us-east-1";
const ACCOUNT: &str = "000000000000";

/// Why an invocation has no answer.
#[derive(Debug)]
pub struct FunctionError {
    /// As Lambda reports it: the function's own `errorType`, or `Runtime.ExitError`, `Sandbox.Timedout`,
    /// `Function.ResponseSizeTooLarge`, `RequestEntityTooLarge`.
    pub kind: String,
    /// What happened, in words.
    pub message: String,
    /// False when Lambda would have refused the request without running the function.
    pub(crate) invoked: bool,
}

impl FunctionError {
    fn new(kind: &str, message: impl Into<String>) -> Self {
        Self { kind: kind.to_owned(), message: message.into(), invoked: true }
    }
}

impl fmt::Display for FunctionError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.kind, self.message)
    }
}

impl std::error::Error for FunctionError {}
