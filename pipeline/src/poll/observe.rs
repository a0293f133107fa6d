//! What one version of an order shows of its shipment and delivery: pure, from the clear part's facts (FACTS section 10).

use sunder_retention::deadline::{Observed, Progress};
use sunder_schemas::records::{OrderFacts, PackageFacts};
use sunder_schemas::time::Timestamp;

/// Package states, plain or detailed, after which nothing more is delivered. A parcel that is refused, lost or goes back never reaches
/// the buyer: counting it as delivered can only end the data's life earlier, never later.
const ENDED: [&str; 6] = ["DELIVERED", "UNDELIVERABLE", "REJECTED_BY_BUYER", "RETURNING_TO_SELLER", "RETURNED_TO_SELLER", "LOST"];

fn has_ended(package: &PackageFacts) -> bool {
    [&package.status, &package.detailed_status].into_iter().flatten().any(|status| ENDED.contains(&status.as_str()))
}

/// What the deadline is reckoned from; `watermark` is the seller's order watermark before this answer, `asked_at` when it was asked for.
pub(crate) fn observe(facts: &OrderFacts, watermark: Option<Timestamp>, asked_at: Option<Timestamp>) -> Observed {
    let counted: Vec<_> = facts.packages.iter().filter(|package| package.status.as_deref() != Some("CANCELLED")).collect();
    let ended = counted.iter().filter(|package| has_ended(package)).count();
    Observed {
        created: facts.created,
        last_updated: facts.last_updated,
        previous_look: watermark,
        asked_at,
        progress: match facts.status.as_str() {
            "SHIPPED" => Progress::Shipped,
            "CANCELLED" => Progress::Cancelled,
            // PENDING, UNSHIPPED, PARTIALLY_SHIPPED, UNFULFILLABLE and what Amazon may add: no last shipment yet.
            _ => Progress::Open,
        },
        delivery_visible: facts.fulfilled_by.as_deref() == Some("MERCHANT"),
        latest_promise: facts.latest_promise,
        last_ship_time: counted.iter().filter_map(|package| package.shipped).max(),
        packages: u32::try_from(counted.len()).unwrap_or(u32::MAX),
        packages_delivered: u32::try_from(ended).unwrap_or(u32::MAX),
        // Orders 2026-01-01 tells that a package was delivered, never when.
        delivered_at: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(status: &str, packages: &[&str]) -> OrderFacts {
        OrderFacts {
            created: Timestamp(1),
            last_updated: Timestamp(9),
            status: status.into(),
            fulfilled_by: Some("MERCHANT".into()),
            latest_promise: None,
            packages: packages
                .iter()
                .zip(3..)
                .map(|(status, at)| PackageFacts {
                    status: Some((*status).to_owned()),
                    detailed_status: None,
                    shipped: Some(Timestamp(at)),
                    created: None,
                })
                .collect(),
        }
    }

    #[test]
    fn a_failed_parcel_counts_as_delivered_and_a_cancelled_one_not_at_all() {
        let seen = observe(&facts("SHIPPED", &["DELIVERED", "UNDELIVERABLE", "CANCELLED"]), Some(Timestamp(5)), Some(Timestamp(12)));
        assert_eq!((seen.packages, seen.packages_delivered, seen.last_ship_time), (2, 2, Some(Timestamp(4))));
        assert!(seen.delivery_visible && seen.progress == Progress::Shipped && seen.delivered_at.is_none());
        assert_eq!((seen.previous_look, seen.asked_at), (Some(Timestamp(5)), Some(Timestamp(12))));
    }

    #[test]
    fn a_detailed_status_ends_a_delivery_that_the_plain_one_does_not() {
        let mut facts = facts("SHIPPED", &["IN_TRANSIT"]);
        assert_eq!(observe(&facts, None, None).packages_delivered, 0);
        facts.packages[0].detailed_status = Some("LOST".into());
        assert_eq!(observe(&facts, None, None).packages_delivered, 1);
    }

    #[test]
    fn only_shipped_is_shipped() {
        assert_eq!(observe(&facts("PARTIALLY_SHIPPED", &["IN_TRANSIT"]), None, None).progress, Progress::Open);
        assert_eq!(observe(&facts("CANCELLED", &[]), None, None).progress, Progress::Cancelled);
        assert_eq!(observe(&facts("SOMETHING_NEW", &[]), None, None).progress, Progress::Open);
    }
}
