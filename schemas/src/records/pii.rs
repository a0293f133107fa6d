//! A sealed group of fields on `pii.<family>` and in the vault.

use std::sync::Arc;

use super::row;
use crate::class::FieldGroup;
use crate::envelope::Attribution;
use crate::ids::{EntityToken, KeyId, SellerId};
use crate::key;
use crate::private::SealedBlock;
use crate::time::Timestamp;

row!(
    /// The latest sealed block of one field group of one entity: ciphertext only.
    PiiRecord = "PiiRecord" {
        /// where the record came from
        attribution: Arc<Attribution>,
        /// the source's version, ms since 1970; a lower one never replaces a higher one
        source_version: i64,
        /// pseudonym of the order or other entity
        entity_token: EntityToken,
        /// which group of personal fields
        field_group: FieldGroup,
        /// the key that opens the block; also in the block's header
        key_id: KeyId,
        /// catalogue and version that classified the fields; bound into the block
        classification: String,
        /// when the key is destroyed at the latest
        deadline: Timestamp,
        /// the rule that decided the deadline
        deadline_rule: String,
        /// the fields (sealed)
        block: SealedBlock,
    }
);

impl PiiRecord {
    /// The seller whose customer it is about.
    #[must_use]
    pub fn seller(&self) -> &SellerId {
        &self.attribution.selling_partner_id
    }

    /// Its key on `pii.<family>`.
    #[must_use]
    pub fn key(&self) -> String {
        key::pii_key(self.seller(), self.entity_token, self.field_group)
    }
}
