//! Keeps authorities and serving certificate in their Secrets and the authorities in every `caBundle`. Watches of these
//! four objects flow in; what [`plan`] decides flows out as writes, and the serving certificate to [`Publisher`].
//!
//! Every replica does this. Each write names the version that the decision was made on, so one of them gets there
//! first and the others read what it wrote.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{SelectAll, Stream, StreamExt};
use jiff::Timestamp;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use tokio::time::timeout;

use super::authority::CertificateError;
use super::bundle::{self, Configuration, FIELD_MANAGER};
use super::expires;
use super::plan::{Outcome, Plan, Step, Stored, is_servable, plan, take};
use super::policy::Policy;
use super::serving::Publisher;
use super::stored::{
    AUTHORITY_SECRET, LEAF_SECRET, authority_secret, leaf_secret, read_authorities, read_leaf,
};
use crate::args::RunArgs;
use crate::metrics::{Certificate, Metrics};
use crate::ready::Task;

/// How long one call may take.
const CALL_LIMIT: Duration = Duration::from_secs(10);
/// The clock is looked at this often, since a sleep does not notice when it is set.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// Pauses after failures double between these.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LAST_PAUSE: Duration = Duration::from_secs(30);
/// More steps than any state needs: what goes on beyond it is not getting anywhere.
const MANY_STEPS: usize = 20;

/// Why a step could not be taken.
#[derive(Debug, thiserror::Error)]
enum KeeperError {
    #[error("{what}: {error}")]
    Call {
        what: String,
        #[source]
        error: Box<kube::Error>,
    },
    #[error("{0}: no answer within {CALL_LIMIT:?}")]
    Slow(String),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error("the certificates do not settle: {0:?} again and again")]
    Unsettled(Step),
}

/// See the module.
pub struct Keeper {
    secrets: Api<Secret>,
    mutating: Api<MutatingWebhookConfiguration>,
    validating: Api<ValidatingWebhookConfiguration>,
    configuration: String,
    policy: Policy,
    publisher: Publisher,
    metrics: Arc<Metrics>,
    ready: Option<Task>,
    stored: Stored,
    versions: [Version; 2],
    configurations: [Seen; 2],
}

/// Which version of a Secret was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Version {
    /// It has to be read.
    #[default]
    Unknown,
    /// There is none.
    Absent,
    /// This one.
    Of { version: String, uid: String },
}

/// What is known of a webhook configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Seen {
    #[default]
    Unknown,
    Absent,
    Present(Configuration),
}

enum Event {
    Secret(Which, Option<Secret>),
    Mutating(Option<MutatingWebhookConfiguration>),
    Validating(Option<ValidatingWebhookConfiguration>),
    Failed(watcher::Error),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    Authorities = 0,
    Leaf = 1,
}

impl Which {
    fn name(self) -> &'static str {
        match self {
            Self::Authorities => AUTHORITY_SECRET,
            Self::Leaf => LEAF_SECRET,
        }
    }
}

