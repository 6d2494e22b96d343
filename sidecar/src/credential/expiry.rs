//! When a credential expires, from the fields that say so in a payload: pure, no clock.
//!
//! The control plane passes on what providers answer, so one instant arrives as RFC 3339, as a number or as a
//! numeric string. What is there and cannot be read is an error: a credential of unknown age is not used.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;

use super::payload::Loose;

/// Unix times from here on are not seconds but a finer unit: in seconds this is the year 5138.
const FINER_THAN_SECONDS: f64 = 1e11;
/// Go's zero time, which serializers write for "no expiry".
const GO_ZERO_TIME: i64 = -62_135_596_800;
/// Longer lives are cut to this.
const LONGEST: Duration = Duration::from_hours(100 * 365 * 24);

/// When a credential expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// Nothing says so.
    Never,
    /// At this time.
    At(SystemTime),
    /// This long after its value was first seen.
    After(Duration),
}

/// A field is there, and is neither a time nor a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreadable(pub &'static str);

/// Reads the expiry in the protocol's order: `expires_at`, `expiry`, `expires_in`. The first that is present
/// decides; `null` and the empty string count as absent.
pub(crate) fn read(
    expires_at: &Loose,
    expiry: &Loose,
    expires_in: &Loose,
) -> Result<Expiry, Unreadable> {
    for (name, value) in [("expires_at", expires_at), ("expiry", expiry)] {
        if let Some(at) = instant(value).map_err(|()| Unreadable(name))? {
            return Ok(Expiry::At(at));
        }
    }
    let lifetime = number(expires_in).map_err(|()| Unreadable("expires_in"))?;
    Ok(lifetime.map_or(Expiry::Never, |seconds| Expiry::After(seconds_of(seconds))))
}

fn instant(value: &Loose) -> Result<Option<SystemTime>, ()> {
    if let Loose::Text(text) = value
        && let Ok(timestamp) = text.trim().parse::<Timestamp>()
    {
        return Ok((timestamp.as_second() != GO_ZERO_TIME)
            .then(|| SystemTime::from(timestamp).clamp(UNIX_EPOCH, UNIX_EPOCH + 10 * LONGEST)));
    }
    Ok(number(value)?.map(|mut unix| {
        while unix >= FINER_THAN_SECONDS {
            unix /= 1000.0;
        }
        UNIX_EPOCH + Duration::from_secs_f64(unix.max(0.0))
    }))
}

fn number(value: &Loose) -> Result<Option<f64>, ()> {
    match value {
        Loose::Null => Ok(None),
        Loose::Text(text) if text.trim().is_empty() => Ok(None),
        Loose::Text(text) => match text.trim().parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(Some(number)),
            Ok(_) | Err(_) => Err(()),
        },
        Loose::Number(number) => Ok(Some(*number)),
        Loose::Bool(_) | Loose::List | Loose::Object => Err(()),
    }
}

fn seconds_of(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.clamp(0.0, LONGEST.as_secs_f64()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use zeroize::Zeroizing;

    use super::*;

    fn text(value: impl Into<String>) -> Loose {
        Loose::Text(Zeroizing::new(value.into()))
    }

    fn at(expires_at: &Loose) -> Expiry {
        read(expires_at, &Loose::Null, &Loose::Null).unwrap()
    }

    fn unix(seconds: u64) -> Expiry {
        Expiry::At(UNIX_EPOCH + Duration::from_secs(seconds))
    }

    #[test]
    fn offsets_of_the_database_session_name_the_same_instant() {
        assert_eq!(
            at(&text("2026-11-24T12:11:52+03:00")),
            at(&text("2026-11-24T09:11:52Z"))
        );
    }

    #[test]
    fn the_first_field_present_decides() {
        let (early, late, life) = (text("1000"), text("2000"), Loose::Number(5.0));
        assert_eq!(read(&early, &late, &life), Ok(unix(1000)));
        assert_eq!(read(&Loose::Null, &late, &life), Ok(unix(2000)));
        assert_eq!(read(&text(""), &late, &life), Ok(unix(2000)));
        assert_eq!(
            read(&Loose::Null, &Loose::Null, &life),
            Ok(Expiry::After(Duration::from_secs(5)))
        );
        assert_eq!(
            read(&Loose::Null, &Loose::Null, &Loose::Null),
            Ok(Expiry::Never)
        );
    }

    #[test]
    fn a_present_field_that_cannot_be_read_is_an_error_not_no_expiry() {
        for bad in [
            text("soon"),
            text("2026-01-01 00:00:00"),
            text("inf"),
            text("NaN"),
            Loose::Bool(true),
            Loose::List,
            Loose::Object,
        ] {
            let (none, life) = (Loose::Null, Loose::Number(60.0));
            assert_eq!(read(&bad, &none, &life), Err(Unreadable("expires_at")));
            assert_eq!(read(&none, &bad, &life), Err(Unreadable("expiry")));
            assert_eq!(read(&none, &none, &bad), Err(Unreadable("expires_in")));
        }
    }

    #[test]
    fn milliseconds_are_not_taken_for_seconds() {
        assert_eq!(at(&Loose::Number(1_735_689_600_000.0)), unix(1_735_689_600));
        assert_eq!(at(&text("1735689600000000")), unix(1_735_689_600));
    }

    #[test]
    fn gos_zero_time_means_no_expiry() {
        let zero = text("0001-01-01T00:00:00Z");
        assert_eq!(read(&Loose::Null, &zero, &Loose::Null), Ok(Expiry::Never));
    }

    proptest! {
        #[test]
        fn numbers_numeric_strings_and_rfc_3339_agree(seconds in 0_u32..4_000_000_000, hours in -12_i8..=14) {
            let expected = unix(u64::from(seconds));
            prop_assert_eq!(at(&Loose::Number(f64::from(seconds))), expected);
            prop_assert_eq!(at(&text(seconds.to_string())), expected);
            let offset = jiff::tz::Offset::constant(hours);
            let timestamp = Timestamp::from_second(i64::from(seconds)).unwrap();
            prop_assert_eq!(at(&text(timestamp.display_with_offset(offset).to_string())), expected);
        }

        #[test]
        fn no_text_panics_or_lives_past_the_longest_life(value in ".*") {
            if let Ok(Expiry::After(life)) = read(&Loose::Null, &Loose::Null, &text(value.clone())) {
                prop_assert!(life <= LONGEST);
            }
            let _ = read(&text(value), &Loose::Null, &Loose::Null);
        }

        #[test]
        fn no_number_panics(value in proptest::num::f64::NORMAL | proptest::num::f64::ZERO | proptest::num::f64::SUBNORMAL) {
            let number = Loose::Number(value);
            prop_assert!(read(&number, &Loose::Null, &Loose::Null).is_ok());
            prop_assert!(read(&Loose::Null, &Loose::Null, &number).is_ok());
        }
    }
}
