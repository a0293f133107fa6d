//! The sellers that are polled: those of the config and those that were added, less the paused and the removed.

use std::collections::HashMap;
use std::sync::Arc;

use sunder_retention::keys::KeyError;
use sunder_retention::sellers::{self, Account, SellerState};
use sunder_schemas::class::Dataset;
use sunder_schemas::ids::SellerId;
use sunder_schemas::time::Period;

use super::{App, StartError, part, settings};
use crate::poll::PolledSeller;
use crate::spapi::Client;

/// How far back the first poll of a seller reads that was added by command (the config's own default).
const SINCE: Period = Period::days(90);
/// How far behind its cursor such a seller's polls read again (the config's own default).
const OVERLAP: Period = Period::Millis(30 * 60_000);

impl App {
    /// Brings the sellers of the config into the database: their tokens are wrapped there, so that any poller can take any seller.
    /// One that was removed stays removed: that beats the config.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn register_sellers(&self) -> Result<(), StartError> {
        for seller in &self.base.config.seller {
            let refresh_token = settings::secret(&format!("seller {} refresh_token", seller.id), &seller.refresh_token)?;
            // Another token than the refused one is a new grant: a restart is all it takes.
            match sellers::unblock_with(&self.base.keyring, &seller.id, &refresh_token).await {
                Ok(true) => tracing::info!(seller = %seller.id, "has a new refresh token and is polled again"),
                Ok(false) => {}
                Err(error) => return Err(part("keys.database")(error)),
            }
            let account = Account {
                id: seller.id.clone(),
                region: seller.region.clone(),
                marketplaces: seller.marketplaces.clone(),
                refresh_token: Some(refresh_token),
            };
            match sellers::put(&self.base.keyring, &account).await {
                Err(KeyError::SellerRemoved(id)) => tracing::warn!(seller = %id, "was removed and is not polled, whatever the config says"),
                other => other.map_err(part("keys.database"))?,
            }
        }
        Ok(())
    }

    /// Every seller that may be polled now.
    ///
    /// # Errors
    /// [`KeyError`].
    pub async fn polled_sellers(&self) -> Result<Vec<Arc<PolledSeller>>, KeyError> {
        let of_config: HashMap<&SellerId, _> = self.base.config.seller.iter().map(|s| (&s.id, s)).collect();
        let mut polled = Vec::new();
        for (seller, refresh_token) in sellers::polled(&self.base.keyring).await? {
            let Some(region) = seller.region.as_deref().and_then(|r| r.parse().ok()) else { continue };
            let configured = of_config.get(&seller.id);
            polled.push(Arc::new(PolledSeller {
                refresh_token,
                id: seller.id,
                region,
                marketplaces: seller.marketplaces,
                // Least data: who was added by command gets all datasets and no personal field until the config says otherwise.
                datasets: configured.map_or_else(|| Dataset::ALL.to_vec(), |c| c.datasets.clone()),
                personal: configured.map_or_else(Vec::new, |c| c.personal.clone()),
                since: configured.map_or(SINCE, |c| c.since),
                overlap: configured.map_or(OVERLAP, |c| c.overlap),
            }));
        }
        Ok(polled)
    }

    /// Sellers that are not polled until a person acts.
    ///
    /// # Errors
    /// [`KeyError`].
    pub async fn blocked_sellers(&self) -> Result<Vec<SellerId>, KeyError> {
        let known = sellers::list(self.base.keyring.db()).await?;
        Ok(known.into_iter().filter(|seller| seller.state == SellerState::Blocked).map(|seller| seller.id).collect())
    }

    /// The SP-API client.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn spapi_client(&self) -> Result<Arc<Client>, StartError> {
        let client = Client::new(settings::spapi(&self.base.config)?, Arc::clone(&self.base.clock));
        Ok(Arc::new(client.map_err(part("spapi"))?))
    }
}
