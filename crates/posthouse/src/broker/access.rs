//! Who may do what. Every door brings a [`Caller`], and every operation of the broker
//! asks here; there is no other place.

use std::sync::Arc;

use posthouse_core::catalog::{Action, Catalog, User, UserConfig};
use posthouse_core::name::TopicPattern;
use sha2::{Digest as _, Sha256};

use crate::problem::{Kind, Problem};

/// Who asks.
#[derive(Clone, Debug)]
pub enum Caller {
    /// Nobody has said. Enough as long as no user is defined.
    Anyone,
    /// A user, as it was when the token was shown.
    User {
        /// The user.
        user: Arc<User>,
        /// The hash of the token.
        token: Arc<str>,
    },
    /// The node itself.
    Node,
}

/// On what something is done.
#[derive(Clone, Copy, Debug)]
pub enum On<'a> {
    /// A topic.
    Topic(&'a str),
    /// A group.
    Group(&'a str),
    /// Everything: users, the whole node.
    Node,
}

/// The hash under which a token is kept. Tokens are 256 random bits, so a fast hash
/// gives nothing away.
pub fn token_hash(token: &str) -> String {
    Sha256::digest(token.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Caller {
    /// The caller who shows this token, or none.
    ///
    /// # Errors
    /// If the node is not open, and the token belongs to no user.
    pub fn identify(catalog: &Catalog, token: Option<&str>) -> Result<Caller, Problem> {
        match token {
            _ if is_open(catalog) => Ok(Caller::Anyone),
            None => Err(no_token()),
            Some(token) => Caller::of_hash(catalog, &token_hash(token)),
        }
    }

    /// The caller who has the token with this hash.
    pub(super) fn of_hash(catalog: &Catalog, hash: &str) -> Result<Caller, Problem> {
        match catalog.user_by_token(hash) {
            Some(user) => Ok(Caller::User { user: user.clone(), token: hash.into() }),
            None => Err(Problem::new(
                Kind::Unauthenticated,
                "unauthenticated",
                "the token belongs to no user of this node",
            )
            .with_hint("it may have been revoked; `posthouse user token` makes a new one")),
        }
    }

    /// The same caller as it is now: for whoever was let in a while ago and stays, like
    /// a stream.
    ///
    /// # Errors
    /// If the token was revoked, or the node has users now and there was none.
    pub fn again(&self, catalog: &Catalog) -> Result<Caller, Problem> {
        match self {
            Caller::Node => Ok(Caller::Node),
            _ if is_open(catalog) => Ok(Caller::Anyone),
            Caller::Anyone => Err(no_token()),
            Caller::User { token, .. } => Caller::of_hash(catalog, token),
        }
    }

    /// The user's name, for logs.
    pub fn name(&self) -> &str {
        match self {
            Caller::Anyone => "anyone",
            Caller::User { user, .. } => &user.name,
            Caller::Node => "the node",
        }
    }

    /// The user, if it is one.
    pub fn user(&self) -> Option<&Arc<User>> {
        match self {
            Caller::User { user, .. } => Some(user),
            Caller::Anyone | Caller::Node => None,
        }
    }

    /// Whether the caller may do `action` on `on`.
    pub fn may(&self, action: Action, on: On<'_>) -> bool {
        match self {
            Caller::Anyone | Caller::Node => true,
            Caller::User { user, .. } => allows(&user.config, action, on),
        }
    }

    /// Refuses what the caller may not do.
    ///
    /// # Errors
    /// [`Kind::Forbidden`], naming the user, the action and what it is done on.
    pub fn check(&self, action: Action, on: On<'_>) -> Result<(), Problem> {
        if self.may(action, on) {
            return Ok(());
        }
        let action = match action {
            Action::Publish => "publish to",
            Action::Consume => "consume as",
            Action::Manage => "manage",
        };
        let on = match on {
            On::Topic(name) => format!("topic {name:?}"),
            On::Group(name) => format!("group {name:?}"),
            On::Node => "this node".into(),
        };
        let detail = format!("user {:?} may not {action} {on}", self.name());
        Err(Problem::new(Kind::Forbidden, "forbidden", detail)
            .with_hint("someone who may manage this node can grant it"))
    }
}

fn no_token() -> Problem {
    let detail = "this node has users, and the request shows no token";
    Problem::new(Kind::Unauthenticated, "unauthenticated", detail)
        .with_hint("send `Authorization: Bearer TOKEN`; `posthouse user token` makes one")
}

/// Whether anyone may do anything: there is nobody yet who may manage the node and has a
/// token. Users can so be made, and given tokens, before the door closes.
pub fn is_open(catalog: &Catalog) -> bool {
    !catalog.users().any(|user| is_manager(&user.config))
}

/// Whether somebody with this configuration can manage the node.
pub(super) fn is_manager(config: &UserConfig) -> bool {
    !config.tokens.is_empty() && allows(config, Action::Manage, On::Node)
}

fn allows(config: &UserConfig, action: Action, on: On<'_>) -> bool {
    config.grants.iter().any(|grant| {
        grant.actions.contains(&action)
            && match on {
                On::Topic(name) => covers(&grant.topics, name),
                On::Group(name) => covers(&grant.groups, name),
                On::Node => {
                    let all = |patterns: &[String]| patterns.iter().any(|p| p == "*");
                    all(&grant.topics) && all(&grant.groups)
                }
            }
    })
}

/// `*` covers everything, what is the system's too; else a pattern covers what it
/// matches, and a dead-letter or retry topic goes with its group.
fn covers(patterns: &[String], name: &str) -> bool {
    patterns.iter().any(|pattern| {
        pattern == "*" || TopicPattern::parse(pattern).is_ok_and(|pattern| pattern.matches(name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use posthouse_core::UnixMs;
    use posthouse_core::catalog::AccessGrant;

    fn user(actions: &[Action], topics: &[&str], groups: &[&str]) -> Caller {
        let texts = |texts: &[&str]| texts.iter().map(|t| t.to_string()).collect();
        let user = Arc::new(User {
            id: 1,
            name: "shop".into(),
            created_at: UnixMs(0),
            config: UserConfig {
                grants: vec![AccessGrant {
                    actions: actions.to_vec(),
                    topics: texts(topics),
                    groups: texts(groups),
                }],
                ..UserConfig::default()
            },
        });
        Caller::User { user, token: "".into() }
    }

    #[test]
    fn a_user_may_what_was_granted_and_nothing_else() {
        let caller = user(&[Action::Publish, Action::Consume], &["orders.*"], &["billing"]);
        assert!(caller.may(Action::Publish, On::Topic("orders.eu")));
        assert!(!caller.may(Action::Publish, On::Topic("payments")));
        assert!(caller.may(Action::Consume, On::Group("billing")));
        assert!(!caller.may(Action::Consume, On::Group("audit")));
        assert!(!caller.may(Action::Manage, On::Topic("orders.eu")));
        assert!(!caller.may(Action::Manage, On::Node));
        let refused = caller.check(Action::Publish, On::Topic("payments")).unwrap_err();
        assert_eq!(refused.detail, "user \"shop\" may not publish to topic \"payments\"");
    }

    #[test]
    fn who_may_manage_everything_may_manage_the_node() {
        assert!(user(&[Action::Manage], &["*"], &["*"]).may(Action::Manage, On::Node));
        assert!(!user(&[Action::Manage], &["*"], &["g"]).may(Action::Manage, On::Node));
        assert!(user(&[Action::Manage], &["*"], &[]).may(Action::Manage, On::Topic("%dead.g")));
        assert!(!user(&[Action::Manage], &["d*"], &[]).may(Action::Manage, On::Topic("%dead.g")));
    }

    #[test]
    fn tokens_are_kept_as_their_hash() {
        assert_eq!(
            token_hash("abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
