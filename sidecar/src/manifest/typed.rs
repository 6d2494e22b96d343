//! Manifests by type, and what the compiler says about them in terms of files and lines.

use std::collections::HashSet;
use std::path::Path;

use nexus_crds::compile::{DEFAULT_NAMESPACE, compile};
use nexus_crds::grants::Grants;
use nexus_crds::provider::NexusProvider;
use nexus_crds::route::NexusRoute;
use nexus_crds::status::{self, Verdict};
use nexus_crds::table::RouteTable;

use super::objects::{Kind, Object};
use super::problem::{Problem, Severity};
use super::{Failure, Loaded};

/// Manifests by type, each with where it stands.
#[derive(Default)]
pub(crate) struct Manifests {
    pub(crate) routes: Vec<NexusRoute>,
    pub(crate) route_objects: Vec<Object>,
    pub(crate) providers: Vec<NexusProvider>,
    provider_objects: Vec<Object>,
    /// Errors of the objects that are not here.
    problems: Vec<Problem>,
    /// A NexusProvider is not here, so that its routes cannot be judged.
    provider_missing: bool,
}

impl Manifests {
    /// Gives objects their types. Errors are kept for [`Self::compile`].
    pub(crate) fn new(objects: Vec<Object>) -> Self {
        let mut this = Self::default();
        let mut names = HashSet::new();
        for object in objects {
            if !names.insert(object.identity()) {
                let message = "an earlier document has the same kind, namespace and name";
                this.problems.push(object.error("metadata.name", message));
                continue;
            }
            if let Err(problem) = this.add(object) {
                this.problems.push(problem);
            }
        }
        this
    }

    fn add(&mut self, object: Object) -> Result<(), Problem> {
        match object.kind {
            Kind::Route => {
                let mut route: NexusRoute = object.typed()?;
                let namespace = &mut route.metadata.namespace;
                namespace.get_or_insert_with(|| DEFAULT_NAMESPACE.to_owned());
                self.routes.push(route);
                self.route_objects.push(object);
            }
            Kind::Provider => {
                let provider = object.typed();
                self.provider_missing |= provider.is_err();
                self.providers.push(provider?);
                self.provider_objects.push(object);
            }
        }
        Ok(())
    }

    /// Compiles. The problems are in the order of the files, and without errors the tables can be served.
    pub(crate) fn compile(&self) -> (Vec<RouteTable>, Vec<Problem>) {
        let mut problems = self.problems.clone();
        if self.provider_missing {
            return (Vec::new(), problems);
        }
        let compiled = compile(&self.routes, &self.providers, &Grants::Local);
        let judged = compiled.verdicts.iter();
        problems.extend(judged.flat_map(|verdict| self.located(verdict)));
        problems.sort_by(|a, b| (&a.file, a.position).cmp(&(&b.file, b.position)));
        (compiled.tables.into_values().collect(), problems)
    }

    fn located(&self, verdict: &Verdict) -> Vec<Problem> {
        let objects = match verdict.kind {
            status::Kind::Route => &self.route_objects,
            status::Kind::Provider => &self.provider_objects,
        };
        let Some(object) = objects.get(verdict.index) else {
            return Vec::new();
        };
        let refusal = verdict.result.as_ref().err();
        let refusal =
            refusal.map(|it| object.error(&it.field, format!("{} ({})", it.message, it.reason)));
        let warnings = verdict.warnings.iter();
        let warnings = warnings.map(|it| object.warning(&it.field, it.message.as_str()));
        refusal.into_iter().chain(warnings).collect()
    }

    /// The one table of a sidecar. `path` is named where no single file is at fault.
    pub(crate) fn into_loaded(self, path: &Path) -> Result<Loaded, Failure> {
        let (mut tables, mut problems) = self.compile();
        problems.extend(self.second_namespace());
        let wrong = problems.iter().any(|it| it.severity == Severity::Error);
        match tables.pop() {
            Some(table) if !wrong => Ok(Loaded {
                table,
                warnings: problems,
            }),
            Some(_) => Err(Failure::Invalid(problems)),
            None => {
                if !wrong {
                    let message = "no NexusRoute; there is nothing to serve";
                    problems.push(Problem::error(path, message));
                }
                Err(Failure::Invalid(problems))
            }
        }
    }

    fn second_namespace(&self) -> Option<Problem> {
        let first = self.routes.first()?.metadata.namespace.as_deref()?;
        let other = |route: &NexusRoute| route.metadata.namespace.as_deref() != Some(first);
        let index = self.routes.iter().position(other)?;
        let message = format!("a sidecar serves one namespace, and earlier routes are of {first}");
        let object = self.route_objects.get(index)?;
        Some(object.error("metadata.namespace", message))
    }
}