impl Keeper {
    /// Nothing is read or written before [`run`](Self::run). `ready` is done when a certificate is served and every
    /// caBundle has its authority.
    pub fn new(
        client: Client,
        args: &RunArgs,
        policy: Policy,
        publisher: Publisher,
        metrics: Arc<Metrics>,
        ready: Task,
    ) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), &args.namespace),
            mutating: Api::all(client.clone()),
            validating: Api::all(client),
            configuration: args.webhook.webhook_configuration.clone(),
            policy,
            publisher,
            metrics,
            ready: Some(ready),
            stored: Stored::default(),
            versions: Default::default(),
            configurations: Default::default(),
        }
    }

    /// Goes on for as long as the process does.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let mut events = self.watch();
        let mut failures = 0;
        loop {
            let pause = match self.settle().await {
                Ok(until) => {
                    failures = 0;
                    let until = Timestamp::now().duration_until(until);
                    Duration::try_from(until).unwrap_or_default()
                }
                Err(error) => {
                    failures += 1;
                    let pause = FIRST_PAUSE.saturating_mul(1 << (failures - 1).min(10));
                    tracing::warn!(%error, "keeping the serving certificate; it is tried again");
                    pause.min(LAST_PAUSE)
                }
            };
            tokio::select! {
                Some(event) = events.next() => self.hear(event),
                () = tokio::time::sleep(pause.min(LONGEST_PAUSE)) => {}
            }
        }
    }

    fn watch(&self) -> SelectAll<Pin<Box<dyn Stream<Item = Event> + Send>>> {
        fn one<K>(
            api: &Api<K>,
            name: &str,
            event: impl Fn(Option<K>) -> Event + Send + 'static,
        ) -> Pin<Box<dyn Stream<Item = Event> + Send>>
        where
            K: kube::Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned,
            K: std::fmt::Debug + Send + 'static,
        {
            watcher::watch_object(api.clone(), name)
                .default_backoff()
                .map(move |seen| seen.map_or_else(Event::Failed, &event))
                .boxed()
        }
        let secret = |which: Which| {
            one(&self.secrets, which.name(), move |secret| {
                Event::Secret(which, secret)
            })
        };
        let name = &self.configuration;
        futures::stream::select_all([
            secret(Which::Authorities),
            secret(Which::Leaf),
            one(&self.mutating, name, Event::Mutating),
            one(&self.validating, name, Event::Validating),
        ])
    }

    fn hear(&mut self, event: Event) {
        match event {
            Event::Secret(which, secret) => {
                if !self.is_older(which, secret.as_ref()) {
                    self.learn(which, secret.as_ref());
                }
            }
            Event::Mutating(object) => self.learn_configuration(0, object.map(Into::into)),
            Event::Validating(object) => self.learn_configuration(1, object.map(Into::into)),
            Event::Failed(error) => {
                tracing::warn!(%error, "watching the certificates' Secrets and webhook configurations");
                // What a broken watch does not tell is read.
                self.versions = Default::default();
                self.configurations = Default::default();
            }
        }
    }

    /// A watch may still tell of versions from before our own last write.
    fn is_older(&self, which: Which, secret: Option<&Secret>) -> bool {
        let number = |version: &str| version.parse::<u64>().ok();
        let told = secret.and_then(|secret| number(secret.metadata.resource_version.as_deref()?));
        match (&self.versions[which as usize], told) {
            (Version::Of { version, .. }, Some(told)) => {
                number(version).is_some_and(|known| told < known)
            }
            _ => false,
        }
    }

    fn learn(&mut self, which: Which, secret: Option<&Secret>) {
        let version = secret.map_or(Version::Absent, |secret| Version::Of {
            version: secret.resource_version().unwrap_or_default(),
            uid: secret.uid().unwrap_or_default(),
        });
        if self.versions[which as usize] == version {
            return;
        }
        self.versions[which as usize] = version;
        let problems = match which {
            Which::Authorities => {
                let read = secret.map(read_authorities);
                let (value, problems) = read.map(|it| (it.value, it.problems)).unwrap_or_default();
                self.stored.authorities = value;
                problems
            }
            Which::Leaf => {
                let read = secret.map(read_leaf);
                let (value, problems) = read.map(|it| (it.value, it.problems)).unwrap_or_default();
                (self.stored.leaf, self.stored.leaf_authority) = value;
                problems
            }
        };
        for problem in problems {
            tracing::warn!(secret = which.name(), %problem, "what cannot be used of the Secret is replaced");
        }
    }

    fn learn_configuration(&mut self, index: usize, seen: Option<Configuration>) {
        let seen = seen.map_or(Seen::Absent, Seen::Present);
        if seen == Seen::Absent && self.configurations[index] != Seen::Absent {
            tracing::warn!(
                name = self.configuration,
                kind = [
                    "MutatingWebhookConfiguration",
                    "ValidatingWebhookConfiguration"
                ][index],
                "there is no such object, so the API server does not ask this operator; install the chart or set --webhook-configuration"
            );
        }
        self.configurations[index] = seen;
    }

    /// Takes steps until none is due; then it is the time of the next one.
    async fn settle(&mut self) -> Result<Timestamp, KeeperError> {
        let mut last = Step::Begin;
        for _ in 0..MANY_STEPS {
            for which in [Which::Authorities, Which::Leaf] {
                if self.versions[which as usize] == Version::Unknown {
                    self.read(which).await?;
                }
            }
            // A cluster that refuses us the caBundles still gets its certificates: they may be let in later.
            let bundled = self.bundle().await;
            self.stored.bundled = matches!(bundled, Ok(Bundled::Yes));
            if matches!(bundled, Ok(Bundled::ReadAgain)) {
                continue;
            }
            let now = Timestamp::now();
            self.publish(now);
            match plan(now, &self.stored, &self.policy) {
                Plan::Now(step) => {
                    last = step;
                    self.take(step, now).await?;
                }
                Plan::At(time) => {
                    bundled?;
                    return Ok(time);
                }
            }
        }
        Err(KeeperError::Unsettled(last))
    }

    async fn read(&mut self, which: Which) -> Result<(), KeeperError> {
        let name = which.name();
        let secret = call(
            format!("reading the Secret {name}"),
            self.secrets.get_opt(name),
        )
        .await?;
        self.learn(which, secret.as_ref());
        Ok(())
    }

    async fn take(&mut self, step: Step, now: Timestamp) -> Result<(), KeeperError> {
        // Whatever comes of it, what was read is used up.
        let stored = std::mem::take(&mut self.stored);
        let versions = std::mem::take(&mut self.versions);
        let authority = stored
            .authorities
            .as_ref()
            .map(|it| it.current.authority.certificate.clone());
        let outcome = take(step, now, stored, &self.policy)?;
        let (which, secret) = match &outcome {
            Outcome::Authorities(authorities) => {
                (Which::Authorities, authority_secret(authorities))
            }
            Outcome::Leaf(leaf) => {
                let authority = authority.unwrap_or_else(|| leaf.chain[0].clone());
                (Which::Leaf, leaf_secret(leaf, &authority))
            }
        };
        match self.write(which, &versions[which as usize], secret).await {
            Ok(true) => tracing::info!(?step, secret = which.name(), "certificates changed"),
            Ok(false) => tracing::debug!(?step, "another replica was first"),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// False if there is another version than the one that was read.
    async fn write(
        &self,
        which: Which,
        version: &Version,
        mut secret: Secret,
    ) -> Result<bool, KeeperError> {
        let name = which.name();
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.into()),
            ..PostParams::default()
        };
        if let Version::Of { version, uid } = version {
            secret.metadata.resource_version = Some(version.clone());
            let what = format!("writing the Secret {name}");
            let written = call(what, self.secrets.replace(name, &params, &secret)).await;
            match written {
                Err(KeeperError::Call { error, .. })
                    if has(&error, kube::core::Status::is_invalid) => {}
                written => return first(written.map(drop)),
            }
            // Its type or an `immutable` forbids the change.
            let params = DeleteParams::default().preconditions(Preconditions {
                resource_version: Some(version.clone()),
                uid: Some(uid.clone()),
            });
            let what = format!("deleting the Secret {name}, which cannot be changed");
            let deleted = call(what, self.secrets.delete(name, &params)).await;
            if !first(deleted.map(drop))? {
                return Ok(false);
            }
            secret.metadata.resource_version = None;
        }
        let what = format!("creating the Secret {name}");
        first(
            call(what, self.secrets.create(&params, &secret))
                .await
                .map(drop),
        )
    }

    /// Brings the authorities into every caBundle.
    async fn bundle(&mut self) -> Result<Bundled, KeeperError> {
        if self.configurations.contains(&Seen::Unknown) {
            let name = &self.configuration;
            let what = || format!("reading the webhook configurations {name}");
            let mutating = call(what(), self.mutating.get_opt(name)).await?;
            let validating = call(what(), self.validating.get_opt(name)).await?;
            self.learn_configuration(0, mutating.map(Into::into));
            self.learn_configuration(1, validating.map(Into::into));
        }
        let Some(authorities) = &self.stored.authorities else {
            return Ok(Bundled::No);
        };
        let bundle = authorities.bundle();
        for index in 0..self.configurations.len() {
            let Seen::Present(seen) = self.configurations[index].clone() else {
                continue;
            };
            if seen.holds(&bundle) {
                continue;
            }
            // What is there may be newer than what we read of the authorities: never go back.
            let before = self.versions.clone();
            self.read(Which::Authorities).await?;
            if self.versions != before {
                return Ok(Bundled::ReadAgain);
            }
            let kind = seen.kind();
            let what = format!("applying the caBundle of the {kind} {}", self.configuration);
            let applied = if index == 0 {
                call(what, bundle::apply(&self.mutating, &seen, &bundle)).await
            } else {
                call(what, bundle::apply(&self.validating, &seen, &bundle)).await
            };
            match applied {
                Ok(applied) => {
                    tracing::info!(kind, name = self.configuration, "caBundle applied");
                    self.configurations[index] = Seen::Present(applied);
                }
                Err(error) => {
                    // The watch may be behind: read it before the next attempt.
                    self.configurations[index] = Seen::Unknown;
                    return if first(Err(error))? {
                        Ok(Bundled::No)
                    } else {
                        Ok(Bundled::ReadAgain)
                    };
                }
            }
        }
        // One that somebody took away must not keep the other from being served; without both, nobody asks.
        let present = |seen: &Seen| matches!(seen, Seen::Present(_));
        let holds = |seen: &Seen| !matches!(seen, Seen::Present(seen) if !seen.holds(&bundle));
        let all = self.configurations.iter().any(present) && self.configurations.iter().all(holds);
        Ok(if all { Bundled::Yes } else { Bundled::No })
    }

    /// Shows the stored certificate if callers accept it; else the one before goes on being shown.
    fn publish(&mut self, now: Timestamp) {
        let (Some(authorities), Some(leaf)) = (&self.stored.authorities, &self.stored.leaf) else {
            return;
        };
        expires(
            &self.metrics,
            Certificate::Ca,
            authorities.current.authority.life,
        );
        if !is_servable(now, leaf, authorities, &self.policy) {
            return;
        }
        let shown = self.publisher.shown();
        if shown.is_none_or(|shown| shown.cert != leaf.chain) {
            self.publisher.publish(leaf.certified().clone());
            expires(&self.metrics, Certificate::Serving, leaf.life);
            tracing::info!(expires = %leaf.life.ends, "another certificate is served");
        }
        if self.stored.bundled
            && let Some(ready) = self.ready.take()
        {
            ready.done();
        }
    }
}

enum Bundled {
    /// Every caBundle there is has the authorities.
    Yes,
    /// Not every one has.
    No,
    /// Somebody changed the authorities or a configuration meanwhile.
    ReadAgain,
}

async fn call<T>(
    what: String,
    call: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, KeeperError> {
    match timeout(CALL_LIMIT, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => {
            let error = Box::new(error);
            Err(KeeperError::Call { what, error })
        }
        Err(_) => Err(KeeperError::Slow(what)),
    }
}

/// Whether we were first; an error when that is not the question.
fn first(written: Result<(), KeeperError>) -> Result<bool, KeeperError> {
    match written {
        Ok(()) => Ok(true),
        Err(KeeperError::Call { error, .. })
            if has(&error, |status| {
                status.is_conflict() || status.is_already_exists() || status.is_not_found()
            }) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

fn has(error: &kube::Error, what: impl Fn(&kube::core::Status) -> bool) -> bool {
    matches!(error, kube::Error::Api(status) if what(status))
}
