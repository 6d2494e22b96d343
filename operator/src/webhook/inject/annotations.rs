//! What the owner of a pod asks for: its annotations `nexus.io/*`, checked one by one.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use nexus_crds::names::{
    ADMITTED_ANNOTATION, CONNECTIONS_ANNOTATION, INJECT_ANNOTATION, PREFIX, TENANTS_ANNOTATION,
    is_provider, is_tenant,
};

use super::config::{self, InjectConfig};
use super::environment::SIDECAR_URL;
use super::findings::Findings;
use super::quantity::Quantity;

pub(super) const PORT: &str = "nexus.io/sidecar-port";
pub(super) const LOG_LEVEL: &str = "nexus.io/sidecar-log-level";
pub(super) const READINESS: &str = "nexus.io/sidecar-readiness";
pub(super) const CPU_REQUEST: &str = "nexus.io/sidecar-cpu-request";
pub(super) const CPU_LIMIT: &str = "nexus.io/sidecar-cpu-limit";
pub(super) const MEMORY_REQUEST: &str = "nexus.io/sidecar-memory-request";
pub(super) const MEMORY_LIMIT: &str = "nexus.io/sidecar-memory-limit";
pub(super) const BASE_URL_ENV: &str = "nexus.io/base-url-env";
pub(super) const PLACEHOLDER_ENV: &str = "nexus.io/placeholder-env";

const KNOWN: [&str; 12] = [
    INJECT_ANNOTATION,
    TENANTS_ANNOTATION,
    ADMITTED_ANNOTATION,
    PORT,
    LOG_LEVEL,
    READINESS,
    CPU_REQUEST,
    CPU_LIMIT,
    MEMORY_REQUEST,
    MEMORY_LIMIT,
    BASE_URL_ENV,
    PLACEHOLDER_ENV,
];

/// The first port that a container without capabilities may bind.
const UNPRIVILEGED: u16 = 1024;

/// Variables that one annotation may name. Each is set in every container, and looked for among its own.
const MAX_VARIABLES: usize = 64;

/// What a pod asks for; absent is what the operator's flags say.
#[derive(Debug)]
pub(super) struct Wishes {
    /// Tenants that the pod may act for.
    pub(super) tenants: BTreeSet<String>,
    pub(super) port: u16,
    pub(super) log_level: String,
    pub(super) readiness: bool,
    pub(super) resources: ResourceWishes,
    pub(super) base_urls: Vec<BaseUrl>,
    /// Names of variables.
    pub(super) placeholders: Vec<String>,
}

/// Amounts that a pod asks for.
#[derive(Debug)]
pub(super) struct ResourceWishes {
    pub(super) cpu_request: Option<Quantity>,
    pub(super) cpu_limit: Option<Quantity>,
    pub(super) memory_request: Option<Quantity>,
    pub(super) memory_limit: Option<Quantity>,
}

/// A variable that holds an address of the sidecar.
#[derive(Debug)]
pub(super) struct BaseUrl {
    pub(super) variable: String,
    /// `provider[@tenant][/path]`.
    pub(super) target: String,
}

/// The annotations of a pod while they are read.
struct Reader<'a> {
    annotations: &'a BTreeMap<String, String>,
    findings: &'a mut Findings,
}

impl Wishes {
    /// Reads a pod's annotations. What is wrong is found, and read as absent.
    pub(super) fn read(
        annotations: &BTreeMap<String, String>,
        namespace: &ObjectMeta,
        namespace_name: &str,
        config: &InjectConfig,
        findings: &mut Findings,
    ) -> Self {
        let mut reader = Reader {
            annotations,
            findings,
        };
        reader.warn_of_unknown();
        let tenants = reader.tenants(namespace, namespace_name);
        let base_urls = reader.base_urls(&tenants);
        let placeholders = reader.placeholders(&base_urls);
        Self {
            port: reader.port(config.admin_port).unwrap_or(config.port),
            log_level: reader
                .parsed(LOG_LEVEL, config::log_level)
                .unwrap_or_else(|| config.log_level.clone()),
            readiness: reader.parsed(READINESS, flag).unwrap_or_default(),
            resources: reader.resources(),
            tenants,
            base_urls,
            placeholders,
        }
    }
}

