//! Export before erasure: what a purpose may open of each order, written once, for the person who asked for it.
//!
//! Invariants: each read is authorised and audited as any other; files are made new and belong to their owner alone; where one order
//! cannot be exported nothing is erased.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use serde::Serialize;
use serde_json::value::RawValue;
use sunder_retention::case::EraseRequest;
use sunder_retention::names::Named;
use sunder_retention::open::Opened;
use sunder_schemas::ids::{EntityToken, SellerId};
use zeroize::Zeroizing;

use super::{Failure, Reader};
use crate::app::App;
use crate::commands::open::{groups_of, open_named};

/// One order, as it is exported. The groups are the fetched JSON as it is, digit for digit.
#[derive(Serialize)]
struct Exported<'a> {
    seller: &'a SellerId,
    order_token: EntityToken,
    purpose: &'a str,
    exported_at: String,
    groups: BTreeMap<&'static str, &'a RawValue>,
}

/// Writes the orders of `request` to the new folder `folder`; returns how many had something to export.
pub(super) async fn export(app: &App, request: &EraseRequest, reader: &Reader, folder: &Path) -> Result<u64, Failure> {
    let failed = |what: &str, error: &std::io::Error| Failure::Failed(format!("--export: {what} cannot be written: {}", error.kind()));
    let listed = app.engine.listed(request).await.map_err(|e| Failure::of("erase", &e))?;
    DirBuilder::new().mode(0o700).create(folder).map_err(|e| failed("the folder", &e))?;
    let mut exported = 0;
    for subject in &listed {
        let named = Named { fingerprint: Some(subject.fingerprint), token: Some(subject.token) };
        let wish = (reader.purpose.as_str(), reader.role.as_deref(), None);
        let opened = open_named(&app.base, &app.vault, (&request.seller, &named), wish).await?;
        match &opened {
            Opened::Denied(denial) => return Err(Failure::Failed(format!("the export is denied: {denial}; nothing was erased"))),
            Opened::Erased | Opened::Absent(_) => continue,
            Opened::Readable(_) => {}
        }
        let groups = groups_of(&opened)?;
        let document = Exported {
            seller: &request.seller,
            order_token: subject.token,
            purpose: &reader.purpose,
            exported_at: app.base.clock.now().to_iso(),
            groups,
        };
        let json = serde_json::to_string(&document).map_err(|_| Failure::Failed("--export: an order has no JSON form".to_owned()))?;
        let bytes = Zeroizing::new(json);
        let path = folder.join(format!("{}.json", subject.token));
        let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).and_then(|mut file| {
            file.write_all(bytes.as_bytes())?;
            file.sync_all()
        });
        written.map_err(|e| failed("a file", &e))?;
        exported += 1;
    }
    Ok(exported)
}
