//! What the broker of `dev` answers for a connection: the credential as the file says now, with its strategy.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use nexus_crds::names::ConnectionId;
use nexus_crds::strategy::{Strategy, StrategySpec, Username};
use serde_json::{Map, Value, json};

use super::credentials::{self, Credential, Environment};
use crate::manifest::files;
use crate::manifest::problem::Problem;

/// Where the credentials are written.
pub(crate) enum CredentialSource {
    /// Made up for this run; holds throwaway secrets.
    BuiltIn(String),
    /// The user's file.
    File(PathBuf),
}

/// The strategies that routes give to connections, for those that have one.
pub(crate) type RouteStrategies = HashMap<ConnectionId, StrategySpec>;

/// The credentials of one run. Files are read at each request, so that they may rotate.
pub(crate) struct Vault {
    source: CredentialSource,
    environment: Environment,
    strategies: ArcSwap<RouteStrategies>,
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum VaultError {
    /// No credential has this connection.
    Unknown,
    /// The file cannot be used as it is now.
    Broken(Vec<Problem>),
}

impl Vault {
    pub(crate) fn new(source: CredentialSource, environment: Environment) -> Self {
        Self {
            source,
            environment,
            strategies: ArcSwap::default(),
        }
    }

    /// The file to name in messages.
    pub(crate) fn file(&self) -> &Path {
        match &self.source {
            CredentialSource::BuiltIn(_) => Path::new("built-in credentials"),
            CredentialSource::File(path) => path,
        }
    }

    /// The user's file, to be watched.
    pub(crate) fn watched(&self) -> Option<&Path> {
        match &self.source {
            CredentialSource::BuiltIn(_) => None,
            CredentialSource::File(path) => Some(path),
        }
    }

    /// Takes over what the routes say; they were just loaded.
    pub(crate) fn set_strategies(&self, strategies: RouteStrategies) {
        self.strategies.store(strategies.into());
    }

    /// Reads the file.
    pub(crate) fn credentials(&self) -> Result<Vec<Credential>, Vec<Problem>> {
        let text = match &self.source {
            CredentialSource::BuiltIn(text) => text.clone(),
            CredentialSource::File(path) => files::read_raw(path)
                .and_then(|bytes| String::from_utf8(bytes).map_err(io::Error::other))
                .map_err(|error| vec![Problem::error(path, format!("cannot be read: {error}"))])?,
        };
        credentials::parse(self.file(), &text)
    }

    /// Reads the values of one credential.
    pub(crate) fn resolve(
        &self,
        credential: &Credential,
    ) -> Result<Map<String, Value>, Vec<Problem>> {
        credential.resolve(self.file(), self.environment)
    }

    /// The body of `GET /v1/token/{id}`. Blocks: it reads files.
    pub(crate) fn payload(&self, id: ConnectionId, now: Timestamp) -> Result<Value, VaultError> {
        let credentials = self.credentials().map_err(VaultError::Broken)?;
        let credential = credentials
            .iter()
            .find(|credential| credential.connection() == id)
            .ok_or(VaultError::Unknown)?;
        let fields = self.resolve(credential).map_err(VaultError::Broken)?;
        let strategies = self.strategies.load();
        let strategy = deliver(credential, strategies.get(&id)).map_err(|message| {
            let problem = Problem::error(self.file(), message)
                .at(credential.position)
                .field(credential.path());
            VaultError::Broken(vec![problem])
        })?;
        Ok(body(&strategy, fields, credential.expires_at, now))
    }
}

/// The payload as the gateway writes it.
fn body(
    strategy: &StrategySpec,
    mut fields: Map<String, Value>,
    expires_at: Option<Timestamp>,
    now: Timestamp,
) -> Value {
    if let Some(expires_at) = expires_at {
        fields.insert("expires_at".into(), expires_at.to_string().into());
        fields.insert("expired".into(), (expires_at <= now).into());
    }
    let mut root = Map::new();
    if strategy.kind == "oauth2" {
        fields
            .entry("token_type")
            .or_insert_with(|| "Bearer".into());
        for name in ["access_token", "refresh_token", "id_token", "token_type"] {
            if let Some(value) = fields.get(name) {
                root.insert(name.into(), value.clone());
            }
        }
    }
    root.insert("strategy".into(), json!(strategy));
    root.insert("credentials".into(), fields.into());
    root.into()
}

/// Types an oauth2 credential may be presented as.
const OAUTH2_PRESENTATIONS: [&str; 6] =
    ["oauth2", "header", "api_key", "basic_auth", "dpop", "mtls"];

/// The strategy a credential is delivered with: its own, else the one of the route that uses it, else what its fields
/// suggest. An access token is delivered as `oauth2` where the route may present that its own way.
pub(crate) fn deliver(
    credential: &Credential,
    route: Option<&StrategySpec>,
) -> Result<StrategySpec, String> {
    if let Some(own) = &credential.strategy {
        return Ok(own.clone());
    }
    let presentable = route.is_none_or(|it| OAUTH2_PRESENTATIONS.contains(&it.kind.as_str()));
    if credential.has("access_token") && presentable {
        return Ok(spec("oauth2", &[]));
    }
    if let Some(route) = route {
        return Ok(route.clone());
    }
    if credential.has("api_key") {
        let config = [
            ("header_name", "X-API-Key"),
            ("credential_field", "api_key"),
        ];
        return Ok(spec("header", &config));
    }
    if credential.has("username") && credential.has("password") {
        return Ok(spec("basic_auth", &[]));
    }
    if credential.has("access_key") && credential.has("secret_key") {
        return Err("an AWS key needs to know the service: add \
            `strategy: {type: aws_sigv4, config: {service: s3, region: eu-central-1}}` here or in the route"
            .into());
    }
    Err("how to use this credential is not clear from its fields: add `strategy: {type: ...}` here or in the route".into())
}

fn spec(kind: &str, config: &[(&str, &str)]) -> StrategySpec {
    StrategySpec {
        kind: kind.to_owned(),
        config: config
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).into()))
            .collect(),
    }
}

