//! The `stopover` program itself, as users, operators, clients and accidents meet it.

mod access;
mod browser;
mod crash;
mod doctor;
mod documents;
mod listed;
mod logins;
mod memory;
mod policy;
mod program;
mod setup;
mod targets;
