//! One order's way through memory, by the product's own functions: classified, sealed, projected to typed rows, encoded as Avro.

use std::sync::Arc;

use anyhow::Context as _;
use sunder_retention::admit::Candidate;
use sunder_retention::deadline::{Observed, Policy, Progress};
use sunder_retention::keydb::KeyDb;
use sunder_retention::keys::{Context, DataKey, Keyring, SellerKeys};
use sunder_retention::root::FileRoot;
use sunder_schemas::catalogue::Catalogue;
use sunder_schemas::class::{Family, FieldGroup, Kind};
use sunder_schemas::classify::{Classified, Classifier, Page};
use sunder_schemas::envelope::{Attribution, Entity, RawEvent, SealedGroup};
use sunder_schemas::ids::{MarketplaceId, SellerId};
use sunder_schemas::records::OrderFacts;
use sunder_schemas::time::{ManualClock, Timestamp};
use tempfile::TempDir;

/// The policy clock of every bench: 2026-11-22T00:00:00Z.
pub const TODAY: Timestamp = Timestamp(1_795_305_600_000);
/// When the benches' blocks are due: 30 days later.
pub const DEADLINE: Timestamp = Timestamp(TODAY.0 + 30 * 86_400_000);
/// What the benches' seller wants sealed; the identifiers are sealed along with it.
pub const WANTED: FieldGroup = FieldGroup::RecipientAddress;

/// Keys of a seller in a database of their own, in a temp folder.
#[derive(Debug)]
pub struct Keys {
    /// The keyring.
    pub keyring: Arc<Keyring>,
    /// The seller.
    pub seller: SellerId,
    /// Its keys.
    pub of_seller: Arc<SellerKeys>,
    _folder: TempDir,
}

impl Keys {
    /// Keys in SQLite, or in the empty PostgreSQL database at `url`.
    ///
    /// # Errors
    /// Where the folder or the database cannot be made.
    pub async fn open(url: Option<&str>) -> anyhow::Result<Self> {
        let folder = TempDir::with_prefix("sunder-bench-")?;
        let url = url.map_or_else(|| format!("sqlite://{}/keys.db", folder.path().display()), str::to_owned);
        let db = KeyDb::open(&url, None).await.context("open the key database")?;
        let root = FileRoot::open_or_create(&folder.path().join("root.key")).context("make the root key")?;
        let keyring = Arc::new(Keyring::new(db, Arc::new(root), Arc::new(ManualClock::at(TODAY)), Policy::default()));
        let seller = SellerId::parse("A2BENCHSELLER1")?;
        let of_seller = keyring.seller(&seller).await?;
        Ok(Self { keyring, seller, of_seller, _folder: folder })
    }
}

/// What one order's way needs beside the order.
#[derive(Debug)]
pub struct Line {
    seller: SellerId,
    keys: Arc<SellerKeys>,
    catalogue: &'static Catalogue,
    classifier: Classifier,
    marketplace: MarketplaceId,
}

impl Line {
    /// A line for the answers of `operation` (`getOrder` or `searchOrders`).
    ///
    /// # Errors
    /// Where there is no catalogue for it.
    pub fn new(keys: &Keys, operation: &str) -> anyhow::Result<Self> {
        Ok(Self {
            seller: keys.seller.clone(),
            keys: Arc::clone(&keys.of_seller),
            catalogue: Catalogue::for_operation("orders_2026-01-01", operation)?,
            classifier: Classifier::default(),
            marketplace: MarketplaceId::parse("A1PA6795UKMFR9")?,
        })
    }

    /// Takes an answer apart.
    ///
    /// # Errors
    /// Where it is not one.
    pub fn classify(&mut self, body: &[u8]) -> anyhow::Result<Page> {
        Ok(self.classifier.classify(self.catalogue, body, &*self.keys)?)
    }

    /// The event of an order, with the groups `wants` says yes to sealed under `key`.
    ///
    /// # Errors
    /// Where the order has no version.
    pub fn seal(&self, order: Classified, key: &DataKey, wants: impl Fn(FieldGroup) -> bool) -> anyhow::Result<RawEvent> {
        let token = order.identity.token();
        let source_version = order.identity.source_version().context("an order without a version")?.0;
        let classification = self.catalogue.version();
        let sealed = order
            .groups
            .iter()
            .filter(|(group, _)| wants(*group))
            .map(|(group, plain)| {
                let context = Context { seller: &self.seller, entity: token, group: *group, classification };
                SealedGroup { group: *group, block: key.seal(&context, plain.reveal()) }
            })
            .collect();
        Ok(RawEvent {
            attribution: Attribution {
                selling_partner_id: self.seller.clone(),
                marketplace_id: order.identity.marketplace_id().unwrap_or(&self.marketplace).clone(),
                source_api: self.catalogue.api().to_owned(),
                source_operation: self.catalogue.operation().to_owned(),
                source_request_id: "0f4c7d2a-0000-4000-8000-5c1d0b3e9a77".to_owned(),
                collected_at: TODAY,
                event_id: self.keys.event_id(Kind::Orders.as_str(), token, source_version, &order.payload_sha256),
                payload_sha256: order.payload_sha256,
            },
            entity: Entity { family: Family::Orders, token },
            source_version,
            poller: "sunder-benches/0.1.0".to_owned(),
            classification: classification.to_owned(),
            clear: order.clear,
            sealed,
            deadline: Some((DEADLINE, "cap_promise".to_owned())),
        })
    }

    /// What asks for the order's key.
    ///
    /// # Errors
    /// Where the order lacks what an order has.
    pub fn candidate(&self, order: &Classified) -> anyhow::Result<Candidate> {
        let id = order.identity.order_id().context("an order without an id")?;
        let token = order.identity.token();
        let source_version = order.identity.source_version().context("an order without a version")?.0;
        let facts = OrderFacts::from_clear(&order.clear)?;
        Ok(Candidate {
            fingerprint: self.keys.fingerprint(id),
            token,
            observed: Observed {
                created: facts.created,
                last_updated: facts.last_updated,
                asked_at: None,
                previous_look: None,
                progress: Progress::Open,
                delivery_visible: true,
                latest_promise: facts.latest_promise,
                last_ship_time: None,
                packages: 0,
                packages_delivered: 0,
                delivered_at: None,
            },
            source_version,
            event_id: self.keys.event_id(Kind::Orders.as_str(), token, source_version, &order.payload_sha256),
            wants_key: true,
        })
    }

    /// Opens `group` of `event` again.
    ///
    /// # Errors
    /// Where the event has no such block, or it does not open.
    pub fn open(&self, event: &RawEvent, group: FieldGroup, key: &DataKey) -> anyhow::Result<String> {
        let sealed = event.sealed.iter().find(|sealed| sealed.group == group).context("the event has no block of this group")?;
        let context = Context { seller: &self.seller, entity: event.entity.token, group, classification: &event.classification };
        Ok(String::from_utf8(key.open(&context, sealed.block.as_bytes())?.reveal().clone())?)
    }
}
