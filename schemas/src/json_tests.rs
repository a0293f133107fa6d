//! The reader against serde_json: the same texts are JSON, and they say the same.

use proptest::prelude::*;
use serde_json::{Map, Number, Value};

use super::*;

/// Reads a whole text into a tree, by every function of the reader.
fn tree(text: &str) -> Result<Value, JsonError> {
    let mut json = Json::new(text);
    let value = value(&mut json, 0)?;
    json.end()?;
    Ok(value)
}

fn decoded(json: &Json<'_>, quoted: Quoted) -> String {
    let (mut out, raw) = (Vec::new(), json.raw(quoted));
    unescape(raw, &mut out);
    assert!(quoted.is_escaped() || out == raw.as_bytes());
    String::from_utf8(out).unwrap()
}

fn value(json: &mut Json<'_>, depth: usize) -> Result<Value, JsonError> {
    let next = json.peek()?;
    if depth > 100 {
        return Err(JsonError { fault: Fault::TooDeep, at: place(json.at()) });
    }
    let from = json.at();
    Ok(match next {
        Next::Null => json.word().map(|()| Value::Null)?,
        Next::Bool => {
            json.word()?;
            Value::Bool(json.at() - from == 4)
        }
        Next::Number => Value::Number(json.number()?.parse::<Number>().unwrap_or_else(|_| Number::from(0))),
        Next::String => {
            let quoted = json.string()?;
            Value::String(decoded(json, quoted))
        }
        Next::Array => {
            let mut items = Vec::new();
            let mut next = json.array()?;
            while next.is_some() {
                items.push(value(json, depth + 1)?);
                next = json.element()?;
            }
            Value::Array(items)
        }
        Next::Object => {
            let mut members = Map::new();
            let mut name = json.object()?;
            while let Some(quoted) = name {
                members.insert(decoded(json, quoted), value(json, depth + 1)?);
                name = json.member()?;
            }
            Value::Object(members)
        }
        Next::Nothing => return Err(JsonError { fault: Fault::Syntax, at: place(from) }),
    })
}

fn agree(text: &str) {
    let ours = tree(text);
    let theirs = serde_json::from_str::<Value>(text);
    match (&ours, &theirs) {
        (Ok(ours), Ok(theirs)) => assert_eq!(ours, theirs, "{text}"),
        (Err(_), Err(_)) => {}
        // A number that no float holds is JSON all the same.
        (Ok(_), Err(error)) if error.to_string().contains("number out of range") => {}
        _ => panic!("{text:?}: {ours:?}, serde_json {theirs:?}"),
    }
    let mut json = Json::new(text);
    assert_eq!(json.skip().and_then(|()| json.end()).is_ok(), ours.is_ok(), "skip {text:?}");
}

#[test]
fn every_rule_of_the_grammar() {
    for text in [
        "",
        " ",
        "null",
        "nul",
        "nulll",
        "true",
        "false",
        "tru",
        "fals",
        "True",
        "NaN",
        "Infinity",
        "-",
        "-1",
        "0",
        "00",
        "01",
        "-0",
        "1.",
        "1.5",
        ".5",
        "1e",
        "1e5",
        "1E+5",
        "1e-",
        "+1",
        "0x1",
        "[",
        "[]",
        "[1",
        "[1,",
        "[1,]",
        "[,1]",
        "[1 2]",
        "[ 1 , 2 ]",
        "{",
        "{}",
        "{,}",
        "{1:2}",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1",
        "{\"a\":1,",
        "{\"a\":1,}",
        "{\"a\" : 1 , \"b\":[]}",
        "{\"a\":1 \"b\":2}",
        "\"",
        "\"a",
        "\"a\"",
        "\"abcdefgh\"",
        "\"abcdefg\"",
        "\"abcdefghi\"",
        "\"a\tb\"",
        "\"a\u{0}b\"",
        "\"\\",
        "\"\\x\"",
        "\"\\n\\t\\b\\f\\r\\/\\\\\\\"\"",
        "\"\\u00e4\"",
        "\"\\u00E4x\"",
        "\"\\u12\"",
        "\"\\u12g4\"",
        "\"\\ud83d\\ude00\"",
        "\"\\ud83d\"",
        "\"\\ud83dx\"",
        "\"\\ud83d\\n\"",
        "\"\\ude00\"",
        "\"\\ud83d\\ud83d\"",
        "\"\\ud83d\\u",
        "\"\\u0000\"",
        "\"ä😀 long enough to pass eight bytes\"",
        "1 2",
        "[]]",
        "\u{feff}1",
        "'a'",
        "// c\n1",
        "1\u{a0}",
        "[1]x",
    ] {
        agree(text);
    }
    let deep = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
    agree(&deep(90));
    assert_eq!(Json::new(&deep(SKIP_DEPTH_MAX + 1)).skip().unwrap_err().fault, Fault::TooDeep);
    assert!(Json::new(&deep(SKIP_DEPTH_MAX - 1)).skip().is_ok());
    assert!(Json::new(&"1".repeat(NUMBER_BYTES_MAX)).number().is_ok());
    assert_eq!(Json::new(&"1".repeat(NUMBER_BYTES_MAX + 1)).number().unwrap_err().fault, Fault::Syntax);
}

#[test]
fn an_error_tells_its_kind_and_place() {
    for (text, fault, at) in [
        ("[1", Fault::Truncated, 2),
        ("{\"a\":\"x", Fault::Truncated, 7),
        ("tru", Fault::Truncated, 3),
        ("[1]x", Fault::Trailing, 3),
        ("[1,x]", Fault::Syntax, 3),
        ("{\"Jane\" 1}", Fault::Syntax, 8),
    ] {
        let error = tree(text).unwrap_err();
        assert_eq!((error.fault, error.at), (fault, at), "{text}");
        assert!(!error.to_string().contains("Jane"));
    }
}

fn documents() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
        "[ -~]{0,40}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::vec((".{0,12}", inner), 0..6).prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn what_was_written_is_read(document in documents(), pretty in any::<bool>()) {
        agree(&if pretty { serde_json::to_string_pretty(&document).unwrap() } else { document.to_string() });
    }

    /// One piece put in, taken out or changed, anywhere.
    #[test]
    fn what_is_damaged_is_noticed(document in documents(), at in any::<prop::sample::Index>(), piece in "[\\]\\[{}\",:\\\\ue0-9.a\\x01 -]{0,2}", cut in 0usize..3) {
        let text = document.to_string();
        let chars: Vec<char> = text.chars().collect();
        let at = at.index(chars.len());
        let damaged: String = chars[..at].iter().copied().chain(piece.chars()).chain(chars.iter().skip(at + cut).copied()).collect();
        agree(&damaged);
    }

    #[test]
    fn a_stop_is_found_where_it_first_stands(bytes in any::<[u8; 8]>()) {
        let first = bytes.iter().position(|b| *b < 0x20 || *b == b'"' || *b == b'\\');
        let found = stops(u64::from_le_bytes(bytes));
        prop_assert_eq!(first, (found != 0).then(|| (found.trailing_zeros() / 8) as usize));
    }
}
