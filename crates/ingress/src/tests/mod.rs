//! The controller without a cluster: objects in, a table and real connections out, small servers behind.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod annotations;
mod bad_input;
mod clients;
mod conformance;
mod controller;
mod ends;
mod harness;
mod protocols;
mod settings;
mod table;
