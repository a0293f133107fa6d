//! Single answers of a server that does what no document promises.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use rust_decimal::Decimal;
use secrecy::SecretString;
use sunder_schemas::ids::{MarketplaceId, SellerId};
use sunder_schemas::time::{ManualClock, Timestamp};
use wiremock::matchers::{body_string_contains, header, header_exists, method, path, query_param};
use wiremock::{Mock, MockServer, ResponseTemplate};

use super::*;

fn settings(base: &str) -> ClientSettings {
    ClientSettings {
        endpoints: Endpoints { all: Some(base.to_owned()), ..Endpoints::default() },
        lwa_endpoint: format!("{base}/auth/o2/token"),
        client_id: "client".to_owned(),
        client_secret: SecretString::from("secret"),
        rate_scale: Decimal::from(1_000_000),
        allow_http: true,
        timeout: Duration::from_millis(700),
        retry: RetrySettings { wait_min: Duration::from_millis(1), wait_max: Duration::from_millis(2), times: 3 },
    }
}

fn client(base: &str) -> Client {
    Client::new(settings(base), Arc::new(ManualClock::at(Timestamp::parse("2026-11-22T08:00:00Z").unwrap()))).unwrap()
}

fn who() -> Credentials {
    Credentials { seller: SellerId::parse("A1").unwrap(), refresh_token: SecretString::from("Atzr|canary-refresh") }
}

fn request() -> Request {
    let marketplace = MarketplaceId::parse("M1").unwrap();
    inventory_summaries(&InventoryListing { marketplace: &marketplace, changed_from: None, page_token: Some("canary-page-token") })
}

