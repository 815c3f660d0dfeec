//! Names as RocketMQ clients write them, and as they are here.
//!
//! A namespace is a prefix: topic `orders` of namespace `shop` is `shop.orders`. The
//! dead letters of a group are `%DLQ%group` to its clients.

use posthouse_core::name;

use super::fault::Fault;
use super::pb::{Code, Resource};

/// What begins the name of a dead-letter topic on the wire.
const DEAD: &str = "%DLQ%";

/// A namespace: what stands before the names of one client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace(String);

impl Namespace {
    /// That of a resource.
    pub fn of(resource: &Resource) -> Namespace {
        Namespace(resource.resource_namespace.clone())
    }

    fn enter(&self, name: &str) -> String {
        match self.0.as_str() {
            "" => name.to_owned(),
            namespace => format!("{namespace}.{name}"),
        }
    }

    fn leave<'a>(&self, name: &'a str) -> &'a str {
        let inner = name.strip_prefix(self.0.as_str()).and_then(|rest| rest.strip_prefix('.'));
        inner.filter(|_| !self.0.is_empty()).unwrap_or(name)
    }

    /// The topic `name` of the node, as its clients know it.
    pub fn topic(&self, name: &str) -> Resource {
        let dead = name::dead_letter_topic("");
        let name = match name.strip_prefix(&dead) {
            Some(group) => format!("{DEAD}{}", self.leave(group)),
            None => self.leave(name).to_owned(),
        };
        Resource { resource_namespace: self.0.clone(), name }
    }
}

/// The node's name of a topic.
///
/// # Errors
/// If there is none, or it cannot be a name.
pub fn topic(resource: Option<&Resource>) -> Result<String, Fault> {
    let resource = resource.filter(|resource| !resource.name.is_empty());
    let resource = resource.ok_or_else(|| Fault::new(Code::IllegalTopic, "no topic is given"))?;
    let namespace = Namespace::of(resource);
    let (name, checked) = match resource.name.strip_prefix(DEAD) {
        Some(group) => {
            let group = namespace.enter(group);
            let name = name::dead_letter_topic(&group);
            let checked = name::check(&group).and_then(|()| name::check_any(&name));
            (name, checked)
        }
        None => {
            let name = namespace.enter(&resource.name);
            let checked = name::check(&name);
            (name, checked)
        }
    };
    checked.map_err(|error| Fault::new(Code::IllegalTopic, format!("topic {name:?}: {error}")))?;
    Ok(name)
}

/// The node's name of a group.
///
/// # Errors
/// If there is none, or it cannot be a name.
pub fn group(resource: Option<&Resource>) -> Result<String, Fault> {
    let resource = resource.filter(|resource| !resource.name.is_empty());
    let missing = || Fault::new(Code::IllegalConsumerGroup, "no consumer group is given");
    let resource = resource.ok_or_else(missing)?;
    let name = Namespace::of(resource).enter(&resource.name);
    name::check(&name).map_err(|error| {
        Fault::new(Code::IllegalConsumerGroup, format!("group {name:?}: {error}"))
    })?;
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(namespace: &str, name: &str) -> Resource {
        Resource { resource_namespace: namespace.into(), name: name.into() }
    }

    #[test]
    fn names_go_in_and_come_back() {
        for (namespace, outside, inside) in [
            ("", "orders", "orders"),
            ("shop", "orders", "shop.orders"),
            ("", "%DLQ%billing", "%dead.billing"),
            ("shop", "%DLQ%billing", "%dead.shop.billing"),
        ] {
            let resource = resource(namespace, outside);
            let name = topic(Some(&resource)).unwrap();
            assert_eq!(name, inside);
            assert_eq!(Namespace::of(&resource).topic(&name), resource);
        }
        assert_eq!(group(Some(&resource("shop", "billing"))).unwrap(), "shop.billing");
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for bad in ["", "a b", "%RETRY%g", "%dead.g", "a%b", "%DLQ%", &"x".repeat(201)] {
            let refused = topic(Some(&resource("", bad))).unwrap_err();
            assert_eq!(refused.code, Code::IllegalTopic, "{bad}");
        }
        assert_eq!(group(None).unwrap_err().code, Code::IllegalConsumerGroup);
        assert_eq!(group(Some(&resource("", "g%"))).unwrap_err().code, Code::IllegalConsumerGroup);
    }
}
