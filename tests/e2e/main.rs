//! The whole of it on a cluster with pods that run: the chart installed with helm, a gateway and an HTTPS upstream as
//! pods, and agents that are Python scripts.
//!
//! `cargo xtask e2e` brings the cluster and the images and runs this. Without them every test counts as ignored.
//! Tests that stop or replace what all of them use run after the others, one by one.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking, and prints what it measured"
)]

mod access;
mod agents;
mod charts;
mod examples;
mod lab;
mod lifecycle;
mod load;
mod outages;
mod redteam;
mod routes;
mod team;
mod upgrades;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

/// Tests at a time, unless told otherwise: they mostly wait for the cluster.
const TOGETHER: usize = 4;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    if lab::older().is_some() {
        return upgrade_from_older(&arguments);
    }
    if lab::is_there() && !arguments.list {
        lab::set_up();
        examples::install();
        team::grant();
    }
    // The longest first.
    let mut together = Vec::new();
    routes::tests(&mut together);
    redteam::tests(&mut together);
    access::tests(&mut together);
    agents::tests(&mut together);
    examples::tests(&mut together);
    lifecycle::tests(&mut together);
    let side_by_side = Arguments {
        test_threads: arguments.test_threads.or(Some(TOGETHER)),
        ..arguments.clone()
    };
    let first = libtest_mimic::run(&side_by_side, together);

    let mut alone = Vec::new();
    outages::tests(&mut alone);
    upgrades::tests(&mut alone);
    access::tests_alone(&mut alone);
    examples::tests_alone(&mut alone);
    charts::tests(&mut alone);
    let one_by_one = Arguments {
        test_threads: Some(1),
        ..arguments
    };
    let list = one_by_one.list;
    let second = libtest_mimic::run(&one_by_one, alone);
    if first.has_failed() {
        return first.exit_code();
    }
    // What is there after a failure tells why.
    if lab::is_there() && !list && !second.has_failed() {
        lab::clear_given();
    }
    second.exit_code()
}

/// Only the upgrade from an earlier revision, which is installed instead.
fn upgrade_from_older(arguments: &Arguments) -> ExitCode {
    if !arguments.list {
        lab::set_up();
        upgrades::install_older();
        team::grant();
    }
    let mut tests = Vec::new();
    upgrades::tests_of_older(&mut tests);
    libtest_mimic::run(arguments, tests).exit_code()
}

/// A test, which needs a cluster.
fn test(name: &str, body: fn()) -> Trial {
    let body = move || {
        body();
        Ok(())
    };
    Trial::test(name, body).with_ignored_flag(!lab::is_there())
}
