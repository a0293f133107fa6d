//! Rotation of the root key and of the sellers' wrapping keys, under load (controls: credentials every 90 days).
//!
//! Invariants: a key that is being replaced is kept until nothing lies under it, and destroyed as soon as nothing does; every step is
//! written down before the next, so that a rotation that was cut off goes on where it was; what was wrapped before a
//! rotation is not committed after it (`guard.rs`); no data key, token key or ledger key changes:
//! they are wrapped anew, so nothing is lost, doubled or named otherwise. Token and ledger keys never rotate: tokens and fingerprints
//! made of them could not be made again.

pub(crate) mod guard;
mod inventory;
mod root;
mod seller;

use std::time::Duration;

use sunder_schemas::time::Period;

use crate::keys::Keyring;

pub use inventory::{Held, Inventory, RootStatus, SellerStatus, Status, inventory, status};
pub use root::{RootRotation, rotate_root};
pub use seller::{SellerRotation, rotate_seller};

/// How long a key is used before it is due to be rotated (controls, table of constants: 90 days).
pub const ROTATE_EVERY: Period = Period::days(90);
/// Between two looks whether other processes let go of what was replaced (chosen).
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// Who rotates, in the audit log, beside the user that asked for it.
const ACTION: &str = "keys.rotated";
/// How often the key tables are tried to be rewritten while others hold them. Chosen: with the pauses 5 s.
const REWRITES_MAX: u32 = 25;

/// Takes old wrappings out of free pages. What stays there where the tables are busy lies under a version that is destroyed, or holds a key
/// that lives: the next rotation or erasure rewrites them, and none is certified before.
pub async fn rewrite_tables(keyring: &Keyring) {
    for tried in 1..=REWRITES_MAX {
        match keyring.db().rewrite_key_tables().await {
            Ok(()) => return,
            Err(error) if error.retry && tried < REWRITES_MAX => tokio::time::sleep(LOOK_AGAIN).await,
            Err(error) => {
                tracing::warn!(code = error.code, "the key tables are not rewritten: the next erasure does it");
                return;
            }
        }
    }
}
