//! What Stopover promises, on both columns. README's data path names these tests.

mod alternates;
mod artifacts;
mod conformance;
mod documents;
mod ecr;
mod fills;
mod large;
mod listing;
mod login_fuzz;
mod logins;
mod model;
mod oddities;
mod order;
mod outages;
mod prefetch;
mod pulls;
mod quota;
mod referrers;
mod requests;
mod retention;
mod retention_model;
mod rules;
mod security;
mod single_flight;
mod tags;
mod upstream_trouble;
