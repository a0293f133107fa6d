//! Who may open which fields, and why: pure (DESIGN section 6, `[[purpose]]` and `[[principal]]`).
//!
//! Invariants: what is not registered is denied; a role must be claimed, and where principals are registered the user must hold it.

use std::fmt;

use serde::{Deserialize, Serialize};
use sunder_schemas::class::FieldGroup;

/// A registered purpose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Purpose {
    /// Its name, e.g. `invoice`.
    pub name: String,
    /// The legal basis, e.g. `GDPR 6(1)(c)`.
    pub basis: String,
    /// What it may open.
    pub fields: Vec<FieldGroup>,
    /// Which roles may claim it.
    pub roles: Vec<String>,
}

/// Who may claim which roles.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Principal {
    /// The operating-system user.
    pub os_user: String,
    /// The roles.
    pub roles: Vec<String>,
}

/// All purposes and principals of the config.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Register {
    /// The purposes.
    pub purposes: Vec<Purpose>,
    /// The principals; `None`: any role may be claimed (test only).
    pub principals: Option<Vec<Principal>>,
}

/// A wish to open something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish<'a> {
    /// The operating-system user that asks.
    pub os_user: &'a str,
    /// The role claimed.
    pub role: Option<&'a str>,
    /// The purpose named.
    pub purpose: &'a str,
    /// The groups asked for; `None`: all of the purpose.
    pub fields: Option<&'a [FieldGroup]>,
}

/// Why a wish is denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Denial {
    /// No such purpose.
    UnknownPurpose,
    /// A group that the purpose does not name.
    FieldOutsidePurpose,
    /// No role was claimed.
    RoleMissing,
    /// The role is not among the purpose's.
    RoleOutsidePurpose,
    /// The user is not registered for the role.
    RoleNotHeld,
}

impl Denial {
    /// The reason as the commands print it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UnknownPurpose => "unknown_purpose",
            Self::FieldOutsidePurpose => "field_outside_purpose",
            Self::RoleMissing => "role_missing",
            Self::RoleOutsidePurpose => "role_outside_purpose",
            Self::RoleNotHeld => "role_not_held",
        }
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Register {
    /// The groups that `wish` may open.
    ///
    /// # Errors
    /// [`Denial`].
    pub fn decide(&self, wish: &Wish<'_>) -> Result<Vec<FieldGroup>, Denial> {
        let purpose = self.purposes.iter().find(|p| p.name == wish.purpose).ok_or(Denial::UnknownPurpose)?;
        let role = wish.role.ok_or(Denial::RoleMissing)?;
        if !purpose.roles.iter().any(|r| r == role) {
            return Err(Denial::RoleOutsidePurpose);
        }
        if let Some(principals) = &self.principals
            && !principals.iter().any(|p| p.os_user == wish.os_user && p.roles.iter().any(|r| r == role))
        {
            return Err(Denial::RoleNotHeld);
        }
        match wish.fields {
            None => Ok(purpose.fields.clone()),
            Some(fields) if fields.iter().all(|f| purpose.fields.contains(f)) => Ok(fields.to_vec()),
            Some(_) => Err(Denial::FieldOutsidePurpose),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_registered_is_allowed() {
        let invoice = Purpose {
            name: "invoice".to_owned(),
            basis: "GDPR 6(1)(c)".to_owned(),
            fields: vec![FieldGroup::BuyerName, FieldGroup::RecipientAddress],
            roles: vec!["invoicing".to_owned()],
        };
        let service = Principal { os_user: "invoicing-service".to_owned(), roles: vec!["invoicing".to_owned()] };
        let open = Register { purposes: vec![invoice], principals: None };
        let strict = Register { principals: Some(vec![service]), ..open.clone() };
        let wish = Wish { os_user: "invoicing-service", role: Some("invoicing"), purpose: "invoice", fields: None };
        let name = [FieldGroup::BuyerName];
        let gift = [FieldGroup::BuyerName, FieldGroup::Gift];
        let both = vec![FieldGroup::BuyerName, FieldGroup::RecipientAddress];
        let cases = [
            (wish.clone(), Ok(both)),
            (Wish { fields: Some(&name), ..wish.clone() }, Ok(name.to_vec())),
            (Wish { fields: Some(&gift), ..wish.clone() }, Err(Denial::FieldOutsidePurpose)),
            (Wish { purpose: "marketing", ..wish.clone() }, Err(Denial::UnknownPurpose)),
            (Wish { role: None, ..wish.clone() }, Err(Denial::RoleMissing)),
            (Wish { role: Some("support"), ..wish.clone() }, Err(Denial::RoleOutsidePurpose)),
        ];
        for (wish, expected) in cases {
            assert_eq!(open.decide(&wish), expected, "{wish:?}");
            assert_eq!(strict.decide(&wish), expected, "{wish:?}");
        }
        let mallory = Wish { os_user: "mallory", ..wish };
        assert_eq!(strict.decide(&mallory), Err(Denial::RoleNotHeld));
        assert!(open.decide(&mallory).is_ok());
    }
}
