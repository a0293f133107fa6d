//! `sunder hold add|list|remove`: fields that a law keeps longer than their order.

use serde_json::{Value, json};
use sunder_retention::hold::{self, Document, Hold, HoldError, Kept, NewHold};
use sunder_retention::keys::KeyError;
use sunder_retention::names;
use sunder_schemas::class::FieldGroup;
use sunder_schemas::ids::{IdError, OrderId, SellerId};
use sunder_schemas::time::{Period, Timestamp};

use super::Failure;
use crate::app::Base;
use crate::cli::{DONE, HoldAdd, HoldCommand};
use crate::config::Config;
use crate::output::{Output, table};

/// Adds, lists or ends holds.
pub(super) async fn run(config: Config, command: HoldCommand, output: Output) -> Result<u8, Failure> {
    // Nothing is opened or made with keys of a database that was restored and does not know yet what was erased since.
    let base = Base::open_settled(config).await?;
    match command {
        HoldCommand::List => {
            let holds = hold::list(base.keyring.db()).await.map_err(|e| Failure::of("hold list", &e))?;
            output.show(&holds.iter().map(json_of).collect::<Vec<_>>(), || show(&holds));
        }
        HoldCommand::Add(args) => {
            let (hold, kept) = add(&base, &args).await?;
            output.show(&json_of(&hold), || match kept {
                Kept::Fields(fields) => format!("{}: {} kept until {}", hold.id, names_of(&fields), hold.until.to_iso()),
                Kept::NotThereYet(_) | Kept::KeyGone => {
                    format!("{}: its fields are kept once the vault has them, before the order's key goes", hold.id)
                }
            });
        }
        HoldCommand::Remove { id } => {
            let hold = hold::end(&base.keyring, &id, &super::os_user()).await.map_err(|e| failure("hold remove", &e))?;
            output.show(&json_of(&hold), || format!("{} has ended; the next sweep destroys its key and certifies it", hold.id));
        }
    }
    Ok(DONE)
}

fn failure(what: &str, error: &HoldError) -> Failure {
    match error {
        HoldError::Refused(_) | HoldError::NotFound => Failure::Use(error.to_string()),
        HoldError::Key(_) => Failure::of(what, error),
    }
}

/// Makes the hold, and copies its fields to the cold store as far as the vault has them: a later version is copied again before the
/// order's key goes.
async fn add(base: &Base, args: &HoldAdd) -> Result<(Hold, Kept), Failure> {
    let wrong = |error: IdError| Failure::Use(error.to_string());
    let seller = SellerId::parse(&args.seller).map_err(wrong)?;
    let order = OrderId::parse(&args.order).map_err(wrong)?;
    let fields = args.fields.iter().map(|field| field.parse::<FieldGroup>().map_err(wrong)).collect::<Result<Vec<_>, _>>()?;
    let document = Document::parse(&args.document).ok_or_else(|| Failure::Use("--document is not one of the known ones".to_owned()))?;
    if let Some(purpose) = &args.purpose
        && !base.config.purpose.iter().any(|known| known.name == *purpose)
    {
        return Err(Failure::Use("--purpose is not one of the config's".to_owned()));
    }
    let named = names::name(&base.keyring, &seller, &order).await.map_err(|e: KeyError| Failure::of("hold add", &e))?;
    let user = super::os_user();
    let new = NewHold {
        seller: &seller,
        order: &named,
        statute: &args.statute,
        document,
        fields: &fields,
        purpose: args.purpose.as_deref(),
        until: until(&args.until)?,
        by: &user,
    };
    let vault = base.vault().await?;
    let hold = hold::add(&base.keyring, &new).await.map_err(|e| failure("hold add", &e))?;
    let kept = hold::keep(&base.keyring, &*vault, &hold, &user).await.map_err(|e| Failure::of("hold add", &e))?;
    let all = hold::list(base.keyring.db()).await.map_err(|e| Failure::of("hold add", &e))?;
    Ok((all.into_iter().find(|known| known.id == hold.id).unwrap_or(hold), kept))
}

/// The end of a day, `2034-12-31`, or an instant in ISO 8601.
fn until(text: &str) -> Result<Timestamp, Failure> {
    let end_of_day = |day: Timestamp| Timestamp(day.plus(Period::days(1)).0 - 1);
    let day = Timestamp::parse(&format!("{text}T00:00:00Z")).map(end_of_day);
    day.or_else(|_| Timestamp::parse(text)).map_err(|error| Failure::Use(format!("--until: a day, e.g. 2034-12-31, or {error}")))
}

fn names_of(fields: &[FieldGroup]) -> String {
    fields.iter().map(|field| field.as_str()).collect::<Vec<_>>().join(", ")
}

fn json_of(hold: &Hold) -> Value {
    json!({
        "id": hold.id, "state": if hold.is_active { "active" } else { "ended" }, "seller": hold.seller, "order_token": hold.order_token,
        "statute": hold.statute, "document": hold.document, "fields": hold.fields, "purpose": hold.purpose, "until": hold.until.to_iso(),
        "created_at": hold.created_at.to_iso(), "created_by": hold.created_by, "kept": hold.moved_fields,
        "kept_at": hold.moved_at.map(Timestamp::to_iso),
    })
}

fn show(holds: &[Hold]) -> String {
    if holds.is_empty() {
        return "no holds".to_owned();
    }
    let rows = holds.iter().map(|hold| {
        vec![
            hold.id.clone(),
            if hold.is_active { "active" } else { "ended" }.to_owned(),
            hold.seller.to_string(),
            hold.statute.clone(),
            hold.document.as_str().to_owned(),
            names_of(&hold.fields),
            hold.until.to_iso(),
        ]
    });
    table(&["hold", "state", "seller", "statute", "document", "fields", "until"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_counts_to_its_end_and_nonsense_is_refused() {
        assert_eq!(until("2034-12-31").unwrap().to_iso(), "2034-12-31T23:59:59.999Z");
        assert_eq!(until("2034-12-31T12:00:00Z").unwrap().to_iso(), "2034-12-31T12:00:00.000Z");
        for text in ["2034", "", "31.12.2034", "2034-13-01"] {
            assert!(matches!(until(text), Err(Failure::Use(_))), "{text}");
        }
    }
}