impl Reader<'_> {
    fn parsed<T>(&mut self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let text = self.annotations.get(name)?.trim();
        match parse(text) {
            Ok(value) => Some(value),
            Err(why) => {
                self.refuse(name, why);
                None
            }
        }
    }

    fn refuse(&mut self, name: &str, why: impl std::fmt::Display) {
        self.findings.refuse(format_args!("annotation {name}"), why);
    }

    fn warn_of_unknown(&mut self) {
        for name in self.annotations.keys() {
            let why = match name.as_str() {
                CONNECTIONS_ANNOTATION => "belongs on the Namespace and means nothing on a pod",
                name if name.starts_with(PREFIX) && !KNOWN.contains(&name) => {
                    "is not known and means nothing; is it misspelt?"
                }
                _ => continue,
            };
            self.findings.warn(format_args!("annotation {name}"), why);
        }
    }

    fn tenants(&mut self, namespace: &ObjectMeta, namespace_name: &str) -> BTreeSet<String> {
        let Some(asked) = self.annotations.get(TENANTS_ANNOTATION) else {
            return BTreeSet::new();
        };
        let limit: Option<BTreeSet<&str>> = namespace
            .annotations
            .as_ref()
            .and_then(|annotations| annotations.get(TENANTS_ANNOTATION))
            .map(|text| items(text).collect());
        let mut tenants = BTreeSet::new();
        for tenant in items(asked) {
            if !is_tenant(tenant) {
                let why = format!(
                    "{tenant:?} is not a tenant name, [A-Za-z0-9._:-]{{1,128}}; name each tenant"
                );
                self.refuse(TENANTS_ANNOTATION, why);
            } else if limit.as_ref().is_some_and(|limit| !limit.contains(tenant)) {
                let why = format!(
                    "names {tenant:?}, which the annotation {TENANTS_ANNOTATION} of the Namespace {namespace_name} does not list; \
                     leave it out, or have an administrator list it there"
                );
                self.refuse(TENANTS_ANNOTATION, why);
            } else {
                tenants.insert(tenant.to_owned());
            }
        }
        tenants
    }

    fn port(&mut self, admin_port: u16) -> Option<u16> {
        self.parsed(PORT, |text| match text.parse() {
            Ok(port) if port == admin_port => Err(format!(
                "{port} is where the sidecar serves /metrics and /readyz; choose another"
            )),
            Ok(port @ UNPRIVILEGED..) => Ok(port),
            Ok(_) | Err(_) => Err(format!(
                "{text:?} is not a port from {UNPRIVILEGED} to 65535"
            )),
        })
    }

    fn resources(&mut self) -> ResourceWishes {
        let wishes = ResourceWishes {
            cpu_request: self.parsed(CPU_REQUEST, Quantity::cpu),
            cpu_limit: self.parsed(CPU_LIMIT, |text| config::limit(Quantity::cpu(text))),
            memory_request: self.parsed(MEMORY_REQUEST, Quantity::memory),
            memory_limit: self.parsed(MEMORY_LIMIT, |text| config::limit(Quantity::memory(text))),
        };
        self.compare(
            CPU_REQUEST,
            wishes.cpu_request.as_ref(),
            wishes.cpu_limit.as_ref(),
        );
        self.compare(
            MEMORY_REQUEST,
            wishes.memory_request.as_ref(),
            wishes.memory_limit.as_ref(),
        );
        wishes
    }

    fn compare(&mut self, name: &str, request: Option<&Quantity>, limit: Option<&Quantity>) {
        if let (Some(request), Some(limit)) = (request, limit)
            && request > limit
        {
            let of_limit = name.replace("request", "limit");
            let why = format!("{request} is more than {limit}, which {of_limit} allows; lower it");
            self.refuse(name, why);
        }
    }

    fn base_urls(&mut self, tenants: &BTreeSet<String>) -> Vec<BaseUrl> {
        let mut urls: Vec<BaseUrl> = Vec::new();
        for item in self.list(BASE_URL_ENV) {
            let read = base_url(&item, tenants).and_then(|url| {
                if urls.iter().any(|other| other.variable == url.variable) {
                    return Err(format!("names {} twice; keep one", url.variable));
                }
                Ok(url)
            });
            match read {
                Ok(url) => urls.push(url),
                Err(why) => self.refuse(BASE_URL_ENV, why),
            }
        }
        urls
    }

    fn placeholders(&mut self, base_urls: &[BaseUrl]) -> Vec<String> {
        let mut names = Vec::new();
        for name in self.list(PLACEHOLDER_ENV) {
            if let Err(why) = variable(&name) {
                self.refuse(PLACEHOLDER_ENV, why);
            } else if base_urls.iter().any(|url| url.variable == name) {
                let why = format!("names {name}, and {BASE_URL_ENV} too; keep one");
                self.refuse(PLACEHOLDER_ENV, why);
            } else if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    fn list(&mut self, name: &str) -> Vec<String> {
        let text = self.annotations.get(name).map_or("", String::as_str);
        let list: Vec<String> = items(text)
            .take(MAX_VARIABLES + 1)
            .map(str::to_owned)
            .collect();
        if list.len() > MAX_VARIABLES {
            let why = format!("names more than {MAX_VARIABLES} variables; set the others yourself");
            self.refuse(name, why);
            return Vec::new();
        }
        list
    }
}

/// What stands between commas, without space around it; nothing stands for nothing.
fn items(text: &str) -> impl Iterator<Item = &str> {
    text.split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
}

fn flag(text: &str) -> Result<bool, String> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        other => Err(format!("{other:?} is neither \"true\" nor \"false\"")),
    }
}

