//! Bodies that prove what they are.

use posthouse::broker::recurring::{NAME_HEADER, TIME_HEADER};
use posthouse::units;
use posthouse_core::message::Parts;
use posthouse_log::rng::Rng;

/// The number that names a message in all histories.
pub type Token = u64;

/// The body of a message: its number, then bytes that follow from it.
pub fn body(token: Token, len: usize) -> Vec<u8> {
    let mut body = token.to_le_bytes().to_vec();
    let mut rng = Rng::new(token ^ 0x5eed);
    while body.len() < len.max(8) {
        body.extend_from_slice(&rng.next_u64().to_le_bytes());
    }
    body.truncate(len.max(8));
    body
}

/// The number that a body is of.
///
/// # Errors
/// What is wrong with it.
pub fn token_of(found: &[u8]) -> Result<Token, String> {
    let Some((token, _)) = found.split_first_chunk::<8>() else {
        return Err(format!("a body of {} bytes", found.len()));
    };
    let token = Token::from_le_bytes(*token);
    match body(token, found.len()) == found {
        true => Ok(token),
        false => Err(format!("the body of {token} is not as it was")),
    }
}

/// Where times of recurring messages stand in a number, and the message in what is above.
const TIME_BITS: u32 = 42;

/// The number of one time of a message that recurs.
pub fn occurrence(token: Token, at_ms: u64) -> Token {
    token << TIME_BITS | at_ms
}

/// The message that recurs, and the time, of a number that is of one.
pub fn time_of(token: Token) -> Option<(Token, u64)> {
    (token >> TIME_BITS > 0).then_some((token >> TIME_BITS, token & ((1 << TIME_BITS) - 1)))
}

/// The number of a message.
///
/// # Errors
/// What is wrong with it.
pub fn token_with(parts: &Parts<'_>, payload: &[u8]) -> Result<Token, String> {
    let token = token_of(payload)?;
    let time = parts.headers.iter().find(|(name, _)| *name == TIME_HEADER);
    let name = parts.headers.iter().find(|(name, _)| *name == NAME_HEADER);
    match (time, name) {
        (None, None) => Ok(token),
        (Some((_, at)), Some((_, name))) if *name == name_of(token) => {
            Ok(occurrence(token, units::time_ms(at)?))
        }
        other => Err(format!("message {token} recurs as {other:?}")),
    }
}

/// What the message is called if it recurs.
pub fn name_of(token: Token) -> String {
    format!("r{token}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_known_by_its_bytes_and_a_changed_one_is_seen() {
        for len in [0, 8, 9, 100, 5000] {
            let bytes = body(77, len);
            assert_eq!(token_of(&bytes), Ok(77));
            for at in 8..bytes.len() {
                let mut bad = bytes.clone();
                bad[at] ^= 1;
                assert!(token_of(&bad).is_err(), "byte {at} of {len}");
            }
        }
        assert!(token_of(&[1, 2]).is_err());
    }
}
