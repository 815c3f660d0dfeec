//! Access keys: tokens of clients that do not show them, but sign with them.
//!
//! To check a signature the node needs the secret itself, and of a token it keeps the hash.
//! So the secret of an access key follows from the key and the store's own secret: it is
//! computed whenever it is needed, and stands nowhere. It is a token as every other one: at
//! other doors it can be shown, it is listed, and revoked.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use posthouse_core::ident::Secret;
use ring::hmac;

use super::access::{is_open, token_hash};
use super::users::{TOKEN_PREFIX, random};
use super::{Broker, Caller};
use crate::problem::{Kind, Problem};

/// Before every access key.
const KEY_PREFIX: &str = "phk_";

/// Tells this use of the store's secret from others.
const PURPOSE: &[u8] = b"posthouse access key\0";

/// A new access key.
#[derive(Clone, PartialEq, Eq)]
pub struct AccessKey {
    /// The key: what a client is known by. No secret.
    pub id: String,
    /// What it signs with; a token, too. Never shown again.
    pub secret: String,
}

impl std::fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AccessKey({})", self.id)
    }
}

impl AccessKey {
    /// One that nobody has yet.
    pub(super) fn new(secret: &Secret) -> Result<AccessKey, Problem> {
        let id = format!("{KEY_PREFIX}{}", URL_SAFE_NO_PAD.encode(random::<15>()?));
        let secret = secret_of(secret, &id);
        Ok(AccessKey { id, secret })
    }
}

/// The secret that belongs to an access key.
fn secret_of(secret: &Secret, id: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, &secret.bytes());
    let mut context = hmac::Context::with_key(&key);
    context.update(PURPOSE);
    context.update(id.as_bytes());
    format!("{TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(context.sign()))
}

/// That somebody has the secret of an access key, without showing it.
#[derive(Clone, Copy, Debug)]
pub struct Signed<'a> {
    /// The access key.
    pub access_key: &'a str,
    /// What was signed.
    pub text: &'a str,
    /// HMAC-SHA-1 of it.
    pub signature: &'a [u8],
}

impl Broker {
    /// The caller who has signed something.
    ///
    /// # Errors
    /// If users are defined, and the access key belongs to none or the signature is not by
    /// its secret.
    pub fn identify_signed(&self, signed: &Signed<'_>) -> Result<Caller, Problem> {
        let catalog = self.catalog();
        if is_open(&catalog) {
            return Ok(Caller::Anyone);
        }
        let refuse = |detail| {
            let problem = Problem::new(Kind::Unauthenticated, "unauthenticated", detail);
            problem.with_hint(
                "it may have been revoked; `posthouse user token --access-key` makes a new one",
            )
        };
        let secret = secret_of(&self.secret, signed.access_key);
        let caller = Caller::of_hash(&catalog, &token_hash(&secret)).map_err(|_| {
            refuse(format!("access key {:?} belongs to no user of this node", signed.access_key))
        })?;
        let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret.as_bytes());
        hmac::verify(&key, signed.text.as_bytes(), signed.signature).map_err(|_| {
            refuse("the signature was not made with the access key's secret".into())
        })?;
        Ok(caller)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_follows_from_its_key_and_the_store() {
        let (one, other) = (Secret::new([1; 32]), Secret::new([2; 32]));
        let key = AccessKey::new(&one).unwrap();
        assert_eq!(secret_of(&one, &key.id), key.secret);
        assert_ne!(secret_of(&other, &key.id), key.secret);
        assert_ne!(AccessKey::new(&one).unwrap(), key);
        assert!(key.id.starts_with("phk_") && key.secret.starts_with("ph_"));
        assert!(!format!("{key:?}").contains(&key.secret), "a secret is in no log");
    }
}
