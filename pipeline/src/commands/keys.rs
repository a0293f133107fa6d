//! `sunder keys status|rotate|inventory`

use std::time::Duration;

use indicatif::ProgressBar;
use serde::Serialize;
use sunder_retention::keys::Keyring;
use sunder_retention::restore::KEYS_LOST;
use sunder_retention::rotate::{self, Inventory, RootRotation, SellerRotation, Status};
use sunder_retention::sellers::{self, SellerState};
use sunder_schemas::ids::SellerId;

use super::Failure;
use crate::app::{Base, settings};
use crate::cli::{DONE, KeysCommand, NOT_TRUE};
use crate::config::Config;
use crate::output::{Output, table};

/// What was rotated.
#[derive(Debug, Serialize)]
struct Rotated {
    root: Option<RootRotation>,
    sellers: Vec<SellerRotation>,
}

/// Shows, rotates or lists keys.
pub(super) async fn run(config: Config, command: KeysCommand, output: Output) -> Result<u8, Failure> {
    let base = match command {
        // These only look, and say so where the root key does not answer.
        KeysCommand::Status | KeysCommand::Inventory => Base::open(config, None).await?,
        KeysCommand::Rotate { .. } => Base::open_settled(config).await?,
    };
    let failed = |error: &(dyn std::error::Error + 'static)| Failure::of("keys", error);
    match command {
        KeysCommand::Status => {
            let status = rotate::status(&base.keyring).await.map_err(|e| failed(&e))?;
            output.show(&status, || show_status(&status));
            Ok(if status.root.answers { DONE } else { NOT_TRUE })
        }
        KeysCommand::Inventory => {
            let inventory = rotate::inventory(&base.keyring).await.map_err(|e| failed(&e))?;
            output.show(&inventory, || show_inventory(&inventory));
            Ok(DONE)
        }
        KeysCommand::Rotate { root, seller } => {
            let all = !root && seller.is_empty();
            let sellers = if all { active(&base.keyring).await? } else { parse(&seller)? };
            let done = rotate_all(&base, root || all, &sellers).await?;
            output.show(&done, || show_rotated(&done));
            Ok(DONE)
        }
    }
}

fn parse(sellers: &[String]) -> Result<Vec<SellerId>, Failure> {
    sellers.iter().map(|id| SellerId::parse(id).map_err(|error| Failure::Use(error.to_string()))).collect()
}

async fn active(keyring: &Keyring) -> Result<Vec<SellerId>, Failure> {
    let known = sellers::list(keyring.db()).await.map_err(|e| Failure::of("sellers", &e))?;
    let has_keys = |state| matches!(state, SellerState::Active | SellerState::Paused | SellerState::Blocked);
    Ok(known
        .into_iter()
        .filter(|seller| has_keys(seller.state) && seller.code.as_deref() != Some(KEYS_LOST))
        .map(|seller| seller.id)
        .collect())
}

/// Rotates the root key first: what wraps comes before what is wrapped.
async fn rotate_all(base: &Base, root: bool, sellers: &[SellerId]) -> Result<Rotated, Failure> {
    let actor = super::os_user();
    let progress = ProgressBar::new(sellers.len() as u64 + u64::from(root));
    let mut done = Rotated { root: None, sellers: Vec::with_capacity(sellers.len()) };
    if root {
        progress.set_message("root key");
        let settle: Duration = settings::lease(&base.config).to_std();
        let rotated = rotate::rotate_root(&base.keyring, settle, &actor).await.map_err(|e| Failure::of("keys rotate --root", &e))?;
        done.root = Some(rotated);
        progress.inc(1);
    }
    for seller in sellers {
        progress.set_message(format!("wrapping key of {seller}"));
        let one = rotate::rotate_seller(&base.keyring, seller, &actor).await;
        done.sellers.push(one.map_err(|e| Failure::of(&format!("keys rotate --seller {seller}"), &e))?);
        progress.inc(1);
    }
    if !sellers.is_empty() {
        // Old wrappings lie in free pages until the tables are rewritten.
        rotate::rewrite_tables(&base.keyring).await;
    }
    progress.finish_and_clear();
    Ok(done)
}

fn show_rotated(done: &Rotated) -> String {
    let mut lines = Vec::new();
    if let Some(root) = &done.root {
        let old = match root.retired {
            "destroyed" => "older versions unwrap nothing",
            _ => "the service keeps older versions; nothing of ours lies under them",
        };
        lines.push(format!("root key: version {} to {}, {} keys wrapped anew; {old}", root.from, root.to, root.rewrapped));
        lines.push("backups of the key database from before no longer open: take one now".to_owned());
    }
    lines.extend(done.sellers.iter().map(|seller| {
        format!(
            "{}: wrapping key version {}, {} data keys wrapped anew; the version before is destroyed",
            seller.seller, seller.version, seller.rewrapped
        )
    }));
    lines.join("\n")
}

fn show_status(status: &Status) -> String {
    let root = &status.root;
    let text = |iso: Option<sunder_schemas::certificate::Iso>| iso.map_or_else(|| "-".to_owned(), |iso| iso.0.to_iso());
    let first = vec![
        root.service.clone(),
        root.version.map_or_else(|| "-".to_owned(), |version| version.to_string()),
        text(root.since),
        text(root.due),
        match (&root.error, &root.rotation) {
            (Some(error), _) => error.clone(),
            (None, Some(state)) => format!("rotation {state}: run `sunder keys rotate --root` to end it"),
            (None, None) => "answers".to_owned(),
        },
    ];
    let sellers = status.sellers.iter().map(|seller| {
        let state = if seller.rotating {
            format!("rotation begun: run `sunder keys rotate --seller {}` to end it", seller.seller)
        } else {
            String::new()
        };
        vec![seller.seller.to_string(), seller.version.to_string(), seller.since.0.to_iso(), seller.due.0.to_iso(), state]
    });
    table(&["key", "version", "since", "rotate by", "state"], std::iter::once(first).chain(sellers))
}

fn show_inventory(inventory: &Inventory) -> String {
    let rows = inventory.keys.iter().map(|held| {
        vec![
            held.kind.to_owned(),
            held.live.to_string(),
            held.destroyed.to_string(),
            held.wrapped_by.to_owned(),
            held.places.join("; "),
            held.end.to_owned(),
        ]
    });
    format!("root key: {}\n{}", inventory.root, table(&["key", "live", "destroyed", "wrapped by", "copies", "goes with"], rows))
}
