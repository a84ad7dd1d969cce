//! The adapters of storage on what they keep the contract with, and how strict the stand-ins for AWS are.

mod endpoints;
mod ports;
