//! Names of topics and groups, and patterns over topics.

use posthouse_core::name::{self, MAX_NAME_BYTES, TopicPattern};

use crate::{Seeds, memory, text};

/// The first line is a pattern, those behind it are topics.
pub fn run(data: &[u8]) {
    let mut lines = text(data).lines();
    let Some(pattern) = lines.next() else { return };
    memory::within(64 * data.len() + (16 << 10), || {
        if name::check(pattern).is_ok() {
            assert!((1..=MAX_NAME_BYTES).contains(&pattern.len()));
            assert_eq!(name::check_any(pattern), Ok(()));
            assert_eq!(name::check_any(&name::dead_letter_topic(pattern)), Ok(()));
        }
        let Ok(parsed) = TopicPattern::parse(pattern) else { return };
        assert_eq!(parsed.as_str(), pattern);
        for topic in lines.take(8).filter(|topic| name::check(topic).is_ok()) {
            let pieces: Vec<&str> = pattern.split('*').collect();
            assert_eq!(parsed.matches(topic), is_meant(&pieces, topic), "{pattern} over {topic}");
        }
    });
}

/// Whether the pieces between stars are in the topic, one behind the other: the first at
/// its begin, the last at its end.
fn is_meant(pieces: &[&str], topic: &str) -> bool {
    let [first, middle @ .., last] = pieces else { return pieces == [topic] };
    let Some(rest) = topic.strip_prefix(first) else { return false };
    let Some(mut rest) = rest.strip_suffix(last) else { return false };
    for piece in middle {
        match rest.split_once(piece) {
            Some((_, behind)) => rest = behind,
            None => return false,
        }
    }
    true
}

pub fn seeds() -> Seeds {
    vec![
        ("name", b"orders.eu_west-1\norders.eu_west-1\norders".to_vec()),
        ("pattern", b"orders.*\norders.created\norders.\nbilling".to_vec()),
        ("stars", b"a*b*c\nabc\na-b-b-c\nacb".to_vec()),
        ("system", b"%dead.workers\n%dead.workers".to_vec()),
    ]
}