/// The credential fields that a strategy cannot do without.
pub(crate) fn required_fields(strategy: &Strategy) -> Vec<&str> {
    match strategy {
        Strategy::Oauth2 => vec!["access_token"],
        Strategy::Header(parts) => parts
            .iter()
            .map(|part| part.credential_field.as_str())
            .collect(),
        Strategy::QueryParam(parts) => parts
            .iter()
            .map(|part| part.credential_field.as_str())
            .collect(),
        Strategy::BasicAuth {
            username,
            password_field,
        } => match username {
            Username::Field(field) => vec![field, password_field],
            Username::Literal(_) => vec![password_field],
        },
        Strategy::HmacPayload { secret_field, .. } => vec![secret_field],
        Strategy::AwsSigv4 { .. } => vec!["access_key", "secret_key"],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn vault(text: &str) -> Vault {
        Vault::new(CredentialSource::BuiltIn(text.into()), |_| None)
    }

    fn only(vault: &Vault) -> Credential {
        vault.credentials().unwrap().remove(0)
    }

    fn payload(text: &str, route: Option<StrategySpec>) -> Result<Value, VaultError> {
        let vault = vault(text);
        let id = only(&vault).connection();
        vault.set_strategies(route.map(|route| (id, route)).into_iter().collect());
        vault.payload(id, NOW)
    }

    #[test]
    fn an_access_token_is_delivered_as_the_gateway_does() {
        assert_eq!(
            payload(
                "credentials: {p: {access_token: t, expires_at: 1970-01-01T01:00:00Z}}",
                None
            )
            .unwrap(),
            json!({"access_token": "t", "token_type": "Bearer", "strategy": {"type": "oauth2"},
                "credentials": {"access_token": "t", "token_type": "Bearer", "expires_at": "1970-01-01T01:00:00Z", "expired": false}})
        );
    }

    #[test]
    fn the_strategy_is_the_entrys_then_the_routes_then_inferred() {
        let kind = |text: &str, route: Option<StrategySpec>| {
            payload(text, route).unwrap()["strategy"].clone()
        };
        let query = || Some(spec("query_param", &[("param_name", "key")]));
        let key = "credentials: {p: {api_key: k}}";
        assert_eq!(kind(key, query())["type"], "query_param");
        assert_eq!(
            kind(key, None),
            json!({"type": "header", "config": {"header_name": "X-API-Key", "credential_field": "api_key"}})
        );
        let own = "credentials: {p: {api_key: k, strategy: {type: hmac_payload, config: {header_name: x}}}}";
        assert_eq!(kind(own, query())["type"], "hmac_payload");
        let basic = "credentials: {p: {username: u, password: p}}";
        assert_eq!(kind(basic, None), json!({"type": "basic_auth"}));
        let token = "credentials: {p: {access_token: t}}";
        assert_eq!(kind(token, Some(spec("basic_auth", &[])))["type"], "oauth2");
        assert_eq!(kind(token, query())["type"], "query_param");
    }

    #[test]
    fn an_aws_key_without_a_service_says_what_to_add() {
        let Err(VaultError::Broken(problems)) =
            payload("credentials:\n  p: {access_key: a, secret_key: b}", None)
        else {
            panic!("refused");
        };
        let text = problems[0].to_string();
        assert!(
            text.contains(":2:3: credentials.p: ") && text.contains("service: s3"),
            "{text}"
        );
    }

    #[test]
    fn an_unknown_connection_is_unknown() {
        let result = vault("credentials: {p: {api_key: k}}").payload(uuid::Uuid::nil().into(), NOW);
        assert!(matches!(result, Err(VaultError::Unknown)));
    }

    #[test]
    fn a_rotated_file_is_read_at_the_next_request() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.yaml");
        std::fs::write(&file, "credentials: {p: {api_key: {file: key}}}").unwrap();
        std::fs::write(dir.path().join("key"), "one").unwrap();
        let vault = Vault::new(CredentialSource::File(file), |_| None);
        let id = only(&vault).connection();
        for value in ["one", "two"] {
            std::fs::write(dir.path().join("key"), value).unwrap();
            assert_eq!(
                vault.payload(id, NOW).unwrap()["credentials"]["api_key"],
                value
            );
        }
    }
}
