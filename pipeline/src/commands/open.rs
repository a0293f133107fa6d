//! `sunder open`: an authorised, audited read of sealed fields.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::value::RawValue;
use sunder_retention::hold::{self, ColdStore as _, Document, Hold};
use sunder_retention::keys::KeyError;
use sunder_retention::names::{self, Named};
use sunder_retention::open::{self, Opened, ReadError, StoredBlock};
use sunder_retention::purpose::{Principal, Purpose, Register, Wish};
use sunder_schemas::class::FieldGroup;
use sunder_schemas::ids::{OrderId, SellerId};
use sunder_sinks::Vault;

use super::Failure;
use crate::app::Base;
use crate::cli::{DONE, FAILED, NOT_TRUE, OpenArgs};
use crate::config::{Config, Environment};
use crate::output::Output;

/// The answer (DESIGN section 6). The groups are the fetched JSON as it is, digit for digit.
#[derive(Serialize)]
struct Answer<'a> {
    seller: &'a str,
    order: &'a str,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hold: Option<Why<'a>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    groups: BTreeMap<&'static str, &'a RawValue>,
}

/// The legal hold that keeps what is shown of an order that is erased.
#[derive(Serialize)]
struct Why<'a> {
    id: &'a str,
    statute: &'a str,
    document: Document,
    until: String,
}

/// Opens what the purpose allows.
pub(super) async fn run(config: Config, args: OpenArgs, output: Output) -> Result<u8, Failure> {
    let wrong = |error: sunder_schemas::ids::IdError| Failure::Use(error.to_string());
    let seller = SellerId::parse(&args.seller).map_err(wrong)?;
    let order = OrderId::parse(&args.order).map_err(wrong)?;
    let fields = args.fields.iter().map(|f| f.parse::<FieldGroup>().map_err(wrong)).collect::<Result<Vec<_>, _>>()?;
    let base = Base::open_settled(config).await?;
    let vault = base.vault().await?;
    let fields = (!fields.is_empty()).then_some(fields.as_slice());
    let wish = (args.purpose.as_str(), args.role.as_deref(), fields);
    let opened = open_order(&base, &vault, (&seller, &order), wish).await?;
    if matches!(opened, Opened::Erased)
        && let Some((hold, held)) = open_held(&base, &vault, (&seller, &order), wish).await?
    {
        return show(&args, &held, Some(&hold), output);
    }
    show(&args, &opened, None, output)
}

/// Opens what the vault has of an order, as far as purpose, role and fields allow; the read is audited first.
///
/// # Errors
/// [`Failure`]; a wish that is not allowed is [`Opened::Denied`], no error.
pub(crate) async fn open_order(
    base: &Base,
    vault: &Vault,
    (seller, order): (&SellerId, &OrderId),
    (purpose, role, fields): (&str, Option<&str>, Option<&[FieldGroup]>),
) -> Result<Opened, Failure> {
    let named = names::name(&base.keyring, seller, order).await.map_err(|e: KeyError| Failure::of("open", &ReadError::from(e)))?;
    open_named(base, vault, (seller, &named), (purpose, role, fields)).await
}

/// Opens what the cold store has of an order that is erased, where a legal hold keeps fields that the purpose covers.
async fn open_held(
    base: &Base,
    vault: &Vault,
    (seller, order): (&SellerId, &OrderId),
    (purpose, role, fields): (&str, Option<&str>, Option<&[FieldGroup]>),
) -> Result<Option<(Hold, Opened)>, Failure> {
    let named = names::name(&base.keyring, seller, order).await.map_err(|e: KeyError| Failure::of("open", &ReadError::from(e)))?;
    let holds = hold::active_of(base.keyring.db(), seller).await.map_err(|e| Failure::of("open", &e))?;
    let may_read = |hold: &Hold| hold.purpose.as_deref().is_none_or(|only| only == purpose);
    for hold in holds.into_iter().filter(|hold| Some(hold.order_fingerprint) == named.fingerprint && may_read(hold)) {
        let held = vault.held(seller, hold.token).await.map_err(|e| Failure::of("vault", &e))?;
        let blocks: Vec<StoredBlock> =
            held.into_iter().map(|r| StoredBlock { group: r.field_group, classification: r.classification, block: r.block }).collect();
        let os_user = super::os_user();
        let wish = Wish { os_user: &os_user, role, purpose, fields };
        let own = Named { fingerprint: Some(hold.fingerprint), token: Some(hold.token) };
        let opened = open::open(&base.keyring, &register(&base.config), &wish, seller, &own, &blocks).await;
        let opened = opened.map_err(|e| Failure::of("open", &e))?;
        if matches!(opened, Opened::Readable(_)) {
            return Ok(Some((hold, opened)));
        }
    }
    Ok(None)
}

