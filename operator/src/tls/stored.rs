//! The two Secrets: how authorities and the serving certificate are written there, and read again. Whatever cannot be
//! used is named and left out, never an error: it is issued anew.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::ObjectMeta;
use rustls_pki_types::CertificateDer;

use super::authority::{self, Authority, Leaf};
use super::plan::{Authorities, Published, Replaced};

/// Secret of the authorities; nobody but the operator has a use for it.
pub const AUTHORITY_SECRET: &str = "nexus-operator-ca";
/// Secret of the serving certificate.
pub const LEAF_SECRET: &str = "nexus-operator-webhook-tls";

const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const SINCE: &str = "since";
const NEXT_CERTIFICATE: &str = "next.crt";
const NEXT_KEY: &str = "next.key";
const NEXT_SINCE: &str = "next.since";
const PREVIOUS_CERTIFICATE: &str = "previous.crt";
const PREVIOUS_REPLACED: &str = "previous.replaced";
const LEAF_AUTHORITY: &str = "ca.crt";

type Data = BTreeMap<String, ByteString>;

/// What a Secret holds, and what of it is of no use.
pub struct Reading<T> {
    /// What is of use.
    pub value: T,
    /// What is not, in words for the log; no secrets in them.
    pub problems: Vec<String>,
}

/// The Secret of the authorities.
pub fn authority_secret(authorities: &Authorities) -> Secret {
    let mut data = Data::new();
    let Authorities {
        current,
        next,
        previous,
    } = authorities;
    put(&mut data, [CERTIFICATE, KEY, SINCE], current);
    if let Some(next) = next {
        put(&mut data, [NEXT_CERTIFICATE, NEXT_KEY, NEXT_SINCE], next);
    }
    if let Some(previous) = previous {
        let pem = authority::pem([&previous.certificate]);
        data.insert(PREVIOUS_CERTIFICATE.into(), ByteString(pem.into()));
        put_time(&mut data, PREVIOUS_REPLACED, previous.at);
    }
    secret(AUTHORITY_SECRET, "Opaque", data)
}

/// The Secret of the serving certificate.
pub fn leaf_secret(leaf: &Leaf, authority: &CertificateDer<'static>) -> Secret {
    let parts = [
        (CERTIFICATE, authority::pem(&leaf.chain).into_bytes()),
        (KEY, leaf.key_pem().to_vec()),
        (LEAF_AUTHORITY, authority::pem([authority]).into_bytes()),
    ];
    let data = parts.map(|(key, value)| (key.to_owned(), ByteString(value)));
    secret(LEAF_SECRET, "kubernetes.io/tls", data.into())
}

/// Reads the Secret of the authorities.
pub fn read_authorities(secret: &Secret) -> Reading<Option<Authorities>> {
    let mut problems = Vec::new();
    let data = secret.data.as_ref();
    let current = published(data, [CERTIFICATE, KEY, SINCE], &mut problems);
    let Some(current) = current else {
        if problems.is_empty() {
            problems.push(format!("it has no {CERTIFICATE}"));
        }
        let value = None;
        return Reading { value, problems };
    };
    let next = published(
        data,
        [NEXT_CERTIFICATE, NEXT_KEY, NEXT_SINCE],
        &mut problems,
    );
    let previous = get(data, PREVIOUS_CERTIFICATE).and_then(|pem| {
        let read = authority::authority_certificate(pem)
            .and_then(|certificate| Ok((authority::life(&certificate)?, certificate)));
        match read {
            Ok((life, certificate)) => Some(Replaced {
                certificate,
                life,
                at: time(data, PREVIOUS_REPLACED, &mut problems),
            }),
            Err(error) => {
                problems.push(format!("{PREVIOUS_CERTIFICATE}: {error}"));
                None
            }
        }
    });
    Reading {
        value: Some(Authorities {
            current,
            next,
            previous,
        }),
        problems,
    }
}

/// Reads the Secret of the serving certificate: it, and the authority beside it.
pub fn read_leaf(secret: &Secret) -> Reading<(Option<Leaf>, Option<CertificateDer<'static>>)> {
    let data = secret.data.as_ref();
    let mut problems = Vec::new();
    let leaf = if let (Some(chain), Some(key)) = (get(data, CERTIFICATE), get(data, KEY)) {
        Leaf::read(chain, key)
            .map_err(|error| problems.push(format!("{CERTIFICATE}, {KEY}: {error}")))
            .ok()
    } else {
        problems.push(format!("it has no {CERTIFICATE} or no {KEY}"));
        None
    };
    let authority = get(data, LEAF_AUTHORITY).and_then(|pem| {
        authority::authority_certificate(pem)
            .map_err(|error| problems.push(format!("{LEAF_AUTHORITY}: {error}")))
            .ok()
    });
    let value = (leaf, authority);
    Reading { value, problems }
}

fn published(
    data: Option<&Data>,
    [certificate, key, since]: [&str; 3],
    problems: &mut Vec<String>,
) -> Option<Published> {
    let pem = get(data, certificate)?;
    match Authority::read(pem, get(data, key).unwrap_or_default()) {
        Ok(authority) => Some(Published {
            authority,
            since: time(data, since, problems),
        }),
        Err(error) => {
            problems.push(format!("{certificate}, {key}: {error}"));
            None
        }
    }
}

fn time(data: Option<&Data>, key: &str, problems: &mut Vec<String>) -> Option<Timestamp> {
    let text = String::from_utf8_lossy(get(data, key)?);
    let time = text.trim().parse::<Timestamp>();
    let time = time.map_err(|_| problems.push(format!("{key}: not a time")));
    // A time to come is as wrong as none, and would keep what waits for it waiting.
    let latest = super::policy::after(Timestamp::now(), Duration::from_hours(1));
    time.ok().filter(|time| *time <= latest)
}

