//! A clock, a store and callers that learn late: rotations over several lives of an authority.

use std::collections::BTreeMap;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls_pki_types::{ServerName, UnixTime};

use super::*;

const START: i64 = 1_700_000_000;

fn policy() -> Policy {
    Policy {
        authority_life: Duration::from_secs(100),
        publish_before: Duration::from_secs(10),
        keep_after: Duration::from_secs(20),
        leaf_life: Duration::from_secs(40),
        names: vec!["a.b.svc".into(), "a.b".into()],
    }
}

fn time(second: i64) -> Timestamp {
    Timestamp::from_second(START + second).unwrap()
}

type History = BTreeMap<i64, Vec<CertificateDer<'static>>>;

fn at(history: &History, second: i64) -> Vec<CertificateDer<'static>> {
    let last = history.range(..=second).next_back();
    last.map(|(_, held)| held.clone()).unwrap_or_default()
}

/// A cluster with one operator.
struct World {
    policy: Policy,
    second: i64,
    stored: Stored,
    /// What every caBundle holds from a second on.
    bundles: History,
    /// The chain that is served from a second on.
    served: History,
    /// Seconds from a change of the authorities until the caBundles have it; `None` if they never do.
    bundle_delay: Option<i64>,
    behind: i64,
    /// Callers are asked from this second on.
    judged: i64,
    steps: Vec<(i64, Step)>,
}

impl World {
    fn new() -> Self {
        Self {
            policy: policy(),
            second: 0,
            stored: Stored::default(),
            bundles: BTreeMap::new(),
            served: BTreeMap::new(),
            bundle_delay: Some(0),
            behind: 0,
            judged: 0,
            steps: Vec::new(),
        }
    }

    fn trusted(&self) -> Vec<CertificateDer<'static>> {
        let authorities = self.stored.authorities.as_ref();
        let mut trusted: Vec<_> = authorities
            .map(|it| it.trusted().cloned().collect())
            .unwrap_or_default();
        trusted.sort_by(|one, other| one.as_ref().cmp(other.as_ref()));
        trusted
    }

    /// Takes every step that is due at this second; returns when the next one is.
    fn settle(&mut self) -> Timestamp {
        let mut bundle = at(&self.bundles, self.second);
        loop {
            let trusted = self.trusted();
            if bundle == trusted {
                self.behind = 0;
            } else if self.bundle_delay.is_some_and(|delay| self.behind >= delay) {
                bundle = trusted.clone();
            }
            self.stored.bundled = !trusted.is_empty() && bundle == trusted;
            let step = match plan(time(self.second), &self.stored, &self.policy) {
                Plan::Now(step) => step,
                Plan::At(again) => {
                    self.behind += 1;
                    self.bundles.insert(self.second, bundle);
                    let leaf = self.stored.leaf.as_ref();
                    let chain = leaf.map(|leaf| leaf.chain.clone()).unwrap_or_default();
                    self.served.insert(self.second, chain);
                    return again;
                }
            };
            self.steps.push((self.second, step));
            assert!(self.steps.len() < 1000, "{:?}", &self.steps[980..]);
            self.take(step);
        }
    }

    fn take(&mut self, step: Step) {
        let stored = std::mem::take(&mut self.stored);
        let (mut authorities, mut leaf, mut leaf_authority) = (None, None, None);
        // A copy of what is stored, as another reading of the Secrets would give.
        let secrets = (
            stored
                .authorities
                .as_ref()
                .map(crate::tls::stored::authority_secret),
            stored
                .leaf
                .as_ref()
                .zip(stored.leaf_authority.as_ref())
                .map(|(leaf, authority)| crate::tls::stored::leaf_secret(leaf, authority)),
        );
        let issuer = stored
            .authorities
            .as_ref()
            .map(|it| it.current.authority.certificate.clone());
        match take(step, time(self.second), stored, &self.policy).unwrap() {
            Outcome::Authorities(new) => authorities = Some(*new),
            Outcome::Leaf(new) => (leaf, leaf_authority) = (Some(new), issuer),
        }
        if let Some(secret) = secrets.0.filter(|_| authorities.is_none()) {
            authorities = crate::tls::stored::read_authorities(&secret).value;
        }
        if let Some(secret) = secrets.1.filter(|_| leaf.is_none()) {
            (leaf, leaf_authority) = crate::tls::stored::read_leaf(&secret).value;
        }
        self.stored = Stored {
            authorities,
            leaf,
            leaf_authority,
            bundled: false,
        };
    }

    /// Goes on for so many seconds, looking only when [`plan`] said so, and judges every second as callers would.
    fn run(&mut self, seconds: i64) {
        let until = self.second + seconds;
        let mut again = self.settle();
        while self.second < until {
            self.second += 1;
            let settling = at(&self.bundles, self.second) != self.trusted();
            if again <= time(self.second) || settling {
                again = self.settle();
            }
            self.judge();
        }
    }

    fn judge(&self) {
        let back = |count: u64| self.second.saturating_sub_unsigned(count).max(self.judged);
        let served = at(&self.served, self.second);
        let bundle = at(&self.bundles, self.second);
        // An API server that learnt of the last caBundle just before the limit accepts what is served now.
        let late = back(self.policy.publish_before.as_secs() - 1);
        self.accepts(&at(&self.bundles, late), &served);
        self.accepts(&bundle, &served);
        // A replica that shows the last certificate for almost as long as the limit is accepted now.
        let late = back(self.policy.keep_after.as_secs() - 1);
        let old = at(&self.served, late);
        let life = authority::life(&old[0]).unwrap();
        if life.includes(time(self.second)) {
            self.accepts(&bundle, &old);
        }
    }

    fn accepts(&self, bundle: &[CertificateDer<'static>], chain: &[CertificateDer<'static>]) {
        if let Err(error) = verify(bundle, chain, self.second) {
            panic!("second {}: {error}; {:?}", self.second, self.steps);
        }
    }

    fn count(&self, step: Step) -> usize {
        self.steps
            .iter()
            .filter(|(_, taken)| *taken == step)
            .count()
    }
}

