//! What consumers ask for, as filters of the node.

use posthouse_core::filter::SQL;

use super::fault::Fault;
use super::pb::{Code, FilterExpression, FilterType};

/// The filter that an expression means: `a || b`, or `*`, or nothing for all; or a
/// condition on properties.
///
/// # Errors
/// If no tag can be meant. What is wrong with a condition the broker finds out, when the
/// group is to get what it says.
pub fn meant(expression: Option<&FilterExpression>) -> Result<String, Fault> {
    let Some(expression) = expression else { return Ok("*".into()) };
    let text = expression.expression.trim();
    match FilterType::try_from(expression.r#type) {
        Ok(FilterType::Tag | FilterType::Unspecified) => on_tags(text),
        Ok(FilterType::Sql) => Ok(format!("{SQL} {text}")),
        Err(_) => {
            let text = "the type of the filter is not known to this node: TAG or SQL is expected";
            Err(Fault::new(Code::Unsupported, text))
        }
    }
}

fn on_tags(text: &str) -> Result<String, Fault> {
    if text.is_empty() || text == "*" {
        return Ok("*".into());
    }
    let mut filter = String::with_capacity(text.len());
    for tag in text.split("||").map(str::trim) {
        if tag.is_empty() || tag.contains(['|', '"']) || tag.chars().any(char::is_control) {
            let text = format!("{text:?}: tags with || between them are expected, or *");
            return Err(Fault::new(Code::IllegalFilterExpression, text));
        }
        if !filter.is_empty() {
            filter.push_str(" || ");
        }
        // In quotes nothing of it can be taken for a word of the filter.
        let is_word = tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        let is_reserved = ["and", "or", "not"].iter().any(|word| tag.eq_ignore_ascii_case(word));
        match is_word && !is_reserved {
            true => filter.push_str(tag),
            false => filter.extend(["\"", tag, "\""]),
        }
    }
    Ok(filter)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(expression: &str) -> Result<String, Code> {
        let r#type = FilterType::Tag.into();
        let of = FilterExpression { r#type, expression: expression.into() };
        meant(Some(&of)).map_err(|fault| fault.code)
    }

    #[test]
    fn tags_become_a_filter_that_means_them_and_nothing_else() {
        assert_eq!(tag("*").unwrap(), "*");
        assert_eq!(tag("").unwrap(), "*");
        assert_eq!(tag("paid").unwrap(), "paid");
        assert_eq!(tag(" paid||refunded ").unwrap(), "paid || refunded");
        assert_eq!(tag("a b || not || /x/").unwrap(), "\"a b\" || \"not\" || \"/x/\"");
        for bad in ["||", "a || ", "a | b", "a\"b", "a\nb"] {
            assert_eq!(tag(bad).unwrap_err(), Code::IllegalFilterExpression, "{bad:?}");
        }
    }

    #[test]
    fn a_condition_on_properties_stays_as_it_is() {
        let of = |r#type| FilterExpression { r#type, expression: " a = 'b||c' ".into() };
        assert_eq!(meant(Some(&of(FilterType::Sql.into()))).unwrap(), "sql: a = 'b||c'");
        assert_eq!(meant(Some(&of(9))).unwrap_err().code, Code::Unsupported);
        assert_eq!(meant(None).unwrap(), "*");
    }
}
