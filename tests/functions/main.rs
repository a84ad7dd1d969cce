//! The function binaries, end to end: clients at the gateway, the queue between the functions, the strict endpoints behind
//! them. `make package` runs the same tests with what a deployment uploads.

mod access;
mod budgets;
mod certificates;
mod chains;
mod configuration;
mod counts;
mod deadline;
mod deployment;
mod fills;
mod frozen;
mod gateways;
mod large;
mod logs;
mod policies;
mod pulls;
mod refusals;
mod roles;
mod secrets;
mod sweeps;
