//! Reads parts of a JSON document by their path, without copies of the rest.

use std::fmt;

use serde::Deserialize;
use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use zeroize::Zeroizing;

use super::Fields;

/// Any JSON value: scalars are kept (texts are overwritten on drop), the rest is skipped.
#[derive(Default)]
pub(crate) enum Loose {
    #[default]
    Null,
    Bool(bool),
    Number(f64),
    Text(Zeroizing<String>),
    List,
    Object,
}

impl fmt::Debug for Loose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Null => "null",
            Self::Bool(_) => "boolean",
            Self::Number(_) => "number",
            Self::Text(_) => "string",
            Self::List => "array",
            Self::Object => "object",
        })
    }
}

impl<'de> Deserialize<'de> for Loose {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(LooseVisitor)
    }
}

struct LooseVisitor;

impl<'de> Visitor<'de> for LooseVisitor {
    type Value = Loose;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Loose, E> {
        Ok(Loose::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Loose, E> {
        Ok(Loose::Bool(value))
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "a time to the microsecond is enough"
    )]
    fn visit_i64<E>(self, value: i64) -> Result<Loose, E> {
        Ok(Loose::Number(value as f64))
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "a time to the microsecond is enough"
    )]
    fn visit_u64<E>(self, value: u64) -> Result<Loose, E> {
        Ok(Loose::Number(value as f64))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Loose, E> {
        Ok(Loose::Number(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Loose, E> {
        Ok(Loose::Text(Zeroizing::new(value.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Loose, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Loose::List)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Loose, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Loose::Object)
    }
}

/// Reads the object found under `path`, skipping everything else.
pub(super) fn read_at<'de, S: DeserializeSeed<'de>>(
    payload: &'de [u8],
    path: &[&'static str],
    seed: S,
) -> Result<S::Value, serde_json::Error> {
    // Derived readers take arrays for structs.
    if payload.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
        return Err(serde_json::Error::custom("not an object"));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(payload);
    let value = Under { path, seed }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

struct Under<'p, S> {
    path: &'p [&'static str],
    seed: S,
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Under<'_, S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<S::Value, D::Error> {
        if self.path.is_empty() {
            self.seed.deserialize(deserializer)
        } else {
            deserializer.deserialize_map(self)
        }
    }
}

impl<'de, S: DeserializeSeed<'de>> Visitor<'de> for Under<'_, S> {
    type Value = S::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<S::Value, A::Error> {
        let Some((head, rest)) = self.path.split_first() else {
            return Err(A::Error::custom("an empty path"));
        };
        let mut seed = Some(self.seed);
        let mut found = None;
        while let Some(key) = map.next_key::<String>()? {
            if key == *head {
                let seed = seed.take().ok_or_else(|| A::Error::duplicate_field(head))?;
                found = Some(map.next_value_seed(Under { path: rest, seed })?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        found.ok_or_else(|| A::Error::missing_field(head))
    }
}

/// Reads the fields with these names, and those that tell of the expiry.
pub(super) struct FieldsSeed<'n> {
    pub(super) names: &'n [&'n str],
}

impl<'de> DeserializeSeed<'de> for FieldsSeed<'_> {
    type Value = Fields;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Fields, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for FieldsSeed<'_> {
    type Value = Fields;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
        let mut fields = Fields::default();
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "expires_at" => once(&mut fields.expires_at, &mut map)?,
                "expiry" => once(&mut fields.expiry, &mut map)?,
                "expires_in" => once(&mut fields.expires_in, &mut map)?,
                "expired" => once(&mut fields.expired, &mut map)?,
                name if self.names.contains(&name) => {
                    if fields.values.iter().any(|(field, _)| field == name) {
                        return Err(A::Error::custom("a field occurs twice"));
                    }
                    let value: Loose = map.next_value()?;
                    fields.refresh_token |= name == "refresh_token" && is_text(&value);
                    fields.values.push((key, value));
                }
                "refresh_token" => fields.refresh_token = is_text(&map.next_value()?),
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(fields)
    }
}

fn once<'de, A: MapAccess<'de>>(field: &mut Loose, map: &mut A) -> Result<(), A::Error> {
    if !matches!(field, Loose::Null) {
        return Err(A::Error::custom("a field occurs twice"));
    }
    *field = map.next_value()?;
    Ok(())
}

fn is_text(value: &Loose) -> bool {
    matches!(value, Loose::Text(text) if !text.is_empty())
}
