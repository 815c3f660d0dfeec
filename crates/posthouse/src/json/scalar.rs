//! Durations and times as texts.

use std::time::SystemTime;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaType, Type};
use utoipa::openapi::{OneOfBuilder, RefOr};
use utoipa::{PartialSchema, ToSchema};

use crate::units;

/// A duration in milliseconds; in JSON a text like `"30s"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Duration(pub u64);

/// A time in Unix milliseconds; in JSON RFC 3339, or, coming in, a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time(pub u64);

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&units::show_duration(self.0))
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Duration;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a duration with its unit, like \"30s\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
                units::duration_ms(text)
                    .map(Duration)
                    .map_err(|what| E::custom(format!("{text:?}: {what}")))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

impl From<SystemTime> for Time {
    fn from(time: SystemTime) -> Self {
        Time(units::unix_ms(time))
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&units::show_time(self.0))
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl Visitor<'_> for Any {
            type Value = Time;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a time like \"2026-11-21T08:30:00Z\", or Unix milliseconds")
            }

            fn visit_u64<E: de::Error>(self, ms: u64) -> Result<Time, E> {
                Ok(Time(ms))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Time, E> {
                units::time_ms(text)
                    .map(Time)
                    .map_err(|what| E::custom(format!("{text:?}: {what}")))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

impl PartialSchema for Duration {
    fn schema() -> RefOr<Schema> {
        let text = ObjectBuilder::new()
            .schema_type(SchemaType::Type(Type::String))
            .description(Some("A duration: 250ms, 30s, 15m, 24h, 7d, or several together"))
            .examples(["30s"]);
        RefOr::T(Schema::Object(text.build()))
    }
}

impl ToSchema for Duration {}

impl PartialSchema for Time {
    fn schema() -> RefOr<Schema> {
        time_or("A time: RFC 3339, or, coming in, Unix milliseconds", "2026-11-21T08:30:00Z")
    }
}

/// The schema of a text or a number.
pub(super) fn time_or(description: &str, example: &str) -> RefOr<Schema> {
    let text = ObjectBuilder::new().schema_type(SchemaType::Type(Type::String)).examples([example]);
    let number = ObjectBuilder::new().schema_type(SchemaType::Type(Type::Integer));
    let either = OneOfBuilder::new().item(text).item(number).description(Some(description));
    RefOr::T(Schema::OneOf(either.build()))
}

impl ToSchema for Time {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_times_are_texts() {
        assert_eq!(serde_json::to_string(&Duration(90_000)).unwrap(), r#""1m30s""#);
        assert_eq!(serde_json::from_str::<Duration>(r#""250ms""#).unwrap(), Duration(250));
        let error = serde_json::from_str::<Duration>("30").unwrap_err().to_string();
        assert!(error.contains("expected a duration with its unit"), "{error}");
        let time = serde_json::from_str::<Time>("1500").unwrap();
        assert_eq!(serde_json::to_string(&time).unwrap(), r#""1970-01-01T00:00:01.500Z""#);
        assert_eq!(serde_json::from_str::<Time>(r#""1970-01-01T00:00:01.5Z""#).unwrap(), time);
        let error = serde_json::from_str::<Time>(r#""soon""#).unwrap_err().to_string();
        assert!(error.contains("\"soon\": a time like"), "{error}");
    }
}
