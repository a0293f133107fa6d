//! Bodies that are broken, too large, or made to mislead.

use sunder_schemas::catalogue::Catalogue;
use sunder_schemas::classify::{BodyCode, BodyError, Limits, Page, classify};

use crate::support::PlainTokens;

fn search(body: &[u8], limits: &Limits) -> Result<Page, BodyError> {
    classify(Catalogue::for_operation("orders_2026-01-01", "searchOrders").unwrap(), body, &PlainTokens, limits)
}

fn refused(body: impl AsRef<[u8]>) -> BodyError {
    search(body.as_ref(), &Limits::DEFAULT).unwrap_err()
}

const GOOD: &str = r#"{"orders":[{"orderId":"1-2","lastUpdatedTime":"2026-01-01T00:00:00Z","buyer":{"buyerName":"Jane Doe","x":{"Jane":[1.5e3,"\ud83d\ude00"]}}}],"pagination":{"nextToken":"n"},"lastUpdatedBefore":"2026-01-02T00:00:00Z"}"#;

#[test]
fn a_body_that_is_no_json_names_code_and_place_and_no_value() {
    for (body, code, line, column) in [
        ("", BodyCode::Truncated, 1, 1),
        ("<html>Jane Doe</html>", BodyCode::NotJson, 1, 1),
        ("\u{feff}{}", BodyCode::NotJson, 1, 1),
        ("{\n \"orders\": [\n  Jane ] }", BodyCode::NotJson, 3, 3),
        ("{\"orders\":[{\"orderId\":NaN}]}", BodyCode::NotJson, 1, 23),
        ("{\"orders\":[{\"orderId\":01}]}", BodyCode::NotJson, 1, 24),
        ("{\"orders\":[],}", BodyCode::NotJson, 1, 14),
        ("{\"orders\":[]} {}", BodyCode::TrailingBytes, 1, 15),
        ("{\"orders\":[{\"Jane Doe\" \"x\"}]}", BodyCode::NotJson, 1, 24),
        ("{\"orders\":[{\"orderId\":\"Jane\nDoe\"}]}", BodyCode::NotJson, 1, 28),
        ("{\"orders\":[{\"orderId\":\"\\ud800\"}]}", BodyCode::NotJson, 1, 30),
    ] {
        let error = refused(body);
        assert_eq!((error.code, error.line, error.column), (code, line, column), "{body} {error}");
        assert!(!format!("{error} {error:?}").contains("Jane"), "{error}");
    }
    let mut bytes = GOOD.as_bytes().to_vec();
    let at = GOOD.find("Jane").unwrap();
    bytes[at] = 0xff;
    let error = refused(&bytes);
    assert_eq!((error.code, error.offset), (BodyCode::NotUtf8, at));
}

#[test]
fn every_cut_of_a_body_is_refused() {
    assert!(search(GOOD.as_bytes(), &Limits::DEFAULT).is_ok());
    for end in 0..GOOD.len() {
        let error = refused(&GOOD.as_bytes()[..end]);
        assert_eq!(error.code, BodyCode::Truncated, "cut at {end}: {error}");
        assert!(!format!("{error:?}").contains("Jane"));
    }
}

