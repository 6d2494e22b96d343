//! One copy of what many routes of a table have in common.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use foldhash::fast::RandomState;

use crate::access::{Access, AccessError};
use crate::matcher::{HeaderRules, Upstream};
use crate::spec::{AccessSpec, HeadersSpec, UpstreamSpec};
use crate::status::Problem;

/// Texts and parts seen so far. Lives as long as a table is being loaded.
#[derive(Default)]
pub(crate) struct Interner<'t> {
    texts: HashSet<Arc<str>, RandomState>,
    access: HashMap<&'t AccessSpec, Arc<Access>, RandomState>,
    headers: HashMap<&'t HeadersSpec, HeaderRules, RandomState>,
    upstreams: HashMap<&'t UpstreamSpec, Upstream, RandomState>,
}

impl<'t> Interner<'t> {
    /// With room for so many texts: growing would hash all of them again.
    pub(super) fn with_capacity(texts: usize) -> Self {
        Self {
            texts: HashSet::with_capacity_and_hasher(texts, RandomState::default()),
            ..Self::default()
        }
    }

    pub(super) fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return Arc::clone(known);
        }
        let text: Arc<str> = text.into();
        self.texts.insert(Arc::clone(&text));
        text
    }

    pub(super) fn access(&mut self, spec: &'t AccessSpec) -> Result<Arc<Access>, AccessError> {
        if let Some(known) = self.access.get(spec) {
            return Ok(Arc::clone(known));
        }
        let access = Arc::new(Access::compile(spec)?);
        self.access.insert(spec, Arc::clone(&access));
        Ok(access)
    }

    pub(super) fn headers(
        &mut self,
        spec: &'t HeadersSpec,
        parse: impl FnOnce(&HeadersSpec) -> Result<HeaderRules, Problem>,
    ) -> Result<HeaderRules, Problem> {
        if let Some(known) = self.headers.get(spec) {
            return Ok(known.clone());
        }
        let rules = parse(spec)?;
        self.headers.insert(spec, rules.clone());
        Ok(rules)
    }

    pub(super) fn upstream(
        &mut self,
        spec: &'t UpstreamSpec,
        parse: impl FnOnce(&'t UpstreamSpec, &mut Self) -> Result<Upstream, Problem>,
    ) -> Result<Upstream, Problem> {
        if let Some(known) = self.upstreams.get(spec) {
            return Ok(known.clone());
        }
        let upstream = parse(spec, self)?;
        self.upstreams.insert(spec, upstream.clone());
        Ok(upstream)
    }
}
