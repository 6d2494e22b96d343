//! Access rules: which requests a route lets through.
//!
//! Comes in as an [`AccessSpec`], goes out as an answer per request. A pattern is a full upstream path, base path
//! included. Everything here errs towards refusing: an allow rule must match whatever a server might read, a deny
//! rule needs to match only one such reading.

mod pattern;
mod query;
mod rule;

use std::borrow::Cow;

use http::{HeaderMap, Method};

use crate::access::pattern::PathReading;
use crate::access::rule::{Effect, Rule};
use crate::path;
use crate::spec::{AccessMode, AccessSpec};

/// The compiled rules of one route. Glob sets are built at first use and shared by equal rule sets.
#[derive(Debug)]
pub struct Access {
    /// Rules only count and log what they would refuse.
    pub warn_only: bool,
    /// `None` allows everything that is not denied.
    allow: Option<Box<[Rule]>>,
    deny: Box<[Rule]>,
}

/// What the rules look at.
#[derive(Clone, Copy, Debug)]
pub struct AccessRequest<'a> {
    /// Request method.
    pub method: &'a Method,
    /// Full upstream path (base path included), as it is sent.
    pub path: &'a str,
    /// Raw query without `?`.
    pub query: Option<&'a str>,
    /// The agent's headers.
    pub headers: &'a HeaderMap,
}

/// Why a rule set cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct AccessError {
    /// Where in the `access` section, e.g. `deny[0].paths[2]`.
    pub field: String,
    /// What is wrong and what to do.
    pub reason: String,
}

impl Access {
    /// Compiles a rule set. Glob sets are left to their first use; see [`Access::build`].
    pub fn compile(spec: &AccessSpec) -> Result<Self, AccessError> {
        let AccessSpec {
            mode,
            allow,
            deny,
            paths_ignore_case,
        } = spec;
        if allow.as_ref().is_some_and(Vec::is_empty) {
            return Err(AccessError {
                field: "allow".to_owned(),
                reason: "is empty; leave it out to allow everything".to_owned(),
            });
        }
        let ignore_case = paths_ignore_case.unwrap_or(false);
        let rules = |effect, specs: &[_]| {
            specs
                .iter()
                .enumerate()
                .map(|(index, spec)| Rule::compile(effect, index, spec, ignore_case))
                .collect::<Result<Box<[_]>, _>>()
        };
        Ok(Self {
            warn_only: mode.unwrap_or_default() == AccessMode::Warn,
            allow: allow
                .as_deref()
                .map(|allow| rules(Effect::Allow, allow))
                .transpose()?,
            deny: rules(Effect::Deny, deny.as_deref().unwrap_or_default())?,
        })
    }

    /// Builds every glob set, so that one too large to build is an error before it is used.
    pub fn build(&self) -> Result<(), AccessError> {
        let mut rules = self.allow.iter().flatten().chain(&self.deny);
        rules.try_for_each(Rule::build)
    }

    /// `true` if the request is allowed: some allow rule (if there are any) matches every reading of the
    /// path, and no deny rule matches any reading.
    pub fn allows(&self, request: &AccessRequest<'_>) -> bool {
        if path::is_plain(request.path) {
            return self.allows_reading(request, request.path);
        }
        path::readings(request.path)
            .iter()
            .map(Cow::as_ref)
            .all(|reading| self.allows_reading(request, reading))
    }

    fn allows_reading(&self, request: &AccessRequest<'_>, path: &str) -> bool {
        let path = &PathReading::new(path);
        let allowed = self
            .allow
            .as_ref()
            .is_none_or(|allow| allow.iter().any(|rule| rule.matches(request, path)));
        allowed && !self.deny.iter().any(|rule| rule.matches(request, path))
    }
}

#[cfg(test)]
mod tests;