#[test]
fn each_limit_is_crossed_by_one() {
    let limits = Limits { body_bytes_max: GOOD.len(), depth_max: 6, entities_max: 2, string_bytes_max: 20, values_max: 12 };
    assert!(search(GOOD.as_bytes(), &limits).is_ok());
    let code = |body: &str| search(body.as_bytes(), &limits).unwrap_err().code;
    assert_eq!(code(&format!("{GOOD} ")), BodyCode::TooLarge);
    let order = r#"{"orderId":"1","lastUpdatedTime":"2026-01-01T00:00:00Z"}"#;
    assert_eq!(code(&format!("{{\"orders\":[{order},{order},{order}]}}")), BodyCode::TooManyEntities);
    assert_eq!(code(r#"{"orders":[{"x":[[[[]]]]}]}"#), BodyCode::TooDeep);
    assert!(search(br#"{"orders":[{"x":[[[0]]]}]}"#, &limits).is_ok());
    assert_eq!(code(&format!("{{\"orders\":[{{\"x\":\"{}\"}}]}}", "a".repeat(21))), BodyCode::StringTooLong);
    assert_eq!(code(&format!("{{\"orders\":[{{\"{}\":0}}]}}", "a".repeat(21))), BodyCode::StringTooLong);
    assert_eq!(code(&format!("{{\"orders\":[{{\"a\":{{\"{}\":0}}}}]}}", "a".repeat(21))), BodyCode::StringTooLong);
    assert_eq!(code(r#"{"orders":[{"x":[0,0,0,0,0,0,0,0,0,0,0]}]}"#), BodyCode::TooManyValues);
    let deep = format!("{{\"orders\":[{{\"x\":{}{}}}]}}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(refused(deep).code, BodyCode::TooDeep);
    assert_eq!(refused(vec![b' '; 50_000_000]).code, BodyCode::TooLarge);
}

#[test]
fn what_steers_the_poller_is_never_guessed() {
    for (body, code) in [
        ("{}", BodyCode::NoEntities),
        ("[]", BodyCode::BadPage),
        ("null", BodyCode::NoEntities),
        (r#"{"payload":{"orders":[]}}"#, BodyCode::NoEntities),
        (r#"{"orders":null}"#, BodyCode::NoEntities),
        (r#"{"orders":{}}"#, BodyCode::BadPage),
        (r#"{"orders":[],"orders":[]}"#, BodyCode::DuplicatePage),
        (r#"{"orders":[],"pagination":"Jane"}"#, BodyCode::BadPage),
        (r#"{"orders":[],"pagination":{"nextToken":7}}"#, BodyCode::BadPage),
        (r#"{"orders":[],"pagination":{"nextToken":""}}"#, BodyCode::BadPage),
        (r#"{"orders":[],"pagination":{"nextToken":"a","nextToken":"b"}}"#, BodyCode::DuplicatePage),
        (r#"{"orders":[],"pagination":{},"pagination":{"nextToken":"b"}}"#, BodyCode::DuplicatePage),
        (r#"{"orders":[],"lastUpdatedBefore":"Jane"}"#, BodyCode::BadPage),
    ] {
        let error = refused(body);
        assert_eq!(error.code, code, "{body}");
        assert!(!format!("{error} {error:?}").contains("Jane"), "{error}");
    }
    for end in [r#""#, r#","pagination":null"#, r#","pagination":{}"#, r#","pagination":{"nextToken":null}"#] {
        assert_eq!(search(format!("{{\"orders\":[]{end}}}").as_bytes(), &Limits::DEFAULT).unwrap().next_token, None, "{end}");
    }
    let page = search(GOOD.as_bytes(), &Limits::DEFAULT).unwrap();
    assert_eq!(page.next_token.as_deref(), Some("n"));
    assert_eq!(page.window_end.unwrap().to_iso(), "2026-01-02T00:00:00.000Z");
    let escaped = search(br#"{"orders":[],"pagination":{"nextToken":"a\/b\u003d\"\\"}}"#, &Limits::DEFAULT).unwrap();
    assert_eq!(escaped.next_token.as_deref(), Some("a/b=\"\\"));
}

#[test]
fn what_stands_beside_the_entities_is_kept_for_the_quarantine_key() {
    let page = search(br#"{"orders":[],"Jane":["Doe"],"pagination":{"Roe":1},"createdBefore":"x"}"#, &Limits::DEFAULT).unwrap();
    assert_eq!(page.leftover.unwrap().reveal(), br#"{"Jane":["Doe"],"pagination":{"Roe":1}}"#);
    assert_eq!(page.unclassified, [("page.*".to_owned(), 1), ("page.pagination.*".to_owned(), 1)]);
}

#[test]
fn one_bad_entity_does_not_spoil_the_page() {
    let good = |id: &str| format!(r#"{{"orderId":"{id}","lastUpdatedTime":"2026-01-01T00:00:00Z"}}"#);
    let bad = [
        "null",
        "\"Jane\"",
        "{}",
        r#"{"orderId":5,"lastUpdatedTime":"2026-01-01T00:00:00Z"}"#,
        r#"{"orderId":"Jane Doe","lastUpdatedTime":"2026-01-01T00:00:00Z"}"#,
        r#"{"orderId":"1"}"#,
        r#"{"orderId":"1","lastUpdatedTime":"Jane"}"#,
        r#"{"orderId":"1","lastUpdatedTime":"2026-01-01T00:00:00Z","salesChannel":{"marketplaceId":"Jane Doe"}}"#,
    ];
    let mut orders = vec![good("first")];
    orders.extend(bad.iter().map(|text| (*text).to_owned()));
    orders.push(good("last"));
    let page = search(format!("{{\"orders\":[{}]}}", orders.join(",")).as_bytes(), &Limits::DEFAULT).unwrap();
    let ids: Vec<_> = page.entities.iter().map(|e| e.identity.order_id().unwrap().reveal().to_owned()).collect();
    assert_eq!(ids, ["first", "last"]);
    let codes: Vec<_> = page.rejected.iter().map(|r| (r.index, r.code.as_str())).collect();
    let expected = [
        "entity_not_an_object",
        "entity_not_an_object",
        "entity_no_id",
        "entity_no_id",
        "entity_bad_id",
        "entity_no_version",
        "entity_bad_version",
        "entity_bad_marketplace",
    ];
    assert_eq!(codes, expected.iter().enumerate().map(|(index, code)| (index + 1, *code)).collect::<Vec<_>>());
    assert!(!format!("{:?}", page.rejected).contains("Jane"));
    assert!(page.unclassified.is_empty(), "what was in a rejected entity is not counted on the page");
}
