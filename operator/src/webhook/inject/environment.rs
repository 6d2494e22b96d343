//! What the agent's containers find in their environment: where the sidecar is, and how to stay on the way to it.
//!
//! What a container sets itself wins, and what an earlier admission set is made anew. Variables that come by `envFrom`
//! cannot be seen here; ours win over those, as a container's `env` always does.

use k8s_openapi::api::core::v1::EnvVar;
use serde_json::json;

use super::annotations::Wishes;
use super::findings::Findings;
use super::patch::{Listed, Patcher, below};

/// Variable with the address of the sidecar.
pub(super) const SIDECAR_URL: &str = "NEXUS_SIDECAR_URL";
/// Value of the variables that only have to be there.
const PLACEHOLDER: &str = "nexus-placeholder";
/// Path prefix under which the sidecar serves providers by name.
const VIA: &str = "/via/";
/// Hosts that no proxy must stand before.
const DIRECT: [&str; 2] = ["127.0.0.1", "localhost"];
const PROXIES: [&str; 3] = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"];
/// Programs read the one or the other, so that both are set where neither is.
const NO_PROXIES: [&str; 2] = ["NO_PROXY", "no_proxy"];

/// The variables that every container of the agent gets.
#[derive(Debug)]
pub(super) struct Environment {
    variables: Vec<(String, String)>,
}

impl Environment {
    /// The address of the sidecar first, so that a container's own variables may refer to it.
    pub(super) fn new(wishes: &Wishes) -> Self {
        // By address: nothing has to be resolved, and it is the one that is always listened on.
        let url = format!("http://127.0.0.1:{}", wishes.port);
        let base_urls = wishes.base_urls.iter().map(|base| {
            let value = format!("{url}{VIA}{}", base.target);
            (base.variable.clone(), value)
        });
        let placeholders = wishes
            .placeholders
            .iter()
            .map(|name| (name.clone(), PLACEHOLDER.to_owned()));
        let mut variables = vec![(SIDECAR_URL.to_owned(), url.clone())];
        variables.extend(base_urls.chain(placeholders));
        Self { variables }
    }

    /// Brings a container's variables to what they should be, each by its position, so that the rest stays as it is.
    pub(super) fn apply(&self, listed: Listed<'_>, patcher: &mut Patcher, findings: &mut Findings) {
        let place = below(&listed.place(), "env");
        let present = listed.container.env.as_deref().unwrap_or_default();
        let (ours, own): (Vec<_>, Vec<_>) = present
            .iter()
            .enumerate()
            .partition(|(_, variable)| self.is_ours(variable));
        let has = |name: &str| own.iter().any(|(_, variable)| variable.name == name);
        let mut added: Vec<(&str, &str)> = self
            .variables
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .filter(|(name, _)| !has(name))
            .collect();
        let direct = DIRECT.join(",");
        if own.iter().any(|(_, variable)| is_proxy(variable)) {
            let lists = own
                .iter()
                .filter(|(_, variable)| NO_PROXIES.contains(&variable.name.as_str()));
            for (position, variable) in lists {
                match exempt(variable) {
                    Ok(Some(hosts)) => {
                        patcher.put(below(&below(&place, position), "value"), hosts.into());
                    }
                    Ok(None) => {}
                    Err(why) => findings.warn(format_args!("{listed}.env[{}]", variable.name), why),
                }
            }
            if !NO_PROXIES.iter().any(|name| has(name)) {
                added.extend(NO_PROXIES.map(|name| (name, direct.as_str())));
            }
        }
        if ours.len() == added.len() && stands_in_front(&added, present) {
            return;
        }
        let positions: Vec<usize> = ours.iter().map(|(position, _)| *position).collect();
        patcher.remove_each(&place, &positions);
        let added = added
            .into_iter()
            .map(|(name, value)| json!({"name": name, "value": value}))
            .collect();
        patcher.prepend(&place, own.is_empty(), added);
    }

    /// Whether an earlier admission set this variable. By name and value: nothing that the pod says about it is
    /// believed, and who forges one only forges what they may set anyway.
    fn is_ours(&self, variable: &EnvVar) -> bool {
        let Some(value) = variable
            .value
            .as_deref()
            .filter(|_| variable.value_from.is_none())
        else {
            return false;
        };
        let wanted = self
            .variables
            .iter()
            .any(|(name, _)| *name == variable.name);
        match after_sidecar_url(value) {
            Some("") => variable.name == SIDECAR_URL,
            Some(rest) => wanted && rest.starts_with(VIA),
            None => wanted && value == PLACEHOLDER,
        }
    }
}

/// What follows `http://127.0.0.1:PORT`.
fn after_sidecar_url(value: &str) -> Option<&str> {
    let rest = DIRECT.iter().find_map(|host| {
        value
            .strip_prefix("http://")?
            .strip_prefix(host)?
            .strip_prefix(':')
    })?;
    let end = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    let port: Option<u16> = rest[..end].parse().ok();
    port.map(|_| &rest[end..])
}

fn is_proxy(variable: &EnvVar) -> bool {
    PROXIES.contains(&variable.name.to_ascii_uppercase().as_str())
}

/// Whether nothing would change, as when an admission is repeated.
fn stands_in_front(added: &[(&str, &str)], present: &[EnvVar]) -> bool {
    let same = |((name, value), variable): (&(&str, &str), &EnvVar)| {
        variable.name == *name && variable.value.as_deref() == Some(value)
    };
    added.len() <= present.len() && added.iter().zip(present).all(same)
}

/// A list of hosts with those it lacks, if it lacks any.
fn exempt(variable: &EnvVar) -> Result<Option<String>, &'static str> {
    if variable.value_from.is_some() {
        return Err(
            "is not known yet; it must hold 127.0.0.1,localhost, else a proxy stands before the sidecar",
        );
    }
    let value = variable.value.as_deref().unwrap_or_default();
    let hosts: Vec<&str> = value.split(',').map(str::trim).collect();
    if hosts.contains(&"*") {
        return Ok(None);
    }
    let lacking = DIRECT.into_iter().filter(|host| !hosts.contains(host));
    let present = Some(value).filter(|value| !value.is_empty());
    let whole: Vec<&str> = present.into_iter().chain(lacking).collect();
    let whole = whole.join(",");
    Ok(Some(whole).filter(|whole| whole != value))
}
