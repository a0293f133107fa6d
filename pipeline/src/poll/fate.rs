//! What becomes of each group of personal fields of one fetched order: pure.

use sunder_retention::ledger::Fate;
use sunder_schemas::class::FieldGroup;
use sunder_schemas::outcome::DropReason;

use crate::spapi::IncludedData;

/// What the seller's config wants, and what Amazon lets it have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wishes<'a> {
    /// The groups of the config.
    pub(crate) wanted: &'a [FieldGroup],
    /// Whether the answer was asked for without the parts that need a role, after a 403.
    pub(crate) role_missing: bool,
}

impl Wishes<'_> {
    /// Whether `group` is to be sealed: identifiers and unclassified fields go with any wanted group (DESIGN section 4).
    pub(crate) fn wants(&self, group: FieldGroup) -> bool {
        if group.may_be_wanted() { self.wanted.contains(&group) } else { !self.wanted.is_empty() }
    }
}

/// The fate of every group, in the order of [`FieldGroup::ALL`]. `supplied` are the groups the answer held; `refused` says why nothing
/// of the order may be sealed, if so.
pub(crate) fn fates(wishes: &Wishes<'_>, supplied: &[FieldGroup], refused: Option<DropReason>) -> Vec<(FieldGroup, Fate)> {
    FieldGroup::ALL
        .iter()
        .map(|group| {
            let fate = if !wishes.wants(*group) {
                Fate::Dropped(DropReason::NotWanted)
            } else if let Some(reason) = refused {
                Fate::Dropped(reason)
            } else if supplied.contains(group) {
                Fate::Sealed
            } else if wishes.role_missing && IncludedData::of(&[*group]).needs_role() {
                Fate::Dropped(DropReason::AmazonRoleMissing)
            } else {
                Fate::Dropped(DropReason::NotSupplied)
            };
            (*group, fate)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fate(wanted: &[FieldGroup], role_missing: bool, supplied: &[FieldGroup], refused: Option<DropReason>, of: FieldGroup) -> Fate {
        fates(&Wishes { wanted, role_missing }, supplied, refused).into_iter().find(|(group, _)| *group == of).unwrap().1
    }

    #[test]
    fn a_wanted_group_is_sealed_where_it_came_and_named_where_it_did_not() {
        use FieldGroup::{BuyerName, Gift, Identifiers, Unclassified};
        let wanted = [BuyerName, Gift];
        assert_eq!(fate(&wanted, false, &[BuyerName], None, BuyerName), Fate::Sealed);
        assert_eq!(fate(&wanted, false, &[], None, BuyerName), Fate::Dropped(DropReason::NotSupplied));
        assert_eq!(fate(&wanted, true, &[], None, BuyerName), Fate::Dropped(DropReason::AmazonRoleMissing));
        assert_eq!(fate(&wanted, true, &[], None, Gift), Fate::Dropped(DropReason::NotSupplied));
        assert_eq!(fate(&wanted, false, &[Identifiers], None, Identifiers), Fate::Sealed);
        assert_eq!(fate(&[], false, &[Identifiers, Unclassified], None, Unclassified), Fate::Dropped(DropReason::NotWanted));
        assert_eq!(fate(&wanted, false, &[BuyerName], Some(DropReason::Erased), BuyerName), Fate::Dropped(DropReason::Erased));
    }

    proptest! {
        #[test]
        fn each_group_has_one_fate_and_nothing_refused_is_sealed(
            wanted in proptest::sample::subsequence(FieldGroup::ALL.to_vec(), 0..=FieldGroup::ALL.len()),
            supplied in proptest::sample::subsequence(FieldGroup::ALL.to_vec(), 0..=FieldGroup::ALL.len()),
            role_missing in any::<bool>(),
            refused in proptest::option::of(proptest::sample::select(DropReason::ALL.to_vec())),
        ) {
            let all = fates(&Wishes { wanted: &wanted, role_missing }, &supplied, refused);
            prop_assert_eq!(all.iter().map(|(g, _)| *g).collect::<Vec<_>>(), FieldGroup::ALL.to_vec());
            for (group, fate) in all {
                if fate == Fate::Sealed {
                    prop_assert!(refused.is_none() && supplied.contains(&group));
                    prop_assert!(wanted.contains(&group) || (!wanted.is_empty() && !group.may_be_wanted()));
                }
            }
        }
    }
}
