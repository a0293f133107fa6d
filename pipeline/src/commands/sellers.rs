//! `sunder sellers add|list|pause|remove`

use secrecy::SecretString;
use sunder_retention::case::{EraseRequest, Reason, Scope};
use sunder_retention::keys::KeyError;
use sunder_retention::sellers::{self, Account, Seller, SellerState};
use sunder_schemas::ids::{IdError, MarketplaceId, SellerId};

use super::Failure;
use super::cases::show_one;
use crate::app::{App, Base};
use crate::cli::{DONE, SellersCommand};
use crate::config::{Config, SecretRef};
use crate::output::{Output, table};

/// Changes or lists who is polled.
pub(super) async fn run(config: Config, command: SellersCommand, output: Output) -> Result<u8, Failure> {
    let wrong = |error: IdError| Failure::Use(error.to_string());
    match command {
        SellersCommand::List => {
            let base = Base::open(config, None).await?;
            let known = sellers::list(base.keyring.db()).await.map_err(|e| Failure::of("sellers", &e))?;
            let answer: Vec<_> = known.iter().map(json_of).collect();
            output.show(&answer, || show(&known));
        }
        SellersCommand::Add { id, region, marketplaces, token_file, readmit } => {
            let refresh_token: SecretString = SecretRef::File(token_file).read().map_err(Failure::Use)?;
            region.parse::<crate::spapi::Region>().map_err(wrong)?;
            let account = Account {
                id: SellerId::parse(&id).map_err(wrong)?,
                region,
                marketplaces: marketplaces.iter().map(|m| MarketplaceId::parse(m)).collect::<Result<_, _>>().map_err(wrong)?,
                refresh_token: Some(refresh_token),
            };
            let base = Base::open_settled(config).await?;
            if readmit {
                sellers::readmit(&base.keyring, &account.id).await.map_err(|e| Failure::of("sellers add --readmit", &e))?;
            }
            sellers::put(&base.keyring, &account).await.map_err(|e| Failure::of("sellers add", &e))?;
            sellers::set_state(&base.keyring, &account.id, SellerState::Active, None).await.map_err(|e| Failure::of("sellers add", &e))?;
            output.show(&serde_json::json!({ "seller": account.id, "state": "active" }), || format!("{} is polled", account.id));
        }
        SellersCommand::Pause { id } => {
            let id = SellerId::parse(&id).map_err(wrong)?;
            let base = Base::open_settled(config).await?;
            let code = Some("by_operator");
            sellers::set_state(&base.keyring, &id, SellerState::Paused, code).await.map_err(|e| Failure::of("sellers pause", &e))?;
            output.show(&serde_json::json!({ "seller": id, "state": "paused" }), || format!("{id} is paused"));
        }
        SellersCommand::Remove { id } => {
            let id = SellerId::parse(&id).map_err(wrong)?;
            let app = App::open_for_request(Base::open(config, None).await?).await?;
            super::must_be_known(&app.base, &id).await?;
            let request = EraseRequest {
                seller: id.clone(),
                scope: Scope::All,
                reason: Reason::SellerOffboarding,
                with_business_data: Some(true),
                now: false,
                requested_by: super::os_user(),
            };
            // The case removes the seller as well, whoever works it; done here it holds once this command returns.
            let case = app.engine.request(&request).await.map_err(|e| Failure::of("sellers remove", &e))?;
            match sellers::set_state(&app.base.keyring, &id, SellerState::Removed, None).await {
                Ok(()) | Err(KeyError::SellerRemoved(_)) => {}
                Err(error) => return Err(Failure::of("sellers remove", &error)),
            }
            let shown = sunder_retention::case::show(app.base.keyring.db(), &case, app.base.clock.now())
                .await
                .map_err(|e| Failure::of("cases", &e))?;
            output.show(&shown, || show_one(&shown));
        }
    }
    Ok(DONE)
}

fn json_of(seller: &Seller) -> serde_json::Value {
    serde_json::json!({
        "id": seller.id, "region": seller.region, "marketplaces": seller.marketplaces,
        "state": seller.state.as_str(), "code": seller.code, "has_refresh_token": seller.has_refresh_token,
    })
}

fn show(sellers: &[Seller]) -> String {
    let rows = sellers.iter().map(|s| {
        let marketplaces = s.marketplaces.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        vec![
            s.id.to_string(),
            s.region.clone().unwrap_or_default(),
            s.state.as_str().to_owned(),
            s.code.clone().unwrap_or_default(),
            marketplaces,
        ]
    });
    table(&["seller", "region", "state", "why", "marketplaces"], rows)
}