/// As the API server judges.
#[expect(
    clippy::unwrap_in_result,
    reason = "only what the verifier says is a result"
)]
fn verify(
    bundle: &[CertificateDer<'static>],
    chain: &[CertificateDer<'static>],
    second: i64,
) -> Result<(), rustls::Error> {
    let mut roots = RootCertStore::empty();
    for authority in bundle {
        let ends = authority::life(authority).unwrap().ends;
        if time(second) < ends {
            roots.add(authority.clone()).unwrap();
        }
    }
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), provider.into())
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
    let name = ServerName::try_from("a.b.svc").unwrap();
    let now = Duration::from_secs(u64::try_from(START + second).unwrap());
    let now = UnixTime::since_unix_epoch(now);
    verifier.verify_server_cert(&chain[0], &chain[1..], &name, &[], now)?;
    Ok(())
}

#[test]
fn callers_accept_what_is_served_over_many_lives_of_an_authority() {
    let mut world = World::new();
    world.run(1000);
    assert_eq!(world.count(Step::Begin), 1, "{:?}", world.steps);
    // The next one is published after 67 s, signs after 77 s and is then itself 10 s old.
    let lives = 1000 / 67;
    assert_eq!(world.count(Step::PublishNext), lives, "{:?}", world.steps);
    assert_eq!(world.count(Step::Promote), lives);
    assert!(world.count(Step::Retire) >= lives - 2);
    let signings = world.count(Step::IssueLeaf(Reason::OtherAuthority));
    assert_eq!(signings, world.count(Step::Promote));
    // 26 s each, and one more for each authority.
    assert!(world.count(Step::IssueLeaf(Reason::Old)) <= 1000 / 26 + lives);
    for bad in [Reason::NotValid, Reason::Foreign, Reason::OtherNames] {
        assert_eq!(world.count(Step::IssueLeaf(bad)), 0, "{bad:?}");
    }
    assert!(world.bundles.values().all(|bundle| bundle.len() <= 2));
}

#[test]
fn the_time_in_the_bundles_counts_from_when_it_is_there() {
    let mut world = World::new();
    world.run(10);
    world.bundle_delay = Some(15);
    world.run(500);
    assert!(world.count(Step::Promote) >= 4, "{:?}", world.steps);
}

