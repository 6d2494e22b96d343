//! `nexus-sidecar check`: says what is wrong with route files, for people and for scripts.

use std::io::{self, Write};
use std::path::PathBuf;

use crate::manifest::problem::{Problem, Severity};
use crate::manifest::{self, Contents, Failure, Manifests};

/// Nothing is wrong; there may be warnings.
pub const OK: u8 = 0;
/// A file is wrong.
pub const WRONG: u8 = 1;
/// A path cannot be read.
pub const UNREADABLE: u8 = 2;

/// Judges files and directories as one set, so that a NexusProvider may be in one and its routes in another. Prints a
/// line per problem, then a summary. The result is the exit code.
pub fn run(paths: &[PathBuf], out: &mut impl Write) -> io::Result<u8> {
    let (mut problems, mut objects) = (Vec::new(), Vec::new());
    let (mut routes, mut unreadable) = (0, false);
    for path in paths {
        match manifest::read(path) {
            Ok(Contents::Table(table)) => match manifest::verify(path, &table) {
                Ok(count) => routes += count,
                Err(problem) => problems.push(problem),
            },
            Ok(Contents::Objects(found)) => objects.extend(found),
            Err(failure) => {
                unreadable |= !matches!(failure, Failure::Invalid(_));
                problems.extend_from_slice(failure.problems());
            }
        }
    }
    match Manifests::new(objects) {
        Ok(manifests) => {
            routes += manifests.routes.len();
            problems.extend(manifests.compile().1);
        }
        Err(failure) => problems.extend_from_slice(failure.problems()),
    }
    report(&problems, routes, unreadable, out)
}

fn report(
    problems: &[Problem],
    routes: usize,
    unreadable: bool,
    out: &mut impl Write,
) -> io::Result<u8> {
    for problem in problems {
        writeln!(out, "{problem}")?;
    }
    let errors = problems
        .iter()
        .filter(|problem| problem.severity == Severity::Error)
        .count();
    let warnings = problems.len() - errors;
    writeln!(
        out,
        "{}, {}, {}",
        counted(routes, "route"),
        counted(errors, "error"),
        counted(warnings, "warning")
    )?;
    Ok(match (unreadable, errors) {
        (true, _) => UNREADABLE,
        (false, 0) => OK,
        (false, _) => WRONG,
    })
}

fn counted(count: usize, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}
