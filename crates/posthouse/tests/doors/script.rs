//! Reads the cases and runs them.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::door::{Args, Door, Refusal};

/// How long an operation that is expected to come true in a while may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs one script.
///
/// # Panics
/// If an answer is not as expected.
pub async fn run<D: Door>(name: &str, text: &str, door: &mut D) {
    let mut kept: HashMap<String, String> = HashMap::new();
    let mut last = Value::Null;
    let mut lines = text.lines().enumerate().peekable();
    let mut checked = 0;
    while let Some((number, line)) = lines.next() {
        let at = format!("{name}:{}: {line}", number + 1);
        let line = fill(line.trim(), &kept);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(assignment) = line.strip_prefix('$') {
            let (variable, path) = assignment.split_once('=').expect(&at);
            let value = find(&last, path.trim()).unwrap_or_else(|| panic!("{at}: {last}"));
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            kept.insert(variable.trim().to_owned(), text);
            continue;
        }
        // `~>`: again and again until it is so.
        let (call, is_patient) = match (line.strip_prefix("> "), line.strip_prefix("~> ")) {
            (Some(call), _) => (call, false),
            (None, Some(call)) => (call, true),
            _ => panic!("{at}: no operation"),
        };
        let (operation, args) = call.split_once(' ').unwrap_or((call, "{}"));
        let args: Args = serde_json::from_str(args).unwrap_or_else(|e| panic!("{at}: {e}"));
        if operation == "token" {
            let token = args.get("token").and_then(Value::as_str);
            door.set_token(token.map(str::to_owned));
            continue;
        }
        let (_, expected) = lines.next().unwrap_or_else(|| panic!("{at}: nothing is expected"));
        let expected = fill(expected.trim(), &kept);
        let until = Instant::now() + PATIENCE;
        loop {
            let got = door.call(operation, args.clone()).await;
            match check::<D>(&expected, &got) {
                Ok(()) => {
                    last = got.unwrap_or_default();
                    break;
                }
                Err(_) if is_patient && Instant::now() < until => tokio::task::yield_now().await,
                Err(what) => panic!("{at}\n  expected {expected}\n  got {got:?}\n  {what}"),
            }
        }
        checked += 1;
    }
    assert!(checked > 0, "{name} checks nothing");
}

fn fill(line: &str, kept: &HashMap<String, String>) -> String {
    kept.iter()
        .fold(line.to_owned(), |line, (name, value)| line.replace(&format!("${{{name}}}"), value))
}

fn check<D: Door>(expected: &str, got: &Result<Value, Refusal>) -> Result<(), String> {
    if let Some(refusal) = expected.strip_prefix("! ") {
        let parts: Vec<&str> = refusal.split_whitespace().collect();
        let [code, http, grpc] = parts.as_slice() else {
            return Err("a refusal is a code and two statuses".into());
        };
        let wanted = Refusal { code: (*code).into(), status: D::status(http, grpc).into() };
        return match got {
            Err(refusal) if *refusal == wanted => Ok(()),
            _ => Err(format!("{wanted:?} was wanted")),
        };
    }
    let wanted = expected.strip_prefix("= ").ok_or("neither an answer nor a refusal")?;
    let wanted: Value = serde_json::from_str(wanted).map_err(|error| error.to_string())?;
    match got {
        Ok(got) => contains(got, &wanted, "the answer"),
        Err(_) => Err("it was refused".into()),
    }
}

/// Whether `got` has all that `wanted` has; lists have to be as long. The text `"*"`
/// stands for anything that is there, `null` for nothing.
fn contains(got: &Value, wanted: &Value, at: &str) -> Result<(), String> {
    match (got, wanted) {
        (_, Value::String(any)) if any == "*" => Ok(()),
        (Value::Object(got), Value::Object(wanted)) => {
            wanted.iter().try_for_each(|(name, wanted)| {
                let at = format!("{at}.{name}");
                match got.get(name) {
                    Some(got) => contains(got, wanted, &at),
                    None if wanted.is_null() => Ok(()),
                    None => Err(format!("{at} is missing")),
                }
            })
        }
        (Value::Array(got), Value::Array(wanted)) => {
            if got.len() != wanted.len() {
                return Err(format!("{at} has {} entries, not {}", got.len(), wanted.len()));
            }
            let mut pairs = got.iter().zip(wanted).enumerate();
            pairs.try_for_each(|(i, (got, wanted))| contains(got, wanted, &format!("{at}.{i}")))
        }
        (got, wanted) if got == wanted => Ok(()),
        (got, wanted) => Err(format!("{at} is {got}, not {wanted}")),
    }
}

fn find<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(value, |value, part| match part.parse::<usize>() {
        Ok(index) => value.get(index),
        Err(_) => value.get(part),
    })
}
