//! What consumers ask for, as filters on tags.

use super::fault::Fault;
use super::pb::{Code, FilterExpression, FilterType};

/// The filter that an expression on tags means: `a || b`, or `*`, or nothing for all.
///
/// # Errors
/// If it is of another sort, or no tag can be meant.
pub fn on_tags(expression: Option<&FilterExpression>) -> Result<String, Fault> {
    let Some(expression) = expression else { return Ok("*".into()) };
    if !matches!(expression.r#type(), FilterType::Tag | FilterType::Unspecified) {
        let text = "filters on properties (SQL) are not known to this node: filter on tags";
        return Err(Fault::new(Code::Unsupported, text));
    }
    let text = expression.expression.trim();
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
        on_tags(Some(&of)).map_err(|fault| fault.code)
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
        let sql = FilterExpression { r#type: FilterType::Sql.into(), expression: "a = 1".into() };
        assert_eq!(on_tags(Some(&sql)).unwrap_err().code, Code::Unsupported);
    }
}
