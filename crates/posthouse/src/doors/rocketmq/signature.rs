//! How clients with an access key prove that they have its secret: they sign the time.
//!
//! `MQv2-HMAC-SHA1 Credential=KEY/REGION/SERVICE, SignedHeaders=x-mq-date-time, Signature=HEX`
//! where the last is the HMAC-SHA-1 of the value of `x-mq-date-time`.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use super::fault::Fault;
use super::pb::Code;
use crate::broker::access_keys::Signed;
use crate::broker::{Broker, Caller};

const SCHEME: &str = "MQv2-HMAC-SHA1 ";

/// What is signed.
const SIGNED: &str = "x-mq-date-time";

/// How a time is written. Some clients write that of their own zone, and all of them say
/// that it is UTC.
const FORMAT: &str = "%Y%m%dT%H%M%SZ";

/// How far the clocks of clients may be off, in seconds.
const SKEW_S: i64 = 300;

/// Zones of the earth: so much before UTC, and after it, in seconds.
const ZONES_S: (i64, i64) = (12 * 3600, 14 * 3600);

/// A signature.
#[derive(Debug, PartialEq, Eq)]
pub struct Signature<'a> {
    access_key: &'a str,
    signed: &'a str,
    hex: &'a str,
}

impl<'a> Signature<'a> {
    /// Reads a header. `None` if it is none, or has no access key: some clients sign with an
    /// empty one if they have none.
    pub fn parse(header: &'a str) -> Option<Signature<'a>> {
        let (mut access_key, mut signed, mut hex) = ("", "", "");
        for part in header.strip_prefix(SCHEME)?.split(',') {
            match part.trim().split_once('=')? {
                ("Credential", credential) => {
                    access_key = credential.split('/').next().unwrap_or_default();
                }
                ("SignedHeaders", names) => signed = names,
                ("Signature", digits) => hex = digits,
                _ => {}
            }
        }
        (!access_key.is_empty()).then_some(Signature { access_key, signed, hex })
    }

    /// Who has signed; `date` is what was.
    ///
    /// # Errors
    /// If it was nobody, or too long ago.
    pub fn caller(&self, broker: &Broker, date: Option<&str>) -> Result<Caller, Fault> {
        let refuse = |text: String| Err(Fault::new(Code::Unauthorized, text));
        if !self.signed.eq_ignore_ascii_case(SIGNED) {
            return refuse(format!("{:?} is signed; {SIGNED} has to be", self.signed));
        }
        let text = date.unwrap_or_default();
        let Some(signed_at) = seconds(text) else {
            return refuse(format!("{SIGNED} is {text:?}; a time like 20260131T235959Z is one"));
        };
        if !is_near(signed_at, (broker.now().0 / 1000) as i64) {
            return refuse(format!(
                "the request was signed at {text}, which is more than {SKEW_S} s from now in any time \
                 zone: set the clock of the client"
            ));
        }
        let Some(signature) = bytes(self.hex) else {
            return refuse(format!("the signature is {:?}, and not in hexadecimal", self.hex));
        };
        let signed = Signed { access_key: self.access_key, text, signature: &signature };
        Ok(broker.identify_signed(&signed)?)
    }
}

/// A time as clients write it, in Unix seconds as if it were UTC.
fn seconds(text: &str) -> Option<i64> {
    let time = DateTime::strptime(FORMAT, text).ok()?;
    Some(time.to_zoned(TimeZone::UTC).ok()?.timestamp().as_second())
}

fn is_near(signed_at: i64, now: i64) -> bool {
    (-ZONES_S.0 - SKEW_S..=ZONES_S.1 + SKEW_S).contains(&(signed_at - now))
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    let digits = hex.as_bytes();
    if !digits.len().is_multiple_of(2) || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_read_as_every_client_writes_it() {
        let signed = Signature { access_key: "phk_a-b", signed: SIGNED, hex: "0aFF" };
        for credential in ["phk_a-b", "phk_a-b//Rocketmq", "phk_a-b/region/Rocketmq"] {
            let header = format!(
                "MQv2-HMAC-SHA1 Credential={credential}, SignedHeaders=x-mq-date-time, \
                 Signature=0aFF"
            );
            assert_eq!(Signature::parse(&header).as_ref(), Some(&signed), "{header}");
        }
        assert_eq!(bytes(signed.hex).unwrap(), [10, 255]);
        for nobody in [
            "Bearer ph_x",
            "MQv2-HMAC-SHA1 ",
            "MQv2-HMAC-SHA1 Credential=, SignedHeaders=x-mq-date-time, Signature=00",
            "MQv2-HMAC-SHA1 Credential=//Rocketmq, SignedHeaders=x-mq-date-time, Signature=00",
        ] {
            assert_eq!(Signature::parse(nobody), None, "{nobody}");
        }
        for bad in ["0", "0g", "+1"] {
            assert_eq!(bytes(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_time_is_near_in_some_zone_or_it_is_not() {
        assert_eq!(seconds("19700102T000001Z"), Some(86_401));
        for bad in ["", "19700102", "1970-01-02T00:00:01Z", "19701302T000001Z"] {
            assert_eq!(seconds(bad), None, "{bad}");
        }
        let now = 1_000_000;
        for off in [0, 14 * 3600, 14 * 3600 + 300, -12 * 3600 - 300] {
            assert!(is_near(now + off, now), "{off}");
        }
        for off in [14 * 3600 + 301, -12 * 3600 - 301] {
            assert!(!is_near(now + off, now), "{off}");
        }
    }
}
