//! Bodies that prove what they are.

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