/// Reads `NAME=provider[@tenant][/path]`.
fn base_url(item: &str, tenants: &BTreeSet<String>) -> Result<BaseUrl, String> {
    let (name, target) = item
        .split_once('=')
        .ok_or_else(|| format!("{item:?} is not NAME=provider[@tenant][/path]"))?;
    variable(name)?;
    let segment = target.split('/').next().unwrap_or_default();
    let (provider, tenant) = match segment.split_once('@') {
        Some((provider, tenant)) => (provider, Some(tenant)),
        None => (segment, None),
    };
    if !is_provider(provider) {
        return Err(format!(
            "{item:?} names the provider {provider:?}, which is none: [a-z0-9][a-z0-9._-]{{0,62}}"
        ));
    }
    if let Some(tenant) = tenant.filter(|tenant| !tenants.contains(*tenant)) {
        return Err(format!(
            "{item:?} names the tenant {tenant:?}, which {TENANTS_ANNOTATION} does not name; add it there"
        ));
    }
    // Neither what ends a path nor what Kubernetes expands.
    let plain = |b: u8| b.is_ascii_graphic() && !b"?#$\\\"<>^`{|}".contains(&b);
    if !target.bytes().all(plain) {
        return Err(format!(
            "{item:?} has a character that no path has; percent-encode it"
        ));
    }
    Ok(BaseUrl {
        variable: name.to_owned(),
        target: target.to_owned(),
    })
}

fn variable(name: &str) -> Result<(), String> {
    let bytes = name.as_bytes();
    let fits = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
    if !bytes.iter().all(fits) || bytes.first().is_none_or(u8::is_ascii_digit) {
        return Err(format!(
            "{name:?} is not the name of a variable, [A-Za-z_][A-Za-z0-9_]*"
        ));
    }
    if name == SIDECAR_URL {
        return Err(format!(
            "{name} is set in every container anyway; leave it out"
        ));
    }
    Ok(())
}