async fn tokens(server: &MockServer, times: u64) {
    Mock::given(method("POST"))
        .and(path("/auth/o2/token"))
        .and(body_string_contains("grant_type=refresh_token"))
        .and(body_string_contains("client_secret=secret"))
        .respond_with(ResponseTemplate::new(200).set_body_string(r#"{"access_token":"Atza|t","token_type":"bearer","expires_in":3600}"#))
        .expect(times)
        .mount(server)
        .await;
}

async fn answers(server: &MockServer, first: ResponseTemplate, times: u64) {
    Mock::given(method("GET")).respond_with(first).up_to_n_times(times).with_priority(1).mount(server).await;
    Mock::given(method("GET"))
        .respond_with(ResponseTemplate::new(200).insert_header("x-amzn-RequestId", "req-1").set_body_string("{}"))
        .with_priority(2)
        .mount(server)
        .await;
}

async fn gets(server: &MockServer) -> usize {
    server.received_requests().await.unwrap().iter().filter(|r| r.method.as_str() == "GET").count()
}

async fn fetch(client: &Client) -> Result<Answer, SpapiError> {
    client.fetch(Region::Eu, &who(), &request(), &|| {}).await
}

#[tokio::test]
async fn a_call_carries_what_sp_api_demands_and_no_body() {
    let server = MockServer::start().await;
    tokens(&server, 1).await;
    Mock::given(method("GET"))
        .and(path("/fba/inventory/v1/summaries"))
        .and(query_param("nextToken", "canary-page-token"))
        .and(header("x-amz-access-token", "Atza|t"))
        .and(header("x-amz-date", "20261122T080000Z"))
        .and(header_exists("user-agent"))
        .respond_with(ResponseTemplate::new(200).insert_header("x-amzn-RequestId", "req-1").set_body_string("{}"))
        .expect(2)
        .mount(&server)
        .await;
    let client = client(&server.uri());
    for _ in 0..2 {
        let answer = fetch(&client).await.unwrap();
        assert_eq!((answer.request_id.as_str(), answer.body.as_slice()), ("req-1", b"{}".as_slice()));
    }
    for request in server.received_requests().await.unwrap() {
        if request.method.as_str() == "GET" {
            assert!(request.body.is_empty() && !request.headers.contains_key("content-length"));
            let agent = request.headers.get("user-agent").unwrap().to_str().unwrap();
            assert!(agent.starts_with("sunder/0.1.0 (Language=Rust/1.95; Platform="), "{agent}");
        }
    }
    assert_eq!(client.calls(Operation::GetInventorySummaries), 2);
}

#[tokio::test]
async fn each_status_means_one_thing() {
    for (status, code, calls) in [
        (400, "bad_request", 1),
        (401, "forbidden", 2),
        (403, "forbidden", 2),
        (404, "not_found", 1),
        (413, "unexpected_status", 1),
        (302, "unexpected_status", 1),
        (429, "throttled", 4),
        (500, "unavailable", 4),
        (503, "unavailable", 4),
    ] {
        let server = MockServer::start().await;
        tokens(&server, if matches!(status, 401 | 403) { 2 } else { 1 }).await;
        answers(&server, ResponseTemplate::new(status).set_body_string("canary-body"), 100).await;
        let error = fetch(&client(&server.uri())).await.unwrap_err();
        assert_eq!((error.code(), gets(&server).await), (code, calls), "status {status}");
        assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
    }
}

#[tokio::test]
async fn a_refused_token_is_renewed_once_and_the_call_repeated() {
    let server = MockServer::start().await;
    tokens(&server, 2).await;
    answers(&server, ResponseTemplate::new(403), 1).await;
    fetch(&client(&server.uri())).await.unwrap();
    assert_eq!(gets(&server).await, 2);
}

#[tokio::test]
async fn passing_faults_are_asked_again() {
    for fault in [
        ResponseTemplate::new(429),
        ResponseTemplate::new(429).insert_header("x-amzn-RateLimit-Limit", "1000"),
        ResponseTemplate::new(429).insert_header("retry-after", "0"),
        ResponseTemplate::new(503),
        ResponseTemplate::new(200).set_delay(Duration::from_secs(2)),
    ] {
        let server = MockServer::start().await;
        tokens(&server, 1).await;
        answers(&server, fault, 1).await;
        assert_eq!(fetch(&client(&server.uri())).await.unwrap().request_id, "req-1");
    }
}

#[tokio::test]
async fn a_page_that_is_not_json_is_handed_on_for_classify_to_refuse() {
    let server = MockServer::start().await;
    tokens(&server, 1).await;
    answers(&server, ResponseTemplate::new(200).set_body_string("<html>"), 1).await;
    let answer = fetch(&client(&server.uri())).await.unwrap();
    assert_eq!((answer.body.as_slice(), answer.request_id.as_str()), (b"<html>".as_slice(), "absent"));
    assert!(!format!("{answer:?}").contains("html"));
}

#[tokio::test]
async fn a_body_beyond_the_bound_is_not_read() {
    let server = MockServer::start().await;
    tokens(&server, 1).await;
    answers(&server, ResponseTemplate::new(200).set_body_bytes(vec![b' '; 50 * 1024 * 1024]), 1).await;
    let mut settings = settings(&server.uri());
    settings.timeout = Duration::from_secs(60);
    let client = Client::new(settings, Arc::new(ManualClock::at(Timestamp(0)))).unwrap();
    assert_eq!(fetch(&client).await.unwrap_err().code(), "body_too_large");
}

#[tokio::test]
async fn a_body_cut_off_is_asked_for_again() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        // The token, three cut bodies, then a whole one; one connection each.
        for turn in 0..5 {
            let (mut stream, _) = listener.accept().unwrap();
            let mut seen = Vec::new();
            let mut byte = [0; 1];
            while !seen.ends_with(b"\r\n\r\n") {
                stream.read_exact(&mut byte).unwrap();
                seen.push(byte[0]);
            }
            let (length, body) = match turn {
                0 => (38, r#"{"access_token":"t","expires_in":3600}"#),
                4 => (2, "{}"),
                _ => (500, r#"{"payload":"#),
            };
            write!(stream, "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}").unwrap();
        }
    });
    assert_eq!(fetch(&client(&base)).await.unwrap().body.as_slice(), b"{}");
    server.join().unwrap();
}

#[tokio::test]
async fn a_revoked_grant_is_final() {
    for (body, code) in [
        (r#"{"error":"invalid_grant","error_description":"canary"}"#, "invalid_grant"),
        (r#"{"error":"invalid_client"}"#, "invalid_client"),
        ("<html>canary", "refused"),
    ] {
        let server = MockServer::start().await;
        Mock::given(method("POST")).respond_with(ResponseTemplate::new(400).set_body_string(body)).expect(1).mount(&server).await;
        let error = fetch(&client(&server.uri())).await.unwrap_err();
        assert_eq!((error.code(), error.retry()), (code, Retry::Never));
        assert!(!format!("{error:?}").contains("canary"));
    }
}

#[tokio::test]
async fn one_token_serves_many_callers_at_once() {
    let server = MockServer::start().await;
    tokens(&server, 1).await;
    answers(&server, ResponseTemplate::new(200).set_delay(Duration::from_millis(20)), 8).await;
    let client = client(&server.uri());
    let all = futures::future::join_all((0..8).map(|_| fetch(&client))).await;
    assert!(all.iter().all(Result::is_ok));
}

#[tokio::test]
async fn nobody_listening_is_a_code_without_the_url() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let error = fetch(&client(&base)).await.unwrap_err();
    assert_eq!((error.code(), error.retry()), ("auth_unavailable", Retry::Backoff));
}

#[test]
fn plain_http_needs_the_test_environment() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut settings = settings("http://127.0.0.1:1");
    settings.allow_http = false;
    let client = Client::new(settings, Arc::new(ManualClock::at(Timestamp(0)))).unwrap();
    assert!(runtime.block_on(fetch(&client)).is_err());
}
