//! The page of a certificate that `sunder demo` wrote: what is on it, what is attached, and who gets none.
#![expect(clippy::unwrap_used, reason = "tests fail by panics")]

use std::collections::BTreeMap;
use std::path::Path;

use pdf_extract::{Document, Object};
use sunder_certificate_pdf::{FILES, PdfError, render};

/// The files of a certificate, by name. Made by `sunder demo`; no seller or buyer is real.
fn certificate() -> BTreeMap<String, Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/certificate");
    FILES.iter().map(|(name, ..)| ((*name).to_owned(), std::fs::read(folder.join(name)).unwrap())).collect()
}

fn key(files: &BTreeMap<String, Vec<u8>>) -> String {
    String::from_utf8(files["certificate.pub"].clone()).unwrap()
}

/// The bytes of all attached files.
fn attached(pdf: &Document) -> Vec<Vec<u8>> {
    let is_file =
        |stream: &&pdf_extract::Stream| stream.dict.get(b"Type").and_then(Object::as_name).is_ok_and(|name| name == b"EmbeddedFile");
    let streams = pdf.objects.values().filter_map(|object| object.as_stream().ok()).filter(is_file);
    let mut found: Vec<_> = streams.map(|stream| stream.decompressed_content().unwrap_or_else(|_| stream.content.clone())).collect();
    found.sort();
    found
}

#[test]
fn the_page_says_what_was_signed_and_carries_every_file() {
    let files = certificate();
    let pdf = render(&files, &key(&files)).unwrap();
    assert_eq!(pdf, render(&files, &key(&files)).unwrap(), "equal files give an equal page");
    let read = Document::load_mem(&pdf).unwrap();
    let mut given: Vec<_> = files.values().cloned().collect();
    given.sort();
    assert_eq!(attached(&read), given);

    let text: String =
        pdf_extract::extract_text_from_mem(&pdf).unwrap().chars().filter(|c| !c.is_whitespace() && *c != '\u{200b}').collect();
    let statement: serde_json::Value = serde_json::from_slice(&files["certificate.json"]).unwrap();
    for said in [
        "/case",
        "/seller",
        "/reason",
        "/policy/sha256",
        "/subjects/key_ids_sha256",
        "/log/description_sha256",
        "/times/certified/system_clock",
    ] {
        let said = statement.pointer(said).and_then(serde_json::Value::as_str).unwrap();
        assert!(text.contains(said), "{said} is not on the page");
    }
    for store in statement["stores"].as_array().unwrap() {
        assert!(text.contains(store["store"].as_str().unwrap()));
    }
}

/// ISO 19005-3: the file says of itself that it is PDF/A-3, level B.
#[test]
fn it_is_marked_as_archivable() {
    let files = certificate();
    let pdf = Document::load_mem(&render(&files, &key(&files)).unwrap()).unwrap();
    let catalog = pdf.catalog().unwrap();
    let metadata = pdf.get_object(catalog.get(b"Metadata").and_then(Object::as_reference).unwrap()).unwrap().as_stream().unwrap();
    let xmp = String::from_utf8(metadata.decompressed_content().unwrap_or_else(|_| metadata.content.clone())).unwrap();
    assert!(xmp.contains("pdfaid:part>3<") && xmp.contains("pdfaid:conformance>B<"), "{xmp}");
    assert!(catalog.has(b"OutputIntents"), "PDF/A needs an output intent");
}

#[test]
fn a_certificate_that_is_not_valid_gets_no_page() {
    let files = certificate();
    for (name, ..) in FILES {
        let mut changed = files.clone();
        let bytes = changed.get_mut(name).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        assert!(matches!(render(&changed, &key(&files)), Err(PdfError::Invalid(_))), "{name}");
    }
    assert!(matches!(render(&files, "sunder.test/signer+00000000+AAAA"), Err(PdfError::Invalid(_))));
    let without: BTreeMap<_, _> = files.clone().into_iter().filter(|(name, _)| name != "certificate.note").collect();
    assert!(matches!(render(&without, &key(&files)), Err(PdfError::NoNote)));
}