fn put(data: &mut Data, [certificate, key, since]: [&str; 3], published: &Published) {
    let authority = &published.authority;
    let pem = authority::pem([&authority.certificate]);
    data.insert(certificate.into(), ByteString(pem.into()));
    let pem = authority.key_pem().as_bytes().to_vec();
    data.insert(key.into(), ByteString(pem));
    put_time(data, since, published.since);
}

fn put_time(data: &mut Data, key: &str, time: Option<Timestamp>) {
    if let Some(time) = time {
        data.insert(key.into(), ByteString(time.to_string().into()));
    }
}

fn get<'a>(data: Option<&'a Data>, key: &str) -> Option<&'a [u8]> {
    data?.get(key).map(|bytes| bytes.0.as_slice())
}

fn secret(name: &str, kind: &str, data: Data) -> Secret {
    let label = (
        "app.kubernetes.io/managed-by".to_owned(),
        "nexus-operator".to_owned(),
    );
    Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some([label].into()),
            ..ObjectMeta::default()
        },
        type_: Some(kind.to_owned()),
        data: Some(data),
        ..Secret::default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::{Outcome, Step, Stored, take};
    use super::super::policy::Policy;
    use super::*;

    fn policy() -> Policy {
        Policy {
            authority_life: Duration::from_secs(1000),
            publish_before: Duration::from_secs(10),
            keep_after: Duration::from_secs(20),
            leaf_life: Duration::from_secs(100),
            names: vec!["a.b.svc".into()],
        }
    }

    fn authorities() -> Authorities {
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let mut stored = Stored::default();
        for step in [
            Step::Begin,
            Step::PublishNext,
            Step::NotePublished,
            Step::Promote,
            Step::PublishNext,
        ] {
            let Ok(Outcome::Authorities(new)) = take(step, now, stored, &policy()) else {
                panic!("{step:?}");
            };
            stored = Stored {
                authorities: Some(*new),
                ..Stored::default()
            };
        }
        stored.authorities.unwrap()
    }

    fn leaf(authorities: &Authorities) -> Leaf {
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let authority = &authorities.current.authority;
        authority
            .sign(now, policy().leaf_life, &policy().names)
            .unwrap()
    }

    #[test]
    fn what_is_written_is_read_again() {
        let written = authorities();
        let secret = authority_secret(&written);
        let read = read_authorities(&secret);
        assert_eq!(read.problems, [""; 0]);
        let read = read.value.unwrap();
        assert!(written.trusted().eq(read.trusted()));
        assert_eq!(read.trusted().count(), 3);
        assert_eq!(read.current.since, written.current.since);
        assert!(read.current.since.is_some());
        assert_eq!(read.next.unwrap().since, None);
        assert_eq!(read.previous.unwrap().at, written.previous.unwrap().at);
        let rewritten = read_authorities(&secret).value.unwrap();
        assert_eq!(authority_secret(&rewritten), secret);
    }

    #[test]
    fn a_serving_certificate_is_read_again_with_its_authority() {
        let authorities = authorities();
        let leaf = leaf(&authorities);
        let secret = leaf_secret(&leaf, &authorities.current.authority.certificate);
        let read = read_leaf(&secret);
        assert_eq!(read.problems, [""; 0]);
        let (read, authority) = read.value;
        let (read, authority) = (read.unwrap(), authority.unwrap());
        assert_eq!((&read.chain, read.life), (&leaf.chain, leaf.life));
        assert!(read.is_signed_by(&authority));
        assert!(!read.is_signed_by(&authorities.next.unwrap().authority.certificate));
    }

    #[test]
    fn foreign_content_is_named_and_never_a_panic() {
        let authorities = authorities();
        let good = authority_secret(&authorities);
        let leaf = leaf(&authorities);
        let good_leaf = leaf_secret(&leaf, &authorities.current.authority.certificate);
        let leaf_pem = authority::pem(&leaf.chain);
        let junk: [&[u8]; 5] = [
            b"",
            b"\xff\xfe",
            b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
            leaf_pem.as_bytes(),
        ];
        for junk in junk {
            for (key, usable) in [(CERTIFICATE, false), (KEY, false), (NEXT_KEY, true)] {
                let mut secret = good.clone();
                let bytes = ByteString(junk.to_vec());
                secret.data.as_mut().unwrap().insert(key.into(), bytes);
                let read = read_authorities(&secret);
                assert_eq!(read.value.is_some(), usable, "{key} {junk:?}");
                assert!(
                    read.problems.iter().any(|it| it.contains(key)),
                    "{key} {junk:?}"
                );
            }
            for key in [CERTIFICATE, KEY] {
                let mut secret = good_leaf.clone();
                let bytes = ByteString(junk.to_vec());
                secret.data.as_mut().unwrap().insert(key.into(), bytes);
                let read = read_leaf(&secret);
                let own = key == CERTIFICATE && junk == leaf_pem.as_bytes();
                assert_eq!(read.value.0.is_some(), own, "{key} {junk:?}");
            }
        }
        assert!(read_authorities(&Secret::default()).value.is_none());
        assert_eq!(read_authorities(&Secret::default()).problems.len(), 1);
        assert!(read_leaf(&Secret::default()).value.0.is_none());
    }

    #[test]
    fn the_key_of_another_certificate_is_refused() {
        let (one, other) = (authorities(), authorities());
        let mut secret = authority_secret(&one);
        let key = authority_secret(&other).data.unwrap().remove(KEY).unwrap();
        secret.data.as_mut().unwrap().insert(KEY.into(), key);
        let read = read_authorities(&secret);
        assert!(read.value.is_none());
        assert!(
            read.problems[0].contains("does not belong"),
            "{:?}",
            read.problems
        );
    }
}