#[test]
fn an_authority_that_no_bundle_has_does_not_sign_before_the_old_one_has_ended() {
    let mut world = World::new();
    world.run(50);
    world.bundle_delay = None;
    world.run(49);
    assert_eq!(world.count(Step::PublishNext), 1);
    assert_eq!(world.count(Step::Promote), 0);
    // Nobody accepts anything any more; whatever begins anew heals first once the bundles can be written.
    world.second = 100;
    world.settle();
    assert_eq!(world.count(Step::Promote), 1);
    world.bundle_delay = Some(0);
    world.judged = 101;
    world.run(300);
}

#[test]
fn callers_accept_what_is_served_after_the_authority_was_lost() {
    let mut world = World::new();
    world.run(200);
    world.stored.authorities = None;
    world.run(5);
    assert_eq!(world.count(Step::Begin), 2);
    let last = world.steps.last().unwrap().1;
    assert_eq!(
        last,
        Step::NotePublished,
        "it waits to be known: {:?}",
        world.steps
    );
    world.run(400);
    assert_eq!(world.count(Step::NoteReplaced), 1);
    assert!(at(&world.bundles, world.second).len() <= 2);
    assert_eq!(world.count(Step::Begin), 2);
}

#[test]
fn what_was_away_for_years_begins_anew() {
    let mut world = World::new();
    world.run(70);
    world.second = 30_000_000;
    let before = world.steps.len();
    world.settle();
    let steps: Vec<_> = world.steps[before..]
        .iter()
        .map(|(_, step)| *step)
        .collect();
    let expected = [
        Step::Begin,
        Step::NotePublished,
        Step::IssueLeaf(Reason::NotValid),
    ];
    assert_eq!(steps, expected);
    assert_eq!(world.trusted().len(), 1);
}

#[test]
fn a_serving_certificate_that_nobody_accepts_is_replaced_at_once() {
    let mut world = World::new();
    world.run(5);
    let check = |world: &mut World, reason| {
        world.settle();
        assert_eq!(world.steps.last().unwrap().1, Step::IssueLeaf(reason));
        world.judge();
    };
    world.stored.leaf = None;
    world.second += 1;
    check(&mut world, Reason::Missing);
    let foreign = Authority::issue(time(0), Duration::from_secs(1000)).unwrap();
    let names = &world.policy.names;
    world.stored.leaf = Some(
        foreign
            .sign(time(0), Duration::from_secs(1000), names)
            .unwrap(),
    );
    world.second += 1;
    check(&mut world, Reason::Foreign);
    let names = ["c.b.svc".to_owned()];
    let current = &world.stored.authorities.as_ref().unwrap().current.authority;
    let other = current
        .sign(time(0), Duration::from_secs(90), &names)
        .unwrap();
    let authorities = world.stored.authorities.as_ref().unwrap();
    assert!(!is_servable(time(7), &other, authorities, &world.policy));
    world.stored.leaf = Some(other);
    world.second += 1;
    check(&mut world, Reason::OtherNames);
}

#[test]
fn a_serving_certificate_ends_with_its_authority_and_is_not_renewed_over_and_over() {
    let mut world = World::new();
    world.run(30);
    world.bundle_delay = None;
    world.run(69);
    let ends = world.stored.leaf.as_ref().unwrap().life.ends;
    assert_eq!(ends, time(100));
    assert!(
        world.count(Step::IssueLeaf(Reason::Old)) <= 4,
        "{:?}",
        world.steps
    );
}

#[test]
fn a_shorter_life_on_the_command_line_counts_for_what_there_is() {
    let mut world = World::new();
    world.policy.authority_life = Duration::from_secs(10_000);
    world.policy.leaf_life = Duration::from_secs(5_000);
    world.run(200);
    assert_eq!(world.steps.len(), 3, "{:?}", world.steps);
    world.policy = policy();
    world.settle();
    let steps: Vec<_> = world.steps[3..].iter().map(|(_, step)| *step).collect();
    assert!(steps.contains(&Step::PublishNext));
    assert!(steps.contains(&Step::IssueLeaf(Reason::Old)));
}

#[test]
fn the_bundle_is_not_written_again_when_the_next_one_signs() {
    let mut world = World::new();
    world.run(70);
    let before = world.stored.authorities.as_ref().unwrap();
    assert!(before.next.is_some());
    let before = before.bundle();
    world.run(10);
    let after = world.stored.authorities.as_ref().unwrap();
    assert!(after.previous.is_some() && after.next.is_none());
    assert_eq!(after.bundle(), before);
}
