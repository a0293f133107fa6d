//! The readable form of a certificate of erasure: a PDF/A-3b of the same statement, with the files of the certificate attached.
//!
//! Invariants: nothing is typeset that [`check_with`] does not accept under the given key; every word of the page comes from the signed
//! statement; equal files give an equal page. The PDF itself is not signed: what counts is the note attached to it.

use std::collections::BTreeMap;

use sunder_schemas::certificate::{CertificateError, Evidence, check_with};
use typst::diag::{FileError, FileResult, SourceDiagnostic};
use typst::foundations::{Bytes, Datetime, Duration, Smart};
use typst::syntax::{FileId, RootedPath, Source, VirtualPath, VirtualRoot};
use typst::text::{Font, FontBook};
use typst::utils::LazyHash;
use typst::{Library, LibraryExt, World};
use typst_kit::fonts::{FontStore, embedded};
use typst_layout::PagedDocument;
use typst_pdf::{PdfOptions, PdfStandard, PdfStandards};

/// The page.
const TEMPLATE: &str = include_str!("certificate.typ");
/// Name of the page among the files.
const MAIN: &str = "certificate.typ";
/// The files of a certificate: name, media type, what it is. Those that are there are attached.
pub const FILES: [(&str, &str, &str); 7] = [
    ("certificate.note", "text/plain", "The signed statement: this is what counts"),
    ("certificate.json", "application/json", "The same statement, byte for byte, for programs"),
    ("certificate.proof", "text/plain", "That it is an entry of the log of all certificates"),
    ("certificate.checkpoint", "text/plain", "The newest signed head of that log"),
    ("certificate.consistency", "text/plain", "That the log only grew between those two heads"),
    ("certificate.keys", "text/plain", "The ids of the destroyed keys"),
    ("certificate.pub", "text/plain", "A copy of the key that checks the note"),
];

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub enum PdfError {
    /// The note is missing.
    #[error("there is no certificate.note")]
    NoNote,
    /// The certificate is not valid: it gets no page.
    #[error("the certificate is not valid: {0}")]
    Invalid(#[from] CertificateError),
    /// The typesetter refused.
    #[error("the page could not be set: {0}")]
    Typeset(String),
}

/// Sets the page of the certificate in `files` (by name, as `sunder certificate CASE --out DIR` writes them), checked with `verifier_key`.
///
/// # Errors
/// [`PdfError`].
pub fn render(files: &BTreeMap<String, Vec<u8>>, verifier_key: &str) -> Result<Vec<u8>, PdfError> {
    let beside = |name: &str| files.get(name).cloned();
    let note = beside("certificate.note").ok_or(PdfError::NoNote)?;
    let evidence = Evidence {
        statement: beside("certificate.json"),
        proof: beside("certificate.proof"),
        checkpoint: beside("certificate.checkpoint"),
        consistency: beside("certificate.consistency"),
        keys: beside("certificate.keys"),
        verifier_key: beside("certificate.pub"),
        ..Evidence::default()
    };
    let checked = check_with(&note, verifier_key, &evidence)?;
    let case = checked.statement.case.to_string();
    let world = Page::new(files, &checked.statement.to_text()?, verifier_key, checked.leaf)?;
    let document = typst::compile::<PagedDocument>(&world).output.map_err(|errors| said(&errors))?;
    let standards = PdfStandards::new(&[PdfStandard::A_3b]).map_err(|error| PdfError::Typeset(error.message().to_string()))?;
    let options =
        PdfOptions { ident: Smart::Custom(case), creator: Smart::Custom(Some(checked.statement.tool)), standards, ..PdfOptions::default() };
    typst_pdf::pdf(&document, &options).map_err(|errors| said(&errors))
}

fn said(errors: &[SourceDiagnostic]) -> PdfError {
    PdfError::Typeset(errors.iter().map(|error| error.message.to_string()).collect::<Vec<_>>().join("; "))
}

/// What the typesetter may see: the page, the certificate's files, its own fonts. No disk, no network, no clock.
struct Page {
    library: LazyHash<Library>,
    fonts: FontStore,
    main: FileId,
    files: BTreeMap<String, Bytes>,
}

impl Page {
    fn new(files: &BTreeMap<String, Vec<u8>>, statement: &[u8], verifier_key: &str, leaf: Option<u64>) -> Result<Self, PdfError> {
        let path = VirtualPath::new(MAIN).map_err(|error| PdfError::Typeset(error.to_string()))?;
        let main = RootedPath::new(VirtualRoot::Project, path).intern();
        let mut fonts = FontStore::new();
        fonts.extend(embedded());
        let mut seen: BTreeMap<String, Bytes> = files.iter().map(|(name, bytes)| (name.clone(), Bytes::new(bytes.clone()))).collect();
        seen.insert("statement.json".to_owned(), Bytes::new(statement.to_vec()));
        seen.insert("about.csv".to_owned(), Bytes::from_string(about(files, verifier_key, leaf)));
        Ok(Self { library: LazyHash::new(Library::default()), fonts, main, files: seen })
    }
}

/// What the page needs beside the statement, as rows of two to four cells.
fn about(files: &BTreeMap<String, Vec<u8>>, verifier_key: &str, leaf: Option<u64>) -> String {
    let mut rows = vec![["key", verifier_key.trim_end(), "", ""].join(",")];
    rows.extend(leaf.map(|leaf| format!("leaf,{leaf},,")));
    for (name, media, what) in FILES.iter().filter(|(name, ..)| files.contains_key(*name)) {
        rows.push(format!("file,{name},{media},\"{what}\""));
    }
    rows.join("\n")
}

impl World for Page {
    fn library(&self) -> &LazyHash<Library> {
        &self.library
    }

    fn book(&self) -> &LazyHash<FontBook> {
        self.fonts.book()
    }

    fn main(&self) -> FileId {
        self.main
    }

    fn source(&self, id: FileId) -> FileResult<Source> {
        if id == self.main { Ok(Source::new(id, TEMPLATE.to_owned())) } else { Err(FileError::NotSource) }
    }

    fn file(&self, id: FileId) -> FileResult<Bytes> {
        self.files.get(id.get().vpath().get_without_slash()).cloned().ok_or(FileError::AccessDenied)
    }

    fn font(&self, index: usize) -> Option<Font> {
        self.fonts.font(index)
    }

    fn today(&self, _: Option<Duration>) -> Option<Datetime> {
        None
    }
}
