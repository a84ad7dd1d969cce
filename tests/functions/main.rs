//! The function binaries of `make build`, end to end: clients at the gateway, the queue between the functions, the
//! strict endpoints behind them.

mod access;
mod deployment;
mod fills;
mod large;
mod logs;
mod pulls;
mod refusals;