/// As [`open_order`], of an order whose names are known already.
///
/// # Errors
/// [`Failure`].
pub(super) async fn open_named(
    base: &Base,
    vault: &Vault,
    (seller, named): (&SellerId, &Named),
    (purpose, role, fields): (&str, Option<&str>, Option<&[FieldGroup]>),
) -> Result<Opened, Failure> {
    let failed = |error: &ReadError| Failure::of("open", error);
    let stored = match named.token {
        Some(token) => vault.blocks(seller, token).await.map_err(|e| Failure::of("vault", &e))?,
        None => Vec::new(),
    };
    let blocks: Vec<StoredBlock> =
        stored.into_iter().map(|r| StoredBlock { group: r.field_group, classification: r.classification, block: r.block }).collect();
    let os_user = super::os_user();
    let wish = Wish { os_user: &os_user, role, purpose, fields };
    open::open(&base.keyring, &register(&base.config), &wish, seller, named, &blocks).await.map_err(|e| failed(&e))
}

/// The groups that were opened, as the JSON that was fetched.
pub(super) fn groups_of(opened: &Opened) -> Result<BTreeMap<&'static str, &RawValue>, Failure> {
    let mut groups = BTreeMap::new();
    if let Opened::Readable(readable) = opened {
        for (group, plain) in readable {
            let damaged = || Failure::Failed(format!("open: {group} does not hold JSON"));
            groups.insert(group.as_str(), serde_json::from_slice::<&RawValue>(plain.reveal()).map_err(|_| damaged())?);
        }
    }
    Ok(groups)
}

fn show(args: &OpenArgs, opened: &Opened, hold: Option<&Hold>, output: Output) -> Result<u8, Failure> {
    let groups = groups_of(opened)?;
    let reason = if hold.is_some() { Some("held") } else { opened.reason() };
    let hold = hold.map(|hold| Why { id: &hold.id, statute: &hold.statute, document: hold.document, until: hold.until.to_iso() });
    let answer = Answer { seller: &args.seller, order: &args.order, state: opened.state(), reason, hold, groups };
    output.show(&answer, || {
        let reason = answer.reason.map_or_else(String::new, |reason| format!(" ({reason})"));
        let groups = answer.groups.iter().map(|(group, json)| format!("\n  {group}: {json}"));
        format!("{}{reason}{}", answer.state, groups.collect::<String>())
    });
    Ok(match opened {
        Opened::Readable(_) => DONE,
        Opened::Denied(_) => FAILED,
        Opened::Erased | Opened::Absent(_) => NOT_TRUE,
    })
}

pub(super) fn register(config: &Config) -> Register {
    let purposes = config.purpose.iter().map(|p| Purpose {
        name: p.name.clone(),
        basis: p.basis.clone(),
        fields: p.fields.clone(),
        roles: p.roles.clone(),
    });
    let principals = config.principal.iter().map(|p| Principal { os_user: p.os_user.clone(), roles: p.roles.clone() });
    // Only a test without any principal lets every role be claimed.
    let open_to_all = config.environment == Environment::Test && config.principal.is_empty();
    Register { purposes: purposes.collect(), principals: (!open_to_all).then(|| principals.collect()) }
}
